"""A database file with broken pages: what can be read of it goes into a new one."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
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
from storage.finding import SampleFilter, find_samples
from storage.folder import DataFolder
from storage.recovery import finish, recover
from storage.repair import repair
from storage.rows import rows


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


# killed, or refused, at every step ----------------------------------------------------------------------------


@pytest.fixture
def logged(large: World) -> World:
    """A broken page, and a row that only the write-ahead log has, as a process leaves it that was killed."""
    folder = large.folder
    with session(folder) as db:
        db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    page = page_of(folder, "samples")
    with session(folder) as db:
        db.conn.execute("PRAGMA wal_autocheckpoint = 0")
        db.conn.execute("INSERT INTO users (name, created_at) VALUES ('late', '')")
        for tail in ("", "-wal"):
            shutil.copy(f"{folder.database}{tail}", f"{folder.root}/kept{tail}")
    for tail in ("", "-wal"):
        os.rename(f"{folder.root}/kept{tail}", f"{folder.database}{tail}")
    destroy(folder, *page)
    return large


def saved(folder: DataFolder) -> tuple[int, bool]:
    """(samples, whether the log's row is there)."""
    with session(folder) as db:
        return (
            rows(db, "SELECT count(*) AS n FROM samples NOT INDEXED")[0]["n"],
            bool(rows(db, "SELECT name FROM users WHERE name = 'late'")),
        )


def kept_database(folder: DataFolder, place: Path) -> Path:
    copy = place / "original"
    copy.mkdir()
    for path in folder.root.glob("plumb.db*"):
        shutil.copy(path, copy)
    return copy


def begin_anew(folder: DataFolder, original: Path) -> None:
    """With the database as it was."""
    shutil.rmtree(folder.root / "recovering", ignore_errors=True)
    for path in folder.root.glob("plumb.db*"):
        path.unlink()
    for path in original.iterdir():
        shutil.copy(path, folder.root)


STEPS = ("link", "unlink", "replace", "rmdir", "mkdir")


def at_step(number: int, act: Callable[[], object]) -> None:
    """Have this happen at the so-manieth change of a folder in this process."""
    left = [number]

    def wrapped(real: Callable[..., object]) -> Callable[..., object]:
        def step(*words: object, **named: object) -> object:
            if left[0] == 0:
                left[0] = -1
                act()
            left[0] -= 1
            return real(*words, **named)

        return step

    for name in STEPS:
        setattr(os, name, wrapped(getattr(os, name)))


@pytest.mark.slow
def test_a_recovery_that_is_killed_at_any_step_loses_nothing(logged: World, tmp_path: Path) -> None:
    original = kept_database(logged.folder, tmp_path)
    assert sorted(path.name for path in logged.folder.root.glob("plumb.db*")) == ["plumb.db", "plumb.db-wal"]
    steps, expected = 0, None
    while True:
        child = os.fork()
        if child == 0:
            at_step(steps, lambda: os._exit(9))
            try:
                recover(logged.folder)
            except BaseException:
                os._exit(3)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        finish(logged.folder)
        if not list(logged.folder.root.glob("plumb.db.damaged-*")):
            recover(logged.folder)
        found = saved(logged.folder)
        expected = expected or found
        assert (found, found[1]) == (expected, True), f"killed at step {steps}"
        assert not (logged.folder.root / "recovering").exists() or code == 9
        with session(logged.folder) as db:
            assert upkeep.damage(db) == []
        begin_anew(logged.folder, original)
        if code == 0:
            break
        steps += 1
    assert steps > 6


def test_a_recovery_that_is_refused_at_any_step_leaves_things_as_they_were(logged: World, tmp_path: Path) -> None:
    folder, original = logged.folder, kept_database(logged.folder, tmp_path)
    contents = {path.name: path.read_bytes() for path in folder.root.glob("plumb.db*")}
    real = {name: getattr(os, name) for name in STEPS}
    met: list[int] = []

    def refuse() -> None:
        met.append(1)
        raise PermissionError(13, "Permission denied", "a file")

    ends: list[str] = []
    while len(met) == len(ends):  # as long as there was a step to be refused
        at_step(len(ends), refuse)
        try:
            recover(folder)
            ends.append("done")
        except UserError:
            ends.append("refused")
        finally:
            for name, function in real.items():
                setattr(os, name, function)
        if ends[-1] == "done":  # a link that is refused becomes a copy
            assert not Path(f"{folder.database}-wal").exists(), "the old log would be read into the new file"
            (kept,) = folder.root.glob("plumb.db.damaged-*-wal")
            assert kept.read_bytes() == contents["plumb.db-wal"]
            assert saved(folder)[1]
        else:
            left = [path for path in folder.root.glob("plumb.db*") if not path.name.endswith("-shm")]
            assert {path.name: path.read_bytes() for path in left} == contents
        begin_anew(folder, original)
    assert ends.count("refused") > 3
    assert ends.count("done") > 2


def test_a_log_is_not_put_back_under_a_database_that_was_written_since(logged: World) -> None:
    folder = logged.folder
    kept = folder.root / "plumb.db.damaged-20260101-000000"
    for tail in ("", "-wal"):
        os.link(f"{folder.database}{tail}", f"{kept}{tail}")
    Path(f"{folder.database}-wal").unlink()  # here it was killed
    with session(folder) as db:
        db.conn.execute("INSERT INTO users (name, created_at) VALUES ('since', '')")
    log = Path(f"{kept}-wal")
    os.utime(folder.database, ns=(0, log.stat().st_ctime_ns + 1))
    assert not finish(folder)
    assert log.exists()
    with session(folder) as db:
        assert rows(db, "SELECT name FROM users WHERE name IN ('late', 'since')") == [{"name": "since"}]
    os.utime(folder.database, ns=(0, log.stat().st_ctime_ns - 1))
    assert finish(folder)
    assert not kept.exists()


def test_two_recoveries_within_a_second_keep_both_files(logged: World) -> None:
    first = recover(logged.folder).kept
    second = recover(logged.folder).kept
    assert first != second
    assert first.exists()
    assert second.exists()
