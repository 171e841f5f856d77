"""Checklists: criteria that an answer to one sample meets or not. Versions are only ever added."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sqlite_utils import Database

from storage import history
from storage.errors import UserError
from storage.records import Checklist, ChecklistItem, JudgementState, now
from storage.rows import Row, marks, one, rows
from storage.samples import get_sample

MOST_ITEMS = 20
MOST_CHARACTERS = 2000


def add_checklist(
    db: Database,
    *,
    sample_id: int,
    job_id: int | None,
    model: str,
    instructions: str,
    state: JudgementState,
    items: Iterable[dict[str, object]] = (),
    raw: str = "",
    reason: str = "",
    tokens_in: int = 0,
    tokens_out: int = 0,
    cost: float = 0.0,
) -> None:
    """Store what a `checklist` job got for a sample, as its next version; once a job and sample."""
    db.conn.execute(
        "INSERT OR IGNORE INTO checklists (sample_id, version, state, items, model, instructions, job_id, raw,"
        " reason, tokens_in, tokens_out, cost, created_at)"
        " VALUES (?, (SELECT coalesce(max(version), 0) + 1 FROM checklists WHERE sample_id = ?),"
        " ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            sample_id,
            sample_id,
            state,
            json.dumps(list(items), ensure_ascii=False),
            model,
            instructions,
            job_id,
            raw,
            reason,
            tokens_in,
            tokens_out,
            cost,
            now(),
        ],
    )


def edit_checklist(db: Database, user: str, sample_id: int, items: Sequence[ChecklistItem]) -> Checklist:
    """Store the items as the sample's next version, by this person; undoable. No items: judged without a list.

    What is the newest version already makes no other, so a browser may send an edit twice.

    Raises:
        NotFound: there is no such sample.
        UserError: an item is empty or too long, there are too many, or there is nothing to keep.
    """
    get_sample(db, sample_id)
    kept = _checked(items)
    before = latest_checklists(db, [sample_id]).get(sample_id)
    if before is not None and before.items == kept:
        return before
    if before is None and not kept:
        raise UserError("The checklist has no items; write at least one criterion.")
    with history.action(db, user, f"checklist of sample {sample_id}", sample_id) as change:
        version = one(
            db, "SELECT coalesce(max(version), 0) + 1 AS next FROM checklists WHERE sample_id = ?", [sample_id]
        )
        assert version is not None
        change.insert(
            "checklists",
            {
                "sample_id": sample_id,
                "version": version["next"],
                "state": "ok",
                "items": json.dumps(
                    [{"text": item.text, "essential": item.essential} for item in kept], ensure_ascii=False
                ),
                "instructions": before.instructions if before else "",
                "author": user,
                "created_at": now(),
            },
        )
    return latest_checklists(db, [sample_id])[sample_id]


def _checked(items: Sequence[ChecklistItem]) -> tuple[ChecklistItem, ...]:
    """The items with their white space folded, each one line of a prompt. Raises UserError."""
    if len(items) > MOST_ITEMS:
        raise UserError(f"The checklist has {len(items)} items; {MOST_ITEMS} are the most a judge is given.")
    kept = []
    for number, item in enumerate(items, start=1):
        text = " ".join(item.text.split())
        if not text:
            raise UserError(f"Item {number} of the checklist is empty; write a criterion or remove the line.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"Item {number} of the checklist holds half a character; write that place anew.")
        if len(text) > MOST_CHARACTERS:
            raise UserError(
                f"Item {number} of the checklist has {len(text):,} characters; {MOST_CHARACTERS:,} are the most. "
                "Shorten it, or make two items of it."
            )
        kept.append(ChecklistItem(text, item.essential))
    return tuple(kept)


def latest_checklists(db: Database, sample_ids: Sequence[int]) -> dict[int, Checklist]:
    """The newest version in state ok of each of these samples; samples without one are left out."""
    found: dict[int, Checklist] = {}
    for start in range(0, len(sample_ids), 500):
        part = list(sample_ids[start : start + 500])
        for row in rows(
            db,
            f"SELECT * FROM checklists WHERE state = 'ok' AND sample_id IN ({marks(part)}) ORDER BY version",
            part,
        ):
            found[row["sample_id"]] = _checklist(row)
    return found


def checklist_exists(db: Database, checklist_id: int) -> bool:
    return one(db, "SELECT id FROM checklists WHERE id = ?", [checklist_id]) is not None


def checklists_of(db: Database, sample_id: int) -> list[Checklist]:
    """All versions of a sample's checklist, oldest first, with those that failed."""
    return [
        _checklist(row)
        for row in rows(db, "SELECT * FROM checklists WHERE sample_id = ? ORDER BY version", [sample_id])
    ]


def _checklist(row: Row) -> Checklist:
    items = tuple(ChecklistItem(item["text"], bool(item["essential"])) for item in json.loads(row["items"]))
    return Checklist(**{**row, "items": items})
