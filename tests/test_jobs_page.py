"""The Jobs page: what is listed, what an opened job shows, launching, stopping, curves."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factories import World
from jobs.configs import JudgeConfig
from jobs.judges.estimate import Estimate
from jobs.judges.terms import ModelTerms, Terms, write_terms
from jobs.rubric import load_rubric, save_rubric
from jobs.runs import PAUSE, RunFolder
from storage import jobs as store
from storage.adapters import add_adapter
from storage.checklists import add_checklist
from storage.datasets import freeze_pairs
from storage.errors import UserError
from storage.lifecycle import JobStatus
from storage.pairs import choose_by_hand
from storage.records import Job
from storage.results import results_of, samples_without_result
from storage.scores import add_judgement, ensure_rater
from workbench import job_launch, job_views
from workbench.charts import Series, line_chart, thin, ticks
from workbench.context import Context
from workbench.forms import collect, shown
from workbench.job_desk import (
    Look,
    changed,
    estimated,
    form_values,
    go_on,
    halt,
    look,
    pause,
    resume,
    selected_by,
    start,
)
from workbench.pages import jobs as page
from workbench.progress import Drawn, ProgressClock, Watch


@pytest.fixture
def context(world: World) -> Context:
    return Context(world.settings)


@pytest.fixture
def no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.queue.ensure_supervisor", lambda settings: None)


def advance(world: World, job: Job, *states: JobStatus, reason: str = "") -> Job:
    for state in states:
        store.move(world.db, job.id, state, reason if state is states[-1] else "")
    return store.get_job(world.db, job.id)


def frozen(world: World, name: str = "first") -> int:
    for number in (1, 2, 3, 4):
        one, other = world.candidates(world.sample(number), ["a red circle", "red"])
        choose_by_hand(world.db, "ada", one.id, other.id)
    return freeze_pairs(world.db, "ada", name, ("accepted", "proposed"), heldout_percent=25).id


def raw_of(kind: str, **values: Any) -> list[Any]:
    """What the form's widgets hold, defaults but for these (by path)."""
    return [
        values[control.path] if control.path in values else shown(control, control.default)
        for control in job_launch.controls(kind)
    ]


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
    dataset_id = frozen(world)
    job = store.add_job(world.db, kind="dpo", config={}, user="ada", slot_kind="device", dataset_id=dataset_id)
    add_adapter(world.db, job, "colours", "ab" * 32, 1, "demo", "dpo")
    full = job_launch.offers(world.db, world.settings)
    assert full.hints == {}
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
    assert job_views.duration(seconds) == text


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


# --- judges and their money ---

REMOTE = {"judge": "gemini", "model": "gemini-2.5-flash", "rubric": "plumb-1", "mode": "together", "budget": 2.0}
NOBODY = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY")


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NOBODY:
        monkeypatch.delenv(name, raising=False)


def judging(world: World, **config: Any) -> Job:
    job = advance(world, world.job("judge", **{**REMOTE, **config}), JobStatus.STARTING, JobStatus.RUNNING)
    folder = RunFolder(world.folder.run(job.id))
    folder.path.mkdir(parents=True)
    (folder.path / "job.json").write_text("{}")
    return job


def judge_some(world: World, job: Job, *states: str, cost: float = 0.25) -> list[int]:
    """A sample for each state, judged by the job with it; returns the samples."""
    rater = ensure_rater(world.db, "judge", "gemini-2.5-flash", "plumb-1", "all answers together")
    ids = []
    for number, state in enumerate(states, start=1):
        found = world.candidates(world.sample(number), ["red", "a red circle"])
        values = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 3)
        scores = [{"candidate_id": one.id, **values} for one in found] if state == "ok" else []
        add_judgement(
            world.db,
            rater_id=rater,
            sample_id=found[0].sample_id,
            job_id=job.id,
            state=state,  # type: ignore[arg-type]
            scores=scores,
            cost=cost,
            tokens_in=1000,
            tokens_out=100,
        )
        ids.append(found[0].sample_id)
    return ids


def tell(world: World, job: Job, step: int = 3, **values: float) -> None:
    attempt = store.start_attempt(world.db, job.id)
    store.add_metrics(world.db, attempt.id, step, values)


def test_a_judge_job_at_work_shows_its_money_rate_and_states(world: World, context: Context) -> None:
    job = judging(world, max_requests=500)
    judge_some(world, job, "ok", "ok", "blocked", "unparseable")
    tell(world, job, money=1.25, rate=118.4, requests=7, tokens_in=4100, tokens_out=410)
    found = look(context, Watch(), job.id)
    for words in ("$1.25 of $2.00", ">118<", "7 of 500", "4,100 in, 410 out"):
        assert words in found.figures, words
    assert '<a href="/?state=blocked">1 blocked</a>' in found.results
    assert '<a href="/?state=unparseable">1 unparseable</a>' in found.results
    assert "2 ok" in found.results
    assert "again</a>" not in found.results, "it is still at work"
    assert "Money, $" in found.charts
    assert "Requests a minute" in found.charts
    assert ">samples<" in found.charts
    assert "Tokens so far" in found.more


def test_an_ended_judge_job_tells_its_cost_in_all_and_for_each_answer(world: World, context: Context) -> None:
    job = judging(world)
    judge_some(world, job, "ok", "ok", "blocked", cost=0.4)
    tell(world, job, money=1.3, rate=118.4)
    store.move(world.db, job.id, JobStatus.DONE)
    found = look(context, Watch(), job.id)
    assert "$1.30 of $2.00" in found.figures
    assert re.search(r"For each scored answer</dt><dd>\$0\.3250<", found.figures), "4 answers have scores"
    assert "$0.1000 of it is for requests without a result" in found.figures
    assert "Requests a minute" not in found.figures
    assert f'href="/jobs?kind=judge&amp;rest={job.id}">Judge this one again' in found.results


def test_shares_of_money_keep_two_digits() -> None:
    assert job_views._share(0.000123) == "$0.00012"
    assert job_views._share(0.0) == "$0.00"
    assert job_views._share(3.5) == "$3.50"


def test_a_rule_based_judges_job_speaks_of_no_money(world: World, context: Context) -> None:
    job = judging(world, judge="easy-vqa-rules")
    judge_some(world, job, "ok", "failed", cost=0.0)
    found = look(context, Watch(), job.id)
    assert found.figures == ""
    assert not found.pausable
    assert "Budget" not in found.settings
    assert "easy-vqa-rules" in found.head
    assert "gemini" not in found.head
    store.move(world.db, job.id, JobStatus.DONE)
    assert "again" not in look(context, Watch(), job.id).results, "rules would say the same"


def test_a_checklist_job_tells_what_it_wrote(world: World, context: Context) -> None:
    job = advance(
        world,
        world.job("checklist", judge="gemini", model="gemini-2.5-flash", items=6, budget=1.0),
        JobStatus.STARTING,
        JobStatus.RUNNING,
        JobStatus.DONE,
    )
    states = ("ok", "ok", "truncated")
    ids = [world.sample(number) for number in range(1, 4)]
    for sample_id, state in zip(ids, states, strict=True):
        add_checklist(
            world.db,
            sample_id=sample_id,
            job_id=job.id,
            model="gemini-2.5-flash",
            instructions="1",
            state=state,  # type: ignore[arg-type]
            cost=0.01,
        )
    found = look(context, Watch(), job.id)
    assert "at most 6 items a sample, by gemini-2.5-flash" in found.head
    assert "<b>3</b> checklists: 2 ok, 1 truncated" in found.results
    assert "Write this one again" in found.results
    assert "For each checklist" in found.figures
    assert samples_without_result(world.db, job.id) == {ids[2]: "truncated"}


@pytest.mark.usefixtures("no_supervisor")
def test_buttons_stand_only_where_they_do_something(world: World, context: Context) -> None:
    def offered(job: Job) -> set[str]:
        found = look(context, Watch(), job.id)
        return {name for name in ("pausable", "paused", "resumable") if getattr(found, name)}

    training = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.RUNNING)
    assert offered(training) == set()
    assert "cannot pause" in pause(context, training.id)
    job = judging(world)
    assert offered(job) == {"pausable"}
    assert pause(context, job.id) == ""
    assert RunFolder(context.folder.run(job.id)).asked() == PAUSE
    assert offered(job) == {"paused"}
    assert go_on(context, job.id) == ""
    assert offered(job) == {"pausable"}
    store.move(world.db, job.id, JobStatus.STOPPED, "stopped by request")
    assert offered(job) == {"resumable"}
    assert resume(context, job.id) == ""
    assert store.get_job(world.db, job.id).status is JobStatus.QUEUED
    assert offered(job) == set()
    assert "Choose a job" in go_on(context, None)
    store.move(world.db, training.id, JobStatus.FAILED, "no memory")
    assert offered(training) == set(), "training begins anew"


def test_a_wait_tells_its_reason_and_promises_no_time(world: World, context: Context) -> None:
    world.job("judge", **REMOTE)
    job = store.claim_next(world.db, "device", "cpu")
    assert job is not None
    store.move(world.db, job.id, JobStatus.RUNNING)
    store.set_progress(world.db, job.id, done=20.0, total=100.0, unit="samples")
    clock, begin = ProgressClock(), datetime.now(UTC) + timedelta(minutes=1)
    assert clock.left(store.get_job(world.db, job.id), begin) is not None
    phase = "waiting for the day's quota until 08:00 UTC: 10,000 of 10,000 requests"
    store.set_progress(world.db, job.id, phase=phase)
    assert clock.left(store.get_job(world.db, job.id), begin) is None
    found = look(context, Watch(), job.id)
    assert "waiting for the day&#x27;s quota until 08:00 UTC" in found.head
    assert "Requests a minute" not in found.figures
    store.set_progress(world.db, job.id, phase="judging")
    later = begin + timedelta(hours=9)
    assert clock.left(store.get_job(world.db, job.id), later) is None, "the night does not count"
    store.set_progress(world.db, job.id, done=30.0)
    left = clock.left(store.get_job(world.db, job.id), later + timedelta(seconds=10))
    assert left == pytest.approx(70.0)


def test_a_resumed_jobs_time_left_is_not_reckoned_by_what_it_had_done(world: World) -> None:
    world.job("judge", **REMOTE)
    job = store.claim_next(world.db, "device", "cpu")
    assert job is not None
    store.set_progress(world.db, job.id, done=90.0, total=100.0, unit="samples")
    clock, begin = ProgressClock(), datetime.now(UTC) + timedelta(seconds=2)
    assert clock.left(store.get_job(world.db, job.id), begin) is None
    store.move(world.db, job.id, JobStatus.RUNNING)
    assert clock.left(store.get_job(world.db, job.id), begin) is None, "90 samples did not take two seconds"
    unwatched = ProgressClock().left(store.get_job(world.db, job.id), begin)
    assert unwatched is not None, "nobody has seen that it was resumed"


def test_the_rest_of_a_job_is_its_own_samples_with_its_settings(world: World, context: Context) -> None:
    job = judging(world, samples={"limit": 3, "only_missing": False, "ids": None}, temperature=0.5)
    ids = judge_some(world, job, "ok", "blocked", "failed")
    world.candidates(world.sample(9), ["never judged"])
    kind, values = form_values(context, {"rest": str(job.id)})
    assert kind == "judge"
    assert values["judge"]["samples.ids"] == (ids[1], ids[2])
    assert values["judge"]["samples.limit"] is None
    assert values["judge"]["samples.only_missing"] is True
    assert values["judge"]["ask_blocked"] is True
    assert values["judge"]["temperature"] == 0.5
    assert values["judge"]["model"] == "gemini-2.5-flash"
    assert form_values(context, {"kind": "dpo", "rest": "77"})[0] == "dpo", "an old link"
    assert form_values(context, {"kind": "nonsense"})[0] == "generate"
    whole = judging(world, samples={"limit": 3, "only_missing": True, "ids": None})
    rest = job_launch.rest_values(world.db, whole)
    assert rest["samples.limit"] == 3, "where nothing went wrong, no ids would mean all samples"


@pytest.mark.usefixtures("no_key")
def test_judges_models_and_rubrics_are_offered(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.folder.judges
    save_rubric(folder, load_rubric("plumb-1", folder).model_copy(update={"version": "ours"}))
    row = {"input_price": 1, "output_price": 1, "requests_a_minute": 1, "tokens_a_minute": 1, "requests_a_day": 1}
    models = tuple(ModelTerms(model=name, **row) for name in ("qwen*", "gemini-9"))
    write_terms(folder, Terms(models=models))
    choices = job_launch.offers(world.db, world.settings).choices
    assert [value for _, value in choices["judge"]["rubric"]] == ["plumb-1", "ours"]
    assert [value for _, value in choices["judge"]["model"]] == ["gemini-9"], "a row with * names no model"
    assert [value for _, value in choices["judge"]["judge"]] == ["easy-vqa-rules", "gemini", "openai"]
    assert [value for _, value in choices["checklist"]["judge"]] == ["gemini", "openai"]
    assert ("Gemini (not set up)", "gemini") in choices["checklist"]["judge"]
    assert "GEMINI_API_KEY" in job_launch.key_hint("gemini", world.settings)
    assert "PLUMB_OPENAI_URL" in job_launch.key_hint("openai", world.settings)
    assert job_launch.key_hint("easy-vqa-rules", world.settings) == ""
    monkeypatch.setenv("GOOGLE_API_KEY", "sk-not-to-be-seen")
    assert job_launch.key_hint("gemini", world.settings) == ""
    assert ("Gemini", "gemini") in job_launch.offers(world.db, world.settings).choices["judge"]["judge"]
    (folder / "terms.json").write_text("{")
    assert job_launch.offers(world.db, world.settings).choices["judge"]["model"] == []


def test_fields_of_remote_judges_are_known() -> None:
    paths = job_launch.remote_fields("judge")
    assert {"model", "budget", "rubric", "concurrency", "ask_blocked"} <= set(paths)
    assert not {"judge", "samples.ids", "samples.limit"} & set(paths)
    assert job_launch.remote_fields("checklist") == []
    fields = set(JudgeConfig.model_fields)
    assert fields - job_launch.REMOTE_ONLY == {"judge", "samples"}, "a new field must be put on one side"


@pytest.mark.usefixtures("no_key")
def test_an_estimate_says_what_it_costs_or_why_it_cannot_be(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.candidates(world.sample(), ["red", "blue"])

    def ask(**values: Any) -> str:
        return estimated(context, "judge", job_launch.controls("judge"), raw_of("judge", **values))

    assert "costs nothing" in ask()
    assert "Budget" not in ask()
    assert "GEMINI_API_KEY" in ask(judge="gemini")
    assert 'role="alert"' in ask(judge="gemini")
    assert "budget = " in ask(judge="gemini", budget=None)
    assert "samples.ids" in ask(**{"samples.ids": "one"})
    monkeypatch.setenv("GEMINI_API_KEY", "sk-not-to-be-seen")
    found = ask(judge="gemini", budget=0.75)
    assert "$0.75" in found
    assert "Requests</dt><dd>1<" in found
    assert "sk-not" not in found


def test_an_estimate_is_shown_with_its_notes() -> None:
    found = job_views.estimate(
        Estimate(1200, 4800, 3_000_000, 900_000, 3.15, 99.0, 480.0, ("Over <2> days.",)), 5.0
    )
    for words in ("1,200", "4,800", "3,000,000 in, 900,000 out", "about $3.15", "$99.00", "$5.00", "about 8 min"):
        assert words in found, words
    assert "Over &lt;2&gt; days." in found


def test_every_offer_has_its_field(world: World, context: Context) -> None:
    """A choice without a control would break the page's opening: the form of that kind would never appear."""
    offers = job_launch.offers(world.db, context.settings)
    for kind in job_launch.LAUNCHED:
        paths = {control.path for control in job_launch.controls(kind)}
        assert set(offers.choices[kind]) == set(job_launch.DROPDOWNS[kind]) <= paths
        assert set(job_launch.MAIN[kind]) <= paths
        assert kind in job_launch.ABOUT
        assert kind in job_views.KIND_NAMES
