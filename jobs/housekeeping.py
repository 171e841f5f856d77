"""What the supervisor does beside watching and starting: orphans, paused jobs, the bin, room, its log."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlite_utils import Database

from jobs import bin as waste
from jobs import disk_guard, steering
from jobs.settings import Settings

PURGE_SECONDS = 3600.0
REPEAT_SECONDS = 600.0  # what goes wrong at every pass is said so often


def log(text: str) -> None:
    """A line in the supervisor's log. A disk that is full must not end the one who waits for room on it."""
    try:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
    except OSError:
        pass


class Complaints:
    """Says what goes wrong once, and again after a while, however often it does."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, float]] = {}

    def say(self, key: str, text: str) -> None:
        """Log `text` unless it was the last word under `key` a moment ago."""
        said, moment = self._said.get(key, ("", 0.0))
        if said != text or time.monotonic() - moment > REPEAT_SECONDS:
            log(text)
            self._said[key] = (text, time.monotonic())

    def over(self, key: str) -> bool:
        """Whether there was something under `key`, which is forgotten."""
        return self._said.pop(key, None) is not None


class Housekeeping:
    """One pass of it is `tidy`; what one part of it meets keeps no other from its work."""

    def __init__(self, settings: Settings, complaints: Complaints) -> None:
        self._settings, self._complaints = settings, complaints
        self._purged: float | None = None

    def tidy(self, db: Database) -> None:
        """Fail jobs whose leader failed, queue paused ones again, empty the bin of what is old."""
        self._apart("orphans", lambda: self._fail_orphans(db))
        self._apart("paused jobs", lambda: self._wake(db))
        if self._purged is None or time.monotonic() - self._purged > PURGE_SECONDS:
            self._purged = time.monotonic()
            self._apart("the bin", lambda: self._purge(db))

    def has_room(self, db: Database) -> bool:
        """Whether a job may start now, for all that the disk and its budget say."""
        why = disk_guard.has_room(db, self._settings)
        if why:
            self._complaints.say("room", f"nothing new starts: {why}")
        elif self._complaints.over("room"):
            log("there is room on the disk again")
        return not why

    def _apart(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._complaints.say(what, f"{what}: {type(error).__name__}: {error}")

    def _fail_orphans(self, db: Database) -> None:
        if steering.held_by(db) is not None:
            return  # a held queue is left as it is: after a restore, say, there is time to resume the leader first
        for job_id in steering.fail_orphans(db):
            log(f"job {job_id} fails with the one that it comes after")

    def _wake(self, db: Database) -> None:
        for job_id in disk_guard.wake(db, self._settings):
            log(f"job {job_id} is queued again: there is room on the disk")

    def _purge(self, db: Database) -> None:
        done = waste.purge_old(db, self._settings)
        for job_id in done.jobs:
            log(f"the run folder of job {job_id} has gone from the bin")
        for text in done.left:
            log(f"the bin: {text}")
