"""Backup and restore: the same data folder again, whoever works meanwhile, and nothing at all where that fails."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from data_folders import begun, ended, files, fill, run_of, tables, trained
from factories import USER, World, open_world
from jobs import steering
from jobs.processes import PROJECT
from storage import backup as backups
from storage import jobs as store
from storage import pairs, upkeep
from storage.__main__ import app
from storage.adapters import delete_adapter
from storage.backup import backup, backup_database
from storage.database import connect, immediate, session
from storage.errors import Conflict, DatabaseTooNew, NotFound, UserError
from storage.folder import RESTORING, DataFolder
from storage.lifecycle import JobStatus
from storage.manifest import HEADER, MANIFEST
from storage.migrations import migrations
from storage.restore import describe, restore
from storage.scores import set_score

Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def full(world: World) -> World:
    return fill(world)


@pytest.fixture
def elsewhere(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "restored")


def kept(world: World, name: str = "plumb.tar", **options: Any) -> Path:
    target = world.folder.root.parent / name
    backup(world.folder, target, **options)
    return target


def members(file: Path) -> list[Member]:
    with tarfile.open(file, "r:") as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def rewritten(file: Path, change: Callable[[list[Member]], list[Member]]) -> Path:
    """The backup with other members, as somebody might make it."""
    target = file.with_name("changed.tar")
    with tarfile.open(target, "w") as tar:
        for member, data in change(members(file)):
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return target


def member(name: str, data: bytes = b"x", **values: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def before_manifest(*added: Member) -> Callable[[list[Member]], list[Member]]:
    return lambda found: [*found[:-1], *added, found[-1]]


def nothing_restored(folder: DataFolder) -> None:
    assert not folder.root.exists(), "as it was before"


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
            while not enough.is_set():
                for one in candidates:
                    set_score(db, USER, one.id, "correctness", written["labels"] % 5)
                    written["labels"] += 1

    def decide() -> None:
        with session(world.folder) as db:
            while not enough.is_set():
                one, two = candidates[0], candidates[1]
                turn = (one.id, two.id) if written["pairs"] % 2 else (two.id, one.id)
                pairs.choose_by_hand(db, "bob", *turn)
                written["pairs"] += 1

    def work() -> None:
        with run.events.open("a") as file:
            while not enough.is_set():
                written["events"] += 1
                file.write(json.dumps({"kind": "progress", "done": written["events"]}) + "\n")
                file.flush()

    def add() -> None:
        mine = World(connect(world.folder), world.folder, world.settings)
        while not enough.is_set():
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

    monkeypatch.setattr(backups.os, "fstat", longer)
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
    db = connect(folder)
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


# bad input ----------------------------------------------------------------------------------------------------


def test_targets_that_are_refused(full: World, tmp_path: Path) -> None:
    (tmp_path / "there.tar").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        backup(full.folder, tmp_path / "there.tar")
    assert (tmp_path / "there.tar").read_text() == "mine"
    with pytest.raises(UserError, match="would lie in the data folder"):
        backup(full.folder, full.folder.images / "b.tar")
    with pytest.raises(UserError, match=r"The folder .*nowhere for the backup is not there"):
        backup(full.folder, tmp_path / "nowhere" / "b.tar")
    with pytest.raises(NotFound, match="no database in"):
        backup(DataFolder(tmp_path / "empty"), tmp_path / "b.tar")
    assert not (tmp_path / "empty").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(
    full: World, tmp_path: Path, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept(full)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs about .* MB, and 1.0 KB are free"):
        backup(full.folder, tmp_path / "b.tar")
    with pytest.raises(UserError, match=r"needs about .* MB, and there are 1.0 KB free"):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plumb.tar"]


@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_disk_that_fills_up_meanwhile_leaves_no_half_file(
    full: World, tmp_path: Path, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    file = kept(full)
    left = [after]

    def tell(done: int, total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"b.tar cannot be written \(.*No space left"):
        backup(full.folder, tmp_path / "b.tar", tell=tell)
    left[0] = after
    with pytest.raises(UserError, match=r"cannot be restored .*No space left.* Nothing was changed"):
        restore(file, elsewhere, "bob", tell=tell)
    nothing_restored(elsewhere)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plumb.tar"]


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_folder_that_must_not_be_written(full: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kept(full)

    def refuse(self: Path, *words: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot be restored into .* \(Permission denied\)"):
        restore(file, DataFolder(tmp_path / "closed" / "data"), "bob")


def cut(size: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * size)]


@pytest.mark.parametrize("size", [0.02, 0.3, 0.6, 0.9])
def test_a_backup_that_was_cut_off(full: World, elsewhere: DataFolder, size: float) -> None:
    file = kept(full)
    file.write_bytes(cut(size)(file.read_bytes()))
    with pytest.raises(UserError, match=r"cut off|more than is left of it"):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)


def test_files_that_are_no_backup(full: World, tmp_path: Path, elsewhere: DataFolder) -> None:
    text, empty, foreign = (tmp_path / name for name in ("text.tar", "empty.tar", "foreign.tar"))
    text.write_text("hello" * 500)
    empty.touch()
    with tarfile.open(foreign, "w") as tar:
        tar.addfile(*(lambda made: (made[0], io.BytesIO(made[1])))(member("hello.txt")))
    for file, words in (
        (text, "no backup of Plumb's"),
        (empty, "no backup of Plumb's"),
        (foreign, f"does not begin with {HEADER}"),
        (tmp_path / "absent.tar", "cannot be read"),
        (full.folder.root.parent, "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            restore(file, elsewhere, "bob")
    backup_database(full.folder, tmp_path / "alone.db")
    with pytest.raises(UserError, match="a database alone"):
        restore(tmp_path / "alone.db", elsewhere, "bob")
    compressed = tmp_path / "small.tar.gz"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.add(kept(full), arcname="x")
    with pytest.raises(UserError, match="no backup of Plumb's"):
        restore(compressed, elsewhere, "bob")
    nothing_restored(elsewhere)


def edited(found: list[Member]) -> list[Member]:
    """One byte of an image is another."""
    return [
        (info, data[:-1] + bytes([data[-1] ^ 1]) if info.name.startswith("images/") else data)
        for info, data in found
    ]


def test_an_edited_member_is_found_by_its_hash(full: World, elsewhere: DataFolder) -> None:
    with pytest.raises(UserError, match=r"images/.* is not what it was .*sha256 differs"):
        restore(rewritten(kept(full), edited), elsewhere, "bob")
    nothing_restored(elsewhere)


def without(beginning: str) -> Callable[[list[Member]], list[Member]]:
    return lambda found: [one for one in found if not one[0].name.startswith(beginning)]


def twice(found: list[Member]) -> list[Member]:
    return [*found[:-1], found[1], found[-1]]


def with_manifest(**values: Any) -> Callable[[list[Member]], list[Member]]:
    def change(found: list[Member]) -> list[Member]:
        told = json.loads(found[-1][1])
        told |= {key: value(told[key]) if callable(value) else value for key, value in values.items()}
        return [*found[:-1], (found[-1][0], json.dumps(told).encode())]

    return change


def renamed_link(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    linked = next(one for one in files if one["same_as"])
    return [{**one, "path": "runs/../../../evil"} if one is linked else one for one in files]


def link_to_what_is_there(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first, second = [one for one in files if one["path"].startswith("images/")][:2]
    values = {"same_as": first["path"], "sha256": first["sha256"], "bytes": first["bytes"]}
    return [{**one, **values} if one is second else one for one in files]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (before_manifest(member("../evil")), r"'\.\./evil'.* no file of a data folder"),
        (before_manifest(member("images/../../evil")), "no file of a data folder"),
        (before_manifest(member("/tmp/evil")), "no file of a data folder"),
        (before_manifest(member("runtime/key")), "no file of a data folder"),
        (before_manifest(member("images")), "no file of a data folder"),
        (before_manifest(member("runs\\x")), "no file of a data folder"),
        (before_manifest(member("runs/" + "x" * 300)), "name is too long"),
        (before_manifest(member("runs/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "no plain file"),
        (before_manifest(member("runs/link", b"", type=tarfile.LNKTYPE, linkname="plumb.db")), "no plain file"),
        (before_manifest(member("runs/null", b"", type=tarfile.CHRTYPE)), "no plain file"),
        (before_manifest(member("runs/pipe", b"", type=tarfile.FIFOTYPE)), "no plain file"),
        (before_manifest(member("runs/folder", b"", type=tarfile.DIRTYPE)), "no plain file"),
        (before_manifest(member("runs/000001/new.txt")), "its manifest does not name"),
        (twice, "twice"),
        (without("plumb.db"), "lacks plumb.db"),
        (without("thumbnails/"), "lacks thumbnails/"),
        (without(MANIFEST), "cut off"),
        (without(HEADER), "does not begin with"),
        (lambda found: [*found, member("runs/000001/late.txt")], "goes on after its manifest"),
        (with_manifest(files=[]), "manifest of .* is damaged"),
        (with_manifest(files=7), "own description is damaged"),
        (with_manifest(files=renamed_link), "no file of a data folder"),
        (with_manifest(files=link_to_what_is_there), "two contents"),
        (with_manifest(header=lambda header: {**header, "created_at": "1999"}), "not that of its manifest"),
        (lambda found: [*found[:-1], (found[-1][0], b"[1")], "own description is damaged"),
    ],
)
def test_backups_that_somebody_changed(
    full: World, elsewhere: DataFolder, change: Callable[[list[Member]], list[Member]], words: str
) -> None:
    file = rewritten(kept(full), change)
    with pytest.raises(UserError, match=words):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)
    assert not (elsewhere.root.parent / "evil").exists()


def test_a_member_of_absurd_size_is_refused(full: World, elsewhere: DataFolder) -> None:
    """Its head promises a terabyte; there is no compression that it could hide behind."""
    file = kept(full)
    huge, _ = member("runs/000001/huge.bin")
    huge.size = 10**12
    data = file.read_bytes()
    with tarfile.open(file) as tar:
        begin = tar.getmembers()[1].offset
    file.write_bytes(data[:begin] + huge.tobuf() + data[begin:])
    with pytest.raises(UserError, match="with 1.0 TB, more than is left of it"):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)


# where it goes ------------------------------------------------------------------------------------------------


def test_only_into_an_empty_folder(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    elsewhere.root.mkdir()
    (elsewhere.root / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis.txt\).*--replace"):
        restore(file, elsewhere, "bob")
    assert [path.name for path in elsewhere.root.iterdir()] == ["thesis.txt"]
    (elsewhere.root / "thesis.txt").unlink()
    (elsewhere.root / "lost+found").mkdir()  # a file system's own
    restore(file, elsewhere, "bob")
    a_file = DataFolder(file)
    with pytest.raises(UserError, match=r"is a file; name a folder|lies in the folder"):
        restore(file, a_file, "bob")
    with pytest.raises(UserError, match="lies in the folder that is to be restored"):
        restore(file, DataFolder(file.parent), "bob", replace=True)


def test_replacing_moves_the_old_folder_aside(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    other = open_world(elsewhere.root)
    other.sample(77)
    other.db.close()
    done = restore(file, elsewhere, "bob", replace=True)
    assert done.moved is not None
    assert done.moved.name.startswith("restored.before-20")
    with session(DataFolder(done.moved)) as db:
        assert upkeep.stats(db, DataFolder(done.moved))["samples"] == 1
    assert tables(elsewhere) == tables(full)
    assert f"What was there before lies in {done.moved}." in describe(done)
    assert restore(file, DataFolder(elsewhere.root / "deeper"), "bob", replace=True).moved is None


def test_a_replacement_that_fails_puts_the_old_folder_back(full: World, elsewhere: DataFolder) -> None:
    other = open_world(elsewhere.root)
    other.sample(77)
    other.db.close()
    before = tables(elsewhere)
    with pytest.raises(UserError, match="sha256 differs"):
        restore(rewritten(kept(full), edited), elsewhere, "bob", replace=True)
    assert tables(elsewhere) == before
    assert [path.name for path in elsewhere.root.parent.glob("restored*")] == ["restored"]


def test_a_folder_with_a_supervisor_is_not_moved(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    open_world(elsewhere.root).db.close()
    with (
        FileLock(elsewhere.runtime / "supervisor.lock"),
        pytest.raises(Conflict, match="supervisor is at work"),
    ):
        restore(file, elsewhere, "bob", replace=True)
    assert elsewhere.database.exists()


SLOW = """
import sys, time
from pathlib import Path
from storage.folder import DataFolder
from storage.restore import restore

def tell(done, total):
    print("at it", flush=True)
    time.sleep(60)

restore(Path(sys.argv[1]), DataFolder(Path(sys.argv[2])), "bob", tell=tell)
"""


def test_a_killed_restore_says_so_and_the_next_begins_anew(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(file), str(elsewhere.root)], cwd=PROJECT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(Conflict, match="Another restore is at work"):
        restore(file, elsewhere, "bob")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert (elsewhere.root / RESTORING).exists()
    assert not elsewhere.database.exists(), "no program takes it for a data folder"
    with pytest.raises(UserError, match=r"was not finished. Run `python -m storage restore` once more"):
        elsewhere.create()
    restore(file, elsewhere, "bob")
    assert tables(elsewhere) == tables(full)
    assert files(elsewhere) == files(full.folder)


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


# an adapter deleted beside a worker that keeps the same ---------------------------------------------------------


def test_deleting_an_adapter_takes_no_files_from_one_that_is_being_kept(world: World) -> None:
    """Its files are kept, its row is not there yet, and another adapter of the same files is deleted."""
    from jobs import events
    from storage.adapters import list_adapters

    old = trained(world, "old")
    job = world.job("dpo")
    run = run_of(world, job, events=0)
    run.adapter.mkdir()
    for file in (world.folder.run(old.job_id) / "adapter").iterdir():
        (run.adapter / file.name).write_bytes(file.read_bytes())
    told = {"kind": "adapter", "path": "adapter", "name": "new", "base_model": "demo", "method": "dpo"}
    run.events.write_text(json.dumps(told) + "\n")
    attempt = begun(world, job)
    real, deleted = events.keep_adapter, []

    def keep_and_lose(folder: DataFolder, source: Path) -> tuple[str, int]:
        found = real(folder, source)
        if not deleted:
            deleted.append(delete_adapter(world.db, folder, old.id))
        return found

    events.keep_adapter = keep_and_lose  # type: ignore[attr-defined]
    try:
        with pytest.raises(Conflict, match="kept anew"):
            events.drain(world.db, world.folder, attempt.id)
        assert list_adapters(world.db) == []
        events.drain(world.db, world.folder, attempt.id)
    finally:
        events.keep_adapter = real  # type: ignore[attr-defined]
    assert deleted == [True]
    assert [one.name for one in list_adapters(world.db)] == ["new"]
    assert [one for one in upkeep.check(world.db, world.folder, hashes=True) if "adapter" in one.what] == []


def test_the_row_that_came_first_keeps_the_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the deletion of a row and that of its files another adapter of the same files is added."""
    from storage import adapters

    old = trained(world, "old")
    real = adapters._remove_files

    def later(*words: Any) -> bool:
        trained(world, "new")
        return real(*words)

    monkeypatch.setattr(adapters, "_remove_files", later)
    assert delete_adapter(world.db, world.folder, old.id) is False
    assert (world.folder.adapters / old.sha256).is_dir()
    assert upkeep.check(world.db, world.folder, hashes=True) == []
