"""Pairs that say the same twice, or the opposite: by their texts, whoever made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlite_utils import Database

from storage.records import PairStatus
from storage.rows import marks

Trouble = Literal["contradiction", "duplicate"]
TROUBLES: tuple[Trouble, ...] = ("contradiction", "duplicate")


@dataclass(frozen=True)
class Troubles:
    """The pairs in trouble, by id; rejected ones count for nothing unless they are asked for.

    Attributes:
        contradiction: of one prompt, A over B and B over A.
        duplicate: of one prompt, A over B more than once, in the same direction.
    """

    contradiction: tuple[int, ...]
    duplicate: tuple[int, ...]

    def of(self, kind: Trouble) -> tuple[int, ...]:
        return self.contradiction if kind == "contradiction" else self.duplicate


def find_troubles(
    db: Database, among: Sequence[PairStatus] = ("proposed", "accepted"), in_use: bool = False
) -> Troubles:
    """Look through all pairs of these statuses; prompts are the same where messages and images are.

    Args:
        in_use: leave out those of discarded samples, as a data set does.
    """
    known: dict[tuple[str, str, str], list[int]] = {}
    for pair_id, messages, chosen, rejected in _texts(db, among, in_use):
        known.setdefault((messages, chosen, rejected), []).append(pair_id)
    contradictions, duplicates = set[int](), set[int]()
    for (messages, chosen, rejected), ids in known.items():
        if opposite := known.get((messages, rejected, chosen)):
            contradictions.update(ids, opposite)
        if len(ids) > 1:
            duplicates.update(ids)
    return Troubles(tuple(sorted(contradictions)), tuple(sorted(duplicates)))


def _texts(db: Database, among: Sequence[PairStatus], in_use: bool) -> Iterator[tuple[int, str, str, str]]:
    kept = "AND NOT EXISTS (SELECT 1 FROM discards d WHERE d.sample_id = p.sample_id)" if in_use else ""
    found = db.conn.execute(
        f"""SELECT p.id, s.messages, c.text, r.text FROM pairs p JOIN samples s ON s.id = p.sample_id
           JOIN candidates c ON c.id = p.chosen_id JOIN candidates r ON r.id = p.rejected_id
           WHERE p.status IN ({marks(among)}) {kept} ORDER BY p.id""",
        list(among),
    )
    for pair_id, messages, chosen, rejected in found:
        yield int(pair_id), messages, chosen.strip(), rejected.strip()
