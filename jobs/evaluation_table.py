"""The table of evaluations: models down, benchmarks across.

Evaluations for choosing a setting and those for reporting never stand in one table. A cell shows the newest
evaluation of its model that has grades, by the newest grading or by the grader that is asked for. What must not be
compared is marked: other items than the base's, and another grader's grades.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from jobs.benchmarks.contract import Benchmark
from jobs.benchmarks.measures import Figure
from jobs.evaluation_figures import Figures
from storage.evaluations import Evaluation, Grading

MARKS = "†‡§¶#"
SKILLS = ("vision", "text")  # in this order across the table
#: A measure that is always shown beside the headline: what easy-VQA's questions give away without their picture.
BESIDE = {"easy-vqa": "shuffled"}
#: A resample of fewer items knows nothing of chance: that of a single one is always the same.
LEAST_PAIRED = 10
#: Settings that make two figures of one benchmark two different things.
TOLD = ("half", "limit", "max_new_tokens", "seed", "attributes")


@dataclass(frozen=True)
class Cell:
    """A model on a benchmark.

    Attributes:
        evaluation, grading: what is shown; no grading: nothing is graded yet.
        figure: the headline; None without a grading.
        beside: a measure shown with it, and its name.
        change: against the base, on the items of both; None for the base itself, and where they can't be compared.
        mark: of an item set other than the base's; "" for the same.
        other_grader: whether the base was graded by somebody else, so that there is no change.
        settings: those that differ within the column, in words.
        state: of an evaluation without grades, or of a newer one at work, in words.
    """

    evaluation: Evaluation
    grading: Grading | None = None
    figure: Figure | None = None
    beside: tuple[str, Figure] | None = None
    change: Figure | None = None
    mark: str = ""
    other_grader: bool = False
    settings: str = ""
    state: str = ""

    @property
    def sign(self) -> int:
        """1 or −1 where the interval of the change lies above or below 0, else 0, as where items are few."""
        if self.change is None or self.change.low is None or self.change.high is None:
            return 0
        if self.change.items < LEAST_PAIRED:
            return 0
        return 1 if self.change.low > 0 else -1 if self.change.high < 0 else 0


@dataclass(frozen=True)
class Column:
    """A benchmark that something was evaluated on.

    Attributes:
        graders: all that graded it, the newest first.
        sets: (mark, how many items, first digits of the fingerprint or "") of each item set in it.
    """

    benchmark: Benchmark
    graders: tuple[str, ...]
    sets: tuple[tuple[str, int, str], ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether its figures are of different items."""
        return len(self.sets) > 1


@dataclass(frozen=True)
class Line:
    """A model; `key` names it in addresses: adapter:5 or model:demo."""

    key: str
    label: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """`base`: the key of the line that others are compared with; "" where there is none."""

    purpose: str
    base: str
    grader: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def graders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(grader for column in self.columns for grader in column.graders))

    @property
    def base_label(self) -> str:
        return next((line.label for line in self.lines if line.key == self.base), "")

    def cells(self) -> Iterable[tuple[Line, Column, Cell]]:
        for line in self.lines:
            for column in self.columns:
                if (cell := line.cells.get(column.benchmark.name)) is not None:
                    yield line, column, cell


def key_of(evaluation: Evaluation) -> str:
    """Names the model of an evaluation; an adapter stays itself under a new name."""
    if evaluation.adapter_id is not None:
        return f"adapter:{evaluation.adapter_id}"
    return f"model:{evaluation.model}"


def build(
    evaluations: Sequence[Evaluation],
    gradings: Sequence[Grading],
    benchmarks: Mapping[str, Benchmark],
    figures: Figures,
    *,
    purpose: str = "reporting",
    base: str = "",
    grader: str = "",
    fingerprints: Mapping[int, str] | None = None,
    states: Mapping[int, str] | None = None,
) -> Table:
    """The table of one purpose.

    Args:
        evaluations, gradings: the newest first. Those of unknown benchmarks are left out.
        base: the key of a line; where there is no such line, the base of most adapters, or the oldest.
        grader: whose grades to take where it graded anything of a benchmark; "": the newest.
        fingerprints: of item sets, by id.
        states: of evaluations whose jobs have not ended well, in words.
    """
    fingerprints, states = fingerprints or {}, states or {}
    wanted = [one for one in evaluations if one.purpose == purpose and one.benchmark in benchmarks]
    by_evaluation: dict[int, list[Grading]] = {}
    for grading in gradings:
        by_evaluation.setdefault(grading.evaluation_id, []).append(grading)
    keys = _ordered(wanted)
    base = base if base in keys else _default_base(wanted, keys)
    columns: list[Column] = []
    cells: dict[str, dict[str, Cell]] = {key: {} for key in keys}
    for name, benchmark in sorted(benchmarks.items(), key=lambda one: SKILLS.index(one[1].skill)):
        asked = [one for one in wanted if one.benchmark == name]
        if not asked:
            continue
        graders = _graders(asked, by_evaluation)
        only = grader if grader in graders else ""
        chosen = {
            key: found
            for key in keys
            if (found := _chosen([one for one in asked if key_of(one) == key], by_evaluation, only, states))
        }
        sets, marks = _sets(chosen, base, figures, fingerprints)
        noted = _differing({key: evaluation for key, (evaluation, _, _) in chosen.items()})
        columns.append(Column(benchmark, graders, sets))
        for key, (evaluation, shown, state) in chosen.items():
            against = chosen[base][1] if base in chosen and key != base else None
            cells[key][name] = _cell(
                benchmark, figures, evaluation, shown, against, marks.get(key, ""), noted[key], state
            )
    labels = _labels(wanted)
    lines = tuple(Line(key, labels[key], cells[key]) for key in keys if cells[key])
    return Table(purpose, base, grader, tuple(columns), lines)


def _ordered(evaluations: Sequence[Evaluation]) -> list[str]:
    """Keys of the lines: bases, adapters, endpoints, files; each by its first evaluation."""

    def place(one: Evaluation) -> tuple[int, int]:
        if one.adapter_id is not None:
            return 1, one.id
        outside = "@" in one.model
        return (3 if one.job_id is None else 2 if outside else 0), one.id

    return list(dict.fromkeys(key_of(one) for one in sorted(evaluations, key=place)))


def _labels(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Names of the lines, the newest; where two are the same, with what tells them apart."""
    found: dict[str, str] = {}
    for one in evaluations:  # the newest first
        found.setdefault(key_of(one), one.label)
    twice = {label for label, count in Counter(found.values()).items() if count > 1}
    return {key: f"{label} ({key.partition(':')[2]})" if label in twice else label for key, label in found.items()}


def _default_base(evaluations: Sequence[Evaluation], keys: Sequence[str]) -> str:
    bases = Counter(f"model:{one.model}" for one in evaluations if one.adapter_id is not None)
    for key, _ in bases.most_common():
        if key in keys:
            return key
    return keys[0] if keys else ""


def _graders(asked: Sequence[Evaluation], gradings: Mapping[int, Sequence[Grading]]) -> tuple[str, ...]:
    found = sorted((one for each in asked for one in gradings.get(each.id, ())), key=lambda one: -one.id)
    return tuple(dict.fromkeys(one.grader for one in found))


def _chosen(
    asked: Sequence[Evaluation],
    gradings: Mapping[int, Sequence[Grading]],
    grader: str,
    states: Mapping[int, str],
) -> tuple[Evaluation, Grading | None, str] | None:
    """The newest with a grading; without any the newest. With what a newer one is at."""
    newer = ""
    for one in asked:
        fitting = [each for each in gradings.get(one.id, ()) if not grader or each.grader == grader]
        if fitting:
            return one, fitting[0], newer
        newer = newer or _state(one, gradings, grader, states)
    return (asked[0], None, newer) if asked else None


def _state(
    one: Evaluation, gradings: Mapping[int, Sequence[Grading]], grader: str, states: Mapping[int, str]
) -> str:
    if one.id in states:
        return states[one.id]
    return f"not graded by {grader}" if grader and gradings.get(one.id) else "not graded yet"


Chosen = Mapping[str, tuple[Evaluation, Grading | None, str]]


def _sets(
    chosen: Chosen, base: str, figures: Figures, fingerprints: Mapping[int, str]
) -> tuple[tuple[tuple[str, int, str], ...], dict[str, str]]:
    """The item sets of a column with their marks, and the mark of each line; the base's set has none.

    Two are the same where the items' names are, and what was asked as far as both know it: an official file
    knows the names alone.
    """
    groups: list[tuple[str, str, int, list[str]]] = []  # names, fingerprint, items, lines
    for key, (evaluation, grading, _) in chosen.items():
        if grading is None:
            continue
        names, asked = figures.items_key(grading.id), fingerprints.get(evaluation.set_id or 0, "")
        for place, (others, known, count, lines) in enumerate(groups):
            if others == names and (known == asked or not known or not asked):
                groups[place] = (others, known or asked, count, [*lines, key])
                break
        else:
            groups.append((names, asked, grading.grades + grading.failures, [key]))
    # The base's set first, else the largest.
    groups.sort(key=lambda group: (base not in group[3], -group[2]))
    sets: list[tuple[str, int, str]] = []
    marks: dict[str, str] = {}
    for place, (_, asked, count, lines) in enumerate(groups):
        mark = "" if not place else MARKS[(place - 1) % len(MARKS)] * (1 + (place - 1) // len(MARKS))
        sets.append((mark, count, asked[:12]))
        marks |= dict.fromkeys(lines, mark)
    return tuple(sets), marks


def _differing(evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """Of each line the settings that are not the same in the whole column, in words."""
    told = [one.settings for one in evaluations.values() if one.job_id is not None]
    names = [name for name in TOLD if len({str(settings.get(name)) for settings in told}) > 1]
    return {
        key: ", ".join(filter(None, (_setting(name, one.settings.get(name)) for name in names)))
        if one.job_id is not None
        else ""
        for key, one in evaluations.items()
    }


def _setting(name: str, value: Any) -> str:
    if name == "limit":
        return "all items" if value is None else f"limit {value}"
    if name == "attributes":
        return f"attributes {value}" if value else ""
    return f"{name.replace('_', ' ')} {value}"


def settings_words(evaluation: Evaluation) -> str:
    """How answers were drawn, in one line."""
    shown = {
        name: PurePath(str(value)).name if name in ("files", "file") else value
        for name, value in evaluation.settings.items()
        if name not in ("purpose", "model") and value not in (None, "")
    }
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def comparable(one: str, other: str) -> bool:
    """Whether grades of two graders may be set against each other: of one, or both out of official files."""
    return one == other or (one.startswith("file ") and other.startswith("file "))


def _cell(
    benchmark: Benchmark,
    figures: Figures,
    evaluation: Evaluation,
    grading: Grading | None,
    against: Grading | None,
    mark: str,
    settings: str,
    state: str,
) -> Cell:
    if grading is None:
        return Cell(evaluation, settings=settings, state=state)
    beside = BESIDE.get(benchmark.name, "")
    other = against is not None and not comparable(grading.grader, against.grader)
    change = None
    if against is not None and not other:
        change = figures.difference(grading.id, against.id, benchmark, benchmark.headline)
    return Cell(
        evaluation,
        grading,
        figures.figure(grading.id, benchmark, benchmark.headline),
        (beside, figures.figure(grading.id, benchmark, beside)) if beside in benchmark.measures else None,
        change if change is not None and change.items else None,
        mark,
        other,
        settings,
        state,
    )


# numbers in words ------------------------------------------------------------------------------------------------


def digits_of(benchmark: Benchmark) -> int:
    """Decimals that a score is told with: two on a scale of ten, one on a scale of a hundred."""
    return 2 if benchmark.most is not None and benchmark.most <= 10 else 1


def number(value: float | None, digits: int) -> str:
    """With a real minus sign, and without a negative zero; "–" for none."""
    if value is None:
        return "–"
    shown = f"{value:.{digits}f}"
    return f"{0:.{digits}f}" if float(shown) == 0 else shown.replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """A difference: with its sign."""
    shown = number(value, digits)
    return shown if value is None or shown[0] == "−" or float(shown) == 0 else f"+{shown}"


def spread(figure: Figure, digits: int) -> str:
    """The interval, "59.1 to 67.5"; "" where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{number(figure.low, digits)} to {number(figure.high, digits)}"
