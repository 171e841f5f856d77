"""What the Jobs page remembers between two looks: each job's rate of progress, curves already drawn, notes read.

All of it is bounded: an app runs for months, and has seen many thousand jobs by then.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from storage.lifecycle import JobStatus
from storage.records import Job

LEAST_SECONDS = 4.0
MOST_JOBS = 512  # whose rates are remembered
WAITING = ("paused", "waiting for")  # how the phases begin in which nothing is asked for long

T = TypeVar("T")


@dataclass(frozen=True)
class _Mark:
    unit: str
    total: float
    done: float
    seconds: float


class ProgressClock:
    """Remembers where each job stood when it was first seen at its present phase.

    Loading a model takes long and makes no progress; counted in, it would promise far too long a time. So the
    rate counts from the first look at the phase; until that is old enough, from the job's start. A pause or the
    wait for a quota is no progress either: the rate counts anew from its end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: OrderedDict[int, _Mark] = OrderedDict()
        self._waited: OrderedDict[int, None] = OrderedDict()

    def left(self, job: Job, now: datetime) -> float | None:
        """Seconds that the job will still take; None while that cannot be told."""
        if job.status is not JobStatus.RUNNING or job.total <= 0:
            with self._lock:
                self._marks.pop(job.id, None)
                # Resumed: what it has done took other hours than those since its new start.
                resumed = job.status in (JobStatus.QUEUED, JobStatus.STARTING) and job.done > 0
                self._waited.pop(job.id, None)
                if resumed:
                    self._remember(self._waited, job.id, None)
            return None
        if job.phase.startswith(WAITING):
            with self._lock:
                self._marks.pop(job.id, None)
                self._remember(self._waited, job.id, None)
            return None
        moment = now.timestamp()
        with self._lock:
            mark = self._marks.get(job.id)
            if mark is None or (mark.unit, mark.total) != (job.unit, job.total) or mark.done > job.done:
                mark = _Mark(job.unit, job.total, job.done, moment)
                self._remember(self._marks, job.id, mark)
        rest = max(0.0, job.total - job.done)
        if job.done > mark.done and moment - mark.seconds >= LEAST_SECONDS:
            return rest * (moment - mark.seconds) / (job.done - mark.done)
        if job.done > 0 and job.started_at and job.id not in self._waited:
            elapsed = moment - datetime.fromisoformat(job.started_at).timestamp()
            return rest * elapsed / job.done if elapsed > 0 else None
        return None

    @staticmethod
    def _remember(kept: OrderedDict[int, T], job_id: int, value: T) -> None:
        """Nobody may look at a job again once it has ended: the oldest make room."""
        kept[job_id] = value
        while len(kept) > MOST_JOBS:
            kept.popitem(last=False)


class Drawn:
    """What was drawn of a job, until it has told something new: many watch one training, once is enough."""

    def __init__(self, most: int = 32) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._kept: OrderedDict[int, tuple[Hashable, Any]] = OrderedDict()

    def get(self, job_id: int, version: Hashable, draw: Callable[[], T]) -> T:
        """What `draw` returned for this version of the job, or returns now.

        Args:
            version: changes with every event of the job that was read.
        """
        with self._lock:
            known = self._kept.get(job_id)
        if known is not None and known[0] == version:
            kept: T = known[1]
            return kept
        drawn = draw()
        with self._lock:
            self._kept[job_id] = (version, drawn)
            self._kept.move_to_end(job_id)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return drawn


@dataclass(frozen=True)
class Told:
    """What a worker noted, each once, in order, the last of them; and how much of its events was read for that."""

    notes: tuple[str, ...] = ()
    offset: int = 0


class Notes:
    """What each job's worker noted: its events are read on from where the last look ended."""

    def __init__(self, most: int = 32) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._kept: OrderedDict[int, Told] = OrderedDict()

    def get(self, job_id: int, read_on: Callable[[Told], Told]) -> tuple[str, ...]:
        with self._lock:
            known = self._kept.get(job_id, Told())
        told = read_on(known)
        with self._lock:
            self._kept[job_id] = told
            self._kept.move_to_end(job_id)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return told.notes


@dataclass(frozen=True)
class Watch:
    """One for the whole page."""

    clock: ProgressClock = field(default_factory=ProgressClock)
    drawn: Drawn = field(default_factory=Drawn)
    past: Drawn = field(default_factory=Drawn)
    notes: Notes = field(default_factory=Notes)
