"""The commands of `python -m jobs` about the disk and the bin."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import timedelta
from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from sqlite_utils import Database

from jobs import bin as recycling
from jobs import disk, disk_guard
from jobs.command_line import AsJson, Data, echo, opened
from jobs.settings import local_user
from storage import jobs as store
from storage.database import session
from storage.errors import NotFound, UserError
from storage.lifecycle import JobStatus
from storage.records import Job
from storage.units import in_words

LARGEST = 10


def add_to(app: typer.Typer) -> None:
    """Give an app these commands."""
    commands = typer.Typer()
    commands.command("disk")(show_disk)
    commands.command("delete")(delete)
    commands.command("restore")(restore)
    commands.command("bin")(show_bin)
    app.add_typer(commands)


def show_disk(
    budget: Annotated[
        str | None, typer.Option("--budget", help="what the data folder may take, as 200GB, or none")
    ] = None,
    floor: Annotated[
        str | None, typer.Option("--floor", help="what must be free for a job to start, as 5GB, or default")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """What the data folder takes, by part, and the largest runs."""
    settings = opened(data)
    with session(settings.folder) as db:
        if budget is not None:
            disk.set_budget(db, read_bytes("budget", budget, "none"), local_user())
        if floor is not None:
            disk_guard.set_floor(db, read_bytes("floor", floor, "default"), local_user())
        needs, why = disk_guard.get_floor(db, settings), disk_guard.has_room(db, settings)
        found, largest = disk.usage(settings.folder), disk.largest_runs(settings.folder, LARGEST)
        kinds = {job_id: kind_of(db, job_id) for job_id, _ in largest}
    if as_json:
        details = {"used": found.used, "floor": needs, "no_room": why, "largest_runs": dict(largest)}
        print(json.dumps(dataclasses.asdict(found) | details, ensure_ascii=False))
        return
    of = f" of its budget of {in_words(found.budget)}" if found.budget is not None else ""
    print(f"the data folder takes {in_words(found.used)}{of}")
    print(
        f"the disk has {in_words(found.free)} of {in_words(found.total)} free; jobs start above {in_words(needs)}"
    )
    for part, size in found.used_by_parts.items():
        if size:
            print(f"{part:>12}  {in_words(size)}")
    if largest:
        print("largest runs:")
    for job_id, size in largest:
        print(f"{job_id:>12}  {in_words(size):<10} {kinds[job_id]}")
    if why:
        print(f"Nothing new starts. {why}")


def delete(
    job_ids: Annotated[list[int] | None, typer.Argument(metavar="[JOB_ID]...")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="all that failed")] = False,
    stopped: Annotated[bool, typer.Option("--stopped", help="all that were stopped")] = False,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than", min=0, help="with --failed or --stopped: only if they ended so many days ago"
        ),
    ] = 0.0,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Put runs into the bin, from which they can be restored for some days."""
    statuses = [status for status, wanted in ((JobStatus.FAILED, failed), (JobStatus.STOPPED, stopped)) if wanted]
    if bool(job_ids) == bool(statuses):
        raise UserError("job_ids: give the numbers of the jobs to delete, or --failed or --stopped.")
    settings = opened(data)
    with session(settings.folder) as db:
        days = recycling.get_days(db)
        if not statuses:
            for job_id in job_ids or []:
                job = recycling.delete_run(db, settings, job_id, local_user())
                echo(
                    job,
                    as_json,
                    f"job {job.id} is deleted; `python -m jobs restore {job.id}` within {in_days(days)}",
                )
            return
        done = recycling.delete_runs(db, settings, local_user(), statuses, timedelta(days=older_than))
    if as_json:
        print(json.dumps(dataclasses.asdict(done), ensure_ascii=False))
        return
    print(f"{len(done.jobs)} runs are in the bin: {in_words(done.bytes)} will be free in {in_days(days)}")
    for reason in done.kept:
        print(reason)


def restore(job_id: int, data: Data = None, as_json: AsJson = False) -> None:
    """Take a run out of the bin."""
    settings = opened(data)
    with session(settings.folder) as db:
        job = recycling.restore_run(db, settings, job_id)
        echo(job, as_json, f"job {job.id} ({job.kind}) is back: {job.status}")


def show_bin(
    empty: Annotated[bool, typer.Option("--empty", help="remove what is in it, for good")] = False,
    days: Annotated[
        str | None, typer.Option("--days", help="how long deleted runs can be restored, or default")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """The deleted runs that can still be restored."""
    settings = opened(data)
    with session(settings.folder) as db:
        if days is not None:
            recycling.set_days(db, read_days(days), local_user())
        if empty:
            done = recycling.purge_all(db, settings)
            if not as_json:
                print(f"{len(done.jobs)} runs are removed for good; {in_words(done.bytes)} are free")
            for text in done.left:
                print(text, file=sys.stderr)
        jobs, kept = recycling.deleted_runs(db), recycling.get_days(db)
        sizes = disk.measured(settings.folder).binned
    if as_json:
        print(
            json.dumps(
                [dataclasses.asdict(job) | {"bytes": sizes.get(job.id, 0)} for job in jobs], ensure_ascii=False
            )
        )
        return
    for job in jobs:
        print(deleted_line(job, sizes.get(job.id, 0)))
    if not jobs and not empty:
        print(f"The bin is empty; deleted runs stay in it for {in_days(kept)}.")


def deleted_line(job: Job, size: int) -> str:
    """One of the bin's runs."""
    moment = (job.deleted_at or "")[:16].replace("T", " ")
    state = f"{job.kind:<10} {job.status:<9} {in_words(size):<10}"
    return f"{job.id:>6}  {state} deleted {moment} UTC by {job.deleted_by}"


def kind_of(db: Database, job_id: int) -> str:
    """A job's kind and state; of a folder that the database doesn't know, that."""
    try:
        job = store.get_job(db, job_id)
    except NotFound:
        return "unknown"
    return f"{job.kind}, {job.status}"


def in_days(days: int) -> str:
    return f"{days} day{'' if days == 1 else 's'}"


def read_days(text: str) -> int | None:
    """A number of days; None for the default. Raises UserError where it is neither."""
    if text.strip().lower() == "default":
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(f"days = {text!r}: give a whole number of days, or default.") from None


def read_bytes(name: str, text: str, nothing: str) -> int | None:
    """Bytes, as 200GB or 5000000; None for the word that stands for no value.

    Raises:
        UserError: it is neither.
    """
    if text.strip().lower() == nothing:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text.strip()))
    except ValidationError:
        raise UserError(f"{name} = {text!r}: give a size as 200GB, 500 MB or 1TB, or {nothing}.") from None
