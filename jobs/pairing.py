"""Scores → pairs by the paper's rule (pure). paper.md, section 3.

quality = helpfulness + correctness + coherence, 0 to 12. A sample whose max − min is below the margin makes no
pair. Chosen is the highest quality, the first on ties; rejected is drawn at random, by seed, among those that
are at least the margin below it. One pair a sample; ties never make a pair.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from storage.pairs import NewPair
from storage.records import METRICS, Candidate, Judgement, Rater, Score
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

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in METRICS]
        if not value or unknown or len(set(value)) != len(value):
            raise ValueError(f"choose one or more of {', '.join(METRICS)}, each once")
        return value


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
        chosen_characters, rejected_characters: mean lengths, 0 without pairs.
    """

    pairs: tuple[NewPair, ...]
    spreads: dict[int, int]
    unscored: int
    too_close: int
    chosen_characters: float
    rejected_characters: float


def quality(score: Score, metrics: Sequence[str] = QUALITY) -> int:
    """The sum of these metrics; the score must be complete."""
    return sum(score.value(metric) or 0 for metric in metrics)


def deciding_judgement(
    sample: ScoredSample, raters: str, judge: tuple[str, str, str] | None = None, least: int = 2
) -> Judgement | None:
    """Whose scores count for this sample: the latest that scores at least two candidates completely.

    Args:
        judge: the one judge whose scores count among judges'; None: any.
        least: how many candidates it must score; a pair needs two.

    A person who has scored only part of the candidates decides nothing yet: the scales of two raters are not
    mixed within a sample.
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
            return max(usable, key=lambda judgement: judgement.id)
    return None


def _name(rater: Rater) -> tuple[str, str, str]:
    return rater.name, rater.version, rater.mode


def pair_of(sample: ScoredSample, rule: PairRule) -> tuple[NewPair | None, int | None]:
    """The sample's pair, or None; and its spread of quality, or None where too little is scored."""
    judgement = deciding_judgement(sample, rule.raters, rule.judge)
    if judgement is None:
        return None, None
    texts = {candidate.id: candidate.text.strip() for candidate in sample.candidates}
    ranked = [
        (score.candidate_id, quality(score, rule.metrics))
        for score in sorted(judgement.scores, key=lambda score: score.candidate_id)
        if score.complete and texts.get(score.candidate_id)  # an empty answer has nothing to learn from
    ]
    if len(ranked) < 2:
        return None, None
    best = max(value for _, value in ranked)
    spread = best - min(value for _, value in ranked)
    chosen_id = next(candidate_id for candidate_id, value in ranked if value == best)
    worse = [
        (candidate_id, value)
        for candidate_id, value in ranked
        if value <= best - rule.margin and texts[candidate_id] != texts[chosen_id]
    ]
    if not worse:  # the spread is below the margin, or one answer got two scores
        return None, spread
    # Seeded by sample, so that a pair does not depend on which other samples are there.
    rejected_id, low = random.Random(f"{rule.seed}:{sample.sample_id}").choice(worse)
    return NewPair(sample.sample_id, chosen_id, rejected_id, best, low, (judgement.id,)), spread


def preview(samples: Iterable[ScoredSample], rule: PairRule) -> Preview:
    """Apply the rule to all samples."""
    pairs: list[NewPair] = []
    spreads: Counter[int] = Counter()
    unscored = too_close = 0
    lengths: list[tuple[int, int]] = []
    for sample in samples:
        pair, spread = pair_of(sample, rule)
        if spread is None:
            unscored += 1
            continue
        spreads[spread] += 1
        if pair is None:
            too_close += 1
            continue
        pairs.append(pair)
        texts = {candidate.id: len(candidate.text) for candidate in sample.candidates}
        lengths.append((texts[pair.chosen_id], texts[pair.rejected_id]))
    return Preview(
        pairs=tuple(pairs),
        spreads=dict(sorted(spreads.items())),
        unscored=unscored,
        too_close=too_close,
        chosen_characters=mean(length for length, _ in lengths) if lengths else 0.0,
        rejected_characters=mean(length for _, length in lengths) if lengths else 0.0,
    )
