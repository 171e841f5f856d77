"""How an ended attempt is to be booked, and whether its job goes on by itself."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

from jobs.causes import CANNOT_WRITE, DISK_FULL, LOCKED, TRANSIENT, Cause, is_full
from jobs.configs import KINDS, parse_config
from jobs.event_file import Event, read_batch, read_tail
from jobs.kernel import has_risen
from jobs.out_of_memory import remedies
from jobs.processes import explain_exit
from jobs.reporter import HEADING
from jobs.runs import RunFolder
from storage.errors import PlumbError
from storage.lifecycle import ENDED, JobStatus
from storage.records import Attempt, Job

__all__ = ["TRANSIENT", "Cause", "Verdict", "can_resume", "last_word", "verdict"]

#: The states in which a worker can say that it ends.
_LAST = {str(status) for status in (*ENDED, JobStatus.PAUSED)}

_LOG_LINES = 3
_LOG_CHARACTERS = 600
_ROOM = "What was complete is kept, and the job goes on by itself when there is room."


@dataclass(frozen=True)
class Verdict:
    """The state that the job gets, the reason for a person, and the cause. Only a job that is done needs none."""

    status: JobStatus
    reason: str = ""
    cause: Cause = Cause.NONE


def verdict(run: RunFolder, attempt: Attempt, job: Job, code: int | None, begin: int = 0) -> Verdict:
    """How an ended attempt is to be booked: by its own last word, else by how the process ended.

    Args:
        code: the exit code; None where nobody saw it end.
        begin: the byte of events.jsonl at which the attempt's own events begin.
    """
    last = last_word(run, begin)
    found = _without_word(run, attempt, job, code, begin) if last is None else _by_word(run, attempt, last)
    if found.status is JobStatus.PAUSED and job.status is JobStatus.STOPPING:
        return Verdict(JobStatus.STOPPED, f"It was asked to stop. {found.reason}", Cause.STOP)
    if found.status is JobStatus.PAUSED and job.kind == "serve":
        # Whoever chatted has left when there is room again.
        return replace(found, status=JobStatus.FAILED, reason="The disk is full: the chat model left.")
    if found.status is JobStatus.STOPPED and found.cause is Cause.KILLED and _is_resumable(job):
        # Nobody asked for it: the machine was shut down, say. It shall not look as if somebody had.
        return replace(found, status=JobStatus.FAILED)
    return found


def last_word(run: RunFolder, begin: int = 0) -> Event | None:
    """The `end` event of this attempt; None where its process died without one.

    Only the end of the file is read: a last word stands last, but for what threads still had to say.

    Args:
        begin: a resumed job's folder holds the last words of earlier attempts, all before this byte.
    """
    last = None
    for event in read_tail(run.events, begin):
        if event["kind"] == "started":
            last = None  # of a run folder that is newer than the database
        elif event["kind"] == "end":
            last = event if event.get("status") in _LAST else None
    return last


def _by_word(run: RunFolder, attempt: Attempt, last: Event) -> Verdict:
    status = JobStatus(last["status"])
    told = last.get("cause", "")
    cause = Cause(told) if isinstance(told, str) and told in set(Cause) else Cause.NONE
    reason = str(last.get("reason") or "").strip()
    if not reason and status is not JobStatus.DONE:
        reason = f"It {status} and gave no reason.{_log_ends(run, attempt)}"
    if status is JobStatus.PAUSED:
        cause = Cause.DISK
    elif cause is Cause.NONE and status is JobStatus.STOPPED:
        cause = Cause.STOP
    return Verdict(status, reason, cause)


def _without_word(run: RunFolder, attempt: Attempt, job: Job, code: int | None, begin: int) -> Verdict:
    tail = _log_ends(run, attempt)
    if job.status is JobStatus.STOPPING:
        return Verdict(JobStatus.STOPPED, "It did not stop by itself and was ended.", Cause.STOP)
    if not run.path.is_dir():
        reason = f"Its run folder {run.path.name} is gone: it was moved or deleted while the job ran."
        return Verdict(JobStatus.FAILED, f"{reason} Put it back and resume it, or run it again.", Cause.SETTING)
    if code == DISK_FULL or ((code is None or code > 0) and code not in (2, LOCKED) and is_full(run.path)):
        return Verdict(JobStatus.PAUSED, f"The disk is full. {_ROOM}", Cause.DISK)
    if code == CANNOT_WRITE:
        reason = f"Its run folder {run.path.name} cannot be written: it is read-only, or not this user's."
        return Verdict(JobStatus.FAILED, f"{reason} Make it writable and resume the job.{tail}", Cause.SETTING)
    if code == 2:
        reason = "Its run folder has no job.json; run the job again."
        return Verdict(JobStatus.FAILED, f"{reason}{tail}", Cause.SETTING)
    if code == LOCKED:
        reason = f"Another worker is at work in its run folder {run.path.name}."
        return Verdict(JobStatus.FAILED, f"{reason} End it, and resume the job.", Cause.GONE)
    if code == -signal.SIGKILL and has_risen(_memory_kills(run, begin)):
        steps = "; or ".join(_remedies(job))
        reason = "The kernel ended the worker (SIGKILL): the machine, or its container, was out of memory."
        return Verdict(JobStatus.FAILED, f"{reason} {steps}.{tail}", Cause.KERNEL)
    return Verdict(JobStatus.FAILED, f"{explain_exit(code)}{tail}", _cause_of_exit(code))


def _cause_of_exit(code: int | None) -> Cause:
    if code is None:
        return Cause.GONE
    return Cause.KILLED if code < 0 or code == 128 + signal.SIGTERM else Cause.BUG


def _memory_kills(run: RunFolder, begin: int) -> dict[str, int]:
    """The kernel's counters as they stood when the attempt began; empty where it died before it told them."""
    for event in read_batch(run.events, begin).events:
        kills = event.get("memory_kills") if event["kind"] == "started" else None
        if isinstance(kills, dict):
            return kills
    return {}


def _remedies(job: Job) -> list[str]:
    try:
        config = parse_config(job.kind, job.config)
    except PlumbError:
        config = None
    steps = list(remedies(config, job.slot or ""))
    return [steps[0][:1].upper() + steps[0][1:], *steps[1:]]


def _log_ends(run: RunFolder, attempt: Attempt) -> str:
    """The last lines of the attempt's part of the log, as the end of a reason; "" where it wrote none."""
    begin = attempt.log_begin
    try:
        with run.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(begin if begin <= size else 0, size - 64_000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.rsplit("\r", 1)[-1].strip() for line in text.splitlines()]
    own = [line for line in lines if line and not line.startswith(HEADING)]
    shown = " ".join("".join(sign for sign in line if sign.isprintable()) for line in own[-_LOG_LINES:])
    return f" Its log ends: {shown[-_LOG_CHARACTERS:]}" if shown.strip() else ""


def can_resume(run: RunFolder, job: Job) -> bool:
    """Whether its kind goes on from what its run folder holds, and the folder is there."""
    return _is_resumable(job) and (run.path / "job.json").exists()


def _is_resumable(job: Job) -> bool:
    return job.kind in KINDS and KINDS[job.kind].resumable
