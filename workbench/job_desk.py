"""What the Jobs page asks and does: plain functions above Gradio."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from html import escape
from typing import Any

from sqlite_utils import Database

from jobs import queue, sweeps
from jobs.judges import rules
from jobs.preflight import preflight
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage.checkpoints import checkpoint_answers
from storage.datasets import list_datasets
from storage.errors import NotFound, PlumbError
from storage.jobs import (
    attempts_of,
    count_open,
    get_job,
    list_jobs,
    metrics_of,
    queue_position,
    sweep_jobs,
    sweep_states,
)
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from storage.results import JobResults, results_of
from storage.runs import final_metrics
from workbench import job_launch, job_views, preflight_views, run_views
from workbench.context import Context
from workbench.events import read_id
from workbench.forms import Control, collect
from workbench.progress import Watch
from workbench.training_form import TRAINED

PAGE = 40
LOG_LINES = 60
NOTES = 40


@dataclass(frozen=True)
class Look:
    """What the page shows of the list and of the opened job; each part is one component's value."""

    jobs: str = ""
    head: str = ""
    figures: str = ""
    charts: str = ""
    more: str = ""
    results: str = ""
    settings: str = ""
    log: str = ""
    stoppable: bool = False
    rerunnable: bool = False
    pausable: bool = False
    paused: bool = False
    resumable: bool = False
    swept: bool = False
    ends: str = ""
    answers: str = ""
    checkpoints: tuple[int, ...] = ()
    training: bool = False


@dataclass(frozen=True)
class Drawing:
    """What a job has told so far: its curves, where each stands, its notes, what it answered along the run."""

    charts: str
    more: str
    latest: Mapping[str, float]
    ends: Mapping[str, float]
    notes: tuple[str, ...]
    checkpoints: run_views.Checkpoints


def look(
    context: Context, watch: Watch, selected: int | None, limit: int = PAGE, checkpoint: int | None = None
) -> Look:
    """Read the database and the opened job's log once.

    Args:
        checkpoint: which of a training's checkpoints to show, as a place; None for the newest.
    """
    now = datetime.now(UTC)
    with context.database() as db:
        jobs = list_jobs(db, limit=limit + 1)
        shown = jobs[:limit]
        positions = {job.id: queue_position(db, job) for job in shown if job.status is JobStatus.QUEUED}
        left = {job.id: seconds for job in shown if (seconds := watch.clock.left(job, now)) is not None}
        open_jobs = count_open(db)
        sweeps = sweep_states(db, sorted({job.sweep for job in shown if job.sweep is not None}))
        listed = job_views.job_list(shown, positions, left, selected, now, len(jobs) > limit, open_jobs, sweeps)
        if selected is None:
            return Look(jobs=listed)
        try:
            job = get_job(db, selected)
        except NotFound as error:
            return Look(jobs=listed, head=job_views.error(str(error)))
        version = sum(attempt.event_offset for attempt in attempts_of(db, job.id))
        run = RunFolder(context.folder.run(job.id))
        drawing = watch.drawn.get(job.id, version, lambda: _draw(db, job, run))
        dataset = next((item.name for item in list_datasets(db) if item.id == job.dataset_id), None)
        made = results_of(db, job.id)
        found = job_views.results(job, made, dataset)
        position = queue_position(db, job)
        swept = job.sweep is not None and any(
            one.status not in ENDED and one.id != job.id for one in sweep_jobs(db, job.sweep)
        )
    training = job.kind in TRAINED
    at_work = job.status in (JobStatus.STARTING, JobStatus.RUNNING)
    pausable = at_work and job.kind in queue.PAUSABLE and job.config.get("judge") != rules.NAME
    paused = pausable and queue.is_paused(context.settings, job.id)
    return Look(
        jobs=listed,
        head=job_views.headline(job, position, watch.clock.left(job, now), now),
        figures=_figures(job, made, drawing.latest),
        charts=drawing.charts,
        more=drawing.more,
        results=found,
        settings=job_views.settings(job),
        log=job_views.log(run.log_tail(LOG_LINES), job.status in ENDED, drawing.notes),
        stoppable=job.status not in ENDED and job.status is not JobStatus.STOPPING,
        rerunnable=job.kind in job_launch.LAUNCHED,
        pausable=pausable and not paused,
        paused=paused,
        resumable=job.kind in queue.RESUMABLE and job.status in (JobStatus.STOPPED, JobStatus.FAILED),
        swept=swept,
        ends=run_views.at_the_end(job, drawing.ends) if training else "",
        answers=run_views.checkpoint_view(job, drawing.checkpoints, checkpoint) if training else "",
        checkpoints=drawing.checkpoints.steps,
        training=training,
    )


def _draw(db: Database, job: Job, run: RunFolder) -> Drawing:
    curves = metrics_of(db, job.id)
    latest = {name: curve[-1][1] for name, curve in curves.items()}
    draw = run_views.charts if job.kind in TRAINED else job_views.charts
    answers = run_views.Checkpoints.of(checkpoint_answers(db, job.id) if job.kind in TRAINED else ())
    ends = final_metrics(db, [job]).get(job.id, {})
    return Drawing(draw(curves), draw(curves, more=True), latest, ends, notes_of(run), answers)


def notes_of(run: RunFolder) -> tuple[str, ...]:
    """What the worker noted, each once, in order; the last of them where there are very many.

    Other events are passed over unread: a long run has many thousand lines of metrics.
    """
    found: dict[str, None] = {}
    try:
        with run.events.open("rb") as file:
            for line in file:
                if b'"note"' in line[:40]:
                    found[str(json.loads(line)["text"])] = None
    except (FileNotFoundError, ValueError, KeyError):  # a line that is being written: it is whole at the next look
        pass
    return tuple(found)[-NOTES:]


def _figures(job: Job, made: JobResults, latest: Mapping[str, float]) -> str:
    if job.kind in TRAINED:
        return job_views.figure_row(run_views.tried(latest))
    return job_views.figures(job, made, latest)


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
        return queue.submit(db, context.settings, kind, values, user)


def start_sweep(
    context: Context, user: str, kind: str, controls: Sequence[Control], raw: Sequence[Any], grid: sweeps.Grid
) -> list[Job]:
    """Submit a job for each combination of the grid's values; returns and raises as `sweeps.submit_sweep`."""
    values = collect(controls, raw)
    with context.database() as db:
        return sweeps.submit_sweep(db, context.settings, kind, values, grid, user)


def try_step(context: Context, user: str, kind: str, controls: Sequence[Control], raw: Sequence[Any]) -> Job:
    """Submit a training that runs one step on its longest rows and leaves nothing; raises as `start`."""
    values = {**collect(controls, raw), "only_trial": True}
    with context.database() as db:
        return queue.submit(db, context.settings, kind, values, user)


def checked(
    context: Context, kind: str, controls: Sequence[Control], raw: Sequence[Any], texts: Mapping[str, str]
) -> str:
    """What the training that the form describes will need, as HTML; what stands in its way is told there.

    Args:
        texts: the sweep's fields. The figures are those of its first job.
    """
    try:
        values = collect(controls, raw)
        points = sweeps.combinations(kind, grid) if (grid := sweeps.read_grid(texts)) else [{}]
        with context.database() as db:
            found = preflight(db, context.settings, kind, {**values, **points[0]})
    except PlumbError as error:
        return job_views.error(str(error))
    return preflight_views.needs(found, len(points))


def sweep_told(kind: str, texts: Mapping[str, str]) -> tuple[str, int]:
    """What stands below the sweep's fields, as HTML, and how many jobs they make; 0 for no sweep."""
    try:
        grid = sweeps.read_grid(texts)
        if not grid:
            return "", 0
        points = sweeps.combinations(kind, grid)
    except PlumbError as error:
        return job_views.error(str(error)), 0
    return f'<p class="plumb-count">{escape(sweeps.counted(grid))}</p>', len(points)


def estimated(context: Context, kind: str, controls: Sequence[Control], raw: Sequence[Any]) -> str:
    """What the job that the form describes would ask and cost, as HTML; what stands in its way is told there."""
    from jobs.judges.estimate import estimate  # brings what reads pictures

    try:
        values = collect(controls, raw)
        with context.database() as db:
            found = estimate(db, context.settings, kind, values)  # type: ignore[arg-type]
    except PlumbError as error:
        return job_views.error(str(error))
    return job_views.estimate(found, float(values["budget"]))


def halt(context: Context, job_id: int | None) -> str:
    """Ask the opened job to stop; returns what to tell, "" if all is well."""
    return _ask(context, job_id, queue.stop)


def pause(context: Context, job_id: int | None) -> str:
    """Have the opened job ask nothing more for now; returns as `halt`."""
    return _ask(context, job_id, queue.pause)


def go_on(context: Context, job_id: int | None) -> str:
    """End the opened job's pause; returns as `halt`."""
    return _ask(context, job_id, queue.go_on)


def resume(context: Context, job_id: int | None) -> str:
    """Queue the opened job again, which has ended before its time; returns as `halt`."""
    return _ask(context, job_id, queue.resume)


def halt_sweep(context: Context, job_id: int | None) -> str:
    """Ask all jobs of the opened one's sweep to stop that have not ended; returns as `halt`."""

    def stop_all(db: Database, settings: Settings, opened: int) -> Job:
        job = get_job(db, opened)
        if job.sweep is not None:
            sweeps.stop_sweep(db, settings, job.sweep)
        return job

    return _ask(context, job_id, stop_all)


def _ask(context: Context, job_id: int | None, act: Callable[[Database, Settings, int], Job]) -> str:
    if job_id is None:
        return "Choose a job from the list first."
    try:
        with context.database() as db:
            act(db, context.settings, job_id)
    except PlumbError as error:
        return str(error)
    return ""


def form_values(context: Context, query: Mapping[str, str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The kind whose form an address asks for, and what each kind's form shows at first.

    `?rest=12` is the form of job 12 with its settings, for the samples that it brought nothing usable for.
    """
    kind = query.get("kind", "")
    kind = kind if kind in job_launch.LAUNCHED else job_launch.LAUNCHED[0]
    values = {name: job_launch.start_values(name, query if name == kind else {}) for name in job_launch.LAUNCHED}
    rest = read_id(query.get("rest"))
    if rest is not None:
        with context.database() as db:
            try:
                job = get_job(db, rest)
            except NotFound:  # an old link: the form as it is
                return kind, values
            if job.kind in job_launch.ESTIMATED:
                kind = job.kind
                values[kind] |= job_launch.rest_values(db, job)
    return kind, values


def selected_by(query: Mapping[str, str]) -> int | None:
    """The job that the address asks for, if it does."""
    return read_id(query.get("job"))
