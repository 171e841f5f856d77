"""Who can answer: a base, an adapter of it, or a model that an outside endpoint serves.

A speaker has one spelling wherever it is written (dropdowns, settings, exports): `base`, the adapter's id, or
`MODEL@ENDPOINT` for a model as the endpoint of that name calls it. No name of a base has an `@`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from storage.errors import UserError
from storage.records import Conversation

BASE = "base"
MOST = 3  #: columns of a conversation
SIDES: dict[int, tuple[str, ...]] = {2: ("left", "right"), 3: ("left", "middle", "right")}
ENDPOINT_NAME = r"[a-z0-9][a-z0-9-]{0,39}"

_OUTSIDE = re.compile(rf"(?P<model>\S(?:.{{0,198}}\S)?)@(?P<endpoint>{ENDPOINT_NAME})")


@dataclass(frozen=True)
class Speaker:
    """Attributes:
    model: the base, or `MODEL@ENDPOINT`.
    adapter: the adapter's id; None for the base itself and for outside models.
    """

    model: str
    adapter: int | None = None

    @property
    def outside(self) -> tuple[str, str] | None:
        """(model as its endpoint calls it, the endpoint's name), or None for a speaker of our own."""
        found = _OUTSIDE.fullmatch(self.model)
        return (found["model"], found["endpoint"]) if found else None

    @property
    def spelling(self) -> str:
        if self.outside:
            return self.model
        return BASE if self.adapter is None else str(self.adapter)


def read_speaker(spelling: str, model: str) -> Speaker:
    """The speaker that is spelt so, beside the base `model`.

    Raises:
        UserError: it is spelt as none is.
    """
    held = (spelling or BASE).strip()
    if held == BASE:
        return Speaker(model)
    if held.isascii() and held.isdecimal() and 0 < int(held) < 2**63:
        return Speaker(model, int(held))
    if _OUTSIDE.fullmatch(held):
        return Speaker(held)
    raise UserError(
        f"column = {spelling!r}: choose “base”, an adapter's number, or a model of an endpoint as MODEL@ENDPOINT."
    )


def sides(number: int) -> tuple[str, ...]:
    """What so many columns are called, in their order. Raises UserError for any other number than 2 or 3."""
    if number not in SIDES:
        raise UserError(f"columns = {number}: a conversation has 2 or {MOST}.")
    return SIDES[number]


def speakers_of(conversation: Conversation) -> tuple[Speaker, ...]:
    """Who answered last in a conversation, else whom it began with; one a column."""
    settings = conversation.settings
    model = str(settings.get("model", "demo"))
    spelt: Sequence[str] = settings.get("columns") or [
        BASE if adapter is None else str(adapter) for adapter in settings.get("adapters") or (None, None)
    ]
    found = [read_speaker(one, model) for one in spelt]
    for turn in conversation.turns:
        if turn.role == "assistant" and turn.column_number is not None and turn.column_number < len(found):
            found[turn.column_number] = Speaker(turn.model or model, turn.adapter_id)
    return tuple(found)


def base_of(conversation: Conversation) -> str:
    """The base that its own speakers share: that of the last own answer, else the one it began with."""
    model = str(conversation.settings.get("model", "demo"))
    for turn in conversation.turns:
        if turn.role == "assistant" and turn.model and not Speaker(turn.model).outside:
            model = turn.model
    return model
