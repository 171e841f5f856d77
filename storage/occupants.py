"""Who is at work in a data folder, so that nobody takes it away from under them.

A supervisor holds a lock of its own; every app that serves the folder shares another; workers, and all that they
start, carry their run folder in their environment, and may outlive both. Calls that come and go, as a command that
submits a job, hold nothing: they meet a database that is not there and say so (`storage.database.connect`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from storage.errors import Conflict
from storage.folder import DataFolder

#: The run folder of a worker, in its environment and in that of all that it starts.
WORKER_RUN = "PLUMB_WORKER_RUN"

APP_LOCK, SUPERVISOR_LOCK = "app.lock", "supervisor.lock"


@dataclass
class Presence:
    """An app's share in the lock; the system takes it back when the process ends, however it ends."""

    descriptor: int | None

    def leave(self) -> None:
        """Give it up before that."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def enter(folder: DataFolder) -> Presence:
    """Say that an app serves this data folder, for as long as the process lives. Several may.

    Raises:
        Conflict: the folder is being repaired, or moved away for a restore.
    """
    try:
        descriptor = _lock_app(folder, fcntl.LOCK_SH)
    except OSError:  # a file system without such locks
        return Presence(None)
    if descriptor is None:
        raise Conflict(
            f"The data folder {folder.root} is being repaired, or moved away for a restore; start again once that "
            "is done."
        )
    return Presence(descriptor)


@contextlib.contextmanager
def alone(folder: DataFolder) -> Iterator[None]:
    """Nobody else is at work in the folder, and neither a supervisor nor an app can begin meanwhile.

    Raises:
        Conflict: somebody is; it says who, and what to do.
    """
    if not folder.runtime.is_dir():  # no Plumb has begun here
        _refuse_workers(folder)
        yield
        return
    lock = FileLock(folder.runtime / SUPERVISOR_LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Conflict(
            f"A supervisor is at work on {folder.root}, and nothing is done beside it. Stop Plumb and its jobs "
            "first; the supervisor leaves by itself soon after the last job has ended."
        ) from None
    descriptor = None
    try:
        descriptor = _lock_app(folder, fcntl.LOCK_EX)
        if descriptor is None:
            raise Conflict(f"Plumb's app serves {folder.root}. End it (python app.py), then try again.")
        _refuse_workers(folder)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        lock.release()


def _lock_app(folder: DataFolder, kind: int) -> int | None:
    """A descriptor that holds the lock, which children do not inherit; None where others hold it otherwise."""
    descriptor = os.open(folder.runtime / APP_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def workers(folder: DataFolder) -> list[tuple[int, int]]:
    """(process, job) of all that work in run folders of this data folder, as far as this user may see."""
    runs = os.path.realpath(folder.runs)
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            run = process.environ().get(WORKER_RUN)
        except (psutil.Error, OSError, ValueError):
            continue  # another user's, or one that has ended
        place = Path(os.path.realpath(run)) if run else None
        if place is not None and str(place.parent) == runs and place.name.isdecimal():
            found.append((process.pid, int(place.name)))
    return found


def _refuse_workers(folder: DataFolder) -> None:
    there = workers(folder)
    if not there:
        return
    pids = ", ".join(str(pid) for pid, _ in there)
    jobs = sorted({job for _, job in there})
    named = f"job {jobs[0]}" if len(jobs) == 1 else f"jobs {', '.join(map(str, jobs))}"
    raise Conflict(
        f"Workers of {named} are still at work in {folder.root} (processes {pids}), with no supervisor beside "
        "them. `python -m jobs supervise` takes them over and waits for their end; `python -m jobs stop` ends a "
        "job. Then try again."
    )
