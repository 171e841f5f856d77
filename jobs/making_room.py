"""Asking idle chat models to leave where a job waits for their devices, and that is all it waits for."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable

from sqlite_utils import Database

from jobs.keys import serve_key
from jobs.placement import Wanted
from jobs.runs import RunFolder
from storage import jobs as store
from storage.folder import DataFolder
from storage.lifecycle import JobStatus
from storage.records import Job


def make_room(db: Database, folder: DataFolder, wanted: Callable[[Job], Wanted]) -> None:
    """Ask them.

    The queue's order is kept, as `storage.jobs.claim_next` keeps it: while a job cannot have all the devices that
    it waits for, none that suits it goes to a job behind it. So no chat leaves for the sake of that one: what it
    left would only be kept for the first.

    Args:
        wanted: the slots that a queued job waits for.
    """
    waiting = [job for job in store.queued_jobs(db, "device") if store.is_due(db, job)]
    if not waiting:
        return
    active = store.active_jobs(db)
    taken = {slot for job in active if job.status is not JobStatus.STOPPING for slot in job.slots}
    kept: set[str] = set()  # for jobs that stand before
    for job in waiting:
        slots, count = wanted(job)
        if len(slots) < count:
            continue  # it can't start, however many leave
        coming = [slot for slot in slots if slot not in taken and slot not in kept]  # free, or about to be
        missing = count - len(coming)
        if missing <= 0:
            kept.update(coming[:count])
            continue
        suits = set(slots) - kept
        idle = [
            other
            for other in active
            if other.kind == "serve" and set(other.slots) & suits and not is_serving(folder, other)
        ]
        if len(idle) >= missing:
            for other in idle[:missing]:
                store.move(db, other.id, JobStatus.STOPPING, f"left its device to job {job.id}")
                RunFolder(folder.run(other.id)).ask_to_stop()
            return
        kept |= suits


def is_serving(folder: DataFolder, job: Job) -> bool:
    """Whether a chat model must not be asked to leave: it answers somebody, loads, or is leaving."""
    if job.status is not JobStatus.RUNNING or job.port is None:
        return True
    connection = http.client.HTTPConnection("127.0.0.1", job.port, timeout=2)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {serve_key(folder, job.id)}"})
        return bool(json.loads(connection.getresponse().read()).get("busy", True))
    except TimeoutError:  # it has no time to answer: it is at work
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
