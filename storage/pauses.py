"""Jobs that a full disk has paused."""

from __future__ import annotations

from sqlite_utils import Database

from storage.jobs import ORDER, get_job
from storage.lifecycle import JobStatus
from storage.records import Job
from storage.rows import count, rows


def paused_jobs(db: Database) -> list[Job]:
    """Those that wait for room on the disk, in the queue's order."""
    found = rows(db, f"SELECT id FROM jobs WHERE status = ? ORDER BY {ORDER}", [JobStatus.PAUSED])
    return [get_job(db, row["id"]) for row in found]


def explain_pause(db: Database, job_id: int, reason: str) -> None:
    """Say anew what a paused job waits for; nothing happens to one that is paused no more."""
    db.conn.execute(
        "UPDATE jobs SET reason = ? WHERE id = ? AND status = ? AND reason <> ?",
        [reason, job_id, JobStatus.PAUSED, reason],
    )


def fruitless_pauses(db: Database, job_id: int) -> int:
    """How many attempts in a row, up to the latest, were paused without having come further."""
    return count(
        db,
        "SELECT count(*) FROM attempts WHERE job_id = ? AND outcome = ? AND advanced = 0 AND number >"
        " (SELECT coalesce(max(number), 0) FROM attempts WHERE job_id = ? AND (outcome <> ? OR advanced = 1))",
        [job_id, JobStatus.PAUSED, job_id, JobStatus.PAUSED],
    )
