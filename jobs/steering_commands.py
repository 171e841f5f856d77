"""The commands of `python -m jobs` that say what becomes of a queued job and of the queue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
from sqlite_utils import Database

from jobs import steering
from jobs.command_line import AsJson, Data, echo, opened, read_priority
from jobs.log_lines import attempt_numbered, log_lines
from jobs.queue import PRIORITIES
from jobs.runs import RunFolder
from jobs.settings import Settings, local_user
from jobs.standby import ensure_supervisor
from storage import jobs as store
from storage.database import session
from storage.errors import DatabaseBusy, UserError
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job

#: Added to those of `__main__`; in a file of their own because they are many.
commands = typer.Typer()

LOOK_SECONDS = 0.5

# A number below 0 is a value, which the command itself refuses or takes, and no option.
_NEGATIVE = {"ignore_unknown_options": True}


@commands.command()
def stop(job_id: int, data: Data = None, as_json: AsJson = False) -> None:
    """Ask a job to stop."""
    _steer(
        data,
        as_json,
        lambda db, settings: steering.stop(db, settings, job_id),
        lambda job: f"job {job.id} is {job.status}",
    )


@commands.command()
def resume(job_id: int, data: Data = None, as_json: AsJson = False) -> None:
    """Queue a job again that failed, was stopped, or is paused by a full disk: it goes on where it was."""
    _steer(data, as_json, lambda db, settings: steering.resume(db, settings, job_id))


@commands.command()
def pause(job_id: int, data: Data = None, as_json: AsJson = False) -> None:
    """Have a judge or checklist job ask nothing more until go-on."""
    _steer(
        data,
        as_json,
        lambda db, settings: steering.pause(db, settings, job_id),
        lambda job: f"job {job.id} asks nothing more until `python -m jobs go-on {job.id}`",
    )


@commands.command("go-on")
def go_on(job_id: int, data: Data = None, as_json: AsJson = False) -> None:
    """End a pause."""
    _steer(
        data,
        as_json,
        lambda db, settings: steering.go_on(db, settings, job_id),
        lambda job: f"job {job.id} goes on",
    )


@commands.command()
def again(job_id: int, data: Data = None, as_json: AsJson = False) -> None:
    """Queue a new job with the settings of an old one, packed anew."""
    _steer(data, as_json, lambda db, settings: steering.run_again(db, settings, job_id, local_user()))


@commands.command()
def move(
    job_id: int,
    to: Annotated[str, typer.Argument(help="first, up, down or last, among the jobs of its priority")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Move a queued job."""
    _steer(data, as_json, lambda db, _: steering.move(db, job_id, cast(steering.Where, to)))


@commands.command(context_settings=_NEGATIVE)
def priority(
    job_id: int,
    value: Annotated[str, typer.Argument(metavar="PRIORITY", help=", ".join(PRIORITIES.values()))],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Give a job another priority."""
    number = cast(steering.Priority, read_priority(value))
    _steer(data, as_json, lambda db, _: steering.prioritise(db, job_id, number))


@commands.command()
def after(
    job_id: int,
    leader: Annotated[int | None, typer.Argument(help="the number of the job that must be done first")] = None,
    none: Annotated[bool, typer.Option("--none", help="it waits for no other job any more")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Have a job start only when another is done."""
    if none == (leader is not None):
        raise UserError("leader: give the number of the job that must be done first, or --none.")
    _steer(data, as_json, lambda db, _: steering.follow(db, job_id, leader))


@commands.command(context_settings=_NEGATIVE)
def retries(
    job_id: int,
    number: Annotated[int, typer.Argument(help="0: it is never tried again")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Say how often a job is tried again after its worker died without having come further."""
    with session(opened(data).folder) as db:
        job = steering.set_retries(db, job_id, number)
        echo(job, as_json, f"job {job.id} is tried again {number} times, where its worker dies with nothing done")


@commands.command()
def hold(data: Data = None) -> None:
    """Have nothing new start until release; what runs goes on."""
    with session(opened(data).folder) as db:
        held = steering.hold_queue(db, local_user())
    print(f"the queue is held by {held.user} since {held.since[:16].replace('T', ' ')} UTC: nothing new starts")


@commands.command()
def release(data: Data = None) -> None:
    """Let a held queue go on."""
    settings = opened(data)
    with session(settings.folder) as db:
        steering.release_queue(db, settings)
    print("the queue goes on")


@commands.command()
def logs(
    job_id: int,
    attempt: Annotated[int | None, typer.Option("--attempt", help="which of its attempts [the latest]")] = None,
    grep: Annotated[str, typer.Option("--grep", help="only lines with this text; A to Z stand for a to z")] = "",
    lines: Annotated[int, typer.Option("--lines", min=0, help="only the last so many; 0: all")] = 0,
    data: Data = None,
) -> None:
    """What an attempt of a job wrote to its log."""
    settings = opened(data)
    with session(settings.folder) as db:
        store.get_job(db, job_id)
        found = attempt_numbered(store.attempts_of(db, job_id), attempt)
    wanted = grep.casefold()
    part = log_lines(RunFolder(settings.folder.run(job_id)).log, found.log_begin, found.log_end)
    fitting = (line for line in part if wanted in line.casefold())
    for line in deque(fitting, lines) if lines else fitting:
        print(line)


@commands.command()
def wait(
    job_ids: Annotated[list[int], typer.Argument(metavar="JOB_ID...")],
    data: Data = None,
) -> None:
    """Wait until jobs have ended; exits with 0 when all are done, with 1 when one failed or was stopped."""
    settings = opened(data)
    ended = await_jobs(settings, job_ids, lambda text: print(text, flush=True))
    if any(job.status is not JobStatus.DONE for job in ended):
        raise typer.Exit(1)


def await_jobs(
    settings: Settings, job_ids: Sequence[int], tell: Callable[[str], None], look: float = LOOK_SECONDS
) -> list[Job]:
    """Wait until all of these jobs have ended; returns them as they are then.

    Args:
        tell: is given a line whenever one's state, or what it waits for, has changed.
        look: seconds between two looks at the database.

    Raises:
        NotFound: one of them is not there.
    """
    told: dict[int, str] = {}
    supervised = False
    while True:
        try:
            with session(settings.folder) as db:
                jobs = [store.get_job(db, job_id) for job_id in job_ids]
                for job in jobs:
                    if told.get(job.id) != (text := state_of(db, job)):
                        told[job.id] = text
                        tell(f"job {job.id} ({job.kind}) is {text}")
        except DatabaseBusy:  # nothing is lost by looking again
            time.sleep(look)
            continue
        if all(job.status in ENDED for job in jobs):
            return jobs
        if not supervised:  # else it might wait for ever for what nobody starts
            supervised = True
            ensure_supervisor(settings)
        time.sleep(look)


def state_of(db: Database, job: Job) -> str:
    """A job's state in words: which number in the queue, what it waits for, why it ended."""
    if job.status is JobStatus.QUEUED:
        text = f"queued, number {store.queue_position(db, job)}"
        waits = steering.waits_for(db, job)
        return f"{text}: {waits}" if waits else text
    return f"{job.status}: {job.reason}" if job.reason else str(job.status)


def _steer(
    data: Path | None,
    as_json: bool,
    act: Callable[[Database, Settings], Job],
    tell: Callable[[Job], str] | None = None,
) -> None:
    settings = opened(data)
    with session(settings.folder) as db:
        job = act(db, settings)
        echo(job, as_json, tell(job) if tell else f"job {job.id} ({job.kind}) is {state_of(db, job)}")
