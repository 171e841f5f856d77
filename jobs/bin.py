"""Deleting runs, with some days to think again.

A deleted run's folder moves to `runs/.bin/<job>` in one rename, and its job vanishes from lists. Within
`bin_days` it can be put back; then the supervisor removes it for good. The job's row stays, and so does what the
job has made: answers, scores and adapters have places of their own, and their lineage leads through the row.

The row decides where a folder belongs. A crash between the rename and the commit leaves the two at odds, and
`recover` moves the folder to where the row says it is. Only removing begins with the files, since on a full disk
they must be able to go before a single byte can be written: the folder is renamed to `<job>.gone`, which is the
decision, then removed, then the row is marked.
"""

from __future__ import annotations

import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlite_utils import Database

from jobs import disk
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage import jobs as store
from storage import recycling
from storage.database import immediate
from storage.errors import Conflict, UserError
from storage.folder import DataFolder
from storage.inspection import is_gone, refuse_without_runs
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from storage.settings import get_setting, put_setting
from storage.units import in_words

#: For how many days a deleted run can be restored; the setting that says otherwise.
KEEP_DAYS = 7
DAYS = "bin_days"
MOST_DAYS = 3650

_GONE = ".gone"


@dataclass(frozen=True)
class Purged:
    """What has gone for good.

    Attributes:
        jobs: whose run folders are gone.
        bytes: that are free now.
        left: what could not be removed, each with its reason; it is tried again in an hour.
    """

    jobs: tuple[int, ...] = ()
    bytes: int = 0
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deleted:
    """What was put into the bin at once; `bytes` are free when it is emptied, `kept` says why others stay."""

    jobs: tuple[int, ...]
    bytes: int
    kept: tuple[str, ...] = ()


def get_days(db: Database) -> int:
    """For how many days a deleted run can be restored."""
    return int(get_setting(db, DAYS, KEEP_DAYS))


def set_days(db: Database, days: int | None, user: str) -> None:
    """Set it; None for the default. Raises UserError where it is out of bounds."""
    if days is not None and (isinstance(days, bool) or not 0 <= days <= MOST_DAYS):
        raise UserError(f"bin_days = {days}: give a whole number from 0 to {MOST_DAYS:,}.")
    put_setting(db, DAYS, days, user)


def deleted_runs(db: Database) -> list[Job]:
    """Jobs whose run can still be restored, the latest deleted first."""
    return recycling.deleted_jobs(db)


def delete_run(db: Database, settings: Settings, job_id: int, user: str) -> Job:
    """Put an ended job's run folder into the bin. The job vanishes from lists; what it made stays.

    Raises:
        NotFound: there is no such job.
        Conflict: it has not ended, its worker has not left, another job waits for it, or it is deleted already.
        UserError: the folder cannot be moved, or the disk is too full to note it, or runs/ is not mounted.
    """
    folder = settings.folder
    with _moving(db) as moves:
        job = store.get_job(db, job_id)
        _refuse_to_delete(db, job)
        there = folder.run(job_id).is_dir()
        if not there:
            refuse_without_runs(folder)
        job = recycling.mark_deleted(db, job_id, user, purged=not there)
        if there:
            moves.append(_move(folder.run(job_id), _vacant(folder.binned(job_id))))
    disk.forget(folder)
    return job


def _refuse_to_delete(db: Database, job: Job) -> None:
    if job.deleted_at is not None:
        raise Conflict(f"Job {job.id} is deleted already.")
    if job.status not in ENDED:
        raise Conflict(f"Job {job.id} is {job.status}; stop it first, then delete it.")
    if any(attempt.ended_at is None for attempt in store.attempts_of(db, job.id)):
        raise Conflict(f"The worker of job {job.id} has not left yet; try again in a moment.")
    waiting = [] if job.status is JobStatus.DONE else recycling.open_followers(db, job.id)
    if waiting:
        raise Conflict(
            f"Job {waiting[0].id} comes after job {job.id}; let it come after none (`python -m jobs after "
            f"{waiting[0].id} --none`), or stop it."
        )


def restore_run(db: Database, settings: Settings, job_id: int) -> Job:
    """Take a run out of the bin; the job is in the lists again, and can be resumed as before.

    Raises:
        NotFound: there is no such job.
        Conflict: it is not deleted, or its folder has gone from the bin.
        UserError: the folder cannot be moved, or the disk is too full to note it, or runs/ is not mounted.
    """
    folder = settings.folder
    place, binned = folder.run(job_id), folder.binned(job_id)
    with _moving(db) as moves:
        job = store.get_job(db, job_id)
        if job.deleted_at is None and not binned.is_dir():
            raise Conflict(f"Job {job_id} is not deleted; there is nothing to restore.")
        if is_gone(folder, job_id):
            if job.purged_at is None:
                refuse_without_runs(folder)
            raise Conflict(f"The run folder of job {job_id} has gone from the bin for good; run the job again.")
        if binned.is_dir():
            if place.exists():
                raise Conflict(f"{place} is there already; move it away, then restore job {job_id}.")
            moves.append(_move(binned, place))
        recycling.mark_found(db, job_id)
        job = recycling.mark_restored(db, job_id)
    disk.forget(folder)
    return job


def delete_runs(
    db: Database,
    settings: Settings,
    user: str,
    statuses: Sequence[JobStatus] = (JobStatus.FAILED,),
    older_than: timedelta = timedelta(0),
) -> Deleted:
    """Put the runs of all jobs into the bin that ended like this so long ago, as `delete_run` does.

    Those that cannot go, since another job waits for them say, stay, and are told with their reasons.

    Raises:
        UserError: jobs of such a state cannot be deleted; or as `delete_run`.
    """
    strange = [str(status) for status in statuses if status not in ENDED]
    if strange:
        raise UserError(f"statuses = {', '.join(strange)}: give some of {', '.join(sorted(ENDED))}.")
    gone: list[int] = []
    kept: list[str] = []
    freed = 0
    for job in recycling.ended_before(db, statuses, _moment(datetime.now(UTC) - older_than)):
        size = disk.run_bytes(RunFolder(settings.folder.run(job.id)))
        try:
            delete_run(db, settings, job.id, user)
        except Conflict as error:
            kept.append(str(error))
            continue
        gone.append(job.id)
        freed += size
    return Deleted(tuple(gone), freed, tuple(kept))


def purge(db: Database, settings: Settings, before: datetime | None = None) -> Purged:
    """Remove the run folders for good that were deleted before a moment (None: all); their jobs' rows stay.

    The files go first: it works on a full disk. A folder that cannot be moved or removed keeps no other from it.

    Raises:
        UserError: runs/ is not mounted.
    """
    folder = settings.folder
    gone: list[int] = []
    left: list[str] = []
    freed = 0
    binned = recycling.deleted_jobs(db, None if before is None else _moment(before))
    if binned:
        refuse_without_runs(folder)
    for job in binned:
        with immediate(db):  # nobody restores it meanwhile
            now = store.get_job(db, job.id)
            if now.deleted_at != job.deleted_at or now.purged_at is not None:
                continue
            target = None
            if folder.binned(job.id).is_dir():
                try:
                    target = _move(folder.binned(job.id), _doomed(folder, job.id))[1]
                except UserError as error:
                    left.append(str(error))
                    continue
            elif folder.run(job.id).is_dir():
                continue  # `recover` moves it first
        removed, why = (0, "") if target is None else _remove(target)
        freed += removed
        if why:
            left.append(why)
        else:
            gone.append(job.id)
        _mark_purged(db, job.id)
    rest = _remove_gone(folder)
    disk.forget(folder)
    told = dict.fromkeys([*left, *rest.left])  # what has just been refused is refused again
    return Purged(tuple(gone), freed + rest.bytes, tuple(told))


def purge_old(db: Database, settings: Settings) -> Purged:
    """As `purge_all`, of what has lain in the bin for `bin_days`."""
    return purge_all(db, settings, datetime.now(UTC) - timedelta(days=get_days(db)))


def purge_all(db: Database, settings: Settings, before: datetime | None = None) -> Purged:
    """Put right what a crash left at odds, then `purge`; what cannot be put right is told with what stays."""
    stuck: list[str] = []
    try:
        recover(db, settings)
    except UserError as error:
        stuck.append(str(error))
    done = purge(db, settings, before)
    return replace(done, left=(*stuck, *done.left))


def recover(db: Database, settings: Settings) -> list[int]:
    """Move the folders to where the rows say they are; returns their jobs.

    They are at odds where a process, or the machine, died between a rename and its commit. A folder of which the
    database knows nothing is left alone: it may be somebody's work.

    Raises:
        UserError: runs/ is not mounted, so that nobody knows what is gone; or folders cannot be moved, each with
            its reason. The others are moved all the same.
    """
    folder = settings.folder
    moved: list[int] = []
    stuck: list[str] = []

    def put(job_id: int, source: Path, target: Path) -> None:
        try:
            _move(source, target)
            moved.append(job_id)
        except UserError as error:
            stuck.append(str(error))

    with immediate(db):
        for job in recycling.deleted_jobs(db):
            if folder.binned(job.id).is_dir():
                continue
            if folder.run(job.id).is_dir():
                put(job.id, folder.run(job.id), folder.binned(job.id))
            else:
                refuse_without_runs(folder)
                recycling.mark_purged(db, job.id)  # it died while it purged
        for path in _entries(folder):
            if not path.name.isdigit() or not recycling.is_there(db, int(path.name)):
                continue
            job = store.get_job(db, int(path.name))
            if job.deleted_at is None and not folder.run(job.id).exists():
                put(job.id, path, folder.run(job.id))
            elif job.deleted_at is not None and job.purged_at is not None:
                recycling.mark_found(db, job.id)  # its disk was not mounted when it was taken for gone
    if moved:
        disk.forget(folder)
    if stuck:
        raise UserError(" ".join(stuck))
    return moved


# folders ----------------------------------------------------------------------------------------------------


@contextmanager
def _moving(db: Database) -> Iterator[list[tuple[Path, Path]]]:
    """A transaction with renames in it: where it cannot be committed, they are taken back."""
    moves: list[tuple[Path, Path]] = []
    try:
        with immediate(db):
            yield moves
    except BaseException as error:
        for source, target in reversed(moves):
            target.rename(source)
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            raise UserError(
                "The disk is full, so that nothing can be noted in the database; nothing was changed. Empty the "
                "bin first (`python -m jobs bin --empty`), or free some disk."
            ) from error
        raise


def _move(source: Path, target: Path) -> tuple[Path, Path]:
    """One rename within `runs/`. Raises UserError where the file system refuses."""
    try:
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
    except OSError as error:
        raise UserError(f"{source} cannot be moved to {target.parent} ({error.strerror}).") from error
    return source, target


def _vacant(target: Path) -> Path:
    """The path, after setting aside what lies there: a run of another database with the same number."""
    if target.exists():
        target.rename(target.with_name(f"{target.name}.old-{secrets.token_hex(4)}"))
    return target


def _entries(folder: DataFolder) -> list[Path]:
    try:
        return sorted(folder.bin.iterdir())
    except FileNotFoundError:
        return []


def _doomed(folder: DataFolder, job_id: int) -> Path:
    """The name under which a run folder is removed; another one where that still holds what could not be."""
    name = folder.binned(job_id).name
    path = folder.bin / f"{name}{_GONE}"
    return folder.bin / f"{name}.{secrets.token_hex(4)}{_GONE}" if path.exists() else path


def _remove_gone(folder: DataFolder) -> Purged:
    """Remove what earlier attempts have left; each by itself."""
    freed, left = 0, []
    for path in _entries(folder):
        if path.name.endswith(_GONE):
            removed, why = _remove(path)
            freed += removed
            if why:
                left.append(why)
    return Purged((), freed, tuple(left))


def _remove(path: Path) -> tuple[int, str]:
    """(bytes that are free now, why something of it stays)."""
    before = disk.own_bytes(path)
    why: list[str] = []

    def refused(_: object, where: str, error: tuple[object, BaseException, object]) -> None:
        if not isinstance(error[1], FileNotFoundError):
            why.append(f"{Path(where).name}: {getattr(error[1], 'strerror', None) or error[1]}")

    shutil.rmtree(path, onerror=refused)
    if not path.exists():
        return before, ""
    after = disk.own_bytes(path)
    reason = f" ({why[0]})" if why else ""
    return max(0, before - after), f"{in_words(after)} in {path} cannot be removed{reason}; see to its rights."


def _mark_purged(db: Database, job_id: int) -> None:
    try:
        with immediate(db):
            recycling.mark_purged(db, job_id)
    except sqlite3.OperationalError as error:
        if "full" not in str(error):
            raise
        # The files are gone, which was the point; `recover` notes it when there is room.


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds")
