"""Changes of rows that can be taken back and made again: what the undo log writes, and how it is walked.

A change is a row's key with the row before and after. Walking it, either way, asks first that the row still is
as the change left it; what somebody changed since is never overwritten. Rows of one table that were all inserted,
all changed or all deleted one after the other are walked in runs, so that an act on a hundred thousand samples
takes seconds.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlite_utils import Database

from storage.errors import Conflict, NotFound
from storage.rows import Row, rows
from storage.standing import stands_on

Way = Literal["undone", "redone"]

RUN = 5000  #: rows that are read and written at once

# How the rows of a table are called in a sentence.
_NAMES = {
    "candidates": "the answer",
    "checklists": "the checklist",
    "discards": "the discarding of the sample",
    "flags": "the flag",
    "judgements": "the scoring",
    "notes": "the note",
    "pairs": "the pair",
    "saved_views": "the view",
    "scores": "the score",
    "skips": "the skip",
}


class Recorder:
    """Writes rows and remembers how they were. Made by `history.action`."""

    def __init__(self, db: Database, action_id: int, position: int = 0) -> None:
        self._db = db
        self._action_id = action_id
        self._position = position
        self._samples: dict[tuple[str, int], int | None] = {}

    def insert(self, table: str, values: Mapping[str, Any]) -> int:
        """Insert a row; returns its rowid (the id, where the table has one)."""
        cursor = self._db.conn.execute(_insertion(table, values), dict(values))
        key = {name: values.get(name, cursor.lastrowid) for name in _keys(self._db, table)}
        self._remember(table, key, None, _read(self._db, table, key))
        return int(cursor.lastrowid or 0)

    def insert_many(self, table: str, values: Sequence[Mapping[str, Any]]) -> list[int]:
        """Insert rows that all name the same columns; returns their ids, or nothing where the table has no id.

        Far faster than as many calls of `insert`.
        """
        if not values:
            return []
        keys = _keys(self._db, table)
        ids: list[int] = []
        if keys == ["id"] and "id" not in values[0]:
            first = _next_id(self._db, table)
            ids = list(range(first, first + len(values)))
            values = [{"id": number, **row} for number, row in zip(ids, values, strict=True)]
        for start in range(0, len(values), RUN):
            part = [dict(row) for row in values[start : start + RUN]]
            self._db.conn.executemany(_insertion(table, part[0]), part)
            wanted = [{name: row[name] for name in keys} for row in part]
            found = _read_many(self._db, table, wanted)
            self._remember_many(table, [(key, None, row) for key, row in zip(wanted, found, strict=True)])
        return ids

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

    def update_many(self, table: str, keys: Sequence[Row], values: Mapping[str, Any]) -> None:
        """Set the same columns of all rows with these keys, each named once. Far faster than calls of `update`.

        Raises:
            NotFound: one of them is not there.
        """
        sets = ", ".join(f"{name} = :to_{name}" for name in values)
        to = {f"to_{name}": value for name, value in values.items()}
        for start in range(0, len(keys), RUN):
            part = keys[start : start + RUN]
            changes = []
            for key, before in zip(part, _read_many(self._db, table, part), strict=True):
                if before is None:
                    raise NotFound(f"There is no row {key} in {table} (any more); reload the page.")
                changes.append((key, before, {**before, **values}))
            self._db.conn.executemany(
                f"UPDATE {table} SET {sets} WHERE {_where(part[0])}", [{**to, **key} for key in part]
            )
            self._remember_many(table, changes)

    def upsert(self, table: str, key: Row, values: Mapping[str, Any]) -> None:
        """Change the row with this key, or insert it."""
        if _read(self._db, table, key) is None:
            self.insert(table, {**key, **values})
        else:
            self.update(table, key, values)

    def delete(self, table: str, key: Row) -> None:
        """Delete the row with this key, if it is there."""
        before = _read(self._db, table, key)
        if before is not None:
            self._db.conn.execute(f"DELETE FROM {table} WHERE {_where(key)}", key)
            self._remember(table, key, before, None)

    def delete_many(self, table: str, keys: Sequence[Row]) -> int:
        """Delete the rows with these keys, each named once; returns how many were there."""
        deleted = 0
        for start in range(0, len(keys), RUN):
            part = keys[start : start + RUN]
            found = [row for row in zip(part, _read_many(self._db, table, part), strict=True) if row[1]]
            self._db.conn.executemany(f"DELETE FROM {table} WHERE {_where(part[0])}", [key for key, _ in found])
            self._remember_many(table, [(key, before, None) for key, before in found])
            deleted += len(found)
        return deleted

    def _remember(self, table: str, key: Row, before: Row | None, after: Row | None) -> None:
        self._remember_many(table, [(key, before, after)])

    def _remember_many(self, table: str, changes: Sequence[tuple[Row, Row | None, Row | None]]) -> None:
        names = _keys(self._db, table)
        self._db.conn.executemany(
            "INSERT INTO changes (action_id, position, table_name, row_key, before, after, sample_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                [
                    self._action_id,
                    self._position + number,
                    table,
                    json.dumps({name: key[name] for name in names}),  # one spelling: changes are found by it
                    _dump(before),
                    _dump(after),
                    self._sample_of(table, after or before or {}),
                ]
                for number, (key, before, after) in enumerate(changes)
            ],
        )
        self._position += len(changes)

    def _sample_of(self, table: str, row: Row) -> int | None:
        """Whose history the change of this row belongs to; None for what is no sample's (a chat, say)."""
        if "sample_id" in row:
            return None if row["sample_id"] is None else int(row["sample_id"])
        if table == "scores":
            return self._looked_up("candidates", row["candidate_id"])
        if table == "pair_judgements":
            return self._looked_up("pairs", row["pair_id"])
        return None

    def _looked_up(self, table: str, number: int) -> int | None:
        if (table, number) not in self._samples:
            found = rows(self._db, f"SELECT sample_id FROM {table} WHERE id = ?", [number])
            self._samples[table, number] = found[0]["sample_id"] if found else None
        return self._samples[table, number]


class Change(NamedTuple):
    """A row's way from one state to another; None: the row isn't there."""

    table: str
    key: Row
    start: Row | None
    end: Row | None

    @property
    def kind(self) -> str:
        return "delete" if self.end is None else "insert" if self.start is None else "update"


def retrace(db: Database, action_id: int, label: str, way: Way) -> None:
    """Walk an action's changes backwards ("undone") or forwards again ("redone"), within a transaction.

    Raises:
        Conflict: a row is no longer as the action left it, or something stands on it; the caller rolls back.
    """
    order, ends = ("DESC", ("after", "before")) if way == "undone" else ("", ("before", "after"))
    found = db.conn.execute(
        f"SELECT table_name, row_key, {', '.join(ends)} FROM changes WHERE action_id = ?"
        f" ORDER BY position {order}",
        [action_id],
    )
    walked = (Change(table, json.loads(key), _load(start), _load(end)) for table, key, start, end in found)
    for run in _runs(walked):
        _walk(db, action_id, label, way, run)


def _runs(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Neighbours of one table and kind, no row twice, at most `RUN`."""
    run: list[Change] = []
    keys: set[tuple[Any, ...]] = set()
    for change in changes:
        key = tuple(change.key.values())
        same = run and (run[0].table, run[0].kind, *run[0].key) == (change.table, change.kind, *change.key)
        if run and (not same or key in keys or len(run) == RUN):
            yield run
            run, keys = [], set()
        run.append(change)
        keys.add(key)
    if run:
        yield run


def _walk(db: Database, action_id: int, label: str, way: Way, run: list[Change]) -> None:
    table, kind = run[0].table, run[0].kind
    for change, found in zip(run, _read_many(db, table, [one.key for one in run]), strict=True):
        if not _still(found, change.start):
            raise Conflict(_changed_since(db, action_id, label, way, change))
        if kind != "insert":
            reason = stands_on(db, table, change.key, change.start or {}, change.end, action_id)
            if reason:
                raise Conflict(f"“{label}” cannot be {way}: {reason}.")
    try:
        if kind == "delete":
            db.conn.executemany(f"DELETE FROM {table} WHERE {_where(run[0].key)}", [one.key for one in run])
            return
        for change in run:
            assert change.end is not None  # only a deletion ends without a row
            if kind == "update":
                sets = ", ".join(f"{name} = :{name}" for name in change.end)
                where = " AND ".join(f"{name} = :key_{name}" for name in change.key)
                marks = {f"key_{name}": value for name, value in change.key.items()}
                db.conn.execute(f"UPDATE {table} SET {sets} WHERE {where}", {**change.end, **marks})
            else:
                db.conn.execute(_insertion(table, change.end), change.end)
    except sqlite3.IntegrityError as error:
        raise Conflict(
            f"“{label}” cannot be {way}: something was built on it since (a frozen data set or a judgement, say)."
        ) from error


def _changed_since(db: Database, action_id: int, label: str, way: Way, change: Change) -> str:
    name = _NAMES.get(change.table, f"the row in {change.table}")
    found = rows(
        db,
        "SELECT a.user, a.label FROM changes c JOIN actions a ON a.id = c.action_id"
        " WHERE c.action_id > ? AND c.table_name = ? AND c.row_key = ? AND a.undone_at IS NULL"
        " ORDER BY a.id DESC LIMIT 1",
        [action_id, change.table, json.dumps(change.key)],
    )
    who = f" by {found[0]['user']} (“{found[0]['label']}”)" if found else ""
    return (
        f"“{label}” cannot be {way}: {name} has been changed since{who}. Reload the page to see it as it is now."
    )


def _still(now: Row | None, left: Row | None) -> bool:
    """Whether a row is as the action left it; columns that a later migration added do not count."""
    if now is None or left is None:
        return now is left
    return all(name in now and now[name] == value for name, value in left.items())


def _insertion(table: str, values: Mapping[str, Any]) -> str:
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})"


def _next_id(db: Database, table: str) -> int:
    """The id that SQLite would give next; within a write transaction nobody else takes it."""
    found = rows(
        db,
        f"SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = ?), 0),"
        f" coalesce((SELECT max(id) FROM {table}), 0)) + 1 AS next",
        [table],
    )
    return int(found[0]["next"])


def _keys(db: Database, table: str) -> list[str]:
    return list(db.table(table).pks)


def _where(key: Row) -> str:
    return " AND ".join(f"{name} = :{name}" for name in key)


def _read(db: Database, table: str, key: Row) -> Row | None:
    found = rows(db, f"SELECT * FROM {table} WHERE {_where(key)}", key)
    return found[0] if found else None


def _read_many(db: Database, table: str, keys: Sequence[Row]) -> list[Row | None]:
    """The rows under these keys, in their order; None where there is none."""
    if len(keys) == 1:
        return [_read(db, table, keys[0])]
    named = list(keys[0])
    on = " AND ".join(f"t.{name} = json_extract(j.value, '$[{place}]')" for place, name in enumerate(named))
    found = rows(
        db,
        f"SELECT t.* FROM json_each(?) j CROSS JOIN {table} t ON {on}",  # CROSS: the keys lead, the index follows
        [json.dumps([[key[name] for name in named] for key in keys], ensure_ascii=False)],
    )
    by_key = {tuple(row[name] for name in named): row for row in found}
    return [by_key.get(tuple(key[name] for name in named)) for key in keys]


def _dump(row: Row | None) -> str | None:
    return None if row is None else json.dumps(row, ensure_ascii=False)


def _load(text: str | None) -> Row | None:
    if text is None:
        return None
    loaded: Row = json.loads(text)
    return loaded
