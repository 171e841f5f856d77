"""TRL's logs → events; the control file → the trainer's control."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from jobs.configs import TrainConfig
from jobs.reporter import Reporter, Stopped
from storage.errors import PlumbError

#: TRL's names → ours; held-out ones carry `heldout_` before them.
NAMES = {
    "loss": "loss",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
}


def house_names(logs: dict[str, Any]) -> dict[str, float]:
    """The numbers we keep, under our names: `loss` of training, `heldout_loss` of evaluation."""
    named: dict[str, float] = {}
    for key, value in logs.items():
        bare, prefix = (key[5:], "heldout_") if key.startswith("eval_") else (key, "")
        if bare in NAMES and isinstance(value, int | float):
            named[prefix + NAMES[bare]] = float(value)
    return named


def evaluation_steps(steps: int, times: int) -> frozenset[int]:
    """`times` steps spread evenly over a run of `steps`, the last one among them."""
    return frozenset(max(1, round(steps * part / times)) for part in range(1, times + 1)) if times else frozenset()


class Telling(TrainerCallback):
    """Metrics, progress, evaluation points with their checkpoints, and the stop.

    Args:
        held_out: how many held-out rows there are; 0 means no evaluation.
    """

    def __init__(self, reporter: Reporter, config: TrainConfig, held_out: int) -> None:
        self._reporter = reporter
        self._config = config
        self._held_out = held_out
        self._points: frozenset[int] = frozenset()
        self.stopped = False
        self.last: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._points = evaluation_steps(state.max_steps, self._config.evaluations)
        self._reporter.phase("training")
        self._reporter.progress(state.global_step, state.max_steps, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._reporter.progress(state.global_step, state.max_steps, "steps")
        if state.global_step in self._points:
            control.should_evaluate = self._held_out > 0
            control.should_save = self._config.keep_checkpoints > 0 and state.global_step < state.max_steps
        if state.global_step < state.max_steps and self._reporter.stop_requested():
            self.stopped = True
            control.should_evaluate = False
            control.should_save = True
            control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # An evaluation of many held-out pairs takes minutes: it can be left at any batch.
        if self._reporter.stop_requested():
            raise Stopped(f"stopped by request while evaluating at step {state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        values = house_names(logs or {})
        if not values:
            return
        self._reporter.metric(state.global_step, values)
        self.last.update(values)
        for name in ("loss", "gradient_norm", "heldout_loss"):
            if not math.isfinite(values.get(name, 0.0)):
                raise PlumbError(
                    f"Training broke at step {state.global_step}: {name} is {values[name]}. "
                    "Lower the learning rate, or use dtype bfloat16 or float32."
                )
