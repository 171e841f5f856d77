"""Who scored what, side against side: from the scores that count to what the statistics read (pure)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.judges.identity import WITH_LIST
from jobs.pairing import QUALITY
from storage.agreement import COLUMNS, MISSING
from storage.records import HIGHEST, METRICS, Rater
from workbench.agreement_stats import Floats, Ints, Matched, Units

PEOPLE = "people"  # the side of all people together
MEASURES = (*METRICS, "quality")  # quality = helpfulness + correctness + coherence, 0 to 12


def levels_of(measure: str) -> int:
    """How many values a score of this measure can have: 0 to 4, or 0 to 12 for quality."""
    return len(QUALITY) * HIGHEST + 1 if measure == "quality" else HIGHEST + 1


@dataclass(frozen=True)
class Given:
    """One rater's scores, an entry an answer, by the answers' ids.

    Attributes:
        values: answers × `MEASURES`; `MISSING` where a metric was not given.
        position: where a judge read the answer, 0 for A; `MISSING` where there was no order.
    """

    candidate: Ints
    sample: Ints
    position: Ints
    characters: Ints
    values: Ints

    def having(self, measure: str) -> Given:
        """Those answers alone that were scored on this measure."""
        return self.only(self.of(measure) != MISSING)

    def only(self, kept: np.ndarray) -> Given:
        return Given(
            self.candidate[kept],
            self.sample[kept],
            self.position[kept],
            self.characters[kept],
            self.values[kept],
        )

    def of(self, measure: str) -> Ints:
        return self.values[:, MEASURES.index(measure)]


@dataclass(frozen=True)
class Scores:
    """All scores that count. `given` has no rater without scores."""

    raters: tuple[Rater, ...]
    given: dict[int, Given]

    def sides(self) -> list[str]:
        """What may be compared, as it stands in addresses: judges, all people, each person."""
        people = self.people
        group = [PEOPLE] if people else []
        return [*map(str, self.judges), *group, *map(str, people)]

    @property
    def people(self) -> list[int]:
        return [rater.id for rater in self.raters if rater.kind == "person"]

    @property
    def judges(self) -> list[int]:
        """By name, version and mode, so that with and without checklists are neighbours."""
        found = [rater for rater in self.raters if rater.kind == "judge"]
        return [rater.id for rater in sorted(found, key=lambda one: (one.name, one.version, one.mode))]

    def members(self, side: str) -> list[int]:
        """The ids of the raters behind a side."""
        return self.people if side == PEOPLE else [int(side)]

    def rater(self, rater_id: int) -> Rater:
        return next(rater for rater in self.raters if rater.id == rater_id)


def gather(raters: Iterable[Rater], rows: Sequence[tuple[int, ...]]) -> Scores:
    """The scores from the rows of `storage.agreement.counting_scores`; answers without any score are left out."""
    table = np.array(rows, dtype=np.int64).reshape(len(rows), len(COLUMNS) + len(METRICS))
    metrics = table[:, len(COLUMNS) :]
    parts = metrics[:, [METRICS.index(name) for name in QUALITY]]
    quality = np.where((parts == MISSING).any(axis=1), MISSING, parts.sum(axis=1))
    values = np.column_stack([metrics, quality])
    kept = (values != MISSING).any(axis=1)
    table, values = table[kept], values[kept]
    given = {}
    for rater_id in np.unique(table[:, 0]).tolist():
        own = np.flatnonzero(table[:, 0] == rater_id)
        own = own[np.argsort(table[own, 2])]
        given[rater_id] = Given(
            candidate=table[own, 2],
            sample=table[own, 1],
            position=table[own, 3],
            characters=table[own, 4],
            values=values[own],
        )
    return Scores(tuple(rater for rater in raters if rater.id in given), given)


@dataclass(frozen=True)
class Shared:
    """Pairs of scores on the same answers, of two sides, one measure.

    Attributes:
        first, second: the scores.
        first_rater, second_rater: whose they are.
        one_group: both sides are the same group of raters.
        raters: all raters of both sides.
    """

    measure: str
    candidate: Ints
    sample: Ints
    first: Ints
    second: Ints
    first_rater: Ints
    second_rater: Ints
    one_group: bool
    raters: tuple[int, ...]

    def only(self, kept: np.ndarray) -> Shared:
        return Shared(
            self.measure,
            self.candidate[kept],
            self.sample[kept],
            self.first[kept],
            self.second[kept],
            self.first_rater[kept],
            self.second_rater[kept],
            self.one_group,
            self.raters,
        )

    @property
    def matched(self) -> Matched:
        """What the statistics read. In a group of three or more raters every pair stands in both orders.

        Who comes first among equals has no meaning, but a table of counts would depend on it.
        """
        first, second, sample = self.first, self.second, self.sample
        both = self.one_group and len(self.raters) > 2
        if both:
            first, second = np.concatenate([first, second]), np.concatenate([second, first])
            sample = np.concatenate([sample, sample])
        return Matched(first, second, sample, levels_of(self.measure), both)


def share(scores: Scores, firsts: Sequence[int], seconds: Sequence[int], measure: str) -> Shared:
    """Every (first, second) pair of scores on the same answer, nobody against themselves.

    Where both sides are the same group, each pair of its raters counts once.
    """
    one_group = len(firsts) > 1 and set(firsts) == set(seconds)
    couples: Iterable[tuple[int, int]] = (
        itertools.combinations(firsts, 2) if one_group else itertools.product(firsts, seconds)
    )
    found = [_couple(scores, one, other, measure) for one, other in couples if one != other]
    found = found or [(np.empty(0, np.int64),) * 6]
    candidate, sample, first, second, one_of, other_of = (
        np.concatenate(column) for column in zip(*found, strict=True)
    )
    raters = tuple(dict.fromkeys([*firsts, *seconds]))
    return Shared(measure, candidate, sample, first, second, one_of, other_of, one_group, raters)


def _couple(scores: Scores, one: int, other: int, measure: str) -> tuple[Ints, ...]:
    first, second = scores.given[one].having(measure), scores.given[other].having(measure)
    both, here, there = np.intersect1d(first.candidate, second.candidate, assume_unique=True, return_indices=True)
    return (
        both,
        first.sample[here],
        first.of(measure)[here],
        second.of(measure)[there],
        np.full(len(both), one),
        np.full(len(both), other),
    )


def units_of(scores: Scores, shared: Shared) -> Units:
    """What alpha reads: the answers that both sides scored, with the scores of all raters of both sides.

    Raters who did not score an answer are missing there, which alpha allows for.
    """
    candidates, places = np.unique(shared.candidate, return_index=True)
    counts = np.zeros((len(candidates), levels_of(shared.measure)), np.int64)
    for rater_id in shared.raters:
        given = scores.given[rater_id].having(shared.measure)
        _, unit, own = np.intersect1d(candidates, given.candidate, assume_unique=True, return_indices=True)
        counts[unit, given.of(shared.measure)[own]] += 1
    return Units(counts, shared.sample[places])


def overlap(scores: Scores, first: str, second: str) -> int:
    """How many pairs of scores two sides share, on the metric of which they share most."""
    firsts, seconds = scores.members(first), scores.members(second)
    return max(len(share(scores, firsts, seconds, metric).candidate) for metric in METRICS)


def choose_sides(scores: Scores) -> tuple[str, str] | None:
    """What to show unasked: the judge with most scores shared with people; else people; else two judges.

    None where no two sides share a score.
    """
    judges = [str(judge) for judge in scores.judges]
    tries = [(judge, PEOPLE) for judge in judges] if scores.people else []
    if best := _most(scores, tries):
        return best
    if len(scores.people) > 1 and overlap(scores, PEOPLE, PEOPLE):
        return PEOPLE, PEOPLE
    return _most(scores, list(itertools.combinations(judges, 2)))


def _most(scores: Scores, tries: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    counted = [(overlap(scores, *sides), sides) for sides in tries]
    most = max((number for number, _ in counted), default=0)
    return next((sides for number, sides in counted if number == most), None) if most else None


def means_of(scores: Scores, side: str, measure: str) -> tuple[Ints, Ints, Ints, Floats]:
    """(answers, their samples, lengths in characters, mean scores) of all that a side scored."""
    own = [scores.given[rater_id].having(measure) for rater_id in scores.members(side)]
    candidate = np.concatenate([given.candidate for given in own])
    found, places, of = np.unique(candidate, return_index=True, return_inverse=True)
    sums = np.bincount(of, weights=np.concatenate([given.of(measure) for given in own]), minlength=len(found))
    counts = np.bincount(of, minlength=len(found))
    sample = np.concatenate([given.sample for given in own])[places]
    characters = np.concatenate([given.characters for given in own])[places]
    return found, sample, characters, sums / np.maximum(counts, 1)


def stretches(characters: Ints, wanted: int = 6) -> list[tuple[int, int]]:
    """At most `wanted` stretches of length (from, to; both inside) that hold about as many answers each."""
    if not len(characters):
        return []
    ordered = np.sort(characters)
    ends = sorted(
        {
            int(ordered[len(ordered) * part // wanted - 1])
            for part in range(1, wanted + 1)
            if len(ordered) * part // wanted
        }
    )
    found, start = [], int(ordered[0])
    for end in ends:
        inside = ordered[(ordered >= start) & (ordered <= end)]
        found.append((int(inside[0]), int(inside[-1])))
        start = end + 1
    return found


def families(scores: Scores) -> list[tuple[int, int]]:
    """Judges (without, with checklists) that are the same model, rubric and mode otherwise."""
    known = {(rater.name, rater.version, rater.mode): rater.id for rater in scores.raters if rater.kind == "judge"}
    return [
        (known[name, version, mode], known[name, version, mode + WITH_LIST])
        for name, version, mode in sorted(known)
        if (name, version, mode + WITH_LIST) in known
    ]
