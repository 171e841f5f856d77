"""Answers of several speakers as one stream, with a Stop that takes effect at once.

All calls come from the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from storage.errors import PlumbError
from workbench.chat_client import Done, Event, Failed, Lost, Waiting

FRAME_SECONDS = 0.08  # how often a growing answer is sent to the browser
PATIENCE_SECONDS = 0.25  # how soon a closed tab is noticed while nothing happens

Told = Event | Waiting | Lost


class Halt:
    """Asked to stop, or some of its columns; `abandoned` if the page shows something else by now and must not be
    touched again."""

    def __init__(self) -> None:
        self.asked = False
        self.abandoned = False
        self.ended = asyncio.Event()
        self._sides: set[str] = set()
        self._change = asyncio.Event()

    def ask(self, side: str | None = None, abandon: bool = False) -> None:
        if side is None:
            self.asked = True
            self.abandoned = self.abandoned or abandon
        else:
            self._sides.add(side)
        self._change.set()
        self._change = asyncio.Event()

    def covers(self, side: str) -> bool:
        return self.asked or side in self._sides

    async def change(self) -> None:
        """Until the next `ask`."""
        await self._change.wait()


@dataclass(frozen=True)
class _End:
    error: Exception | None = None


async def paced(sources: Sequence[AsyncGenerator[Told]], halt: Halt) -> AsyncGenerator[list[Told]]:
    """What all sources tell, in frames: what came within `FRAME_SECONDS`, or nothing after `PATIENCE_SECONDS`.

    Ends with the last source, or when `halt` is asked for; either way all are closed. An error of one is raised
    again when its turn comes.
    """
    inbox: asyncio.Queue[Told | _End] = asyncio.Queue()

    async def pump(source: AsyncGenerator[Told]) -> None:
        ending = _End()
        try:
            async with aclosing(source) as events:
                async for event in events:
                    inbox.put_nowait(event)
        except Exception as error:
            ending = _End(error)
        finally:
            inbox.put_nowait(ending)

    async def alarm() -> None:
        while not halt.asked:
            await halt.change()
        inbox.put_nowait(_End())

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    tasks = [*pumps, asyncio.create_task(alarm())]
    left = len(pumps)
    try:
        while left and not halt.asked:
            try:
                frame = [await asyncio.wait_for(inbox.get(), PATIENCE_SECONDS)]
            except TimeoutError:
                yield []
                continue
            if not isinstance(frame[0], _End):
                await asyncio.sleep(FRAME_SECONDS)
            while not inbox.empty():
                frame.append(inbox.get_nowait())
            events = [event for event in frame if not isinstance(event, _End)]
            if events:
                yield events
            for ending in frame:
                if isinstance(ending, _End):
                    left -= 1
                    if ending.error is not None:
                        raise ending.error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def until_stopped(source: AsyncGenerator[Event], side: str, halt: Halt) -> AsyncGenerator[Told]:
    """A speaker of its own, who has no ear for Stop: where it is asked for, the source is closed.

    One that ends without a word about its end has failed.
    """
    ended = False
    async with aclosing(source) as events:
        while not halt.covers(side):
            following: asyncio.Future[Event | None] = asyncio.ensure_future(_next(events))
            try:
                await _first(following, side, halt)
                if not following.done():
                    break
                event = following.result()
            except PlumbError as error:
                event = Failed(str(error), side)
            finally:
                following.cancel()
                await asyncio.wait({following})
            if event is None:
                if not ended:
                    yield Failed("The answer ended without an end.", side)
                return
            ended = ended or isinstance(event, Done | Failed)
            yield event
    if not ended:
        yield Done(side, "stopped", 0)


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    return await anext(events, None)


async def _first(following: asyncio.Future[Event | None], side: str, halt: Halt) -> None:
    """Until there is an event, or the side is asked to stop."""
    while not following.done() and not halt.covers(side):
        change = asyncio.ensure_future(halt.change())
        either: set[asyncio.Future[Any]] = {following, change}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
