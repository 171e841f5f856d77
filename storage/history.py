"""The undo log: every change by a person goes through `action`, and can be taken back.

An action is a list of row changes, each with the row before and after. Undo restores the rows in reverse
order, but only if each still is as the action left it: what somebody changed since is never overwritten.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import Conflict, NotFound
from storage.records import Action, now
from storage.rows import rows
from storage.users import ensure_user

Row = dict[str, Any]


class Recorder:
    """Writes rows and remembers how they were. Made by `action`."""

    def __init__(self, db: Database, action_id: int) -> None:
        self._db = db
        self._action_id = action_id
        self._position = 0

    def insert(self, table: str, values: Mapping[str, Any]) -> int:
        """Insert a row; returns its rowid (the id, where the table has one)."""
        columns = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        cursor = self._db.conn.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", dict(values))
        keys = _keys(self._db, table)
        key = {name: values.get(name, cursor.lastrowid) for name in keys}
        self._remember(table, key, None, _read(self._db, table, key))
        return int(cursor.lastrowid or 0)

    def update(self, table: str, key: Row, values: Mapping[str, Any]) -> None:
        """Change columns of the row with this key.

        Raises:
            NotFound: there is no such row.
        """
        before = _read(self._db, table, key)
        if before is None:
            raise NotFound(f"There is no row {key} in {table} (any more); reload the page.")
        sets = ", ".join(f"{name} = :{name}" for name in values)
        self._db.conn.execute(f"UPDATE {table} SET {sets} WHERE {_where(key)}", {**values, **key})
        self._remember(table, key, before, _read(self._db, table, key))

    def upsert(self, table: str, key: Row, values: Mapping[str, Any]) -> None:
        """Change the row with this key, or insert it."""
        if _read(self._db, table, key) is None:
            self.insert(table, {**key, **values})
        else:
            self.update(table, key, values)

    def delete(self, table: str, key: Row) -> None:
        before = _read(self._db, table, key)
        if before is not None:
            self._db.conn.execute(f"DELETE FROM {table} WHERE {_where(key)}", key)
            self._remember(table, key, before, None)

    def _remember(self, table: str, key: Row, before: Row | None, after: Row | None) -> None:
        self._db.conn.execute(
            "INSERT INTO changes (action_id, position, table_name, row_key, before, after)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [self._action_id, self._position, table, json.dumps(key), _dump(before), _dump(after)],
        )
        self._position += 1


@contextmanager
def action(db: Database, user: str, label: str, sample_id: int | None = None) -> Iterator[Recorder]:
    """One undoable action of `user`, in one transaction: all of it happens, or nothing."""
    with immediate(db):
        ensure_user(db, user)
        cursor = db.conn.execute(
            "INSERT INTO actions (user, label, sample_id, created_at) VALUES (?, ?, ?, ?)",
            [user, label, sample_id, now()],
        )
        yield Recorder(db, int(cursor.lastrowid or 0))


def last_action(db: Database, user: str) -> Action | None:
    """The user's latest action that is neither undone nor found to be beyond undoing."""
    found = rows(
        db,
        "SELECT * FROM actions WHERE user = ? AND undone_at IS NULL AND refused_at IS NULL"
        " ORDER BY id DESC LIMIT 1",
        [user],
    )
    return Action(**found[0]) if found else None


def undo(db: Database, user: str) -> Action:
    """Take back the user's latest action; returns it.

    Raises:
        NotFound: there is nothing to undo.
        Conflict: a row has been changed since, or is in use (a frozen data set); nothing is undone, and the
            next call takes the action before it.
    """
    latest = last_action(db, user)
    if latest is None:
        raise NotFound("There is nothing to undo.")
    try:
        with immediate(db):
            changes = rows(db, "SELECT * FROM changes WHERE action_id = ? ORDER BY position DESC", [latest.id])
            for change in changes:
                _restore(db, latest, change)
            _mark(db, latest, "undone_at")
    except Conflict:
        _mark(db, latest, "refused_at")
        raise
    return latest


def _mark(db: Database, action: Action, column: str) -> None:
    """Raises Conflict where another call has dealt with the action meanwhile."""
    cursor = db.conn.execute(
        f"UPDATE actions SET {column} = ? WHERE id = ? AND undone_at IS NULL AND refused_at IS NULL",
        [now(), action.id],
    )
    if cursor.rowcount == 0 and column == "undone_at":
        raise Conflict(f"“{action.label}” has been undone already.")


def _restore(db: Database, latest: Action, change: Row) -> None:
    table, key = change["table_name"], json.loads(change["row_key"])
    before, after = _load(change["before"]), _load(change["after"])
    if not _still(_read(db, table, key), after):
        raise Conflict(
            f"“{latest.label}” cannot be undone: the row in {table} has been changed since. "
            "Reload the page to see it as it is now."
        )
    try:
        if before is None:
            db.conn.execute(f"DELETE FROM {table} WHERE {_where(key)}", key)
        else:
            _put(db, table, key, before, exists=after is not None)
    except sqlite3.IntegrityError as error:
        raise Conflict(
            f"“{latest.label}” cannot be undone: something was built on it since "
            "(a frozen data set or a judgement, say)."
        ) from error


def _still(now: Row | None, after: Row | None) -> bool:
    """Whether a row is as the action left it; columns that a later migration added do not count."""
    if now is None or after is None:
        return now is after
    return all(name in now and now[name] == value for name, value in after.items())


def _put(db: Database, table: str, key: Row, values: Row, exists: bool) -> None:
    if exists:
        sets = ", ".join(f"{name} = :{name}" for name in values)
        db.conn.execute(f"UPDATE {table} SET {sets} WHERE {_where(key)}", values)
    else:
        marks = ", ".join(f":{name}" for name in values)
        db.conn.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", values)


def _keys(db: Database, table: str) -> list[str]:
    return list(db.table(table).pks)


def _where(key: Row) -> str:
    return " AND ".join(f"{name} = :{name}" for name in key)


def _read(db: Database, table: str, key: Row) -> Row | None:
    found = rows(db, f"SELECT * FROM {table} WHERE {_where(key)}", key)
    return found[0] if found else None


def _dump(row: Row | None) -> str | None:
    return None if row is None else json.dumps(row, ensure_ascii=False)


def _load(text: str | None) -> Row | None:
    if text is None:
        return None
    loaded: Row = json.loads(text)
    return loaded
