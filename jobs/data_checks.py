"""The doctor on the data folder: is it writable, its database sound, is there room, is a supervisor at work."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import Timeout
from sqlite_utils import Database

from jobs import disk_guard
from jobs.checks import Check
from jobs.processes import find_process
from jobs.settings import Settings
from jobs.standby import differs, lock_of
from storage import jobs as store
from storage.condition import Condition, examine
from storage.database import session
from storage.folder import DataFolder
from storage.units import in_words

#: Where SQLite's write-ahead log does not work: it needs memory that all processes share.
_NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs")
TEMPORARY_BYTES = 500_000_000
AHEAD_SECONDS = 120.0  # clocks of machines that share a folder differ by less
STUCK_SECONDS, SETTLE_SECONDS = 120.0, 2.5
DATABASE_SECONDS = 3.0


def folder(settings: Settings) -> Iterator[Check]:
    """Whether the data folder can be written, and lies on a disk that SQLite can trust."""
    there = settings.folder
    root = there.root
    remedy = "choose another with --data or PLUMB_DATA, or have its owner give you the right to write"
    if not root.is_dir():
        parent = next(path for path in (root, *root.parents) if path.exists())
        if parent.is_dir() and os.access(parent, os.W_OK):
            yield Check("Data folder", "ok", f"{root} is not there yet; the app makes it")
        else:
            yield Check(
                "Data folder", "wrong", f"{root} cannot be made: {parent} is no folder that can be written", remedy
            )
        return
    for part in (root, there.runs, there.runtime):
        if part.is_dir() and (error := _refusal(part)):
            yield Check("Data folder", "wrong", f"{part} cannot be written ({error})", remedy)
            return
    kind = file_system(root)
    if kind.startswith(_NETWORK):
        yield Check(
            "Data folder",
            "warning",
            f"{root} lies on a network file system ({kind}): there the database can be damaged when several "
            "machines use it",
            "keep the data folder on a local disk; use it from one machine at a time",
        )
        return
    yield Check("Data folder", "ok", f"{root} can be written{f' ({kind})' if kind else ''}")


def _refusal(part: Path) -> str:
    try:
        with tempfile.NamedTemporaryFile(dir=part, prefix=".doctor-") as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def file_system(path: Path) -> str:
    """The kind of file system that a path lies on, as `ext4`; "" where it cannot be told."""
    try:
        mounts = [(Path(one.mountpoint), one.fstype.lower()) for one in psutil.disk_partitions(all=True)]
    except (OSError, psutil.Error):
        return ""
    above = [(len(place.parts), kind) for place, kind in mounts if path.resolve().is_relative_to(place)]
    return max(above, default=(0, ""))[1]


def database(settings: Settings) -> Iterator[Check]:
    """The database's version and soundness; nothing is changed."""
    began = time.monotonic()
    try:
        found = examine(settings.folder, DATABASE_SECONDS)
    except (sqlite3.OperationalError, OSError) as error:
        locked = "locked" in str(error)
        remedy = "check again in a moment" if locked else "check who owns the file and its folder"
        yield Check("Database", "warning" if locked else "wrong", f"it cannot be looked at ({error})", remedy)
        return
    if found is None:
        yield Check("Database", "ok", "not there yet; the app makes it")
        return
    yield _version(found)
    yield _soundness(found, time.monotonic() - began)
    yield from _clock_of(settings.folder, found)


def _version(found: Condition) -> Check:
    if found.foreign:
        return Check(
            "Database version",
            "wrong",
            f"it was written by a newer Plumb: it has {', '.join(found.foreign)}",
            "update Plumb, or point --data at another folder",
        )
    if found.pending:
        return Check(
            "Database version",
            "warning",
            f"it is older than this Plumb: {', '.join(found.pending)} will run at the next start",
            "make a backup first: python -m storage backup FILE",
        )
    return Check("Database version", "ok", "this Plumb's")


def _soundness(found: Condition, seconds: float) -> Check:
    size = in_words(found.bytes)
    if found.damage:
        return Check(
            "Database",
            "wrong",
            f"it is damaged: {'; '.join(found.damage)}",
            "stop Plumb, copy the data folder away; then python -m storage check --repair, or restore a backup",
        )
    if not found.whole:
        return Check(
            "Database",
            "ok",
            f"{size}; too large to be checked in {DATABASE_SECONDS:g} seconds",
            "python -m storage check looks at all of it, and at the files",
        )
    return Check("Database", "ok", f"{size}, sound (checked in {seconds:.1f} s)")


def clock() -> Iterator[Check]:
    """Whether the clock can be right at all."""
    now = datetime.now(UTC)
    if time.time() < psutil.boot_time() or now.year < 2026:
        yield Check("Clock", "wrong", f"it says {now:%Y-%m-%d %H:%M} UTC, which cannot be", "set the clock")
    else:
        yield Check("Clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC")


def _clock_of(there: DataFolder, found: Condition) -> Iterator[Check]:
    """A clock that was put back: what was written lies in the future. Told only where it is so."""
    now = datetime.now(UTC)
    moments = [("the database's newest entry", datetime.fromisoformat(found.newest))] if found.newest else []
    moments.append(("the database", datetime.fromtimestamp(there.database.stat().st_mtime, UTC)))
    for what, moment in moments:
        if (moment - now).total_seconds() > AHEAD_SECONDS:
            yield Check(
                "Clock",
                "warning",
                f"it says {now:%Y-%m-%d %H:%M} UTC, {what} is of {moment:%Y-%m-%d %H:%M}: one of them is wrong",
                "set the clock by the network's time",
            )
            return


def room(settings: Settings) -> Iterator[Check]:
    """The disk of the data folder, and the one for temporary files."""
    root = next(path for path in (settings.folder.root, *settings.folder.root.parents) if path.is_dir())
    there = shutil.disk_usage(root)
    text = f"{in_words(there.free)} of {in_words(there.total)} are free"
    why = ""
    if settings.folder.database.exists():
        try:
            with session(settings.folder, busy_seconds=2.0) as db:
                why = disk_guard.too_little_free(db, settings) or disk_guard.over_budget(db, settings)
        except Exception:  # the database has a check of its own
            why = ""
    if why:
        yield Check("Disk", "wrong", why, "see what takes it: python -m jobs disk, or the Machine page")
    else:
        yield Check("Disk", "ok", text)
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free
    if free < TEMPORARY_BYTES:
        text = f"{temporary} has {in_words(free)} free; libraries write there while they load and save"
        yield Check("Temporary files", "warning", text, "free some, or set TMPDIR to a folder on a larger disk")


def supervisor(settings: Settings) -> Iterator[Check]:
    """Whether somebody looks after the queue where it has something to do."""
    if not settings.folder.database.exists():
        yield Check("Supervisor", "ok", "none is needed yet")
        return
    at_work = is_held(settings.folder)
    with session(settings.folder, busy_seconds=2.0) as db:
        open_jobs = store.count_open(db)
        gone = _unsettled(db) if at_work else []
        if gone:
            time.sleep(SETTLE_SECONDS)  # a worker may have ended this very moment
            gone = [job for job in _unsettled(db) if job in gone]
    jobs = f"{open_jobs} open job{'' if open_jobs == 1 else 's'}" if open_jobs else "nothing is queued"
    if not at_work:
        if open_jobs:
            remedy = "start the app, or run python -m jobs supervise"
            yield Check("Supervisor", "warning", f"none is at work, and there {_are(open_jobs)} {jobs}", remedy)
        else:
            yield Check("Supervisor", "ok", "none is at work; nothing is queued")
        return
    pids = supervisors(settings.folder)
    who = f"process {', '.join(map(str, pids))}" if pids else ""
    log = settings.folder.runtime / "supervisor.log"
    if gone:
        yield Check(
            "Supervisor",
            "wrong",
            f"{who or 'one'} is at work and does not see that the worker of job {gone[0]} is gone: it is stuck",
            f"read {log}; end {who or 'it'}: the app starts another within seconds, and running jobs go on",
        )
    elif not pids:
        yield Check(
            "Supervisor",
            "warning",
            f"its lock is held by a process that cannot be seen from here; {jobs}",
            "another machine or container may use this data folder: let only one of them run jobs in it",
        )
    elif other := differs(settings):
        text, _, remedy = other.partition(". ")
        remedy = f"{remedy[:1].lower()}{remedy[1:-1]}"
        yield Check("Supervisor", "warning", f"{text[:1].lower()}{text[1:]}", remedy)
    else:
        yield Check("Supervisor", "ok", f"{who} is at work; {jobs}")


def _unsettled(db: Database) -> list[int]:
    """Jobs whose worker is gone, though nobody has booked it."""
    return [
        attempt.job_id
        for attempt in store.open_attempts(db)
        if find_process(attempt) is None and _age(attempt.started_at) > STUCK_SECONDS
    ]


def is_held(there: DataFolder) -> bool:
    """Whether a supervisor holds its lock. A file alone is none: a process that dies loses its lock."""
    lock = lock_of(there)
    if not Path(lock.lock_file).exists():
        return False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def supervisors(there: DataFolder) -> list[int]:
    """Processes that are supervisors of this data folder, as far as they can be seen."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "supervise" in words and "jobs" in words and _serves(process, words, there):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def _serves(process: psutil.Process, words: list[str], there: DataFolder) -> bool:
    root = process.environ().get("PLUMB_DATA")
    if "--data" in words[:-1]:
        root = words[words.index("--data") + 1]
    return root is None or Path(root).expanduser().resolve() == there.root


def _age(stamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
