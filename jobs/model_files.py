"""What a model's files say of it without loading it: sizes, layers, image tokens. Torch-free.

A safetensors file begins with 8 bytes, the length of a header in little-endian order, and the header: JSON with
each tensor's dtype and shape (as the README of the safetensors project describes it). The weights stay unread.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.hub import snapshot, weights_named
from jobs.models import is_hub_name, location
from storage.errors import UserError

#: Bytes a number; what isn't known counts as 2.
DTYPES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
LONGEST_HEADER = 100_000_000

#: As jobs/gpu/projector.py has them.
PROJECTORS = ("multi_modal_projector", "connector", "visual.merger")

#: Parts of names that stand outside the language model.
_OUTSIDE = re.compile(
    r"(^|\.)(vision\w*|visual\w*|audio\w*|multi_modal_projector|mm_projector|connector|embed_vision|embed_audio|"
    r"resampler|qformer|aligner|image_newline)(\.|$)"
)
_IN_A_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * DTYPES.get(self.dtype, 2)


@dataclass(frozen=True)
class ModelFiles:
    """A model's configuration and the headers of its weights.

    Attributes:
        config: config.json.
        processor: processor_config.json and preprocessor_config.json, the former's entries over the latter's.
        tensors: by the names of the files, which may differ from those of the loaded model.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    processor: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> Mapping[str, Any]:
        """The language model's part of the configuration."""
        for name in ("text_config", "llm_config", "language_config"):
            if isinstance(self.config.get(name), dict):
                found: Mapping[str, Any] = self.config[name]
                return found
        return self.config

    @property
    def parameters(self) -> int:
        """Numbers in the files; a vocabulary's head that is tied to the embeddings isn't there twice."""
        return sum(tensor.count for tensor in self.tensors.values())


def find_model(name: str, models_dir: Path, revision: str = "") -> ModelFiles | None:
    """A model's files, where they are on this machine: in a folder, or whole in the hub's cache.

    Args:
        revision: of a hub's model.

    Returns:
        None where they aren't here yet, or not as safetensors.

    Raises:
        UserError: a file is damaged.
    """
    folder = location(name, models_dir)
    if folder is None:
        folder = snapshot(name, revision) if is_hub_name(name) else None
    if folder is None or not (folder / "config.json").is_file():
        return None
    tensors = read_tensors(folder, "model")
    if tensors is None:
        return None
    processor: dict[str, Any] = {}
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            processor |= _read_json(folder / file)
    return ModelFiles(folder, _read_json(folder / "config.json"), tensors, processor)


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor] | None:
    """The headers of `<stem>.safetensors`, or of all its parts; None where one of them is missing.

    Raises:
        UserError: a file is damaged; the index names what is no safetensors file.
    """
    files = [folder / f"{stem}.safetensors"]
    index = folder / f"{stem}.safetensors.index.json"
    if not files[0].is_file() and index.is_file():
        files = [folder / name for name in weights_named(index)]
    if not files or not all(file.is_file() for file in files):
        return None
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_header(file)
    return found


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        UserError: it isn't one, or is cut off within its header.
    """
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            raw = opened.read(length)
        if len(raw) < length:
            raise ValueError("its header is cut off")
        header = json.loads(raw)
        return {
            name: Tensor(entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file.name} in {file.parent.name} is not a whole safetensors file ({error}); fetch it again."
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file.name} in {file.parent.name} cannot be read ({error}); fetch it again.") from error
    return found if isinstance(found, dict) else {}


def language_linears(files: ModelFiles, targets: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """The linear layers that LoRA sits on, as (out, in): those of the language model's layers.

    Args:
        targets: names of layers, as q_proj; none: all.
    """
    found = {}
    for name, tensor in files.tensors.items():
        layer = name.removesuffix(".weight")
        inside = _IN_A_LAYER.search(name) and not _OUTSIDE.search(name)
        if layer == name or not inside or len(tensor.shape) != 2:
            continue
        if not targets or layer.rsplit(".", 1)[-1] in targets:
            found[layer] = (tensor.shape[0], tensor.shape[1])
    return found


def lora_parameters(layers: Mapping[str, tuple[int, int]], rank: int) -> int:
    """r × (in + out) for each layer: A is r × in, B is out × r (Hu et al. 2021, arXiv 2106.09685)."""
    return rank * sum(out + into for out, into in layers.values())


def projector_parameters(files: ModelFiles) -> int:
    """Numbers in the projector between vision tower and language model; 0 where none is known."""
    return sum(
        tensor.count
        for name, tensor in files.tensors.items()
        if any(f".{projector}." in f".{name}" for projector in PROJECTORS)
    )


def weight_bytes(files: ModelFiles, dtype: str, quantization: str) -> int:
    """What the weights take when they are loaded.

    NF4 takes 4 bits a number and, with double quantization, 0.127 more for its constants (Dettmers et al. 2023,
    arXiv 2305.14314, section 3); everything but the language model's linear layers stays in 16 bits then.
    """
    each = {"float32": 4, "float16": 2, "bfloat16": 2}.get(dtype)
    if quantization == "4bit":
        linears = language_linears(files)
        packed = sum(out * into for out, into in linears.values())
        return round(packed * (4 + 0.127) / 8) + 2 * (files.parameters - packed)
    if each is None:
        return sum(tensor.bytes for tensor in files.tensors.values())
    return each * files.parameters


def image_tokens(files: ModelFiles, width: int, height: int) -> int | None:
    """Tokens that an image of this size takes in the prompt; None for families that aren't known here.

    Where a family cuts images up (LLaVA-NeXT), this is the most that there can be.
    """
    config, settings = files.config, files.processor
    kind = config.get("model_type", "")
    if kind in ("llava", "vipllava"):
        return _fixed(config)
    if kind == "llava_next":
        return _with_tiles(config, _images(settings))
    if kind.startswith(("qwen2_vl", "qwen2_5_vl", "qwen3_vl")):
        return _by_area(config, _images(settings), width, height)
    if kind in ("smolvlm", "idefics3"):
        return _by_tiles(_images(settings), int(settings.get("image_seq_len", 64)), width, height)
    if kind.startswith("gemma3"):
        return int(config.get("mm_tokens_per_image", 256))
    if kind == "paligemma":
        return int(files.text.get("num_image_tokens", 256))
    return None


def _images(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = settings.get("image_processor")
    return inner if isinstance(inner, dict) else settings


def _fixed(config: Mapping[str, Any]) -> int:
    """LLaVA: a token for each patch of a picture of one size."""
    vision = config.get("vision_config") or {}
    if "image_size" in vision and "patch_size" in vision:
        return int((vision["image_size"] // vision["patch_size"]) ** 2)
    return int(config.get("image_seq_length", 576))


def _with_tiles(config: Mapping[str, Any], images: Mapping[str, Any]) -> int:
    """LLaVA-NeXT: the whole picture small, and its tiles with a token at the end of each line of patches."""
    small = _fixed(config)
    side, patches = int((config.get("vision_config") or {}).get("image_size", 336)), math.isqrt(small)
    grids = images.get("image_grid_pinpoints") or config.get("image_grid_pinpoints") or [[2 * side, 2 * side]]
    lines: list[tuple[int, int]] = [(height // side * patches, width // side * patches) for height, width in grids]
    return small + max(rows * columns + rows for rows, columns in lines)


def _by_area(config: Mapping[str, Any], images: Mapping[str, Any], width: int, height: int) -> int:
    """Qwen-VL: a token for each block of merged patches, the area kept within two bounds (its `smart_resize`)."""
    vision = config.get("vision_config") or {}
    side = int(images.get("patch_size", vision.get("patch_size", 14))) * int(images.get("merge_size", 2))
    bounds = images.get("size") or {}
    low = int(images.get("min_pixels") or bounds.get("shortest_edge") or 56 * 56)
    high = int(images.get("max_pixels") or bounds.get("longest_edge") or 28 * 28 * 1280)
    width, height = max(1, width), max(1, height)
    lines, columns = (max(1, round(length / side)) for length in (height, width))
    if lines * columns * side**2 > high:
        shrink = math.sqrt(high / (width * height))
        lines, columns = (max(1, math.floor(length * shrink / side)) for length in (height, width))
    elif lines * columns * side**2 < low:
        grow = math.sqrt(low / (width * height))
        lines, columns = (math.ceil(length * grow / side) for length in (height, width))
    return lines * columns


def _by_tiles(images: Mapping[str, Any], each: int, width: int, height: int) -> int:
    """SmolVLM: tiles of a picture that was scaled to a longest edge, and the whole picture beside them."""
    longest = int((images.get("size") or {}).get("longest_edge", 4 * 364))
    tile = int((images.get("max_image_size") or {}).get("longest_edge", 364))
    if not images.get("do_image_splitting", True):
        return each
    scale = longest / max(width, height, 1)
    rows, columns = (math.ceil(max(1.0, side * scale) / tile) for side in (height, width))
    return each * (rows * columns + 1)
