"""queue → slot → spawn → watch → settle: a detached process, one per data folder by file lock.

It can be killed at any moment: the next one adopts the workers that still run (by PID and start time), reads
on from the byte offsets in the database, and settles those that are gone.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from filelock import BaseFileLock, Timeout
from sqlite_utils import Database

from jobs.causes import is_disk_full, is_full
from jobs.configs import TRAININGS
from jobs.crowding import look_around, note_unreadable, spared
from jobs.devices import leftover
from jobs.disk_guard import spend_reserve
from jobs.event_file import read_torn
from jobs.events import furthest, read_on
from jobs.housekeeping import Complaints, Housekeeping, log
from jobs.making_room import make_room
from jobs.placement import Wanted, wanted_by
from jobs.processes import (
    end_all,
    find_process,
    find_worker,
    leftovers,
    signal_group,
    spawn_worker,
    start_time,
)
from jobs.runs import RunFolder
from jobs.settings import Settings
from jobs.standby import POLL_SECONDS, hand_over_note, introduce, lock_of, withdraw
from jobs.verdicts import TRANSIENT, Cause, Verdict, can_resume, verdict
from storage import jobs as store
from storage.attempts import events_begin
from storage.database import immediate, session
from storage.errors import Conflict, DatabaseBusy, PlumbError
from storage.lifecycle import ACTIVE, JobStatus
from storage.pauses import fruitless_pauses
from storage.records import Attempt, Job
from storage.settings import get_setting, put_setting

SlotKind = Literal["device", "network"]

# A worker whose PID nobody noted is found by its words; where there is none, it was never started.
SPEAK_SECONDS = 5.0
# From the request to stop to SIGTERM; a training ends its step and writes a checkpoint first.
GRACE_SECONDS = {
    "": 60.0,
    **dict.fromkeys((config.kind for config in TRAININGS), 900.0),
    **dict.fromkeys(("judge", "checklist"), 300.0),  # a paid reply is waited for
}
KILL_SECONDS = 60.0  # from SIGTERM to SIGKILL
FOLDER_SECONDS = 30.0  # a run folder that is moved may come back
LEFT_SECONDS = 60.0  # processes that outlive SIGKILL, in a call to the driver, hold their slot so long
# By how many attempts in a row died without having come further.
BACKOFF_SECONDS = (0.0, 0.0, 30.0, 120.0, 600.0)

# The system has no process, no file or no memory left just now.
_SHORT = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def supervise(settings: Settings) -> bool:
    """Run until there has been nothing to do for a while; False if another supervisor is at work."""
    lock = lock_of(settings.folder)
    while True:
        try:
            lock.acquire(timeout=2)  # `ensure_supervisor` holds it for an instant while it looks
        except Timeout:
            return False
        hand_over_note(settings.folder).unlink(missing_ok=True)  # of one who died while it asked for it
        introduce(settings)
        try:
            if not Supervisor(settings).run_until_idle(lock):
                return True
        finally:
            withdraw(settings.folder)
            lock.release()
        if not settings.folder.database.exists():  # somebody has deleted the data folder
            return True
        with session(settings.folder) as db:
            if not store.count_open(db):
                return True


class Supervisor:
    """One pass is `step`; everything it must remember is in the database, but for its own children."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.folder
        self._complaints = Complaints()
        self._housekeeping = Housekeeping(settings, self._complaints)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        # By job or attempt the moment (monotonic: clocks are put) when this supervisor first saw …
        self._asked: dict[int, float] = {}  # … a job stopping
        self._silent: dict[int, float] = {}  # … an attempt without a process
        self._lost: dict[int, float] = {}  # … a run folder gone
        self._left: dict[int, float] = {}  # … processes that outlive their worker's end
        self._broken: dict[int, list[str]] = {}  # by attempt, lines that are no events
        self._crowded: Mapping[str, str] = {}  # GPUs that other people's processes fill

    def run_until_idle(self, lock: BaseFileLock | None = None) -> bool:
        """True where there was nothing more to do, False where another shall take over.

        Args:
            lock: what makes it the only one; another takes over where somebody has deleted its file.
        """
        quiet_since = time.monotonic()
        mark = _mark_of(lock)
        log(f"supervisor {os.getpid()} at work on {self._folder.root}")
        while True:
            try:
                with session(self._folder) as db:
                    self.step(db)
                    busy = store.count_open(db) > 0
            except Exception as error:  # a locked or full database, say: the next pass may do
                self._complaints.say("step", f"{type(error).__name__}: {error}")
                spend_reserve(self._settings)  # a database on a full disk may not even be opened
                busy = True
            if busy:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= self._settings.supervisor_idle_seconds:
                log("nothing to do: leaving")
                return True
            if hand_over_note(self._folder).exists():
                log("handing over")
                return False
            if lock is not None and (mark is None or _mark_of(lock) != mark):
                log("the lock's file is gone: leaving")
                return False
            time.sleep(POLL_SECONDS)

    def step(self, db: Database) -> None:
        """Watch what runs, settle what has ended, make room, start what fits."""
        for attempt in store.open_attempts(db):
            try:
                self._watch(db, attempt)
            except Exception as error:  # one job's trouble must not keep the others waiting
                self._complain(attempt, "cannot be watched", error)
        self._housekeeping.tidy(db)
        self._refuse_impossible(db)
        if not self._housekeeping.has_room(db):
            return
        try:
            self._crowded = look_around(db, self._settings)
            make_room(db, self._folder, self._wanted_now)
        except (PlumbError, OSError) as error:  # what is free already can be given away all the same
            self._complaints.say("room for jobs", f"no chat model was asked to leave: {error}")
        slot_kinds: tuple[SlotKind, ...] = ("device", "network")
        for slot_kind in slot_kinds:
            while self._start_next(db, slot_kind):
                pass

    # watching ---------------------------------------------------------------------------------------------

    def _watch(self, db: Database, attempt: Attempt) -> None:
        code, gone = self._look(db, attempt)  # before the last read: what it wrote until then is read below
        if gone and not self._clear(attempt):
            return
        try:
            for batch in read_on(db, self._folder, attempt.id):
                self._report(attempt, batch.broken)
            trouble = ""
        except (Conflict, DatabaseBusy):
            return  # nothing is lost: the offset has not moved
        except Exception as error:  # one job's events must not stop the queue, whatever is in them
            self._complain(attempt, "its events cannot be stored", error)
            if _passes(error):
                return
            trouble = f"Its events cannot be stored ({type(error).__name__}: {error})."
        attempt = store.get_attempt(db, attempt.id)
        job = store.get_job(db, attempt.job_id)
        if gone:
            self._settle(db, attempt, job, code, trouble)
        else:
            self._press(attempt, job)

    def _look(self, db: Database, attempt: Attempt) -> tuple[int | None, bool]:
        """(exit code if known, whether the process is gone)."""
        child = self._children.get(attempt.id)
        if child is not None:
            code = child.poll()
            return code, code is not None
        if attempt.pid is not None:
            return None, find_process(attempt) is None
        # Its supervisor died before it noted the PID; or before it started a process.
        worker = find_worker(self._folder, attempt.job_id)
        if worker is not None:
            store.identify(db, attempt.id, worker.pid, worker.create_time(), worker.pid)
            return None, False
        return None, _seconds(self._silent, attempt.id) > SPEAK_SECONDS

    def _clear(self, attempt: Attempt) -> bool:
        """End what a worker that is gone has left running; whether its devices are free."""
        left = leftovers(self._folder, attempt)
        if not left:
            return True
        alive = end_all(left)
        numbers = ", ".join(str(process.pid) for process in left)
        log(f"job {attempt.job_id}: ended what its worker had left running (processes {numbers})")
        if not alive:
            return True
        log(f"job {attempt.job_id}: {len(alive)} of them cannot be ended yet; its slot stays taken")
        return _seconds(self._left, attempt.id) > LEFT_SECONDS

    def _complain(self, attempt: Attempt, what: str, error: Exception) -> None:
        text = f"job {attempt.job_id}: {what} ({type(error).__name__}: {error})"
        self._complaints.say(f"attempt {attempt.id}", text)

    def _report(self, attempt: Attempt, broken: list[str]) -> None:
        for line in broken:
            log(f"job {attempt.job_id}: a line of its events is none and was passed over: {line}")
        self._broken.setdefault(attempt.id, []).extend(broken)

    def _press(self, attempt: Attempt, job: Job) -> None:
        """A job that was asked to stop and does not, or has lost its folder, is ended, softly and then hard."""
        if job.status is JobStatus.STOPPING:
            waited = _seconds(self._asked, job.id) - GRACE_SECONDS.get(job.kind, GRACE_SECONDS[""])
        elif not self._folder.run(job.id).is_dir():
            waited = _seconds(self._lost, attempt.id) - FOLDER_SECONDS
            told = f"job {job.id}: its run folder is gone; its worker is ended unless it comes back"
            self._complaints.say(f"folder {job.id}", told)
        else:
            self._lost.pop(attempt.id, None)
            return
        if waited > KILL_SECONDS:
            signal_group(attempt, signal.SIGKILL)
        elif waited > 0:
            signal_group(attempt, signal.SIGTERM)

    # settling ---------------------------------------------------------------------------------------------

    def _settle(self, db: Database, attempt: Attempt, job: Job, code: int | None, trouble: str) -> None:
        run = RunFolder(self._folder.run(job.id))
        begin = events_begin(db, attempt)
        # What follows the last whole line will never be ended; where lines cannot be stored, it isn't known.
        torn, end = ("", attempt.event_offset) if trouble else read_torn(run.events, attempt.event_offset)
        if torn:
            self._report(attempt, [torn])
        began = attempt.pid is not None or code is not None or run.log_size() > attempt.log_begin
        if trouble:
            found = Verdict(JobStatus.FAILED, trouble, Cause.BUG)
        elif not began and job.status is not JobStatus.STOPPING and run.path.is_dir():
            found = Verdict(JobStatus.FAILED, "The supervisor died before it started the worker.", Cause.GONE)
        else:
            found = verdict(run, attempt, job, code, begin)
        if self._book(db, run, attempt, job, found, code, began=began, offset=end):
            self._forget(attempt)
            for slot in job.slots:
                if held := leftover(self._settings, slot, job.id):
                    log(f"job {job.id}: {held}")

    def _book(
        self,
        db: Database,
        run: RunFolder,
        attempt: Attempt,
        job: Job,
        found: Verdict,
        code: int | None,
        *,
        began: bool,
        offset: int,
    ) -> bool:
        """Book how an attempt ended, and queue its job again where it goes on; False to be tried again.

        Args:
            began: there was a process.
            offset: where the next attempt's events begin.
        """
        with immediate(db):
            now = store.get_attempt(db, attempt.id)
            if now.ended_at is not None:
                return True  # another supervisor was quicker
            if store.get_job(db, job.id).status is not job.status:
                return False  # it was asked to stop meanwhile, say
            if offset != now.event_offset:
                store.advance(db, attempt, offset, now.heard_at or 0.0)
            told = f"{found.reason}{_in_words(self._broken.get(attempt.id, []))}".strip()
            store.end_attempt(
                db, attempt.id, found.status, told, found.cause, exit_code=code, log_end=run.log_size()
            )
            found, pause = self._goes_on(db, run, job, found, began)
            if job.status in ACTIVE:
                store.move(db, job.id, found.status, found.reason)
                if pause is not None:
                    store.requeue(db, job.id, datetime.now(UTC) + timedelta(seconds=pause) if pause else None)
            if found.status is JobStatus.DONE:
                put_setting(db, furthest(job.id), None)
        again = "; it goes on where it was" if pause is not None else ""
        log(f"job {job.id} ({job.kind}) is {found.status}{': ' + found.reason if found.reason else ''}{again}")
        return True

    def _goes_on(
        self, db: Database, run: RunFolder, job: Job, found: Verdict, began: bool
    ) -> tuple[Verdict, float | None]:
        """(the verdict on the job, in how many seconds it is tried again: None for never).

        Tried again is a job whose worker met what may be over, if it goes on from what it has done, or has never
        begun. One that dies again and again without having come further has a reason of its own; so has one that
        says again and again that the disk is full, while there is room where Plumb's data lies.
        """
        if found.status is JobStatus.PAUSED:
            if fruitless_pauses(db, job.id) <= job.retries or is_full(run.path):
                return found, None
            told = "There is room where the run folder lies: another disk is full, /tmp's say."
            return Verdict(JobStatus.FAILED, f"{found.reason} {told}", Cause.DISK), None
        if found.status is not JobStatus.FAILED or found.cause not in TRANSIENT:
            return found, None
        if job.status not in ACTIVE or job.status is JobStatus.STOPPING:
            return found, None
        if not (can_resume(run, job) or (not began and (run.path / "job.json").exists())):
            return found, None
        fruitless = store.fruitless_attempts(db, job.id)
        if fruitless > job.retries:
            last = "The last attempt" if fruitless == 1 else f"Each of the last {fruitless} attempts"
            told = f"{last} ended without having come further: it is not tried again by itself."
            return Verdict(found.status, f"{found.reason} {told}", found.cause), None
        return found, BACKOFF_SECONDS[min(fruitless, len(BACKOFF_SECONDS) - 1)]

    def _forget(self, attempt: Attempt) -> None:
        self._children.pop(attempt.id, None)
        self._asked.pop(attempt.job_id, None)
        for kept in (self._silent, self._lost, self._left, self._broken):
            kept.pop(attempt.id, None)

    # starting ---------------------------------------------------------------------------------------------

    def _free_slots(self, db: Database, slot_kind: SlotKind) -> list[str]:
        taken = {slot for job in store.active_jobs(db) for slot in job.slots}
        network = [f"network-{number}" for number in range(self._settings.network_slots)]
        there = self._settings.devices if slot_kind == "device" else network
        return [name for name in there if name not in taken]

    def _wanted(self, job: Job) -> Wanted:
        found = wanted_by(job, RunFolder(self._folder.run(job.id)), self._settings.devices)
        return spared(found, job, self._crowded)

    def _wanted_now(self, job: Job) -> Wanted:
        """Of a job whose files cannot be read just now: nothing, so that the others pass it."""
        try:
            return self._wanted(job)
        except OSError:
            return Wanted((), 1)

    def _start_next(self, db: Database, slot_kind: SlotKind) -> bool:
        """Start the first job for which there is room; False where there is none."""
        with immediate(db):
            free = self._free_slots(db, slot_kind)
            wanted = self._wanted_now if slot_kind == "device" else None
            job = store.claim_next(db, slot_kind, *free, wanted=wanted)
            if job is None:
                return False
            run = RunFolder(self._folder.run(job.id))
            attempt = store.start_attempt(db, job.id, run.log_size())
        try:
            child = spawn_worker(self._folder, job)
        except Exception as error:  # whatever it is, it is this job's trouble and not the queue's
            self._book(
                db, run, attempt, job, _not_started(job, error), None, began=False, offset=attempt.event_offset
            )
            return True
        self._children[attempt.id] = child
        if (started := start_time(child.pid)) is not None:  # before it speaks: one that hangs can be ended
            store.identify(db, attempt.id, child.pid, started, child.pid)
        log(f"job {job.id} ({job.kind}) starts on {job.slot} as process {child.pid}")
        return True

    def _refuse_impossible(self, db: Database) -> None:
        """A job for devices that are gone would wait for ever and keep the supervisor waiting."""
        if get_setting(db, store.HELD) is not None:
            return
        puzzling: dict[int, str] = {}
        for job in store.queued_jobs(db, "device"):
            try:
                self._wanted(job)
                if job.device is None or job.device in self._settings.devices:
                    continue
                reason = (
                    f"device = {job.device!r} is not there any more; Plumb has "
                    f"{', '.join(self._settings.devices)}. Submit it again for one of them."
                )
            except PlumbError as error:
                reason = str(error)
            except OSError as error:
                puzzling[job.id] = f"its run folder cannot be read just now ({error.strerror or error})"
                self._complaints.say(f"files {job.id}", f"job {job.id}: {puzzling[job.id]}; it waits")
                continue
            except ValueError as error:
                reason = f"What it wants cannot be told from its run folder ({type(error).__name__}: {error})."
            store.move(db, job.id, JobStatus.FAILED, reason)
            log(f"job {job.id}: {reason}")
        note_unreadable(db, puzzling)


def _not_started(job: Job, error: Exception) -> Verdict:
    reason = f"The worker cannot be started on {job.slot} ({type(error).__name__}: {error})."
    if is_disk_full(error):
        return Verdict(JobStatus.PAUSED, f"The disk is full. {reason}", Cause.DISK)
    short = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORT)
    return Verdict(JobStatus.FAILED, reason, Cause.GONE if short else Cause.SETTING)


def _passes(error: Exception) -> bool:
    """Whether events could not be stored for the disk's or the database's sake: their job is not to blame."""
    if isinstance(error, sqlite3.DatabaseError):
        blamed = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError)
        return not isinstance(error, blamed)
    return is_disk_full(error)


def _in_words(broken: list[str]) -> str:
    if not broken:
        return ""
    lines = "a line" if len(broken) == 1 else f"{len(broken)} lines"
    return f" Passed over {lines} in its events.jsonl, cut off or no event: {broken[-1]}"


def _seconds(since: dict[int, float], key: int) -> float:
    """Seconds since this was first asked for the key."""
    return time.monotonic() - since.setdefault(key, time.monotonic())


def _mark_of(lock: BaseFileLock | None) -> tuple[int, int] | None:
    """Which file the lock's path leads to now."""
    if lock is None:
        return None
    try:
        found = os.stat(lock.lock_file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
