"""Jobs that ended lately, for notices in the browser."""

from __future__ import annotations

from sqlite_utils import Database

from storage.jobs import get_job
from storage.lifecycle import ENDED
from storage.records import Job
from storage.rows import marks, rows


def ended_since(db: Database, user: str, since: str, most: int = 20) -> list[Job]:
    """The last jobs of a user that ended after this moment (UTC, as `records.now` gives it), oldest first."""
    states = sorted(str(status) for status in ENDED)
    found = rows(
        db,
        "SELECT id FROM jobs WHERE ended_at > ? AND user = ? AND deleted_at IS NULL"
        f" AND status IN ({marks(states)}) ORDER BY ended_at DESC, id DESC LIMIT ?",
        [since, user, *states, most],
    )
    return [get_job(db, row["id"]) for row in reversed(found)]
