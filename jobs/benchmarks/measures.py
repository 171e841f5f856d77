"""Scores with intervals (pure).

Every benchmark's score is a function of sums over its items: a mean is Σ value / Σ 1, F1 is 2TP / (2TP + FP +
FN), LLaVA-Bench's is Σ model / Σ reference. So an item is kept as the numbers that are summed, a resample of the
items is a vector of how often each is drawn, and all resamples are one matrix product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean
from typing import Any, Literal

import numpy as np

RESAMPLES = 2000
_AT_ONCE = 2_000_000  # numbers of one block of draws, 16 MB

Array = np.ndarray[Any, np.dtype[np.float64]]
Score = Callable[[Array], Array]


@dataclass(frozen=True)
class Graded:
    """One item's grade.

    Attributes:
        id: the item's, as the benchmark names it.
        sums: the numbers that the score sums; None where there is no grade (an answer is missing, or the judge's
            reply cannot be read): such items are counted as failures and are in no score.
        categories: the groups that it counts in.
        characters: the answer's length; None where there is no answer.
        unit: items of one unit are drawn together (the two turns of an MT-Bench question); "" for the item's id.
        why: of a failure, for people.
    """

    id: str
    sums: tuple[float, ...] | None
    categories: tuple[str, ...] = ()
    characters: int | None = None
    unit: str = ""
    why: str = ""


@dataclass(frozen=True)
class Figure:
    """A score as it stands in a table.

    Attributes:
        value, low, high: in the benchmark's own unit; None where no item is graded. low and high are the 2.5th and
            97.5th percentile of the resamples.
        items: graded ones.
        failures: those without a grade.
        characters: mean length of the answers; None where none is known.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int
    failures: int
    characters: float | None


def mean_of(scale: float = 1.0) -> Score:
    """The score of items with sums (value, 1): scale × their mean."""

    def score(sums: Array) -> Array:
        return ratio(scale * sums[..., 0], sums[..., 1])

    return score


def share_of(place: int, of: int, scale: float = 100.0) -> Score:
    """The score scale × Σ of the numbers at one place / Σ of those at another."""

    def score(sums: Array) -> Array:
        return ratio(scale * sums[..., place], sums[..., of])

    return score


def ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where below is 0."""
    found: Array = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
    return found


def figure(items: Sequence[Graded], score: Score, seed: int = 0, resamples: int = RESAMPLES) -> Figure:
    """The score of these items with its percentile bootstrap interval over units (Efron 1979)."""
    lengths = [one.characters for one in items if one.characters is not None]
    graded = [one for one in items if one.sums is not None]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    if graded:
        sums = _by_unit(graded)
        found = float(score(sums.sum(axis=0)))
        if np.isfinite(found):
            value = found
            low, high = _interval(score(_resampled(sums, seed, resamples)))
    return Figure(
        value=value,
        low=low,
        high=high,
        items=len(graded),
        failures=len(items) - len(graded),
        characters=round(mean(lengths), 1) if lengths else None,
    )


def difference(
    ours: Sequence[Graded], base: Sequence[Graded], score: Score, seed: int = 0, resamples: int = RESAMPLES
) -> Figure:
    """The score of `ours` minus that of `base` on the items that both have a grade for, drawn in pairs.

    `characters` is the difference of the mean lengths, `failures` the items that one of the two has no grade for.
    """
    left = {one.id: one for one in ours if one.sums is not None}
    right = {one.id: one for one in base if one.sums is not None}
    both = [name for name in left if name in right]
    failures = len({one.id for one in (*ours, *base)}) - len(both)
    if not both:
        return Figure(None, None, None, 0, failures, None)
    one, other = (_by_unit([found[name] for name in both]) for found in (left, right))
    value = float(score(one.sum(axis=0)) - score(other.sum(axis=0)))
    drawn = score(_resampled(one, seed, resamples)) - score(_resampled(other, seed, resamples))
    low, high = _interval(drawn)
    lengths = [
        ours_length - base_length
        for name in both
        if (ours_length := left[name].characters) is not None
        and (base_length := right[name].characters) is not None
    ]
    return Figure(value, low, high, len(both), failures, round(mean(lengths), 1) if lengths else None)


def by_category(items: Sequence[Graded], score: Score, seed: int = 0) -> dict[str, Figure]:
    """The figure of each category, in the order in which they first come."""
    names = dict.fromkeys(name for one in items for name in one.categories)
    return {name: figure([one for one in items if name in one.categories], score, seed) for name in names}


def _by_unit(graded: Sequence[Graded]) -> Array:
    """[units, numbers]: the sums of each unit, in the order of first sight."""
    place: dict[str, int] = {}
    places = [place.setdefault(one.unit or one.id, len(place)) for one in graded]
    sums = np.zeros((len(place), len(graded[0].sums or ())))
    np.add.at(sums, places, np.array([one.sums for one in graded], dtype=np.float64))
    return sums


def _resampled(sums: Array, seed: int, resamples: int) -> Array:
    """[resamples, numbers]: sums over as many units as there are, drawn with replacement; the same seed and number
    of units draw the same units, so that two models are resampled in pairs."""
    counts = _draws(len(sums), seed, resamples)
    step = max(1, _AT_ONCE // len(sums))
    return np.concatenate([counts[start : start + step] @ sums for start in range(0, resamples, step)])


@lru_cache(maxsize=4)  # a table asks the same number of units of each model; 18 MB for nine thousand
def _draws(units: int, seed: int, resamples: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[resamples, units]: how often each unit is drawn. One is drawn once on average, so a byte holds it."""
    generator = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // units)
    found = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, units, (rows, units))
        # How often each unit of each row was drawn: one count over all rows.
        flat = (drawn + np.arange(rows)[:, None] * units).ravel()
        found.append(np.bincount(flat, minlength=rows * units).reshape(rows, units).astype(np.uint8))
    counts = np.concatenate(found)
    counts.flags.writeable = False
    return counts


def _interval(values: Array) -> tuple[float | None, float | None]:
    known = values[np.isfinite(values)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def half_of(item_id: str, unit: str) -> Literal["selection", "reporting"]:
    """The half that an item belongs to for good: settings are chosen by one half, and reported by the other.

    By a hash of its unit, or its id where it has none: the same on every machine, whatever else is asked.
    """
    digest = hashlib.sha256(f"half:{unit or item_id}".encode()).digest()
    return "selection" if digest[0] % 2 else "reporting"
