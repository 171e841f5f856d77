"""One-time links by which a person sets a password: signed with the data folder's key, nothing stored.

A link names the person's era, which rises when a password is set, when they are logged out everywhere and when
another link is made: so each works once, and the latest alone.
"""

from __future__ import annotations

from urllib.parse import quote

from itsdangerous import BadSignature, URLSafeTimedSerializer
from sqlite_utils import Database

from storage.errors import UserError
from storage.users import User, end_sessions, find_user, set_password

INVITATION_SECONDS = 7 * 24 * 3600
PATH = "/invitation"


def invite(db: Database, key: bytes, name: str) -> str:
    """A path of the app that lets the person set a password, within a week; ends their sessions."""
    user = end_sessions(db, name)
    return f"{PATH}?key={quote(str(_signer(key).dumps([user.name, user.era])))}"


def invited(db: Database, key: bytes, text: str) -> User:
    """Whom an invitation is for.

    Raises:
        UserError: it is forged, too old, or used.
    """
    try:
        name, era = _signer(key).loads(text, max_age=INVITATION_SECONDS)
    except (BadSignature, ValueError, TypeError):
        name, era = "", -1
    user = find_user(db, name) if isinstance(name, str) else None
    if user is None or user.deleted_at is not None or user.era != era:
        raise UserError(
            "This invitation was used, has been replaced, or is over a week old. Ask an admin for another."
        )
    return user


def accept(db: Database, key: bytes, text: str, password: str) -> User:
    """Set the invited person's password; of two at once one gets through."""
    user = invited(db, key, text)
    return set_password(db, user.name, password, user.era)


def _signer(key: bytes) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(key, salt="plumb-invitation")
