"""Keys of requests: a browser names each change by a key, and one that is sent twice is made once.

The answer is stored in the transaction that makes the change, so there is never one without the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import Conflict, UserError
from storage.history import Refused
from storage.records import now
from storage.rows import one
from storage.users import ensure_user

KEPT_DAYS = 30
SHORTEST, LONGEST = 8, 200
_PRUNED_AT_ONCE = 500  # a save never waits for more than this

Answer = dict[str, Any]


def once(db: Database, user: str, key: str, request: str, change: Callable[[], Answer]) -> Answer:
    """Make a change under a key; the same key again gets the first answer and changes nothing.

    Args:
        key: "" for a change without one, which is made each time.
        request: a digest of what is asked, address and content: a key stands for one request alone.
        change: makes it within this transaction; its answer must be JSON. A `Refused` undo is remembered too (the
            next one would take another action); after any other error nothing was changed, and nothing is kept.

    Raises:
        UserError: the key has a form that no browser of ours makes.
        Conflict: the key is another person's, or stood for another request.
        Refused: as it was the first time.
        PlumbError: whatever `change` raises.
    """
    if key and not (SHORTEST <= len(key) <= LONGEST and key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"X-Plumb-Key = {key[:40]!r}: give {SHORTEST} to {LONGEST} printable ASCII characters without blanks, "
            "as crypto.randomUUID() makes them."
        )
    kept: Answer
    with immediate(db):
        known = _known(db, user, key, request) if key else None
        if known is not None:
            kept = known
        else:
            try:
                kept = {"answer": change()}
            except Refused as error:
                kept = {"refused": str(error)}
            if key:
                _keep(db, user, key, {"request": request, **kept})
    if "refused" in kept:
        raise Refused(kept["refused"])
    answer: Answer = kept["answer"]
    return answer


def _known(db: Database, user: str, key: str, request: str) -> Answer | None:
    found = one(db, "SELECT user, answer FROM request_keys WHERE key = ?", [key])
    if found is None:
        return None
    if found["user"] != user:
        raise Conflict("X-Plumb-Key: this key was used by somebody else; send the change under a new one.")
    kept: Answer = json.loads(found["answer"])
    if kept["request"] != request:
        raise Conflict("X-Plumb-Key: this key was used for another change; send this one under a new one.")
    return kept


def _keep(db: Database, user: str, key: str, kept: Answer) -> None:
    ensure_user(db, user)
    db.conn.execute(
        "INSERT INTO request_keys (key, user, answer, created_at) VALUES (?, ?, ?, ?)",
        [key, user, json.dumps(kept, ensure_ascii=False), now()],
    )
    prune_keys(db)


def prune_keys(db: Database, at: datetime | None = None) -> int:
    """Forget keys that are older than `KEPT_DAYS`, some hundreds at a call; returns how many."""
    oldest = ((at or datetime.now(UTC)) - timedelta(days=KEPT_DAYS)).isoformat(timespec="milliseconds")
    return db.conn.execute(
        "DELETE FROM request_keys WHERE key IN"
        " (SELECT key FROM request_keys WHERE created_at < ? ORDER BY created_at LIMIT ?)",
        [oldest, _PRUNED_AT_ONCE],
    ).rowcount
