"""queue → slot → spawn → watch → settle: a detached process, one per data folder by file lock.

It can be killed at any moment: the next one adopts the workers that still run (by PID and start time), reads
on from the byte offsets in the database, and settles those that are gone.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from sqlite_utils import Database

from jobs.configs import KINDS, TRAININGS
from jobs.event_file import Event, read_tail
from jobs.events import drain
from jobs.keys import serve_key
from jobs.placement import Wanted, wanted_by
from jobs.processes import PROJECT, explain_exit, find_process, signal_group, spawn_worker, start_time
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage import jobs as store
from storage.database import immediate, session
from storage.errors import Conflict, DatabaseBusy, PlumbError
from storage.folder import DataFolder
from storage.lifecycle import ENDED, JobStatus
from storage.records import Attempt, Job

SlotKind = Literal["device", "network"]

POLL_SECONDS = 0.5
HAND_OVER_SECONDS = 3.0
MOST_RESTARTS = 5  # of a job whose workers are killed
SPEAK_SECONDS = 20.0  # a worker says "started" within about a second
# From the request to stop to SIGTERM; a training ends its step and writes a checkpoint first.
GRACE_SECONDS = {
    "": 60.0,
    **dict.fromkeys((config.kind for config in TRAININGS), 900.0),
    **dict.fromkeys(("judge", "checklist"), 300.0),  # a paid reply is waited for
}
KILL_SECONDS = 60.0  # from SIGTERM to SIGKILL


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
        self._make_room(db)
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
        status, reason = verdict(RunFolder(self._folder.run(job.id)), attempt, job, code)
        if attempt.id in self._unreadable:
            status, reason = JobStatus.FAILED, self._complained[attempt.id]
        again = self._goes_on(db, attempt, job, status)
        with immediate(db):
            store.end_attempt(db, attempt.id, status, reason)
            if job.status not in ENDED:
                store.move(db, job.id, status, reason)
            if again:
                store.requeue(db, job.id)
        self._children.pop(attempt.id, None)
        self._asked.pop(job.id, None)
        told = f"{': ' + reason if reason else ''}{'; it goes on where it was' if again else ''}"
        log(f"job {job.id} ({job.kind}) is {status}{told}")

    def _goes_on(self, db: Database, attempt: Attempt, job: Job, status: JobStatus) -> bool:
        """Whether a worker was killed whose job goes on after what its folder holds: kill -9, a reboot, no memory.

        One that ended with a last word had its reasons, and one that dies again and again has one too.
        """
        run = RunFolder(self._folder.run(job.id))
        if status is not JobStatus.FAILED or job.status in ENDED or attempt.id in self._unreadable:
            return False
        if job.kind not in KINDS or not KINDS[job.kind].resumable or not (run.path / "job.json").exists():
            return False
        return last_word(run, attempt) is None and len(store.attempts_of(db, job.id)) <= MOST_RESTARTS

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
            attempt = store.start_attempt(db, job.id)
        try:
            child = spawn_worker(self._folder, job)
        except Exception as error:  # whatever it is, it is this job's trouble and not the queue's
            reason = f"The worker cannot be started on {job.slot} ({type(error).__name__}: {error})."
            with immediate(db):
                store.end_attempt(db, attempt.id, JobStatus.FAILED, reason)
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

    def _make_room(self, db: Database) -> None:
        """Ask idle chat models to leave where a job waits for their devices, and that is all it waits for."""
        waiting = store.queued_jobs(db, "device")
        if not waiting:
            return
        active = store.active_jobs(db)
        taken = {slot for job in active if job.status is not JobStatus.STOPPING for slot in job.slots}
        for job in waiting:
            slots, count = self._wanted(job)
            coming = [slot for slot in slots if slot not in taken]  # free, or about to be
            taken.update(coming[:count])  # kept for this job
            missing = count - len(coming)
            if missing <= 0:
                continue
            idle = [
                other
                for other in active
                if other.kind == "serve" and set(other.slots) & set(slots) and not self._serving(other)
            ]
            if len(idle) >= missing:
                for other in idle[:missing]:
                    store.move(db, other.id, JobStatus.STOPPING, f"left its device to job {job.id}")
                    RunFolder(self._folder.run(other.id)).ask_to_stop()
                return

    def _serving(self, job: Job) -> bool:
        """Whether a chat model must not be asked to leave: it answers somebody, loads, or is leaving."""
        if job.status is not JobStatus.RUNNING or job.port is None:
            return True
        connection = http.client.HTTPConnection("127.0.0.1", job.port, timeout=2)
        try:
            connection.request(
                "GET", "/health", headers={"Authorization": f"Bearer {serve_key(self._folder, job.id)}"}
            )
            return bool(json.loads(connection.getresponse().read()).get("busy", True))
        except TimeoutError:  # it has no time to answer: it is at work
            return True
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def verdict(run: RunFolder, attempt: Attempt, job: Job, code: int | None) -> tuple[JobStatus, str]:
    """How an ended attempt is to be booked: by its own last word, else by how the process ended."""
    last = last_word(run, attempt)
    if last is not None:
        return JobStatus(last["status"]), str(last.get("reason", ""))
    if job.status is JobStatus.STOPPING:
        return JobStatus.STOPPED, "It did not stop by itself and was ended."
    tail = run.log_tail(lines=3).strip()
    return JobStatus.FAILED, explain_exit(code) + (f" Its log ends: {tail}" if tail else "")


def last_word(run: RunFolder, attempt: Attempt) -> Event | None:
    """The `end` event of this attempt; None where its process died without one.

    Only the end of the file is read: a last word stands last, but for what threads still had to say.
    """
    # A resumed job's folder holds the last words of earlier attempts.
    began = datetime.fromisoformat(attempt.started_at).timestamp()
    last = None
    for event in read_tail(run.events):
        if event["kind"] == "started":
            last = None  # an earlier attempt's last word says nothing about this one
        elif event["kind"] == "end" and event.get("time", began) >= began:
            last = event if event.get("status") in {str(status) for status in ENDED} else None
    return last


def log(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
