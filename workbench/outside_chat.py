"""A chat column that an outside endpoint answers, in the words of the model's own process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from jobs.outside_errors import OutsideError
from jobs.outside_stream import CHAT, Drawing, End, Limits, converse
from jobs.settings import Settings
from storage.speakers import Speaker
from workbench.chat_client import TOO_LONG, Delta, Done, Event, Failed
from workbench.chat_desk import Decoding


async def stream_outside(
    settings: Settings,
    column: str,
    speaker: Speaker,
    messages: Sequence[Mapping[str, Any]],
    decoding: Decoding,
    limits: Limits = CHAT,
) -> AsyncGenerator[Event]:
    """Ask an outside model and yield what comes back: Delta after Delta, then one Done or one Failed.

    Whatever the endpoint does ends in a Failed whose text names it and what to do. Closing this iterator closes
    the connection, by which servers notice that nobody listens any more.

    Args:
        column: its id on the wire.
        speaker: whose `outside` is set.
        messages: as `chat_history.history` makes them.
    """
    drawing = Drawing(decoding.temperature, decoding.top_p, decoding.seed, decoding.max_new_tokens)
    try:
        async with aclosing(converse(settings, speaker, messages, drawing, limits)) as pieces:
            async for piece in pieces:
                yield Done(column, piece.finish, piece.tokens) if isinstance(piece, End) else Delta(column, piece)
    except OutsideError as error:
        yield Failed(str(error), column, TOO_LONG if error.kind == "too long" else "")
