"""`python -m jobs`: submit, sweep, list, show, supervise, and what steering_commands.py adds; as the pages do."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import (
    data_commands,
    disk_commands,
    doctor,
    evaluation_commands,
    paper_commands,
    push_dataset,
    queue,
    steering,
    sweeps,
)
from jobs.command_line import AfterOption, AsJson, Data, PriorityOption, RetriesOption, echo, opened, read_priority
from jobs.configs import KINDS, TRAININGS
from jobs.settings import local_user
from jobs.standby import differs, ensure_supervisor
from jobs.steering_commands import commands, state_of
from jobs.supervisor import supervise as run_supervisor
from storage import jobs as store
from storage.database import session
from storage.errors import Conflict, PlumbError, UserError
from storage.lifecycle import JobStatus

app = typer.Typer(help="Queue, watch and stop Plumb's jobs.", no_args_is_help=True, add_completion=False)

app.add_typer(commands)
disk_commands.add_to(app)
data_commands.add_to(app)
doctor.add_to(app)
evaluation_commands.add_to(app)
paper_commands.add_to(app)
push_dataset.add_to(app)


@app.command(help=f"Check, freeze and queue a job of one of these kinds: {', '.join(KINDS)}.")
def submit(
    file: Annotated[Path, typer.Argument(help='JSON: {"kind": "dpo", "config": {…}}; - for standard input')],
    priority: PriorityOption = "normal",
    after: AfterOption = None,
    retries: RetriesOption = queue.PLAIN.retries,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Check, freeze and queue a job."""
    order = queue.Order(read_priority(priority), after, retries)
    settings = opened(data)
    kind, config = read_submission(sys.stdin.read() if str(file) == "-" else read_text(file), str(file))
    with session(settings.folder) as db:
        job = queue.submit(db, settings, kind, config, local_user(), order)
        echo(job, as_json, f"job {job.id} ({job.kind}) is {state_of(db, job)}")


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSON: {"kind": "dpo", "config": {…}, "sweep": {"beta": [0.1, 0.3]}}; - for standard input'
        ),
    ],
    data: Data = None,
    as_json: AsJson = False,
    priority: PriorityOption = "normal",
    after: AfterOption = None,
    retries: RetriesOption = queue.PLAIN.retries,
) -> None:
    """Queue a training for each combination of several settings; none, unless all can be."""
    order = queue.Order(read_priority(priority), after, retries)
    settings = opened(data)
    text = sys.stdin.read() if str(file) == "-" else read_text(file)
    kind, config, grid = read_sweep(text, str(file))
    with session(settings.folder) as db:
        jobs = sweeps.submit_sweep(db, settings, kind, config, grid, local_user(), order)
    if as_json:
        print(json.dumps([dataclasses.asdict(job) for job in jobs], ensure_ascii=False))
        return
    for job in jobs:
        print(f"job {job.id} ({job.kind}) is queued: {job.config['name']}")


@app.command("list")
def list_(data: Data = None, as_json: AsJson = False) -> None:
    """The jobs, newest first."""
    settings = opened(data)
    with session(settings.folder) as db:
        jobs = store.list_jobs(db)
        held = steering.held_by(db)
        waits = {job.id: state_of(db, job) for job in jobs if job.status is JobStatus.QUEUED}
    if as_json:
        print(json.dumps([dataclasses.asdict(job) for job in jobs], ensure_ascii=False))
        return
    for job in jobs:
        share = f"{job.done:g}/{job.total:g} {job.unit}" if job.total else ""
        told = waits.get(job.id, "").removeprefix("queued, ") or job.reason or job.phase
        print(f"{job.id:>6}  {job.kind:<10} {job.status:<9} {share:<20} {told}")
    if held is not None:
        print(f"The queue is held by {held.user}; `python -m jobs release` lets it go on.")
    if other := differs(settings):
        print(other)
    if not jobs:
        print("There are no jobs yet; see `python -m jobs submit --help`.")


@app.command()
def show(job_id: int, data: Data = None, as_json: AsJson = False) -> None:
    """One job with its attempts and its latest metrics."""
    settings = opened(data)
    with session(settings.folder) as db:
        job = store.get_job(db, job_id)
        attempts = store.attempts_of(db, job_id)
        waits = steering.waits_for(db, job)
        latest = {name: curve[-1][1] for name, curve in store.metrics_of(db, job_id).items()}
    details: dict[str, Any] = {
        **dataclasses.asdict(job),
        "waits_for": waits,
        "attempts": [dataclasses.asdict(attempt) for attempt in attempts],
        "metrics": latest,
        "folder": str(settings.folder.run(job_id)),
    }
    if as_json:
        print(json.dumps(details, ensure_ascii=False))
        return
    for name, value in details.items():
        print(f"{name}: {value}")


@app.command()
def supervise(
    data: Data = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="let the one at work hand over to one with this shell's settings")
    ] = False,
) -> None:
    """Run the queue; leaves when there has been nothing to do for a while."""
    settings = opened(data)
    if anew:
        if not ensure_supervisor(settings, fresh=True):
            raise Conflict("The supervisor at work is busy and has not handed over; try again in a moment.")
        print(f"A supervisor is at work with {', '.join(settings.devices)}.")
        return
    if not run_supervisor(settings):
        print("Another supervisor is at work on this data folder.")


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"The file {file} cannot be read ({error.strerror}).") from error


def read_submission(text: str, name: str) -> tuple[str, dict[str, Any]]:
    """(kind, config) of a submission.

    Raises:
        UserError: it is not JSON of that shape.
    """
    kind, config, _ = _read(text, name, " | ".join(KINDS), ())
    return kind, config


def read_sweep(text: str, name: str) -> tuple[str, dict[str, Any], dict[str, list[Any]]]:
    """(kind, config, grid) of a sweep.

    Raises:
        UserError: it is not JSON of that shape.
    """
    kind, config, rest = _read(text, name, " | ".join(training.kind for training in TRAININGS), ("sweep",))
    grid = rest.get("sweep")
    if not isinstance(grid, dict) or not all(isinstance(values, list) for values in grid.values()):
        raise UserError(f'{name} must hold "sweep": {{"beta": [0.1, 0.3], …}}, a list of values for each setting.')
    return kind, config, grid


def _read(text: str, name: str, kinds: str, more: tuple[str, ...]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({error}).") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("kind"), str):
        raise UserError(f'{name} must hold {{"kind": "{kinds}", "config": {{…}}}}.')
    config = loaded.get("config", {})
    if not isinstance(config, dict) or loaded.keys() - {"kind", "config", *more}:
        known = " and ".join(f'"{key}"' for key in ("kind", "config", *more))
        raise UserError(f"{name} must hold {known} and nothing else; config is an object.")
    return loaded["kind"], config, {key: loaded[key] for key in more if key in loaded}


def main() -> None:
    try:
        app(standalone_mode=True)
    except PlumbError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
