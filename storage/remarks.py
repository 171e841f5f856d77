"""What a person remarks on a sample: a flag, a note, a skip. Each is theirs alone; others see it and keep theirs.

A remark that is there already makes no act, so that an undo always takes something back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlite_utils import Database

from storage import history
from storage.database import immediate
from storage.errors import Conflict, NotFound
from storage.records import now
from storage.rows import Row, marks, one, rows
from storage.texts import LONGEST_NOTE, plain_text


@dataclass(frozen=True)
class Note:
    """A person's note on a sample; `created_at` is when it was last changed."""

    user: str
    text: str
    created_at: str


def set_flag(db: Database, user: str, sample_id: int, on: bool) -> bool:
    """Raise or take down the person's flag; undoable. Returns whether that changed anything. Raises NotFound."""
    label = f"sample {sample_id} flagged" if on else f"flag of sample {sample_id} taken down"
    return _set_mark(db, "flags", user, sample_id, on, label)


def set_skip(db: Database, user: str, sample_id: int, on: bool) -> bool:
    """Pass the sample over in the person's queues, or no longer; undoable. As `set_flag`."""
    label = f"sample {sample_id} skipped" if on else f"sample {sample_id} no longer skipped"
    return _set_mark(db, "skips", user, sample_id, on, label)


def set_note(db: Database, user: str, sample_id: int, text: str, was: str | None = None) -> bool:
    """Write the person's one note on a sample, in place of what it said; a blank one takes it away. Undoable.

    Args:
        was: what the note said when the person began to write; "" for none. None: whatever it was.

    Returns:
        Whether that changed anything.

    Raises:
        NotFound: there is no such sample.
        UserError: the text is too long, or holds what no text can hold.
        Conflict: the note says neither what it `was` nor `text`: the person wrote it elsewhere meanwhile.
    """
    kept = plain_text("The note", text, LONGEST_NOTE)
    key = {"sample_id": sample_id, "user": user}
    with immediate(db):
        need_sample(db, sample_id)
        found = one(db, "SELECT id, text FROM notes WHERE sample_id = :sample_id AND user = :user", key)
        stored = "" if found is None else found["text"]
        if stored == kept:
            return False
        if was is not None and stored != was.strip():
            raise Conflict(
                f"Your note on sample {sample_id} has been changed since, in another window. "
                "Reload the page to see it, then write again."
            )
        what = "taken away" if not kept else "changed" if found else "written"
        with history.action(db, user, f"note on sample {sample_id} {what}", sample_id) as change:
            if found is None:
                change.insert("notes", {**key, "text": kept, "created_at": now()})
            elif kept:
                change.update("notes", {"id": found["id"]}, {"text": kept, "created_at": now()})
            else:
                change.delete("notes", {"id": found["id"]})
    return True


def flags_of(db: Database, sample_ids: Sequence[int]) -> dict[int, list[str]]:
    """Who has flagged each of these samples, the first who did first."""
    return _people(db, "flags", sample_ids)


def skips_of(db: Database, sample_ids: Sequence[int]) -> dict[int, list[str]]:
    """Who has skipped each of these samples."""
    return _people(db, "skips", sample_ids)


def notes_of(db: Database, sample_id: int) -> list[Note]:
    """Everybody's note on the sample, the oldest first."""
    return [
        Note(**row)
        for row in rows(
            db,
            "SELECT user, text, created_at FROM notes WHERE sample_id = ? ORDER BY created_at, id",
            [sample_id],
        )
    ]


def need_sample(db: Database, sample_id: int) -> Row:
    """Raises NotFound."""
    found = one(db, "SELECT id, question FROM samples WHERE id = ?", [sample_id])
    if found is None:
        raise NotFound(f"There is no sample {sample_id}; reload the list.")
    return found


def _set_mark(
    db: Database, table: Literal["flags", "skips"], user: str, sample_id: int, on: bool, label: str
) -> bool:
    key = {"sample_id": sample_id, "user": user}
    with immediate(db):
        need_sample(db, sample_id)
        found = one(db, f"SELECT 1 FROM {table} WHERE sample_id = :sample_id AND user = :user", key)
        if (found is not None) == on:
            return False
        with history.action(db, user, label, sample_id) as change:
            if on:
                change.insert(table, {**key, "created_at": now()})
            else:
                change.delete(table, dict(key))
    return True


def _people(db: Database, table: Literal["flags", "skips"], sample_ids: Sequence[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {sample_id: [] for sample_id in sample_ids}
    for start in range(0, len(sample_ids), 500):
        part = list(sample_ids[start : start + 500])
        for row in rows(
            db,
            f"SELECT sample_id, user FROM {table} WHERE sample_id IN ({marks(part)}) ORDER BY created_at, user",
            part,
        ):
            found[row["sample_id"]].append(row["user"])
    return found
