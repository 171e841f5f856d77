"""Deleted runs: the bin, the way back, and crashes between a rename and its row."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlite_utils import Database
from typer.testing import CliRunner

from factories import USER, World
from jobs import bin as recycling
from jobs import queue, steering
from jobs.__main__ import app
from jobs.supervisor import Supervisor
from storage import jobs as store
from storage.adapters import add_adapter, keep_adapter, list_adapters
from storage.database import immediate
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from storage.recycling import deleted_jobs
from storage.runs import RunFilter, list_runs, run_choices
from storage.upkeep import check


def ended(world: World, status: JobStatus = JobStatus.FAILED, kind: str = "generate", **config: object) -> Job:
    """A job that has ended, with a run folder."""
    job = world.job(kind, **config)
    store.move(world.db, job.id, JobStatus.STARTING)
    store.move(world.db, job.id, status, "" if status is JobStatus.DONE else "a reason")
    folder = world.folder.run(job.id)
    (folder / "data").mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    (folder / "events.jsonl").write_text("x" * 5_000)
    return store.get_job(world.db, job.id)


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def delete(world: World, job: Job) -> Job:
    return recycling.delete_run(world.db, world.settings, job.id, USER)


def listed(world: World) -> list[int]:
    return [job.id for job in store.list_jobs(world.db)]


def aged(world: World, job: Job, days: float) -> None:
    """As if it had been deleted so many days ago."""
    when = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
    world.db.conn.execute("UPDATE jobs SET deleted_at = ? WHERE id = ?", [when, job.id])


# there and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(ENDED))
def test_a_deleted_run_lies_in_the_bin(world: World, status: JobStatus) -> None:
    job = ended(world, status)
    gone = delete(world, job)
    assert gone.deleted_by == USER
    assert gone.deleted_at is not None
    assert gone.status is status
    assert not world.folder.run(job.id).exists()
    assert (world.folder.binned(job.id) / "events.jsonl").stat().st_size == 5_000
    assert listed(world) == []
    assert [one.id for one in store.list_jobs(world.db, deleted=True)] == [job.id]
    assert [one.id for one in recycling.deleted_runs(world.db)] == [job.id]


def test_a_restored_run_is_as_it_was(world: World) -> None:
    job = ended(world)
    delete(world, job)
    assert recycling.restore_run(world.db, world.settings, job.id) == job
    assert (world.folder.run(job.id) / "job.json").read_text() == "{}"
    assert not world.folder.binned(job.id).exists()
    assert listed(world) == [job.id]
    assert recycling.deleted_runs(world.db) == []
    with pytest.raises(Conflict, match="not deleted; there is nothing to restore"):
        recycling.restore_run(world.db, world.settings, job.id)


@pytest.mark.parametrize("status", sorted(set(JobStatus) - ENDED))
def test_a_job_that_has_not_ended_stays(world: World, status: JobStatus) -> None:
    job = ended(world)
    world.db.conn.execute("UPDATE jobs SET status = ? WHERE id = ?", [status, job.id])
    with pytest.raises(Conflict, match=f"is {status}; stop it first"):
        delete(world, job)
    assert world.folder.run(job.id).is_dir()


def test_a_worker_that_has_not_left_keeps_its_folder(world: World) -> None:
    job = ended(world)
    attempt = store.start_attempt(world.db, job.id)
    with pytest.raises(Conflict, match="has not left yet"):
        delete(world, job)
    store.end_attempt(world.db, attempt.id, "failed", "")
    delete(world, job)


def test_a_job_for_which_another_waits_stays(world: World) -> None:
    job, other = ended(world), world.job()
    world.db.conn.execute("UPDATE jobs SET after_id = ? WHERE id = ?", [job.id, other.id])
    with pytest.raises(Conflict, match=rf"Job {other.id} comes after job {job.id}; .*after {other.id} --none"):
        delete(world, job)
    assert listed(world) == [other.id, job.id]
    steering.follow(world.db, other.id, None)
    delete(world, job)


def test_nobody_waits_for_a_job_that_is_done(world: World) -> None:
    job, other = ended(world, JobStatus.DONE), world.job()
    world.db.conn.execute("UPDATE jobs SET after_id = ? WHERE id = ?", [job.id, other.id])
    delete(world, job)
    assert store.is_due(world.db, store.get_job(world.db, other.id))


def test_nothing_is_deleted_twice_or_without_being_there(world: World) -> None:
    job = ended(world)
    delete(world, job)
    with pytest.raises(Conflict, match="deleted already"):
        delete(world, job)
    with pytest.raises(NotFound):
        recycling.delete_run(world.db, world.settings, 99, USER)
    with pytest.raises(NotFound):
        recycling.restore_run(world.db, world.settings, 99)


def test_a_job_whose_folder_is_gone_can_be_deleted(world: World) -> None:
    job, _ = ended(world), ended(world)
    shutil.rmtree(world.folder.run(job.id))
    assert delete(world, job).purged_at is not None
    assert recycling.deleted_runs(world.db) == []
    with pytest.raises(Conflict, match="gone from the bin for good"):
        recycling.restore_run(world.db, world.settings, job.id)


def test_what_lies_in_a_place_is_never_written_over(world: World) -> None:
    job = ended(world)
    world.folder.binned(job.id).mkdir(parents=True)
    (world.folder.binned(job.id) / "old").write_text("of another database")
    delete(world, job)
    assert [path.read_text() for path in world.folder.bin.glob("*.old-*/old")] == ["of another database"]
    world.folder.run(job.id).mkdir()
    with pytest.raises(Conflict, match="is there already; move it away"):
        recycling.restore_run(world.db, world.settings, job.id)
    assert (world.folder.binned(job.id) / "job.json").exists()


def test_a_folder_that_cannot_be_moved_stays_with_its_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ended(world)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(UserError, match=r"cannot be moved .*Permission denied"):
            delete(world, job)
    assert listed(world) == [job.id]
    assert world.folder.run(job.id).is_dir()


def test_a_deleted_run_is_not_resumed(world: World, no_supervisor: None) -> None:
    job = ended(world)
    delete(world, job)
    with pytest.raises(Conflict, match="restore it first"):
        steering.resume(world.db, world.settings, job.id)
    recycling.restore_run(world.db, world.settings, job.id)
    assert steering.resume(world.db, world.settings, job.id).status is JobStatus.QUEUED


def test_deleted_runs_are_out_of_sight(world: World) -> None:
    first = ended(world, JobStatus.DONE, "dpo", dataset="pairs", model="one")
    second = ended(world, JobStatus.FAILED, "dpo", dataset="pairs", model="two")
    world.db.conn.execute("UPDATE jobs SET sweep = ?", [first.id])
    delete(world, second)
    runs, number = list_runs(world.db, ["dpo"], RunFilter())
    assert [run.job.id for run in runs] == [first.id]
    assert number == 1
    assert run_choices(world.db, ["dpo"]).bases == ("one",)
    assert [job.id for job in store.sweep_jobs(world.db, first.id)] == [first.id]
    assert store.sweep_states(world.db, [first.id]) == {first.id: {JobStatus.DONE: 1}}


# for good ---------------------------------------------------------------------------------------------------


def test_what_is_old_goes_for_good_and_its_row_stays(world: World) -> None:
    old, young = ended(world), ended(world)
    for job in (old, young):
        delete(world, job)
    aged(world, old, recycling.KEEP_DAYS + 0.1)
    aged(world, young, recycling.KEEP_DAYS - 0.1)
    assert recycling.purge_old(world.db, world.settings).jobs == (old.id,)
    assert sorted(path.name for path in world.folder.bin.iterdir()) == [world.folder.run(young.id).name]
    assert store.get_job(world.db, old.id).purged_at is not None
    with pytest.raises(Conflict, match="gone from the bin for good"):
        recycling.restore_run(world.db, world.settings, old.id)
    recycling.restore_run(world.db, world.settings, young.id)
    assert recycling.purge_old(world.db, world.settings).jobs == ()


def test_the_days_are_a_setting(world: World) -> None:
    job = ended(world)
    delete(world, job)
    aged(world, job, 3)
    assert recycling.purge_old(world.db, world.settings).jobs == ()
    recycling.set_days(world.db, 2, USER)
    assert recycling.purge_old(world.db, world.settings).jobs == (job.id,)
    recycling.set_days(world.db, None, USER)
    assert recycling.get_days(world.db) == recycling.KEEP_DAYS
    with pytest.raises(UserError, match="bin_days = -1"):
        recycling.set_days(world.db, -1, USER)


def test_what_a_purged_job_made_stays(world: World) -> None:
    job = ended(world, JobStatus.DONE, "dpo", dataset="pairs")
    made = world.folder.run(job.id) / "adapter"
    made.mkdir()
    (made / "adapter_model.safetensors").write_bytes(b"weights" * 1_000)
    sha256, size = keep_adapter(world.folder, made)
    add_adapter(world.db, job, "mine", sha256, size, "demo", "dpo")
    delete(world, job)
    recycling.purge(world.db, world.settings)
    assert not world.folder.binned(job.id).exists()
    (adapter,) = list_adapters(world.db)
    assert store.get_job(world.db, adapter.job_id).config["dataset"] == "pairs"
    assert (world.folder.adapters / sha256 / "adapter_model.safetensors").read_bytes() == b"weights" * 1_000


def test_the_check_knows_the_bin(world: World) -> None:
    kept, binned, purged, lost = (ended(world) for _ in range(4))
    delete(world, purged)
    recycling.purge(world.db, world.settings)
    delete(world, binned)
    delete(world, lost)
    assert check(world.db, world.folder) == []
    shutil.rmtree(world.folder.binned(lost.id))
    assert [finding.what for finding in check(world.db, world.folder)] == [f"run folder of job {lost.id}"]
    assert kept.deleted_at is None


def test_the_supervisor_empties_the_bin(world: World) -> None:
    job = ended(world)
    delete(world, job)
    aged(world, job, 30)
    Supervisor(world.settings).step(world.db)
    assert store.get_job(world.db, job.id).purged_at is not None
    assert not world.folder.binned(job.id).exists()


def test_many_are_deleted_at_once(world: World) -> None:
    old, young, waited_for, done = ended(world), ended(world), ended(world), ended(world, JobStatus.DONE)
    other = world.job()
    world.db.conn.execute("UPDATE jobs SET after_id = ? WHERE id = ?", [waited_for.id, other.id])
    for job in (old, waited_for, done):
        when = (datetime.now(UTC) - timedelta(days=9)).isoformat(timespec="milliseconds")
        world.db.conn.execute("UPDATE jobs SET ended_at = ? WHERE id = ?", [when, job.id])
    found = recycling.delete_runs(world.db, world.settings, USER, older_than=timedelta(days=5))
    assert found.jobs == (old.id,)
    assert found.bytes == sum(
        path.stat().st_blocks * 512 for path in world.folder.binned(old.id).rglob("*") if path.is_file()
    )
    assert [f"comes after job {waited_for.id}" in reason for reason in found.kept] == [True]
    assert listed(world) == [other.id, done.id, waited_for.id, young.id]
    with pytest.raises(UserError, match="statuses = running"):
        recycling.delete_runs(world.db, world.settings, USER, [JobStatus.RUNNING])


# crashes ----------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process dies here."""


def test_a_crash_after_the_rename_and_before_the_row(world: World) -> None:
    """Deleting: the folder lies in the bin, and no row says so. Nothing was deleted."""
    job = ended(world)
    world.folder.bin.mkdir()
    world.folder.run(job.id).rename(world.folder.binned(job.id))
    assert recycling.recover(world.db, world.settings) == [job.id]
    assert (world.folder.run(job.id) / "job.json").exists()
    assert listed(world) == [job.id]
    assert recycling.recover(world.db, world.settings) == []


def test_a_crash_after_the_row_and_before_the_rename(world: World) -> None:
    """A power failure may keep the commit and lose the rename: it is deleted, and its folder follows."""
    job = ended(world)
    delete(world, job)
    world.folder.binned(job.id).rename(world.folder.run(job.id))
    assert recycling.recover(world.db, world.settings) == [job.id]
    assert (world.folder.binned(job.id) / "job.json").exists()
    assert listed(world) == []
    assert recycling.restore_run(world.db, world.settings, job.id).deleted_at is None


def test_a_crash_while_restoring(world: World) -> None:
    first, second = ended(world), ended(world)
    for job in (first, second):
        delete(world, job)
    # One died between the rename and the commit, of the other the commit outlived the rename.
    world.folder.binned(first.id).rename(world.folder.run(first.id))
    world.db.conn.execute("UPDATE jobs SET deleted_at = NULL WHERE id = ?", [second.id])
    assert sorted(recycling.recover(world.db, world.settings)) == [first.id, second.id]
    assert world.folder.binned(first.id).is_dir()
    assert world.folder.run(second.id).is_dir()
    assert listed(world) == [second.id]


def test_whoever_restores_first_puts_it_right_himself(world: World) -> None:
    """No supervisor has been there since the crash."""
    first, second = ended(world), ended(world)
    world.folder.bin.mkdir()
    world.folder.run(first.id).rename(world.folder.binned(first.id))  # while deleting
    delete(world, second)
    world.folder.binned(second.id).rename(world.folder.run(second.id))  # while restoring
    for job in (first, second):
        assert recycling.restore_run(world.db, world.settings, job.id).deleted_at is None
        assert (world.folder.run(job.id) / "job.json").exists()


@pytest.mark.parametrize("act", ["delete", "restore"])
def test_a_commit_that_fails_takes_the_rename_back(
    world: World, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    job = ended(world)
    if act == "restore":
        job = delete(world, job)

    @contextmanager
    def full_at_the_commit(db: Database) -> Iterator[Database]:
        with immediate(db):
            yield db
            raise sqlite3.OperationalError("database or disk is full")

    move = (recycling.restore_run, ()) if act == "restore" else (recycling.delete_run, (USER,))
    with monkeypatch.context() as patch:
        patch.setattr(recycling, "immediate", full_at_the_commit)
        with pytest.raises(UserError, match=r"disk is full.*nothing was changed.*bin --empty"):
            move[0](world.db, world.settings, job.id, *move[1])
    assert (world.folder.binned(job.id) if act == "restore" else world.folder.run(job.id)).is_dir()
    assert store.get_job(world.db, job.id) == job
    assert recycling.recover(world.db, world.settings) == []


def test_a_crash_while_purging(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it comes, nothing half-removed can be restored, and the rest goes the next time."""
    job = ended(world)
    delete(world, job)

    def dies(path: Path, **_: object) -> None:
        (path / "job.json").unlink()
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        with pytest.raises(Crash):
            recycling.purge(world.db, world.settings)
    assert list(world.folder.bin.iterdir()) != []
    with pytest.raises(Conflict, match="gone from the bin for good"):
        recycling.restore_run(world.db, world.settings, job.id)
    recycling.purge_old(world.db, world.settings)
    assert list(world.folder.bin.iterdir()) == []
    assert store.get_job(world.db, job.id).purged_at is not None


def test_the_bin_is_emptied_on_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a byte can be written before the files are gone, and the row is marked when there is room."""
    job = ended(world)
    delete(world, job)

    def refused(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("storage.recycling.mark_purged", refused)
        assert recycling.purge(world.db, world.settings).jobs == (job.id,)
    assert list(world.folder.bin.iterdir()) == []
    recycling.recover(world.db, world.settings)
    assert store.get_job(world.db, job.id).purged_at is not None


def test_a_folder_that_nobody_knows_is_left_alone(world: World) -> None:
    for name in ("000077", "000001.old-abcd", "notes"):
        (world.folder.bin / name).mkdir(parents=True)
    assert recycling.purge_old(world.db, world.settings).jobs == ()
    assert len(list(world.folder.bin.iterdir())) == 3


@pytest.mark.parametrize("again", [False, True])
def test_restoring_while_it_is_purged_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Nor does deleting it once more: that has its own days to think again."""
    job = ended(world)
    delete(world, job)
    aged(world, job, 30)

    def found_before(db: Database, before: str | None = None) -> list[Job]:
        found = deleted_jobs(db, before)
        recycling.restore_run(world.db, world.settings, job.id)  # between the look and the deed
        if again:
            delete(world, job)
        return found

    monkeypatch.setattr("storage.recycling.deleted_jobs", found_before)
    assert recycling.purge(world.db, world.settings).jobs == ()
    there = world.folder.binned(job.id) if again else world.folder.run(job.id)
    assert (there / "job.json").exists()


def test_a_new_job_gets_its_own_folder(world: World, no_supervisor: None) -> None:
    world.sample()
    job = ended(world)
    delete(world, job)
    new = queue.submit(world.db, world.settings, "generate", {"candidates": 1}, USER)
    assert new.id != job.id
    assert json.loads((world.folder.run(new.id) / "job.json").read_text())["job_id"] == new.id


# folders that stay, and folders that are not there just now ----------------------------------------------------


@contextmanager
def unmounted(world: World) -> Iterator[None]:
    """The disk with the run folders is away; where it belongs is an empty folder."""
    world.folder.runs.rename(world.folder.root / "disk")
    world.folder.runs.mkdir()
    yield
    world.folder.runs.rmdir()
    (world.folder.root / "disk").rename(world.folder.runs)


def test_nothing_is_noted_as_gone_while_the_disk_of_the_runs_is_away(world: World) -> None:
    kept, binned, lost = (ended(world) for _ in range(3))
    for job in (binned, lost):
        delete(world, job)
    shutil.rmtree(world.folder.binned(lost.id))
    aged(world, binned, 30)
    rows = [store.get_job(world.db, job.id) for job in (kept, binned, lost)]
    with unmounted(world):
        for act in (
            lambda: delete(world, kept),
            lambda: recycling.restore_run(world.db, world.settings, binned.id),
            lambda: recycling.recover(world.db, world.settings),
            lambda: recycling.purge(world.db, world.settings),
            lambda: recycling.purge_old(world.db, world.settings),
        ):
            with pytest.raises(UserError, match=r"runs is empty or not there.* is its disk mounted\?"):
                act()
        assert [store.get_job(world.db, job.id) for job in (kept, binned, lost)] == rows
        Supervisor(world.settings).step(world.db)
        assert [store.get_job(world.db, job.id) for job in (kept, binned, lost)] == rows
        assert not world.folder.bin.exists()
    assert recycling.restore_run(world.db, world.settings, binned.id).deleted_at is None
    recycling.recover(world.db, world.settings)
    assert store.get_job(world.db, lost.id).purged_at is not None


def test_a_run_that_was_taken_for_gone_and_is_there_can_be_restored(world: World) -> None:
    first, second = ended(world), ended(world)
    for job in (first, second):
        delete(world, job)
        world.db.conn.execute("UPDATE jobs SET purged_at = 'then' WHERE id = ?", [job.id])
    assert recycling.restore_run(world.db, world.settings, first.id).purged_at is None
    assert (world.folder.run(first.id) / "job.json").exists()
    recycling.recover(world.db, world.settings)
    assert [job.id for job in recycling.deleted_runs(world.db)] == [second.id]
    assert world.folder.binned(second.id).is_dir(), "it has its days again"


@contextmanager
def stuck(monkeypatch: pytest.MonkeyPatch, word: str, freed: str = "") -> Iterator[None]:
    """Files below folders of this name cannot be removed, but for one."""
    real = os.unlink

    def refuse(path: object, *words: object, dir_fd: int | None = None) -> None:
        inside = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else str(path)
        if word in inside and str(path) != freed:
            raise PermissionError(13, "Permission denied", path)
        real(path, *words, dir_fd=dir_fd)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        yield


def test_a_folder_that_cannot_be_removed_keeps_no_other_from_going(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ended(world), ended(world)
    for job in (first, second):
        (world.folder.run(job.id) / "model").write_bytes(bytes(40_960))
        delete(world, job)
    size = disk_bytes(world.folder.binned(first.id))
    with stuck(monkeypatch, f"{second.id:06d}", "model"):  # the later one is the first to go
        done = recycling.purge(world.db, world.settings)
    assert done.jobs == (first.id,)
    assert done.bytes == size + 40_960, "of the other one file went, and the others are not counted"
    (told,) = done.left
    assert f"{second.id:06d}.gone cannot be removed (" in told
    assert "Permission denied" in told
    assert told.startswith("12 KB in ")
    assert store.get_job(world.db, second.id).purged_at is not None, "half of it cannot be restored"
    again = recycling.purge_old(world.db, world.settings)
    assert (again.jobs, again.bytes, again.left) == ((), 12_288, ()), "now it can"
    assert list(world.folder.bin.iterdir()) == []


def test_what_is_stuck_takes_no_other_runs_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job, other = ended(world), ended(world)
    for one in (job, other):
        delete(world, one)
    for one in (job, other):
        name = f"{world.folder.binned(one.id).name}.gone"
        (world.folder.bin / name).mkdir()
        (world.folder.bin / name / "old").write_text("of a database before")
    with stuck(monkeypatch, ".gone", "job.json"):
        done = recycling.purge(world.db, world.settings)
    assert done.jobs == ()
    assert not world.folder.binned(job.id).exists()
    assert len(list(world.folder.bin.iterdir())) == 4
    assert len(done.left) == 4
    assert recycling.purge(world.db, world.settings).left == ()
    assert list(world.folder.bin.iterdir()) == []


def test_a_folder_that_cannot_be_moved_keeps_no_other_from_going(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (ended(world) for _ in range(3))
    for job in (first, second):
        delete(world, job)
    world.folder.bin.joinpath(world.folder.run(third.id).name).mkdir()
    delete(world, third)
    world.folder.binned(third.id).rename(world.folder.run(third.id))  # a crash, for `recover` to mend
    real = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name in (f"{second.id:06d}", f"{third.id:06d}"):
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    for job in (first, second, third):
        aged(world, job, 30)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        done = recycling.purge_old(world.db, world.settings)
    assert done.jobs == (first.id,)
    assert [f"{job.id:06d} cannot be moved" in text for job, text in zip((third, second), done.left, strict=True)]
    assert len(done.left) == 2
    assert [job.id for job in recycling.deleted_runs(world.db)] == [third.id, second.id]


# commands ---------------------------------------------------------------------------------------------------


def run(world: World, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--data", str(world.folder.root)])
    if isinstance(result.exception, PlumbError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands(world: World) -> None:
    first, second, third = ended(world), ended(world, JobStatus.STOPPED), ended(world)
    assert f"job {first.id} is deleted; `python -m jobs restore {first.id}` within 7 days" in run(
        world, "delete", str(first.id)
    )
    assert f"{first.id}  generate   failed    12 KB" in run(world, "bin")
    assert f"job {first.id} (generate) is back: failed" in run(world, "restore", str(first.id))
    assert "1 runs are in the bin" in run(world, "delete", "--stopped", "--older-than", "0")
    found = json.loads(run(world, "delete", "--failed", "--json"))
    assert found["jobs"] == [first.id, third.id]
    assert [entry["id"] for entry in json.loads(run(world, "bin", "--json"))] == [third.id, first.id, second.id]
    assert "3 runs are removed for good; 37 KB are free" in run(world, "bin", "--empty")
    assert "The bin is empty; deleted runs stay in it for 2 days." in run(world, "bin", "--days", "2")
    assert run(world, "delete").startswith("job_ids: give the numbers")
    assert run(world, "delete", str(first.id), "--failed").startswith("job_ids: give the numbers")
    assert run(world, "bin", "--days", "many").startswith("days = 'many'")
    assert run(world, "restore", str(first.id)).startswith(f"The run folder of job {first.id} has gone")
