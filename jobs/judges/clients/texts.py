"""Texts on their way to a provider and back."""

from __future__ import annotations

from jobs.judges.keys import scrub

WORDS = 300  # characters of a provider's message that are told on


def sendable(text: str) -> str:
    """The text with � for halves of surrogate pairs, which no encoding of a request can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shorten(text: str) -> str:
    """One line of at most `WORDS` characters; a web page is not quoted."""
    line = " ".join(scrub(text).split())  # before it is cut: half a key is no key that can be found
    if line.startswith("<"):
        return "a web page"
    return line if len(line) <= WORDS else line[: WORDS - 1] + "…"
