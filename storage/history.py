"""The undo log: every change by a person goes through `action`, and can be taken back and made again.

An action is a list of row changes (`storage.row_changes`). A person's actions are a stack: undo takes the one on
top, redo the one that was undone last, and a new action drops what could be redone. All of it lies in the
database, so it outlives the browser and the app. What somebody changed since is never overwritten: then nothing is
done, and the reason says who did what.

`undone_at` alone: it can be redone. `refused_at` alone: it holds, and was found to be beyond undoing. Both: it is
undone for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import Conflict, NotFound
from storage.records import Action, now
from storage.row_changes import Recorder, Way, retrace
from storage.rows import count, rows
from storage.traces import Act, changed_by, changed_row_by, sample_history, stamp
from storage.users import ensure_user

__all__ = [
    "Act",
    "Recorder",
    "Refused",
    "action",
    "changed_by",
    "changed_row_by",
    "last_action",
    "next_redo",
    "redo",
    "reopened",
    "sample_history",
    "stamp",
    "undo",
]


class Refused(Conflict):
    """An action cannot be undone, or redone. That it was tried is remembered: the next call takes another."""


@contextmanager
def action(db: Database, user: str, label: str, sample_id: int | None = None) -> Iterator[Recorder]:
    """One undoable action of `user`, in one transaction: all of it happens, or nothing."""
    with immediate(db):
        ensure_user(db, user)
        _drop_redoable(db, user)
        cursor = db.conn.execute(
            "INSERT INTO actions (user, label, sample_id, created_at) VALUES (?, ?, ?, ?)",
            [user, label, sample_id, now()],
        )
        yield Recorder(db, int(cursor.lastrowid or 0))


@contextmanager
def reopened(db: Database, action_id: int) -> Iterator[Recorder]:
    """Add to an action that is there: one undo takes both back."""
    with immediate(db):
        told = count(db, "SELECT count(*) FROM changes WHERE action_id = ?", [action_id])
        yield Recorder(db, action_id, told)


def last_action(db: Database, user: str) -> Action | None:
    """The user's latest action that is neither undone nor found to be beyond undoing."""
    found = rows(
        db,
        "SELECT * FROM actions WHERE user = ? AND undone_at IS NULL AND refused_at IS NULL"
        " ORDER BY id DESC LIMIT 1",
        [user],
    )
    return Action(**found[0]) if found else None


# What could be redone: above the user's last action that holds. The times count for databases of versions without
# redo, where nothing was dropped: what had been undone before a later action is not to come back.
_REDOABLE = """user = :user AND undone_at IS NOT NULL AND refused_at IS NULL
    AND id > coalesce((SELECT max(id) FROM actions
                       WHERE user = :user AND undone_at IS NULL AND refused_at IS NULL), 0)"""
_UNDONE_SINCE = """NOT EXISTS (SELECT 1 FROM actions later
    WHERE later.user = :user AND later.id > actions.id AND later.created_at > actions.undone_at)"""


def next_redo(db: Database, user: str) -> Action | None:
    """The user's action that `redo` would make again."""
    found = rows(
        db, f"SELECT * FROM actions WHERE {_REDOABLE} AND {_UNDONE_SINCE} ORDER BY id LIMIT 1", {"user": user}
    )
    return Action(**found[0]) if found else None


def _drop_redoable(db: Database, user: str) -> None:
    db.conn.execute(f"UPDATE actions SET refused_at = :now WHERE {_REDOABLE}", {"user": user, "now": now()})


def undo(db: Database, user: str) -> Action:
    """Take back the user's latest action; returns it.

    Raises:
        NotFound: there is nothing to undo.
        Refused: a row has been changed since, or is in use (a frozen data set, say); nothing is undone, and the
            next call takes the action before it.
    """
    return _step(db, user, "undone")


def redo(db: Database, user: str) -> Action:
    """Make the user's action again that was undone last, ids and all; returns it.

    Raises:
        NotFound: there is nothing to redo, or the person has done something new since.
        Refused: a row has been changed since; nothing is redone, and the next call takes the action after it.
    """
    return _step(db, user, "redone")


def _step(db: Database, user: str, way: Way) -> Action:
    refused: Conflict | None = None
    with immediate(db):
        found = last_action(db, user) if way == "undone" else next_redo(db, user)
        if found is None:
            raise NotFound(f"There is nothing to {'undo' if way == 'undone' else 'redo'}.")
        # Alone in here: within somebody's transaction the refusal is kept, and what was walked is not.
        db.conn.execute("SAVEPOINT walking")
        try:
            retrace(db, found.id, found.label, way)
        except Conflict as error:
            db.conn.execute("ROLLBACK TO walking")
            refused = error
            db.conn.execute("UPDATE actions SET refused_at = ? WHERE id = ?", [now(), found.id])
        else:
            moment = now() if way == "undone" else None
            db.conn.execute("UPDATE actions SET undone_at = ? WHERE id = ?", [moment, found.id])
        db.conn.execute("RELEASE walking")
    if refused is not None:
        raise Refused(str(refused)) from refused
    return found
