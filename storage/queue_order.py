"""The order of the queue as people change it: places, priorities, jobs that come after others."""

from __future__ import annotations

from collections.abc import Sequence

from sqlite_utils import Database

from storage.jobs import get_job, queued_jobs
from storage.lifecycle import JobStatus
from storage.records import Job
from storage.rows import marks, rows


def place_of(job: Job) -> float:
    """Where a job stands among those of its priority: the lower, the earlier. Equal ones go by their ids."""
    return float(job.id) if job.place is None else job.place


def peers(db: Database, job: Job) -> list[Job]:
    """The queued jobs among which a job can be moved, in order: of its priority, for its kind of slot."""
    return [other for other in queued_jobs(db, job.slot_kind) if other.priority == job.priority]


def set_order(db: Database, order: Sequence[Job], index: int) -> Job:
    """Give `order[index]` a place between its neighbours; the others keep theirs.

    Where floats have run out between the two, after some fifty moves to the same gap, all are numbered anew.

    Args:
        order: `peers` as they shall be, of which all but that one are in order.
    """
    job = order[index]
    before = place_of(order[index - 1]) if index > 0 else None
    behind = place_of(order[index + 1]) if index + 1 < len(order) else None
    if before is None or behind is None:
        place = behind - 1 if behind is not None else before + 1 if before is not None else place_of(job)
    else:
        place = (before + behind) / 2
        if not before < place < behind:
            first = min(map(place_of, order))
            for number, other in enumerate(order):
                _set_place(db, other.id, first + number)
            return get_job(db, job.id)
    _set_place(db, job.id, place)
    return get_job(db, job.id)


def _set_place(db: Database, job_id: int, place: float) -> None:
    db.conn.execute("UPDATE jobs SET place = ? WHERE id = ?", [place, job_id])


def set_priority(db: Database, job_id: int, priority: int) -> Job:
    """It keeps its place, which now counts among others."""
    db.conn.execute("UPDATE jobs SET priority = ? WHERE id = ?", [priority, job_id])
    return get_job(db, job_id)


def set_leader(db: Database, job_id: int, after_id: int | None) -> Job:
    """Have a job wait for another, or for none."""
    db.conn.execute("UPDATE jobs SET after_id = ? WHERE id = ?", [after_id, job_id])
    return get_job(db, job_id)


def set_retries(db: Database, job_id: int, retries: int) -> Job:
    """How often it is tried again after attempts that died without having come further."""
    db.conn.execute("UPDATE jobs SET retries = ? WHERE id = ?", [retries, job_id])
    return get_job(db, job_id)


def end_rest(db: Database, job_id: int) -> Job:
    """Have a queued job start as soon as it can, however short ago it died."""
    db.conn.execute("UPDATE jobs SET not_before = NULL WHERE id = ?", [job_id])
    return get_job(db, job_id)


def leaders_of(db: Database, job: Job) -> list[Job]:
    """The jobs that a job comes after: its leader, that one's, and so on to one that is done or follows none."""
    chain: list[Job] = []
    while job.after_id is not None and job.status is not JobStatus.DONE:
        job = get_job(db, job.after_id)
        if any(job.id == seen.id for seen in chain):
            break
        chain.append(job)
    return chain


def orphans(db: Database) -> list[Job]:
    """Queued jobs whose leader has ended otherwise than done, or lies in the bin before it was done."""
    lost = [JobStatus.FAILED, JobStatus.STOPPED]
    found = rows(
        db,
        "SELECT follower.id FROM jobs follower JOIN jobs leader ON leader.id = follower.after_id"
        f" WHERE follower.status = ? AND (leader.status IN ({marks(lost)})"
        " OR (leader.deleted_at IS NOT NULL AND leader.status <> ?)) ORDER BY follower.id",
        [JobStatus.QUEUED, *lost, JobStatus.DONE],
    )
    return [get_job(db, row["id"]) for row in found]
