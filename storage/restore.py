"""Restoring a backup into a new data folder: all of it, verified, or nothing.

The folder holds `restoring.json` until everything is there and every sha256 has been compared; Plumb does not
begin on such a folder, and a second restore begins anew. A restore that fails leaves things as they were.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from sqlite_utils import Database

from storage import jobs as store
from storage.backup import Tell
from storage.database import immediate, migrate, session
from storage.errors import Conflict, PlumbError, UserError
from storage.files import write_atomically
from storage.folder import RESTORING, DataFolder
from storage.lifecycle import JobStatus
from storage.manifest import DATABASE, PARTS, Manifest
from storage.occupants import alone
from storage.records import now
from storage.settings import get_setting, put_setting
from storage.units import in_words
from storage.unpacking import DRAFT, cut_off, first_of, opened, refuse_newer, unpack

LOCK = "restoring.lock"

_SPARE = 16_000_000  # bytes: the database is migrated, and its log beside it
# What a file system keeps at its own root is nobody's data.
_IGNORED = frozenset({"lost+found", LOCK})


@dataclass(frozen=True)
class Restored:
    """What a restore did.

    Attributes:
        migrated: the migrations that brought an older database to this version.
        ended: jobs that were at work in the backup.
        held: whether the queue is held, because jobs wait in it.
        moved: where the folder lies that was there before.
        missing, damaged: as the backup tells them (`storage.manifest.Manifest`).
    """

    folder: DataFolder
    files: int
    bytes: int
    created_at: str
    migrated: tuple[str, ...]
    ended: tuple[int, ...]
    held: bool
    moved: Path | None
    missing: tuple[str, ...]
    damaged: tuple[str, ...]


def restore(
    file: Path, folder: DataFolder, user: str, replace: bool = False, tell: Tell = lambda done, total: None
) -> Restored:
    """Make a data folder of a backup.

    Jobs that were at work in the backup are settled; where jobs wait in the queue it is held, so that nothing
    starts before somebody has looked.

    Args:
        user: who holds the queue then.
        replace: move what is there aside, to `<folder>.before-<time>`, first.

    Raises:
        UserError: the file is no backup, was cut off or changed, or a newer Plumb wrote it; the folder is not
            empty, or cannot be written; the disk is full. Nothing was changed.
        Conflict: another restore is at work there; with `replace` a supervisor, an app or a worker, too.
    """
    with opened(file) as tar:
        header = first_of(tar, file)
        refuse_newer(header, file)
        _look_at(folder, replace, file)
        moved = _move_aside(folder) if replace else None
        made = not folder.root.exists()
        try:
            with _alone(folder), _undone(folder, moved):
                _need_room(folder, file)
                manifest = unpack(tar, folder, header, tell)
                size = sum(entry.bytes for entry in manifest.files)
                migrated, ended, held = _begin_anew(folder, manifest, user)
                os.sync()  # before it is called done: thousands of files at once are synced faster than one by one
                (folder.root / RESTORING).unlink()
        except BaseException as error:
            lies = _put_back(folder, moved, made)
            told = _told(error, file, folder, lies)
            if told is None:
                raise
            raise told from error
    folder.create()
    return Restored(
        folder=folder,
        files=len(manifest.files),
        bytes=size,
        created_at=header.created_at,
        migrated=migrated,
        ended=ended,
        held=held,
        moved=moved,
        missing=manifest.missing,
        damaged=manifest.damaged,
    )


# the folder ---------------------------------------------------------------------------------------------------


def _look_at(folder: DataFolder, replace: bool, file: Path) -> None:
    """Refuse a folder that must not be restored into, before anything is written."""
    root = folder.root
    if file.resolve().is_relative_to(root.resolve()):
        raise UserError(f"The backup {file} lies in the folder that is to be restored; move it out first.")
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; name a folder with --data.")
    if not replace:
        _refuse_full(folder)


def _refuse_full(folder: DataFolder) -> None:
    there = _entries(folder)
    if there and RESTORING not in there:
        shown = ", ".join(there[:3]) + (" …" if len(there) > 3 else "")
        raise UserError(
            f"{folder.root} is not empty (it holds {shown}). Name a folder that is empty or not there yet, or "
            "give --replace to move this one aside."
        )


def _entries(folder: DataFolder) -> list[str]:
    try:
        return sorted(set(os.listdir(folder.root)) - _IGNORED)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"The folder {folder.root} cannot be read ({error.strerror}).") from error


def _move_aside(folder: DataFolder) -> Path | None:
    """Rename the folder that is there, with all that is in it; where it lies now."""
    there = _entries(folder)
    if not there or RESTORING in there:  # what an unfinished restore has left is no data
        return None
    aside = folder.root.with_name(f"{folder.root.name}.before-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    try:
        with alone(folder):
            if aside.exists():
                raise UserError(f"{aside} is there already; try again in a second.")
            folder.root.rename(aside)
    except OSError as error:
        raise UserError(
            f"{folder.root} cannot be moved to {aside} ({error.strerror}). Where it is a disk of its own, move "
            "away what it holds, or restore into another folder."
        ) from error
    return aside


@contextlib.contextmanager
def _alone(folder: DataFolder) -> Iterator[None]:
    """The folder, made if need be, with nobody else restoring into it, and nothing in it."""
    folder.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.root / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Conflict(f"Another restore is at work in {folder.root}; wait for its end.") from None
    try:
        _clear(folder)  # of a restore that was interrupted: all that it had put there
        _refuse_full(folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder.root / LOCK).unlink()
        lock.release()


@contextlib.contextmanager
def _undone(folder: DataFolder, moved: Path | None) -> Iterator[None]:
    """Mark the folder unfinished; where the restore fails, all that it put there goes again.

    Raises:
        Conflict: a Plumb has begun in it at the same moment; what it has made stays.
    """
    note = "A backup is being restored into this folder, or was, and did not come to its end. Plumb won't begin."
    values = {"note": note, "since": now(), "before": str(moved) if moved else None}
    write_atomically(folder.root / RESTORING, json.dumps(values, indent=1) + "\n")
    if set(_entries(folder)) - {RESTORING}:
        (folder.root / RESTORING).unlink()
        raise Conflict(f"A Plumb has just begun in {folder.root}. End it, or restore into another folder.")
    try:
        yield
    except BaseException:
        _clear(folder)
        raise


def _clear(folder: DataFolder) -> None:
    """Remove an unfinished restore, the mark last; a folder without the mark is left alone."""
    if not (folder.root / RESTORING).exists():
        return
    for part in PARTS:
        if (folder.root / part).exists():
            shutil.rmtree(folder.root / part)
    for name in (DRAFT, *(f"{DATABASE}{tail}" for tail in ("", "-wal", "-shm", "-journal"))):
        (folder.root / name).unlink(missing_ok=True)
    (folder.root / RESTORING).unlink()


def _put_back(folder: DataFolder, moved: Path | None, made: bool) -> str:
    """Leave things as they were before a restore that failed; "" or, where that fails too, what is to be done."""
    try:
        if moved is not None or made:
            with contextlib.suppress(FileNotFoundError):
                folder.root.rmdir()
        if moved is not None:
            moved.rename(folder.root)
    except OSError as error:
        if moved is None:  # somebody has begun in it meanwhile
            return ""
        return (
            f"What was there before lies in {moved}, with all that is in it, and cannot be moved back by itself "
            f"({error.strerror}). Move away what is in {folder.root} now, then rename {moved.name} to "
            f"{folder.root.name}."
        )
    return ""


def _need_room(folder: DataFolder, file: Path) -> None:
    size, free = file.stat().st_size, shutil.disk_usage(folder.root).free
    if free < size + _SPARE:
        raise UserError(
            f"The backup needs about {in_words(size + _SPARE)}, and there are {in_words(free)} free where "
            f"{folder.root} is to be. Free some disk, or restore into a folder on another one."
        )


def _told(error: BaseException, file: Path, folder: DataFolder, lies: str) -> PlumbError | None:
    """The failure in words, with where the data lies if things are not as they were; None where it says all."""
    if isinstance(error, tarfile.TarError):
        told: PlumbError = cut_off(file)
    elif isinstance(error, OSError | sqlite3.Error):
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        unchanged = "" if lies else " Nothing was changed."
        told = UserError(f"The backup {file} cannot be restored into {folder.root} ({why}).{unchanged}")
    elif lies:
        told = UserError(str(error) or f"The restore was ended ({type(error).__name__}).")
    else:
        return None
    return UserError(f"{told} {lies}") if lies else told


# the restored database ----------------------------------------------------------------------------------------


def _begin_anew(
    folder: DataFolder, manifest: Manifest, user: str
) -> tuple[tuple[str, ...], tuple[int, ...], bool]:
    """(migrations that ran, jobs that were at work, whether the queue is held)."""
    os.replace(folder.root / DRAFT, folder.database)
    migrated = tuple(migrate(folder))
    with session(folder) as db, immediate(db):
        for job_id, cut in manifest.cut_logs.items():
            _move_log(db, job_id, cut)
        ended = _settle(db, manifest)
        held = store.count_open(db) > 0
        if held and get_setting(db, store.HELD) is None:
            put_setting(db, store.HELD, {"user": user, "since": now()}, user)
    return migrated, ended, held


def _move_log(db: Database, job_id: int, cut: int) -> None:
    """Each attempt knows its part of the log by byte; the backup has only the log's end."""
    db.conn.execute(
        "UPDATE attempts SET log_begin = max(0, log_begin - ?), log_end = max(0, log_end - ?) WHERE job_id = ?",
        [cut, cut, job_id],
    )


def _settle(db: Database, manifest: Manifest) -> tuple[int, ...]:
    """End the attempts that were open when the backup was made: their workers are not this folder's."""
    when = f"{manifest.header.created_at[:16].replace('T', ' ')} UTC"
    for attempt in store.open_attempts(db):
        reason = f"The data folder was restored from the backup of {when}, in which this attempt was at work."
        store.end_attempt(db, attempt.id, JobStatus.FAILED, reason, "gone")
    ended = store.active_jobs(db)
    for job in ended:
        told = f"It was at work when the backup of {when} was made, from which the data folder was restored."
        if job.id in manifest.without_checkpoints:
            told += " Its checkpoints are not in the backup."
        stopping = job.status is JobStatus.STOPPING
        hint = "" if stopping else " Resume it to go on from what its run folder holds, or run it again."
        store.move(db, job.id, JobStatus.STOPPED if stopping else JobStatus.FAILED, f"{told}{hint}")
    return tuple(job.id for job in ended)


def describe(restored: Restored) -> list[str]:
    """What a restore did, a line each, for a person."""
    told = [
        f"Restored {restored.files:,} files ({in_words(restored.bytes)}) of the backup of "
        f"{restored.created_at[:16].replace('T', ' ')} UTC into {restored.folder.root}."
    ]
    if restored.moved:
        told.append(f"What was there before lies in {restored.moved}.")
    if restored.migrated:
        told.append(f"The database was brought to this version ({', '.join(restored.migrated)}).")
    if restored.ended:
        numbers = ", ".join(map(str, restored.ended))
        told.append(f"Jobs that were at work then have ended: {numbers}. Resume those that shall go on.")
    if restored.held:
        told.append("Jobs wait in the queue; it is held until `python -m jobs release`.")
    told += [f"Not in the backup: {name}" for name in restored.missing]
    told += [f"Damaged already when the backup was made: {name}" for name in restored.damaged]
    return told
