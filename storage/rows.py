"""The one way in which storage reads: SQL in, plain dictionaries out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlite_utils import Database

Row = dict[str, Any]

#: What `str.strip` takes away, for SQL's trim, which knows the space alone.
BLANKS = "".join(sign for sign in map(chr, range(0x3001)) if sign.isspace())
Parameters = Sequence[Any] | Mapping[str, Any]


def rows(db: Database, sql: str, parameters: Parameters = ()) -> list[Row]:
    cursor = db.conn.execute(sql, parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, values, strict=True)) for values in cursor]


def one(db: Database, sql: str, parameters: Parameters = ()) -> Row | None:
    found = rows(db, sql, parameters)
    return found[0] if found else None


def count(db: Database, sql: str, parameters: Parameters = ()) -> int:
    """The single number that `sql` selects."""
    return int(db.conn.execute(sql, parameters).fetchone()[0])


def with_json(row: Row, *columns: str) -> Row:
    """The row with these columns parsed; NULL stays None."""
    return {
        name: json.loads(value) if name in columns and value is not None else value for name, value in row.items()
    }


def marks(values: Sequence[Any]) -> str:
    """`?, ?, ?` for an IN list."""
    return ", ".join("?" * len(values))
