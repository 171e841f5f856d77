"""Saved views: what a person looks at often, under a name. Each is the query of an address of the Samples page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from sqlite_utils import Database

from storage import history
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.records import now
from storage.rows import Row, one, rows
from storage.texts import plain_text
from storage.users import ensure_user

LONGEST_NAME = 80  #: characters of a view's name
LONGEST_QUERY = 2_000


@dataclass(frozen=True)
class SavedView:
    """A view; `user` made it, and `shared` shows it to everybody."""

    id: int
    user: str
    name: str
    query: str
    shared: bool
    created_at: str

    @property
    def parameters(self) -> dict[str, str]:
        """The query as the Samples page reads it."""
        return dict(parse_qsl(self.query))


def save_view(
    db: Database, user: str, name: str, query: Mapping[str, str] | str, shared: bool = False
) -> SavedView:
    """Save a view, in place of the person's own of that name; undoable.

    Args:
        query: an address's parameters, or its part after the question mark; empty values are left out.

    Raises:
        UserError: the name is empty, too long or no text, or the query is too long.
    """
    kept = plain_text("The view's name", " ".join(name.split()), LONGEST_NAME)
    if not kept:
        raise UserError("The view's name is empty; type one.")
    told = dict(parse_qsl(query.removeprefix("?"))) if isinstance(query, str) else dict(query)
    told = {
        plain_text("The view", key, LONGEST_QUERY): plain_text("The view", value, LONGEST_QUERY)
        for key, value in told.items()
        if value
    }
    spelt = urlencode(told)
    if len(spelt) > LONGEST_QUERY:
        raise UserError(f"The view's address has {len(spelt):,} characters; {LONGEST_QUERY:,} are the most.")
    values = {"query": spelt, "shared": int(shared)}
    with immediate(db):
        ensure_user(db, user)
        found = one(db, "SELECT * FROM saved_views WHERE user = ? AND name = ?", [user, kept])
        if found is None:
            with history.action(db, user, f"view “{kept}” saved") as change:
                view_id = change.insert("saved_views", {"user": user, "name": kept, **values, "created_at": now()})
        else:
            view_id = found["id"]
            if any(found[column] != value for column, value in values.items()):  # saved twice: no act to undo
                with history.action(db, user, f"view “{kept}” replaced") as change:
                    change.update("saved_views", {"id": view_id}, values)
        return get_view(db, user, view_id)


def get_view(db: Database, user: str, view_id: int) -> SavedView:
    """A view of the person's, or one that is shared. Raises NotFound."""
    found = one(db, "SELECT * FROM saved_views WHERE id = ? AND (user = ? OR shared)", [view_id, user])
    if found is None:
        raise NotFound(f"There is no view {view_id} (any more); reload the page.")
    return _view(found)


def list_views(db: Database, user: str) -> list[SavedView]:
    """The person's own views by name, then those that others share."""
    found = rows(
        db,
        """SELECT * FROM saved_views WHERE user = :user OR shared
           ORDER BY user <> :user, name COLLATE NOCASE, user, id""",
        {"user": user},
    )
    return [_view(row) for row in found]


def share_view(db: Database, user: str, view_id: int, shared: bool) -> SavedView:
    """Show one's own view to everybody, or to oneself alone; undoable. Raises NotFound, Conflict: not theirs."""
    with immediate(db):
        view = _own(db, user, view_id)
        if view.shared != shared:
            label = f"view “{view.name}” {'shared' if shared else 'no longer shared'}"
            with history.action(db, user, label) as change:
                change.update("saved_views", {"id": view_id}, {"shared": int(shared)})
        return get_view(db, user, view_id)


def delete_view(db: Database, user: str, view_id: int) -> SavedView:
    """Delete one's own view; undoable. Returns it as it was. Raises NotFound, or Conflict: it is not theirs."""
    with immediate(db):
        view = _own(db, user, view_id)
        with history.action(db, user, f"view “{view.name}” deleted") as change:
            change.delete("saved_views", {"id": view_id})
    return view


def _own(db: Database, user: str, view_id: int) -> SavedView:
    view = get_view(db, user, view_id)
    if view.user != user:
        raise Conflict(f"The view “{view.name}” is {view.user}'s; save it under a name of your own to change it.")
    return view


def _view(row: Row) -> SavedView:
    return SavedView(**{**row, "shared": bool(row["shared"])})
