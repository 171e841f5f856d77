"""How an ended attempt is to be booked, and whether its job goes on by itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from jobs.configs import KINDS
from jobs.event_file import Event, read_tail
from jobs.processes import explain_exit
from jobs.runs import RunFolder
from storage.lifecycle import ENDED, JobStatus
from storage.records import Attempt, Job


class Cause(StrEnum):
    """Why an attempt ended otherwise than done; kept with the attempt, and what the failure policy goes by."""

    NONE = ""
    STOP = "stop"  # it was asked to
    SETTING = "setting"  # a value, a model or a row that it cannot work with: it would fail again
    BUG = "bug"  # nobody foresaw it
    MEMORY = "memory"  # torch or Python found no more: it would fail again
    KERNEL = "kernel"  # the kernel ended it for memory
    KILLED = "killed"  # by a signal, from whomever
    GONE = "gone"  # nobody saw it end: a reboot, or a kill while no supervisor was there
    DISK = "disk"  # full
    NETWORK = "network"  # a hub or an endpoint that could not be reached


#: What may be over at another try. A full disk is not among them: its job is paused until there is room.
TRANSIENT = frozenset({Cause.KERNEL, Cause.KILLED, Cause.GONE, Cause.NETWORK})


@dataclass(frozen=True)
class Verdict:
    """The state that the job gets, the reason for a person, and the cause."""

    status: JobStatus
    reason: str = ""
    cause: Cause = Cause.NONE


def verdict(run: RunFolder, attempt: Attempt, job: Job, code: int | None) -> Verdict:
    """How an ended attempt is to be booked: by its own last word, else by how the process ended.

    Args:
        code: the exit code; None where nobody saw it end.
    """
    last = last_word(run, attempt)
    if last is not None:
        status = JobStatus(last["status"])
        told = str(last.get("cause", ""))
        cause = Cause(told) if told in set(Cause) else Cause.NONE
        return Verdict(status, str(last.get("reason", "")), cause)
    if job.status is JobStatus.STOPPING:
        return Verdict(JobStatus.STOPPED, "It did not stop by itself and was ended.", Cause.STOP)
    tail = run.log_tail(lines=3).strip()
    cause = Cause.GONE if code is None else Cause.KILLED if code < 0 else Cause.BUG
    return Verdict(JobStatus.FAILED, explain_exit(code) + (f" Its log ends: {tail}" if tail else ""), cause)


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


def can_resume(run: RunFolder, job: Job) -> bool:
    """Whether its kind goes on from what its run folder holds, and the folder is there."""
    return job.kind in KINDS and KINDS[job.kind].resumable and (run.path / "job.json").exists()
