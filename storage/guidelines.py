"""The guidelines for annotators: one Markdown text of the whole data folder, whose versions are only ever added.

Each version is a setting of its own (`guidelines/3`), with its author and time; `guidelines` names the newest.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import Conflict
from storage.records import now
from storage.settings import get_setting, put_setting
from storage.texts import plain_text

LONGEST = 50_000  #: characters
_NAME = "guidelines"


@dataclass(frozen=True)
class Guidelines:
    """One version; number 0 is the empty one that stands before anybody wrote any."""

    number: int = 0
    text: str = ""
    user: str = ""
    at: str = ""


def get_guidelines(db: Database, number: int | None = None) -> Guidelines:
    """The newest version, or the one of this number; the empty one where that is not there."""
    if number is None:
        number = int(get_setting(db, _NAME, 0))
    found = get_setting(db, f"{_NAME}/{number}")
    return Guidelines(number, found["text"], found["user"], found["at"]) if found else Guidelines()


def list_guidelines(db: Database, most: int = 20) -> list[Guidelines]:
    """The latest versions, the newest first."""
    newest = int(get_setting(db, _NAME, 0))
    return [get_guidelines(db, number) for number in range(newest, max(0, newest - most), -1)]


def write_guidelines(db: Database, user: str, text: str, was: int) -> Guidelines:
    """Store the text as the next version; the same text again makes none.

    Args:
        was: the number of the version that the person began to edit.

    Raises:
        UserError: the text is too long, or holds what no text can hold.
        Conflict: somebody has written another version since; nothing is stored.
    """
    text = plain_text("The guidelines", text.replace("\r\n", "\n"), LONGEST)
    with immediate(db):
        newest = get_guidelines(db)
        if newest.text == text:
            return newest
        if newest.number != was:
            raise Conflict(
                f"{newest.user or 'Somebody'} has saved version {newest.number} of the guidelines since you "
                "began. Copy what you wrote, reload the page, and put it into the newest version."
            )
        made = Guidelines(newest.number + 1, text, user, now())
        put_setting(db, f"{_NAME}/{made.number}", {"text": text, "user": user, "at": made.at}, user)
        put_setting(db, _NAME, made.number, user)
    return made
