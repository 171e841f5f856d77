"""Texts that people write: what is refused before it is stored."""

from __future__ import annotations

from storage.errors import UserError

LONGEST_NOTE = 10_000  #: characters
LONGEST_ANSWER = 20_000


def plain_text(field: str, text: str, longest: int) -> str:
    """The text without blanks around it; right-to-left signs, emoji and markup stay as they are.

    Raises:
        UserError: it is too long, or holds what no text can hold (half a character, the character zero).
    """
    kept = text.strip()
    if any("\ud800" <= character <= "\udfff" for character in kept):
        raise UserError(f"{field} holds half a character; write that place anew.")
    if "\0" in kept:
        raise UserError(f"{field} holds the character zero, which ends a text; write that place anew.")
    if len(kept) > longest:
        raise UserError(f"{field} has {len(kept):,} characters; {longest:,} are the most. Shorten it.")
    return kept
