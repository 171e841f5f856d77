"""Acts on everything that a filter selects: one action each, so that one undo takes all of it back.

Made for a hundred thousand samples in seconds (`benchmarks/bulk.py`): one statement a few thousand
rows, within one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlite_utils import Database

from storage import history
from storage.database import immediate
from storage.records import now
from storage.row_changes import RUN
from storage.rows import rows


def bulk_flag(db: Database, user: str, sample_ids: Sequence[int], on: bool = True) -> int:
    """Raise, or take down, the person's flag on these samples; undoable at once.

    Returns how many that changed; ids that are no sample's (any more) are passed over.
    """
    label = "{} flagged" if on else "flags of {} taken down"
    return _bulk(db, "flags", user, sample_ids, on, label)


def bulk_skip(db: Database, user: str, sample_ids: Sequence[int], on: bool = True) -> int:
    """Pass these samples over in the person's queues, or no longer. As `bulk_flag`."""
    label = "{} skipped" if on else "{} no longer skipped"
    return _bulk(db, "skips", user, sample_ids, on, label)


def bulk_discard(db: Database, user: str, sample_ids: Sequence[int], on: bool = True) -> int:
    """Discard these samples, or take them back, whoever discarded them; undoable at once. As `bulk_flag`."""
    label = "{} discarded" if on else "{} taken back"
    return _bulk(db, "discards", user, sample_ids, on, label)


def _bulk(
    db: Database,
    table: Literal["flags", "skips", "discards"],
    user: str,
    sample_ids: Sequence[int],
    on: bool,
    label: str,
) -> int:
    own = {} if table == "discards" else {"user": user}
    with immediate(db):
        changed = [
            number
            for start in range(0, len(sample_ids), RUN)
            for number in _without(db, table, sample_ids[start : start + RUN], user if own else None, on)
        ]
        changed = list(dict.fromkeys(changed))
        if not changed:
            return 0
        what = f"sample {changed[0]}" if len(changed) == 1 else f"{len(changed):,} samples"
        with history.action(db, user, label.format(what)) as change:
            if on:
                at = now()
                change.insert_many(
                    table, [{"sample_id": number, "user": user, "created_at": at} for number in changed]
                )
            else:
                change.delete_many(table, [{"sample_id": number, **own} for number in changed])
    return len(changed)


def _without(db: Database, table: str, sample_ids: Sequence[int], user: str | None, on: bool) -> list[int]:
    """Those of these samples that a row is to be made for (`on`), or that have one."""
    mine = "" if user is None else " AND t.user = :user"
    found = rows(
        db,
        f"SELECT s.id FROM json_each(:ids) j CROSS JOIN samples s ON s.id = j.value"
        f" WHERE {'NOT ' if on else ''}EXISTS (SELECT 1 FROM {table} t WHERE t.sample_id = s.id{mine})",
        {"ids": f"[{','.join(str(int(number)) for number in sample_ids)}]", "user": user},
    )
    return [row["id"] for row in found]
