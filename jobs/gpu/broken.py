"""A loss that is no number any more: which step, which samples, and what helps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from jobs.gpu.material import Material
from jobs.gpu.prepared import label
from storage.errors import PlumbError

MOST_NAMED = 8
REMEDY = "Look at these samples, lower the learning rate, or use dtype bfloat16 or float32."


def check_numbers(
    step: int, values: Mapping[str, float], trainer: Any = None, material: Material | None = None
) -> None:
    """Called with a step's metrics, when the losses of its batches have been waited for anyway.

    Args:
        trainer: knows the batches of the step; None where the numbers are of no step's.

    Raises:
        PlumbError: a loss or the gradient's norm is not a number. With float16, a gradient that overflows is
            no error: its step is left out, and the scale lowered.
    """
    for name in ("loss", "gradient_norm", "heldout_loss"):
        if math.isfinite(values.get(name, 0.0)):
            continue
        if trainer is None:
            raise PlumbError(f"Training broke at step {step}: {name} is {values[name]}. {REMEDY}")
        if name == "gradient_norm" and trainer.accelerator.optimizer_step_was_skipped:
            continue
        where = named(gathered(broken_places(trainer)), material)
        raise PlumbError(f"Training broke at step {step}: {name} is {values[name]}{where}. {REMEDY}")


def broken_places(trainer: Any) -> list[int]:
    """The rows of the batches whose loss is no number; of all batches where it is the gradient that isn't."""
    batches = list(zip(trainer.step_places, trainer.step_losses, strict=False))
    broken = [places for places, loss in batches if not bool(torch.isfinite(loss).all())]
    anywhere = any(gathered([int(bool(broken))]))
    return [place for places in (broken if anywhere else trainer.step_places) for place in places]


def gathered(numbers: list[int]) -> list[int]:
    """The numbers of all processes."""
    spread = torch.distributed
    if not (spread.is_available() and spread.is_initialized() and spread.get_world_size() > 1):
        return numbers
    found: list[Any] = [None] * spread.get_world_size()
    spread.all_gather_object(found, numbers)
    return [number for part in found for number in part]


def named(places: Sequence[int], material: Material | None) -> str:
    """The rows as people know them, each with the address of its sample's page."""
    if material is None or not places:
        return ""
    rows = [material.rows[place] for place in places]
    told = ", ".join(f"{label(row)} (/?sample={row.get('sample_id', '?')})" for row in rows[:MOST_NAMED])
    more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    return f", in a batch of {told}{more}"
