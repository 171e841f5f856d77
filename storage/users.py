"""Who does things. Roles and passwords come later, through the same door."""

from __future__ import annotations

from sqlite_utils import Database

from storage.records import now


def ensure_user(db: Database, name: str) -> str:
    """Make sure that the name can stand in a `user` column."""
    db.conn.execute("INSERT OR IGNORE INTO users (name, created_at) VALUES (?, ?)", [name, now()])
    return name
