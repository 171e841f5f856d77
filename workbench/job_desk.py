"""What the Jobs page asks and does: plain functions above Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlite_utils import Database

from jobs.queue import stop, submit
from jobs.runs import RunFolder
from storage.datasets import list_datasets
from storage.errors import NotFound, PlumbError
from storage.jobs import attempts_of, count_open, get_job, list_jobs, metrics_of, queue_position
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from storage.results import results_of
from workbench import job_launch, job_views
from workbench.context import Context
from workbench.events import read_id
from workbench.forms import Control, collect
from workbench.progress import Watch

PAGE = 40
LOG_LINES = 60


@dataclass(frozen=True)
class Look:
    """What the page shows of the list and of the opened job; each part is one component's value."""

    jobs: str = ""
    head: str = ""
    charts: str = ""
    more: str = ""
    results: str = ""
    settings: str = ""
    log: str = ""
    stoppable: bool = False
    rerunnable: bool = False


def look(context: Context, watch: Watch, selected: int | None, limit: int = PAGE) -> Look:
    """Read the database and the opened job's log once."""
    now = datetime.now(UTC)
    with context.database() as db:
        jobs = list_jobs(db, limit=limit + 1)
        shown = jobs[:limit]
        positions = {job.id: queue_position(db, job) for job in shown if job.status is JobStatus.QUEUED}
        left = {job.id: seconds for job in shown if (seconds := watch.clock.left(job, now)) is not None}
        open_jobs = count_open(db)
        listed = job_views.job_list(shown, positions, left, selected, now, len(jobs) > limit, open_jobs)
        if selected is None:
            return Look(jobs=listed)
        try:
            job = get_job(db, selected)
        except NotFound as error:
            return Look(jobs=listed, head=job_views.error(str(error)))
        version = sum(attempt.event_offset for attempt in attempts_of(db, job.id))
        charts, more = watch.drawn.get(job.id, version, lambda: _draw(db, job.id))
        dataset = next((item.name for item in list_datasets(db) if item.id == job.dataset_id), None)
        found = job_views.results(job, results_of(db, job.id), dataset)
        position = queue_position(db, job)
    return Look(
        jobs=listed,
        head=job_views.headline(job, position, watch.clock.left(job, now), now),
        charts=charts,
        more=more,
        results=found,
        settings=job_views.settings(job),
        log=job_views.log(RunFolder(context.folder.run(job.id)).log_tail(LOG_LINES)),
        stoppable=job.status not in ENDED and job.status is not JobStatus.STOPPING,
        rerunnable=job.kind in job_launch.LAUNCHED,
    )


def _draw(db: Database, job_id: int) -> tuple[str, str]:
    curves = metrics_of(db, job_id)
    return job_views.charts(curves), job_views.charts(curves, more=True)


def changed(new: Look, seen: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, int]]:
    """The parts that differ from those the browser has, and the new digests: what is the same isn't sent."""
    digests = {field.name: hash(getattr(new, field.name)) for field in fields(new)}
    return {name: getattr(new, name) for name in digests if seen.get(name) != digests[name]}, digests


def start(context: Context, user: str, kind: str, controls: Sequence[Control], raw: Sequence[Any]) -> Job:
    """Submit a job with what the form holds.

    Raises:
        PlumbError: it cannot start; the text names field, value and remedy.
    """
    values = collect(controls, raw)
    with context.database() as db:
        return submit(db, context.settings, kind, values, user)


def halt(context: Context, job_id: int | None) -> str:
    """Ask the opened job to stop; returns what to tell, "" if all is well."""
    if job_id is None:
        return "Choose a job from the list first."
    try:
        with context.database() as db:
            stop(db, context.settings, job_id)
    except PlumbError as error:
        return str(error)
    return ""


def selected_by(query: Mapping[str, str]) -> int | None:
    """The job that the address asks for, if it does."""
    return read_id(query.get("job"))
