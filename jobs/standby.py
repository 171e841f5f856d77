"""Having a supervisor at work: one per data folder, by file lock.

Whoever submits a job starts one, and the app sees to it that there is one as long as a job is open: a supervisor
that was killed is missed within seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from jobs.processes import PROJECT, START_TOLERANCE, start_time
from jobs.settings import Settings
from storage import jobs as store
from storage.database import session
from storage.errors import PlumbError
from storage.files import write_atomically
from storage.folder import DataFolder
from storage.occupants import SUPERVISOR_LOCK

POLL_SECONDS = 0.5
HAND_OVER_SECONDS = 3.0
WATCH_SECONDS = 2.0
BEGIN_SECONDS = 10.0  # a supervisor has its lock about a second after its start, on a busy machine later


def lock_of(folder: DataFolder) -> FileLock:
    return FileLock(folder.runtime / SUPERVISOR_LOCK)


def ensure_supervisor(settings: Settings, fresh: bool = False) -> bool:
    """As `start_supervisor`; returns whether one was started."""
    return start_supervisor(settings, fresh) is not None


def start_supervisor(settings: Settings, fresh: bool = False) -> subprocess.Popen[bytes] | None:
    """Start a detached supervisor unless one is at work.

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
            return None
    lock.release()
    environment = dict(os.environ)
    environment["PLUMB_DATA"] = str(settings.folder.root)
    environment["PLUMB_DEVICES"] = ",".join(settings.devices)
    environment["PLUMB_NETWORK_SLOTS"] = str(settings.network_slots)
    environment["PLUMB_SUPERVISOR_IDLE_SECONDS"] = str(settings.supervisor_idle_seconds)
    with (settings.folder.runtime / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", "supervise"],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


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


@dataclass(frozen=True)
class AtWork:
    """The supervisor at work, and what whoever started it has given it."""

    pid: int
    devices: tuple[str, ...]
    network_slots: int


def introduce(settings: Settings) -> None:
    """Have this process, which holds the supervisor's lock, say with what it works."""
    values = {
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "devices": list(settings.devices),
        "network_slots": settings.network_slots,
    }
    try:
        write_atomically(_introduction(settings.folder), json.dumps(values) + "\n")
    except OSError:  # on a full disk the queue goes on all the same
        withdraw(settings.folder)


def withdraw(folder: DataFolder) -> None:
    """Take that back, before the lock is given up."""
    with contextlib.suppress(OSError):
        _introduction(folder).unlink(missing_ok=True)


def at_work(folder: DataFolder) -> AtWork | None:
    """The supervisor that has introduced itself and still runs; None where none is known of."""
    try:
        told = json.loads(_introduction(folder).read_text(encoding="utf-8"))
        found = AtWork(int(told["pid"]), tuple(map(str, told["devices"])), int(told["network_slots"]))
        began = start_time(found.pid)
        same = began is not None and abs(began - float(told["started"])) <= START_TOLERANCE
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return found if same else None


def differs(settings: Settings) -> str:
    """How the supervisor at work differs from these settings, and what to do about it; "" where it does not.

    Whoever submits the first job starts it, with the devices of his shell: jobs for another device would fail.
    """
    found = at_work(settings.folder)
    if found is None:
        return ""
    told = []
    if set(found.devices) != set(settings.devices):
        here = ", ".join(settings.devices)
        told.append(f"gives jobs {', '.join(found.devices)} as devices, and here they are {here}")
    if found.network_slots != settings.network_slots:
        told.append(f"lets {found.network_slots} judge jobs run at once, and here it is {settings.network_slots}")
    if not told:
        return ""
    return (
        f"The supervisor at work (process {found.pid}) was started with other settings: it {'; it '.join(told)}. "
        "Start the app again, or run `python -m jobs supervise --anew` where the settings are right; running jobs "
        "go on."
    )


def _introduction(folder: DataFolder) -> Path:
    return folder.runtime / "supervisor.json"


def watch_over(
    settings: Settings, ended: threading.Event | None = None, begun: subprocess.Popen[bytes] | None = None
) -> threading.Thread:
    """Start a thread that brings the supervisor back while there are open jobs, until this process ends.

    Args:
        ended: set it to have the thread end before.
        begun: a supervisor that this process has just started.
    """
    ended = ended or threading.Event()

    def watch() -> None:
        child, since = begun, time.monotonic()
        while not ended.wait(WATCH_SECONDS):
            if child is not None and _is_beginning(child, since):
                continue
            try:
                with session(settings.folder, busy_seconds=WATCH_SECONDS) as db:
                    wanted = store.count_open(db) > 0
                if wanted and (started := start_supervisor(settings)) is not None:
                    child, since = started, time.monotonic()
            except (PlumbError, sqlite3.Error, OSError):
                continue  # a locked database, a full disk: it may pass

    thread = threading.Thread(target=watch, name="supervisor's watch", daemon=True)
    thread.start()
    return thread


def _is_beginning(child: subprocess.Popen[bytes], since: float) -> bool:
    """Whether another would come too early: this one may still load, or has failed and would fail again.

    One that was killed is replaced at once.
    """
    code = child.poll()
    return time.monotonic() - since < BEGIN_SECONDS and (code is None or code > 0)
