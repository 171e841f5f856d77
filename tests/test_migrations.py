"""A database of any landed version opens. Append a case with each migration that lands."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database

from storage import history
from storage.database import connect, migrate
from storage.folder import DataFolder
from storage.migrations import migrations
from storage.records import Score
from storage.samples import add_sample
from storage.scores import get_judgements, set_score
from storage.upkeep import check

LANDED = ["m001_create_tables", "m002_keep_judges_calls", "m003_keep_trainings"]
SCHEMAS = {"m001_create_tables": "fbcd94436629b250", "m002_keep_judges_calls": "462d3597a1be3c22"}


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


def open_at(folder: DataFolder, last: str) -> Database:
    """A database as the version left it whose latest migration is `last`."""
    db = connect(folder)
    following = LANDED[LANDED.index(last) + 1 :]
    migrations.apply(db, stop_before=following[0] if following else None)
    return db


def schema_at(tmp_path: Path, last: str) -> str:
    """A hash of the schema that the migrations up to `last` make."""
    db = open_at(DataFolder(tmp_path).create(), last)
    schema = [
        " ".join(row[0].split())
        for row in db.conn.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT GLOB '*_fts*'"
            " AND name NOT GLOB '_sqlite*' ORDER BY name"
        )
    ]
    db.close()
    return hashlib.sha256("\n".join(schema).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("last", "expected"), SCHEMAS.items())
def test_a_landed_schema_is_what_it_was(tmp_path: Path, last: str, expected: str) -> None:
    """If this fails, a landed migration was edited: databases in the field would differ from new ones."""
    assert schema_at(tmp_path, last) == expected


def test_labels_of_the_first_version_stay_and_can_still_be_undone(tmp_path: Path) -> None:
    """Later migrations add columns that the undo log of earlier actions does not know."""
    folder = DataFolder(tmp_path).create()
    db = open_at(folder, "m001_create_tables")
    messages = [{"role": "user", "content": "what shape is it?"}]
    sample_id = add_sample(db, "easy-vqa", "1", messages, "circle")
    assert sample_id is not None
    db.conn.execute("INSERT INTO users VALUES ('ada', '2026-11-22')")
    db.conn.execute(
        "INSERT INTO candidates (sample_id, text, author, created_at) VALUES (?, 'a circle', 'ada', '2026-11-22')",
        [sample_id],
    )
    for value in (1, 4):
        with contextlib.suppress(sqlite3.OperationalError):  # the answer reads tables that come later
            set_score(db, "ada", 1, "correctness", value)
    db.close()

    assert migrate(folder) == LANDED[1:]
    db = connect(folder)
    assert get_judgements(db, [sample_id])[sample_id][0].scores == (Score(1, correctness=4),)
    history.undo(db, "ada")
    assert get_judgements(db, [sample_id])[sample_id][0].scores == (Score(1, correctness=1),)
    history.undo(db, "ada")
    assert get_judgements(db, [sample_id])[sample_id] == []
    assert check(db, folder) == []
    db.close()
