"""GPUs that other people's processes fill: a job waits for one of them to become free, and says so.

A job that started there would fail at once for want of memory, and so would, through the night, every job behind
it. Thus a GPU of whose memory others hold 90 % counts as taken, as long as they do, for every job that doesn't
name it. Nothing is hidden: the job's state says what it waits for. Whoever wants to start there all the same names
the device in the job. Where nobody can tell whose processes they are, in a container say, no job waits.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping

from sqlite_utils import Database

from jobs import devices
from jobs.placement import Wanted
from jobs.settings import Settings
from storage import jobs as store
from storage.database import immediate
from storage.errors import PlumbError
from storage.records import Job
from storage.settings import get_setting, put_setting

#: The setting by which the supervisor tells the pages: {slot: how much of it others hold}.
CROWDED = "crowded_devices"
#: The same of jobs whose run folders cannot be read: {job: reason}.
UNREADABLE = "unreadable_jobs"
LOOK_SECONDS = 10.0  # a job that waits for a night shall not wake the driver twice a second


def look_around(
    db: Database,
    settings: Settings,
    see: Callable[[Settings, float], tuple[devices.Device, ...]] | None = None,
) -> Mapping[str, str]:
    """The slots that others fill, with words; kept in the database for `waits`. Not called within a transaction.

    nvidia-smi is asked only where a job could start on a GPU, or would have a chat model leave it.
    """
    see = see or devices.look
    crowded = devices.crowded(see(settings, LOOK_SECONDS)) if _may_start(db, settings) else {}
    if crowded != get_setting(db, CROWDED, {}):
        try:
            with immediate(db):
                put_setting(db, CROWDED, crowded or None)
        except (PlumbError, sqlite3.Error):
            pass  # words that are a little old keep no job from starting; the next pass tells them
    return crowded


def _may_start(db: Database, settings: Settings) -> bool:
    held = {slot for job in store.active_jobs(db) if job.kind != "serve" for slot in job.slots}
    if all(slot in held or not slot.startswith("cuda:") for slot in settings.devices):
        return False
    return any(job.device is None and store.is_due(db, job) for job in store.queued_jobs(db, "device"))


def spared(wanted: Wanted, job: Job, crowded: Mapping[str, str]) -> Wanted:
    """What a job waits for, without the slots that others fill, unless it names its device."""
    if job.device is not None:
        return wanted
    return Wanted(tuple(slot for slot in wanted.slots if slot not in crowded), wanted.number)


def waits(db: Database, job: Job) -> str:
    """The GPUs that a queued job does not start on, in words; "" for none."""
    if job.device is not None or job.slot_kind != "device":
        return ""
    crowded = get_setting(db, CROWDED, {})
    if not crowded:
        return ""
    return f"other people's processes fill {', '.join(f'{slot} ({share})' for slot, share in crowded.items())}"


def note_unreadable(db: Database, found: Mapping[int, str]) -> None:
    """Tell the pages of which jobs nobody can tell just now what they want, each with the reason."""
    told = {str(job_id): reason for job_id, reason in found.items()}
    if told != get_setting(db, UNREADABLE, {}):
        with contextlib.suppress(PlumbError, sqlite3.Error):  # the next pass tells it
            put_setting(db, UNREADABLE, told or None)


def unreadable(db: Database, job: Job) -> str:
    """Why nobody can tell what a queued job wants, in words; "" where it is known."""
    return str(get_setting(db, UNREADABLE, {}).get(str(job.id), ""))
