"""What was asked of one evaluation, item by item: grades beside the other model's, filters, search (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jobs.benchmarks.contract import Benchmark
from jobs.benchmarks.measures import Graded
from workbench.views import text_of

Show = Literal["all", "regressions", "gains", "failures"]
SHOWS: tuple[Show, ...] = ("all", "regressions", "gains", "failures")
Item = Mapping[str, Any]

_SAME = 1e-9


@dataclass(frozen=True)
class Case:
    """One grade: of an item, of a turn of one, or of several that count together.

    Attributes:
        value, other: of this model and of the one that it is set against; None for a failure, or where there is no
            such grade.
    """

    graded: Graded
    value: float | None
    other: float | None = None

    @property
    def change(self) -> float | None:
        return None if self.value is None or self.other is None else self.value - self.other

    def shows(self, show: Show) -> bool:
        """Whether a filter lets it through."""
        if show == "failures":
            return self.graded.sums is None
        if show == "all":
            return True
        change = self.change or 0.0
        return change < -_SAME if show == "regressions" else change > _SAME


def values_of(benchmark: Benchmark, graded: Sequence[Graded]) -> dict[str, float]:
    """What each grade is worth by itself, by its id; failures are missing.

    An F1 of one answer says nothing of a rightly refused object: so accuracy goes before the headline, and where
    neither knows it (easy-VQA's twins), any measure that does.
    """
    known = [one for one in graded if one.sums is not None]
    if not known:
        return {}
    sums = np.array([one.sums for one in known], dtype=np.float64)
    worth = np.full(len(known), np.nan)
    for name in dict.fromkeys(("accuracy", benchmark.headline, *benchmark.measures)):
        if name in benchmark.measures:
            worth = np.where(np.isfinite(worth), worth, benchmark.measures[name](sums))
    return {one.id: float(value) for one, value in zip(known, worth, strict=True) if np.isfinite(value)}


def cases_of(benchmark: Benchmark, ours: Sequence[Graded], other: Sequence[Graded] | None = None) -> list[Case]:
    """All grades in the benchmark's order, beside another model's."""
    own, others = values_of(benchmark, ours), values_of(benchmark, other or ())
    return [Case(one, own.get(one.id), others.get(one.id)) for one in ours]


def counts(cases: Sequence[Case]) -> dict[Show, int]:
    """How many each filter lets through."""
    return {show: sum(case.shows(show) for case in cases) for show in SHOWS}


def chosen(
    cases: Sequence[Case], show: Show, category: str = "", wanted: str = "", texts: Mapping[str, str] | None = None
) -> list[Case]:
    """What passes all filters; regressions and gains with the largest first.

    Args:
        wanted: words that must all be in the texts, whatever their case.
        texts: what is searched, by the grade's id.
    """
    words = wanted.lower().split()
    found = [
        case
        for case in cases
        if case.shows(show)
        and (not category or category in case.graded.categories)
        and (not words or _has(words, case.graded.id, (texts or {}).get(case.graded.id, "")))
    ]
    if show in ("regressions", "gains"):
        found.sort(key=lambda case: -abs(case.change or 0.0))
    return found


def _has(words: Sequence[str], name: str, text: str) -> bool:
    told = f"{name}\n{text}".lower()
    return all(word in told for word in words)


@dataclass(frozen=True)
class Items:
    """Items by the names that grades know them by."""

    by_id: Mapping[str, Item]
    by_unit: Mapping[str, Sequence[Item]]

    @classmethod
    def of(cls, items: Sequence[Item]) -> Items:
        units: dict[str, list[Item]] = {}
        for item in items:
            if item["unit"]:
                units.setdefault(item["unit"], []).append(item)
        return cls({item["id"]: item for item in items}, units)

    def of_case(self, graded: Graded) -> list[Item]:
        """What a grade is about: the item of its name, that of its unit (a turn), or all of it (rotations)."""
        for name in (graded.id, graded.unit):
            if name in self.by_id:
                return [self.by_id[name]]
        return list(self.by_unit.get(graded.unit or graded.id, ()))


def questions_of(item: Item) -> list[str]:
    """The questions of an item: the last message, then those that follow."""
    return [text_of(item["messages"][-1]["content"]), *(text_of(parts) for parts in item["following"])]
