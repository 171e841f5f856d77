"""A disk that is full: the worker says so, whatever it can still write; its job is paused, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from factories import World
from jobs import causes, worker
from jobs.configs import parse_config
from jobs.event_file import read_events, read_tail
from jobs.housekeeping import Complaints, log
from jobs.processes import PROJECT
from jobs.reporter import RESERVE, RESERVE_BYTES, Reporter
from jobs.runs import JobFile, RunFolder
from jobs.supervisor import Supervisor
from jobs.worker import work
from storage import jobs as store
from storage.database import immediate
from storage.lifecycle import JobStatus
from storage.records import Job
from supervised import Sleeper, attempt_of, status, submit_judge

FULL = OSError(errno.ENOSPC, "No space left on device")
TORCH = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def fill(folder: Path) -> Path:
    """Take the last byte of the disk under a folder; returns what takes it."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    return filler


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """No paused job is woken: where Plumb looks, there is always room."""
    monkeypatch.setattr("jobs.disk_guard.wake", lambda db, settings: [])


def moved(world: World, job: Job, target: Path) -> RunFolder:
    """A job's run folder on another disk, with its old path leading there."""
    shutil.move(world.folder.run(job.id), target)
    world.folder.run(job.id).symlink_to(target)
    return RunFolder(target)


def judged(run: RunFolder) -> list[int]:
    return [event["sample_id"] for event in read_events(run.events) if event["kind"] == "judgement"]


def test_a_disk_that_fills_while_a_job_runs_pauses_it_and_it_goes_on(
    busy: World, small: Path, no_supervisor: None
) -> None:
    """The real worker, on a real small disk: paused, resumed, nothing lost and nothing twice."""
    run = moved(busy, submit_judge(busy), small / "run")
    filler = fill(small)
    os.truncate(filler, filler.stat().st_size - RESERVE_BYTES - 60_000)  # some of the judgements fit
    command = [sys.executable, "-m", "jobs.worker", str(run.path)]
    first = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert first.returncode == causes.DISK_FULL, first.stderr
    end = read_tail(run.events)[-1]
    assert (end["kind"], end["status"], end["cause"]) == ("end", "paused", "disk")
    assert end["reason"].startswith("The disk is full. What was complete is kept")
    done = judged(run)
    assert 0 < len(done) < 300
    filler.unlink()
    second = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert judged(run)[: len(done)] == done
    assert len(judged(run)) == len(set(judged(run))) == 300
    assert not (run.path / RESERVE).exists()


def test_a_disk_without_a_byte_is_told_by_the_exit_code(
    busy: World, small: Path, no_supervisor: None, no_room: None
) -> None:
    """The supervisor starts a worker that cannot write a word, pauses the job, and starts no second one."""
    job = submit_judge(busy)
    run = moved(busy, job, small / "run")
    fill(small)
    supervisor = Supervisor(busy.settings)
    supervisor.step(busy.db)
    child = next(iter(supervisor._children.values()))
    assert child.wait(60) == causes.DISK_FULL
    supervisor.step(busy.db)
    paused = store.get_job(busy.db, job.id)
    assert paused.status is JobStatus.PAUSED
    assert "The disk is full" in paused.reason
    assert (attempt_of(busy, job).cause, attempt_of(busy, job).exit_code) == ("disk", causes.DISK_FULL)
    assert judged(run) == []


def test_the_last_word_takes_the_place_of_the_reserve(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with Reporter(run, heartbeat_seconds=600) as reporter:
        reserve = tmp_path / RESERVE
        assert reserve.stat().st_size == RESERVE_BYTES
        assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES, "real bytes, no hole"
        real = reporter._file

        class Disk:
            """It is full as long as the reserve is there."""

            def write(self, data: bytes) -> int:
                if reserve.exists():
                    return int(real.write(data[:7]))
                return int(real.write(data))

            def close(self) -> None:
                real.close()

        reporter._file = Disk()  # type: ignore[assignment]
        with pytest.raises(OSError, match="disk is full"):
            reporter.note("does not fit")
        reporter.end("paused", "x" * 10_000, causes.Cause.DISK)
    end = list(read_events(run.events))[-1]
    assert (end["status"], end["cause"], len(end["reason"])) == ("paused", "disk", 4000)


def judge_run(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    config = parse_config("judge", {}).model_dump(mode="json")
    job = JobFile(
        job_id=7,
        kind="judge",
        config=config,
        user="ada",
        device="network",
        models_dir="",
        created_at="2026-11-23T07:00:00+00:00",
    )
    run.freeze(job, [])
    return run


@pytest.mark.parametrize(
    ("error", "full", "status", "cause", "code"),
    [
        (FULL, False, "paused", "disk", causes.DISK_FULL),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
            True,
            "paused",
            "disk",
            75,
        ),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
            False,
            "failed",
            "bug",
            1,
        ),
        (MemoryError(), True, "failed", "memory", 1),
    ],
)
def test_an_error_on_a_full_disk_is_the_disks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    full: bool,
    status: str,
    cause: str,
    code: int,
) -> None:
    run = judge_run(tmp_path / "run")

    def perform(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "perform", perform)
    monkeypatch.setattr(worker, "is_full", lambda folder: full)
    assert work(run.path) == code
    end = read_tail(run.events)[-1]
    assert (end["status"], end["cause"]) == (status, cause)
    assert end["reason"]


def test_a_folder_that_cannot_be_written_has_a_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = judge_run(tmp_path / "run")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Reporter, "event", refuse)
    assert work(run.path) == causes.CANNOT_WRITE


# the supervisor -----------------------------------------------------------------------------------------------


def end_with(run: RunFolder, **words: object) -> None:
    with run.events.open("a") as file:
        file.write(json.dumps({"kind": "end", **words}) + "\n")


def test_a_paused_job_waits_and_does_not_start_by_itself(world: World, sleeper: Sleeper, no_room: None) -> None:
    job, child = sleeper(world)
    run = RunFolder(world.folder.run(job.id))
    (run.path / "job.json").write_text("{}")
    end_with(run, status="paused", reason="The disk is full.", cause="disk")
    child.kill()
    child.wait()
    supervisor = Supervisor(world.settings)
    for _ in range(3):
        supervisor.step(world.db)
    assert status(world, job) is JobStatus.PAUSED
    assert store.get_job(world.db, job.id).reason == "The disk is full."
    assert len(store.attempts_of(world.db, job.id)) == 1
    assert store.count_open(world.db) == 1, "the supervisor stays for it"


def test_a_job_that_finds_another_disk_full_again_and_again_fails_in_the_end(
    world: World, sleeper: Sleeper
) -> None:
    """/tmp, say: there is always room where Plumb looks, and the job would be woken for ever."""
    job, child = sleeper(world)
    run = RunFolder(world.folder.run(job.id))
    world.db.conn.execute("UPDATE jobs SET retries = 0")
    end_with(run, status="paused", reason="The disk is full.", cause="disk")
    child.kill()
    child.wait()
    Supervisor(world.settings).step(world.db)
    ended = store.get_job(world.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert "another disk is full" in ended.reason
    assert attempt_of(world, job).cause == "disk"


def test_events_that_find_no_room_in_the_database_wait(
    world: World, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, child = sleeper(world)
    end_with(RunFolder(world.folder.run(job.id)), status="done", reason="")
    child.kill()
    child.wait()
    supervisor = Supervisor(world.settings)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("jobs.supervisor.read_on", full)
        supervisor.step(world.db)
        assert status(world, job) is JobStatus.RUNNING
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.DONE


def test_a_commit_that_fails_leaves_no_transaction_open(world: World) -> None:
    """Else what follows would be taken for a part of it, and never be kept."""

    def book() -> None:
        with immediate(world.db):
            world.db.conn.execute("PRAGMA defer_foreign_keys = ON")
            world.db.conn.execute("INSERT INTO attempts (job_id, number, started_at) VALUES (99, 1, 'now')")

    with pytest.raises(sqlite3.IntegrityError):
        book()
    assert not world.db.conn.in_transaction
    with immediate(world.db):
        world.job()
    assert len(store.list_jobs(world.db)) == 1


def test_a_log_without_room_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise FULL

    monkeypatch.setattr("builtins.print", full)
    log("anything")
    Complaints().say("key", "anything")


def test_what_goes_wrong_at_every_pass_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    complaints = Complaints()
    for text in ("one", "one", "two", "two"):
        complaints.say("key", text)
    assert [line[20:] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]
    assert complaints.over("key")
    assert not complaints.over("key")
