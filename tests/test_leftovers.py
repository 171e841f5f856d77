"""Processes: adopted by their words, ended with what they started, claimed once by however many supervisors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from factories import World
from jobs import steering
from jobs.processes import PROJECT, RUN, find_worker, leftovers, worker_environment
from jobs.runs import RunFolder
from jobs.standby import lock_of, watch_over
from jobs.supervisor import Supervisor
from storage import jobs as store
from storage.lifecycle import JobStatus
from storage.records import Job
from storage.rows import count
from supervised import Sleeper, Wait, attempt_of, status, submit_judge, supervisors

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that sleeps; ended with the test."""
    children: list[subprocess.Popen[bytes]] = []

    def started(*words: str, session: bool = True, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(600)", *words]
        variables = {**os.environ, **environment}
        children.append(subprocess.Popen(command, start_new_session=session, env=variables))
        return children[-1]

    yield started
    for child in children:
        child.kill()
        child.wait()


def gone(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


# what outlives its worker -------------------------------------------------------------------------------------


def test_what_a_worker_left_running_is_ended_before_its_slot_is_given_away(
    world: World, sleeper: Sleeper, start: Start, wait_for: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    job, child = sleeper(world)
    run = str(world.folder.run(job.id))
    left = start(**{RUN: run})
    others = [start(**{RUN: run + "9"}), start()]
    wait_for(lambda: "time.sleep" in " ".join(psutil.Process(left.pid).cmdline()), "it has become itself")
    supervisor = Supervisor(world.settings)
    supervisor.step(world.db)
    assert not gone(left), "the worker lives, and may need it"
    child.kill()
    child.wait()
    supervisor.step(world.db)
    assert not psutil.pid_exists(left.pid)
    assert not any(gone(other) for other in others)
    assert f"ended what its worker had left running (processes {left.pid})" in capsys.readouterr().out
    assert status(world, job) is JobStatus.FAILED


def test_a_worker_hands_its_run_folder_on_to_all_that_it_starts(world: World) -> None:
    job = world.job()
    assert worker_environment(world.folder, job)[RUN] == str(world.folder.run(job.id))


def test_an_orphan_with_no_environment_is_known_by_its_workers_session(
    world: World, sleeper: Sleeper, tmp_path: Path, wait_for: Wait
) -> None:
    """Some programs write their title over their environment."""
    job, _ = sleeper(world)
    attempt, told = attempt_of(world, job), tmp_path / "pid"
    script = f"""import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={{}})
pathlib.Path({str(told)!r}).write_text(str(child.pid) + " ")
time.sleep(600)"""
    orphan = None
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as leader:
        try:
            began = psutil.Process(leader.pid).create_time()
            store.identify(world.db, attempt.id, leader.pid, began, leader.pid)
            wait_for(lambda: told.exists() and told.read_text().endswith(" "), "it has started one")
            orphan = psutil.Process(int(told.read_text()))
            wait_for(lambda: orphan.environ() == {}, "which has become itself")
            assert leftovers(world.folder, attempt_of(world, job)) == [], (
                "its session's leader lives, whoever it is"
            )
            leader.kill()
            leader.wait()
            assert leftovers(world.folder, attempt_of(world, job)) == [orphan]
            store.identify(world.db, attempt.id, leader.pid, began + 1000, leader.pid)
            assert leftovers(world.folder, attempt_of(world, job)) == [], "older than the attempt"
        finally:
            leader.kill()
            if orphan is not None:
                orphan.kill()


def test_a_slot_stays_taken_while_what_is_left_cannot_be_ended(
    world: World, sleeper: Sleeper, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, child = sleeper(world)
    left = psutil.Process(start().pid)
    monkeypatch.setattr("jobs.supervisor.leftovers", lambda folder, attempt: [left])
    monkeypatch.setattr("jobs.supervisor.end_all", lambda processes: processes)
    child.kill()
    child.wait()
    supervisor = Supervisor(world.settings)
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.RUNNING
    monkeypatch.setattr("jobs.supervisor.LEFT_SECONDS", -1.0)
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.FAILED, "not for ever"


# adopting -----------------------------------------------------------------------------------------------------


def test_a_worker_whose_pid_nobody_noted_is_found_by_its_words(
    world: World, sleeper: Sleeper, start: Start, wait_for: Wait
) -> None:
    job, _ = sleeper(world)
    run = str(world.folder.run(job.id))
    world.db.conn.execute("UPDATE attempts SET pid = NULL, pid_started = NULL, process_group = NULL")
    start("-m", "jobs.worker", run), start("-m", "jobs.worker", run + "1", **{RUN: run})
    assert find_worker(world.folder, job.id) is None, "started by hand, or another's"
    worker = start("-m", "jobs.worker", run, **{RUN: run})
    wait_for(lambda: find_worker(world.folder, job.id), "it is found")
    Supervisor(world.settings).step(world.db)
    attempt = attempt_of(world, job)
    assert (attempt.pid, attempt.process_group) == (worker.pid, worker.pid)
    assert attempt.pid_started == psutil.Process(worker.pid).create_time()
    assert status(world, job) is JobStatus.RUNNING


def test_a_job_whose_worker_was_never_started_is_queued_again_whatever_its_kind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor died between the claim and the spawn: a chat model, say, has not begun."""
    monkeypatch.setattr("jobs.supervisor.SPEAK_SECONDS", -1.0)
    job = world.job("merge")
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir()
    (run.path / "job.json").write_text("{}")
    store.claim_next(world.db, "device", "cpu")
    store.start_attempt(world.db, job.id)
    supervisor = Supervisor(world.settings)
    monkeypatch.setattr(supervisor, "_start_next", lambda db, slot_kind: False)
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.QUEUED
    assert attempt_of(world, job).reason == "The supervisor died before it started the worker."
    assert attempt_of(world, job).cause == "gone"


def test_what_another_supervisor_has_settled_is_not_settled_again(world: World, sleeper: Sleeper) -> None:
    """Somebody deleted the lock's file: for a moment there are two."""
    job, child = sleeper(world)
    (world.folder.run(job.id) / "job.json").write_text("{}")
    supervisor = Supervisor(world.settings)
    stale_attempt, stale_job = attempt_of(world, job), store.get_job(world.db, job.id)
    child.kill()
    child.wait()
    store.end_attempt(world.db, stale_attempt.id, "failed", "by the other", "killed")
    store.move(world.db, job.id, JobStatus.FAILED, "by the other")
    store.requeue(world.db, job.id)
    supervisor._settle(world.db, stale_attempt, stale_job, None, "")
    assert status(world, job) is JobStatus.QUEUED
    store.claim_next(world.db, "network", "network-0")
    again = store.start_attempt(world.db, job.id)
    store.move(world.db, job.id, JobStatus.RUNNING)
    supervisor._settle(world.db, stale_attempt, stale_job, None, "")
    assert status(world, job) is JobStatus.RUNNING, "it works in its next attempt"
    assert [one.reason for one in store.attempts_of(world.db, job.id)] == ["by the other", ""]
    assert store.get_attempt(world.db, again.id).ended_at is None


def test_a_stop_that_comes_while_a_job_is_settled_counts(
    world: World, sleeper: Sleeper, no_supervisor: None
) -> None:
    job, child = sleeper(world)
    (world.folder.run(job.id) / "job.json").write_text("{}")
    stale = store.get_job(world.db, job.id)
    child.kill()
    child.wait()
    steering.stop(world.db, world.settings, job.id)
    supervisor = Supervisor(world.settings)
    supervisor._settle(world.db, attempt_of(world, job), stale, None, "")
    assert status(world, job) is JobStatus.STOPPING
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.STOPPED
    assert store.get_job(world.db, job.id).reason


def test_a_supervisor_whose_lock_was_deleted_leaves(world: World, sleeper: Sleeper) -> None:
    sleeper(world)
    lock = lock_of(world.folder)
    with lock:
        supervisor = Supervisor(world.settings)
        left: list[bool] = []
        thread = threading.Thread(target=lambda: left.append(supervisor.run_until_idle(lock)), daemon=True)
        thread.start()
        Path(lock.lock_file).unlink()
        thread.join(30)
        assert left == [False]


# several at once ----------------------------------------------------------------------------------------------

CLAIM = """
import sys
from jobs.settings import Settings
from storage import jobs as store
from storage.database import connect, immediate
settings = Settings(data=sys.argv[1], devices=("cpu",))
db = connect(settings.folder)
print("ready", flush=True)
sys.stdin.readline()
while True:
    with immediate(db):
        job = store.claim_next(db, "device", "cpu")
        if job is None:
            break
        store.start_attempt(db, job.id)
    print(job.id, flush=True)
"""


@pytest.mark.slow
def test_six_processes_that_claim_at_once_give_each_job_to_one(world: World) -> None:
    wanted = [world.job().id for _ in range(120)]
    command = [sys.executable, "-c", CLAIM, str(world.folder.root)]
    claimers = [
        subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    try:
        for claimer in claimers:
            assert claimer.stdout is not None
            assert claimer.stdout.readline() == "ready\n"
        for claimer in claimers:
            assert claimer.stdin is not None
            claimer.stdin.write("\n")
            claimer.stdin.flush()
        claimed = [int(line) for claimer in claimers for line in claimer.communicate(timeout=60)[0].split()]
    finally:
        for claimer in claimers:
            claimer.kill()
    assert sorted(claimed) == wanted
    assert count(world.db, "SELECT count(*) FROM attempts") == 120


@pytest.mark.slow
def test_of_several_supervisors_that_start_at_once_one_works(busy: World, no_supervisor: None) -> None:
    job = submit_judge(busy)
    environment = {**os.environ, "PLUMB_DATA": str(busy.folder.root), "PLUMB_DEVICES": "cpu"}
    environment["PLUMB_SUPERVISOR_IDLE_SECONDS"] = "3"
    command = [sys.executable, "-m", "jobs", "supervise"]
    started = [
        subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    told = [one.communicate(timeout=90)[0] for one in started]
    assert sum(f"supervisor {one.pid} at work on" in text for one, text in zip(started, told, strict=True)) == 1
    assert sum("Another supervisor is at work" in text for text in told) == 3
    assert status(busy, job) is JobStatus.DONE
    assert len(store.attempts_of(busy.db, job.id)) == 1
    assert count(busy.db, "SELECT count(*) FROM judgements WHERE job_id = ?", [job.id]) == 300


def test_the_app_brings_a_killed_supervisor_back(
    busy: World, wait_for: Wait, no_supervisor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, however short ago it was started."""
    monkeypatch.setattr("jobs.standby.BEGIN_SECONDS", 600.0)
    monkeypatch.setattr("jobs.standby.WATCH_SECONDS", 0.1)
    ended = threading.Event()
    thread = watch_over(busy.settings, ended)
    try:
        job: Job = submit_judge(busy)
        wait_for(lambda: supervisors(busy), "there is one")
        for process in supervisors(busy):
            process.kill()
        wait_for(lambda: status(busy, job) is JobStatus.DONE, "another goes on")
    finally:
        ended.set()
        thread.join()
