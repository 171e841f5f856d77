"""What can be asked of samples: each a set of small values of a column of `sample_facts`, or words, or a rater."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from storage.facts import MOST, PROBLEM_BITS
from storage.records import HIGHEST, LOWEST, METRICS

# How a judge's call can end without scores.
PROBLEMS = tuple(PROBLEM_BITS)


@dataclass(frozen=True)
class Clause:
    """A column that takes one of these values; the lower `rank`, the fewer samples it is likely to leave."""

    column: str
    values: tuple[Any, ...]
    rank: int


_ANY = tuple(range(1, MOST + 1))
_STATES: dict[str, Clause] = {
    "no candidates": Clause("labels", (0,), 6),
    "unjudged": Clause("labels", (1, 3), 6),
    "judged": Clause("labels", (2, 4), 6),
    "not scored by people": Clause("labels", (1, 2), 6),
    "scored by people": Clause("labels", (3, 4), 5),
    **{
        state: Clause("problems", tuple(bits for bits in range(16) if bits & bit), 1)
        for state, bit in PROBLEM_BITS.items()
    },
    "paired": Clause("pairs", _ANY, 4),
    "unpaired": Clause("pairs", (0,), 8),
    "flagged": Clause("flags", _ANY, 2),
    "skipped": Clause("skips", _ANY, 2),
    "discarded": Clause("discarded", (1,), 2),
}
STATES: tuple[str, ...] = ("", *_STATES)

#: name → title; beside "" and "newest" only samples that have the value are listed.
ORDERS: dict[str, str] = {
    "": "as they came",
    "newest": "newest first",
    "gap": "most disagreement",
    "least scored": "scored by fewest people",
    "longest answer": "longest answer",
}
ORDER_COLUMNS = {
    "": ("sample_id", False),
    "newest": ("sample_id", True),
    "gap": ("gap", True),
    "least scored": ("people", False),
    "longest answer": ("longest", True),
}
NUMBERS = ("0", "1", "2", "3+")  #: of images and turns


@dataclass(frozen=True)
class SampleFilter:
    """What the Samples page can ask for; each field is also a query parameter of its URL.

    Attributes:
        q: words in questions, references, answers and notes; all of them, each the beginning of a word (see
            `selecting.spelt`).
        state: one of `STATES`; every other one leaves discarded samples out.
        rater: the name of a judge or person who has scored it.
        metric, low, high: a latest score of this metric lies in low … high.
        gap: judges and people differ by at least this: the largest, over candidates, of the mean over metrics of
            |mean of judges − mean of people|; in quarter points.
        images, turns: one of `NUMBERS`.
        order: one of `ORDERS`.
    """

    q: str = ""
    source: str = ""
    split: str = ""
    state: str = ""
    rater: str = ""
    metric: str = ""
    low: str = ""
    high: str = ""
    gap: str = ""
    images: str = ""
    turns: str = ""
    order: str = ""

    @classmethod
    def from_query(cls, query: dict[str, str]) -> SampleFilter:
        """Read a URL's parameters; those that mean nothing here are passed over."""
        known = {field.name: query.get(field.name, "").replace("\0", "").strip() for field in fields(cls)}
        allowed: dict[str, Sequence[str]] = {
            "state": STATES,
            "metric": METRICS,
            "images": NUMBERS,
            "turns": NUMBERS,
            "order": tuple(ORDERS),
            "low": [str(value) for value in range(LOWEST, HIGHEST + 1)],
            "high": [str(value) for value in range(LOWEST, HIGHEST + 1)],
        }
        for name, values in allowed.items():
            if known[name] not in values:
                known[name] = ""
        if quarters(known["gap"]) is None:
            known["gap"] = ""
        return cls(**known)

    def as_query(self) -> dict[str, str]:
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}

    @property
    def selects(self) -> bool:
        """Whether it leaves anything out (an order does not)."""
        return bool(replace(self, order="").as_query())

    def clauses(self) -> list[Clause]:
        """Its columns but words, raters and discards, the narrowest first."""
        found = []
        if self.state:
            found.append(_STATES[self.state])
        for column, rank in (("source", 9), ("split", 9)):
            if value := getattr(self, column):
                found.append(Clause(column, (value,), rank))
        for column in ("images", "turns"):
            if value := getattr(self, column):
                exact = tuple(range(3, MOST + 1)) if value == "3+" else (int(value),)
                found.append(Clause(column, exact, 7))
        if self.metric:
            low, high = int(self.low or LOWEST), int(self.high or HIGHEST)
            wanted = sum(1 << value for value in range(low, high + 1))
            masks = tuple(mask for mask in range(1, 1 << HIGHEST + 1) if mask & wanted)
            found.append(Clause(self.metric, masks, 5))
        if (least := quarters(self.gap)) is not None:
            found.append(Clause("gap", tuple(range(least, 4 * (HIGHEST - LOWEST) + 1)), 3))
        return sorted(found, key=lambda clause: clause.rank)


def quarters(text: str) -> int | None:
    """A difference in quarter points, rounded up; None for what is no number from 0 to 4."""
    try:
        value = float(text)
    except ValueError:
        return None
    return math.ceil(value * 4) if LOWEST <= value <= HIGHEST else None
