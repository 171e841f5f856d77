"""Candidates: the answers to a sample, by models and by people."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlite_utils import Database

from storage.errors import NotFound
from storage.records import Candidate, now
from storage.rows import Row, count, marks, one, rows, with_json


def add_generated(
    db: Database,
    *,
    job_id: int,
    sample_id: int,
    number: int,
    text: str,
    model: str,
    adapter_id: int | None = None,
    settings: Mapping[str, Any] | None = None,
    tokens: int | None = None,
    finish: str | None = None,
) -> None:
    """Store an answer of a `generate` job; the same job, sample and number is stored once."""
    db.conn.execute(
        "INSERT OR IGNORE INTO candidates"
        " (sample_id, text, model, adapter_id, job_id, number, settings, tokens, finish, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            sample_id,
            text,
            model,
            adapter_id,
            job_id,
            number,
            json.dumps(settings or {}, ensure_ascii=False),
            tokens,
            finish,
            now(),
        ],
    )


def get_candidate(db: Database, candidate_id: int) -> Candidate:
    """Raises NotFound."""
    found = one(db, "SELECT * FROM candidates WHERE id = ?", [candidate_id])
    if found is None:
        raise NotFound(f"There is no candidate {candidate_id}; reload the sample.")
    return _candidate(found)


def known_candidates(db: Database, ids: Collection[int]) -> set[int]:
    """Those of these candidates that are there."""
    found = rows(db, f"SELECT id FROM candidates WHERE id IN ({marks(list(ids))})", list(ids))
    return {row["id"] for row in found}


def candidates_of(db: Database, sample_ids: Sequence[int]) -> dict[int, list[Candidate]]:
    """The candidates of these samples, by sample, in the order of their ids."""
    found: dict[int, list[Candidate]] = {sample_id: [] for sample_id in sample_ids}
    for start in range(0, len(sample_ids), 500):
        part = list(sample_ids[start : start + 500])
        for row in rows(db, f"SELECT * FROM candidates WHERE sample_id IN ({marks(part)}) ORDER BY id", part):
            found[row["sample_id"]].append(_candidate(row))
    return found


def count_candidates(db: Database) -> int:
    return count(db, "SELECT count(*) FROM candidates")


def answered_by(db: Database, model: str, adapter_id: int | None) -> set[int]:
    """The samples that have an answer of this model (and adapter) already."""
    return {
        row["sample_id"]
        for row in rows(
            db,
            "SELECT DISTINCT sample_id FROM candidates WHERE model = ? AND adapter_id IS ?",
            [model, adapter_id],
        )
    }


def _candidate(row: Row) -> Candidate:
    return Candidate(**with_json(row, "settings"))
