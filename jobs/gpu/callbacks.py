"""TRL's logs → events; evaluation points; the control file → the trainer's control."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from jobs.checkpoints import checkpoint_folder, is_whole, keep_newest
from jobs.configs import DpoConfig, TrainConfig
from jobs.gpu.answers import Answers
from jobs.gpu.best import Best
from jobs.gpu.broken import check_numbers
from jobs.gpu.material import Material
from jobs.gpu.trackers import Curves
from jobs.gpu.trainers import Noise, any_process, noise, save_adapter, set_noise, whole_weights
from jobs.gpu.trial import memory_gb
from jobs.gpu.watching import Watcher
from jobs.reporter import Reporter, Stopped

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
    "mean_token_accuracy": "token_accuracy",
    "image_margin": "image_margin",
}

#: In a checkpoint whose evaluation was cut off by a stop: it is made up for when the run goes on.
PENDING = "evaluation.pending"


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


class Enough(Exception):
    """There is nothing left to train: the run goes on from a checkpoint of its last step."""


class Meter:
    """How many rows and tokens a second, and how much memory. Evaluations and checkpoints don't count as time."""

    def __init__(self, config: TrainConfig, trainer: Any, material: Material) -> None:
        self._name = "pairs_per_second" if isinstance(config, DpoConfig) else "rows_per_second"
        self._trainer, self._entries = trainer, material.prepared.entries
        self._since = time.perf_counter()

    def start(self) -> None:
        """The time runs from here."""
        self._since = time.perf_counter()

    def step(self) -> dict[str, float]:
        """The metrics of the step that ends here; the next one begins.

        A pair's tokens are its prompt's, image tokens among them, and both answers'; padding isn't counted, and
        the prompt once whichever way the pair runs, so that the ways compare. Other processes' rows are taken to
        be as many and as long as this one's.
        """
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        entries = [self._entries[place] for places in self._trainer.step_places for place in places]
        if not entries or seconds <= 0:
            return {}
        answers = [len(answer) for entry in entries for answer in entry.answers]
        processes = self._trainer.accelerator.num_processes
        return {
            "answer_tokens": sum(answers) / len(answers),
            self._name: processes * len(entries) / seconds,
            "tokens_per_second": processes * sum(entry.length for entry in entries) / seconds,
            "memory_gb": memory_gb(self._trainer.accelerator.device),
        }


class Telling(TrainerCallback):
    """Metrics, progress, evaluation points with their checkpoints, and the stop.

    Args:
        held_out: how many held-out rows of the trained kind there are.

    Attributes:
        stopped: the stop was heard at a step's end.
        last: the latest value of each metric.
    """

    def __init__(self, reporter: Reporter, config: TrainConfig, held_out: int) -> None:
        self._reporter, self._config, self._held_out = reporter, config, held_out
        self._points: frozenset[int] = frozenset()
        self._trainer: Any = None
        self._material: Material | None = None
        self._found: dict[str, float] = {}  # of the evaluation that is under way
        self._measured: dict[str, float] = {}  # of the step that ends
        self._looked = 0  # the step of the latest whole evaluation
        self._noise: Noise | None = None
        self._whole = True
        self.stopped = False
        self.last: dict[str, float] = {}

    def watch(
        self,
        trainer: Any,
        material: Material,
        watcher: Watcher,
        answers: Answers,
        best: Best | None,
        curves: Curves | None,
        resume: Path | None,
        begun: bool,
    ) -> None:
        """Take on what is looked at along the run.

        Args:
            curves: None where another process writes them.
            resume: the checkpoint that the run goes on from.
            begun: the answers before the first step are told already.
        """
        self._trainer, self._material = trainer, material
        self._watcher, self._answers, self._best, self._curves = watcher, answers, best, curves
        self._resume, self._begun = resume, begun
        self._meter = Meter(self._config, trainer, material)
        if curves is not None:
            self.last.update(curves.last)

    def tell(self, step: int, values: dict[str, float]) -> None:
        """Report numbers of a step, and keep them."""
        self._reporter.metric(step, values)
        self.last.update(values)
        if self._trainer is not None and self._curves is not None:
            self._curves.write(step, values)

    def close(self) -> None:
        """No more numbers come."""
        if self._curves is not None:
            self._curves.close()

    def check_stop(self) -> None:
        """Between batches of an evaluation, where every process comes by.

        Raises:
            Stopped: one of them was asked to stop.
        """
        if any_process(self._reporter.stop_requested()):
            raise Stopped("stopped by request")

    def check_stop_alone(self) -> None:
        """Between tokens, or batches of a step: where several processes don't keep step, they don't listen."""
        if self._trainer is None or self._trainer.accelerator.num_processes == 1:
            self._reporter.check_stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._points = evaluation_steps(state.max_steps, self._config.evaluations)
        self._reporter.phase("training")
        self._reporter.progress(state.global_step, state.max_steps, "steps")
        if self._trainer is None:
            return
        if self._resume is not None and (self._resume / PENDING).exists():
            self._trainer.evaluate()
            (self._resume / PENDING).unlink(missing_ok=True)
        elif state.global_step == 0 and not self._begun:
            self._answers.ask(0)
        if state.global_step >= state.max_steps or (self._best is not None and self._best.enough):
            raise Enough
        self._noise = noise()
        self._meter.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer is not None:
            self._trainer.step_places.clear()
            self._trainer.step_losses.clear()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.check_stop_alone()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._whole = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._whole = True
        if self._trainer is not None:
            self._noise = noise()
            self._measured = self._meter.step()
        self._reporter.progress(state.global_step, state.max_steps, "steps")
        if state.global_step in self._points:
            control.should_evaluate = self._held_out > 0 or self._trainer is not None
            control.should_save = self._config.keep_checkpoints > 0 and state.global_step < state.max_steps
        if state.global_step < state.max_steps and any_process(self._reporter.stop_requested()):
            self.stopped = True
            control.should_evaluate = control.should_save = False
            control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # An evaluation of many held-out pairs takes minutes: it can be left at any batch.
        self.check_stop()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        values = house_names(logs or {})
        if not values:
            return
        if any(name.startswith("heldout_") for name in values):
            self._found.update(values)
            if self._trainer is not None:
                return  # told together with what is looked at besides
        elif "loss" in values:
            values |= self._measured
        self.tell(state.global_step, values)
        check_numbers(state.global_step, values, self._trainer, self._material)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer is None:
            return
        step = state.global_step
        values, self._found = self._found, {}
        values |= self._watcher.look()
        self.tell(step, values)
        check_numbers(step, values)
        self._answers.ask(step)
        self._looked = step
        if self._best is not None:
            self._best.add(step, values, self._keep)
            control.should_training_stop |= any_process(self._best.enough)
        self._meter.start()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer is None:
            return
        self._keep_newest()
        if self._best is not None:
            self._best.prune()
        self._meter.start()

    def _keep_newest(self) -> None:
        """The one that was just written is whole and on the disk: older ones may go."""
        if self._trainer.is_world_process_zero():
            keep_newest(Path(self._trainer.args.output_dir), self._config.keep_checkpoints)

    def _keep(self, folder: Path) -> None:
        weights = whole_weights(self._trainer)  # all processes ask, where they are spread
        if self._trainer.is_world_process_zero():
            save_adapter(self._trainer.accelerator.unwrap_model(self._trainer.model), folder, weights)

    def leave(self) -> Path | None:
        """The checkpoint of the last whole step, written now where it isn't there yet; None where none is kept.

        A step that was begun leaves no trace but in the noise, which is put back.
        """
        state, trainer = self._trainer.state, self._trainer
        folder = checkpoint_folder(Path(trainer.args.output_dir), state.global_step)
        if not self._config.keep_checkpoints or state.global_step == 0:
            return None
        if any_process(not is_whole(folder)):
            if not self._whole or self._noise is None:
                return None  # ended by a signal in the middle of the optimizer's step
            set_noise(self._noise)
            trainer._save_checkpoint(trainer.model, trial=None)
            self._keep_newest()
        if (
            state.global_step in self._points
            and self._looked < state.global_step
            and trainer.is_world_process_zero()
        ):
            (folder / PENDING).touch()
        return folder
