"""Jobs under a supervisor, for tests: a world with plenty to judge, and workers that only sleep."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from factories import USER, World, open_world
from jobs import queue
from jobs.runs import RunFolder
from storage import jobs as store
from storage.lifecycle import JobStatus
from storage.records import Attempt, Job

Wait = Callable[..., None]
Sleeper = Callable[[World], tuple[Job, subprocess.Popen[bytes]]]


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[World]:
    """A world with plenty to judge; whatever it started is ended with it."""
    made = open_world(tmp_path / "data")
    job = made.job()
    for number in range(1, 301):
        made.candidates(made.sample(number, colour=1), ["circle", "The shape is a circle."], job)
    made.db.conn.execute("UPDATE jobs SET status = 'done'")
    yield made
    for process in started_by(made):
        process.kill()
    made.db.close()


def started_by(world: World) -> list[psutil.Process]:
    """The supervisor and the workers of this data folder, found by their own folder alone."""
    root = str(world.folder.root)
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PLUMB_DATA") == root and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def supervisors(world: World) -> list[psutil.Process]:
    found = []
    for process in started_by(world):
        try:
            if "supervise" in process.cmdline():
                found.append(process)
        except psutil.Error:  # it ends while it is looked at
            continue
    return found


def submit_judge(world: World) -> Job:
    return queue.submit(world.db, world.settings, "judge", {"samples": {"only_missing": False}}, USER)


def status(world: World, job: Job) -> JobStatus:
    return store.get_job(world.db, job.id).status


def attempt_of(world: World, job: Job) -> Attempt:
    return store.attempts_of(world.db, job.id)[-1]


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    """A job whose worker is a sleeping process of ours, as if a supervisor that is gone had started it."""
    children: list[subprocess.Popen[bytes]] = []

    def start(world: World) -> tuple[Job, subprocess.Popen[bytes]]:
        job = world.job("judge")
        world.db.conn.execute("UPDATE jobs SET slot_kind = 'network' WHERE id = ?", [job.id])
        RunFolder(world.folder.run(job.id)).path.mkdir()
        store.claim_next(world.db, "network", "network-0")
        attempt = store.start_attempt(world.db, job.id)
        script = "import time; time.sleep(600)"
        children.append(subprocess.Popen([sys.executable, "-c", script], start_new_session=True))
        pid = children[-1].pid
        store.identify(world.db, attempt.id, pid, psutil.Process(pid).create_time(), pid)
        store.move(world.db, job.id, JobStatus.RUNNING)
        return job, children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()
