"""The projector between vision tower and language model: found in each family, and trained in full.

PEFT's `modules_to_save` gives each adapter a copy of the module, saves it with the LoRA and switches it off with
it, so that the reference keeps the base's own. What is added here:
- a copy that is trained is in float32, since a step of 2e-5 times a small gradient vanishes in bfloat16's 8 bits;
  it takes and gives the base's dtype where no autocast does so (answering at an evaluation);
- nothing flows back into the frozen tower. Gradient checkpointing makes the tower's embeddings ask for gradients,
  and its whole backward would be run for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from jobs.gpu.loading import Loaded
from jobs.gpu.lora import language_prefix
from storage.errors import UserError

#: How families call it: LLaVA, LLaVA-NeXT and Gemma 3; SmolVLM and Idefics 3; Qwen2-VL and Qwen2.5-VL.
PROJECTORS = ("multi_modal_projector", "connector", "visual.merger")


def find_projector(model: Any) -> str | None:
    """The name of the model's projector; None where none is known."""
    language = language_prefix(model)
    for name, _ in model.named_modules():
        inside = name.startswith(f"{language}.")
        if not inside and any(f".{name}".endswith(f".{projector}") for projector in PROJECTORS):
            return str(name)
    return None


def projector_of(loaded: Loaded) -> str:
    """The name of the base's projector, which can be trained.

    Raises:
        UserError: it has none that is known, or its weights are in 4 bits.
    """
    name = find_projector(loaded.model)
    if name is None:
        raise UserError(
            f"train_projector: the base {loaded.name!r} is of type {loaded.model.config.model_type!r}, and has no "
            f"projector that Plumb knows ({', '.join(PROJECTORS)}). Switch train_projector off."
        )
    if not all(parameter.is_floating_point() for parameter in loaded.model.get_submodule(name).parameters()):
        raise UserError(
            f"train_projector: the projector of {loaded.name!r} was loaded in 4 bits, in which it can't be "
            "trained. Switch train_projector off, or set quantization to none."
        )
    return name


def copies(policy: Any, adapter: str) -> Iterator[tuple[Any, Any]]:
    """The modules that this adapter has a copy of: (the base's own, the copy)."""
    from peft.utils import ModulesToSaveWrapper

    for module in policy.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            yield module.original_module, module.modules_to_save[adapter]


def prepare_copies(policy: Any, adapter: str, frozen: bool) -> None:
    """Make this adapter's projector ready for training, before weights are read into it.

    Args:
        frozen: it is used as it is; its output leads back to no parameter, whatever PEFT's switches say of them.
    """
    cut = not any(parameter.requires_grad for parameter in _before(policy))
    for own, copy in copies(policy, adapter):
        dtype = next(own.parameters()).dtype
        copy.float()
        copy.register_forward_pre_hook(_taking(cut))
        copy.register_forward_hook(_giving(dtype, frozen and cut))
        copy.requires_grad_(not frozen)


def _before(policy: Any) -> Iterator[torch.nn.Parameter]:
    """The parameters that are neither the language model's nor a copy of the projector: the tower's."""
    base = policy.get_base_model()
    language, head = language_prefix(base), base.get_output_embeddings().weight
    for name, parameter in base.named_parameters():
        if not name.startswith(f"{language}.") and parameter is not head and "modules_to_save" not in name:
            yield parameter


def _taking(cut: bool) -> Any:
    def take(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_taken(value, cut) if isinstance(value, torch.Tensor) else value for value in given)

    return take


def _taken(value: torch.Tensor, cut: bool) -> torch.Tensor:
    value = value.detach() if cut else value
    return value if torch.is_autocast_enabled(value.device.type) else value.float()


def _giving(dtype: torch.dtype, frozen: bool) -> Any:
    def give(module: Any, given: Any, found: torch.Tensor) -> torch.Tensor:
        return found.to(dtype).detach() if frozen else found.to(dtype)

    return give
