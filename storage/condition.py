"""Whether a database is sound and of this version, found out without changing anything, in bounded time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlite_utils import Database

from storage.folder import DataFolder
from storage.jobs import count_open
from storage.migrations import migrations
from storage.rows import one, rows

_MOST = 5  # findings that are told
_INSTRUCTIONS = 20_000  # of SQLite's machine, between two looks at the clock


@dataclass(frozen=True)
class Condition:
    """What is known of a database.

    Attributes:
        pending: migrations of this version that it lacks: it is older.
        foreign: migrations that this version doesn't know: it is newer.
        damage: what SQLite finds wrong with it, the first few.
        whole: every check ran to its end; False where the time was up before.
        open_jobs: queued, at work or paused; None where it cannot be told.
        newest: the latest moment that it knows of, ISO 8601 in UTC.
    """

    bytes: int
    pending: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    whole: bool = True
    open_jobs: int | None = None
    newest: str | None = None


def examine(folder: DataFolder, seconds: float = 4.0) -> Condition | None:
    """Look at the database of a data folder; None where there is none.

    Structure and foreign keys are checked, files are not: `storage.upkeep.check` does that, and takes its time.

    Args:
        seconds: after which the checks are left as they are.

    Raises:
        sqlite3.OperationalError: it cannot be opened, or another process holds it.
        OSError: it cannot be read.
    """
    if not folder.database.exists():
        return None
    size = folder.database.stat().st_size
    try:
        with _read_only(folder) as db:
            ours = [migration.name for migration in migrations.pending(Database(memory=True))]
            theirs = [migration.name for migration in migrations.applied(db)]
            pending = tuple(name for name in ours if name not in theirs)
            foreign = tuple(name for name in theirs if name not in ours)
            damage, whole = _damage(db, seconds)
            if pending or foreign:
                return Condition(size, pending, foreign, damage, whole)
            return Condition(size, (), (), damage, whole, count_open(db), _newest(db))
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:  # no database at all, or one that is torn
        return Condition(size, damage=(str(error),))


@contextmanager
def _read_only(folder: DataFolder) -> Iterator[Database]:
    connection = sqlite3.connect(
        f"{folder.database.as_uri()}?mode=ro", uri=True, timeout=2.0, isolation_level=None
    )
    try:
        yield Database(connection)
    finally:
        connection.close()


def _damage(db: Database, seconds: float) -> tuple[tuple[str, ...], bool]:
    """(what is wrong, whether there was time to look at everything)."""
    deadline = time.monotonic() + seconds
    db.conn.set_progress_handler(lambda: int(time.monotonic() > deadline), _INSTRUCTIONS)
    try:
        found = [
            row["quick_check"] for row in rows(db, f"PRAGMA quick_check({_MOST})") if row["quick_check"] != "ok"
        ]
        for row in db.conn.execute("PRAGMA foreign_key_check"):
            found.append(f"{row[0]} row {row[1]} names a missing row of {row[2]}")
            if len(found) >= _MOST:
                break
        return tuple(found), True
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return (), False
    finally:
        db.conn.set_progress_handler(None, 0)


def _newest(db: Database) -> str | None:
    found = one(
        db,
        "SELECT max(moment) AS newest FROM (SELECT max(created_at) AS moment FROM jobs UNION ALL"
        " SELECT max(started_at) FROM attempts UNION ALL SELECT max(ended_at) FROM attempts UNION ALL"
        " SELECT max(created_at) FROM actions)",
    )
    return None if found is None else found["newest"]
