"""A look through the rows of an import before anything is written: how many there are, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlite_utils import Database

from storage.imports.incoming import Broken, Incoming, lacking
from storage.imports.reading import TOLD, Import, in_batches, incoming, pictures_in
from storage.rows import marks


@dataclass
class Survey:
    """What an import would do, as far as can be told without opening images.

    Attributes:
        rows: all, the broken ones included.
        known: of them are there already, or come twice.
        first: the first that are not broken, with their places.
        broken, broken_number: as in `Report`.
    """

    rows: int = 0
    known: int = 0
    images: int = 0
    candidates: int = 0
    pairs: int = 0
    ratings: int = 0
    first: list[tuple[str, Incoming]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    broken_number: int = 0


def survey(
    what: Import, db: Database | None = None, most: int = 5, watch: Callable[[int], None] | None = None
) -> Survey:
    """Look through all rows; nothing is written.

    Args:
        db: to see what is there already; None leaves `known` at 0.
        most: samples to bring back whole.
        watch: is told now and then how many rows have been looked at; may raise to end it.

    Raises:
        UserError: as `import_rows`.
    """
    what.check()
    found, seen = Survey(), set[str]()
    for batch in in_batches(incoming(what)):
        good: list[str] = []
        for place, one in batch:
            found.rows += 1
            why = str(one) if isinstance(one, Broken) else next(filter(None, map(lacking, pictures_in(one))), "")
            if why or isinstance(one, Broken):
                found.broken_number += 1
                if len(found.broken) < TOLD:
                    found.broken[place] = why
                continue
            if len(found.first) < most:
                found.first.append((place, one))
            found.images += len(pictures_in(one))
            found.candidates += len(one.answers)
            found.pairs += len(one.preferred)
            found.ratings += sum(bool(answer.scores) for answer in one.answers)
            found.known += one.id in seen
            if one.id not in seen:
                seen.add(one.id)
                good.append(one.id)
        if db is not None:
            found.known += _known(db, what.name, good)
        if watch:
            watch(found.rows)
    return found


def _known(db: Database, source: str, ids: Sequence[str]) -> int:
    asked = f"SELECT count(*) FROM samples WHERE source = ? AND source_id IN ({marks(ids)})"
    return int(db.conn.execute(asked, [source, *ids]).fetchone()[0]) if ids else 0
