"""Having a supervisor at work: one per data folder, by file lock.

Whoever submits a job starts one, and the app sees to it that there is one as long as a job is open: a supervisor
that was killed is missed within seconds.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from jobs.processes import PROJECT
from jobs.settings import Settings
from storage import jobs as store
from storage.database import session
from storage.errors import PlumbError
from storage.folder import DataFolder

POLL_SECONDS = 0.5
HAND_OVER_SECONDS = 3.0
WATCH_SECONDS = 2.0
BEGIN_SECONDS = 10.0  # a supervisor has its lock about a second after its start, on a busy machine later


def lock_of(folder: DataFolder) -> FileLock:
    return FileLock(folder.runtime / "supervisor.lock")


def ensure_supervisor(settings: Settings, fresh: bool = False) -> bool:
    """Start a detached supervisor unless one is at work; returns whether one was started.

    Args:
        fresh: have one at work hand over first. Workers inherit its environment, so that an API key or a device
            that was set since its start would be missing from them.

    Submitting and leaving cannot miss each other: a supervisor that leaves looks at the queue once more after
    it has given up the lock.
    """
    lock = lock_of(settings.folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not fresh or not _hand_over(settings.folder, lock):
            return False
    lock.release()
    environment = dict(os.environ)
    environment["PLUMB_DATA"] = str(settings.folder.root)
    environment["PLUMB_DEVICES"] = ",".join(settings.devices)
    environment["PLUMB_NETWORK_SLOTS"] = str(settings.network_slots)
    environment["PLUMB_SUPERVISOR_IDLE_SECONDS"] = str(settings.supervisor_idle_seconds)
    with (settings.folder.runtime / "supervisor.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "jobs", "supervise"],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return True


def _hand_over(folder: DataFolder, lock: FileLock) -> bool:
    """Ask the supervisor at work to leave; its workers go on. True, holding the lock, once it has."""
    note = hand_over_note(folder)
    note.touch()
    try:
        lock.acquire(timeout=HAND_OVER_SECONDS)
        return True
    except Timeout:  # it is busy with a long transaction, say: it goes on with what it has
        note.unlink(missing_ok=True)
        try:
            lock.acquire(timeout=2 * POLL_SECONDS)  # it may just have read the note
            return True
        except Timeout:
            return False
    finally:
        note.unlink(missing_ok=True)


def hand_over_note(folder: DataFolder) -> Path:
    return folder.runtime / "supervisor.hand-over"


def watch_over(settings: Settings, ended: threading.Event | None = None) -> threading.Thread:
    """Start a thread that brings the supervisor back while there are open jobs, until this process ends.

    Args:
        ended: set it to have the thread end before.
    """
    ended = ended or threading.Event()

    def watch() -> None:
        pause = BEGIN_SECONDS  # `serve` has just started one
        while not ended.wait(pause):
            pause = WATCH_SECONDS
            try:
                with session(settings.folder, busy_seconds=WATCH_SECONDS) as db:
                    wanted = store.count_open(db) > 0
                if wanted and ensure_supervisor(settings):
                    pause = BEGIN_SECONDS
            except (PlumbError, sqlite3.Error, OSError):
                continue  # a locked database, a full disk: it may pass

    thread = threading.Thread(target=watch, name="supervisor's watch", daemon=True)
    thread.start()
    return thread
