"""What can be asked of a job once it is queued, and of the queue: what pages and commands share.

The queue's order: a higher priority first, among equals by place, which is the order of submitting until somebody
moves a job. Device and network jobs wait for different slots, so that each kind is a line of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sqlite_utils import Database

from jobs import crowding
from jobs.as_trained import adapters_of
from jobs.configs import KINDS, ContestConfig, parse_config
from jobs.judges import rules
from jobs.queue import PRIORITIES, Order, check_leader, check_priority, check_retries, submit
from jobs.runs import PAUSE, RunFolder
from jobs.settings import Settings
from jobs.standby import ensure_supervisor
from storage import jobs as store
from storage import queue_order
from storage.adapters import get_adapter
from storage.contests import contest_of_job
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.lifecycle import ACTIVE, ENDED, JobStatus
from storage.records import Job, now
from storage.settings import get_setting, put_setting

RESUMABLE = frozenset(kind for kind, config in KINDS.items() if config.resumable)
PAUSABLE = frozenset(kind for kind, config in KINDS.items() if config.pausable)

Where = Literal["first", "up", "down", "last"]
Priority = Literal[-1, 0, 1]


@dataclass(frozen=True)
class Held:
    """Who holds the queue, and since when (UTC, ISO 8601)."""

    user: str
    since: str


def stop(db: Database, settings: Settings, job_id: int) -> Job:
    """Ask a job to stop; one that has no worker, queued or paused by a full disk, ends at once.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended already.
    """
    with immediate(db):
        job = store.get_job(db, job_id)
        if job.status in ENDED:
            raise Conflict(f"Job {job_id} has ended already ({job.status}).")
        if job.status not in ACTIVE:
            paused = job.status is JobStatus.PAUSED
            waited = "was paused" if paused else "waited to go on" if store.attempts_of(db, job_id) else ""
            reason = f"stopped while it {waited}" if waited else "stopped before it started"
            store.move(db, job_id, JobStatus.STOPPED, reason)
        else:
            if job.status is not JobStatus.STOPPING:
                store.move(db, job_id, JobStatus.STOPPING, "asked to stop")
            RunFolder(settings.folder.run(job_id)).ask_to_stop()
    if job.status in ACTIVE:
        ensure_supervisor(settings)
    return store.get_job(db, job_id)


def pause(db: Database, settings: Settings, job_id: int) -> Job:
    """Have a judge or checklist job ask nothing more until `go_on`; replies on their way are kept.

    Raises:
        NotFound: there is no such job.
        Conflict: it is not at work, or of a kind that cannot pause.
    """
    with immediate(db):  # a stop that is asked for meanwhile comes after, and wins
        job = store.get_job(db, job_id)
        if job.kind not in PAUSABLE or job.config.get("judge") == rules.NAME:
            raise Conflict(f"Job {job_id} ({job.kind}) cannot pause; stop it instead.")
        if job.status not in (JobStatus.STARTING, JobStatus.RUNNING):
            raise Conflict(f"Job {job_id} is {job.status}; only a job at work can pause.")
        RunFolder(settings.folder.run(job_id)).ask_to_pause()
    return job


def go_on(db: Database, settings: Settings, job_id: int) -> Job:
    """End a pause; harmless where there is none.

    Raises:
        NotFound: there is no such job.
        Conflict: it has been asked to stop, or has ended.
    """
    with immediate(db):
        job = store.get_job(db, job_id)
        if job.status not in (JobStatus.STARTING, JobStatus.RUNNING):
            raise Conflict(f"Job {job_id} is {job.status}; there is no pause to end.")
        if is_paused(settings, job_id):
            RunFolder(settings.folder.run(job_id)).ask_nothing()
    return job


def is_paused(settings: Settings, job_id: int) -> bool:
    return RunFolder(settings.folder.run(job_id)).asked() == PAUSE


def resume(db: Database, settings: Settings, job_id: int) -> Job:
    """Queue a stopped, failed or paused job again; it goes on after what its run folder already holds.

    A queued one that rests before a new try is tried as soon as it can.

    Raises:
        NotFound: there is no such job.
        Conflict: it is at work or done, of a kind that begins anew each time, or what it needs is gone.
    """
    with immediate(db):
        job = store.get_job(db, job_id)
        if job.status is JobStatus.QUEUED and job.not_before is not None:
            job = queue_order.end_rest(db, job_id)
        else:
            _refuse_to_resume(db, settings, job)
            job = store.requeue(db, job_id)
            RunFolder(settings.folder.run(job_id)).ask_nothing()
    ensure_supervisor(settings)
    return job


def _refuse_to_resume(db: Database, settings: Settings, job: Job) -> None:
    # One that the disk or its leader kept from starting has nothing yet that it could begin anew.
    began = job.status is not JobStatus.PAUSED and bool(store.attempts_of(db, job.id))
    if job.kind not in RESUMABLE and began:
        raise Conflict(f"Job {job.id} ({job.kind}) cannot go on where it ended; start it again.")
    if job.deleted_at is not None:
        raise Conflict(f"The run folder of job {job.id} was deleted; restore it first, or start the job again.")
    if not (settings.folder.run(job.id) / "job.json").exists():
        raise Conflict(f"The run folder of job {job.id} is gone; start it again.")
    asked = job.config.get("adapter", job.config.get("start_adapter"))
    if job.adapter_id is None and asked is not None and job.kind not in ("push", "serve"):
        # Its run folder still holds the files, but what it makes would be booked as the base's.
        raise Conflict(f"Job {job.id} works with adapter {asked}, which was deleted; start it again without.")
    if job.kind == ContestConfig.kind:
        _refuse_lost_contest(db, job)
    leader = store.get_job(db, job.after_id) if job.after_id is not None else None
    if leader is not None and leader.status in (JobStatus.FAILED, JobStatus.STOPPED):
        raise Conflict(
            f"Job {job.id} comes after job {leader.id}, which {_ended(leader)}; resume that one first, or let "
            "this one come after none."
        )
    if job.status not in (JobStatus.STOPPED, JobStatus.FAILED, JobStatus.PAUSED):
        raise Conflict(
            f"Job {job.id} is {job.status}; only one that failed, was stopped or is paused can be resumed."
        )


def _refuse_lost_contest(db: Database, job: Job) -> None:
    """Its run folder holds all it needs, but nothing that it made would be booked."""
    if contest_of_job(db, job.id) is None:
        raise Conflict(f"The contest of job {job.id} was deleted; undo that first, or run the job again.")
    for number in adapters_of(parse_config(job.kind, job.config)):
        try:
            get_adapter(db, number)
        except NotFound:
            told = f"Job {job.id} asks adapter {number}, which was deleted; start it again without."
            raise Conflict(told) from None


def run_again(db: Database, settings: Settings, job_id: int, user: str) -> Job:
    """Queue a new job with the settings of an old one, packed anew from what the data folder holds now.

    Its priority and retries are the old one's; it comes after no other.

    Raises:
        NotFound: there is no such job; or as `submit`.
        UserError: as `submit`: nothing is left to do, say, or a setting is unknown by now.
    """
    old = store.get_job(db, job_id)
    return submit(db, settings, old.kind, old.config, user, Order(priority=old.priority, retries=old.retries))


def move(db: Database, job_id: int, to: Where) -> Job:
    """Move a queued job among those of its priority that wait for the same kind of slot.

    Raises:
        NotFound: there is no such job.
        UserError: `to` is none of the four.
        Conflict: it is not queued, or stands there already; past other priorities only `prioritise` leads.
    """
    if to not in get_args(Where):
        raise UserError(f"to = {to!r}: a job can be moved {', '.join(get_args(Where)[:-1])} or last.")
    with immediate(db):
        job = store.get_job(db, job_id)
        if job.status is not JobStatus.QUEUED:
            raise Conflict(f"Job {job_id} is {job.status}; only a queued job can be moved.")
        order = queue_order.peers(db, job)
        index = next(number for number, other in enumerate(order) if other.id == job_id)
        last = len(order) - 1
        target = {"first": 0, "up": index - 1, "down": index + 1, "last": last}[to]
        if target == index or not 0 <= target <= last:
            raise Conflict(_edge(job, "first" if to in ("first", "up") else "last"))
        order.insert(target, order.pop(index))
        return queue_order.set_order(db, order, target)


def _edge(job: Job, end: Literal["first", "last"]) -> str:
    other = {"first": 1, "last": -1}[end]
    told = (
        f"Job {job.id} is the {end} already of those of {PRIORITIES[job.priority]} priority that wait for a "
        f"{job.slot_kind} slot."
    )
    if job.priority == other:
        return told
    word = "before" if end == "first" else "behind"
    return f"{told} Give it {PRIORITIES[other]} priority to have it start {word} more."


def prioritise(db: Database, job_id: int, priority: Priority) -> Job:
    """Give a job another priority: it keeps its place, which now counts among others.

    Raises:
        NotFound: there is no such job.
        UserError: there is no such priority.
        Conflict: it is done.
    """
    check_priority(priority)
    with immediate(db):
        _not_done(db, job_id)
        return queue_order.set_priority(db, job_id, priority)


def set_retries(db: Database, job_id: int, retries: int) -> Job:
    """Say how often a job is tried again after attempts that died without having come further; 0: never.

    Only what may be over at another try counts (`jobs.verdicts.TRANSIENT`): a bad setting is never tried again.

    Raises:
        NotFound: there is no such job.
        UserError: the number is out of bounds.
        Conflict: it is done.
    """
    check_retries(retries)
    with immediate(db):
        _not_done(db, job_id)
        return queue_order.set_retries(db, job_id, retries)


def follow(db: Database, job_id: int, after: int | None) -> Job:
    """Have a job start only when another is done; None: it waits for no other.

    Where the other fails or is stopped, this one fails with it (`fail_orphans`).

    Raises:
        NotFound: one of them is not there.
        Conflict: it is at work or done; the other has failed or was stopped; they would wait for each other.
    """
    with immediate(db):
        job = _not_done(db, job_id)
        if job.status in ACTIVE:
            raise Conflict(f"Job {job_id} is {job.status}; it has started and cannot wait for another any more.")
        if after is not None:
            if after == job_id:
                raise Conflict(f"Job {job_id} cannot come after itself.")
            leader = check_leader(db, after)
            chain = [leader, *queue_order.leaders_of(db, leader)]
            ids = [one.id for one in chain]
            if job_id in ids:
                told = ", which comes after ".join(f"job {one}" for one in ids[: ids.index(job_id) + 1])
                raise Conflict(f"Job {job_id} cannot come after {told}: they would wait for each other for ever.")
        return queue_order.set_leader(db, job_id, after)


def _not_done(db: Database, job_id: int) -> Job:
    job = store.get_job(db, job_id)
    if job.status is JobStatus.DONE:
        raise Conflict(f"Job {job_id} is done; the queue has nothing more to do with it.")
    return job


def fail_orphans(db: Database) -> list[int]:
    """Fail the queued jobs whose leader failed, was stopped or deleted, and those that come after them.

    The supervisor calls it at each step. A leader that is resumed later brings none of them back: `resume` does,
    one by one.

    Returns:
        their ids, leaders first.
    """
    failed: list[int] = []
    while queue_order.orphans(db):  # seldom: the write lock is taken only then
        with immediate(db):
            for job in queue_order.orphans(db):
                assert job.after_id is not None
                leader = store.get_job(db, job.after_id)
                reason = f"Job {leader.id} ({leader.kind}), after which it was to start, {_ended(leader)}."
                store.move(db, job.id, JobStatus.FAILED, reason)
                failed.append(job.id)
    return failed


def _ended(leader: Job) -> str:
    if leader.status is JobStatus.FAILED:
        return "failed"
    return "was stopped" if leader.status is JobStatus.STOPPED else "was deleted"


def hold_queue(db: Database, user: str) -> Held:
    """Have nothing new start until `release_queue`; what runs goes on. Whoever holds it first is named."""
    with immediate(db):
        held = held_by(db)
        if held is None:
            held = Held(user, now())
            put_setting(db, store.HELD, {"user": held.user, "since": held.since}, user)
    return held


def release_queue(db: Database, settings: Settings) -> None:
    """Let the queue go on; harmless where nobody holds it."""
    with immediate(db):
        put_setting(db, store.HELD, None)
    if store.count_open(db):
        ensure_supervisor(settings)


def held_by(db: Database) -> Held | None:
    """Who holds the queue; None where nobody does."""
    found = get_setting(db, store.HELD)
    return None if found is None else Held(str(found["user"]), str(found["since"]))


def waits_for(db: Database, job: Job) -> str:
    """What a queued job waits for besides a free slot, in words; "" for nothing, or where it is not queued."""
    if job.status is not JobStatus.QUEUED:
        return ""
    told = []
    if job.after_id is not None and store.get_job(db, job.after_id).status is not JobStatus.DONE:
        told.append(f"after job {job.after_id}")
    if (until := store.resting_until(job)) is not None:
        told.append(f"tries again at {until:%H:%M} UTC")
    if crowds := crowding.waits(db, job):
        told.append(crowds)
    if why := crowding.unreadable(db, job):
        told.append(why)
    if (held := held_by(db)) is not None:
        told.append(f"the queue is held by {held.user}")
    return "; ".join(told)
