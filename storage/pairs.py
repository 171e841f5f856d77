"""Preference pairs: proposed by rule or made by hand, then accepted, rejected or flipped by people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlite_utils import Database

from storage import history
from storage.candidates import get_candidate
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.records import Pair, PairStatus, PairView, now
from storage.rows import Row, one, rows, with_json

STATUSES: tuple[PairStatus, ...] = ("proposed", "accepted", "rejected")


@dataclass(frozen=True)
class NewPair:
    """What a rule or a person proposes; judgements are those the choice stands on."""

    sample_id: int
    chosen_id: int
    rejected_id: int
    chosen_quality: float | None = None
    rejected_quality: float | None = None
    judgement_ids: tuple[int, ...] = field(default=())


def new_among(db: Database, proposed: Iterable[NewPair]) -> list[NewPair]:
    """Those that are not there yet, neither way round: what people decided stays as they left it."""
    known = {
        frozenset((row["chosen_id"], row["rejected_id"]))
        for row in rows(db, "SELECT chosen_id, rejected_id FROM pairs")
    }
    return [pair for pair in proposed if frozenset((pair.chosen_id, pair.rejected_id)) not in known]


def add_rule_pairs(db: Database, user: str, rule: dict[str, Any], proposed: Iterable[NewPair]) -> int:
    """Store a rule's pairs that are new, as one undoable action; returns how many."""
    with immediate(db):
        fresh = new_among(db, proposed)
        if not fresh:
            return 0
        with history.action(db, user, f"{len(fresh)} pairs by rule") as change:
            _insert_rule_pairs(change, user, rule, fresh)
    return len(fresh)


def _insert_rule_pairs(
    change: history.Recorder, user: str, rule: dict[str, Any], fresh: Sequence[NewPair]
) -> None:
    for pair in fresh:
        pair_id = change.insert("pairs", _values(pair, "rule", "proposed", user, rule))
        for judgement_id in pair.judgement_ids:
            change.insert("pair_judgements", {"pair_id": pair_id, "judgement_id": judgement_id})


def accept_proposed(db: Database, user: str) -> int:
    """Accept every proposed pair as one undoable action; returns how many there were."""
    with immediate(db):
        ids = [row["id"] for row in rows(db, "SELECT id FROM pairs WHERE status = 'proposed' ORDER BY id")]
        if ids:
            set_status(db, user, ids, "accepted")
    return len(ids)


def choose_by_hand(db: Database, user: str, chosen_id: int, rejected_id: int) -> Pair:
    """Make a pair of two candidates of one sample, accepted at once; undoable.

    The same two the other way round are flipped; the same pair again is accepted.

    Raises:
        UserError: both are the same candidate, have the same text, belong to different samples, or are empty.
        NotFound: one of them is not there.
    """
    if chosen_id == rejected_id:
        raise UserError(f"Candidate {chosen_id} is both chosen and rejected; choose two different ones.")
    chosen, rejected = get_candidate(db, chosen_id), get_candidate(db, rejected_id)
    if chosen.sample_id != rejected.sample_id:
        raise UserError(
            f"Candidates {chosen_id} and {rejected_id} answer different samples; choose two of one sample."
        )
    for candidate in (chosen, rejected):
        if not candidate.text.strip():
            raise UserError(f"Candidate {candidate.id} is empty: there is nothing to learn from. Choose another.")
    if chosen.text.strip() == rejected.text.strip():
        raise UserError(
            f"Candidates {chosen_id} and {rejected_id} have the same text: there is nothing to prefer. "
            "Choose two that differ."
        )
    existing = one(
        db,
        "SELECT id FROM pairs"
        " WHERE (chosen_id = :a AND rejected_id = :b) OR (chosen_id = :b AND rejected_id = :a)",
        {"a": chosen_id, "b": rejected_id},
    )
    label = f"pair by hand: candidate {chosen_id} over {rejected_id}"
    with history.action(db, user, label, chosen.sample_id) as change:
        if existing:
            pair_id = existing["id"]
            _forget_judgements(db, change, pair_id)
            change.update(
                "pairs",
                {"id": pair_id},
                {
                    "chosen_id": chosen_id,
                    "rejected_id": rejected_id,
                    "origin": "hand",
                    "status": "accepted",
                    "user": user,
                    "rule": None,
                    "chosen_quality": None,
                    "rejected_quality": None,
                },
            )
        else:
            new = NewPair(chosen.sample_id, chosen_id, rejected_id)
            pair_id = change.insert("pairs", _values(new, "hand", "accepted", user, None))
    return get_pair(db, pair_id)


def set_status(db: Database, user: str, pair_ids: Sequence[int], status: PairStatus) -> None:
    """Accept or reject pairs as one undoable action.

    Raises:
        UserError: an unknown status.
        NotFound: a pair is not there.
    """
    if status not in STATUSES:
        raise UserError(f"Unknown status {status!r}; use one of {', '.join(STATUSES)}.")
    what = f"pair {pair_ids[0]}" if len(pair_ids) == 1 else f"{len(pair_ids):,} pairs"
    with history.action(db, user, f"{what} {status}") as change:
        change.update_many("pairs", [{"id": pair_id} for pair_id in pair_ids], {"status": status})


def flip(db: Database, user: str, pair_id: int) -> Pair:
    """Swap chosen and rejected; undoable. The pair becomes the flipping person's own, and accepted.

    Raises:
        Conflict: the swapped pair is there already.
    """
    pair = get_pair(db, pair_id)
    twin = one(
        db,
        "SELECT id FROM pairs WHERE chosen_id = ? AND rejected_id = ?",
        [pair.rejected_id, pair.chosen_id],
    )
    if twin:
        raise Conflict(f"Pair {twin['id']} is this pair the other way round already; reject one of them.")
    with history.action(db, user, f"pair {pair_id} flipped", pair.sample_id) as change:
        _forget_judgements(db, change, pair_id)
        change.update(
            "pairs",
            {"id": pair_id},
            {
                "chosen_id": pair.rejected_id,
                "rejected_id": pair.chosen_id,
                "chosen_quality": pair.rejected_quality,
                "rejected_quality": pair.chosen_quality,
                "origin": "hand",
                "status": "accepted",
                "user": user,
            },
        )
    return get_pair(db, pair_id)


def _forget_judgements(db: Database, change: history.Recorder, pair_id: int) -> None:
    """A person's choice does not stand on the scores that a rule went by."""
    for row in rows(db, "SELECT pair_id, judgement_id FROM pair_judgements WHERE pair_id = ?", [pair_id]):
        change.delete("pair_judgements", row)


def get_pair(db: Database, pair_id: int) -> Pair:
    """Raises NotFound."""
    found = one(db, "SELECT * FROM pairs WHERE id = ?", [pair_id])
    if found is None:
        raise NotFound(f"There is no pair {pair_id}; reload the list.")
    return _pair(found)


def pairs_of_sample(db: Database, sample_id: int) -> list[Pair]:
    return [_pair(row) for row in rows(db, "SELECT * FROM pairs WHERE sample_id = ? ORDER BY id", [sample_id])]


def count_pairs(db: Database) -> dict[str, int]:
    """How many pairs are in each status; every status has its number."""
    counted = {
        row["status"]: row["n"] for row in rows(db, "SELECT status, count(*) AS n FROM pairs GROUP BY status")
    }
    return {status: counted.get(status, 0) for status in STATUSES}


# The conversation of the vote that a pair was made of, where a person may open it (`storage.chats`).
_CHAT = """(SELECT t.conversation_id FROM votes v JOIN turns t ON t.id = v.left_turn_id
            JOIN conversations o ON o.id = t.conversation_id
            WHERE v.pair_id = p.id AND (o.user = ? OR o.contest_id IS NOT NULL))"""


def list_pairs(
    db: Database,
    statuses: Sequence[PairStatus] = STATUSES,
    after: int = 0,
    limit: int = 50,
    viewer: str = "",
    ids: Sequence[int] | None = None,
) -> list[PairView]:
    """A keyset page of pairs with their texts, in the order of their ids.

    Args:
        ids: only these pairs; None: all.
        viewer: who is told which chat a pair was made in, if it is one that this person may open; "" for nobody.
    """
    chosen_statuses = list(statuses)
    found = rows(
        db,
        f"""SELECT p.*, s.question, s.reference, s.messages, c.text AS chosen_text, r.text AS rejected_text,
                   {_CHAT if viewer else "NULL"} AS conversation
            FROM pairs p JOIN samples s ON s.id = p.sample_id
            JOIN candidates c ON c.id = p.chosen_id JOIN candidates r ON r.id = p.rejected_id
            WHERE p.status IN ({", ".join("?" * len(chosen_statuses))}) AND p.id > ?
            {"AND p.id IN (SELECT value FROM json_each(?))" if ids is not None else ""}
            ORDER BY p.id LIMIT ?""",
        [
            *([viewer] if viewer else []),
            *chosen_statuses,
            after,
            *([json.dumps(list(ids))] if ids is not None else []),
            limit,
        ],
    )
    return [_view(row) for row in found]


def _values(
    pair: NewPair, origin: str, status: PairStatus, user: str, rule: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "sample_id": pair.sample_id,
        "chosen_id": pair.chosen_id,
        "rejected_id": pair.rejected_id,
        "origin": origin,
        "rule": None if rule is None else json.dumps(rule, sort_keys=True),
        "chosen_quality": pair.chosen_quality,
        "rejected_quality": pair.rejected_quality,
        "status": status,
        "user": user,
        "created_at": now(),
    }


def _pair(row: Row) -> Pair:
    return Pair(**with_json(row, "rule"))


def _view(row: Row) -> PairView:
    from storage.samples import images_of

    question, reference = row.pop("question"), row.pop("reference")
    images = tuple(images_of(json.loads(row.pop("messages"))))
    chosen, rejected = row.pop("chosen_text"), row.pop("rejected_text")
    conversation = row.pop("conversation")
    return PairView(_pair(row), question, reference, images, chosen, rejected, conversation)
