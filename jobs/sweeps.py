"""Sweeps: a grid of settings becomes jobs. All are checked before the first is queued."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlite_utils import Database

from jobs import queue, steering
from jobs.configs import KINDS, JobConfig, TrainConfig, parse_config
from jobs.packing_training import Freight
from jobs.settings import Settings
from jobs.standby import ensure_supervisor
from storage import jobs as store
from storage.errors import Conflict, PlumbError, UserError
from storage.records import Job

#: A grid of more jobs is a slip more often than a wish.
MOST_JOBS = 64
NAME_LENGTH = 80

#: What a form sweeps over, and how several values of it are parted.
FIELDS: dict[str, str] = {
    "beta": ",",
    "learning_rate": ",",
    "epochs": ",",
    "fraction": ",",
    "flip": ",",
    "seed": ",",
    "loss": ";",
}

#: The sweep that the paper tried (paper.md, section 4).
PAPER: dict[str, tuple[float, ...]] = {
    "beta": (0.1, 0.3, 0.5),
    "learning_rate": (5e-5, 5e-6),
    "epochs": (2.0, 3.0),
}

#: Settings on which neither rows nor images nor adapters depend: jobs that differ in these alone are packed once.
_NOT_PACKED = frozenset({"name", "beta", "learning_rate", "epochs", "loss", "seed"})

#: How names of adapters call them.
_SHORT = {"learning_rate": "lr"}

Grid = Mapping[str, Sequence[Any]]


def read_grid(texts: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
    """What a form's text fields hold, as a grid: several values of a field with commas between them.

    Empty fields are left out, a value that stands there twice counts once.

    Raises:
        UserError: something that is no number where numbers belong.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for name, text in texts.items():
        words = [word.strip() for word in (text or "").split(FIELDS[name]) if word.strip()]
        if not words:
            continue
        found: list[Any] = list(words) if name == "loss" else [_number(name, word) for word in words]
        grid[name] = tuple(dict.fromkeys(found))
    return grid


def _number(name: str, word: str) -> float | int:
    try:
        value = int(word) if name == "seed" else float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        kind = "whole numbers" if name == "seed" else "numbers"
        example = "0, 1, 2" if name == "seed" else "5e-5, 5e-6"
        raise UserError(f"sweep: {name} = {word!r}: give {kind} with commas between them, like {example}.")
    return value


def counted(grid: Grid) -> str:
    """`3 × 2 × 2 = 12 jobs`; "" for no grid."""
    if not grid:
        return ""
    sizes = [len(values) for values in grid.values()]
    total = math.prod(sizes)
    product = f"{' × '.join(map(str, sizes))} = " if len(sizes) > 1 else ""
    return f"{product}{total:,} job{'' if total == 1 else 's'}"


def combinations(kind: str, grid: Grid) -> list[dict[str, Any]]:
    """Every combination of the grid's values, the last field's changing fastest.

    Raises:
        UserError: a field that isn't of this kind or can't be swept; one without values; too many jobs.
    """
    if not (kind in KINDS and issubclass(KINDS[kind], TrainConfig)):
        raise UserError(f"A {kind} job cannot be swept; sweeps are for trainings.")
    for name, values in grid.items():
        if name not in KINDS[kind].model_fields or name in ("name", "only_trial"):
            raise UserError(f"sweep: {name} is not a setting of {kind} that can be swept; remove it.")
        if not values:
            raise UserError(f"sweep: {name} has no values; give some, or remove it.")
    total = math.prod(len(values) for values in grid.values())
    if not grid or total > MOST_JOBS:
        told = counted(grid) if grid else "no field with values"
        raise UserError(f"sweep: {told}; a sweep has 1 to {MOST_JOBS} jobs. Give fewer values, or some.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def submit_sweep(
    db: Database,
    settings: Settings,
    kind: str,
    values: Mapping[str, Any],
    grid: Grid,
    user: str,
    order: queue.Order = queue.PLAIN,
) -> list[Job]:
    """Queue a job for each combination of the grid's values.

    Nothing is queued unless all of them can be. Each carries the first one's id as its sweep, and a name that
    tells in what it differs from the others.

    Args:
        values: the settings that all share; the grid's come over them.
        grid: values of a field, by its name; see `combinations`.
        order: of each of them; among themselves they stand in the order of the combinations.

    Raises:
        UserError: the grid can't be used, or one of its jobs can't; the text tells which.
        NotFound: the data set, the adapter, or the job that these come after is not there.
        Conflict: the job that these come after has failed or was stopped.
    """
    queue.check_order(db, order)
    points = combinations(kind, grid)
    differing = [name for name, several in grid.items() if len(several) > 1]
    base = str(values.get("name") or f"{values.get('dataset', '')}-{kind}")
    names = _names(base, [{name: point[name] for name in differing} for point in points])
    prepared: list[queue.Prepared] = []
    packed: dict[tuple[Any, ...], Freight] = {}
    for point, name in zip(points, names, strict=True):
        config = _config(kind, {**values, **point, "name": name}, point)
        key = tuple(repr(point[field]) for field in grid if field not in _NOT_PACKED)
        found = queue.prepare(db, settings, config, packed.get(key))
        packed[key] = found.freight
        prepared.append(found)
    jobs = _queue_all(db, settings, prepared, user, order)
    ensure_supervisor(settings)
    return jobs


def _config(kind: str, values: dict[str, Any], point: Mapping[str, Any]) -> JobConfig:
    try:
        return parse_config(kind, values)
    except UserError as error:
        raise UserError(f"sweep, {suffix(point)}: {error} Nothing was queued.") from error


def _queue_all(
    db: Database, settings: Settings, prepared: Sequence[queue.Prepared], user: str, order: queue.Order
) -> list[Job]:
    jobs: list[Job] = []
    try:
        for one in prepared:
            first = jobs[0].id if jobs else None
            jobs.append(queue.enqueue(db, settings, one, user, order, sweep=first, begins_sweep=first is None))
    except PlumbError as error:  # the disk is full: half a sweep is none
        for job in jobs:
            with contextlib.suppress(Conflict):  # it has ended meanwhile
                steering.stop(db, settings, job.id)
        raise UserError(f"Job {len(jobs) + 1} of {len(prepared)}: {error} The others were stopped.") from error
    return jobs


def stop_sweep(db: Database, settings: Settings, sweep: int) -> int:
    """Ask all jobs of a sweep that have not ended to stop; returns how many were asked.

    The newest first: none of them starts because an older one has ended.
    """
    asked = 0
    for job in reversed(store.sweep_jobs(db, sweep)):
        with contextlib.suppress(Conflict):  # it has ended
            steering.stop(db, settings, job.id)
            asked += 1
    return asked


def suffix(point: Mapping[str, Any]) -> str:
    """What tells one job of a sweep from the others: beta=0.1 lr=5e-05."""
    return " ".join(f"{_SHORT.get(name, name)}={_plain(value)}" for name, value in point.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _names(base: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each job, none longer than a name may be; numbered where what differs doesn't fit."""
    ends = [suffix(point) for point in points]
    if max(map(len, ends)) > NAME_LENGTH // 2 or len(set(ends)) < len(ends):
        ends = [f"no. {number}" for number in range(1, len(points) + 1)]
    return [f"{base[: NAME_LENGTH - len(end) - 1]} {end}".strip() for end in ends]
