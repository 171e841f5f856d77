"""What the Machine page asks and does: plain functions above Gradio."""

from __future__ import annotations

import math
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from jobs import bin as recycling
from jobs import devices, disk, disk_guard, doctor
from jobs.disk_commands import read_bytes
from jobs.settings import Settings
from jobs.standby import differs
from storage import jobs as store
from storage.errors import DatabaseBusy, NotFound, PlumbError, UserError
from storage.records import Job
from storage.units import in_words
from workbench.context import Context

LARGEST = 4  # runs that are named below the disk's bar


@dataclass(frozen=True)
class Live:
    """The devices now.

    Attributes:
        holders: by slot, the jobs to which Plumb has given it; their processes may not be on it yet.
        jobs: by id, those that have a process on one of them.
        crowded: by slot, how much of it other people's processes fill.
        differs: how the supervisor at work differs from this app's settings, with the remedy; "" for nothing.
    """

    devices: Sequence[devices.Device]
    holders: Mapping[str, Sequence[Job]] = field(default_factory=dict)
    jobs: Mapping[int, Job] = field(default_factory=dict)
    crowded: Mapping[str, str] = field(default_factory=dict)
    differs: str = ""


@dataclass(frozen=True)
class Storage:
    """The disk.

    Attributes:
        usage: None where it cannot be told; `problem` says why.
        floor: bytes that must be free for a job to start.
        why: why nothing new starts; "" where it does.
        largest: (job, bytes that deleting its run frees), the largest first; None for a job that is not known.
    """

    usage: disk.Usage | None
    floor: int = 0
    why: str = ""
    largest: Sequence[tuple[int, Job | None, int]] = ()
    problem: str = ""


@dataclass(frozen=True)
class Bin:
    """Deleted runs that can be restored, with their bytes, and for how many days after they were deleted."""

    runs: Sequence[tuple[Job, int]]
    days: int


@dataclass(frozen=True)
class Report:
    """What the doctor found, when, and how long it took."""

    checks: Sequence[doctor.Check]
    at: datetime
    seconds: float


class Surgery:
    """Keeps the doctor's last report, and lets one patient in at a time: whoever comes meanwhile gets the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Report | None = None

    @property
    def last(self) -> Report | None:
        """None where nobody has asked since the app began."""
        return self._last

    def check(self, settings: Settings) -> Report:
        """Run every check; takes some seconds."""
        before = self._last
        with self._lock:
            if self._last is None or self._last is before:
                began = time.monotonic()
                devices.forget()
                found = doctor.report(settings)
                self._last = Report(found, datetime.now(UTC), time.monotonic() - began)
            return self._last


def live(context: Context) -> Live:
    """Devices, and what runs on them; takes as long as the driver needs to answer."""
    found = devices.look(context.settings)
    on_them = {process.job for device in found for process in device.processes if process.job is not None}
    holders: dict[str, list[Job]] = {}
    jobs: dict[int, Job] = {}
    with context.database() as db:
        for job in store.active_jobs(db):
            if job.slot_kind == "device":
                jobs[job.id] = job
                for slot in job.slots:
                    holders.setdefault(slot, []).append(job)
        for job_id in sorted(on_them - jobs.keys()):
            try:
                jobs[job_id] = store.get_job(db, job_id)
            except NotFound:
                continue
    return Live(found, holders, jobs, devices.crowded(found), differs(context.settings))


def storage(context: Context) -> Storage:
    """What the data folder takes; from a walk that may be some seconds old."""
    settings = context.settings
    try:
        usage = disk.usage(settings.folder)
        runs = disk.largest_runs(settings.folder, LARGEST)
        with context.database() as db:
            floor, why = disk_guard.get_floor(db, settings), disk_guard.has_room(db, settings)
            largest: list[tuple[int, Job | None, int]] = []
            for job_id, size in runs:
                try:
                    largest.append((job_id, store.get_job(db, job_id), size))
                except NotFound:
                    largest.append((job_id, None, size))
    except DatabaseBusy:
        raise
    except (OSError, PlumbError) as error:
        return Storage(None, problem=f"The data folder cannot be looked at: {error}")
    return Storage(usage, floor, why, largest)


def waste(context: Context) -> Bin:
    """The bin."""
    with context.database() as db:
        runs, days = recycling.deleted_runs(db), recycling.get_days(db)
    try:
        sizes = disk.measured(context.folder).binned
    except OSError:
        sizes = {}
    return Bin([(job, sizes.get(job.id, 0)) for job in runs], days)


def budget_text(usage: disk.Usage | None) -> str:
    """The budget as the form shows it, in GB; "" for none."""
    if usage is None or usage.budget is None:
        return ""
    return f"{usage.budget / 1e9:.3f}".rstrip("0").rstrip(".")


def read_budget(text: str) -> int | None:
    """Bytes from what was typed: GB, or with a unit of its own; empty for no limit.

    Raises:
        UserError: it is neither.
    """
    typed = text.strip().replace(",", "")
    if not typed:
        return None
    try:
        number = float(typed)
    except ValueError:
        return read_bytes("Budget", typed, "none")
    if not math.isfinite(number) or number <= 0:
        raise UserError(f"Budget = {text.strip()}: give a number of GB above 0, or leave it empty for no limit.")
    return int(number * 1e9)


def set_budget(context: Context, user: str, text: str) -> str:
    """Set what the data folder may take; returns what to tell.

    Raises:
        UserError: it cannot be a budget.
    """
    budget = read_budget(text)
    with context.database() as db:
        disk.set_budget(db, budget, user)
    if budget is None:
        return "The data folder may take what the disk has."
    return f"The budget is {in_words(budget)}."


def restore(context: Context, job_id: int) -> Job:
    """Take a run out of the bin. Raises PlumbError where it is gone, or cannot be moved."""
    with context.database() as db:
        return recycling.restore_run(db, context.settings, job_id)


def empty_bin(context: Context, before: datetime | None = None) -> str:
    """Remove for good what was put into the bin before a moment (None: all); returns what to tell.

    Raises:
        PlumbError: the run folders' disk is not mounted, or something could not be removed; the rest is.
    """
    with context.database() as db:
        done = recycling.purge_all(db, context.settings, before)
    runs = "1 run is" if len(done.jobs) == 1 else f"{len(done.jobs)} runs are"
    told = f"{runs} removed for good; about {in_words(done.bytes)} are free."
    if done.left:
        raise UserError(f"{told} {' '.join(done.left)}")
    return told


def backup_commands(context: Context) -> list[str]:
    """The commands that make a backup of this data folder, and another folder of the backup."""
    root = context.folder.root
    # Whoever copies a command into another terminal may not have PLUMB_DATA there.
    data = "" if root == Path(platformdirs.user_data_dir("plumb")) else f" --data {shlex.quote(str(root))}"
    return [f"python -m storage backup plumb.tar{data}", "python -m storage restore plumb.tar --data FOLDER"]
