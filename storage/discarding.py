"""Samples that are of no use are discarded: they stay in the database, and in no list, queue, rule or data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from storage import history
from storage.database import immediate
from storage.records import now
from storage.remarks import need_sample
from storage.rows import marks, one, rows


@dataclass(frozen=True)
class Discarded:
    """Who discarded a sample, and when."""

    user: str
    created_at: str


def discard(db: Database, user: str, sample_id: int) -> bool:
    """Discard a sample; undoable. Returns False where somebody did before. Raises NotFound."""
    with immediate(db):
        need_sample(db, sample_id)
        if discarded(db, sample_id) is not None:
            return False
        with history.action(db, user, f"sample {sample_id} discarded", sample_id) as change:
            change.insert("discards", {"sample_id": sample_id, "user": user, "created_at": now()})
    return True


def keep(db: Database, user: str, sample_id: int) -> bool:
    """Take a discarded sample back, whoever discarded it; undoable. Returns False where nobody had.

    Raises NotFound.
    """
    with immediate(db):
        need_sample(db, sample_id)
        if discarded(db, sample_id) is None:
            return False
        with history.action(db, user, f"sample {sample_id} taken back", sample_id) as change:
            change.delete("discards", {"sample_id": sample_id})
    return True


def discarded(db: Database, sample_id: int) -> Discarded | None:
    """Who discarded the sample; None where it is in use."""
    found = one(db, "SELECT user, created_at FROM discards WHERE sample_id = ?", [sample_id])
    return None if found is None else Discarded(**found)


def discarded_among(db: Database, sample_ids: Sequence[int]) -> set[int]:
    """Those of these samples that are discarded."""
    found: set[int] = set()
    for start in range(0, len(sample_ids), 500):
        part = list(sample_ids[start : start + 500])
        told = rows(db, f"SELECT sample_id FROM discards WHERE sample_id IN ({marks(part)})", part)
        found.update(row["sample_id"] for row in told)
    return found
