"""A loss or a gradient that is no number: which step and which samples a person is told."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.gpu.broken import MOST_NAMED, check_numbers
from jobs.worker import work
from storage.errors import PlumbError
from test_dpo_job import last_end
from test_resume import uneven_run


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def break_at(patch: pytest.MonkeyPatch, step: int, call: int, spoil: Any) -> list[list[int]]:
    """Spoil the loss of a step's batch; returns where the places of that batch will be."""
    from trl import DPOTrainer

    real, calls, spoilt = DPOTrainer._compute_loss, {}, []  # type: ignore[var-annotated]

    def broken(self: Any, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = real(self, model, inputs, return_outputs)
        at = self.state.global_step
        if not (self.model.training and self.is_in_train):
            return loss
        calls[at] = calls.get(at, 0) + 1
        if (at, calls[at]) == (step, call):
            spoilt.append(self.step_places[-1])
            return spoil(loss)
        return loss

    patch.setattr(DPOTrainer, "_compute_loss", broken)
    return spoilt


def test_a_broken_loss_names_the_batchs_samples_alone(tmp_path: Path) -> None:
    run = uneven_run(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        spoilt = break_at(patch, 1, 2, lambda loss: loss * float("nan"))
        assert work(run.path) == 1
    reason = last_end(run)["reason"]
    (places,) = spoilt
    named = ", ".join(f"pair {place} (/?sample={place})" for place in places)
    assert f"Training broke at step 2: loss is nan, in a batch of {named}. Look at these samples" in reason
    assert len(places) == 2
    assert reason.count("/?sample=") == 2


def test_a_broken_gradient_names_the_steps_samples(tmp_path: Path) -> None:
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * float("nan")

    run = uneven_run(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, 0, 1, Spoilt.apply)
        assert work(run.path) == 1
    reason = last_end(run)["reason"]
    assert "Training broke at step 1: gradient_norm is nan, in a batch of pair" in reason
    assert reason.count("/?sample=") == 4 <= MOST_NAMED


class Stepped:
    """A trainer with the batches of one step."""

    def __init__(self, losses: list[float], skipped: bool = False) -> None:
        self.step_places = [[2 * number, 2 * number + 1] for number in range(len(losses))]
        self.step_losses = [torch.tensor(loss) for loss in losses]
        self.accelerator = types.SimpleNamespace(optimizer_step_was_skipped=skipped)


def test_what_counts_as_broken() -> None:
    material: Any = type("Rows", (), {"rows": [{"sample_id": number} for number in range(40)]})
    check_numbers(3, {"loss": 0.5, "gradient_norm": 2.0}, Stepped([0.5]), material)
    # float16: a gradient that overflows leaves its step out.
    check_numbers(3, {"loss": 0.5, "gradient_norm": math.inf}, Stepped([0.5], skipped=True), material)
    with pytest.raises(PlumbError, match="step 3: gradient_norm is inf, in a batch of sample 0 "):
        check_numbers(3, {"gradient_norm": math.inf}, Stepped([0.5]), material)
    with pytest.raises(PlumbError, match=r"step 4: heldout_loss is nan\. Look at"):
        check_numbers(4, {"heldout_loss": math.nan})
    with pytest.raises(PlumbError, match=r"a batch of sample 2 \(/\?sample=2\), sample 3 \(/\?sample=3\)\. Look"):
        check_numbers(3, {"loss": math.nan}, Stepped([0.5, math.inf, 0.1]), material)
    with pytest.raises(PlumbError, match=r"sample 7 \(/\?sample=7\) and 12 more\. "):
        check_numbers(3, {"loss": math.nan}, Stepped([math.nan] * 10), material)
