"""Who does things, and what they may do: names, roles, passwords' hashes, and the era of their sessions.

A name stands in `user` and `author` columns, so a person who is removed stays as a row without a way in.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from sqlite_utils import Database

from storage.errors import Conflict, NotFound, UserError
from storage.passwords import check_password, hash_password, is_outdated, is_password
from storage.records import now
from storage.rows import one, rows

Role = Literal["annotator", "researcher", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what the ones before it may
LONGEST_NAME = 64

# Marks that turn the reading direction of what stands after them: a name could swallow its neighbours. The joiners
# that emoji and Persian need are not among them.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


@dataclass(frozen=True)
class User:
    """A person. `era`: sessions and invitations of an earlier one have ended."""

    name: str
    role: Role
    era: int
    has_password: bool
    created_at: str
    deleted_at: str | None


def may(role: Role, least: Role) -> bool:
    """Whether somebody of this role may do what needs at least that one."""
    return ROLES.index(role) >= ROLES.index(least)


def read_role(text: str) -> Role:
    """Raises `UserError` for what is no role."""
    for role in ROLES:
        if text == role:
            return role
    raise UserError(f"role = {text!r:.40}: choose {', '.join(ROLES[:-1])} or {ROLES[-1]}.")


def clean_name(text: str) -> str:
    """The name as it is stored: composed (NFC), without blanks around it, inner ones single.

    Raises:
        UserError: nothing is left, it is too long, or it has characters that nobody sees.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split(" ")).strip()
    name = " ".join(part for part in name.split(" ") if part)
    if not name or len(name) > LONGEST_NAME:
        raise UserError(f"name: give 1 to {LONGEST_NAME} characters, not {len(name)}.")
    for character in name:
        kind = unicodedata.category(character)
        if kind in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp") or character in _TURNING:
            raise UserError(f"name: it has a character that nobody sees (U+{ord(character):04X}); leave it out.")
    return name


def ensure_user(db: Database, name: str) -> str:
    """Make sure that the name can stand in a `user` column."""
    db.conn.execute("INSERT OR IGNORE INTO users (name, created_at) VALUES (?, ?)", [name, now()])
    return name


def find_user(db: Database, name: str) -> User | None:
    """The person, removed or not; one read by the primary key."""
    found = one(db, f"SELECT {_COLUMNS} FROM users WHERE name = ?", [name])
    return None if found is None else User(**{**found, "has_password": bool(found["has_password"])})


_COLUMNS = "name, role, era, password IS NOT NULL AS has_password, created_at, deleted_at"


def get_user(db: Database, name: str) -> User:
    """Raises `NotFound` for a name that nobody has, or whose owner was removed."""
    found = find_user(db, name)
    if found is None or found.deleted_at is not None:
        raise NotFound(f"name = {name!r:.80}: there is nobody of this name; see `python -m storage users list`.")
    return found


def list_users(db: Database, removed: bool = False) -> list[User]:
    """Everybody by name; with `removed` those too who were removed, at the end."""
    found = rows(
        db,
        f"SELECT {_COLUMNS} FROM users WHERE deleted_at IS NULL OR ? "
        "ORDER BY deleted_at IS NOT NULL, lower(name), name",
        [removed],
    )
    return [User(**{**row, "has_password": bool(row["has_password"])}) for row in found]


def add_user(db: Database, name: str, role: str, password: str | None = None, again: bool = False) -> User:
    """Let somebody in; without a password only by an invitation. A name that has only worked here gets a login.

    Args:
        again: a name that was removed is the same person, whose work it keeps.

    Raises:
        UserError: name, role or password cannot be used.
        Conflict: the name is taken, or one that differs by capitals alone; or it was removed, without `again`.
    """
    name, checked = clean_name(name), read_role(role)
    encoded = None if password is None else _encoded(name, password)
    for other in rows(db, "SELECT name, password, deleted_at FROM users"):
        if other["name"] != name:
            if other["name"].casefold() == name.casefold():
                raise Conflict(
                    f"name = {name!r}: {other['name']!r} is here already; choose one that differs more."
                )
        elif other["deleted_at"] is not None and not again:
            raise Conflict(
                f"name = {name!r}: somebody of this name was removed on {other['deleted_at'][:10]}, and their "
                "work stands under it. Choose another name, or say --again (Take back) if it is the same person."
            )
        elif other["deleted_at"] is None and other["password"] is not None:
            raise Conflict(f"name = {name!r} is taken; change its role or password instead, or choose another.")
    ensure_user(db, name)
    db.conn.execute(
        "UPDATE users SET role = ?, password = ?, era = era + 1, deleted_at = NULL WHERE name = ?",
        [checked, encoded, name],
    )
    return get_user(db, name)


def set_role(db: Database, name: str, role: str) -> User:
    """Holds from the person's next request on; their sessions stay."""
    checked = read_role(role)
    db.conn.execute("UPDATE users SET role = ? WHERE name = ?", [checked, get_user(db, name).name])
    return get_user(db, name)


def set_password(db: Database, name: str, password: str, era: int | None = None) -> User:
    """A new password; ends all sessions and invitations of the person.

    Raises:
        Conflict: the person is not in `era` any more: of two who use one invitation, one gets through.
    """
    encoded = _encoded(get_user(db, name).name, password)
    changed = db.conn.execute(
        "UPDATE users SET password = ?, era = era + 1 "
        "WHERE name = ? AND era = ifnull(?, era) AND deleted_at IS NULL",
        [encoded, name, era],
    ).rowcount
    if not changed:
        raise Conflict("password: it was changed just now by somebody else, or the invitation was used.")
    return get_user(db, name)


def end_sessions(db: Database, name: str) -> User:
    """Log the person out everywhere; invitations that are under way end too."""
    get_user(db, name)
    db.conn.execute("UPDATE users SET era = era + 1 WHERE name = ?", [name])
    return get_user(db, name)


def remove_user(db: Database, name: str) -> None:
    """Shut the person out from the next request on. What they did stays, under their name."""
    get_user(db, name)
    db.conn.execute(
        "UPDATE users SET password = NULL, era = era + 1, deleted_at = ? WHERE name = ?",
        [now(), name],
    )
    db.conn.execute("DELETE FROM leases WHERE user = ?", [name])


def own_machine(db: Database, name: str) -> User:
    """The machine's owner, who has come in by the console's token: admin, where no password opens this name."""
    ensure_user(db, name)
    db.conn.execute("UPDATE users SET role = 'admin' WHERE name = ? AND password IS NULL", [name])
    found = find_user(db, name)
    assert found is not None
    return found


def log_in(db: Database, name: str, password: str) -> User | None:
    """The person whose name and password these are. It takes as long for a name that nobody has."""
    found = one(db, "SELECT password FROM users WHERE name = ? AND deleted_at IS NULL", [name])
    encoded = None if found is None else found["password"]
    if not is_password(encoded, password):
        return None
    if encoded is not None and is_outdated(encoded):
        db.conn.execute(
            "UPDATE users SET password = ? WHERE name = ? AND password = ?",
            [hash_password(password), name, encoded],
        )
    return get_user(db, name)


def _encoded(name: str, password: str) -> str:
    check_password(password, name)
    return hash_password(password)
