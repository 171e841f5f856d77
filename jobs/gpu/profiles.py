"""How a model's family wants its images fitted and its conversations begun, where its processor gets it wrong.

LLaVA-1.5 was trained on images padded to a square with the mean colour, under Vicuna's system prompt
(arXiv 2310.03744; `expand2square` and `conv_vicuna_v1` in its code). The processor that Hugging Face ships crops
the centre instead, so that a chart loses its axes, and its chat template begins without a system prompt.

A profile is put INTO the processor: its image processor pads, its chat template writes the system prompt. So
training, generating, chat and the reference cache's key all see it, none of them can forget it, and a merged model
that is saved with its processor answers the same in plain transformers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from jobs.gpu.prompts import control_words
from jobs.merged import read_merged
from storage.errors import UserError

#: What the original puts before the first turn (conv_vicuna_v1).
VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

#: What a chat template begins with that Plumb gave a system prompt.
BEGINNING = "{%- if messages and messages[0]['role'] != 'system' -%}"

#: Image processors that scale the shorter side and crop the centre, with the settings that LLaVA's own one takes.
CROPPING = ("CLIPImageProcessor", "CLIPImageProcessorPil", "LlavaImageProcessor", "LlavaImageProcessorPil")

#: Settings that go from such a processor to the one that pads.
KEPT = (
    "size",
    "crop_size",
    "resample",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)


@dataclass(frozen=True)
class Profile:
    """What was changed about a processor.

    Attributes:
        image_fit: "square": images are padded to a square first; "processor": they are taken as it does.
        system_prompt: written where a conversation has none; "": none is.
    """

    image_fit: str = "processor"
    system_prompt: str = ""

    @property
    def settings(self) -> dict[str, str]:
        return asdict(self)


UNCHANGED = Profile()


def profile_for(name: str, config: Any, processor: Any, image_fit: str, system_prompt: str) -> Profile:
    """The profile that these settings ask for.

    A folder of merged weights has the profile of its adapter in its processor: there `auto` changes nothing.

    Args:
        name: the model's: a folder's path, or a hub's name.
        config: the model's.
        image_fit: "auto", "square" or "processor".
        system_prompt: "auto", or the text itself.

    Raises:
        UserError: the images of this processor can't be padded, or the system prompt holds a control word.
    """
    images = processor.image_processor
    llava = config.model_type == "llava" and read_merged(Path(name)) is None
    if image_fit == "auto":
        fit = "square" if llava and crops(images) else "processor"
    elif image_fit == "square" and type(images).__name__ not in CROPPING:
        raise UserError(
            f"image_fit 'square' is for image processors that crop, as LLaVA-1.5's; that of {name!r} is a "
            f"{type(images).__name__}. Set image_fit to 'auto'."
        )
    else:
        fit = image_fit
    if system_prompt == "auto":
        template = str(template_of(processor) or "")
        told = "artificial intelligence assistant" in template or template.startswith(BEGINNING)
        return Profile(fit, VICUNA if llava and "ASSISTANT:" in template and not told else "")
    for word in control_words(processor):
        if word in system_prompt:
            raise UserError(f"system_prompt {system_prompt!r:.80} holds {word!r}, a control word; take it out.")
    return Profile(fit, system_prompt.strip())


def crops(images: Any) -> bool:
    """Whether this image processor cuts the longer side's ends off."""
    size = getattr(images, "size", None) or {}
    return (
        type(images).__name__ in CROPPING
        and bool(getattr(images, "do_center_crop", False))
        and not getattr(images, "do_pad", False)
        and dict(size).get("shortest_edge") is not None
    )


def template_of(processor: Any) -> Any:
    """The chat template that a processor goes by; a dict where it has several; None where it has none."""
    return getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)


def apply_profile(profile: Profile, processor: Any) -> None:
    """Make the processor do what the profile says."""
    if profile.image_fit == "square":
        processor.image_processor = padding(processor.image_processor)
    if profile.system_prompt:
        template = template_of(processor)
        if isinstance(template, dict):
            processor.chat_template = {key: begun(text, profile.system_prompt) for key, text in template.items()}
        elif template is not None:
            processor.chat_template = begun(template, profile.system_prompt)


def padding(images: Any) -> Any:
    """An image processor with the same settings that pads to a square with the mean colour first.

    It is transformers' own port of LLaVA's preprocessing. Padding comes before scaling, on whole pixels.
    """
    from transformers import LlavaImageProcessorPil

    settings = images.to_dict()
    kept = {name: settings[name] for name in KEPT if settings.get(name) is not None}
    return LlavaImageProcessorPil(**kept, do_pad=True)


def begun(template: str, system_prompt: str) -> str:
    """The chat template with a system message before conversations that have none."""
    message = "[{'role': 'system', 'content': [{'type': 'text', 'text': " + quoted(system_prompt) + "}]}]"
    return (
        BEGINNING + "{%- set messages = " + message + " + messages -%}"
        "{%- endif %}\n" + template  # transformers trims the newline; the template begins a line, as before
    )


def quoted(text: str) -> str:
    """A literal of Jinja's; whatever could end it, or a block, as its code point."""
    plain = frozenset(" .,;:?!()-")
    return (
        "'" + "".join(c if (c.isascii() and c.isalnum()) or c in plain else f"\\U{ord(c):08x}" for c in text) + "'"
    )


def as_seen(loaded: Any, image: Image.Image) -> Image.Image | None:
    """The picture as the model sees it, made from what the processor hands to the model.

    Where the processor cuts a picture up, this is the whole one that stands beside the tiles (LLaVA-NeXT's base
    tile, SmolVLM's global one); Qwen-VL's patches are put together again.

    Args:
        loaded: a `loading.Loaded`.

    Returns:
        None where the tensors have a form that isn't known here.
    """
    images = loaded.processor.image_processor
    tensors = images(images=[image.convert("RGB")], return_tensors="pt")
    pixels = tensors["pixel_values"]
    if "image_grid_thw" in tensors:
        pixels = unpatched(pixels, tensors["image_grid_thw"][0].tolist(), images)
    elif pixels.dim() == 5:
        # One image's tiles: LLaVA-NeXT has the whole picture first, SmolVLM last.
        pixels = pixels[0, -1] if "pixel_attention_mask" in tensors else pixels[0, 0]
        if "pixel_attention_mask" in tensors:
            pixels = inside(pixels, tensors["pixel_attention_mask"][0, -1])
    elif pixels.dim() == 4:
        pixels = pixels[0]
    if pixels.dim() != 3 or pixels.shape[0] != 3:
        return None
    if images.do_normalize:
        mean, deviation = (torch.tensor(three)[:, None, None] for three in (images.image_mean, images.image_std))
        pixels = pixels * deviation + mean
    if images.do_rescale:
        pixels = pixels / images.rescale_factor
    shown = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(shown.numpy(), "RGB")


def inside(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The picture without its margin: (3, H, W) and a mask (H, W) of what is no margin."""
    return pixels[:, : int(mask.any(dim=1).sum()), : int(mask.any(dim=0).sum())]


def unpatched(patches: torch.Tensor, grid: list[int], images: Any) -> torch.Tensor:
    """Qwen-VL's patches (rows × columns, 3·T·P·P), in blocks of M × M that are merged, as a picture (3, H, W)."""
    _, rows, columns = grid
    merge, side = images.merge_size, images.patch_size
    blocks = patches.reshape(
        rows // merge, columns // merge, merge, merge, 3, images.temporal_patch_size, side, side
    )[:, :, :, :, :, 0]
    # (rows of blocks, columns of blocks, rows in it, columns in it, colour, row, column)
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)
