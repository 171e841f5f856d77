"""Scores → pairs by rule (pure). The paper's rule, paper.md section 3, is the default.

quality = helpfulness + correctness + coherence, 0 to 12. A sample whose max − min is below the margin makes no
pair. Chosen is the highest quality, the first on ties; rejected is drawn at random, by seed, among those that
are at least the margin below it. One pair a sample; ties never make a pair.

Beyond the paper: weights of the metrics, several raters put together by mean or majority, all pairs above the
margin in place of one, and a cap on how far the lengths of the two answers may differ (judges like long answers).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from storage.pairs import NewPair
from storage.records import HIGHEST, METRICS, Candidate, Judgement, Rater, Score
from storage.scores import latest_ok

QUALITY = ("helpfulness", "correctness", "coherence")


class PairRule(BaseModel):
    """The rule's settings; stored with every pair that it makes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics: tuple[str, ...] = Field(QUALITY, title="Quality is the sum of")
    margin: int = Field(2, ge=1, le=20, title="Margin", description="least difference of quality")
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed", description="draws the rejected candidate")
    raters: Literal["people before judges", "people", "judges"] = Field(
        "people before judges", title="Whose scores", description="the latest complete ones of a sample"
    )
    judge: tuple[str, str, str] | None = Field(
        None, title="Which judge", description="name, version, mode; none: whichever judged last"
    )
    weights: dict[str, int] = Field(
        {}, title="Weights", description="of the metrics, 1 to 9; one that is not named counts once"
    )
    several: Literal["latest", "mean", "majority"] = Field(
        "latest", title="Several raters", description="who decides where more than one has scored a sample"
    )
    keep: Literal["one", "all"] = Field(
        "one", title="Pairs of a sample", description="one, or all above the margin"
    )
    longest_difference: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        title="Cap on length",
        description="characters by which the two answers may differ",
    )

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in METRICS]
        if not value or unknown or len(set(value)) != len(value):
            raise ValueError(f"choose one or more of {', '.join(METRICS)}, each once")
        return value

    @field_validator("weights")
    @classmethod
    def _weighty(cls, value: dict[str, int]) -> dict[str, int]:
        for name, weight in value.items():
            if name not in METRICS:
                raise ValueError(f"{name!r} is no metric; use {', '.join(METRICS)}")
            if not 1 <= weight <= 9:
                raise ValueError(f"{name} = {weight}: give a whole number from 1 to 9, or leave the metric out")
        # Those that count once say nothing: the same rule is stored the same way.
        return {name: value[name] for name in METRICS if value.get(name, 1) != 1}

    def stored(self) -> dict[str, Any]:
        """As it stands with its pairs; what is new and not made use of is left out, as earlier versions did."""
        told = self.model_dump(mode="json")
        plain: dict[str, Any] = {"weights": {}, "several": "latest", "keep": "one", "longest_difference": None}
        return {name: value for name, value in told.items() if name not in plain or value != plain[name]}

    @property
    def highest(self) -> int:
        """The largest quality that a candidate can have."""
        return HIGHEST * sum(self.weights.get(name, 1) for name in self.metrics)

    def quality(self, score: Score) -> int:
        """The weighted sum of its metrics; the score must be complete."""
        return sum(self.weights.get(name, 1) * (score.value(name) or 0) for name in self.metrics)


@dataclass(frozen=True)
class ScoredSample:
    """A sample's candidates and all its judgements, as storage hands them out."""

    sample_id: int
    candidates: Sequence[Candidate]
    judgements: Sequence[Judgement]


@dataclass(frozen=True)
class Preview:
    """What a rule would make, before it is stored.

    Attributes:
        pairs: the proposals, in the order of the samples.
        spreads: max − min of quality → number of samples, for all that have two scored candidates.
        unscored: samples with fewer than two scored candidates.
        too_close: samples whose spread is below the margin.
        too_long: samples that only the cap on length leaves without a pair.
        chosen_characters, rejected_characters: mean lengths, 0 without pairs.
    """

    pairs: tuple[NewPair, ...]
    spreads: dict[int, int]
    unscored: int
    too_close: int
    too_long: int
    chosen_characters: float
    rejected_characters: float


def usable_judgements(
    sample: ScoredSample, raters: str, judge: tuple[str, str, str] | None = None, least: int = 2
) -> list[Judgement]:
    """Whose scores count for this sample: each rater's latest, of those that score at least `least` candidates
    completely, of people or of judges, never of both: their scales are not mixed within a sample.

    Args:
        judge: the one judge whose scores count among judges'; None: any.
    """
    kinds = {"people before judges": ("person", "judge"), "people": ("person",), "judges": ("judge",)}[raters]
    for kind in kinds:
        usable = [
            judgement
            for judgement in latest_ok(sample.judgements)
            if judgement.rater.kind == kind and sum(score.complete for score in judgement.scores) >= least
            if kind == "person" or judge in (None, _name(judgement.rater))
        ]
        if usable:
            return usable
    return []


def deciding_judgement(
    sample: ScoredSample, raters: str, judge: tuple[str, str, str] | None = None, least: int = 2
) -> Judgement | None:
    """The one judgement that decides where one does: the latest of those that count.

    A person who has scored only part of the candidates decides nothing yet: the scales of two raters are not
    mixed within a sample.
    """
    return max(usable_judgements(sample, raters, judge, least), key=lambda judgement: judgement.id, default=None)


def _name(rater: Rater) -> tuple[str, str, str]:
    return rater.name, rater.version, rater.mode


@dataclass(frozen=True)
class _Ranking:
    """A sample's candidates with their qualities, and who is better than whom by the margin.

    Attributes:
        qualities: candidate → mean over the raters, by candidate.
        beaten: candidate → those that it beats, by candidate.
        judgements: those that it stands on.
    """

    qualities: dict[int, float]
    beaten: dict[int, list[int]]
    judgements: tuple[int, ...]


def _rank(sample: ScoredSample, rule: PairRule, texts: dict[int, str]) -> _Ranking | None:
    """None where fewer than two candidates are scored by all raters that count."""
    judgements = usable_judgements(sample, rule.raters, rule.judge)
    if rule.several == "latest":
        judgements = [max(judgements, key=lambda judgement: judgement.id)] if judgements else []
    if not judgements:
        return None
    given = [
        {score.candidate_id: rule.quality(score) for score in judgement.scores if score.complete}
        for judgement in judgements
    ]
    # An answer without a text has nothing to learn from.
    shared = sorted(name for name in given[0] if texts.get(name) and all(name in one for one in given))
    if len(shared) < 2:
        return None
    qualities = {name: mean(one[name] for one in given) for name in shared}

    def beats(better: int, worse: int) -> bool:
        if texts[better] == texts[worse]:
            return False
        if rule.several == "majority":
            votes = sum(one[better] - one[worse] >= rule.margin for one in given)
            return 2 * votes > len(given)
        return qualities[better] - qualities[worse] >= rule.margin

    beaten = {better: [worse for worse in shared if beats(better, worse)] for better in shared}
    return _Ranking(qualities, beaten, tuple(judgement.id for judgement in judgements))


def pairs_of(sample: ScoredSample, rule: PairRule) -> tuple[list[NewPair], float | None, bool]:
    """The sample's pairs; its spread of quality, None where too little is scored; whether the cap alone stood in
    the way of a pair."""
    texts = {candidate.id: candidate.text.strip() for candidate in sample.candidates}
    ranking = _rank(sample, rule, texts)
    if ranking is None:
        return [], None, False
    qualities = ranking.qualities
    best = max(qualities.values())
    spread = best - min(qualities.values())

    def fits(one: int, other: int) -> bool:
        cap = rule.longest_difference
        return cap is None or abs(len(texts[one]) - len(texts[other])) <= cap

    def pair(chosen: int, rejected: int) -> NewPair:
        return NewPair(
            sample.sample_id, chosen, rejected, qualities[chosen], qualities[rejected], ranking.judgements
        )

    fitting = {one: [other for other in worse if fits(one, other)] for one, worse in ranking.beaten.items()}
    if rule.keep == "all":
        found = [pair(one, other) for one, worse in fitting.items() for other in worse]
        return found, spread, not found and any(ranking.beaten.values())
    first = next(name for name, value in qualities.items() if value == best)
    if not fitting[first]:  # the spread is below the margin, one answer got two scores, or none is alike in length
        return [], spread, bool(ranking.beaten[first])
    # Seeded by sample, so that a pair does not depend on which other samples are there.
    rejected = random.Random(f"{rule.seed}:{sample.sample_id}").choice(fitting[first])
    return [pair(first, rejected)], spread, False


def preview(samples: Iterable[ScoredSample], rule: PairRule) -> Preview:
    """Apply the rule to all samples."""
    pairs: list[NewPair] = []
    spreads: Counter[int] = Counter()
    unscored = too_close = too_long = 0
    lengths: list[tuple[int, int]] = []
    for sample in samples:
        found, spread, capped = pairs_of(sample, rule)
        if spread is None:
            unscored += 1
            continue
        spreads[int(spread)] += 1
        if not found:
            too_long += capped
            too_close += not capped
            continue
        pairs += found
        texts = {candidate.id: len(candidate.text) for candidate in sample.candidates}
        lengths += [(texts[pair.chosen_id], texts[pair.rejected_id]) for pair in found]
    return Preview(
        pairs=tuple(pairs),
        spreads=dict(sorted(spreads.items())),
        unscored=unscored,
        too_close=too_close,
        too_long=too_long,
        chosen_characters=mean(length for length, _ in lengths) if lengths else 0.0,
        rejected_characters=mean(length for _, length in lengths) if lengths else 0.0,
    )
