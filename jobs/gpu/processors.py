"""A model's processor, with images read the same way on every machine and without torchvision.

transformers takes torchvision's resizing where that package is installed and Pillow's where it isn't, and the two
give other pixels: an adapter trained here would see other images there. Pillow's is taken always.

Processors that could read videos, too (Qwen-VL, SmolVLM), can't even be made without torchvision, whose build must
be the one of the installed torch. Plumb shows models no videos: of the part for videos the settings alone are
kept, to be saved again with the processor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.utils import cached_file

from storage.errors import UserError

#: Where processors that read videos keep the settings for them, unless these lie in processor_config.json.
VIDEO_SETTINGS = "video_preprocessor_config.json"


class NoVideos:
    """Stands where a processor keeps its part for videos, and knows what that part's settings were."""

    #: transformers asks every part for these.
    model_input_names = ("pixel_values_videos", "video_grid_thw")
    valid_kwargs = None
    _auto_class = None
    num_frames = fps = None

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def to_dict(self) -> dict[str, Any]:
        """What is saved in processor_config.json, for those who have torchvision."""
        return dict(self.settings)


def read_processor(source: str, config: Any, revision: str | None = None) -> Any:
    """The processor of a model's folder or hub name; its images are resized by Pillow.

    Args:
        config: the model's, whose type tells the processor's class.
        revision: the commit of a hub's model; None for a folder.

    Raises:
        OSError, ValueError, KeyError: as transformers' Auto classes.
        UserError: the processor needs a package that isn't installed.
    """
    kind = processor_class(config)
    try:
        if kind is not None and set(kind.get_attributes()) == {"image_processor", "tokenizer", "video_processor"}:
            return without_videos(kind, source, revision)
        processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
        if getattr(getattr(processor, "image_processor", None), "backend", "pil") != "pil":
            processor.image_processor = pillow_images(source, revision)
    except ImportError as error:
        raise UserError(
            f"The processor of {source!r} needs a package that isn't installed: {str(error).strip()}"
        ) from error
    return processor


def processor_class(config: Any) -> type[ProcessorMixin] | None:
    """The class that transformers has for models of this type; None where it has none."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    found: type[ProcessorMixin] | None = PROCESSOR_MAPPING.get(type(config), None)
    return found


def pillow_images(source: str, revision: str | None = None) -> Any:
    return AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil", trust_remote_code=False)


def without_videos(kind: type[ProcessorMixin], source: str, revision: str | None = None) -> Any:
    """A processor of this class whose part for videos is `NoVideos`."""
    settings, _ = kind.get_processor_dict(source, revision=revision)
    parts = {
        "image_processor": pillow_images(source, revision),
        "tokenizer": AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False),
        "video_processor": NoVideos(settings.get("video_processor") or video_settings(source, revision)),
    }
    return still(kind).from_args_and_dict([parts[name] for name in kind.get_attributes()], settings)


def video_settings(source: str, revision: str | None = None) -> dict[str, Any]:
    """What the folder or the hub has of them; {} where they are the images' settings, as in older models."""
    file = cached_file(source, VIDEO_SETTINGS, revision=revision, _raise_exceptions_for_missing_entries=False)
    found = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return found if isinstance(found, dict) else {}


def still(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same class, known by the same name, that takes `NoVideos` for its part for videos."""

    def check(self: Any, name: str, part: Any) -> Any:
        return type(part) if isinstance(part, NoVideos) else kind.check_argument_for_proper_class(self, name, part)

    def settings(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = kind.to_dict(self)
        # transformers knows how to write its own parts alone.
        return {**found, "video_processor": self.video_processor.to_dict()}

    made = {"check_argument_for_proper_class": check, "to_dict": settings, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), made)
