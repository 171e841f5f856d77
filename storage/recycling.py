"""Deleted runs, as rows: a deleted job keeps its row, which lineage stands on, and vanishes from lists."""

from __future__ import annotations

from collections.abc import Sequence

from sqlite_utils import Database

from storage.errors import Conflict
from storage.jobs import get_job
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job, now
from storage.rows import count, marks, rows
from storage.users import ensure_user


def mark_deleted(db: Database, job_id: int, user: str, purged: bool = False) -> Job:
    """Note that an ended job's run folder is in the bin.

    Args:
        purged: there is no folder that could be.

    Raises:
        Conflict: the job has not ended, or is deleted already.
        NotFound: there is no such job.
    """
    ensure_user(db, user)
    ended = [str(status) for status in ENDED]
    moment = now()
    cursor = db.conn.execute(
        "UPDATE jobs SET deleted_at = ?, deleted_by = ?, purged_at = ? WHERE id = ? AND deleted_at IS NULL"
        f" AND status IN ({marks(ended)})",
        [moment, user, moment if purged else None, job_id, *ended],
    )
    job = get_job(db, job_id)
    if cursor.rowcount == 0:
        raise Conflict(f"Job {job_id} is {job.status}{' and deleted' if job.deleted_at else ''}.")
    return job


def mark_restored(db: Database, job_id: int) -> Job:
    """Note that a job's run folder is back in its place."""
    db.conn.execute(
        "UPDATE jobs SET deleted_at = NULL, deleted_by = NULL WHERE id = ? AND purged_at IS NULL", [job_id]
    )
    return get_job(db, job_id)


def mark_purged(db: Database, job_id: int) -> None:
    """Note that a deleted job's run folder is gone for good; nothing happens to one that is not deleted."""
    db.conn.execute(
        "UPDATE jobs SET purged_at = ? WHERE id = ? AND deleted_at IS NOT NULL AND purged_at IS NULL",
        [now(), job_id],
    )


def mark_found(db: Database, job_id: int) -> None:
    """Note that a run folder is there that was noted as gone; a deleted job's lies in the bin again."""
    db.conn.execute("UPDATE jobs SET purged_at = NULL WHERE id = ?", [job_id])


def deleted_jobs(db: Database, before: str | None = None) -> list[Job]:
    """Jobs whose run lies in the bin, the latest deleted first.

    Args:
        before: only those that were deleted before this moment (UTC, as `records.now` gives it).
    """
    found = rows(
        db,
        "SELECT id FROM jobs WHERE deleted_at IS NOT NULL AND purged_at IS NULL AND (? IS NULL OR deleted_at < ?)"
        " ORDER BY deleted_at DESC, id DESC",
        [before, before],
    )
    return [get_job(db, row["id"]) for row in found]


def is_there(db: Database, job_id: int) -> bool:
    """Whether the database has such a job, deleted or not."""
    return count(db, "SELECT count(*) FROM jobs WHERE id = ?", [job_id]) > 0


def open_followers(db: Database, job_id: int) -> list[Job]:
    """Jobs that wait until this one is done."""
    ended = [str(status) for status in ENDED]
    found = rows(
        db,
        f"SELECT id FROM jobs WHERE after_id = ? AND status NOT IN ({marks(ended)}) ORDER BY id",
        [job_id, *ended],
    )
    return [get_job(db, row["id"]) for row in found]


def ended_before(db: Database, statuses: Sequence[JobStatus], before: str) -> list[Job]:
    """Jobs that ended like this before a moment and are not deleted, oldest first."""
    found = rows(
        db,
        f"SELECT id FROM jobs WHERE status IN ({marks(statuses)}) AND deleted_at IS NULL"
        " AND coalesce(ended_at, created_at) < ? ORDER BY id",
        [*(str(status) for status in statuses), before],
    )
    return [get_job(db, row["id"]) for row in found]
