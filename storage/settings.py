"""Settings of a whole data folder that people change while it is in use: one JSON value a name."""

from __future__ import annotations

import json
from typing import Any

from sqlite_utils import Database

from storage.records import now
from storage.rows import one
from storage.users import ensure_user


def get_setting(db: Database, name: str, default: Any = None) -> Any:
    """The value that stands under `name`."""
    found = one(db, "SELECT value FROM settings WHERE name = ?", [name])
    return default if found is None else json.loads(found["value"])


def put_setting(db: Database, name: str, value: Any, user: str | None = None) -> None:
    """Set it; None takes it away, so that the default holds."""
    if value is None:
        db.conn.execute("DELETE FROM settings WHERE name = ?", [name])
        return
    if user is not None:
        ensure_user(db, user)
    db.conn.execute(
        "INSERT OR REPLACE INTO settings (name, value, user, changed_at) VALUES (?, ?, ?, ?)",
        [name, json.dumps(value, ensure_ascii=False), user, now()],
    )
