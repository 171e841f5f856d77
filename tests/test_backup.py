"""Backup and restore: the same data folder again, whoever works meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from data_folders import (
    Member,
    begun,
    ended,
    files,
    fill,
    kept,
    members,
    nothing_restored,
    rewritten,
    run_of,
    tables,
)
from factories import USER, World, open_world
from jobs import steering
from jobs.processes import PROJECT
from jobs.runs import RunFolder
from storage import backup as backups
from storage import jobs as store
from storage import pairs, upkeep
from storage.__main__ import app
from storage.backup import backup
from storage.database import connect, immediate, session
from storage.errors import DatabaseTooNew, UserError
from storage.folder import RESTORING, DataFolder
from storage.lifecycle import ENDED, JobStatus
from storage.migrations import migrations
from storage.records import Job
from storage.restore import restore
from storage.rows import rows
from storage.scores import set_score
from supervised import started_by, status, submit_judge

PAUSE = 0.003  # seconds between two writes: SQLite's lock is not fair


@pytest.fixture
def full(world: World) -> World:
    return fill(world)


@pytest.fixture
def elsewhere(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "restored")


# the same again -----------------------------------------------------------------------------------------------


def test_what_was_kept_is_there_again(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    done = restore(file, elsewhere, "bob")
    assert tables(elsewhere) == tables(full)
    assert files(elsewhere) == files(full.folder)
    with session(elsewhere) as db:
        assert upkeep.check(db, elsewhere, hashes=True) == []
    assert (done.ended, done.held, done.moved, done.missing, done.migrated) == ((), False, None, (), ())
    assert not (elsewhere.root / RESTORING).exists()
    assert sorted(path.name for path in elsewhere.root.iterdir()) == [
        *("adapters", "images", "judges", "models", "plumb.db"),
        *("references", "runs", "runtime", "thumbnails"),
    ]


def test_what_can_be_made_again_and_the_key_are_not_in_it(full: World) -> None:
    names = {found.name for found, _ in members(kept(full))}
    assert not [name for name in names if name.split("/")[0] in ("models", "references", "runtime")]
    assert not [name for name in names if "checkpoints" in name or name.endswith(".lock")]
    with_them = {found.name for found, _ in members(kept(full, "more.tar", with_checkpoints=True))}
    assert sorted(with_them - names) == [f"runs/{trained_run(full)}/checkpoints/checkpoint-1/optimizer.pt"]


def trained_run(world: World) -> str:
    row = world.db.conn.execute("SELECT job_id FROM adapters").fetchone()
    return world.folder.run(row[0]).name


def test_nothing_of_this_machine_is_in_it(full: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither who made it, nor keys of the environment, nor the key of the folder."""
    monkeypatch.setenv("GEMINI_API_KEY", "very-secret-value")
    file = kept(full)
    data = file.read_bytes()
    assert b"very-secret-value" not in data
    assert full.folder.key() not in data
    for found, _ in members(file):
        assert (found.uid, found.gid, found.uname, found.gname) == (0, 0, "", "")


def test_hard_links_are_kept_once_and_are_links_again(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    with tarfile.open(file) as tar:
        stored = [name for name in tar.getnames() if name.endswith(".safetensors")]
    assert len(stored) == 1, "the run folder's adapter is another name of the same bytes"
    restore(file, elsewhere, "bob")
    run = elsewhere.runs / trained_run(full) / "adapter" / "adapter_model.safetensors"
    kept_file = next(elsewhere.adapters.rglob("*.safetensors"))
    assert run.stat().st_ino == kept_file.stat().st_ino


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    samples=st.integers(0, 4),
    states=st.lists(st.sampled_from([JobStatus.DONE, JobStatus.FAILED, JobStatus.STOPPED]), max_size=3),
    names=st.lists(st.text("aä\u2028 .'\"#%", min_size=1, max_size=8), max_size=3, unique=True),
    text=st.text(max_size=40),
    content=st.binary(max_size=2000),
)
def test_any_folder_comes_back_table_by_table_and_file_by_file(
    samples: int, states: list[JobStatus], names: list[str], text: str, content: bytes
) -> None:
    with tempfile.TemporaryDirectory() as place:
        world = open_world(Path(place) / "data")
        try:
            if samples:
                fill(world, samples)
            for number, state in enumerate(states):
                job = world.job("sft", note=text)
                run = run_of(world, job, events=number, log=text)
                begun(world, job)
                store.end_attempt(world.db, store.attempts_of(world.db, job.id)[0].id, state, text)
                store.move(world.db, job.id, state, text)
                for name in names:
                    if name.strip(".") and not name.startswith("."):
                        (run.path / name).write_bytes(content)
            if text.strip() and "\x00" not in text:
                world.candidates(world.sample(99, text), [text, "other"])
                world.db.conn.execute("UPDATE jobs SET status = 'done'")
                for job in store.list_jobs(world.db):
                    if not world.folder.run(job.id).exists() and job.deleted_at is None:
                        run_of(world, job)
            file = kept(world)
            target = DataFolder(Path(place) / "restored")
            restore(file, target, "bob")
            assert tables(target) == tables(world)
            assert files(target) == files(world.folder)
        finally:
            world.db.close()


# while others work --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_backup_amid_labels_and_a_worker_checks_clean(
    world: World, elsewhere: DataFolder, wait_for: Callable[..., None]
) -> None:
    """People score, a sample is added, a worker appends, all the time; what comes back is of one moment."""
    sample_ids = [world.sample(number) for number in range(1, 6)]
    candidates = [one for sample in sample_ids for one in world.candidates(sample, ["good", "bad"])]
    for job in store.list_jobs(world.db):
        run_of(world, job)
        ended(world, job)
    job = world.job("generate")
    run = run_of(world, job, events=0)
    begun(world, job)
    enough = threading.Event()
    written: dict[str, int] = {"labels": 0, "events": 0, "pairs": 0, "samples": 0}

    def label() -> None:
        with session(world.folder) as db:
            while not enough.wait(PAUSE):
                one = candidates[written["labels"] % len(candidates)]
                set_score(db, USER, one.id, "correctness", written["labels"] % 5)
                written["labels"] += 1

    def decide() -> None:
        with session(world.folder) as db:
            while not enough.wait(PAUSE):
                one, two = candidates[0], candidates[1]
                turn = (one.id, two.id) if written["pairs"] % 2 else (two.id, one.id)
                pairs.choose_by_hand(db, "bob", *turn)
                written["pairs"] += 1

    def work() -> None:
        with run.events.open("a") as file:
            while not enough.wait(PAUSE):
                written["events"] += 1
                file.write(json.dumps({"kind": "progress", "done": written["events"]}) + "\n")
                file.flush()

    def add() -> None:
        mine = World(connect(world.folder), world.folder, world.settings)
        while not enough.wait(PAUSE):
            with immediate(mine.db):  # as every importer does: a sample and its images at once
                mine.sample(1000 + written["samples"])
            written["samples"] += 1
        mine.db.close()

    threads = [threading.Thread(target=target) for target in (label, decide, work, add)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            before = dict(written)
            wait_for(lambda: all(written[key] > before[key] for key in written), "all are at it")  # noqa: B023
            file = kept(world, f"{number}.tar")
            target = DataFolder(elsewhere.root.with_name(f"restored-{number}"))
            done = restore(file, target, "bob")
            assert done.missing == ()
            with session(target) as db:
                assert upkeep.check(db, target, hashes=True, grace=0) == []
                assert store.get_job(db, job.id).status is JobStatus.FAILED
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def test_a_file_deleted_meanwhile_is_reported_and_left(full: World, elsewhere: DataFolder) -> None:
    """Between the copy of the database and that of the files somebody deletes an adapter."""
    adapter = next(full.folder.adapters.iterdir())

    def tell(done: int, total: int) -> None:
        shutil.rmtree(adapter, ignore_errors=True)
        shutil.rmtree(full.folder.runs / trained_run(full) / "adapter", ignore_errors=True)

    done = backup(full.folder, full.folder.root.parent / "plumb.tar", tell=tell)
    assert any(name.startswith(f"adapters/{adapter.name}") for name in done.missing)
    restored = restore(done.target, elsewhere, "bob")
    assert restored.missing == done.missing
    with session(elsewhere) as db:
        assert [one.kind for one in upkeep.check(db, elsewhere)] == ["missing file"]


def test_a_file_that_becomes_shorter_while_it_is_read_counts_for_nothing(
    full: World, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(full, full.job())
    full.db.conn.execute("UPDATE jobs SET status = 'stopped' WHERE status = 'queued'")
    real = os.fstat

    def longer(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if found.st_ino != run.events.stat().st_ino:
            return found
        return os.stat_result([*found[:6], found.st_size + 5000, *found[7:]], {"st_mtime": found.st_mtime})

    monkeypatch.setattr(os, "fstat", longer)
    done = backup(full.folder, full.folder.root.parent / "plumb.tar")
    monkeypatch.undo()
    assert done.missing == (run.events.relative_to(full.folder.root).as_posix(),)
    assert restore(done.target, elsewhere, "bob").missing == done.missing
    assert not (elsewhere.root / done.missing[0]).exists()


def test_damage_that_is_there_already_is_told(full: World) -> None:
    image = next(full.folder.images.rglob("*.png"))
    image.unlink()
    image.write_bytes(b"something else")
    adapter = next(full.folder.adapters.rglob("adapter_config.json"))
    adapter.unlink()
    adapter.write_bytes(b"[]")
    done = backup(full.folder, full.folder.root.parent / "plumb.tar")
    assert sorted(name.split("/")[0] for name in done.damaged) == ["adapters", "images"]


def test_a_run_that_lies_elsewhere_than_its_row_says_is_found(full: World, elsewhere: DataFolder) -> None:
    """Somebody deletes or restores a run between the two copies."""
    binned = next(full.folder.bin.iterdir())
    binned.rename(full.folder.runs / binned.name)
    restore(kept(full), elsewhere, "bob")
    assert (elsewhere.bin / binned.name / "job.json").exists(), "where its row says"


def test_a_run_folder_that_is_there_is_kept_whatever_its_row_says(full: World, elsewhere: DataFolder) -> None:
    job = store.list_jobs(full.db)[0]
    full.db.conn.execute("UPDATE jobs SET purged_at = 'then' WHERE id = ?", [job.id])
    assert backup(full.folder, full.folder.root.parent / "b.tar").missing == ()
    restore(full.folder.root.parent / "b.tar", elsewhere, "bob")
    assert files(elsewhere) == files(full.folder)
    shutil.rmtree(full.folder.run(job.id))
    assert backup(full.folder, full.folder.root.parent / "c.tar").missing == (), "and nothing is missing"


def test_the_end_of_a_long_log_is_kept_and_attempts_find_their_part(
    full: World, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "LOG_TAIL", 1000)
    job = full.job("sft")
    lines = [f"line {number:04}\n" for number in range(400)]
    run = run_of(full, job, log="".join(lines))
    first = store.start_attempt(full.db, job.id, 0)
    store.end_attempt(full.db, first.id, "failed", "", log_end=3500)
    second = store.start_attempt(full.db, job.id, 3500)
    store.end_attempt(full.db, second.id, "stopped", "", log_end=4000)
    full.db.conn.execute("UPDATE jobs SET status = 'stopped' WHERE id = ?", [job.id])
    restore(kept(full), elsewhere, "bob")
    log = (elsewhere.run(job.id) / "log.txt").read_bytes()
    assert log == run.log.read_bytes()[-len(log) :]
    assert log.startswith(b"line "), "it begins at a line"
    assert 900 <= len(log) <= 1000
    with session(elsewhere) as db:
        one, two = store.attempts_of(db, job.id)
    assert log[two.log_begin : two.log_end] == run.log.read_bytes()[3500:4000]
    assert (one.log_begin, one.log_end) == (0, two.log_begin)


# jobs that were at work ---------------------------------------------------------------------------------------


def test_jobs_at_work_are_settled_and_the_queue_is_held(full: World, elsewhere: DataFolder) -> None:
    at_work, asked, queued = (full.job("sft") for _ in range(3))
    for job in (at_work, asked, queued):
        run = run_of(full, job)
    (full.folder.run(at_work.id) / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    begun(full, at_work)
    begun(full, asked, JobStatus.STOPPING)
    done = restore(kept(full), elsewhere, "bob")
    assert (done.ended, done.held) == ((at_work.id, asked.id), True)
    with session(elsewhere) as db:
        states = [store.get_job(db, job.id).status for job in (at_work, asked, queued)]
        assert states == ["failed", "stopped", "queued"]
        assert store.open_attempts(db) == []
        attempt = store.attempts_of(db, at_work.id)[0]
        assert (attempt.outcome, attempt.cause) == ("failed", "gone")
        assert "restored from the backup of 20" in attempt.reason
        reason = store.get_job(db, at_work.id).reason
        assert "Its checkpoints are not in the backup. Resume it" in reason
        assert "checkpoints" not in store.get_job(db, asked.id).reason
        held = steering.held_by(db)
        assert held is not None
        assert held.user == "bob"
        assert not store.is_due(db, store.get_job(db, queued.id))
        assert upkeep.check(db, elsewhere) == []
    with session(full.folder) as db:
        assert store.get_job(db, at_work.id).status == "running", "the original is left alone"
    assert run.path.exists()


def test_a_settled_job_can_be_resumed(full: World, elsewhere: DataFolder, no_supervisor: None) -> None:
    job = full.job("generate")
    run_of(full, job)
    begun(full, job)
    restore(kept(full), elsewhere, "bob")
    there = open_world(elsewhere.root)
    assert steering.resume(there.db, there.settings, job.id).status is JobStatus.QUEUED
    there.db.close()


def test_a_queue_that_was_held_already_stays_its_holders(full: World, elsewhere: DataFolder) -> None:
    run_of(full, full.job("sft"))
    steering.hold_queue(full.db, "carol")
    restore(kept(full), elsewhere, "bob")
    with session(elsewhere) as db:
        held = steering.held_by(db)
    assert held is not None
    assert held.user == "carol"


# versions -----------------------------------------------------------------------------------------------------


def test_a_backup_of_an_older_database_is_migrated(tmp_path: Path, elsewhere: DataFolder) -> None:
    folder = DataFolder(tmp_path / "old").create()
    db = connect(folder, create=True)
    migrations.apply(db, stop_before="m004_keep_the_queue")
    db.conn.execute("INSERT INTO users VALUES ('ada', '2026-11-22')")
    db.conn.execute(
        "INSERT INTO jobs (kind, status, config, slot_kind, user, created_at)"
        " VALUES ('sft', 'running', '{}', 'device', 'ada', '2026')"
    )
    db.close()
    folder.run(1).mkdir()
    (folder.run(1) / "job.json").write_text("{}")
    backup(folder, tmp_path / "old.tar")
    db = connect(folder)
    assert len(migrations.pending(db)) >= 1, "keeping it changes nothing"
    db.close()
    done = restore(tmp_path / "old.tar", elsewhere, "bob")
    assert done.migrated[0] == "m004_keep_the_queue"
    with session(elsewhere) as db:
        assert store.get_job(db, 1).status is JobStatus.FAILED
        assert upkeep.check(db, elsewhere) == []


def test_a_backup_of_a_newer_plumb_is_refused(full: World, elsewhere: DataFolder) -> None:
    def newer(found: list[Member]) -> list[Member]:
        values = json.loads(found[0][1])
        values["migrations"].append("m999_later")
        return [(found[0][0], json.dumps(values).encode()), *found[1:]]

    file = rewritten(kept(full), newer)
    with pytest.raises(DatabaseTooNew, match=r"newer Plumb .*m999_later"):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)
    full.db.conn.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('plumb', 'm999_later', 'x')"
    )
    with pytest.raises(DatabaseTooNew, match="m999_later"):
        backup(full.folder, file.with_name("new.tar"))
    assert not file.with_name("new.tar").exists()


def test_a_format_of_later_is_refused(full: World, elsewhere: DataFolder) -> None:
    def later(found: list[Member]) -> list[Member]:
        return [(found[0][0], found[0][1].replace(b'"format": 1', b'"format": 2')), *found[1:]]

    with pytest.raises(UserError, match="format 2; this Plumb reads 1"):
        restore(rewritten(kept(full), later), elsewhere, "bob")


# the commands -------------------------------------------------------------------------------------------------


def test_the_commands(full: World, tmp_path: Path, elsewhere: DataFolder) -> None:
    runner = CliRunner()

    def run(*words: str) -> Any:
        return runner.invoke(app, list(words), catch_exceptions=True)

    file = tmp_path / "b.tar"
    told = run("backup", str(file), "--data", str(full.folder.root), "--json")
    values = json.loads(told.stdout)
    assert (values["file"], values["missing"], values["damaged"]) == (str(file), [], [])
    assert values["bytes"] == file.stat().st_size
    assert (
        "Left out: references/" in run("backup", str(tmp_path / "c.tar"), "--data", str(full.folder.root)).stdout
    )
    done = run("restore", str(file), "--data", str(elsewhere.root), "--json")
    values = json.loads(done.stdout)
    assert (values["folder"], values["held"], values["ended"]) == (str(elsewhere.root), False, [])
    again = run("restore", str(file), "--data", str(elsewhere.root))
    assert isinstance(again.exception, UserError)
    replaced = run("restore", str(file), "--data", str(elsewhere.root), "--replace")
    assert "What was there before lies in" in replaced.stdout
    wrong = run("backup", str(tmp_path / "b.zip"), "--data", str(full.folder.root))
    assert "end in .tar, or in .db" in str(wrong.exception)
    alone = run("backup", str(tmp_path / "b.db"), "--data", str(full.folder.root), "--json")
    assert json.loads(alone.stdout)["bytes"] > 0


def test_progress_goes_to_standard_error(full: World, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "storage",
            "backup",
            str(tmp_path / "b.tar"),
            "--data",
            str(full.folder.root),
            "--json",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout)["missing"] == []


def rewound(world: World, job: Job, stored: int, told: int) -> None:
    """A done judge job as it was midway: `stored` judgements in the database, `told` in the run folder."""
    events = RunFolder(world.folder.run(job.id)).events
    lines = events.read_bytes().splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if json.loads(line)["kind"] == "judgement"]
    events.write_bytes(b"".join(lines[: places[told]]))
    offset = sum(map(len, lines[: places[stored]]))
    (last,) = rows(
        world.db, "SELECT id FROM judgements WHERE job_id = ? ORDER BY id LIMIT 1 OFFSET ?", [job.id, stored]
    )
    for statement, *values in (
        ("DELETE FROM judgements WHERE job_id = ? AND id >= ?", job.id, last["id"]),
        ("UPDATE attempts SET event_offset = ?, ended_at = NULL, outcome = NULL WHERE job_id = ?", offset, job.id),
        ("UPDATE jobs SET status = 'running', ended_at = NULL WHERE id = ?", job.id),
    ):
        world.db.conn.execute(statement, values)


@pytest.mark.slow
def test_a_job_that_was_at_work_goes_on_from_the_backup(
    busy: World, elsewhere: DataFolder, wait_for: Callable[..., None]
) -> None:
    """What only the run folder knew is read on, the rest is judged, by a real worker; nothing is there twice."""
    job = submit_judge(busy)
    wait_for(lambda: status(busy, job) in ENDED, "it is done")
    wait_for(lambda: not started_by(busy), "the supervisor leaves")
    rewound(busy, job, stored=100, told=150)
    restore(kept(busy), elsewhere, "bob")
    there = open_world(elsewhere.root)
    judged = "SELECT count(*) AS n, count(DISTINCT sample_id) AS samples FROM judgements WHERE job_id = ?"
    try:
        assert status(there, job) is JobStatus.FAILED
        assert rows(there.db, judged, [job.id]) == [{"n": 100, "samples": 100}]
        steering.resume(there.db, there.settings, job.id)
        wait_for(lambda: status(there, job) in ENDED, "it ends")
        found = store.get_job(there.db, job.id)
        assert (found.status, found.reason) == (JobStatus.DONE, "")
        assert rows(there.db, judged, [job.id]) == [{"n": 300, "samples": 300}]
        lines = (elsewhere.run(job.id) / "events.jsonl").read_text().splitlines()
        told = [event["sample_id"] for line in lines if (event := json.loads(line))["kind"] == "judgement"]
        assert sorted(told) == sorted(set(told)), "none was judged twice"
        assert [one.what for one in upkeep.check(there.db, elsewhere)] == ["run folder of job 1"], (
            "it never had one"
        )
    finally:
        for process in started_by(there):
            process.kill()
        there.db.close()
