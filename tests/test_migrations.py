"""A database of any landed version opens. Append a case with each migration that lands."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlite_utils import Database

from storage.database import connect, migrate
from storage.folder import DataFolder
from storage.migrations import migrations
from storage.upkeep import check

LANDED = ["m001_create_tables"]
FIRST_SCHEMA = "fbcd94436629b250"


def test_migrations_are_only_appended() -> None:
    names = [migration.name for migration in migrations.pending(Database(memory=True))]
    assert names[: len(LANDED)] == LANDED
    assert names == LANDED, "add the new migration to LANDED, and a test that fills a database of the one before"
    assert all(name.startswith(f"m{number:03}_") for number, name in enumerate(names, start=1))


def test_from_blank_and_again(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path).create()
    assert migrate(folder) == LANDED
    assert migrate(folder) == []
    db = connect(folder)
    assert db.conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert check(db, folder) == []
    db.close()


def test_the_first_landed_schema_is_what_it_was(tmp_path: Path) -> None:
    """If this fails, a landed migration was edited: databases in the field would differ from new ones."""
    folder = DataFolder(tmp_path).create()
    migrate(folder)
    db = connect(folder)
    schema = [
        " ".join(row[0].split())
        for row in db.conn.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT GLOB '*_fts*'"
            " AND name NOT GLOB '_sqlite*' ORDER BY name"
        )
    ]
    db.close()
    assert hashlib.sha256("\n".join(schema).encode()).hexdigest()[:16] == FIRST_SCHEMA
