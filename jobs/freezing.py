"""Freezing a data set: the pairs, and the samples behind them with their references and scored answers.

A sample is in the set if it has a pair there, or if the judgement that decides for it scores at least one
candidate completely. Its answers are those that this judgement scored on all five metrics: the scales of two
raters are not mixed within a sample. The decision is `jobs.pairing`'s; a sample of which no rater has scored two
candidates is decided by who has scored one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from jobs.pairing import ScoredSample, deciding_judgement
from storage.database import snapshot
from storage.datasets import (
    PairSources,
    check_freeze,
    freeze_pairs,
    pairs_to_freeze,
    samples_of_pairs,
    samples_to_freeze,
    samples_with_reference,
    sources_of_pairs,
)
from storage.records import METRICS, Dataset, Judgement, PairStatus, Rater, Score
from storage.rows import Row
from storage.scored import Counted, texts_of_candidates, walk_counted, walk_judged

PEOPLE_FIRST = "people before judges"

Judge = tuple[str, str, str]


@dataclass(frozen=True)
class Contents:
    """What a data set holds, in numbers.

    Attributes:
        pairs: preferences.
        samples: those with scored answers.
        answers: the scored ones that are not empty.
        references: samples with a reference.
    """

    pairs: int
    samples: int
    answers: int
    references: int

    def __str__(self) -> str:
        return (
            f"{_many(self.pairs, 'pair')}, {_many(self.samples, 'sample')} with "
            f"{_many(self.answers, 'scored answer')}, {_many(self.references, 'reference')}"
        )


def freeze(
    db: Database,
    user: str,
    name: str,
    statuses: Sequence[PairStatus] = ("accepted",),
    heldout_percent: float = 10.0,
    seed: int = 0,
    raters: str = PEOPLE_FIRST,
    judge: Judge | None = None,
) -> Dataset:
    """Freeze the pairs of these statuses, and the samples behind them, under a name.

    Everything is read at one moment; who writes meanwhile waits for the rows to be stored, not for the reading.

    Args:
        raters: whose scores count: "people before judges", "people" or "judges".
        judge: the one judge (name, version, mode) whose scores count among judges'; None: any.

    Raises:
        UserError: the name is empty or too long; the percentage is out of range; there are no such pairs; all
            pairs share their images, so that none can be held out.
        Conflict: the name is taken, or what is to be frozen was deleted meanwhile.
    """
    name = check_freeze(db, name, statuses, heldout_percent)
    with snapshot(db):
        pairs = pairs_to_freeze(db, statuses)
        sources = sources_of_pairs(db, statuses)
        decided = dict(_decided(db, raters, judge))
        ids = {row["sample_id"] for row in pairs} | decided.keys()
        texts = texts_of_candidates(db)
        samples = [sample_row(row, decided.get(row["sample_id"]), texts) for row in samples_to_freeze(db, ids)]
    rule = {
        "statuses": list(statuses),
        "heldout_percent": heldout_percent,
        "seed": seed,
        "whose_scores": raters,
        "judge": list(judge) if judge else None,
        **sources_told(sources, decided.values()),
    }
    return freeze_pairs(db, user, name, pairs, samples, rule, heldout_percent, seed)


def contents(
    db: Database,
    statuses: Sequence[PairStatus] = ("accepted",),
    raters: str = PEOPLE_FIRST,
    judge: Judge | None = None,
) -> Contents:
    """What a data set would hold if it were frozen now; SQLite counts the scores, and no texts are read."""
    answers: dict[int, int] = {}
    deciding: dict[tuple[tuple[int, int], ...], int | None] = {}
    with snapshot(db):
        paired = samples_of_pairs(db, statuses)
        for sample_id, counted in walk_counted(db):
            # What decides depends on raters and numbers alone: few kinds of samples, however many samples.
            kind = tuple((one.rater.id, one.complete) for one in counted)
            if kind not in deciding:
                deciding[kind] = _decides(counted, raters, judge)
            if (found := deciding[kind]) is not None:
                answers[sample_id] = counted[found].answers
        referenced = samples_with_reference(db)
    return Contents(
        pairs=len(paired),
        samples=sum(map(bool, answers.values())),
        answers=sum(answers.values()),
        references=len(referenced & {*paired, *answers}),
    )


def _decides(counted: Sequence[Counted], raters: str, judge: Judge | None) -> int | None:
    """Which of a sample's judgements decides, by its place; None where none does."""
    score = Score(0, *(0 for _ in METRICS))
    judgements = [
        Judgement(
            id=place,
            rater=one.rater,
            sample_id=0,
            job_id=None,
            state="ok",
            raw="",
            reason="",
            tokens_in=0,
            tokens_out=0,
            cost=0.0,
            created_at="",
            scores=(score,) * one.complete,
        )
        for place, one in enumerate(counted)
    ]
    found = scores_for(ScoredSample(0, (), judgements), raters, judge)
    return None if found is None else found.id


def contents_of(dataset: Dataset) -> Contents | None:
    """What a frozen data set holds; None for one that was frozen before answers were kept."""
    counts = dataset.counts
    if "scored_answers" not in counts:
        return None
    pairs = counts["train"] + counts["heldout"]
    return Contents(pairs, counts["scored_samples"], counts["scored_answers"], counts["references"])


def scores_for(sample: ScoredSample, raters: str, judge: Judge | None = None) -> Judgement | None:
    """The judgement whose scores a sample's answers carry: the one that its pair would stand on, if any."""
    return deciding_judgement(sample, raters, judge) or deciding_judgement(sample, raters, judge, least=1)


def complete_scores(judgement: Judgement) -> list[dict[str, int]]:
    """{candidate_id, helpfulness … verbosity} of all candidates scored on all five, by candidate."""
    return [
        {"candidate_id": score.candidate_id, **{metric: score.value(metric) or 0 for metric in METRICS}}
        for score in sorted(judgement.scores, key=lambda score: score.candidate_id)
        if score.complete
    ]


def sample_row(row: Row, judgement: Judgement | None, texts: dict[int, str]) -> Row:
    """A sample as a data set keeps it (`storage.records.DatasetRow`)."""
    answers: list[dict[str, Any]] = []
    if judgement is not None:
        answers = [{**score, "text": texts[score["candidate_id"]]} for score in complete_scores(judgement)]
    return {**row, "rater": _named(judgement.rater) if judgement else None, "answers": answers}


def sources_told(sources: PairSources, judgements: Any) -> dict[str, Any]:
    """Who judged, with how many judgements, by which rubrics; and the rules that made the pairs.

    A person who made pairs by hand stands among the raters with a number of pairs instead.
    """
    found = {**sources.judgements, **{judgement.id: judgement.rater for judgement in judgements}}
    counted = Counter(found.values())
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0].id))
    raters: list[dict[str, Any]] = [{**_named(rater), "judgements": number} for rater, number in ordered]
    for (user, origin), number in sources.by_hand.items():
        made = {"hand": "pairs by hand", "vote": "pairs by vote"}[origin]
        raters.append({"kind": "person", "name": user, "version": "", "mode": made, "pairs": number})
    return {
        "raters": raters,
        "rubrics": sorted({rater.version for rater in counted if rater.kind == "judge" and rater.version}),
        "pair_rules": [{"rule": rule, "pairs": number} for rule, number in sources.rules],
    }


def _decided(db: Database, raters: str, judge: Judge | None) -> Iterator[tuple[int, Judgement]]:
    """Each sample that has at least one completely scored candidate, with the judgement that decides for it."""
    for sample_id, judgements in walk_judged(db):
        judgement = scores_for(ScoredSample(sample_id, (), judgements), raters, judge)
        if judgement is not None:
            yield sample_id, judgement


def _named(rater: Rater) -> dict[str, str]:
    return {"kind": rater.kind, "name": rater.name, "version": rater.version, "mode": rater.mode}


def _many(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
