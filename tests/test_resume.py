"""A training that was interrupted ends with the weights of one that wasn't, and does nothing twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

import tiny
from factories import World
from jobs.checkpoints import WHOLE, last_checkpoint
from jobs.event_file import read_events
from jobs.events import drain
from jobs.gpu.callbacks import PENDING, Telling
from jobs.reporter import Reporter, Stopped, Terminated
from jobs.runs import RunFolder
from jobs.worker import work
from storage import jobs as store
from test_dpo_job import dpo_run, last_end, metrics, pair
from test_sft_job import sft_run

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml

#: Nine pairs, two at once, two batches a step: three steps an epoch, the last of which is one pair alone.
UNEVEN = {
    "dataset": "pairs",
    "dtype": "float32",
    "batch_size": 2,
    "global_batch": 4,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.2,
    "learning_rate": 1e-2,
    "epochs": 2.0,
    "evaluations": 3,
    "watched_tokens": 4,
}
STEPS = 6


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def uneven_run(folder: Path, **changes: Any) -> RunFolder:
    """The images lie in `folder`'s parent, as those of other runs there."""
    names = [tiny.store(folder.parent / "images", tiny.picture(colour))[0] for colour in ("red", "blue", "green")]
    rows = [pair(number, names[: number % 3]) for number in range(9)]
    rows += [pair(number, names[:1], "heldout") for number in range(20, 23)]
    rows += [pair(number, names[:1], "report") for number in range(30, 32)]
    return dpo_run(folder, {**UNEVEN, **changes}, rows)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def apart(one: RunFolder, other: RunFolder) -> float:
    """The largest difference between two runs' adapters."""
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run that nothing interrupts."""
    run = uneven_run(tmp_path_factory.mktemp("whole") / "run")
    assert work(run.path) == 0, last_end(run)
    return run


@contextlib.contextmanager
def stop_when(run: RunFolder, step: int) -> Iterator[None]:
    """Within it the run is asked to stop at a step's end."""
    told = Reporter.progress

    def progress(self: Reporter, done: float, total: float, unit: str = "items") -> None:
        told(self, done, total, unit)
        if unit == "steps" and done == step:
            run.ask_to_stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "progress", progress)
        yield


def go_on(run: RunFolder) -> None:
    run.ask_nothing()
    assert work(run.path) == 0, last_end(run)
    assert last_end(run)["status"] == "done"


@pytest.mark.parametrize("step", [*(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 5)), 2, 3])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, whole: RunFolder, step: int) -> None:
    """In the middle of an epoch and at its end, on a step with an evaluation and on one without."""
    run = uneven_run(tmp_path / "run")
    with stop_when(run, step):
        assert work(run.path) == 0
    assert last_end(run)["reason"] == f"stopped after step {step} of {STEPS}; checkpoints/ holds that step"
    assert (run.checkpoints / f"checkpoint-{step}" / "optimizer.pt").is_file()
    go_on(run)
    assert apart(run, whole) < 1e-6
    told, wanted = metrics(run, "loss"), metrics(whole, "loss")
    assert [at for at, _ in told] == [at for at, _ in wanted]
    for (_, left), (_, right) in zip(told, wanted, strict=True):
        assert left == pytest.approx(right, abs=1e-5)
    seen = [at for at, _ in metrics(run, "heldout_reward_accuracy")]
    assert seen == [2, 4, 6]  # an evaluation that the stop left out is made up for
    assert metrics(run, "report_loss") == metrics(whole, "report_loss")
    assert metrics(run, "report_loss")[0][1]["report_loss"] > 0


def interrupted(run: RunFolder, name: str, when: Callable[[Any], bool], act: Callable[[], None]) -> None:
    """Work, and `act` in the training's callback of this name as soon as `when` says so of the trainer's state."""
    real = getattr(Telling, name)
    done: list[bool] = []

    def callback(self: Any, args: Any, state: Any, *rest: Any, **named: Any) -> Any:
        if not done and when(state):
            done.append(True)
            act()
        return real(self, args, state, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Telling, name, callback)
        assert work(run.path) == 0, last_end(run)
    assert done


def test_a_stop_within_a_step_leaves_the_step_before(tmp_path: Path, whole: RunFolder) -> None:
    run = uneven_run(tmp_path / "run")
    interrupted(run, "on_substep_end", lambda state: state.global_step == 3, run.ask_to_stop)
    assert "after step 3 of 6" in last_end(run)["reason"]
    go_on(run)
    assert apart(run, whole) < 1e-6


def test_a_signal_within_a_step_leaves_the_step_before(tmp_path: Path, whole: RunFolder) -> None:
    run = uneven_run(tmp_path / "run")

    def end() -> None:
        raise Stopped("ended by SIGTERM")  # as the worker's handler does, wherever the program is

    interrupted(run, "on_substep_end", lambda state: state.global_step == 4, end)
    assert last_end(run)["reason"] == "ended by SIGTERM after step 4 of 6; checkpoints/ holds that step"
    go_on(run)
    assert apart(run, whole) < 1e-6


@pytest.mark.parametrize("part", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_signal_while_a_checkpoint_is_saved_leaves_a_whole_one(
    tmp_path: Path, whole: RunFolder, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM after the weights were written and before the rest: the checkpoint of that step is written again."""
    run = uneven_run(tmp_path / "run")
    real = getattr(Trainer, part)
    done: list[bool] = []

    def save(self: Any, output_dir: str) -> None:
        if not done and output_dir.endswith("-4"):
            done.append(True)
            raise Terminated("ended by SIGTERM")
        real(self, output_dir)

    monkeypatch.setattr(Trainer, part, save)
    assert work(run.path) == 0, last_end(run)
    assert done
    end = last_end(run)
    assert (end["status"], end["cause"]) == ("stopped", "killed")
    assert end["reason"] == "ended by SIGTERM after step 4 of 6; checkpoints/ holds that step"
    assert last_checkpoint(run) == run.checkpoints / "checkpoint-4"
    go_on(run)
    assert apart(run, whole) < 1e-6


@pytest.mark.parametrize("step", [2, STEPS])
def test_a_stop_within_an_evaluation_makes_up_for_it(tmp_path: Path, whole: RunFolder, step: int) -> None:
    run = uneven_run(tmp_path / "run")
    interrupted(run, "on_prediction_step", lambda state: state.global_step == step, run.ask_to_stop)
    assert f"after step {step} of 6" in last_end(run)["reason"]
    assert (run.checkpoints / f"checkpoint-{step}" / PENDING).is_file()
    go_on(run)
    assert apart(run, whole) < 1e-6
    assert [at for at, _ in metrics(run, "heldout_kl")] == [2, 4, 6]
    assert [at for at, _ in metrics(run, "loss")] == [1, 2, 3, 4, 5, 6]


def test_a_stop_within_the_report_trains_no_further(tmp_path: Path) -> None:
    """In the middle of an epoch, too."""
    from jobs.gpu.watching import Watcher

    whole, run = (uneven_run(tmp_path / name, max_steps=4) for name in ("whole", "run"))
    assert work(whole.path) == 0
    real = Watcher.report

    def report(self: Watcher) -> dict[str, float]:
        run.ask_to_stop()
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watcher, "report", report)
        assert work(run.path) == 0
    assert "after step 4 of 4" in last_end(run)["reason"]
    go_on(run)
    assert apart(run, whole) < 1e-6
    assert [at for at, _ in metrics(run, "loss")] == [1, 2, 3, 4]
    assert metrics(run, "report_loss") == metrics(whole, "report_loss")


KILLED = """
import os, signal, sys
from jobs.gpu.callbacks import Telling
from jobs.worker import main
real = Telling.on_log
def on_log(self, args, state, control, **named):
    real(self, args, state, control, **named)
    if state.global_step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
Telling.on_log = on_log
main([sys.argv[1]])
"""


@pytest.mark.slow
def test_kill_9_between_checkpoints_costs_the_steps_since(world: World, whole: RunFolder) -> None:
    """A real process, killed at step 5, with a torn checkpoint of step 4: it goes on from step 2."""
    job = world.job("dpo", dataset="pairs", device="cpu")
    run = uneven_run(world.folder.run(job.id), keep_checkpoints=3)
    first = store.start_attempt(world.db, job.id)
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(run.path), "5"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert sorted(folder.name for folder in run.checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    state = run.checkpoints / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    drain(world.db, world.folder, first.id)
    second = store.start_attempt(world.db, job.id)
    go_on(run)
    drain(world.db, world.folder, second.id)
    assert any("from the checkpoint of step 2" in event["text"] for event in tiny.events(run, "note"))
    assert apart(run, whole) < 1e-6
    # Steps 3 to 5 ran twice. They are in the curve once, and in the file of lines.
    assert [at for at, _ in metrics(run, "loss")] == [1, 2, 3, 4, 5, 3, 4, 5, 6]
    curves = store.metrics_of(world.db, job.id)
    assert [at for at, _ in curves["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [at for at, _ in curves["heldout_loss"]] == [2, 4, 6]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_the_latest_attempts_value_is_the_curves(world: World) -> None:
    job = world.job("dpo", dataset="pairs")
    for value in (1.0, 2.0):
        attempt = store.start_attempt(world.db, job.id)
        store.add_metrics(world.db, attempt.id, 3, {"loss": value})
    store.add_metrics(world.db, attempt.id, 4, {"loss": 3.0})
    assert store.metrics_of(world.db, job.id) == {"loss": [(3, 2.0), (4, 3.0)]}


def test_a_torn_checkpoint_is_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert last_checkpoint(run) is None
    for step in (2, 4, 10):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    (run.checkpoints / "checkpoint-2" / "trainer_state.json").write_text("{}")
    (run.checkpoints / "checkpoint-4" / "trainer_state.json").write_text('{"global_')
    assert last_checkpoint(run) == run.checkpoints / "checkpoint-2"
    assert [folder.name for folder in run.checkpoints.iterdir()] == ["checkpoint-2"]
    shutil.rmtree(run.checkpoints)
    assert last_checkpoint(run) is None


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    run = uneven_run(tmp_path / "run")
    with stop_when(run, 3):
        assert work(run.path) == 0
    go_on(run)
    trials = [event for event in tiny.events(run, "metric") if "trial_seconds" in event["values"]]
    assert len(trials) == 1
    assert [event["step"] for event in tiny.events(run, "answers")] == [0, 2, 4, 6]
    notes = [event["text"] for event in tiny.events(run, "note") if event["text"].startswith("Reference")]
    assert ["computed in 0 forward passes" in text for text in notes] == [False, False, True, True]


@pytest.mark.parametrize("kept", [1, 2])
def test_so_many_checkpoints_are_kept_and_none_at_the_end(tmp_path: Path, kept: int) -> None:
    run = uneven_run(tmp_path / "run", keep_checkpoints=kept)
    with stop_when(run, 5):
        assert work(run.path) == 0
    found = sorted(folder.name for folder in run.checkpoints.iterdir())
    assert found == ["checkpoint-2", "checkpoint-4", "checkpoint-5"][-kept:]
    go_on(run)
    assert not run.checkpoints.exists()


def test_along_the_run_older_ones_go_once_a_newer_one_is_sealed(tmp_path: Path) -> None:
    run = uneven_run(tmp_path / "run")
    seen: list[tuple[str, bool]] = []

    def look() -> None:
        seen.extend((found.name, (found / WHOLE).is_file()) for found in run.checkpoints.iterdir())

    interrupted(run, "on_step_end", lambda state: state.global_step == 5, look)
    assert seen == [("checkpoint-4", True)]


def test_without_checkpoints_it_starts_anew_and_says_so(tmp_path: Path, whole: RunFolder) -> None:
    run = uneven_run(tmp_path / "run", keep_checkpoints=0)
    with stop_when(run, 3):
        assert work(run.path) == 0
    assert last_end(run)["reason"] == "stopped after step 3 of 6; no checkpoint holds it"
    assert not run.checkpoints.exists() or not list(run.checkpoints.iterdir())
    go_on(run)
    assert any("the training starts anew" in event["text"] for event in tiny.events(run, "note"))
    assert apart(run, whole) < 1e-6
    assert [event["step"] for event in tiny.events(run, "answers")] == [0, 2, 2, 4, 6]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_left_its_adapter_trains_nothing(tmp_path: Path) -> None:
    """The worker was killed between the adapter's event and its last word."""
    run = uneven_run(tmp_path / "run", evaluations=0, max_steps=1)
    assert work(run.path) == 0
    before = len(list(read_events(run.events)))
    go_on(run)
    assert [event["kind"] for event in read_events(run.events)][before:] == ["started", "end"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "steerlm"])
def test_the_supervised_kinds_go_on_too(tmp_path: Path, kind: str) -> None:
    changes = {"lora_dropout": 0.2, "batch_size": 3, "global_batch": 6, "watched_tokens": 4}
    whole, run = (sft_run(tmp_path / name, kind, changes) for name in ("whole", "run"))
    assert work(whole.path) == 0, last_end(whole)
    with stop_when(run, 5):
        assert work(run.path) == 0, last_end(run)
    go_on(run)
    assert apart(run, whole) < 1e-6
