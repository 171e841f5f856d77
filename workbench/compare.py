"""Training runs side by side: which settings differ, what was measured, which run is best by a held-out metric.

Selection and report stay apart (paper.md, section 6: the best run of the paper was picked on a benchmark that is
also reported): only held-out metrics can mark a run, metrics of the report stand in columns of their own. Pure.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.configs import KINDS
from storage.lifecycle import JobStatus
from storage.runs import HELDOUT, REPORT, Run
from workbench.forms import controls_of, flatten
from workbench.job_words import KIND_NAMES, duration

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Metric:
    """A metric of the table. `better` is empty where neither end is."""

    name: str
    title: str
    better: Better
    info: str


#: In the order of the columns; names without `heldout_` or `report_`.
METRICS: tuple[Metric, ...] = (
    Metric("reward_accuracy", "Accuracy", "higher", "share of pairs whose chosen answer has the higher reward"),
    Metric("reward_margin", "Margin", "higher", "reward of the chosen answer less that of the rejected one"),
    Metric(
        "blank_margin", "Blank margin", "lower", "the margin with every image blanked: high, it ignores the image"
    ),
    Metric("kl", "KL", "lower", "nats a token away from the reference"),
    Metric("chosen_tokens", "Chosen, tokens", "", "mean length of the chosen answers"),
    Metric("rejected_tokens", "Rejected, tokens", "", "mean length of the rejected answers"),
    Metric("loss", "Loss", "lower", "of the method; it compares within one method alone"),
)
BY_NAME = {metric.name: metric for metric in METRICS}
DEFAULT = "reward_accuracy"
#: Whose run it is, where it ran and what is only watched: no settings that make a result.
_PASSED_OVER = frozenset(
    {
        "name",
        "dataset",
        "model",
        "device",
        "report_to",
        "keep_checkpoints",
        "watched_samples",
        "watched_prompts",
        "watched_tokens",
    }
)
NONE = "–"


@dataclass(frozen=True)
class Column:
    """A column of the table. `metric` is set for figures."""

    key: str
    title: str
    metric: Metric | None = None


@dataclass(frozen=True)
class Comparison:
    """What the table shows.

    Attributes:
        settings: columns of the settings that differ among these runs.
        heldout, report: columns of the metrics that at least one of them has.
        by: the metric, without its prefix, that marks the best.
        best: the ids of the marked jobs; several where they tie, or where runs have different held-out pairs.
        notes: what to keep in mind when reading it.
    """

    runs: tuple[Run, ...]
    settings: tuple[Column, ...]
    heldout: tuple[Column, ...]
    report: tuple[Column, ...]
    by: str
    best: frozenset[int]
    notes: tuple[str, ...]


def compare(runs: Sequence[Run], by: str = DEFAULT) -> Comparison:
    """Lay these runs side by side; a `by` that is no held-out metric with a better end becomes the default."""
    by = choosable(by)
    metric = BY_NAME[by]
    groups = _groups(runs)
    best = frozenset(job for group in groups for job in best_of(group, metric))
    settings = _differing(runs)
    return Comparison(
        runs=tuple(runs),
        settings=settings,
        heldout=_figures(runs, HELDOUT),
        report=_figures(runs, REPORT),
        by=by,
        best=best,
        notes=tuple(_notes(runs, len(groups), metric, settings)),
    )


def choosable(name: str) -> str:
    """A metric's name by which runs may be chosen; anything else, a reported one above all, is the default."""
    bare = name.removeprefix(HELDOUT)
    return bare if bare in BY_NAME and BY_NAME[bare].better else DEFAULT


def best_of(runs: Sequence[Run], metric: Metric) -> frozenset[int]:
    """The done jobs with the best held-out value: all that tie; none where fewer than two have it.

    One that is at work may have its best behind it, and one that failed has left no adapter to choose.
    """
    name = HELDOUT + metric.name
    done = [run for run in runs if run.job.status is JobStatus.DONE]
    values = {run.job.id: run.metrics[name] for run in done if name in run.metrics}
    if len(values) < 2:
        return frozenset()
    best = max(values.values()) if metric.better == "higher" else min(values.values())
    return frozenset(job for job, value in values.items() if value == best)


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that were held out the same pairs: of one data set by content, with the same share for the report."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        key = (run.dataset_hash, run.job.config.get("report_share"))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _differing(runs: Sequence[Run]) -> tuple[Column, ...]:
    """The settings that are not the same in all these runs whose method has them, in the order of the forms."""
    found = [flatten(run.job.config) for run in runs]
    shown = [{name: setting(run, name) for name in one} for run, one in zip(runs, found, strict=True)]
    titles: dict[str, str] = {}
    for kind in dict.fromkeys(run.job.kind for run in runs):
        if kind in KINDS:
            titles |= {control.path: control.title for control in controls_of(KINDS[kind])}
    names = dict.fromkeys([*titles, *(name for one in found for name in one)])
    return tuple(
        Column(name, titles.get(name, name))
        for name in names
        if name not in _PASSED_OVER and len({one[name] for one in shown if name in one}) > 1
    )


def _figures(runs: Sequence[Run], prefix: str) -> tuple[Column, ...]:
    there = {name for run in runs for name in run.metrics}
    return tuple(
        Column(prefix + metric.name, metric.title, metric) for metric in METRICS if prefix + metric.name in there
    )


def _notes(runs: Sequence[Run], groups: int, metric: Metric, settings: Iterable[Column]) -> list[str]:
    notes = []
    differing = {column.key for column in settings}
    if groups > 1:
        notes.append(
            f"These runs have {groups} different sets of held-out pairs; figures compare within one alone, and "
            "the best of each is marked. Choose one data set."
        )
    if "margin" in metric.name and "beta" in differing:
        notes.append("A margin is β times a log-ratio: margins of different β do not compare. Accuracy does.")
    if metric.name == "loss" and (len({run.job.kind for run in runs}) > 1 or "loss" in differing):
        notes.append("These runs have different losses, which do not compare.")
    return notes


def setting(run: Run, name: str) -> str:
    """A setting as it is shown; a dash where the run's method has none of that name."""
    value = flatten(run.job.config).get(name)
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)


def figure(run: Run, key: str) -> str:
    """A metric of a run as it is shown."""
    return shown(key, run.metrics.get(key))


def shown(key: str, value: float | None) -> str:
    """A metric's value: a share as percent, lengths with one digit, all else with four."""
    if value is None:
        return NONE
    if key.endswith("_accuracy"):
        return f"{value:.1%}"
    if key.endswith("_tokens"):
        return f"{value:.1f}"
    return f"{value:.4g}".replace("-", "−")


def method(run: Run) -> str:
    return KIND_NAMES.get(run.job.kind, run.job.kind)


def label(run: Run, settings: Sequence[Column], most: int = 3) -> str:
    """A run in a chart's legend: its number and the first settings in which it differs."""
    told = [f"{column.title} {value}" for column in settings if (value := setting(run, column.key)) != NONE][:most]
    return ", ".join([f"#{run.job.id} {method(run)}", *told])


def took(run: Run) -> str:
    return duration(run.seconds) if run.seconds is not None else NONE


def as_csv(found: Comparison) -> str:
    """The table with bare numbers; a mark of the best stands in a column of its own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    metrics = [column.key for column in (*found.heldout, *found.report)]
    head = ["job", "method", "dataset", "dataset_hash", "base", "state", *(one.key for one in found.settings)]
    writer.writerow([*head, *metrics, "seconds", f"best_by_{HELDOUT}{found.by}"])
    for run in found.runs:
        config = flatten(run.job.config)
        settings = [_plain(config.get(column.key)) for column in found.settings]
        whose = (run.job.kind, run.dataset, run.dataset_hash, run.job.config.get("model"))
        writer.writerow(
            [
                run.job.id,
                *(_plain(value) for value in whose),
                str(run.job.status),
                *settings,
                *(_plain(run.metrics.get(key)) for key in metrics),
                "" if run.seconds is None else round(run.seconds, 1),
                "yes" if run.job.id in found.best else "",
            ]
        )
    return out.getvalue()


def _plain(value: Any) -> Any:
    """A value for a spreadsheet: what it would take for a formula gets an apostrophe before it."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value


def as_markdown(found: Comparison) -> str:
    """The table for a report, with the best in bold."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    columns: list[tuple[str, Callable[[Run], str], bool]] = [
        ("run", lambda run: f"#{run.job.id}", False),
        ("method", method, False),
        ("data set", lambda run: run.dataset or NONE, False),
    ]
    columns += [(one.title, _setting_of(one.key), False) for one in found.settings]
    columns += [(f"held-out: {one.title}", _figure_of(one.key), True) for one in found.heldout]
    columns += [(f"report: {one.title}", _figure_of(one.key), True) for one in found.report]
    columns.append(("time", took, True))
    lines = [
        "| " + " | ".join(cell(title) for title, _, _ in columns) + " |",
        "|" + "|".join("---:" if right else "---" for _, _, right in columns) + "|",
    ]
    marked = f"held-out: {BY_NAME[found.by].title}"
    for run in found.runs:
        cells = []
        for title, show, _ in columns:
            text = cell(show(run))
            cells.append(f"**{text}**" if title == marked and run.job.id in found.best else text)
        lines.append("| " + " | ".join(cells) + " |")
    better = BY_NAME[found.by].better
    told = (
        f"Bold: the best by held-out {BY_NAME[found.by].title.lower()} ({better} is better). Columns of the "
        "report were measured on pairs by which nothing was chosen."
    )
    return "\n".join([*lines, "", told, *found.notes]) + "\n"


def _setting_of(key: str) -> Callable[[Run], str]:
    return lambda run: setting(run, key)


def _figure_of(key: str) -> Callable[[Run], str]:
    return lambda run: figure(run, key)
