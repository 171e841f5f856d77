"""LoRA adapters: where they sit, how they are read, and which one speaks."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from jobs.gpu.loading import Loaded, first_line, refuse_pickles
from jobs.runs import RunFolder
from storage.errors import PlumbError, UserError

WEIGHTS = "adapter_model.safetensors"
HEAD = "lm_head"


@dataclass(frozen=True)
class FrozenAdapter:
    """An adapter that was put into the run folder when the job was frozen."""

    id: int
    sha256: str
    name: str
    folder: Path
    method: str = ""  #: "" where the folder was frozen before methods were told


def frozen_adapters(run: RunFolder) -> dict[int, FrozenAdapter]:
    """What data/adapters.json lists: {"<id>": {"sha256", "name", "method"}}; empty where there is none."""
    file = run.path / "data" / "adapters.json"
    if not file.exists():
        return {}
    return {
        int(key): FrozenAdapter(
            int(key), entry["sha256"], entry["name"], run.start_adapter(entry["sha256"]), entry.get("method", "")
        )
        for key, entry in json.loads(file.read_text(encoding="utf-8")).items()
    }


def frozen_adapter(run: RunFolder, adapter: int) -> FrozenAdapter:
    """One of them.

    Raises:
        UserError: it was not frozen into the run folder.
    """
    found = frozen_adapters(run).get(adapter)
    if found is None:
        raise UserError(f"The adapter {adapter} is not in the run folder; submit the job again.")
    return found


def language_linears(model: Any, targets: Sequence[str] = ()) -> str:
    """A regular expression for linear layers of the language model, never its head (paper.md, section 4).

    PEFT matches it against whole module names. The vision tower and the projector lie outside.

    Args:
        targets: names of layers, as q_proj; none: all linear ones.

    Raises:
        UserError: a target that isn't a linear layer there, or is the head.
        PlumbError: the model's language part can't be told apart.
    """
    prefix = language_prefix(model)
    head = model.get_output_embeddings()
    leaves = {
        name.rsplit(".", 1)[-1]
        for name, module in model.get_submodule(prefix).named_modules()
        if isinstance(module, nn.Linear) and module is not head
    } - {HEAD}
    if not leaves:
        raise PlumbError(f"The language model of this base ({prefix}) has no linear layers for LoRA.")
    there = ", ".join(sorted(leaves))
    for target in targets:
        if target == HEAD:
            raise UserError(
                f"lora_targets: {HEAD} is the vocabulary's head, which gets no LoRA: log-probabilities are taken "
                f"with its weights as they are. Leave it out; there are {there}."
            )
        if target not in leaves:
            raise UserError(
                f"lora_targets: {target!r} is no linear layer of the language model; there are {there}. "
                "Name some of these with commas between them, or leave the field empty for all."
            )
    return rf"{re.escape(prefix)}\.(?:.+\.)?(?:{'|'.join(sorted(set(targets) or leaves))})"


def language_prefix(model: Any) -> str:
    """The name of the module that holds the language model: the outermost one with the text config's class."""
    from transformers import PreTrainedModel

    text = model.config.get_text_config()
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and module.config is text:
            return str(name)
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and type(module.config) is type(text):
            return str(name)
    raise PlumbError(f"The language model inside {type(model).__name__} could not be found; LoRA needs it.")


def check_adapter(folder: Path, base: str, label: str) -> None:
    """Refuse what is not a LoRA in safetensors for this base.

    Raises:
        UserError: says which of them.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The adapter {label!r} has no readable adapter_config.json ({error}).") from error
    refuse_pickles(label, folder, "adapter")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"The adapter {label!r} has no {WEIGHTS}.")
    if config.get("peft_type") != "LORA":
        raise UserError(f"The adapter {label!r} is of type {config.get('peft_type')!r}; only LORA is supported.")
    trained_on = config.get("base_model_name_or_path") or ""
    if trained_on and last_part(trained_on) != last_part(base):
        raise UserError(
            f"The adapter {label!r} was trained on {trained_on!r} and doesn't fit {base!r}. "
            "Choose its own base model."
        )


def last_part(name: str) -> str:
    """owner/model and a local copy in …/model are the same base."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def attach(loaded: Loaded, folders: dict[str, tuple[Path, str]]) -> Any:
    """The model with adapters on it: {name in PEFT: (folder, label for people)}. In `eval` mode, none trainable.

    An adapter's own projector, where it has one, speaks with it; the base keeps its own.

    Raises:
        UserError: an adapter that isn't a LoRA in safetensors for this base, or whose layers aren't the base's.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    model = loaded.model
    for name, (folder, label) in folders.items():
        check_adapter(folder, loaded.name, label)
        with fitting(label, loaded.name):
            if not isinstance(model, PeftModel):
                settings = LoraConfig.from_pretrained(str(folder))
                settings.inference_mode = True
                model = get_peft_model(model, settings, adapter_name=name)
            result = model.load_adapter(str(folder), adapter_name=name, torch_device=str(loaded.device))
        check_loaded(result, name, label, loaded.name)
    return model.eval()


@contextlib.contextmanager
def fitting(label: str, base: str) -> Iterator[None]:
    """Within it, what PEFT raises about an adapter that isn't this base's becomes one sentence.

    Raises:
        UserError: that sentence.
    """
    try:
        yield
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        # torch names the layers from the second line on.
        lines = [line.strip() for line in str(error).strip().splitlines()]
        many = len(lines) > 1 and lines[0].startswith("Error(s) in loading")
        told = lines[1] if many else first_line(str(error))
        if isinstance(error, KeyError):
            told = f"it lacks {told}"
        raise misfit(label, base, told.rstrip(".")) from error


def misfit(label: str, base: str, told: str) -> UserError:
    """That an adapter isn't this base's, and why."""
    return UserError(
        f"The adapter {label!r} doesn't fit {base!r}: {told}. Choose the base that it was trained on."
    )


def check_loaded(result: Any, name: str, label: str, base: str) -> None:
    """Refuse an adapter that brought weights for layers that aren't there, or none for some of its own.

    Args:
        result: what PEFT's loading returned.
        name: the adapter's name in PEFT.

    Raises:
        UserError: names the first such layer.
    """
    own = [key for key in result.missing_keys if "lora_" in key and f".{name}." in key]
    if result.unexpected_keys:
        raise misfit(label, base, f"it brings {result.unexpected_keys[0]}")
    if own:
        raise misfit(label, base, f"it lacks {own[0]}")


@contextlib.contextmanager
def speaking(model: Any, adapter: str | None) -> Iterator[None]:
    """Within it the model speaks with `adapter`, or as the base for None."""
    if not hasattr(model, "peft_config"):
        if adapter is not None:
            raise ValueError(f"no adapter is loaded, {adapter!r} can't speak")
        yield
    elif adapter is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(adapter, inference_mode=True)
        yield
