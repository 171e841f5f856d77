"""What an attempt is measured by: where its events begin, and how far earlier ones of its job had come."""

from __future__ import annotations

from collections.abc import Collection

from sqlite_utils import Database

from storage.records import Attempt
from storage.rows import count, marks, one


def events_begin(db: Database, attempt: Attempt) -> int:
    """The byte of events.jsonl at which the attempt's own events begin: where those of the one before ended."""
    return count(
        db,
        "SELECT coalesce(max(event_offset), 0) FROM attempts WHERE job_id = ? AND number < ?",
        [attempt.job_id, attempt.number],
    )


def has_metric_from(db: Database, attempt: Attempt, names: Collection[str], step: int) -> bool:
    """Whether an earlier attempt of the job told one of these numbers at this step or at a later one."""
    found = one(
        db,
        f"""SELECT 1 FROM attempts a WHERE a.job_id = ? AND a.number < ? AND EXISTS (
                SELECT 1 FROM metrics m
                WHERE m.attempt_id = a.id AND m.name IN ({marks(list(names))}) AND m.step >= ?) LIMIT 1""",
        [attempt.job_id, attempt.number, *names, step],
    )
    return found is not None


def has_answers(db: Database, job_id: int, step: int) -> bool:
    """Whether the job's watched items have been answered at this step."""
    found = one(db, "SELECT 1 FROM checkpoint_answers WHERE job_id = ? AND step = ? LIMIT 1", [job_id, step])
    return found is not None
