"""Early stop: when it is enough, whose weights are taken, and that an interruption changes neither."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
from jobs.gpu.best import ACCURACY, MARGIN, Best
from jobs.gpu.watching import Watcher
from jobs.runs import RunFolder
from jobs.worker import work
from test_dpo_job import dpo_run, last_end, metrics, pair
from test_resume import UNEVEN, go_on, stop_when, uneven_run, weights

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml

#: Accuracy and margin at steps 1 to 6: the second is the best, by its margin.
SCRIPT = [(0.5, 1.0), (0.75, 2.0), (0.75, 1.5), (0.5, 9.0), (0.9, 1.0), (0.9, 1.0)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Seen:
    """What a run had at its evaluations, and with which weights it was reported."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.reported: dict[str, torch.Tensor] = {}
        self.card: dict[str, float] = {}


def policy_weights(trainer: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return {name: value.clone() for name, value in get_peft_model_state_dict(trainer.model).items()}


@contextlib.contextmanager
def scripted(script: Sequence[tuple[float, float]] = SCRIPT) -> Iterator[Seen]:
    """Within it held-out accuracies and margins are those of the script, one entry a step."""
    seen = Seen()
    report = Watcher.report

    def look(self: Watcher) -> dict[str, float]:
        step = self._trainer.state.global_step
        seen.weights[step] = policy_weights(self._trainer)
        return {ACCURACY: script[step - 1][0], MARGIN: script[step - 1][1]}

    def reported(self: Watcher) -> dict[str, float]:
        seen.reported = policy_weights(self._trainer)
        return report(self)

    def card(run: Any, job: Any, config: Any, name: str, found: dict[str, float], *_: Any, **__: Any) -> str:
        seen.card = dict(found)
        return "card"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watcher, "look", look)
        patch.setattr(Watcher, "report", reported)
        patch.setattr("jobs.gpu.training.training_card", card)
        yield seen


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def patient_run(folder: Path, patience: int, **changes: Any) -> RunFolder:
    return uneven_run(folder, evaluations=6, patience=patience, watched_samples=0, watched_prompts="", **changes)


def notes(run: RunFolder) -> list[str]:
    return [event["text"] for event in tiny.events(run, "note")]


def test_it_stops_and_takes_the_best_evaluations_weights(tmp_path: Path) -> None:
    run = patient_run(tmp_path / "run", 2)
    with scripted() as seen:
        assert work(run.path) == 0, last_end(run)
    assert last_end(run)["status"] == "done"
    assert [at for at, _ in metrics(run, "loss")] == [1, 2, 3, 4]
    assert same(weights(run), seen.weights[2])
    assert not same(seen.weights[2], seen.weights[4])
    # The pairs kept for the report are looked at with these weights.
    assert same(seen.reported, seen.weights[2])
    ((at, _),) = metrics(run, "report_loss")
    assert at == 2
    assert (
        "Best held-out accuracy at step 2 (0.750, margin 2.000); stopped after step 4 of 6. "
        "The adapter has the weights of that step."
    ) in notes(run)
    assert seen.card["best_step"] == 2
    assert (seen.card[ACCURACY], seen.card[MARGIN]) == (0.75, 2.0)
    assert not (run.path / "best").exists()


def test_a_run_to_its_end_takes_the_best_too(tmp_path: Path) -> None:
    run = patient_run(tmp_path / "run", 3)
    with scripted() as seen:
        assert work(run.path) == 0
    # The fifth and the sixth are equal: the first of them counts.
    assert [at for at, _ in metrics(run, "loss")] == [1, 2, 3, 4, 5, 6]
    assert same(weights(run), seen.weights[5])
    assert any("at step 5 (0.900, margin 1.000); 6 steps." in text for text in notes(run))


def test_without_patience_the_last_weights_are_taken(tmp_path: Path) -> None:
    run = patient_run(tmp_path / "run", 0)
    with scripted() as seen:
        assert work(run.path) == 0
    assert same(weights(run), seen.weights[6])
    assert same(seen.reported, seen.weights[6])
    assert "best_step" not in seen.card
    assert not any("Best held-out" in text for text in notes(run))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interruption_changes_neither(tmp_path: Path, step: int) -> None:
    run = patient_run(tmp_path / "run", 2)
    with scripted() as seen:
        with stop_when(run, step):
            assert work(run.path) == 0
        go_on(run)
    assert [at for at, _ in metrics(run, "loss")] == [1, 2, 3, 4]
    assert same(weights(run), seen.weights[2])
    assert seen.card["best_step"] == 2


def test_a_stop_in_the_report_trains_no_further(tmp_path: Path) -> None:
    run = patient_run(tmp_path / "run", 2)
    with scripted() as seen:
        with pytest.MonkeyPatch.context() as patch:
            real = Watcher.report

            def stopped(self: Watcher) -> dict[str, float]:
                run.ask_to_stop()
                return real(self)

            patch.setattr(Watcher, "report", stopped)
            assert work(run.path) == 0
        assert "stopped after step 4 of 6" in last_end(run)["reason"]
        go_on(run)
    assert [at for at, _ in metrics(run, "loss")] == [1, 2, 3, 4]
    assert same(weights(run), seen.weights[2])
    assert same(seen.reported, seen.weights[2])


def test_patience_without_held_out_pairs_is_told(tmp_path: Path) -> None:
    rows = [pair(number, []) for number in range(4)]
    run = dpo_run(tmp_path / "run", {**UNEVEN, "patience": 1, "max_steps": 2}, rows)
    assert work(run.path) == 0, last_end(run)
    assert any(text.startswith("patience 1 does nothing") for text in notes(run))


# The keeper itself


def keep(best: Best, step: int, accuracy: float, margin: float = 0.0) -> list[Path]:
    """Add an evaluation; returns the folders that were asked for."""
    asked: list[Path] = []

    def save(folder: Path) -> None:
        asked.append(folder)
        folder.mkdir(parents=True)

    best.add(step, {ACCURACY: accuracy, MARGIN: margin}, save)
    return asked


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_the_best_is_the_first_of_the_highest(ranks: list[tuple[int, int]], patience: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        best = Best(Path(folder) / "best", patience, step=0)
        assert (best.step, best.enough) == (None, False)
        for step, (accuracy, margin) in enumerate(ranks, start=1):
            asked = keep(best, step, accuracy / 4, float(margin))
            seen = ranks[:step]
            place = min(place for place, rank in enumerate(seen) if rank == max(seen))
            assert best.step == place + 1
            assert bool(asked) == (place + 1 == step)
            assert best.enough == (len(seen) - 1 - place >= patience)
            # A later process sees the same.
            again = Best(Path(folder) / "best", patience, step=step)
            assert (again.step, again.enough, again.values) == (best.step, best.enough, best.values)


def test_what_was_seen_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    """Killed between an evaluation and its checkpoint: the weights of the one before are still there."""
    best = Best(tmp_path / "best", 2, 0)
    keep(best, 2, 0.5)
    best.prune()
    keep(best, 4, 0.8)
    assert best.step == 4
    again = Best(tmp_path / "best", 2, step=2)
    assert again.step == 2
    assert again.folder.is_dir()
    keep(again, 4, 0.4)
    again.prune()
    assert [folder.name for folder in (tmp_path / "best").iterdir() if folder.is_dir()] == ["2"]


def test_a_fresh_start_forgets_everything(tmp_path: Path) -> None:
    keep(Best(tmp_path / "best", 2, 0), 2, 0.5)
    fresh = Best(tmp_path / "best", 2, step=0)
    assert fresh.step is None
    assert not (tmp_path / "best").exists()
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text('{"history": [')
    assert Best(tmp_path / "best", 2, step=9).step is None


def test_other_processes_count_and_write_nothing(tmp_path: Path) -> None:
    best = Best(tmp_path / "best", 1, 0, writes=False)
    for step, accuracy in ((1, 0.5), (2, 0.4)):
        best.add(step, {ACCURACY: accuracy}, lambda folder: None)
    assert (best.step, best.enough) == (1, True)
    best.prune()
    assert not (tmp_path / "best").exists()


def test_the_best_weights_are_safetensors_with_their_numbers_beside(tmp_path: Path) -> None:
    run = patient_run(tmp_path / "run", 2)
    with scripted() as seen, stop_when(run, 3):
        assert work(run.path) == 0
    found = load_file(run.path / "best" / "2" / "adapter_model.safetensors")
    assert same(found, seen.weights[2])
    history = json.loads((run.path / "best" / "best.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [1, 2]
    assert history[1]["values"][ACCURACY] == 0.75
    assert history[1]["values"]["heldout_loss"] > 0
    assert sorted(folder.name for folder in (run.path / "best").iterdir()) == ["2", "best.json"]
