"""Saving what can still be read of a database file that SQLite finds damaged.

SQLite's shell has `.recover` for this; Python has not. Each table is walked in the order of its rows; where a page
cannot be read, the walk goes on behind it, and comes up to it again from there. What was read goes into a new
database of this version. Foreign keys that lead nowhere then are `storage.repair`'s next step.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from storage.database import connect, migrate
from storage.errors import UserError
from storage.files import link_or_copy
from storage.folder import DataFolder
from storage.rows import rows

Values = tuple[Any, ...]

_LARGEST_ID = 2**62
_TAILS = ("", "-wal", "-shm")


@dataclass(frozen=True)
class Recovered:
    """What was saved.

    Attributes:
        kept: where the damaged file lies now.
        rows: by table.
        broken: tables of which something could not be read.
    """

    kept: Path
    rows: dict[str, int]
    broken: tuple[str, ...]


def recover(folder: DataFolder) -> Recovered:
    """Replace a damaged database by one with all rows that can be read; the damaged file stays beside it.

    Nobody else may have the database open (`storage.occupants.alone`). Whenever the process is killed, the damaged
    database or the new one is in its place, whole: the damaged one gets a second name first, with the log that
    belongs to it; then the log goes, which must never meet the new file; then one rename puts the new file there.

    Raises:
        UserError: nothing can be read of it, or the new one cannot be written.
    """
    draft = DataFolder(folder.root / "recovering")
    moment = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    kept = _free(folder.database.with_name(f"{_damaged(folder)}{moment}"))
    try:
        _remove(draft)
        draft.root.mkdir()
        migrate(draft)
        counts, broken = _copy_all(folder, draft)
        if not any(counts.values()):
            raise UserError(
                f"Nothing can be read of {folder.database}. Restore a backup: `python -m storage restore FILE`."
            )
        _sync(draft.database)
        _replace(folder, draft.database, kept)
    except OSError as error:
        raise UserError(f"The database cannot be recovered ({error.strerror}: {error.filename}).") from error
    finally:
        with contextlib.suppress(OSError):  # the next one removes it first
            _remove(draft)
    return Recovered(kept, counts, tuple(broken))


def _replace(folder: DataFolder, new: Path, kept: Path) -> None:
    """Put the new database in the place of the damaged one, which has another name by then."""
    tails = [tail for tail in _TAILS if _with(folder.database, tail).exists()]
    try:
        for tail in tails:
            link_or_copy(_with(folder.database, tail), _with(kept, tail))
        _sync(folder.root)
        for tail in reversed(tails[1:]):  # the log last: its index is made anew wherever there is a log
            os.unlink(_with(folder.database, tail))
        os.replace(new, folder.database)
    except BaseException:
        if new.exists():  # else it is in its place, and the log of the other must never come near it
            _put_log_back(folder, kept)
        raise
    _sync(folder.root)


def finish(folder: DataFolder) -> bool:
    """Go back to where a recovery began that was killed before its last step; whether a log was put back for it.

    The damaged database is in its place then, perhaps without the log that belongs to it: rows would be missing
    that the log holds. Whoever has written to it since has begun another log, and nothing is put back.
    """
    back = False
    if not folder.database.exists():
        return False
    for kept in sorted(folder.root.glob(f"{_damaged(folder)}*[0-9]")):
        if not kept.samefile(folder.database):
            continue
        log, own = _with(kept, "-wal"), _with(folder.database, "-wal")
        if not log.exists() or (own.exists() and own.samefile(log)):
            _put_log_back(folder, kept)
        elif not own.exists() and folder.database.stat().st_mtime_ns <= log.stat().st_ctime_ns:
            _put_log_back(folder, kept)  # a link has changed the log's ctime, and nobody the database since
            back = True
    return back


def _put_log_back(folder: DataFolder, kept: Path) -> None:
    """Give the damaged database its log again, and take away their second names."""
    for tail in _TAILS:
        if _with(kept, tail).exists():
            link_or_copy(_with(kept, tail), _with(folder.database, tail))
            _with(kept, tail).unlink()


def _with(path: Path, tail: str) -> Path:
    return path.with_name(f"{path.name}{tail}")


def _free(path: Path) -> Path:
    """The path, with a number behind it where it is taken."""
    numbered = (_with(path, f"-{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain((path,), numbered) if not one.exists())


def _damaged(folder: DataFolder) -> str:
    return f"{folder.database.name}.damaged-"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # not every file system lets a folder be synced
    finally:
        os.close(descriptor)


def _remove(draft: DataFolder) -> None:
    for tail in (*_TAILS, "-journal"):
        Path(f"{draft.database}{tail}").unlink(missing_ok=True)
    if draft.root.is_dir():
        draft.root.rmdir()


def _copy_all(folder: DataFolder, draft: DataFolder) -> tuple[dict[str, int], list[str]]:
    target = connect(draft)
    source = sqlite3.connect(f"{folder.database.as_uri()}?mode=ro", uri=True, isolation_level=None)
    source.text_factory = lambda data: data.decode(errors="replace")
    counts: dict[str, int] = {}
    broken: list[str] = []
    try:
        target.conn.execute("PRAGMA foreign_keys = OFF")
        for table in _tables(target):
            target.conn.execute("BEGIN")
            counts[table], failed = _copy_table(source, target, table)
            target.conn.execute("COMMIT")
            if failed:
                broken.append(table)
        _copy_sequences(source, target)
        target.conn.execute("PRAGMA journal_mode = DELETE")
    finally:
        source.close()
        target.close()
    return counts, broken


def _tables(db: Database) -> list[str]:
    """Our tables: neither SQLite's own nor the search index, which triggers fill."""
    found = rows(
        db,
        """SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*'
           AND name NOT GLOB '_sqlite_*' AND name NOT GLOB '*_fts*' ORDER BY rowid""",
    )
    return [row["name"] for row in found]


def _copy_table(source: sqlite3.Connection, target: Database, table: str) -> tuple[int, bool]:
    """(rows that were saved, whether something could not be read)."""
    ours = rows(target, f"SELECT name, pk FROM pragma_table_info('{table}')")
    try:
        there = {row[1] for row in source.execute(f"PRAGMA table_info({table})")}
    except sqlite3.DatabaseError:
        return 0, True
    columns = [row["name"] for row in ours if row["name"] in there]  # one of an earlier version has fewer
    if not columns:
        return 0, False
    shape = rows(target, "SELECT sql FROM sqlite_master WHERE name = ?", [table])[0]["sql"]
    if "WITHOUT ROWID" in shape:
        key = [row["name"] for row in sorted(ours, key=lambda row: row["pk"]) if row["pk"]]
        walk: _Walk | _WalkByKey = _WalkByKey(source, table, columns, key)
    else:
        walk = _Walk(source, table, columns)
    statement = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    saved = 0
    for values in walk:
        with contextlib.suppress(sqlite3.IntegrityError):  # values that no column of ours takes
            saved += max(0, target.conn.execute(statement, values).rowcount)
    return saved, walk.failed


def _until_trouble(
    source: sqlite3.Connection, sql: str, values: tuple[int, ...] = ()
) -> Generator[Values, None, bool]:
    """Rows up to a page that cannot be read; returns whether there was one."""
    number = 0
    try:
        for row in source.execute(sql, values):
            number += 1
            yield row
        return False
    except sqlite3.DatabaseError:
        pass
    with contextlib.suppress(sqlite3.DatabaseError):  # Python looks a row ahead, and dropped the last good one
        yield from source.execute(f"{sql} LIMIT 1 OFFSET {number}", values)
    return True


class _Walk:
    """The rows of a table, without those on pages that cannot be read; some come twice."""

    def __init__(self, source: sqlite3.Connection, table: str, columns: list[str]) -> None:
        self._source, self.failed = source, False
        self._select = f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED WHERE rowid > ?"

    def __iter__(self) -> Iterator[Values]:
        self._last = -_LARGEST_ID
        while (yield from self._up()):
            self.failed = True
            behind = self._behind(self._last)
            if behind is None:
                return
            # Up to the broken page from its other side, then on from where that began.
            back = f"{self._select} AND rowid <= ? ORDER BY rowid DESC"
            for _, *values in _until_trouble(self._source, back, (self._last, behind)):
                yield tuple(values)
            self._last = behind

    def _up(self) -> Generator[Values, None, bool]:
        walk = _until_trouble(self._source, f"{self._select} ORDER BY rowid", (self._last,))
        while True:
            try:
                self._last, *values = next(walk)
            except StopIteration as end:
                return bool(end.value)
            yield tuple(values)

    def _behind(self, last: int) -> int | None:
        """The rowid of a row behind the broken page, not far behind it; None where there is none."""
        step, begin = 1, max(last, 0)
        while begin + step < _LARGEST_ID:
            with contextlib.suppress(sqlite3.DatabaseError):  # still on the page
                found = self._source.execute(f"{self._select} ORDER BY rowid LIMIT 1", (begin + step,)).fetchone()
                return None if found is None else int(found[0])
            step *= 2
        return None


class _WalkByKey:
    """As `_Walk` for a table without row ids: from both ends of its key, each until a page cannot be read."""

    def __init__(self, source: sqlite3.Connection, table: str, columns: list[str], key: list[str]) -> None:
        self._source, self._key, self.failed = source, key, False
        self._select = f"SELECT {', '.join(columns)} FROM {table}"

    def __iter__(self) -> Iterator[Values]:
        for order in ("ASC", "DESC"):
            by = ", ".join(f"{name} {order}" for name in self._key)
            self.failed = yield from _until_trouble(self._source, f"{self._select} ORDER BY {by}")
            if not self.failed:
                return


def _copy_sequences(source: sqlite3.Connection, target: Database) -> None:
    """Ids of deleted rows are not given again, as far as the damaged file still knows them."""
    try:
        known = source.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
    except sqlite3.DatabaseError:
        return
    for name, last in known:
        changed = target.conn.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", [last, name]
        ).rowcount
        if not changed and name in _tables(target):
            target.conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", [name, last])
