"""Trainings side by side: each run with the last value of what was measured outside its training.

Everything is read in a fixed number of statements, however many runs there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from storage.lifecycle import JobStatus
from storage.records import Adapter, Job
from storage.rows import Row, marks, rows, with_json

#: What tells a held-out metric, by which runs may be chosen, from one that is only reported (paper.md, section 6).
HELDOUT, REPORT = "heldout_", "report_"
MOST = 500


@dataclass(frozen=True)
class RunFilter:
    """Which runs; None leaves a choice open. `sweep` is the id of the first job of a grid."""

    dataset: str | None = None
    base: str | None = None
    method: str | None = None
    sweep: int | None = None


@dataclass(frozen=True)
class Run:
    """A training with what it came to.

    Attributes:
        seconds: its workers were at work, all attempts together; None where no attempt has ended.
        metrics: held-out and report metrics of the weights that it left, by their whole names.
    """

    job: Job
    dataset: str | None
    dataset_hash: str | None
    seconds: float | None
    metrics: Mapping[str, float]
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class RunChoices:
    """What filters can be set to: what there is, each in its order."""

    datasets: tuple[str, ...]
    bases: tuple[str, ...]
    methods: tuple[str, ...]
    sweeps: tuple[int, ...]


def list_runs(
    db: Database, kinds: Sequence[str], where: RunFilter | None = None, limit: int = MOST
) -> tuple[list[Run], int]:
    """(the newest runs of these kinds that fit, how many fit in all), newest first."""
    conditions, values = _conditions(kinds, where or RunFilter())
    found = rows(
        db,
        f"""SELECT j.*, d.name AS dataset, d.hash AS dataset_hash, count(*) OVER () AS n,
                   (SELECT sum((julianday(a.ended_at) - julianday(a.started_at)) * 86400.0)
                    FROM attempts a WHERE a.job_id = j.id) AS seconds
            FROM jobs j LEFT JOIN datasets d ON d.id = j.dataset_id
            WHERE {conditions} ORDER BY j.id DESC LIMIT ?""",
        [*values, limit],
    )
    ids = [row["id"] for row in found]
    extra = ("dataset", "dataset_hash", "seconds", "n")
    jobs = [_job({name: value for name, value in row.items() if name not in extra}) for row in found]
    metrics, adapters = final_metrics(db, jobs), _adapters(db, ids)
    runs = [
        Run(
            job=job,
            dataset=row["dataset"],
            dataset_hash=row["dataset_hash"],
            seconds=row["seconds"],
            metrics=metrics.get(row["id"], {}),
            adapters=adapters.get(row["id"], ()),
        )
        for job, row in zip(jobs, found, strict=True)
    ]
    return runs, found[0]["n"] if found else 0


def final_metrics(db: Database, jobs: Sequence[Job]) -> dict[int, dict[str, float]]:
    """{job: {metric: value}} of held-out and report metrics, of the weights that each run left.

    Those are the last ones; a run with patience leaves the weights of its best evaluation: by held-out accuracy,
    then by margin, of equal ones the first.
    """
    found = last_metrics(db, [job.id for job in jobs])
    patient = [job.id for job in jobs if job.config.get("patience")]
    for job, steps in _evaluations(db, patient).items():
        ranked = {step: values for step, values in steps.items() if f"{HELDOUT}reward_accuracy" in values}
        if ranked:
            best = max(ranked, key=lambda step: (*_rank(ranked[step]), -step))
            found[job] |= ranked[best]
    return found


def _rank(values: Mapping[str, float]) -> tuple[float, float]:
    return values[f"{HELDOUT}reward_accuracy"], values.get(f"{HELDOUT}reward_margin", 0.0)


def _evaluations(db: Database, job_ids: Sequence[int]) -> dict[int, dict[int, dict[str, float]]]:
    """{job: {step: {held-out metric: value}}}, of two attempts the later.

    CROSS JOIN keeps SQLite from walking the metrics first, of which there are millions.
    """
    found: dict[int, dict[int, dict[str, float]]] = {}
    if not job_ids:
        return found
    for row in rows(
        db,
        "SELECT a.job_id, m.step, m.name, m.value FROM attempts a CROSS JOIN metrics m ON m.attempt_id = a.id"
        f" AND m.name >= '{HELDOUT}' AND m.name < '{HELDOUT[:-1]}`' WHERE a.job_id IN ({marks(job_ids)})"
        " ORDER BY a.number",
        list(job_ids),
    ):
        found.setdefault(row["job_id"], {}).setdefault(row["step"], {})[row["name"]] = row["value"]
    return found


def last_metrics(db: Database, job_ids: Sequence[int]) -> dict[int, dict[str, float]]:
    """{job: {metric: value at its last step}} of held-out and report metrics; of two attempts the later counts.

    The primary key (attempt, name, step) is walked from name to name, and to the last step of each: a run with
    a thousand steps costs as many look-ups as it has metrics.
    """
    found = rows(
        db,
        f"""WITH RECURSIVE
            bounds(low, high) AS (VALUES ('{HELDOUT}', '{HELDOUT[:-1]}`'), ('{REPORT}', '{REPORT[:-1]}`')),
            names(job, number, attempt, name, high) AS (
                SELECT a.job_id, a.number, a.id,
                       (SELECT min(m.name) FROM metrics m WHERE m.attempt_id = a.id AND m.name >= b.low), b.high
                FROM attempts a CROSS JOIN bounds b WHERE a.job_id IN ({marks(job_ids)})
                UNION ALL
                SELECT job, number, attempt,
                       (SELECT min(m.name) FROM metrics m WHERE m.attempt_id = attempt AND m.name > names.name),
                       high
                FROM names WHERE names.name < high
            )
            SELECT n.job, n.name, m.value FROM names n JOIN metrics m
              ON m.attempt_id = n.attempt AND m.name = n.name AND m.step =
                 (SELECT max(x.step) FROM metrics x WHERE x.attempt_id = n.attempt AND x.name = n.name)
            WHERE n.name < n.high ORDER BY n.job, m.step, n.number""",
        list(job_ids),
    )
    last: dict[int, dict[str, float]] = {}
    for row in found:
        last.setdefault(row["job"], {})[row["name"]] = row["value"]
    return last


def curves_of(db: Database, job_ids: Sequence[int], metric: str) -> dict[int, list[tuple[int, float]]]:
    """One metric's curve of each of these runs that has it: (step, value) by step, a later attempt's first."""
    curves: dict[int, dict[int, float]] = {}
    for row in rows(
        db,
        "SELECT a.job_id, m.step, m.value FROM attempts a CROSS JOIN metrics m"
        " ON m.attempt_id = a.id AND m.name = ?"
        f" WHERE a.job_id IN ({marks(job_ids)}) ORDER BY a.number",
        [metric, *job_ids],
    ):
        curves.setdefault(row["job_id"], {})[row["step"]] = row["value"]
    return {job: sorted(curve.items()) for job, curve in curves.items()}


def run_choices(db: Database, kinds: Sequence[str]) -> RunChoices:
    """What the runs of these kinds were trained on, from and by, and in which sweeps."""
    found = rows(
        db,
        f"""SELECT DISTINCT d.name AS dataset, json_extract(j.config, '$.model') AS base, j.kind, j.sweep
            FROM jobs j LEFT JOIN datasets d ON d.id = j.dataset_id
            WHERE j.kind IN ({marks(kinds)}) AND j.deleted_at IS NULL""",
        list(kinds),
    )

    def values(name: str) -> list[str]:
        return sorted({row[name] for row in found if row[name] is not None})

    there = set(values("kind"))
    return RunChoices(
        datasets=tuple(values("dataset")),
        bases=tuple(values("base")),
        methods=tuple(kind for kind in kinds if kind in there),
        sweeps=tuple(sorted({row["sweep"] for row in found if row["sweep"] is not None}, reverse=True)),
    )


def _conditions(kinds: Sequence[str], where: RunFilter) -> tuple[str, list[str | int]]:
    # A trial step has nothing to compare; a deleted run is out of sight until it is restored.
    conditions = [
        f"j.kind IN ({marks(kinds)})",
        "NOT coalesce(json_extract(j.config, '$.only_trial'), 0)",
        "j.deleted_at IS NULL",
    ]
    values = list[str | int](kinds)
    for condition, value in (
        ("d.name = ?", where.dataset),
        ("json_extract(j.config, '$.model') = ?", where.base),
        ("j.kind = ?", where.method),
        ("coalesce(j.sweep, j.id) = ?", where.sweep),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    return " AND ".join(conditions), values


def jobs_by_id(db: Database, job_ids: Sequence[int]) -> dict[int, Job]:
    """Those of these jobs that are there."""
    found = rows(db, f"SELECT * FROM jobs WHERE id IN ({marks(job_ids)})", list(job_ids))
    return {row["id"]: _job(row) for row in found}


def _job(row: Row) -> Job:
    return Job(**{**with_json(row, "config"), "status": JobStatus(row["status"])})


def _adapters(db: Database, job_ids: Sequence[int]) -> dict[int, tuple[Adapter, ...]]:
    made: dict[int, tuple[Adapter, ...]] = {}
    for row in rows(db, f"SELECT * FROM adapters WHERE job_id IN ({marks(job_ids)}) ORDER BY id", list(job_ids)):
        made[row["job_id"]] = (*made.get(row["job_id"], ()), Adapter(**row))
    return made
