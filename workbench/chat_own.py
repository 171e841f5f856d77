"""What the base's own process answers: it is found or started, asked, told to stop a column, and asked again if it
dies.

A process that dies in mid-stream (kill -9, out of memory) is told, started anew and asked the same again, once:
with the same seed it says the same, so that what it had said stays in sight until the new words replace it. At a
second death what was said is kept as broken off.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from storage.errors import PlumbError
from workbench.chat_client import (
    BrokeOff,
    Done,
    Ended,
    Failed,
    Line,
    Lost,
    ModelGone,
    Ready,
    Waiting,
    ready_process,
    stop_column,
    stream,
)
from workbench.chat_holds import Hold
from workbench.chat_streams import Halt, Told
from workbench.context import Context

GONE_SECONDS = 60.0  # how long a supervisor has to notice that a process has ended
MOST_PROCESSES = 3  # that are started for one question and leave before they speak
PAUSE_SECONDS = 0.5  # before the next look for a process where one has left
STOP_SECONDS = 0.1  # before a process that doesn't know a request yet is asked again to stop it

_DIED = "The model's process died in mid-sentence; it is started anew and asked again …"
_DIED_AGAIN = (
    "The model's process died twice while it answered; its log is on the Jobs page. "
    "What was said is kept; try again."
)
_NOBODY = "The model's process does not answer. Stop its job on the Jobs page and send again."
_LEFT = "The model's process has left; looking for another …"


@dataclass(frozen=True)
class Asked:
    """What the base's process is asked.

    Attributes:
        user: whose turn it is in line.
        model, adapters: what the process must hold.
        columns: {id, adapter, messages, prefix?} each, as `chat_client.stream` takes them.
        decoding: as `Decoding.asked` gives it.
    """

    user: str
    model: str
    adapters: Sequence[int]
    columns: Sequence[Mapping[str, Any]]
    decoding: Mapping[str, Any]


async def own_answers(context: Context, asked: Asked, halt: Halt) -> AsyncGenerator[Told]:
    """Everything about these columns, up to how each of them ended; raises nothing that a page should show."""
    left = {str(column["id"]): column for column in asked.columns}
    try:
        async with aclosing(_answers(context, asked, left, halt)) as events:
            async for event in events:
                yield event
    except PlumbError as error:
        for side in [*left]:
            yield Failed(str(error), side)


async def _answers(
    context: Context, asked: Asked, left: dict[str, Mapping[str, Any]], halt: Halt
) -> AsyncGenerator[Told]:
    """As `own_answers`; columns that have ended are taken out of `left`."""
    died = False
    gone_since: float | None = None
    spoken: set[int] = set()
    with Hold(context.folder) as hold:
        while left:
            try:
                async with aclosing(_once(context, asked, left, halt, hold, spoken)) as events:
                    async for event in events:
                        gone_since = gone_since if isinstance(event, Line) else None
                        yield event
                if left:
                    raise BrokeOff("The model's process ended its answer without an end.")
            except ModelGone as error:
                # It has left, but its last event isn't read yet: the next look finds it ended and starts another.
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > GONE_SECONDS or len(spoken) > MOST_PROCESSES:
                    raise PlumbError(_NOBODY) from error
                yield Waiting(_LEFT)
                await asyncio.sleep(PAUSE_SECONDS)
            except BrokeOff as error:
                if died:
                    raise PlumbError(_DIED_AGAIN) from error
                died, gone_since = True, time.monotonic()
                yield Lost(tuple(left))
                yield Waiting(_DIED)
                await asyncio.sleep(PAUSE_SECONDS)


async def _once(
    context: Context, asked: Asked, left: dict[str, Mapping[str, Any]], halt: Halt, hold: Hold, spoken: set[int]
) -> AsyncGenerator[Told]:
    """Find the process and ask it; columns that have ended are taken out of `left`.

    Args:
        spoken: jobs that were asked before: that one of them is found ended is no reason to give up. Grows.
    """
    ready = None
    try:
        async with aclosing(ready_process(context, asked.user, asked.model, asked.adapters, hold)) as states:
            async for state in states:
                for side in [side for side in left if halt.covers(side)]:
                    del left[side]
                    yield Done(side, "stopped", 0)
                if not left:
                    return
                if isinstance(state, Ready):
                    ready = state
                else:
                    yield state
    except Ended as error:
        if error.job_id in spoken:
            raise ModelGone(str(error)) from error
        raise
    assert ready is not None  # the search ends with it, or raises
    spoken.add(ready.job_id)
    yield Line(0)  # it is found, and about to speak
    request = uuid.uuid4().hex
    source = stream(context, ready, request, asked.user, [*left.values()], asked.decoding)
    relay = asyncio.create_task(_relay_stops(context, ready, request, [*left], halt))
    try:
        async with aclosing(source) as events:
            async for event in events:
                if isinstance(event, Failed) and event.column is None:
                    for side in [*left]:
                        del left[side]
                        yield Failed(event.text, side, event.code)
                    continue
                if isinstance(event, Done | Failed):
                    left.pop(str(event.column), None)
                yield event
    finally:
        relay.cancel()
        await asyncio.wait({relay})


async def _relay_stops(context: Context, ready: Ready, request: str, sides: Sequence[str], halt: Halt) -> None:
    """Tell the process of every column that is asked to stop, until it knows."""
    open_ = set(sides)
    while open_:
        for side in [side for side in sides if side in open_ and halt.covers(side)]:
            if await stop_column(context, ready, request, side):
                open_.discard(side)
        if any(halt.covers(side) for side in open_):
            await asyncio.sleep(STOP_SECONDS)
        else:
            await halt.change()
