"""Samples with all that pairing and freezing need, walked in batches. Discarded ones are left out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from sqlite_utils import Database

from storage.candidates import candidates_of
from storage.records import METRICS, Candidate, Judgement, Rater, Score
from storage.rows import BLANKS, rows
from storage.scores import get_judgements, list_raters


def _in_use(table: str) -> str:
    return f"NOT EXISTS (SELECT 1 FROM discards d WHERE d.sample_id = {table}.sample_id)"


def walk_scored(db: Database, batch: int = 500) -> Iterator[tuple[int, list[Candidate], list[Judgement]]]:
    """(sample id, candidates, judgements) of every sample that has candidates, in the order of ids."""
    after = 0
    while True:
        ids = [
            row["sample_id"]
            for row in rows(
                db,
                f"SELECT DISTINCT sample_id FROM candidates c WHERE sample_id > ? AND {_in_use('c')}"
                " ORDER BY sample_id LIMIT ?",
                [after, batch],
            )
        ]
        if not ids:
            return
        candidates, judgements = candidates_of(db, ids), get_judgements(db, ids)
        for sample_id in ids:
            yield sample_id, candidates[sample_id], judgements[sample_id]
        after = ids[-1]


def walk_judged(db: Database) -> Iterator[tuple[int, list[Judgement]]]:
    """(sample id, its ok judgements with their scores), in the order of ids; one query for all samples.

    The judgements come without what they were read from (replies, costs, checklists): freezing asks for scores
    alone, and replies are most of the bytes.
    """
    raters = {rater.id: rater for rater in list_raters(db)}
    found = db.conn.execute(
        f"""SELECT j.sample_id, j.id, j.rater_id, j.created_at, s.candidate_id, {", ".join(METRICS)}
            FROM judgements j LEFT JOIN scores s ON s.judgement_id = j.id
            WHERE j.state = 'ok' AND {_in_use("j")} ORDER BY j.sample_id, j.id, s.candidate_id"""
    )
    for sample_id, rows_of_sample in groupby(found, key=lambda row: row[0]):
        yield (
            int(sample_id),
            [
                _judgement(raters, sample_id, list(scores))
                for _, scores in groupby(rows_of_sample, key=lambda row: row[1])
            ],
        )


class Counted(NamedTuple):
    """An ok judgement in numbers.

    Attributes:
        complete: how many candidates it scores on all five metrics.
        answers: how many of these have a text.
    """

    rater: Rater
    complete: int
    answers: int


def walk_counted(db: Database) -> Iterator[tuple[int, list[Counted]]]:
    """`walk_judged` for whoever only counts: (sample id, its ok judgements in the order of their ids)."""
    raters = {rater.id: rater for rater in list_raters(db)}
    complete = " AND ".join(f"s.{metric} IS NOT NULL" for metric in METRICS)
    found = db.conn.execute(
        f"""SELECT j.sample_id, j.rater_id, count(s.candidate_id), coalesce(sum(trim(c.text, ?) <> ''), 0)
            FROM judgements j LEFT JOIN scores s ON s.judgement_id = j.id AND {complete}
            LEFT JOIN candidates c ON c.id = s.candidate_id
            WHERE j.state = 'ok' AND {_in_use("j")} GROUP BY j.sample_id, j.id ORDER BY j.sample_id, j.id""",
        [BLANKS],
    )
    for sample_id, counts in groupby(found, key=lambda row: row[0]):
        yield int(sample_id), [Counted(raters[rater_id], *numbers) for _, rater_id, *numbers in counts]


def _judgement(raters: dict[int, Rater], sample_id: int, scores: list[tuple[Any, ...]]) -> Judgement:
    _, judgement_id, rater_id, created_at, *_ = scores[0]
    return Judgement(
        id=judgement_id,
        rater=raters[rater_id],
        sample_id=sample_id,
        job_id=None,
        state="ok",
        raw="",
        reason="",
        tokens_in=0,
        tokens_out=0,
        cost=0.0,
        created_at=created_at,
        scores=tuple(Score(*row[4:]) for row in scores if row[4] is not None),
    )


def texts_of_candidates(db: Database) -> dict[int, str]:
    """The text of every candidate, by id; one query."""
    return dict(db.conn.execute("SELECT id, text FROM candidates"))
