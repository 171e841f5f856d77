"""What is asked of queued jobs and of the queue: stop, resume, run again, come after another, hold, retries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factories import USER, World
from jobs import queue, steering, sweeps
from jobs.configs import parse_config
from jobs.queue import Order
from jobs.runs import RunFolder
from storage import jobs as store
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.jobs import LONGEST_PAUSE
from storage.lifecycle import JobStatus
from storage.queue_order import leaders_of, set_leader
from storage.records import Job
from workbench.chat_client import Waiting, look_at
from workbench.context import Context

pytestmark = pytest.mark.usefixtures("no_supervisor")


def now(world: World, job: Job) -> Job:
    return store.get_job(world.db, job.id)


def ended(world: World, job: Job, status: JobStatus) -> Job:
    """The job, started and ended so."""
    world.db.conn.execute("UPDATE jobs SET status = ? WHERE id = ?", [status, job.id])
    store.start_attempt(world.db, job.id)
    return now(world, job)


def with_folder(world: World, kind: str = "generate") -> Job:
    job = world.job(kind)
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir()
    (run.path / "job.json").write_text("{}")
    return job


def claim(world: World) -> int | None:
    job = store.claim_next(world.db, "device", "cpu")
    return job.id if job else None


# a job after another ------------------------------------------------------------------------------------------


def test_a_job_waits_until_the_one_before_it_is_done(world: World) -> None:
    first, second, third = (world.job() for _ in range(3))
    steering.follow(world.db, first.id, second.id)
    assert steering.waits_for(world.db, now(world, first)) == f"after job {second.id}"
    assert claim(world) == second.id
    assert claim(world) == third.id, "it keeps nothing for itself while it waits"
    assert claim(world) is None
    store.move(world.db, second.id, JobStatus.DONE)
    assert steering.waits_for(world.db, now(world, first)) == ""
    assert claim(world) == first.id


def test_it_can_be_let_go(world: World) -> None:
    first, second = world.job(), world.job()
    assert steering.follow(world.db, first.id, second.id).after_id == second.id
    assert steering.follow(world.db, first.id, None).after_id is None
    assert claim(world) == first.id


@pytest.mark.parametrize(("status", "words"), [(JobStatus.FAILED, "failed"), (JobStatus.STOPPED, "was stopped")])
def test_what_comes_after_a_job_that_is_not_done_fails_with_it(
    world: World, status: JobStatus, words: str
) -> None:
    first, second, third, other = (world.job() for _ in range(4))
    steering.follow(world.db, second.id, first.id)
    steering.follow(world.db, third.id, second.id)
    assert steering.fail_orphans(world.db) == []
    world.db.conn.execute("UPDATE jobs SET status = ? WHERE id = ?", [status, first.id])
    assert steering.fail_orphans(world.db) == [second.id, third.id]
    assert now(world, second).reason == f"Job {first.id} (generate), after which it was to start, {words}."
    assert f"Job {second.id} (generate), after which it was to start, failed" in now(world, third).reason
    assert now(world, other).status is JobStatus.QUEUED
    assert steering.fail_orphans(world.db) == []


@pytest.mark.parametrize("status", [JobStatus.STARTING, JobStatus.PAUSED, JobStatus.STOPPING, JobStatus.DONE])
def test_what_may_still_be_done_takes_nothing_with_it(world: World, status: JobStatus) -> None:
    first, second = world.job(), world.job()
    steering.follow(world.db, second.id, first.id)
    world.db.conn.execute("UPDATE jobs SET status = ? WHERE id = ?", [status, first.id])
    assert steering.fail_orphans(world.db) == []


def test_a_job_that_was_deleted_takes_with_it_what_waits_for_it_unless_it_was_done(world: World) -> None:
    lost, done, first, second = (world.job() for _ in range(4))
    steering.follow(world.db, first.id, lost.id)
    steering.follow(world.db, second.id, done.id)
    world.db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [done.id])
    world.db.conn.execute("UPDATE jobs SET deleted_at = '2026-01-01' WHERE id IN (?, ?)", [lost.id, done.id])
    assert steering.fail_orphans(world.db) == [first.id]
    assert now(world, first).reason.endswith("was deleted.")


def test_a_retried_leader_brings_nothing_back_but_resuming_does(world: World) -> None:
    first, second = with_folder(world), with_folder(world, "merge")
    steering.follow(world.db, second.id, first.id)
    ended(world, first, JobStatus.FAILED)
    steering.fail_orphans(world.db)
    with pytest.raises(Conflict, match=f"comes after job {first.id}, which failed; resume that one first"):
        steering.resume(world.db, world.settings, second.id)
    steering.resume(world.db, world.settings, first.id)
    assert now(world, second).status is JobStatus.FAILED
    resumed = steering.resume(world.db, world.settings, second.id)  # of a kind that begins anew: it has not begun
    assert (resumed.status, resumed.reason, resumed.after_id) == (JobStatus.QUEUED, "", first.id)
    assert claim(world) == first.id
    assert claim(world) is None


def test_a_failed_job_can_be_let_go_and_resumed(world: World) -> None:
    first, second = with_folder(world), with_folder(world)
    steering.follow(world.db, second.id, first.id)
    ended(world, first, JobStatus.STOPPED)
    steering.fail_orphans(world.db)
    steering.follow(world.db, second.id, None)
    assert steering.resume(world.db, world.settings, second.id).status is JobStatus.QUEUED


def test_nothing_waits_for_itself_by_whatever_way(world: World) -> None:
    a, b, c, d = (world.job() for _ in range(4))
    with pytest.raises(Conflict, match=f"Job {a.id} cannot come after itself"):
        steering.follow(world.db, a.id, a.id)
    steering.follow(world.db, b.id, a.id)
    steering.follow(world.db, c.id, b.id)
    steering.follow(world.db, d.id, c.id)
    told = f"Job {a.id} cannot come after job {c.id}, which comes after job {b.id}, which comes after job {a.id}: "
    with pytest.raises(Conflict, match=told + "they would wait"):
        steering.follow(world.db, a.id, c.id)
    assert now(world, a).after_id is None
    ended(world, b, JobStatus.FAILED)
    with pytest.raises(Conflict, match="would wait for each other"):  # a failed one may be resumed
        steering.follow(world.db, a.id, d.id)
    world.db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [b.id])
    assert steering.follow(world.db, a.id, d.id).after_id == d.id, "what is done waits for nothing"


def test_a_ring_in_the_database_is_not_walked_for_ever(world: World) -> None:
    a, b, c = (world.job() for _ in range(3))
    set_leader(world.db, a.id, b.id)
    set_leader(world.db, b.id, a.id)
    assert steering.follow(world.db, c.id, a.id).after_id == a.id
    assert [job.id for job in leaders_of(world.db, now(world, c))] == [a.id, b.id]


def test_what_cannot_be_followed_is_told(world: World) -> None:
    first, second = world.job(), world.job()
    with pytest.raises(NotFound, match="no job 99"):
        steering.follow(world.db, first.id, 99)
    with pytest.raises(NotFound, match="no job 99"):
        steering.follow(world.db, 99, first.id)
    ended(world, second, JobStatus.STOPPED)
    with pytest.raises(
        Conflict, match=rf"Job {second.id} \(generate\) was stopped, so that nothing can come after"
    ):
        steering.follow(world.db, first.id, second.id)
    third = world.job()
    claim(world)
    with pytest.raises(Conflict, match=f"Job {first.id} is starting; it has started and cannot wait"):
        steering.follow(world.db, first.id, third.id)


# held ---------------------------------------------------------------------------------------------------------


def test_a_held_queue_starts_nothing_and_says_who_holds_it(world: World, context: Context) -> None:
    job, chat = world.job(), world.job("serve")
    assert steering.held_by(world.db) is None
    held = steering.hold_queue(world.db, USER)
    assert held.user == USER
    assert datetime.fromisoformat(held.since) <= datetime.now(UTC)
    assert steering.hold_queue(world.db, "bo") == held, "who held it first is named"
    assert steering.held_by(world.db) == held
    assert claim(world) is None
    assert not store.is_due(world.db, job), "no chat model is asked to leave for it"
    assert steering.waits_for(world.db, job) == f"the queue is held by {USER}"
    waiting = look_at(context, chat.id)
    assert isinstance(waiting, Waiting)
    assert waiting.text == f"The model is number 2 in the queue, and waits: the queue is held by {USER}."
    steering.release_queue(world.db, world.settings)
    assert steering.held_by(world.db) is None
    assert steering.waits_for(world.db, job) == ""
    assert claim(world) == job.id
    steering.release_queue(world.db, world.settings)  # harmless


def test_a_supervisor_is_seen_to_when_the_queue_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(steering, "ensure_supervisor", started.append)
    steering.release_queue(world.db, world.settings)
    assert started == [], "nothing is queued"
    world.job()
    steering.release_queue(world.db, world.settings)
    assert started == [world.settings]


# rest and retries ---------------------------------------------------------------------------------------------


def resting(world: World, seconds: float) -> Job:
    """A queued job that is to be tried again in so many seconds."""
    job = ended(world, with_folder(world), JobStatus.FAILED)
    return store.requeue(world.db, job.id, datetime.now(UTC) + timedelta(seconds=seconds))


def test_a_job_rests_before_it_is_tried_again(world: World) -> None:
    job = resting(world, 300)
    until = datetime.fromisoformat(str(job.not_before))
    assert steering.waits_for(world.db, job) == f"tries again at {until:%H:%M} UTC"
    assert claim(world) is None
    assert store.is_due(world.db, job, (until + timedelta(seconds=1)).isoformat())
    assert not store.is_due(world.db, job, (until - timedelta(seconds=1)).isoformat())


def test_a_clock_that_was_set_back_keeps_no_job_waiting(world: World) -> None:
    job = resting(world, 600)
    until = datetime.fromisoformat(str(job.not_before))
    assert store.is_due(world.db, job, (until - timedelta(hours=1)).isoformat())
    assert not store.is_due(world.db, job, (until - LONGEST_PAUSE).isoformat())


def test_resuming_ends_a_rest(world: World) -> None:
    job = resting(world, 300)
    assert steering.resume(world.db, world.settings, job.id).not_before is None
    assert claim(world) == job.id
    with pytest.raises(Conflict, match="is starting; only one that failed, was stopped or is paused"):
        steering.resume(world.db, world.settings, job.id)


def test_all_that_keeps_a_job_waiting_is_told(world: World) -> None:
    job, leader = resting(world, 300), world.job()
    steering.follow(world.db, job.id, leader.id)
    steering.hold_queue(world.db, USER)
    told = steering.waits_for(world.db, now(world, job)).split("; ")
    assert told[0] == f"after job {leader.id}"
    assert told[1].startswith("tries again at")
    assert told[2] == f"the queue is held by {USER}"
    claim(world)
    world.db.conn.execute("UPDATE jobs SET status = 'running' WHERE id = ?", [job.id])
    assert steering.waits_for(world.db, now(world, job)) == ""


@pytest.mark.parametrize("retries", [-1, 101, 2.0, True, "3"])
def test_retries_out_of_bounds_are_refused(world: World, retries: Any) -> None:
    job = world.job()
    with pytest.raises(UserError, match=r"retries = .*: give a whole number from 0 \(never tried again\) to 100"):
        steering.set_retries(world.db, job.id, retries)
    assert now(world, job).retries == 4


def test_retries_are_set_until_a_job_is_done(world: World) -> None:
    job = world.job()
    assert steering.set_retries(world.db, job.id, 0).retries == 0
    ended(world, job, JobStatus.FAILED)
    assert steering.set_retries(world.db, job.id, 100).retries == 100
    ended(world, job, JobStatus.DONE)
    with pytest.raises(Conflict, match="is done"):
        steering.set_retries(world.db, job.id, 1)
    with pytest.raises(NotFound):
        steering.set_retries(world.db, 99, 1)


def test_only_attempts_that_failed_since_one_came_further_are_fruitless(world: World) -> None:
    job = world.job()
    for outcome, advanced in [
        ("failed", False),
        ("failed", True),
        ("failed", False),
        ("stopped", False),
        ("paused", False),
        ("failed", False),
    ]:
        attempt = store.start_attempt(world.db, job.id)
        if advanced:
            store.mark_advanced(world.db, attempt.id)
        store.end_attempt(world.db, attempt.id, outcome, "")
    store.start_attempt(world.db, job.id)  # at work
    assert store.fruitless_attempts(world.db, job.id) == 2


# stop and resume ----------------------------------------------------------------------------------------------


def test_a_job_without_a_worker_stops_at_once(world: World) -> None:
    fresh, rests, paused = world.job(), resting(world, 300), world.job()
    ended(world, paused, JobStatus.PAUSED)
    told = []
    for job in (fresh, rests, paused):
        stopped = steering.stop(world.db, world.settings, job.id)
        assert stopped.status is JobStatus.STOPPED
        told.append(stopped.reason)
    assert told == ["stopped before it started", "stopped while it waited to go on", "stopped while it was paused"]


def test_a_paused_job_counts_as_open_and_can_be_resumed_whatever_its_kind(world: World) -> None:
    job = ended(world, with_folder(world, "merge"), JobStatus.PAUSED)
    assert store.count_open(world.db) == 1
    assert steering.resume(world.db, world.settings, job.id).status is JobStatus.QUEUED
    ended(world, job, JobStatus.FAILED)
    assert store.count_open(world.db) == 0
    with pytest.raises(Conflict, match="cannot go on where it ended"):
        steering.resume(world.db, world.settings, job.id)


def test_what_lies_in_the_bin_is_not_resumed(world: World) -> None:
    job = ended(world, with_folder(world), JobStatus.STOPPED)
    world.db.conn.execute("UPDATE jobs SET deleted_at = '2026-01-01' WHERE id = ?", [job.id])
    with pytest.raises(Conflict, match="was deleted; restore it first"):
        steering.resume(world.db, world.settings, job.id)


# submitting ---------------------------------------------------------------------------------------------------


def submit(world: World, order: Order, **values: Any) -> Job:
    return queue.submit(world.db, world.settings, "generate", values, USER, order)


def test_a_job_is_submitted_with_its_order(world: World) -> None:
    world.sample()
    first = submit(world, Order())
    second = submit(world, Order(priority=1, after=first.id, retries=0))
    assert (first.priority, first.after_id, first.retries) == (0, None, 4)
    assert (second.priority, second.after_id, second.retries) == (1, first.id, 0)
    assert store.queue_position(world.db, second) == 1


@pytest.mark.parametrize(
    ("order", "error", "text"),
    [
        (Order(priority=3), UserError, "priority = 3"),
        (Order(retries=-1), UserError, "retries = -1"),
        (Order(after=99), NotFound, "no job 99"),
        (Order(after=2**70), NotFound, "no job"),
        (Order(after=1), Conflict, "failed, so that nothing can come after it"),
    ],
)
def test_an_order_that_cannot_be_is_refused_and_leaves_nothing(
    world: World, order: Order, error: type[PlumbError], text: str
) -> None:
    world.sample()
    ended(world, world.job(), JobStatus.FAILED)
    with pytest.raises(error, match=text):
        submit(world, order)
    with pytest.raises(error, match=text):
        sweeps.submit_sweep(world.db, world.settings, "dpo", {}, {"beta": [0.1]}, USER, order)
    prepared = queue.prepare(world.db, world.settings, parse_config("generate", {}))
    with pytest.raises(error, match=text):
        queue.enqueue(world.db, world.settings, prepared, USER, order)
    assert len(store.list_jobs(world.db)) == 1
    assert list(world.folder.runs.iterdir()) == []


def test_run_again_takes_the_settings_and_packs_anew(world: World) -> None:
    one = world.sample(1)
    old = submit(world, Order(priority=-1, retries=2), candidates=2)
    steering.stop(world.db, world.settings, old.id)
    two = world.sample(2)
    new = steering.run_again(world.db, world.settings, old.id, "bo")
    assert (new.kind, new.config, new.user, new.status) == (old.kind, old.config, "bo", JobStatus.QUEUED)
    assert (new.priority, new.retries, new.after_id) == (-1, 2, None)
    rows = RunFolder(world.folder.run(new.id)).rows()
    assert [row["sample_id"] for row in rows] == [one, two]
    with pytest.raises(NotFound, match="no job 99"):
        steering.run_again(world.db, world.settings, 99, USER)
