"""Looking back at a job: its attempts with causes, signals and how far they came, and the page."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from factories import World
from job_pages import advance
from jobs.causes import Cause
from jobs.runs import RunFolder
from storage import jobs as store
from storage.lifecycle import JobStatus
from storage.records import Attempt, Job
from workbench.context import Context
from workbench.job_history import (
    CAUSES,
    attempts_table,
    downloads,
    exit_words,
    found_view,
    log_view,
    reached,
    tries,
)
from workbench.job_logs import Found, Match, Part, Place
from workbench.job_look import look
from workbench.progress import Watch

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def run_of(world: World, job: Job) -> RunFolder:
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir(parents=True, exist_ok=True)
    return run


def attempted(
    world: World, job: Job, *events: dict[str, object], log: str = "", cause: str = "", code: int | None = None
) -> Attempt:
    """An ended attempt that wrote these events and this log."""
    run = run_of(world, job)
    attempt = store.start_attempt(world.db, job.id, log_begin=run.log_size())
    with run.events.open("a") as file, run.log.open("a") as out:
        file.writelines(json.dumps(event) + "\n" for event in events)
        out.write(log)
    store.advance(world.db, attempt, run.events.stat().st_size, 1.0)
    store.end_attempt(world.db, attempt.id, "failed", "It <broke>.", cause, exit_code=code, log_end=run.log_size())
    return store.get_attempt(world.db, attempt.id)


def progress(done: float, total: float = 100.0) -> dict[str, object]:
    return {"kind": "progress", "time": 1.0, "done": done, "total": total, "unit": "steps"}


def test_each_cause_has_words() -> None:
    assert set(CAUSES) == set(Cause)


def test_how_far_each_attempt_came_is_its_own_last_progress(world: World) -> None:
    job = world.job("dpo")
    beat = {"kind": "heartbeat", "time": 2.0}
    attempted(world, job, progress(10), progress(40), beat)
    attempted(world, job, beat)
    attempted(world, job, progress(40), *[beat] * 500, progress(65.5), {"kind": "note", "text": '"progress"'})
    run = run_of(world, job)
    found = reached(run, store.attempts_of(world.db, job.id))
    assert found == {1: "40 of 100 steps", 2: "", 3: "65.5 of 100 steps"}
    run.events.unlink()
    assert set(reached(run, store.attempts_of(world.db, job.id)).values()) == {""}


def test_an_exit_is_a_code_or_the_name_of_a_signal() -> None:
    assert [exit_words(code) for code in (0, 3, -9, -15, None)] == ["0", "3", "SIGKILL", "SIGTERM", ""]
    assert exit_words(-250) == "signal 250"


def test_attempts_stand_newest_first_with_all_that_is_known(world: World) -> None:
    job = world.job("dpo")
    assert "not been started" in attempts_table([], {}, None, NOW)
    attempted(world, job, progress(10), cause="kernel", code=-9)
    store.start_attempt(world.db, job.id)
    table = attempts_table(store.attempts_of(world.db, job.id), {1: "10 of 100 steps"}, 1, NOW)
    numbers = re.findall(r"<th scope=row>(\d)</th>", table)
    assert numbers == ["2", "1"]
    assert "at work" in table
    assert "ended by the kernel for memory" in table
    assert "SIGKILL" in table
    assert "10 of 100 steps" in table
    assert "It &lt;broke&gt;." in table
    assert re.search(r'data-attempt="1" aria-pressed="true"', table)
    assert re.search(r'data-attempt="2" aria-pressed="false"', table)


def test_a_job_that_is_tried_again_says_after_what_and_when_it_gives_up(world: World) -> None:
    job = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.RUNNING)
    assert tries(job, [], 0) == ""
    first = attempted(world, job, cause="killed", code=-15)
    second = store.start_attempt(world.db, job.id)
    told = tries(job, [first, second], 1)
    assert "Attempt 2; tried again after: killed by a signal (SIGTERM). 1 in a row came no further" in told
    assert "gives up after 5 such attempts" in told
    network = attempted(world, job, cause="network", code=1)
    assert "after: the network (1), It &lt;broke&gt;" in tries(job, [network, second], 0)
    assert "gives up" not in tries(job, [network, second], 0)
    queued = world.job("dpo")
    assert "Attempt 2;" in tries(queued, [first], 0), "the next one"
    ended = advance(world, job, JobStatus.FAILED)
    assert tries(ended, [first], 1) == "", "its reason says it all"
    assert "2 attempts." in tries(ended, [first, network], 2)


def test_an_opened_job_shows_the_log_of_the_attempt_that_was_chosen(world: World, context: Context) -> None:
    job = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.RUNNING, JobStatus.FAILED)
    attempted(world, job, progress(10), log="first attempt\n", cause="killed", code=-9)
    attempted(world, job, progress(20), log="second attempt\n", cause="bug", code=1)
    watch = Watch()
    newest = look(context, watch, job.id)
    assert newest.attempt_count == 2
    assert "first attempt\nsecond attempt" in newest.log
    assert "10 of 100 steps" in newest.attempts
    chosen = look(context, watch, job.id, part=1)
    assert "first attempt" in chosen.log
    assert "second attempt" not in chosen.log
    assert 'data-attempt="0"' in chosen.log
    assert f"/api/jobs/{job.id}/log?attempt=1" in chosen.downloads
    assert "first attempt\nsecond" in look(context, watch, job.id, part=7).log, "one that is not there"


def test_the_log_says_which_part_of_it_stands_there() -> None:
    found = log_view(Part("<x>", 5_000_000, True), JobStatus.FAILED, ("A note.",), 2)
    assert "Attempt 2: the last lines of 5.0 MB" in found
    assert "&lt;x&gt;" in found
    assert "<li>A note.</li>" in found
    assert "wrote nothing" in log_view(Part("", 0, False), JobStatus.FAILED, (), 2)


def test_downloads_stand_there_for_what_is_there(world: World) -> None:
    job = world.job()
    assert downloads(job, 0, False) == ""
    assert downloads(job, 0, True).count("<a ") == 1
    assert "(2.5 GB)" in downloads(job, 2_500_000_000, True)


def test_found_lines_are_numbered_marked_and_escaped() -> None:
    match = Match(1_200, ("before <b>",), "a <NaN> b", ("after",))
    shown = found_view(Found((match,), 10_000_000, Place(4_000_000, 99)), "<nan>", 50)
    assert "51 lines with “&lt;nan&gt;”; 4.0 MB of 10 MB searched so far" in shown
    assert 'data-line="1,199">before &lt;b&gt;' in shown
    assert 'data-line="1,200"><b>a <mark>&lt;NaN&gt;</mark> b</b>' in shown
    assert 'data-line="1,201">after' in shown
    assert "0 lines with “x”; all of 3 bytes searched" in found_view(Found((), 3, None), "x", 0)
    assert found_view(Found((), 3, None), "", 0) == ""
