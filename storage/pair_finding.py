"""Which pairs a list shows: by status, origin, person, words, sample; keyset pages in both directions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from storage.pairs import list_pairs
from storage.records import PairStatus, PairView
from storage.rows import count, rows

#: where a pair comes from → what selects it. What came with data is nobody's hand here, whatever was done since.
ORIGINS: dict[str, str] = {
    "rule": "p.origin = 'rule'",
    "hand": "p.origin = 'hand' AND p.imported IS NULL",
    "vote": "p.origin = 'vote'",
    "imported": "p.imported IS NOT NULL",
}


@dataclass(frozen=True)
class PairFilter:
    """What the Pairs page can ask for; a field that says nothing leaves nothing out.

    Attributes:
        origin: one of `ORIGINS`.
        user: the person who made it, or turned it round last.
        q: words; each stands in the question, the chosen or the rejected answer, whatever its case.
        ids: these alone.
    """

    status: PairStatus | None = None
    origin: str = ""
    user: str = ""
    q: str = ""
    sample: int | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PairPage:
    """A page of the list.

    Attributes:
        before: the id before which the previous page ends; None on the first page.
        after: the id after which the next page starts; None on the last page.
    """

    views: Sequence[PairView]
    before: int | None
    after: int | None


def find_pairs(
    db: Database, where: PairFilter, after: int = 0, before: int | None = None, size: int = 25, viewer: str = ""
) -> PairPage:
    """The pairs after an id, or the last ones before one, in the order of their ids.

    Args:
        viewer: see `storage.pairs.list_pairs`.
    """
    source, values = _selected(db, where)
    if before is not None:
        found = rows(db, f"SELECT p.id {source} AND p.id < ? ORDER BY p.id DESC LIMIT ?", [*values, before, size])
        ids = [row["id"] for row in reversed(found)]
    else:
        found = rows(db, f"SELECT p.id {source} AND p.id > ? ORDER BY p.id LIMIT ?", [*values, after, size])
        ids = [row["id"] for row in found]
    if not ids:
        return PairPage((), None, None)
    earlier = rows(db, f"SELECT 1 {source} AND p.id < ? LIMIT 1", [*values, ids[0]])
    later = rows(db, f"SELECT 1 {source} AND p.id > ? LIMIT 1", [*values, ids[-1]])
    views = list_pairs(db, limit=size, viewer=viewer, ids=ids)
    return PairPage(views, ids[0] if earlier else None, ids[-1] if later else None)


def count_found(db: Database, where: PairFilter) -> int:
    """How many pairs the filter selects."""
    source, values = _selected(db, where)
    return count(db, f"SELECT count(*) {source}", values)


def pairs_to_decide(db: Database, where: PairFilter, status: PairStatus) -> list[int]:
    """The ids of those that the filter selects and that do not have this status yet."""
    source, values = _selected(db, where)
    found = rows(db, f"SELECT p.id {source} AND p.status <> ? ORDER BY p.id", [*values, status])
    return [row["id"] for row in found]


def people_of_pairs(db: Database) -> list[str]:
    """Everybody who has made a pair, by name."""
    return [row["user"] for row in rows(db, "SELECT DISTINCT user FROM pairs ORDER BY user")]


def _selected(db: Database, where: PairFilter) -> tuple[str, list[Any]]:
    """(FROM and WHERE, their values): what a filter selects of `pairs p`."""
    source, conditions, values = "FROM pairs p", ["1"], list[Any]()
    if where.q:
        # A walk over all texts: a tenth of a second for 10,000 pairs. The index of the samples' words would find
        # samples in whose other answers the words stand, and whoever rejects them all would reject the wrong ones.
        db.conn.create_function("has_words", -1, _has_words, deterministic=True)
        source += (
            " JOIN samples s ON s.id = p.sample_id JOIN candidates c ON c.id = p.chosen_id"
            " JOIN candidates r ON r.id = p.rejected_id"
        )
    if where.status:
        conditions.append("p.status = ?")
        values.append(where.status)
    if where.origin:
        conditions.append(ORIGINS[where.origin])
    if where.user:
        conditions.append("p.user = ?")
        values.append(where.user)
    if where.sample is not None:
        conditions.append("p.sample_id = ?")
        values.append(where.sample)
    if where.ids is not None:
        conditions.append("p.id IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(where.ids))
    if where.q:  # last: what the others leave out need not be read
        conditions.append("has_words(?, s.question, c.text, r.text)")
        values.append(where.q)
    return f"{source} WHERE {' AND '.join(conditions)}", values


def _has_words(wanted: str, *texts: str) -> bool:
    found = "\n".join(texts).casefold()
    return all(word in found for word in wanted.casefold().split())
