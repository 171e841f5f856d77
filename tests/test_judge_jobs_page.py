"""Judge and checklist jobs on the Jobs page: estimate, money, states, pause and resume."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factories import World
from job_pages import advance, raw_of
from jobs.configs import JudgeConfig
from jobs.judges.estimate import Estimate
from jobs.judges.terms import ModelTerms, Terms, write_terms
from jobs.rubric import load_rubric, save_rubric
from jobs.runs import PAUSE, RunFolder
from storage import jobs as store
from storage.checklists import add_checklist
from storage.lifecycle import JobStatus
from storage.records import Job
from storage.results import samples_without_result
from storage.scores import add_judgement, ensure_rater
from workbench import job_launch, job_views
from workbench.context import Context
from workbench.job_acts import go_on, pause, resume
from workbench.job_desk import estimated, form_values
from workbench.job_look import look
from workbench.progress import ProgressClock, Watch

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

    chat = advance(world, world.job("serve"), JobStatus.STARTING, JobStatus.RUNNING)
    training = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.RUNNING)
    assert offered(chat) == offered(training) == set()
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
    store.move(world.db, chat.id, JobStatus.FAILED, "no memory")
    assert offered(chat) == set(), "a chat begins anew"
    store.move(world.db, training.id, JobStatus.FAILED, "no memory")
    assert offered(training) == {"resumable"}, "from its newest checkpoint"


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
