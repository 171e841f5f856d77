"""The step that is tried before the first one: what it tells, and that it changes nothing."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from jobs.configs import DpoConfig
from jobs.gpu import trial
from jobs.gpu.scoring import PairScorer
from jobs.gpu.trial import spelled, steps_of
from jobs.runs import RunFolder
from jobs.worker import work
from test_dpo_job import FAST, dpo_run, last_end, metrics, pair
from test_resume import UNEVEN, apart, uneven_run
from test_sft_job import sft_run


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trial_of(run: RunFolder) -> dict[str, float]:
    (event,) = [event for event in tiny.events(run, "metric") if "trial_seconds" in event["values"]]
    assert event["step"] == 0
    values: dict[str, float] = event["values"]
    return values


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param({"image_weight": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_a_run_with_a_trial_ends_with_the_weights_of_one_without(tmp_path: Path, changes: dict[str, Any]) -> None:
    with_one = uneven_run(tmp_path / "with", **changes)
    without = uneven_run(tmp_path / "without", **changes)
    assert work(with_one.path) == 0, last_end(with_one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.gpu.training.try_step", lambda *_: None)
        assert work(without.path) == 0
    assert apart(with_one, without) == 0
    assert metrics(with_one, "loss") == metrics(without, "loss")
    assert set(trial_of(with_one)) == {"trial_seconds", "trial_memory_gb"}
    assert not any("trial_seconds" in event["values"] for event in tiny.events(without, "metric"))


def test_it_leaves_no_gradients_and_no_modes_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = trial.try_step

    def watched(run: Any, config: Any, trainer: Any, *rest: Any) -> None:
        modes = [module.training for module in trainer.model.modules()]
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        noise = torch.get_rng_state()
        real(run, config, trainer, *rest)
        seen.append(True)
        assert modes == [module.training for module in trainer.model.modules()]
        assert all(value.grad is None for value in trainer.model.parameters())
        assert all(torch.equal(before[name], value) for name, value in trainer.model.named_parameters())
        assert torch.equal(noise, torch.get_rng_state())
        assert not trainer._metrics["train"]
        assert trainer._total_train_tokens == 0

    monkeypatch.setattr("jobs.gpu.training.try_step", watched)
    run = uneven_run(tmp_path / "run", max_steps=1, only_trial=True)
    assert work(run.path) == 0, last_end(run)
    assert seen


def test_it_tries_the_longest_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[int]] = []
    real = trial.forward_and_backward

    def watched(trainer: Any, model: Any, rows: Any, collate: Any) -> float:
        tried.append([row["place"] for row in rows])
        assert model.training
        return real(trainer, model, rows, collate)

    monkeypatch.setattr(trial, "forward_and_backward", watched)
    rows = [pair(number, [], chosen="yes " * length) for number, length in enumerate([1, 9, 3, 12, 7, 2])]
    rows += [pair(9, [], "heldout", chosen="yes " * 40)]
    run = dpo_run(tmp_path / "run", {**FAST, "batch_size": 3, "global_batch": 3, "only_trial": True}, rows)
    assert work(run.path) == 0, last_end(run)
    assert tried == [[3, 1, 4]]


def test_a_step_is_a_batchs_time_times_the_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: 1.5 * next(ticks))
    monkeypatch.setattr(trial, "time", clock)
    monkeypatch.setattr(trial, "memory_gb", lambda device: 3.0)
    changes = {"batch_size": 2, "global_batch": 6, "max_steps": 100, "only_trial": True}
    run = dpo_run(tmp_path / "run", {**FAST, **changes})
    assert work(run.path) == 0, last_end(run)
    told = trial_of(run)
    assert told["trial_seconds"] == 4.5
    # LoRA of rank 4 on the tiny model's 14 linear layers, two numbers of 4 bytes each.
    layers = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    trained = 2 * sum(4 * (inside + outside) for inside, outside in layers)
    assert told["trial_memory_gb"] == pytest.approx(3.0 + trained * 8 / 1e9, abs=1e-12)
    (note,) = [e["text"] for e in tiny.events(run, "note") if e["text"].startswith("One step")]
    assert note == (
        "One step on the longest rows took 4.5 s and 3.0 GB (3.3e-05 GB of it, for the optimizer, estimated): "
        "100 steps take at most about 8 minutes."
    )


def test_a_trial_alone_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairScorer, "score", lambda *_: pytest.fail("the reference was asked"))
    run = uneven_run(tmp_path / "run", only_trial=True)
    assert work(run.path) == 0, last_end(run)
    assert last_end(run)["status"] == "done"
    assert not tiny.events(run, "adapter")
    assert not run.adapter.exists()
    assert not metrics(run, "loss")
    assert tiny.events(run, "note")[-1]["text"].startswith("Only a step was asked for")
    assert trial_of(run)


@pytest.mark.parametrize("kind", ["steerlm", "sft"])
def test_the_supervised_kinds_are_tried_too(tmp_path: Path, kind: str) -> None:
    run = sft_run(tmp_path / "run", kind, {"only_trial": True})
    assert work(run.path) == 0, last_end(run)
    assert trial_of(run)["trial_seconds"] > 0


def test_memory_that_does_not_suffice_is_told_before_the_reference_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr(trial, "forward_and_backward", full)
    monkeypatch.setattr(PairScorer, "score", lambda *_: pytest.fail("the reference was asked"))
    run = uneven_run(tmp_path / "run")
    assert work(run.path) == 1
    assert "out of memory" in last_end(run)["reason"].lower()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200), st.integers(1, 7), st.integers(1, 5), st.integers(1, 3), st.floats(0.1, 4.0),
    st.sampled_from([-1, -1, 7]),
)  # fmt: skip
def test_steps_are_counted_as_transformers_counts_them(
    rows: int, batch: int, accumulation: int, processes: int, epochs: float, most: int
) -> None:
    from transformers import Trainer

    given_sizes = {"batch_size": batch, "processes": processes, "global_batch": batch * accumulation * processes}
    config = DpoConfig.model_validate({"dataset": "x", "epochs": epochs, "max_steps": most, **given_sizes})
    arguments = types.SimpleNamespace(
        max_steps=most,
        num_train_epochs=epochs,
        gradient_accumulation_steps=accumulation,
        include_num_input_tokens_seen="no",
    )
    fake = types.SimpleNamespace(
        get_total_train_batch_size=lambda _: batch * accumulation * processes,
        num_examples=lambda _: rows,
        get_sp_size=lambda: 1,
    )
    found = Trainer.set_initial_training_values(fake, arguments, range(-(-rows // (batch * processes))))
    assert steps_of(config, rows) == found[-1]


def test_steps_of_a_real_run(tmp_path: Path) -> None:
    run = uneven_run(tmp_path / "run", evaluations=0)
    assert work(run.path) == 0
    config = DpoConfig.model_validate({**UNEVEN, "dataset": "x"})
    assert steps_of(config, 9) == metrics(run, "loss")[-1][0] == 6


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0132, "0.013 s"),
        (4.11, "4.1 s"),
        (41.7, "42 s"),
        (130, "2 minutes"),
        (5000, "83 minutes"),
        (12600, "3.5 hours"),
    ],
)
def test_times_for_people(seconds: float, words: str) -> None:
    assert spelled(seconds) == words
