"""queue → slot → spawn → watch → settle: a detached process, one per data folder by file lock.

It can be killed at any moment: the next one adopts the workers that still run (by PID and start time), reads
on from the byte offsets in the database, and settles those that are gone.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import Literal

from filelock import Timeout
from sqlite_utils import Database

from jobs.configs import TRAININGS
from jobs.events import drain
from jobs.making_room import make_room
from jobs.placement import Wanted, wanted_by
from jobs.processes import find_process, signal_group, spawn_worker, start_time
from jobs.runs import RunFolder
from jobs.settings import Settings
from jobs.standby import POLL_SECONDS, hand_over_note, lock_of
from jobs.verdicts import TRANSIENT, Cause, Verdict, can_resume, verdict
from storage import jobs as store
from storage.database import immediate, session
from storage.errors import Conflict, DatabaseBusy, PlumbError
from storage.lifecycle import ENDED, JobStatus
from storage.records import Attempt, Job

SlotKind = Literal["device", "network"]

SPEAK_SECONDS = 20.0  # a worker says "started" within about a second
# From the request to stop to SIGTERM; a training ends its step and writes a checkpoint first.
GRACE_SECONDS = {
    "": 60.0,
    **dict.fromkeys((config.kind for config in TRAININGS), 900.0),
    **dict.fromkeys(("judge", "checklist"), 300.0),  # a paid reply is waited for
}
KILL_SECONDS = 60.0  # from SIGTERM to SIGKILL
# By how many attempts in a row died without having come further.
BACKOFF_SECONDS = (0.0, 0.0, 30.0, 120.0, 600.0)


def supervise(settings: Settings) -> bool:
    """Run until there has been nothing to do for a while; False if another supervisor is at work."""
    lock = lock_of(settings.folder)
    while True:
        try:
            lock.acquire(timeout=2)  # `ensure_supervisor` holds it for an instant while it looks
        except Timeout:
            return False
        hand_over_note(settings.folder).unlink(missing_ok=True)  # of one who died while it asked for it
        try:
            if not Supervisor(settings).run_until_idle():
                return True
        finally:
            lock.release()
        with session(settings.folder) as db:
            if not store.count_open(db):
                return True


class Supervisor:
    """One pass is `step`; everything it must remember is in the database, but for its own children."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.folder
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._asked: dict[int, float] = {}  # job → when this supervisor first saw it stopping
        self._complained: dict[int, str] = {}
        self._unreadable: set[int] = set()  # attempts whose events cannot be stored

    def run_until_idle(self) -> bool:
        """True where there was nothing more to do, False where another shall take over."""
        quiet_since = time.monotonic()
        log(f"supervisor {os.getpid()} at work on {self._folder.root}")
        while True:
            try:
                with session(self._folder) as db:
                    self.step(db)
                    busy = store.count_open(db) > 0
            except (PlumbError, sqlite3.Error) as error:  # a locked database, say: the next pass may do
                log(str(error))
                busy = True
            if busy:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= self._settings.supervisor_idle_seconds:
                log("nothing to do: leaving")
                return True
            if hand_over_note(self._folder).exists():
                log("handing over")
                return False
            time.sleep(POLL_SECONDS)

    def step(self, db: Database) -> None:
        """Watch what runs, settle what has ended, make room, start what fits."""
        for attempt in store.open_attempts(db):
            self._watch(db, attempt)
        self._refuse_impossible(db)
        make_room(db, self._folder, self._wanted)
        slot_kinds: tuple[SlotKind, ...] = ("device", "network")
        for slot_kind in slot_kinds:
            while self._start_next(db, slot_kind):
                pass

    # watching ---------------------------------------------------------------------------------------------

    def _watch(self, db: Database, attempt: Attempt) -> None:
        known = attempt.pid is not None or attempt.id in self._children
        code, gone = self._look(attempt)  # before the last read: what it wrote until then is read below
        try:
            drain(db, self._folder, attempt.id)
        except (Conflict, DatabaseBusy):
            return  # nothing is lost: the offset has not moved
        except sqlite3.OperationalError as error:  # a full disk, say: it may pass
            self._complain(attempt, error)
            return
        except Exception as error:  # one job's events must not stop the queue, whatever is in them
            self._complain(attempt, error)
            self._unreadable.add(attempt.id)
        attempt = store.get_attempt(db, attempt.id)
        job = store.get_job(db, attempt.job_id)
        if not known:  # its supervisor died before it noted the PID: it has just spoken, or will
            if not self._silent(attempt):
                return
            gone = find_process(attempt) is None
        if gone:
            self._settle(db, attempt, job, code)
        else:
            self._press(attempt, job)

    def _look(self, attempt: Attempt) -> tuple[int | None, bool]:
        """(exit code if known, whether the process is gone)."""
        child = self._children.get(attempt.id)
        if child is not None:
            code = child.poll()
            return code, code is not None
        return None, find_process(attempt) is None

    def _silent(self, attempt: Attempt) -> bool:
        waited = (datetime.now(UTC) - datetime.fromisoformat(attempt.started_at)).total_seconds()
        return waited > SPEAK_SECONDS

    def _complain(self, attempt: Attempt, error: Exception) -> None:
        text = f"job {attempt.job_id}: its events cannot be stored ({type(error).__name__}: {error})"
        if self._complained.get(attempt.id) != text:
            log(text)
            self._complained[attempt.id] = text

    def _press(self, attempt: Attempt, job: Job) -> None:
        """A job that was asked to stop and does not is ended, softly and then hard."""
        if job.status is not JobStatus.STOPPING:
            return
        waited = time.monotonic() - self._asked.setdefault(job.id, time.monotonic())
        grace = GRACE_SECONDS.get(job.kind, GRACE_SECONDS[""])
        if waited > grace + KILL_SECONDS:
            signal_group(attempt, signal.SIGKILL)
        elif waited > grace:
            signal_group(attempt, signal.SIGTERM)

    def _settle(self, db: Database, attempt: Attempt, job: Job, code: int | None) -> None:
        run = RunFolder(self._folder.run(job.id))
        found = verdict(run, attempt, job, code)
        if attempt.id in self._unreadable:
            found = Verdict(JobStatus.FAILED, self._complained[attempt.id])
        with immediate(db):
            store.end_attempt(
                db, attempt.id, found.status, found.reason, found.cause, exit_code=code, log_end=run.log_size()
            )
            if job.status not in ENDED:
                store.move(db, job.id, found.status, found.reason)
            pause = self._goes_on(db, run, job, found)
            if pause is not None:
                store.requeue(db, job.id, None if pause == 0 else datetime.now(UTC) + timedelta(seconds=pause))
        self._children.pop(attempt.id, None)
        self._asked.pop(job.id, None)
        again = "; it goes on where it was" if pause is not None else ""
        log(f"job {job.id} ({job.kind}) is {found.status}{': ' + found.reason if found.reason else ''}{again}")

    def _goes_on(self, db: Database, run: RunFolder, job: Job, found: Verdict) -> float | None:
        """In how many seconds a job is tried again whose worker met what may be over: None for never.

        One that dies again and again without having come further has a reason of its own.
        """
        if found.status is not JobStatus.FAILED or found.cause not in TRANSIENT or job.status in ENDED:
            return None
        if not can_resume(run, job):
            return None
        fruitless = store.fruitless_attempts(db, job.id)
        if fruitless > job.retries:
            return None
        return BACKOFF_SECONDS[min(fruitless, len(BACKOFF_SECONDS) - 1)]

    # starting ---------------------------------------------------------------------------------------------

    def _free_slots(self, db: Database, slot_kind: SlotKind) -> list[str]:
        taken = {slot for job in store.active_jobs(db) for slot in job.slots}
        network = [f"network-{number}" for number in range(self._settings.network_slots)]
        there = self._settings.devices if slot_kind == "device" else network
        return [name for name in there if name not in taken]

    def _wanted(self, job: Job) -> Wanted:
        return wanted_by(job, RunFolder(self._folder.run(job.id)), self._settings.devices)

    def _start_next(self, db: Database, slot_kind: SlotKind) -> bool:
        """Start the oldest job for which there is room; False where there is none."""
        with immediate(db):
            free = self._free_slots(db, slot_kind)
            job = store.claim_next(db, slot_kind, *free, wanted=self._wanted if slot_kind == "device" else None)
            if job is None:
                return False
            log_begin = RunFolder(self._folder.run(job.id)).log_size()
            attempt = store.start_attempt(db, job.id, log_begin)
        try:
            child = spawn_worker(self._folder, job)
        except Exception as error:  # whatever it is, it is this job's trouble and not the queue's
            reason = f"The worker cannot be started on {job.slot} ({type(error).__name__}: {error})."
            with immediate(db):
                store.end_attempt(db, attempt.id, JobStatus.FAILED, reason, Cause.SETTING)
                store.move(db, job.id, JobStatus.FAILED, reason)
            log(f"job {job.id}: {reason}")
            return True
        self._children[attempt.id] = child
        if (started := start_time(child.pid)) is not None:  # before it speaks: one that hangs can be ended
            store.identify(db, attempt.id, child.pid, started, child.pid)
        log(f"job {job.id} ({job.kind}) starts on {job.slot} as process {child.pid}")
        return True

    def _refuse_impossible(self, db: Database) -> None:
        """A job for devices that are gone would wait for ever and keep the supervisor waiting."""
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
            store.move(db, job.id, JobStatus.FAILED, reason)
            log(f"job {job.id}: {reason}")


def log(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
