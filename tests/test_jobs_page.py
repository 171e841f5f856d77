"""The Jobs page: what is listed, what an opened job shows, launching, stopping, curves."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from factories import World
from job_pages import advance, raw_of
from jobs.freezing import freeze
from jobs.merged import Merged
from jobs.runs import RunFolder
from storage import jobs as store
from storage.adapters import add_adapter
from storage.errors import UserError
from storage.lifecycle import JobStatus
from storage.pairs import choose_by_hand
from storage.results import results_of
from workbench import job_launch
from workbench.charts import Series, line_chart, thin, ticks
from workbench.context import Context
from workbench.forms import collect, shown
from workbench.job_acts import halt
from workbench.job_desk import selected_by, start
from workbench.job_look import Look, changed, look
from workbench.job_words import KIND_NAMES, duration
from workbench.pages import jobs as page
from workbench.progress import Drawn, ProgressClock, Watch


def frozen(world: World, name: str = "first") -> int:
    for number in (1, 2, 3, 4):
        one, other = world.candidates(world.sample(number), ["a red circle", "red"])
        choose_by_hand(world.db, "ada", one.id, other.id)
    return freeze(world.db, "ada", name, ("accepted", "proposed"), heldout_percent=25).id


def test_an_empty_list_says_what_to_do_next(context: Context) -> None:
    found = look(context, Watch(), None)
    assert "No jobs yet" in found.jobs
    assert found.head == ""


def test_the_list_tells_states_positions_and_reasons(world: World, context: Context) -> None:
    advance(world, world.job(), JobStatus.STARTING, JobStatus.FAILED, reason="The device is <gone>.")
    running = advance(world, world.job(), JobStatus.STARTING, JobStatus.RUNNING)
    store.set_progress(world.db, running.id, phase="training", done=15.0, total=60.0, unit="steps")
    world.job()
    second = world.job()
    found = look(context, Watch(), None).jobs
    assert "number 1 in the queue" in found
    assert "number 2 in the queue" in found
    assert f'href="/jobs?job={second.id}"' in found
    assert "training: 15 of 60 steps" in found
    assert 'aria-valuenow="25"' in found
    assert "The device is &lt;gone&gt;." in found
    assert "<gone>" not in found
    assert found.index(f"#{second.id} ") < found.index(f"#{running.id} ")


def test_an_opened_job_shows_its_curves_log_settings_and_results(world: World, context: Context) -> None:
    dataset_id = frozen(world)
    job = store.add_job(
        world.db,
        kind="dpo",
        config={"dataset": "first", "model": "demo", "learning_rate": 5e-5},
        user="ada",
        slot_kind="device",
        dataset_id=dataset_id,
    )
    job = advance(world, job, JobStatus.STARTING, JobStatus.RUNNING)
    attempt = store.start_attempt(world.db, job.id)
    for step in (1, 2, 3):
        store.add_metrics(world.db, attempt.id, step, {"loss": 0.7 / step, "reward_chosen": 0.1 * step})
    store.add_metrics(world.db, attempt.id, 2, {"heldout_loss": 0.5, "gradient_norm": 1.5})
    run = RunFolder(context.folder.run(job.id))
    run.path.mkdir(parents=True)
    run.log.write_text("old line\n" * 200 + "the <last> line\n")
    add_adapter(world.db, job, "colours", "ab" * 32, 4_200_000, "demo", "dpo")
    adapter_id = results_of(world.db, job.id).adapters[0].id
    found = look(context, Watch(), job.id)
    assert found.stoppable
    assert "loss, held-out" in found.charts
    assert "plumb-dashed" in found.charts
    assert "Gradient norm" in found.more
    assert "Gradient norm" not in found.charts
    assert "the &lt;last&gt; line" in found.log
    assert found.log.count("old line") < 100
    assert "Learning rate" in found.settings
    assert "5e-05" in found.settings
    assert f"/chat?adapter={adapter_id}" in found.results
    assert "first" in found.results


def test_an_ended_job_cannot_be_stopped_and_tells_its_reason(world: World, context: Context) -> None:
    job = advance(world, world.job(), JobStatus.STARTING, JobStatus.FAILED, reason="Out of memory.")
    found = look(context, Watch(), job.id)
    assert not found.stoppable
    assert 'role="alert">Out of memory.' in found.head
    assert re.search(rf"Job {job.id} has ended already", halt(context, job.id))


def test_a_job_that_is_not_there_is_told_and_the_list_stays(world: World, context: Context) -> None:
    world.job()
    found = look(context, Watch(), 77)
    assert "There is no job 77" in found.head
    assert "#1 " in found.jobs


def test_only_what_changed_is_sent() -> None:
    first = Look(jobs="a", head="b", stoppable=True)
    news, seen = changed(first, {})
    assert news["jobs"] == "a"
    assert news["stoppable"] is True
    again, _ = changed(first, seen)
    assert again == {}
    later, _ = changed(Look(jobs="a", head="c", stoppable=True), seen)
    assert later == {"head": "c"}


def test_older_jobs_are_a_click_away(world: World, context: Context) -> None:
    for _ in range(4):
        world.job()
    found = look(context, Watch(), None, limit=3).jobs
    assert "data-more" in found
    assert "#1 " not in found
    assert "data-more" not in look(context, Watch(), None, limit=4).jobs


@pytest.mark.usefixtures("no_supervisor")
def test_starting_freezes_and_queues_a_job(world: World, context: Context) -> None:
    world.sample(1)
    controls = job_launch.controls("generate")
    job = start(context, "ada", "generate", controls, raw_of("generate", candidates=2.0, device=""))
    assert job.status is JobStatus.QUEUED
    assert job.config["candidates"] == 2
    assert job.user == "ada"
    assert halt(context, job.id) == ""
    assert store.get_job(world.db, job.id).status is JobStatus.STOPPED


@pytest.mark.usefixtures("no_supervisor")
@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("generate", {"temperature": 3.0}, r"temperature = 3\.0: .*less than or equal to 2"),
        ("generate", {"samples.ids": "1, two"}, r"samples\.ids = '1, two': give whole numbers"),
        ("generate", {"temperature": 0.0}, "temperature 0 gives the same answer 4 times"),
        ("generate", {}, "There is nothing to generate"),
        ("judge", {}, "There is nothing to judge"),
        ("dpo", {"dataset": ""}, "dataset = ''"),
        ("dpo", {"dataset": "gone"}, "no data set named 'gone'"),
    ],
)
def test_what_cannot_start_says_why(
    world: World, context: Context, kind: str, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(Exception, match=text) as caught:
        start(context, "ada", kind, job_launch.controls(kind), raw_of(kind, **values))
    assert type(caught.value).__module__ == UserError.__module__
    assert store.list_jobs(world.db) == []


def test_forms_offer_what_there_is(world: World, context: Context) -> None:
    empty = job_launch.offers(world.db, world.settings)
    assert "/pairs" in empty.hints["dpo"]
    assert "Samples" in empty.hints["generate"]
    assert "Samples" in empty.hints["checklist"]
    assert "candidates" in empty.hints["judge"]
    assert "Evaluate a model" in empty.hints["grade"]
    dataset_id = frozen(world)
    job = store.add_job(world.db, kind="dpo", config={}, user="ada", slot_kind="device", dataset_id=dataset_id)
    add_adapter(world.db, job, "colours", "ab" * 32, 1, "demo", "dpo")
    full = job_launch.offers(world.db, world.settings)
    assert full.hints.keys() - {"grade"} == {"steerlm", "rejection"}, "nobody has scored an answer of it"
    assert [value for _, value in full.choices["dpo"]["dataset"]] == ["first"]
    assert [value for _, value in full.choices["generate"]["adapter"]] == ["", 1]
    assert [value for _, value in full.choices["generate"]["device"]] == ["", "cpu"]
    assert [value for _, value in full.choices["generate"]["samples.source"]] == ["", "easy-vqa"]
    assert job_launch.adapter_choices(world.db, "owner/other") == [("none: the base itself", "")]


def test_the_address_prefills_a_form() -> None:
    values = job_launch.start_values("dpo", {"kind": "dpo", "dataset": "my pairs", "lora_r": "64", "seed": "x"})
    assert values["dataset"] == "my pairs"
    assert values["lora_r"] == 64
    assert values["seed"] == 0
    assert values["max_steps"] == 30  # the demo preset, since the model is the demo
    assert selected_by({"job": "12"}) == 12
    assert selected_by({"job": "twelve"}) is None


def test_presets_change_how_it_runs_and_not_whose_run_it_is() -> None:
    paper = job_launch.preset_values("dpo", "paper")
    assert paper["learning_rate"] == 5e-5
    assert paper["max_steps"] == -1  # what the demo preset had set goes back
    assert not {"dataset", "model", "name", "device"} & paper.keys()
    assert job_launch.preset_for("demo") == "demo"
    assert job_launch.preset_for("llava-hf/llava-1.5-13b-hf") == "paper"


def test_merged_weights_have_the_preset_of_their_base(tmp_path: Path) -> None:
    def merge(name: str, base: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "plumb.json").write_text(Merged(base, 1, "mine", "a" * 64, "float32", 2, "2026-11-23").text())
        return str(folder)

    once = merge("once", "demo")
    assert job_launch.preset_for(once) == "demo"
    assert job_launch.preset_for(merge("twice", once)) == "demo"
    assert job_launch.preset_for(merge("other", "llava-hf/llava-1.5-13b-hf")) == "paper"
    assert job_launch.preset_for(merge("circle", str(tmp_path / "circle"))) == "paper"
    assert job_launch.preset_for("~nobody/of this name\0") == "paper"


def test_a_jobs_settings_fill_its_form_again(world: World) -> None:
    controls = job_launch.controls("generate")
    raw = raw_of("generate", temperature=0.7, **{"samples.limit": "5"})
    config = collect(controls, raw)
    job = world.job("generate", **config)
    values = job_launch.rerun_values(job)
    again = [shown(control, values[control.path]) for control in controls]
    assert collect(controls, again) == collect(controls, raw)


def test_time_left_counts_from_the_first_look_at_the_phase(world: World) -> None:
    job = advance(world, world.job(), JobStatus.STARTING, JobStatus.RUNNING)
    clock = ProgressClock()
    begin = datetime.now(UTC) + timedelta(minutes=10)  # ten minutes went into loading
    assert clock.left(job, begin) is None
    store.set_progress(world.db, job.id, done=0.0, total=100.0, unit="steps")
    assert clock.left(store.get_job(world.db, job.id), begin) is None
    store.set_progress(world.db, job.id, done=20.0)
    left = clock.left(store.get_job(world.db, job.id), begin + timedelta(seconds=10))
    assert left == pytest.approx(40.0, abs=0.5)
    store.move(world.db, job.id, JobStatus.DONE)
    assert clock.left(store.get_job(world.db, job.id), begin) is None


def test_curves_are_drawn_anew_only_when_the_job_has_told_something() -> None:
    drawn, calls = Drawn(most=2), []

    def draw() -> tuple[str, str]:
        calls.append(1)
        return f"charts {len(calls)}", ""

    assert drawn.get(1, 10, draw) == drawn.get(1, 10, draw) == ("charts 1", "")
    assert drawn.get(1, 11, draw) == ("charts 2", "")
    drawn.get(2, 0, draw)
    drawn.get(3, 0, draw)  # the oldest of three makes room
    assert drawn.get(1, 11, draw) == ("charts 5", "")


def test_a_running_jobs_curves_grow_with_its_events(world: World, context: Context) -> None:
    job = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.RUNNING)
    attempt = store.start_attempt(world.db, job.id)
    watch = Watch()
    assert look(context, watch, job.id).charts == ""
    store.add_metrics(world.db, attempt.id, 1, {"loss": 0.5})
    store.advance(world.db, attempt, 120, 0.0)
    assert "loss" in look(context, watch, job.id).charts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (659, "10 min"), (3600, "1 h"), (7260, "2 h 1 min")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_chart_names_its_axes_curves_and_values() -> None:
    drawn = line_chart(
        "Loss <x>", [Series("loss", [(1, 0.7), (2, 0.35)]), Series("loss, held-out", [(2, 0.5)], dashed=True)]
    )
    assert "Loss &lt;x&gt;" in drawn
    assert ">step<" in drawn
    assert "<title>loss, step 2: 0.35</title>" in drawn
    assert "<title>loss, held-out, step 2: 0.5</title>" in drawn
    assert line_chart("Nothing", [Series("loss", [])]) == ""


@pytest.mark.parametrize(
    "points",
    [[(1, 0.0)], [(5, -3.25)], [(1, 2.0), (2, 2.0)], [(1, -1e-9), (2, 1e9)], [(n, n % 7) for n in range(5000)]],
)
def test_every_point_lies_on_the_paper(points: list[tuple[float, float]]) -> None:
    drawn = line_chart("any", [Series("curve", points)])
    places = re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', drawn)
    assert 0 < len(places) <= 2000
    assert all(0 <= float(x) <= 420 and 0 <= float(y) <= 236 for x, y in places)


def test_ticks_are_round_and_enclose() -> None:
    assert ticks(0.0, 1.0, 5) == (0.0, 0.5, 1.0)
    assert ticks(-0.7, 1.13, 5) == (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
    low, *_, high = ticks(3.0, 3.0, 5)
    assert low < 3.0 < high


def test_thinning_keeps_spikes_and_the_end() -> None:
    points = [(float(n), 9.0 if n == 1234 else 0.0) for n in range(3000)]
    kept = thin(points)
    assert len(kept) < 500
    assert (1234.0, 9.0) in kept
    assert kept[-1] == points[-1]


def test_every_event_of_the_page_has_a_concurrency_limit(context: Context) -> None:
    built = page.build(context)
    events = [fn for fn in built.fns.values() if fn.fn is not None]
    assert events
    assert all(isinstance(fn.concurrency_limit, int) and fn.concurrency_limit > 1 for fn in events)


@pytest.mark.parametrize("asked", ["99999999999999999999", "-1", "x", ""])
def test_an_address_with_no_job_in_it_selects_none(asked: str) -> None:
    assert selected_by({"job": asked}) is None


def test_every_offer_has_its_field(world: World, context: Context) -> None:
    """A choice without a control would break the page's opening: the form of that kind would never appear."""
    offers = job_launch.offers(world.db, context.settings)
    for kind in job_launch.LAUNCHED:
        paths = {control.path for control in job_launch.controls(kind)}
        assert set(offers.choices[kind]) == set(job_launch.DROPDOWNS[kind]) <= paths
        assert set(job_launch.MAIN[kind]) <= paths
        assert kind in job_launch.ABOUT
        assert kind in KIND_NAMES
