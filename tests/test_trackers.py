"""Where a run's numbers go beside its events."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from jobs.gpu.trackers import check_trackers, read_lines
from jobs.runs import RunFolder
from jobs.worker import work
from storage.errors import UserError
from test_dpo_job import FAST, dpo_run, last_end
from test_resume import uneven_run


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def board_of(folder: Path) -> Any:
    """What TensorBoard reads from a run's folder."""
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    board = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


def test_the_curves_lie_in_a_file_and_in_tensorboards(tmp_path: Path) -> None:
    trained = uneven_run(tmp_path / "run", max_steps=3)
    assert work(trained.path) == 0, last_end(trained)
    lines = read_lines(trained.path / "metrics.jsonl")
    told = [
        {"step": event["step"], **event["values"]}
        for event in tiny.events(trained, "metric")
        if "trial_seconds" not in event["values"]
    ]
    assert lines == told
    board = board_of(trained.path)
    names = {name for line in lines for name in line} - {"step"}
    assert set(board.Tags()["scalars"]) == names
    for name in ("loss", "heldout_reward_margin", "report_loss"):
        values = [(scalar.step, scalar.value) for scalar in board.Scalars(name)]
        wanted = [(line["step"], line[name]) for line in lines if name in line]
        assert [step for step, _ in values] == [step for step, _ in wanted]
        assert [value for _, value in values] == pytest.approx([value for _, value in wanted], rel=1e-6)


def test_a_run_that_goes_on_hides_the_steps_that_ran_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    from jobs.configs import DpoConfig
    from jobs.gpu.trackers import Curves

    run, config = RunFolder(tmp_path), DpoConfig(dataset="pairs")
    first = Curves(run, config, 0)
    for step in range(1, 6):
        first.write(step, {"loss": float(step), "odd": math.nan})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    # TensorBoard's files are named by the second: an attempt after this one begins in a later one.
    later = time.time() + 10
    monkeypatch.setattr("time.time", lambda: later)
    again = Curves(run, config, 2)
    assert again.last == {"loss": 2.0}
    for step in range(3, 5):
        again.write(step, {"loss": float(10 * step)})
    again.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": step, "loss": loss} for step, loss in ((1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0))
    ]
    board = board_of(tmp_path)
    found = {scalar.step: scalar.value for scalar in board.Scalars("loss")}
    assert found == {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}


def test_without_tensorboard_no_such_files(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", {**FAST, "max_steps": 1, "evaluations": 0, "report_to": ""})
    assert work(run.path) == 0
    assert not (run.path / "tensorboard").exists()
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mlflow", "report_to: 'mlflow' isn't installed, or isn't set up. Run pip install mlflow, or"),
        ("tensorboard, comet_ml", "Run pip install comet-ml, or"),
        ("tensorbord", "report_to: 'tensorbord' is no tracker that transformers knows; use azure_ml"),
    ],
)
def test_a_tracker_that_is_not_there_is_told_before_the_model_is_loaded(
    tmp_path: Path, name: str, words: str
) -> None:
    run = dpo_run(tmp_path / "run", {**FAST, "report_to": name})
    assert work(run.path) == 1
    assert words in last_end(run)["reason"]
    assert not tiny.events(run, "phase")


def test_a_tracker_asked_for_by_name_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from jobs.configs import DpoConfig

    config = DpoConfig(dataset="pairs", report_to="wandb")
    monkeypatch.setenv("WANDB_DISABLED", "true")
    with pytest.raises(UserError, match="pip install wandb"):
        check_trackers(config)
    assert "WANDB_DISABLED" not in os.environ
    check_trackers(DpoConfig(dataset="pairs", report_to="none"))
    check_trackers(DpoConfig(dataset="pairs", report_to=""))


def test_other_trackers_are_given_to_transformers(tmp_path: Path) -> None:
    from jobs.configs import DpoConfig
    from jobs.gpu.trackers import others

    assert others(DpoConfig(dataset="pairs", report_to="tensorboard, wandb,mlflow")) == ["wandb", "mlflow"]
    assert others(DpoConfig(dataset="pairs", report_to="none")) == []
