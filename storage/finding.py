"""Finding samples: pages in an order, neighbours, counts. A page costs the same among a million.

Nothing here reads more of a sample than its row of `sample_facts` (see `storage.facts`) until it is listed; which
index leads is `storage.selecting`'s to find. What would have to be counted through is estimated beyond `COUNTED`.
"""

from __future__ import annotations

from dataclasses import replace

from sqlite_utils import Database

from storage.facts import catch_up, freshen
from storage.filters import NUMBERS, ORDERS, PROBLEMS, STATES, SampleFilter
from storage.records import Sample
from storage.rows import count, rows
from storage.samples import get_samples
from storage.selecting import COUNTED, Count, Selection, count_of, ids_in_order, place_of, samples_known

__all__ = [
    "COUNTED",
    "NUMBERS",
    "ORDERS",
    "PROBLEMS",
    "STATES",
    "Count",
    "SampleFilter",
    "count_problems",
    "count_samples",
    "facets",
    "find_ids",
    "find_samples",
    "is_selected",
    "neighbour",
    "page_start",
    "position_of",
    "sample_ids",
    "total",
]


def find_samples(db: Database, where: SampleFilter, after: int = 0, limit: int = 50) -> list[Sample]:
    """A keyset page, in the filter's order: the samples after this one; 0 for the first page."""
    found = find_ids(db, where, after, limit)
    place = {sample_id: number for number, sample_id in enumerate(found)}
    return sorted(get_samples(db, found), key=lambda sample: place[sample.id])


def find_ids(
    db: Database, where: SampleFilter, after: int = 0, limit: int = 50, forward: bool = True
) -> list[int]:
    """Ids in the filter's order after (or before, nearest first) a sample; 0 for the beginning (or end)."""
    freshen(db)
    start = place_of(db, where, after) if after else None
    if after and start is None:  # it has no place in this order
        return []
    return ids_in_order(db, Selection(where), start, limit, forward)


def neighbour(db: Database, where: SampleFilter, sample_id: int, forward: bool) -> int | None:
    """The next or previous sample of the filter, or None at its end."""
    found = find_ids(db, where, sample_id, 1, forward)
    return found[0] if found else None


def page_start(db: Database, where: SampleFilter, sample_id: int, size: int) -> int:
    """The `after` of a page on which this sample stands; far down the list the page begins half of it before."""
    before = position_of(db, where, sample_id)
    back = before.number % size if before.kind == "exact" else size // 2
    found = find_ids(db, where, sample_id, back + 1, forward=False)
    return found[back] if len(found) > back else 0


def is_selected(db: Database, where: SampleFilter, sample_id: int) -> bool:
    """Whether the filter selects this sample."""
    freshen(db)
    condition, values = Selection(where).condition(db)
    sql = f"SELECT EXISTS (SELECT 1 FROM sample_facts f WHERE f.sample_id = ? AND {condition})"
    return bool(count(db, sql, [sample_id, *values]))


def sample_ids(db: Database, where: SampleFilter) -> list[int]:
    """All samples that the filter selects, by id; everything is caught up with first."""
    if not db.conn.in_transaction:
        catch_up(db)
    return sorted(ids_in_order(db, Selection(where), None))


def total(db: Database, where: SampleFilter, most: int = COUNTED) -> Count:
    """How many samples the filter selects; estimated where it is more than `most`."""
    if not where.as_query():
        return Count(count_samples(db, where))
    freshen(db)
    return count_of(db, Selection(where), most=most)


def count_samples(db: Database, where: SampleFilter) -> int:
    """How many samples the filter selects, counted to the last."""
    if not where.as_query():
        return samples_known(db) - count(db, "SELECT count(*) FROM discards")
    freshen(db)
    return len(ids_in_order(db, Selection(where), None))


def position_of(db: Database, where: SampleFilter, sample_id: int) -> Count:
    """How many samples of the filter stand before this one."""
    freshen(db)
    before = place_of(db, where, sample_id)
    return Count(0) if before is None else count_of(db, Selection(where), before)


def count_problems(db: Database, where: SampleFilter) -> dict[str, int]:
    """How many samples each state of `PROBLEMS` selects beside the filter's other fields; only those above 0."""
    found = {state: total(db, replace(where, state=state)).number for state in PROBLEMS}
    return {state: number for state, number in found.items() if number}


def facets(db: Database) -> dict[str, list[str]]:
    """The values that the filters `source` and `split` can take; one index lookup a value."""
    found = {}
    for column in ("source", "split"):
        values = rows(
            db,
            f"""WITH RECURSIVE known(value) AS (
                    SELECT min({column}) FROM sample_facts
                    UNION ALL
                    SELECT (SELECT min({column}) FROM sample_facts WHERE {column} > known.value)
                    FROM known WHERE known.value IS NOT NULL)
                SELECT value FROM known WHERE value IS NOT NULL""",
        )
        found[column] = [row["value"] for row in values]
    return found
