"""Tokens → text while they arrive: never half a character."""

from __future__ import annotations

from typing import Any

_BROKEN = "\ufffd"
#: A character has at most four bytes, so more tokens than that are not the start of one.
_LONGEST = 4


class Spelling:
    """Turns one answer's tokens into pieces of text whose sum is the text of all tokens.

    Byte-level vocabularies split a character over several tokens, and SentencePiece drops the space of a first
    piece; so each piece is the difference of two decodings that begin at the same token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # where both decodings begin
        self._told = 0  # tokens whose text is out
        self._begun = False

    def add(self, token: int) -> str:
        """The text that this token completes; "" in the middle of a character."""
        self._tokens.append(token)
        fresh = self._fresh()
        if fresh.endswith(_BROKEN) and len(self._tokens) - self._told <= _LONGEST:
            return ""
        return self._tell(fresh)

    def rest(self) -> str:
        """What is left when no more tokens come: a broken character stays visible as such."""
        return self._tell(self._fresh()) if self._told < len(self._tokens) else ""

    def _fresh(self) -> str:
        before = self._decode(self._tokens[self._start : self._told])
        return self._decode(self._tokens[self._start :])[len(before) :]

    def _tell(self, fresh: str) -> str:
        self._start, self._told = self._told, len(self._tokens)
        if not self._begun:
            fresh = fresh.lstrip()  # templates without a space before the answer make the model write one
            self._begun = bool(fresh)
        return fresh

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
