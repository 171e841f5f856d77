"""What the forms of the Jobs page ask: start, check, estimate, fill in. Plain functions above Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jobs import queue, sweeps
from jobs.preflight import preflight
from storage.errors import NotFound, PlumbError
from storage.jobs import get_job
from storage.records import Job
from workbench import job_launch, job_views, preflight_views
from workbench.context import Context
from workbench.events import read_id
from workbench.forms import Control, collect


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
