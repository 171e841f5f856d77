"""Runs side by side: what is read of them, what differs, which is the best, and what is never chosen by."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import World
from jobs.configs import parse_config
from storage import jobs as store
from storage.adapters import add_adapter
from storage.lifecycle import JobStatus
from storage.records import Job
from storage.rows import rows
from storage.runs import Run, RunFilter, curves_of, final_metrics, jobs_by_id, last_metrics, list_runs, run_choices
from workbench import model_views
from workbench.compare import (
    BY_NAME,
    METRICS,
    as_csv,
    as_markdown,
    best_of,
    choosable,
    compare,
    figure,
    label,
    setting,
)
from workbench.context import Context
from workbench.model_desk import KINDS, Address, read_address, runs

WHEN = "2026-11-23T01:00:00.000+00:00"


def training(
    world: World, kind: str = "dpo", dataset: int | None = None, sweep: int | None = None, **config: Any
) -> Job:
    given = {"dataset": "shapes", "batch_size": 8, "global_batch": 8, **config}
    frozen = parse_config(kind, given).model_dump(mode="json")
    job = store.add_job(
        world.db, kind=kind, config=frozen, user="ada", slot_kind="device", dataset_id=dataset, sweep=sweep
    )
    store.move(world.db, job.id, JobStatus.STARTING)
    store.move(world.db, job.id, JobStatus.DONE)
    return job


def dataset(world: World, name: str, content: str) -> int:
    world.db.conn.execute("INSERT OR IGNORE INTO users (name, created_at) VALUES ('ada', ?)", [WHEN])
    cursor = world.db.conn.execute(
        "INSERT INTO datasets (name, hash, rule, counts, user, created_at) VALUES (?, ?, '{}', '{}', 'ada', ?)",
        [name, content, WHEN],
    )
    return int(cursor.lastrowid or 0)


def attempt(world: World, job: Job, steps: dict[int, dict[str, float]], seconds: float | None = None) -> None:
    made = store.start_attempt(world.db, job.id)
    for step, values in steps.items():
        store.add_metrics(world.db, made.id, step, values)
    if seconds is not None:
        end = f"2026-11-23T01:00:{seconds:06.3f}+00:00"
        world.db.conn.execute(
            "UPDATE attempts SET started_at = ?, ended_at = ? WHERE id = ?", [WHEN, end, made.id]
        )


def made_up(
    number: int, kind: str = "dpo", held: str = "h", config: dict[str, Any] | None = None, **metrics: Any
) -> Run:
    """A run that no database holds."""
    job = Job(
        id=number,
        kind=kind,
        status=JobStatus.DONE,
        config={"model": "demo", **(config or {})},
        slot_kind="device",
        device=None,
        slot=None,
        user="ada",
        dataset_id=1,
        adapter_id=None,
        phase="",
        done=0,
        total=0,
        unit="",
        port=None,
        reason="",
        created_at=WHEN,
        started_at=WHEN,
        ended_at=WHEN,
    )
    return Run(job, "shapes", held, 61.0, metrics, ())


def named(name: str, value: float) -> dict[str, Any]:
    return {name: value}


# --- what is read ---


def test_the_last_value_of_each_held_out_and_report_metric(world: World) -> None:
    job = training(world)
    attempt(
        world,
        job,
        {
            1: {"loss": 0.7, "reward_accuracy": 0.1},
            5: {"heldout_loss": 0.6, "heldout_reward_accuracy": 0.5, "loss": 0.5},
            10: {"heldout_loss": 0.4, "report_reward_accuracy": 0.8, "loss": 0.3},
        },
    )
    other = training(world)
    attempt(world, other, {3: {"loss": 1.0, "heldoutloss": 2.0, "reportage": 3.0, "heldoux_a": 4.0}})
    assert last_metrics(world.db, [job.id, other.id]) == {
        job.id: {"heldout_loss": 0.4, "heldout_reward_accuracy": 0.5, "report_reward_accuracy": 0.8}
    }
    assert last_metrics(world.db, []) == {}


def test_of_two_attempts_the_later_counts(world: World) -> None:
    job = training(world)
    attempt(world, job, {5: {"heldout_loss": 0.6}, 10: {"heldout_loss": 0.5, "heldout_kl": 0.1}}, seconds=10)
    attempt(world, job, {10: {"heldout_loss": 0.45}, 15: {"heldout_loss": 0.4}}, seconds=2.5)
    assert last_metrics(world.db, [job.id])[job.id] == {"heldout_loss": 0.4, "heldout_kl": 0.1}
    assert curves_of(world.db, [job.id, 77], "heldout_loss") == {job.id: [(5, 0.6), (10, 0.45), (15, 0.4)]}
    found, total = list_runs(world.db, KINDS)
    assert total == 1
    assert found[0].seconds == pytest.approx(12.5, abs=0.01)
    assert found[0].metrics["heldout_loss"] == 0.4


def test_a_patient_run_left_its_best_weights(world: World) -> None:
    def values(accuracy: float, margin: float) -> dict[str, float]:
        return {"heldout_reward_accuracy": accuracy, "heldout_reward_margin": margin, "heldout_kl": margin / 10}

    patient, plain = training(world, patience=2), training(world)
    steps = {5: values(0.6, 1.0), 10: values(0.8, 1.5), 15: values(0.8, 1.5), 20: values(0.8, 1.2)}
    steps[15]["heldout_kl"] = 9.0
    for job in (patient, plain):
        attempt(world, job, {**steps, 10: {**steps[10], "report_loss": 0.1}})
    unlucky = training(world, patience=1)
    attempt(world, unlucky, {5: {"heldout_kl": 0.1}, 10: {"heldout_kl": 0.2}})
    found = final_metrics(world.db, store.list_jobs(world.db))
    assert found[patient.id] == {**values(0.8, 1.5), "report_loss": 0.1}
    assert found[plain.id] == {**values(0.8, 1.2), "report_loss": 0.1}
    assert found[unlucky.id] == {"heldout_kl": 0.2}
    assert list_runs(world.db, KINDS)[0][2].metrics == found[patient.id]


def test_it_agrees_with_the_curves_of_each_run(world: World) -> None:
    for number in range(6):
        job = training(world)
        for part in range(number % 3):
            steps = {step: {f"heldout_m{step % 3}": step + part / 10, "report_x": 1.0} for step in range(part, 9)}
            attempt(world, job, steps)
    ids = [job.id for job in store.list_jobs(world.db)]
    expected = {
        job: {name: curve[-1][1] for name, curve in store.metrics_of(world.db, job).items()} for job in ids
    }
    assert last_metrics(world.db, ids) == {job: found for job, found in expected.items() if found}


def test_filters_limits_and_choices(world: World) -> None:
    shapes, charts = dataset(world, "shapes", "a" * 64), dataset(world, "charts", "b" * 64)
    first = training(world, dataset=shapes)
    world.db.conn.execute("UPDATE jobs SET sweep = id WHERE id = ?", [first.id])
    second = training(world, dataset=shapes, sweep=first.id)
    third = training(world, "sft", dataset=charts, model="owner/other")
    world.job("generate")

    def ids(**where: Any) -> list[int]:
        return [run.job.id for run in list_runs(world.db, KINDS, RunFilter(**where))[0]]

    assert ids() == [third.id, second.id, first.id]
    assert ids(dataset="shapes") == [second.id, first.id]
    assert ids(base="owner/other") == ids(method="sft") == [third.id]
    assert ids(sweep=first.id) == [second.id, first.id]
    assert ids(sweep=third.id) == [third.id], "a run that is in no sweep is one of its own"
    assert ids(dataset="shapes", method="sft") == []
    newest, total = list_runs(world.db, KINDS, limit=1)
    assert ([run.job.id for run in newest], total) == ([third.id], 3)
    assert newest[0].dataset_hash == "b" * 64
    found = run_choices(world.db, KINDS)
    assert (found.datasets, found.bases, found.methods) == (
        ("charts", "shapes"),
        ("demo", "owner/other"),
        ("dpo", "sft"),
    )
    assert found.sweeps == (first.id,)
    assert jobs_by_id(world.db, [first.id, 99]) == {first.id: store.get_job(world.db, first.id)}


def test_a_run_knows_its_adapters(world: World) -> None:
    job = training(world)
    add_adapter(world.db, job, "colours", "c" * 64, 5, "demo", "dpo")
    training(world)
    found, _ = list_runs(world.db, KINDS)
    assert [[adapter.name for adapter in run.adapters] for run in found] == [[], ["colours"]]


def test_metrics_are_sought_and_never_scanned(world: World) -> None:
    """500 runs of 1,000 steps are 6.6 million rows: only look-ups by the primary key will do."""
    training(world, patience=1)
    statements: list[str] = []
    world.db.conn.set_trace_callback(statements.append)
    list_runs(world.db, KINDS)
    last_metrics(world.db, [1, 2])
    curves_of(world.db, [1, 2], "heldout_loss")
    world.db.conn.set_trace_callback(None)
    asked = [sql for sql in statements if "metrics" in sql]
    assert len(asked) == 4
    for sql in asked:
        plan = [row["detail"] for row in rows(world.db, f"EXPLAIN QUERY PLAN {sql}")]
        over = [line for line in plan if re.search(r"\b(m|x|metrics)\b", line)]
        assert over
        assert all("PRIMARY KEY (attempt_id=? AND name" in line for line in over), plan


# --- what is compared ---


def test_only_settings_that_differ_have_a_column(world: World) -> None:
    training(world, beta=0.1, learning_rate=5e-5, name="one")
    training(world, beta=0.3, learning_rate=5e-5, name="other", watched_tokens=9)
    found = compare(list_runs(world.db, KINDS)[0])
    assert [(column.key, column.title) for column in found.settings] == [("beta", "β")]
    training(world, "sft", learning_rate=4e-4)
    found = compare(list_runs(world.db, KINDS)[0])
    assert [column.key for column in found.settings] == ["learning_rate", "beta"]
    assert [setting(run, "beta") for run in found.runs] == ["–", "0.3", "0.1"]
    assert label(found.runs[1], found.settings) == f"#{found.runs[1].job.id} DPO, Learning rate 5e-05, β 0.3"
    alone = compare(found.runs[:1])
    assert alone.settings == ()


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.better])
def test_the_best_by_each_metric(metric: Any) -> None:
    values = {1: 0.2, 2: 0.7, 3: 0.7, 4: 0.2}
    found = [made_up(number, **named(f"heldout_{metric.name}", value)) for number, value in values.items()]
    found += [made_up(5), made_up(6, **named(f"report_{metric.name}", 9.0 if metric.better == "higher" else -9.0))]
    assert compare(found, metric.name).best == ({2, 3} if metric.better == "higher" else {1, 4})


def test_the_report_does_not_sway_the_mark() -> None:
    found = [
        made_up(1, heldout_reward_accuracy=0.9, report_reward_accuracy=0.5),
        made_up(2, heldout_reward_accuracy=0.8, report_reward_accuracy=0.99),
    ]
    assert compare(found).best == {1}


def test_nothing_is_best_alone() -> None:
    assert compare([made_up(1, heldout_reward_accuracy=0.9), made_up(2)]).best == frozenset()
    assert compare([]).best == frozenset()


def test_only_what_is_done_can_be_best() -> None:
    better = made_up(3, heldout_reward_accuracy=1.0)
    unfinished = replace(better, job=replace(better.job, status=JobStatus.RUNNING))
    known = [made_up(1, heldout_reward_accuracy=0.9), made_up(2, heldout_reward_accuracy=0.8)]
    assert compare([*known, unfinished]).best == {1}


def test_a_trial_step_is_no_run(world: World) -> None:
    training(world, only_trial=True)
    run = training(world)
    assert [found.job.id for found in list_runs(world.db, KINDS)[0]] == [run.id]


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), max_size=12), st.sampled_from(["reward_margin", "loss"]))
def test_no_run_is_better_than_the_best(values: list[float | None], name: str) -> None:
    found = [
        made_up(number, **({} if value is None else named(f"heldout_{name}", value)))
        for number, value in enumerate(values)
    ]
    best = best_of(found, BY_NAME[name])
    known = {number: value for number, value in enumerate(values) if value is not None}
    sign = 1 if BY_NAME[name].better == "higher" else -1
    for number in best:
        assert all(sign * known[number] >= sign * value for value in known.values())
        assert all(other in best for other, value in known.items() if value == known[number])
    assert bool(best) == (len(known) > 1)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("reward_margin", "reward_margin"),
        ("heldout_kl", "kl"),
        ("report_reward_margin", "reward_accuracy"),
        ("report_kl", "reward_accuracy"),
        ("chosen_tokens", "reward_accuracy"),
        ("", "reward_accuracy"),
        ("heldout_report_kl", "reward_accuracy"),
    ],
)
def test_nobody_chooses_by_the_report(asked: str, chosen: str) -> None:
    assert choosable(asked) == chosen
    assert read_address(f"?view=runs&best={asked}").best == chosen


def test_different_held_out_pairs_have_a_best_each() -> None:
    found = compare(
        [
            made_up(1, held="a", heldout_reward_accuracy=0.9),
            made_up(2, held="a", heldout_reward_accuracy=0.8),
            made_up(3, held="b", heldout_reward_accuracy=0.5),
            made_up(4, held="b", heldout_reward_accuracy=0.6),
            made_up(5, held="a", config={"report_share": 0.9}, heldout_reward_accuracy=1.0),
        ]
    )
    assert found.best == {1, 4}
    assert "3 different sets of held-out pairs" in found.notes[0]


def test_what_does_not_compare_is_said() -> None:
    betas = [
        made_up(number, config={"beta": beta}, heldout_reward_margin=beta, heldout_loss=beta)
        for number, beta in ((1, 0.1), (2, 0.3))
    ]
    assert "different β" in " ".join(compare(betas, "reward_margin").notes)
    assert compare(betas, "reward_accuracy").notes == ()
    kinds = [made_up(1, heldout_loss=0.1), made_up(2, kind="sft", heldout_loss=2.0)]
    assert "different losses" in " ".join(compare(kinds, "loss").notes)
    assert compare(betas, "loss").notes == ()


def test_figures_are_short() -> None:
    run = made_up(1, heldout_reward_accuracy=0.8125, heldout_kl=-0.00123456, heldout_chosen_tokens=12.34)
    assert figure(run, "heldout_reward_accuracy") == "81.2%"
    assert figure(run, "heldout_kl") == "−0.001235"
    assert figure(run, "heldout_chosen_tokens") == "12.3"
    assert figure(run, "report_kl") == "–"


def test_the_table_as_csv_and_markdown() -> None:
    one = made_up(1, config={"beta": 0.1, "note": "=1+1|"}, heldout_reward_accuracy=0.75, report_loss=0.5)
    other = made_up(2, config={"beta": 0.3, "note": "x"}, heldout_reward_accuracy=0.5)
    found = compare([one, other])
    read = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert read[0]["heldout_reward_accuracy"] == "0.75"
    assert read[0]["note"] == "'=1+1|", "no spreadsheet takes it for a formula"
    assert read[1]["report_loss"] == ""
    assert [row["best_by_heldout_reward_accuracy"] for row in read] == ["yes", ""]
    assert read[0]["seconds"] == "61.0"
    lines = as_markdown(found).splitlines()
    assert lines[0] == (
        "| run | method | data set | beta | note | held-out: Accuracy | report: Loss | time |"
    ).replace("beta", "β")
    assert "| **75.0%** |" in lines[2]
    assert "=1+1\\|" in lines[2]
    assert "| 50.0% | – |" in lines[3]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}) == 1


# --- the view ---


def test_the_view_follows_its_address(world: World, context: Context) -> None:
    shapes, charts = dataset(world, "shapes", "a" * 64), dataset(world, "<charts>", "b" * 64)
    accuracies = {}
    for number, which in enumerate((shapes, shapes, charts)):
        job = training(world, dataset=which, beta=0.1 * (number + 1))
        accuracies[job.id] = 0.5 + number / 10
        steps = {
            step: {"heldout_reward_accuracy": 0.5 + number / 10, "heldout_kl": step / 10, "report_loss": 1.0}
            for step in (5, 10)
        }
        attempt(world, job, steps)
    first, second, _ = accuracies
    found = runs(context, read_address("?view=runs"))
    drawn = model_views.runs(found)
    assert drawn.count("<tr") == 2 + 3
    assert "<charts>" not in drawn
    assert "&lt;charts&gt;" in drawn
    assert model_views.KEPT_APART in drawn
    assert drawn.count("polyline") == 3
    narrowed = runs(context, read_address(f"?dataset=shapes&curve=kl&runs={first}"))
    assert narrowed.address.runs
    assert {run.job.id for run in narrowed.found.runs} == {first, second}
    assert narrowed.found.best == {second}
    assert [(run.job.id, list(curve)) for run, curve in narrowed.curves] == [(first, [(5, 0.5), (10, 1.0)])]
    drawn = model_views.runs(narrowed)
    assert re.search(rf'data-run="{first}" checked', drawn)
    assert not re.search(rf'data-run="{second}" checked', drawn)
    assert '<option value="shapes" selected>' in drawn
    assert '<option value="kl" selected>' in drawn
    assert "pm-best" in drawn
    assert not re.search(r'<option value="report', drawn), "no choice is offered by a figure of the report"
    assert not re.search(r'class="[^"]*pm-report[^"]*pm-best', drawn)
    none = model_views.runs(runs(context, read_address("?view=runs&method=sft")))
    assert "No run fits" in none


def test_without_a_training_the_view_says_what_to_do(context: Context) -> None:
    drawn = model_views.runs(runs(context, Address(runs=True)))
    assert "/jobs?kind=dpo" in drawn


def test_an_address_survives_the_way_there_and_back() -> None:
    asked = read_address("?dataset=a%26b&base=demo&method=dpo&sweep=12&best=kl&curve=loss&runs=3,5,3,x")
    assert asked == Address(
        runs=True,
        where=RunFilter("a&b", "demo", "dpo", 12),
        best="kl",
        curve="loss",
        ticked=(3, 5),
    )
    assert read_address(asked.search()) == asked
    assert read_address("?method=nonsense&sweep=-1&curve=report_kl").where == RunFilter()
    assert not read_address("?adapter=3&dataset=x").runs
    assert read_address("") == Address()
