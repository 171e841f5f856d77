"""What a person does to jobs and to the queue on the Jobs page: plain functions above Gradio.

Each returns what to tell where it could not be done, and "" where all is well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlite_utils import Database

from jobs import bin as recycling
from jobs import steering, sweeps
from jobs.disk import run_bytes
from jobs.judges import rules
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage.errors import Conflict, PlumbError, UserError
from storage.jobs import get_job
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from storage.units import in_words
from workbench.context import Context
from workbench.training_form import TRAINED

NO_JOB = "Choose a job from the list first."


def halt(context: Context, job_id: int | None) -> str:
    """Ask the opened job to stop."""
    return _ask(context, job_id, steering.stop)


def pause(context: Context, job_id: int | None) -> str:
    """Have the opened job ask nothing more for now."""
    return _ask(context, job_id, steering.pause)


def go_on(context: Context, job_id: int | None) -> str:
    """End the opened job's pause."""
    return _ask(context, job_id, steering.go_on)


def resume(context: Context, job_id: int | None) -> str:
    """Queue the opened job again, which has ended before its time."""
    return _ask(context, job_id, steering.resume)


def halt_sweep(context: Context, job_id: int | None) -> str:
    """Ask all jobs of the opened one's sweep to stop that have not ended."""

    def stop_all(db: Database, settings: Settings, opened: int) -> None:
        job = get_job(db, opened)
        if job.sweep is not None:
            sweeps.stop_sweep(db, settings, job.sweep)

    return _ask(context, job_id, stop_all)


def move(context: Context, job_id: int | None, to: steering.Where) -> str:
    """Move the opened job in the queue."""
    return _ask(context, job_id, lambda db, settings, opened: steering.move(db, opened, to))


def prioritise(context: Context, job_id: int | None, priority: Any) -> str:
    return _ask(context, job_id, lambda db, settings, opened: steering.prioritise(db, opened, priority))


def follow(context: Context, job_id: int | None, after: int | None) -> str:
    """Have the opened job wait until another is done; 0 or None: for none."""
    return _ask(context, job_id, lambda db, settings, opened: steering.follow(db, opened, after or None))


def set_retries(context: Context, job_id: int | None, retries: Any) -> str:
    """Say how often the opened job is tried again."""

    def set_(db: Database, settings: Settings, opened: int) -> None:
        if retries is None or retries != int(retries):
            raise UserError(f"Tries again = {retries!r}: give a whole number, 0 for never.")
        if get_job(db, opened).retries != int(retries):
            steering.set_retries(db, opened, int(retries))

    return _ask(context, job_id, set_)


def hold(context: Context, user: str, held: bool) -> None:
    """Hold the whole queue, or release it; nothing changes where somebody else has done so since."""
    with context.database() as db:
        if held and steering.held_by(db) is None:
            steering.hold_queue(db, user)
        elif not held:
            steering.release_queue(db, context.settings)


def run_again(context: Context, job_id: int | None, user: str) -> Job:
    """Queue a new job with the opened one's settings.

    Raises:
        PlumbError: it cannot start; the text names field, value and remedy.
    """
    if job_id is None:
        raise UserError(NO_JOB)
    with context.database() as db:
        return steering.run_again(db, context.settings, job_id, user)


def delete(context: Context, job_id: int | None, user: str) -> str:
    """Put the opened job's run into the bin."""
    return _ask(context, job_id, lambda db, settings, opened: recycling.delete_run(db, settings, opened, user))


def restore(context: Context, job_id: int | None) -> str:
    """Take a run out of the bin again."""
    return _ask(context, job_id, recycling.restore_run)


def _ask(context: Context, job_id: int | None, act: Callable[[Database, Settings, int], object]) -> str:
    if job_id is None:
        return NO_JOB
    try:
        with context.database() as db:
            act(db, context.settings, job_id)
    except PlumbError as error:
        return str(error)
    return ""


# --- what is asked before ---


def before(context: Context, job_id: int, act: str) -> str:
    """What will happen if `act` ("stop", "stop_sweep", "delete") is done to a job, as one or two sentences."""
    with context.database() as db:
        job = get_job(db, job_id)
        if act == "delete":
            size = run_bytes(RunFolder(context.folder.run(job.id)))
            return before_delete(job, size, recycling.get_days(db))
    if act == "stop_sweep":
        return f"Stop all jobs of sweep #{job.sweep} that have not ended? {_what_stays(job, at_work=True)}"
    return before_stop(job)


def before_stop(job: Job) -> str:
    """What stopping it means."""
    if job.status is JobStatus.QUEUED:
        return f"Take job {job.id} out of the queue? It has not started; “Go on” queues it again."
    at_work = job.status is not JobStatus.PAUSED
    return f"Stop job {job.id}? {_what_stays(job, at_work)}"


def _what_stays(job: Job, at_work: bool) -> str:
    if job.kind in TRAINED:
        if job.config.get("only_trial"):
            return "It only tries a step, which leaves nothing."
        if job.config.get("keep_checkpoints") == 0:
            return "It keeps no checkpoints: if it goes on later, it begins anew."
        saves = "A training saves a checkpoint first, and" if at_work else "Its checkpoints stay, and it"
        return f"{saves} can go on from there later."
    if job.kind == "serve":
        return "The chat model leaves; its device is free for other jobs."
    if job.kind in steering.RESUMABLE:
        paid = job.kind in ("judge", "checklist") and job.config.get("judge") != rules.NAME
        replies = " Replies on their way are waited for, since they are paid." if paid and at_work else ""
        return f"What it has done is kept, and it can go on later.{replies}"
    return "It keeps what it has written; a new start begins anew."


def before_delete(job: Job, size: int, days: int) -> str:
    """What deleting its run means."""
    if job.status not in ENDED:
        raise Conflict(f"Job {job.id} is at work again ({job.status.value}); stop it before you delete its run.")
    long = f"{days} day{'' if days == 1 else 's'}"
    return (
        f"Delete job {job.id}? Its run folder ({in_words(size)}: log, settings, checkpoints) goes to the bin "
        f"and can be restored for {long}. Answers, scores and adapters that it made stay."
    )
