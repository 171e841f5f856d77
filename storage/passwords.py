"""Passwords: argon2id by argon2-cffi, with its default parameters (RFC 9106, second recommendation)."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from storage.errors import UserError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST, LONGEST = 10, 1000


def check_password(password: str, name: str) -> None:
    """Refuse what is guessed first. No rules about kinds of characters: they make passwords worse.

    Raises:
        UserError: too short, too long, the person's own name, or one character many times. It never quotes it.
    """
    text = _normal(password)
    if not SHORTEST <= len(text) <= LONGEST:
        raise UserError(f"password: give {SHORTEST} to {LONGEST} characters; four words in a row do well.")
    if text.casefold() == name.casefold() or len(set(text)) < 4:
        raise UserError("password: this one is guessed at once; four words in a row do well.")


def hash_password(password: str) -> str:
    """The encoded hash, with its salt and parameters; takes tens of milliseconds and 64 MiB on purpose."""
    return _hasher().hash(_normal(password))


def is_password(encoded: str | None, password: str) -> bool:
    """Whether the password belongs to the hash. Without one it takes as long, and the answer is no."""
    from argon2.exceptions import InvalidHashError, VerificationError

    dummy = _dummy()  # in any case: the first call of a process shall not tell by its time
    try:
        _hasher().verify(encoded or dummy, _normal(password[: LONGEST + 1]))
    except (VerificationError, InvalidHashError):
        return False
    return encoded is not None


def is_outdated(encoded: str) -> bool:
    """Whether the library would choose stronger parameters by now."""
    return _hasher().check_needs_rehash(encoded)


def _normal(password: str) -> str:
    """The same characters, however a keyboard composes them."""
    return unicodedata.normalize("NFKC", password)


@lru_cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher()


@lru_cache
def _dummy() -> str:
    return _hasher().hash("nobody's")
