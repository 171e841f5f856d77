"""What the Agreement page reads: every score that counts, and the texts behind a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from storage.records import METRICS
from storage.rows import marks, one, rows

# What a row of `counting_scores` holds, in this order; the five metrics follow.
COLUMNS = ("rater_id", "sample_id", "candidate_id", "position", "characters")
MISSING = -1  # a metric that was not given, a position that there was not

Version = tuple[int | str, ...]


@dataclass(frozen=True)
class AnswerText:
    """An answer with the question that it answers."""

    candidate_id: int
    sample_id: int
    question: str
    text: str


def scores_version(db: Database) -> Version:
    """A value that differs once scores or answers have changed; cheap, by indexes and the undo log.

    A person's scores change in their place, but never without an action or its undoing.
    """
    found = one(
        db,
        """SELECT (SELECT coalesce(max(id), 0) FROM judgements) AS newest,
                  (SELECT count(*) FROM judgements) AS judgements,
                  (SELECT count(*) FROM candidates) AS candidates,
                  (SELECT coalesce(max(id), 0) FROM actions) AS action,
                  (SELECT count(*) FROM actions WHERE undone_at IS NOT NULL) AS undone""",
    )
    assert found is not None  # a query without FROM has one row
    return tuple(found.values())


def counting_scores(db: Database) -> list[tuple[int, ...]]:
    """The scores of each rater's latest judgement in state ok of each sample, by rater and candidate.

    Each row is `COLUMNS` and then the five metrics; what is not there is `MISSING`. The rule is the one of
    `storage.scores.latest_ok`. Plain tuples: there may be hundreds of thousands.
    """
    metrics = ", ".join(f"coalesce(s.{metric}, {MISSING})" for metric in METRICS)
    return db.conn.execute(
        f"""SELECT j.rater_id, j.sample_id, s.candidate_id, coalesce(s.position, {MISSING}), length(c.text),
                   {metrics}
            FROM judgements j
            JOIN scores s ON s.judgement_id = j.id
            JOIN candidates c ON c.id = s.candidate_id
            WHERE j.id IN (SELECT max(id) FROM judgements WHERE state = 'ok' GROUP BY rater_id, sample_id)
            ORDER BY j.rater_id, s.candidate_id"""
    ).fetchall()


def answer_texts(db: Database, candidate_ids: Sequence[int], most: int) -> dict[int, AnswerText]:
    """Question and answer of these candidates, each text cut to `most` characters."""
    return {
        row["candidate_id"]: AnswerText(**row)
        for row in rows(
            db,
            f"""SELECT c.id AS candidate_id, c.sample_id, substr(s.question, 1, ?) AS question,
                       substr(c.text, 1, ?) AS text
                FROM candidates c JOIN samples s ON s.id = c.sample_id WHERE c.id IN ({marks(candidate_ids)})""",
            [most, most, *candidate_ids],
        )
    }
