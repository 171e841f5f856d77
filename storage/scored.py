"""Samples with all that pairing needs, walked in batches."""

from __future__ import annotations

from collections.abc import Iterator

from sqlite_utils import Database

from storage.candidates import candidates_of
from storage.records import Candidate, Judgement
from storage.rows import rows
from storage.scores import get_judgements


def walk_scored(db: Database, batch: int = 500) -> Iterator[tuple[int, list[Candidate], list[Judgement]]]:
    """(sample id, candidates, judgements) of every sample that has candidates, in the order of ids."""
    after = 0
    while True:
        ids = [
            row["sample_id"]
            for row in rows(
                db,
                "SELECT DISTINCT sample_id FROM candidates WHERE sample_id > ? ORDER BY sample_id LIMIT ?",
                [after, batch],
            )
        ]
        if not ids:
            return
        candidates, judgements = candidates_of(db, ids), get_judgements(db, ids)
        for sample_id in ids:
            yield sample_id, candidates[sample_id], judgements[sample_id]
        after = ids[-1]
