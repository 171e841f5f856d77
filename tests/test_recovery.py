"""A database file with broken pages: what can be read of it goes into a new one."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_folders import fill, run_of, tables
from factories import World, open_world
from storage import jobs as store
from storage import upkeep
from storage.__main__ import app
from storage.database import connect, session
from storage.errors import UserError
from storage.folder import DataFolder
from storage.repair import repair
from storage.rows import rows
from storage.samples import SampleFilter, find_samples


@pytest.fixture
def full(world: World) -> World:
    return fill(world)


def page_of(folder: DataFolder, table: str) -> tuple[int, int, int]:
    """(a leaf page in the middle of a table, bytes of a page, rows on it)."""
    raw = sqlite3.connect(folder.database)
    size = raw.execute("PRAGMA page_size").fetchone()[0]
    try:
        leaves = raw.execute(
            "SELECT pageno, ncell FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path", [table]
        ).fetchall()
    except sqlite3.OperationalError:
        pytest.skip("this SQLite cannot tell which page is whose")
    finally:
        raw.close()
    page, cells = leaves[len(leaves) // 2]
    return page, size, cells


def destroy(folder: DataFolder, page: int, size: int, cells: int = 0) -> int:
    """Write noise over a page; how many rows stood on it."""
    with folder.database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(random.Random(0).randbytes(size))
    return cells


@pytest.fixture
def large(tmp_path: Path) -> World:
    """Enough rows that a table has many pages."""
    made = open_world(tmp_path / "data")
    job = made.job()
    for number in range(1, 62):
        made.candidates(
            made.sample(number, f"what is it? {number} " * 20, colour=1), ["one " * 60, "two " * 60], job
        )
    run_of(made, job)
    made.db.conn.execute("UPDATE jobs SET status = 'done'")
    made.db.conn.execute("DELETE FROM samples WHERE id = (SELECT max(id) FROM samples)")
    made.db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    made.db.close()
    return made


@pytest.mark.parametrize("table", ["samples", "candidates"])
def test_rows_around_a_broken_page_are_saved(large: World, table: str) -> None:
    before = tables(large)
    with session(large.folder) as db:
        db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cells = destroy(large.folder, *page_of(large.folder, table))
    done = repair(large.folder)
    assert done.left == ()
    after = tables(large)
    assert cells > 2
    assert len(before[table]) - len(after[table]) == cells, "what stood on the page, and no more"
    assert all(row in before[table] for row in after[table] if row.get("source") != "recovered")
    first, last = before[table][0], before[table][-1]
    ids = {row["id"] for row in after[table]}
    assert {first["id"], last["id"]} <= ids, "on both sides of it"
    assert after["users"] == before["users"]
    assert len(list(large.folder.root.glob("plumb.db.damaged-*"))) >= 1
    assert f"not all could be read of {table}" in done.done[0]
    with session(large.folder) as db:
        assert len(find_samples(db, SampleFilter(q="what"), limit=100)) == len(after["samples"])
        new = World(db, large.folder, large.settings).sample(1000)
        assert new == max(row["id"] for row in before["samples"]) + 2, "not the id of a deleted one"


def test_a_broken_index_costs_nothing(large: World) -> None:
    before = tables(large)
    with session(large.folder) as db:
        db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    destroy(large.folder, *page_of(large.folder, "candidates_by_sample"))
    db = connect(large.folder)
    assert {one.kind for one in upkeep.check(db, large.folder)} == {"integrity"}
    db.close()
    assert repair(large.folder).left == ()
    assert tables(large) == before


def test_a_table_without_row_ids_is_saved_from_both_ends(full: World) -> None:
    attempt = store.start_attempt(full.db, store.list_jobs(full.db)[0].id)
    for step in range(2000):
        store.add_metrics(full.db, attempt.id, step, {"loss": 1.0, "rate": 0.5})
    store.end_attempt(full.db, attempt.id, "done", "")
    full.db.close()
    with session(full.folder) as db:
        db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    destroy(full.folder, *page_of(full.folder, "metrics"))
    assert repair(full.folder).left == ()
    with session(full.folder) as db:
        found = rows(db, "SELECT min(name) AS a, max(name) AS b, count(*) AS n FROM metrics")[0]
    assert (found["a"], found["b"]) == ("loss", "rate")
    assert 3000 < found["n"] < 4000


def test_a_file_that_is_no_database_any_more(large: World) -> None:
    destroy(large.folder, 1, 4096)
    with pytest.raises(UserError, match="not a SQLite database"):
        repair(large.folder)


def test_a_database_of_which_nothing_can_be_read_is_left_as_it_is(large: World) -> None:
    raw = sqlite3.connect(large.folder.database)
    size = raw.execute("PRAGMA page_size").fetchone()[0]
    pages = [row[0] for row in raw.execute("SELECT pageno FROM dbstat WHERE name NOT IN ('sqlite_schema')")]
    raw.close()
    for page in pages:
        destroy(large.folder, page, size)
    data = large.folder.database.read_bytes()
    with pytest.raises(UserError, match="Nothing can be read"):
        repair(large.folder)
    assert large.folder.database.read_bytes() == data
    assert not (large.folder.root / "recovering").exists()


def test_a_damaged_database_is_told_by_the_command(large: World) -> None:
    destroy(large.folder, *page_of(large.folder, "samples"))
    found = CliRunner().invoke(app, ["check", "--data", str(large.folder.root), "--json"])
    assert found.exit_code == 1
    assert {one["kind"] for one in json.loads(found.stdout)["findings"]} == {"integrity"}
