"""What the Agreement page asks: scores read once, statistics worked out once for each state of the data."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from jobs.judges.identity import WITH_LIST
from storage.agreement import MISSING, AnswerText, answer_texts, counting_scores, scores_version
from storage.scores import list_raters
from workbench import agreement_stats as stats
from workbench.agreement import (
    MEASURES,
    PEOPLE,
    Scores,
    Shared,
    choose_sides,
    families,
    gather,
    means_of,
    overlap,
    share,
    stretches,
    units_of,
)
from workbench.agreement_stats import Agreement, Estimate, Ints
from workbench.context import Context

LISTED = 20  # disagreements
TEXT = 240  # characters of an answer or a question
KEPT = 48  # results in the memory
CONTRASTED = ("exact", "kappa", "alpha")

Obstacle = Literal["", "no scores", "no people", "no judge", "alone", "same", "no overlap"]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Side:
    """One of the two that are compared. `key` is its name in addresses: a rater's id, or "people"."""

    key: str
    name: str  # short: a judge's model, a person's name
    judge: bool
    version: str = ""
    mode: str = ""  # without what is said of checklists
    checklist: bool = False
    people: int = 0  # how many persons stand behind the group

    @property
    def terms(self) -> str:
        """What tells judges of one name apart: rubric and mode."""
        return " · ".join(part for part in (self.version, self.mode) if part)

    @property
    def title(self) -> str:
        parts = (self.name, self.version, self.mode, "with checklist" if self.checklist else "")
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Letters:
    """A judge's mean score by the letter under which it read the answers: (n, mean) of A, B, C …"""

    side: Side
    overall: float
    means: tuple[tuple[int, Estimate], ...]


@dataclass(frozen=True)
class Lengths:
    """A side's mean score by stretch of length, and the correlation of score and length."""

    side: Side
    means: tuple[tuple[int, Estimate], ...]
    correlation: Estimate


@dataclass(frozen=True)
class LengthBias:
    """Both sides over the same stretches; `same` says that they are measured on the same answers."""

    stretches: tuple[tuple[int, int], ...]
    sides: tuple[Lengths, ...]
    same: bool


@dataclass(frozen=True)
class JudgeRow:
    """One judge against all people, on quality."""

    judge: Side
    found: Agreement


@dataclass(frozen=True)
class Contrast:
    """Two judges against all people on the same pairs of answer and person, on quality.

    Attributes:
        values: of each statistic: of one, of the other, and the difference (other − one) with its interval.
        checklists: the two differ in nothing but the checklists.
    """

    one: Side
    other: Side
    n: int
    samples: int
    values: dict[str, tuple[float | None, float | None, Estimate]]
    checklists: bool


@dataclass(frozen=True)
class Disagreement:
    """Two scores of one answer that lie apart; a quality or a metric that was not given is None."""

    answer: AnswerText
    first: Side
    second: Side
    quality: tuple[int | None, int | None]
    metric: tuple[int | None, int | None]


@dataclass(frozen=True)
class View:
    """All that the page shows of one address.

    Attributes:
        found: by measure; empty where there is an obstacle.
        among_people: people against people by measure, the mark to hold a judge to; None where it says nothing
            new or there are no two people.
        confusion: how often the first gave i where the second gave j, on the chosen measure.
        counted_twice: the confusion counts each pair in both orders.
    """

    sides: tuple[Side, ...]
    first: Side | None
    second: Side | None
    metric: str
    obstacle: Obstacle
    found: dict[str, Agreement]
    among_people: dict[str, Agreement] | None
    confusion: Ints | None
    counted_twice: bool
    letters: tuple[Letters, ...]
    lengths: LengthBias | None
    judges: tuple[JudgeRow, ...]
    contrasts: tuple[Contrast, ...]
    disagreements: tuple[Disagreement, ...]
    people: int
    judge_count: int

    @property
    def compared(self) -> tuple[Side, Side]:
        """The two sides, where there are two."""
        assert self.first is not None
        assert self.second is not None
        return self.first, self.second


class AgreementDesk:
    """Reads scores and keeps what was worked out until they change. Safe for several threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._version: object = None
        self._memory: OrderedDict[object, Any] = OrderedDict()

    def view(self, first: str = "", second: str = "", metric: str = "") -> View:
        """The page for an address; sides and metrics that are not there are passed over for what is usual."""
        with self._context.database() as db, self._lock:  # two who ask the same wait for one answer
            version = scores_version(db)
            if version != self._version:
                self._memory.clear()
                self._version = version
            scores = self._kept("scores", lambda: gather(list_raters(db), counting_scores(db)))
            view, apart = self._work(scores, first, second, metric if metric in MEASURES else "quality")
            texts = answer_texts(db, [candidate for candidate, *_ in apart], TEXT)
        disagreements = tuple(
            Disagreement(
                texts[candidate],
                side_of(scores, str(one)),
                side_of(scores, str(other)),
                _both(scores, candidate, one, other, "quality"),
                _both(scores, candidate, one, other, view.metric),
            )
            for candidate, one, other in apart
        )
        return replace(view, disagreements=disagreements)

    def _work(
        self, scores: Scores, first: str, second: str, metric: str
    ) -> tuple[View, list[tuple[int, int, int]]]:
        sides = {key: side_of(scores, key) for key in scores.sides()}
        usual = self._kept("usual", lambda: choose_sides(scores)) or _fallback(scores)
        given = tuple(key if key in sides else "" for key in (first, second))
        if not all(given):
            given = _completed(given, usual)
        one, other = (sides.get(key) for key in given)
        view = View(
            sides=tuple(sides.values()),
            first=one,
            second=other,
            metric=metric,
            obstacle=self._obstacle(scores, one, other),
            found={},
            among_people=None,
            confusion=None,
            counted_twice=False,
            letters=(),
            lengths=None,
            judges=(),
            contrasts=(),
            disagreements=(),
            people=len(scores.people),
            judge_count=len(scores.judges),
        )
        if one is None or other is None:
            return view, []
        letters = tuple(
            found
            for side in dict.fromkeys((one, other))
            if side.judge
            and (found := self._kept(("letters", side.key, metric), partial(letters_of, scores, side, metric)))
        )
        lengths = self._kept(
            ("lengths", one.key, other.key, metric), lambda: length_bias(scores, one, other, metric)
        )
        view = replace(
            view,
            letters=letters,
            lengths=lengths,
            judges=self._kept("judges", lambda: judge_rows(scores)),
            contrasts=self._contrasts(scores, one, other),
        )
        if view.obstacle:
            return view, []
        shared = share(scores, scores.members(one.key), scores.members(other.key), metric)
        among = None
        if len(scores.people) > 1 and (one.judge or other.judge):
            among = self._table(scores, PEOPLE, PEOPLE)
            among = among if any(entry.n for entry in among.values()) else None
        view = replace(
            view,
            found=self._table(scores, one.key, other.key),
            among_people=among,
            confusion=stats.confusion(shared.matched),
            counted_twice=shared.matched.both_orders,
        )
        key = ("apart", one.key, other.key, metric)
        return view, self._kept(key, lambda: furthest_apart(scores, one.key, other.key, metric))

    def _obstacle(self, scores: Scores, one: Side | None, other: Side | None) -> Obstacle:
        if not scores.raters:
            return "no scores"
        if one is None or other is None:
            return "no people" if not scores.people else "no judge"
        alike = one.key == other.key
        if alike and one.key == PEOPLE and len(scores.people) == 1:
            return "alone"
        if alike and one.key != PEOPLE:
            return "same"
        return (
            ""
            if self._kept(("overlap", one.key, other.key), lambda: overlap(scores, one.key, other.key))
            else ("no overlap")
        )

    def _table(self, scores: Scores, first: str, second: str) -> dict[str, Agreement]:
        return self._kept(("table", first, second), lambda: agreement_table(scores, first, second))

    def _contrasts(self, scores: Scores, one: Side, other: Side) -> tuple[Contrast, ...]:
        """With and without checklists; and, where two judges are chosen, those two."""
        if not scores.people:
            return ()
        couples = families(scores)
        chosen = (int(one.key), int(other.key)) if one.judge and other.judge and one.key != other.key else None
        if chosen and chosen not in couples and chosen[::-1] not in couples:
            couples = [*couples, chosen]
        found = [self._kept(("contrast", *couple), partial(contrast, scores, *couple)) for couple in couples]
        return tuple(entry for entry in found if entry is not None)

    def _kept(self, key: object, work: Callable[[], Found]) -> Found:
        if key not in self._memory:
            self._memory[key] = work()
        self._memory.move_to_end(key)
        while len(self._memory) > KEPT:
            self._memory.popitem(last=False)
        return self._memory[key]


def _fallback(scores: Scores) -> tuple[str, str]:
    """What to name as the two sides where none share a score."""
    judges = [str(judge) for judge in scores.judges]
    if judges and scores.people:
        return judges[0], PEOPLE
    if len(scores.people) > 1:
        return PEOPLE, PEOPLE
    return (judges[0], judges[1]) if len(judges) > 1 else ("", "")


def _completed(given: Sequence[str], usual: tuple[str, str]) -> tuple[str, str]:
    """The usual sides, with the one that was asked for in its place."""
    first, second = given
    if first:
        return first, next((key for key in (usual[1], usual[0]) if key != first), usual[1])
    if second:
        return next((key for key in usual if key != second), usual[0]), second
    return usual


def side_of(scores: Scores, key: str) -> Side:
    if key == PEOPLE:
        return Side(PEOPLE, "all people", judge=False, people=len(scores.people))
    rater = scores.rater(int(key))
    return Side(
        key,
        rater.name,
        judge=rater.kind == "judge",
        version=f"version {rater.version}" if rater.version.isdigit() else rater.version,
        mode=rater.mode.removesuffix(WITH_LIST),
        checklist=rater.mode.endswith(WITH_LIST),
    )


def agreement_table(scores: Scores, first: str, second: str) -> dict[str, Agreement]:
    """How far two sides agree on each measure."""
    firsts, seconds = scores.members(first), scores.members(second)
    found = {}
    for measure in MEASURES:
        shared = share(scores, firsts, seconds, measure)
        found[measure] = stats.agreement(shared.matched, units_of(scores, shared))
    return found


def letters_of(scores: Scores, judge: Side, measure: str) -> Letters | None:
    """All that the judge scored in an order, by letter; None for a judge that read each answer alone."""
    given = scores.given[int(judge.key)].having(measure)
    given = given.only(given.position != MISSING)
    if not len(given.candidate):
        return None
    values = given.of(measure)
    means = stats.group_means(values, given.position, int(given.position.max()) + 1, given.sample)
    return Letters(judge, float(values.mean()), tuple(means))


def length_bias(scores: Scores, one: Side, other: Side, measure: str) -> LengthBias | None:
    """Score against length, both sides on the answers that both scored; without any, each on its own."""
    sides = list(dict.fromkeys((one, other)))
    found = [means_of(scores, side.key, measure) for side in sides]
    same = len(sides) == 1
    if len(sides) == 2:
        both = np.intersect1d(found[0][0], found[1][0], assume_unique=True)
        if same := bool(len(both)):
            kept = [np.isin(candidate, both, assume_unique=True) for candidate, *_ in found]
            found = [
                (part[0][inside], part[1][inside], part[2][inside], part[3][inside])
                for part, inside in zip(found, kept, strict=True)
            ]
    cuts = stretches(np.concatenate([characters for *_, characters, _ in found]))
    if not cuts:
        return None
    ends = np.array([end for _, end in cuts])
    lines = [
        Lengths(
            side,
            tuple(stats.group_means(mean, np.searchsorted(ends, characters), len(cuts), sample)),
            stats.correlation(characters, mean, sample),
        )
        for side, (_, sample, characters, mean) in zip(sides, found, strict=True)
    ]
    return LengthBias(tuple(cuts), tuple(lines), same)


def judge_rows(scores: Scores) -> tuple[JudgeRow, ...]:
    """Every judge against all people on quality, judging with and without checklists in neighbouring rows."""
    if not scores.people:
        return ()
    found = []
    for judge in scores.judges:
        shared = share(scores, [judge], scores.people, "quality")
        entry = stats.agreement(shared.matched, units_of(scores, shared))
        found.append(JudgeRow(side_of(scores, str(judge)), entry))
    return tuple(found)


def contrast(scores: Scores, one: int, other: int) -> Contrast | None:
    """Two judges on the same pairs of answer and person; None where there are not two such pairs.

    Both are resampled by the same draws, so that the interval is of the difference itself.
    """
    shares = [share(scores, [judge], scores.people, "quality") for judge in (one, other)]
    base = max(max(shared.raters) for shared in shares) + 1
    keys = [shared.candidate * base + shared.second_rater for shared in shares]
    common = np.intersect1d(keys[0], keys[1], assume_unique=True)
    if len(common) < 2:
        return None
    # In one order for both, so that the same draws meet the same pairs.
    aligned = [shared.only(_places(key, common)) for shared, key in zip(shares, keys, strict=True)]
    worked = [stats.replicates(shared.matched, units_of(scores, shared)) for shared in aligned]
    (values, resampled, samples), (other_values, other_resampled, _) = worked
    found = {}
    for name in CONTRASTED:
        before, after = values[name][0], other_values[name][0]
        difference = None if before is None or after is None else after - before
        why = values[name][1] or other_values[name][1]
        apart = stats.estimate(difference, other_resampled[name] - resampled[name], samples, why)
        found[name] = (before, after, apart)
    return Contrast(
        side_of(scores, str(one)),
        side_of(scores, str(other)),
        len(common),
        samples,
        found,
        (one, other) in families(scores),
    )


def _places(keys: Ints, wanted: Ints) -> Ints:
    """Where each of the wanted keys stands among `keys`."""
    order = np.argsort(keys)
    return order[np.searchsorted(keys[order], wanted)]


def furthest_apart(scores: Scores, first: str, second: str, metric: str) -> list[tuple[int, int, int]]:
    """(answer, rater, rater) of the largest differences: by quality, then by the metric; equal scores left out."""
    firsts, seconds = scores.members(first), scores.members(second)
    by_quality = share(scores, firsts, seconds, "quality")
    by_metric = share(scores, firsts, seconds, metric)
    keys = np.union1d(_key(by_quality), _key(by_metric))
    quality, chosen = np.zeros_like(keys), np.zeros_like(keys)
    for shared, difference in ((by_quality, quality), (by_metric, chosen)):
        difference[np.searchsorted(keys, _key(shared))] = np.abs(shared.first - shared.second)
    order = np.lexsort((keys, -chosen, -quality))[:LISTED]
    order = order[(quality[order] > 0) | (chosen[order] > 0)]
    base = max(by_quality.raters) + 1
    return [(key // base**2, key // base % base, key % base) for key in keys[order].tolist()]


def _key(shared: Shared) -> Ints:
    """A number for each pair of scores: answer, first rater, second rater."""
    base = max(shared.raters) + 1
    return (shared.candidate * base + shared.first_rater) * base + shared.second_rater


def _both(scores: Scores, candidate: int, one: int, other: int, measure: str) -> tuple[int | None, int | None]:
    return _value(scores, one, candidate, measure), _value(scores, other, candidate, measure)


def _value(scores: Scores, rater_id: int, candidate: int, measure: str) -> int | None:
    given = scores.given[rater_id]
    value = int(given.of(measure)[np.searchsorted(given.candidate, candidate)])
    return None if value == MISSING else value
