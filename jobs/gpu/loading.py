"""A base model and its processor, by plain Auto classes: safetensors only, no code of the model's own.

4-bit weights (bitsandbytes' NF4, Dettmers et al. 2023, arXiv 2305.14314) and flash attention are for CUDA alone,
and off unless they are asked for; requirements-cuda.txt names their packages.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from jobs.config_base import ModelConfig
from jobs.download import fetch
from jobs.gpu.devices import check_dtype
from jobs.gpu.processors import read_processor
from jobs.gpu.profiles import UNCHANGED, Profile, apply_profile, profile_for
from jobs.gpu.text_models import ensure_demo_text, is_text_model, read_tokenizer
from jobs.hub import lacking_weights, offline, snapshot
from jobs.models import DEMO, DEMO_TEXT, check_model, location
from jobs.reporter import Reporter
from storage.errors import PlumbError, UserError

#: Parts that stay in 16 bits when the rest is loaded in 4: few weights, and the pictures depend on them.
NOT_IN_4BIT = (
    "lm_head",
    "vision_tower",
    "vision_model",
    "visual",
    "multi_modal_projector",
    "connector",
    "embed_vision",
)


@dataclass(frozen=True)
class Loaded:
    """A model in `eval` mode on its device, with the processor that feeds it.

    Attributes:
        profile: what was changed about the processor, in the processor itself (profiles.py).
        revision: the commit of a hub's model; None for the demo and for folders.
    """

    name: str
    model: Any
    processor: Any
    device: torch.device
    profile: Profile = UNCHANGED
    revision: str | None = None

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; None where the config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def load_for(
    config: ModelConfig, device: torch.device, models_dir: Path, reporter: Reporter, *, text_alone: bool = False
) -> Loaded:
    """The base model that a job's configuration asks for, as `load` does."""
    return load(
        config.model,
        config.dtype,
        device,
        models_dir,
        reporter,
        attention=config.attention,
        quantization=config.quantization,
        image_fit=config.image_fit,
        system_prompt=config.system_prompt,
        revision=config.revision,
        text_alone=text_alone,
    )


def load(
    name: str,
    dtype: str,
    device: torch.device,
    models_dir: Path,
    reporter: Reporter,
    *,
    attention: str = "sdpa",
    quantization: str = "none",
    image_fit: str = "auto",
    system_prompt: str = "auto",
    revision: str = "",
    text_alone: bool = False,
) -> Loaded:
    """Load a base model; first the demo VLM is assembled, a hub's model downloaded, where it isn't there yet.

    Args:
        dtype: "auto" takes what the weights were saved in.
        models_dir: where the demo VLM is kept.
        attention, quantization, image_fit, system_prompt, revision: as `ModelConfig` has them.
        text_alone: a language model that sees nothing is taken, too.

    Raises:
        UserError: the name leads nowhere, the folder holds no image-text-to-text model or not all of it, its
            weights are pickles, or precision, quantization or attention don't suit the device.
        Stopped: asked to stop while the model was downloaded.
        Unreachable: the hub is, and the model isn't on this machine.
    """
    check_model(name)
    wanted = check_dtype(dtype, device)
    check_extras(attention, quantization, dtype, device)
    folder = location(name, models_dir)
    if name == DEMO:
        assert folder is not None
        _assemble_demo(folder, reporter)
    if name == DEMO_TEXT and text_alone:
        assert folder is not None
        reporter.phase("unpacking the demo's language model (once)")
        ensure_demo_text(folder)
    source, commit = (
        (str(folder), None) if folder is not None else (name, _on_this_machine(name, revision, reporter))
    )
    reporter.phase("loading the model")
    config = _read_config(name, source, folder is not None, commit)
    sees = not (text_alone and is_text_model(config))
    if sees:
        _check_kind(name, config)
    if folder is not None:
        refuse_pickles(name, folder, "model")
        refuse_halves(name, folder)
    settings = {"attn_implementation": attention, **quantized(quantization, wanted, device)}
    model, processor = _read_model(name, source, wanted, {"revision": commit, **settings}, sees)
    profile = UNCHANGED
    if sees:
        _check_processor(name, processor)
        profile = profile_for(name, config, processor, image_fit, system_prompt)
        apply_profile(profile, processor)
    if quantization == "none":  # weights in 4 bits are on their device already, and can't be moved
        model.to(device)
    commit = commit or getattr(model.config, "_commit_hash", None)
    return Loaded(name, model.eval(), processor, device, profile, commit)


def check_extras(attention: str, quantization: str, dtype: str, device: torch.device) -> None:
    """Refuse what the device, the precision or the installed packages can't do.

    Raises:
        UserError: names the setting, its value and what to set instead.
    """
    extras = (
        ("attention", attention, "flash_attention_2", "flash_attn", "flash-attn", "sdpa"),
        ("quantization", quantization, "4bit", "bitsandbytes", "bitsandbytes", "none"),
    )
    for field, value, extra, module, package, plain in extras:
        if value != extra:
            continue
        if device.type != "cuda":
            raise UserError(
                f"{field} {value!r} runs on CUDA alone, and this job's device is {device.type!r}. "
                f"Set {field} to {plain!r}, or choose a CUDA device."
            )
        if find_spec(module) is None:
            raise UserError(
                f"{field} {value!r} needs the package {package}, which isn't installed. "
                f"Install requirements-cuda.txt, or set {field} to {plain!r}."
            )
    if attention == "flash_attention_2" and dtype == "float32":
        raise UserError(
            "attention 'flash_attention_2' computes in 16 bits, and dtype is 'float32'. "
            "Set dtype to 'bfloat16', or attention to 'sdpa'."
        )


def quantized(quantization: str, dtype: torch.dtype | str, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told beside: NF4 with double quantization on this device, or nothing."""
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if isinstance(dtype, str):
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(NOT_IN_4BIT),
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def _on_this_machine(name: str, revision: str, reporter: Reporter) -> str:
    """Have a hub's model in the hub's cache; returns its commit.

    transformers would download, too, but tell nothing, and begin anew when it was interrupted.
    """
    place = snapshot(name, revision)
    if place is None or lacking_weights(place):
        if offline():
            raise UserError(_not_here(name, revision))
        place = fetch(name, revision, reporter)
    return place.name


def _not_here(name: str, revision: str) -> str:
    which = f"{name!r}, revision {revision!r}," if revision else repr(name)
    return (
        f"The model {which} isn't in the cache and the hub can't be reached, since HF_HUB_OFFLINE is set. "
        "Download it first where there is a network, or give a folder that holds the model."
    )


def _assemble_demo(folder: Path, reporter: Reporter) -> None:
    from jobs.gpu.demo.assemble import ensure_demo

    if not (folder / "config.json").is_file():
        reporter.phase("assembling the demo VLM (once)")
    ensure_demo(folder, lambda text, part: reporter.progress(round(100 * part), 100, "% assembled"))


def _read_config(name: str, source: str, local: bool, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(explain(name, local, error)) from error


def explain(name: str, local: bool, error: Exception) -> str:
    """transformers' many words about a model that it can't find or won't run, as one sentence with a remedy."""
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"The model {name!r} needs code of its own, which Plumb doesn't run. "
            "Choose one that transformers knows itself."
        )
    if local:
        return f"The folder {name!r} does not hold a model that transformers can read: {first_line(text)}"
    if "connect" in text or "offline" in text or "resolve" in text:
        return (
            f"The model {name!r} isn't in the cache and the hub can't be reached. "
            "Check the network, or give a folder that holds the model."
        )
    return (
        f"The model {name!r} was not found on the hub, or needs a login: {first_line(text)} "
        "Check the spelling, or set HF_TOKEN for a gated model."
    )


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason was given."


def _check_kind(name: str, config: Any) -> None:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UserError(
            f"The model {name!r} is of type {config.model_type!r}, which doesn't answer questions about images. "
            "Choose an image-text-to-text model such as llava-hf/llava-1.5-7b-hf."
        )


def refuse_pickles(name: str, folder: Path, what: str) -> None:
    """Raise UserError for a folder whose weights are pickles only: reading one can run any code."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise UserError(
            f"The {what} {name!r} has its weights as pickles ({pickles[0]}), which can run code when read. "
            "Save it as safetensors (save_pretrained does)."
        )
    raise UserError(f"The {what} {name!r} has no weights: there is no .safetensors file in {folder.name}.")


def refuse_halves(name: str, folder: Path) -> None:
    """Raise UserError for a folder that lacks some of the weights that its own index names."""
    if not (folder / "model.safetensors.index.json").is_file():
        return
    lacking = lacking_weights(folder)
    if lacking:
        several = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(
            f"The model {name!r} is not whole: {lacking[0]}{several} of its weights' files are gone. Copy the "
            "folder again, or start the job with another base model."
        )


def _read_model(
    name: str, source: str, dtype: torch.dtype | str, settings: dict[str, Any], sees: bool
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    arguments = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False, **settings}
    try:
        try:
            model = kind.from_pretrained(source, **arguments)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error) or settings["attn_implementation"] != "sdpa":
                raise
            arguments["attn_implementation"] = "eager"
            model = kind.from_pretrained(source, **arguments)
        revision = settings["revision"]
        processor = (
            read_processor(source, model.config, revision) if sees else read_tokenizer(name, source, revision)
        )
    except (OSError, ValueError, KeyError) as error:
        if "safetensors" in str(error):
            raise UserError(
                f"The model {name!r} can't be read as safetensors ({first_line(str(error))}). "
                "Plumb reads no pickles; choose a revision with safetensors, or fetch the file again."
            ) from error
        raise UserError(explain(name, Path(source).is_dir(), error)) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # cut off while it was copied
            raise UserError(f"The weights of {name!r} are damaged ({error}); fetch the model again.") from error
        raise
    return model, processor


def _check_processor(name: str, processor: Any) -> None:
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise PlumbError(
            f"The model {name!r} has no processor for images and text (its preprocessor_config.json is missing): "
            "give a folder that was saved together with its processor."
        )
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
