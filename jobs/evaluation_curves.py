"""Scores over the share of the data that was trained on, and over the share of flipped labels.

An adapter's job says both (`fraction`, `flip` in jobs/config_training.py). Runs belong to one curve where all else
that was asked of them is the same, apart from the seed and the name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from jobs.benchmarks.contract import Benchmark
from jobs.evaluation_charts import Curve, curves
from jobs.evaluation_table import Line, Table, digits_of
from storage.adapters import list_adapters
from storage.jobs import get_job
from storage.records import Adapter, Job

METHODS = {"dpo": "DPO", "sft": "SFT", "steerlm": "SteerLM", "rejection": "Rejection sampling"}
#: What may differ between the runs of one curve.
FREE = frozenset(
    {"fraction", "flip", "seed", "name", "report_to", "evaluations", "watched_prompts", "watched_samples"}
)


@dataclass(frozen=True)
class Run:
    """An adapter with the job that made it."""

    adapter: Adapter
    job: Job

    @property
    def fraction(self) -> float:
        return float(self.job.config.get("fraction", 1.0))

    @property
    def flip(self) -> float:
        return float(self.job.config.get("flip", 0.0))

    @property
    def alike(self) -> str:
        """Equal for runs of one curve."""
        fixed = {name: value for name, value in self.job.config.items() if name not in FREE}
        return json.dumps([self.adapter.base_model, self.job.kind, fixed], sort_keys=True)

    @property
    def label(self) -> str:
        dataset = self.job.config.get("dataset")
        method = METHODS.get(self.job.kind, self.job.kind)
        return f"{method} on {dataset}" if dataset else method


def runs_of(db: Database) -> dict[str, Run]:
    """Of all adapters, by their lines' keys."""
    return {f"adapter:{one.id}": Run(one, get_job(db, one.job_id)) for one in list_adapters(db)}


def charts(table: Table, runs: Mapping[str, Run]) -> list[str]:
    """A chart for each benchmark and setting that at least two values of are known."""
    drawn = []
    for column in table.columns:
        for setting, label, fixed in (
            ("fraction", "of the training data", "flip"),
            ("flip", "of the labels flipped", "fraction"),
        ):
            still = 0.0 if fixed == "flip" else 1.0
            found = _curves(table, column.benchmark, runs, setting, fixed, still)
            drawn.append(
                curves(
                    f"{column.benchmark.title}, {column.benchmark.headline}",
                    found,
                    label,
                    digits_of(column.benchmark),
                    _reference(table, column.benchmark),
                )
            )
    return [one for one in drawn if one]


def _curves(
    table: Table, benchmark: Benchmark, runs: Mapping[str, Run], setting: str, fixed: str, still: float
) -> list[Curve]:
    groups: dict[tuple[str, str], list[tuple[Run, Line]]] = {}  # by settings, and by what was asked
    for line in table.lines:
        run = runs.get(line.key)
        cell = line.cells.get(benchmark.name)
        if run is None or getattr(run, fixed) != still or cell is None or cell.figure is None:
            continue
        groups.setdefault((run.alike, cell.mark), []).append((run, line))
    groups = {key: found for key, found in groups.items() if len({getattr(run, setting) for run, _ in found}) > 1}
    labels = _labels([found[0][0] for found in groups.values()])
    made = []
    for ((_, mark), found), label in zip(groups.items(), labels, strict=True):
        points = [
            (round(100 * getattr(run, setting), 4), cell.figure)
            for run, line in found
            if (cell := line.cells[benchmark.name]).figure is not None
        ]
        made.append(Curve(f"{label} {mark}".strip(), sorted(points, key=lambda point: point[0])))
    return made


def _labels(first: Sequence[Run]) -> list[str]:
    """Names of the curves; where two are the same, with a job's number."""
    plain = [run.label for run in first]
    return [
        f"{label}, as job {run.job.id}" if plain.count(label) > 1 else label
        for run, label in zip(first, plain, strict=True)
    ]


def _reference(table: Table, benchmark: Benchmark) -> tuple[str, float] | None:
    for line in table.lines:
        cell = line.cells.get(benchmark.name)
        if line.key == table.base and cell and cell.figure and cell.figure.value is not None:
            return line.label, cell.figure.value
    return None
