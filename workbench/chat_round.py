"""One round of the chat: a question, answered by both columns, streamed, stopped, stored.

Plain asynchronous generators above Gradio: they take plain values and yield what the page shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from storage.chats import add_turn, get_conversation
from storage.errors import PlumbError
from storage.records import Conversation
from workbench import chat_view
from workbench.chat_client import Delta, Done, Event, Failed, Line, ModelGone, Ready, ready_process, stream
from workbench.chat_desk import Cast, Decoding, View, check_decoding, history, next_position, store_question
from workbench.chat_view import COLUMNS
from workbench.context import Context

FRAME_SECONDS = 0.08  # how often a growing answer is sent to the browser
PATIENCE_SECONDS = 0.25  # how soon a Stop, or a closed tab, is noticed while nothing happens
SEARCHES = 20


class Halt:
    """Asked to stop; `abandoned` if the page shows something else by now and must not be touched again."""

    def __init__(self) -> None:
        self.asked = False
        self.abandoned = False
        self.ended = asyncio.Event()


class Stops:
    """Which browser sessions asked their answers to stop. All calls come from the event loop's thread."""

    def __init__(self) -> None:
        self._halts: dict[str, Halt] = {}

    def begin(self, session: str) -> Halt:
        if session in self._halts:  # an answer that still runs in this session gives way
            self._halts[session].asked = self._halts[session].abandoned = True
        self._halts[session] = Halt()
        return self._halts[session]

    def stop(self, session: str) -> None:
        if session in self._halts:
            self._halts[session].asked = True

    async def abandon(self, session: str) -> None:
        """Stop, and wait until what was said is stored and nothing more will be shown."""
        halt = self._halts.get(session)
        if halt is not None:
            halt.asked = halt.abandoned = True
            await asyncio.wait([asyncio.create_task(halt.ended.wait())], timeout=5.0)

    def end(self, session: str, halt: Halt) -> None:
        halt.ended.set()
        if self._halts.get(session) is halt:
            del self._halts[session]


@dataclass
class _Answer:
    text: str = ""
    finish: str | None = None
    tokens: int = 0
    problem: str = ""


@dataclass
class _Round:
    """One question being answered by both columns."""

    conversation: Conversation
    cast: Cast
    answers: tuple[_Answer, _Answer] = field(default_factory=lambda: (_Answer(), _Answer()))
    ahead: int = 0
    spoke: bool = False

    def take(self, event: Event) -> None:
        match event:
            case Line():
                self.ahead = event.ahead
            case Delta():
                self.ahead = 0
                self.answers[COLUMNS.index(event.column)].text += event.text
            case Done():
                answer = self.answers[COLUMNS.index(event.column)]
                answer.finish, answer.tokens = event.finish, event.tokens
            case Failed():
                hit = self.answers if event.column is None else (self.answers[COLUMNS.index(event.column)],)
                for answer in hit:
                    if answer.finish is None:
                        answer.finish, answer.problem = "failed", event.text

    def close(self, finish: str) -> None:
        for answer in self.answers:
            answer.finish = answer.finish or finish

    @property
    def said(self) -> bool:
        """Whether any column has answered; an empty answer that ended by itself is one."""
        return any(answer.text or answer.finish == "stop" for answer in self.answers)

    def view(self, status: str, running: bool = True) -> View:
        columns = chat_view.shown_columns(self.conversation.turns)
        for column, answer in zip(columns, self.answers, strict=True):
            if self.spoke and (answer.text or answer.finish in (None, "stop")):
                column.append(chat_view.answer(answer.text, answer.finish, live=True))
        unanswered = not running and not self.said
        return View(self.conversation.id, columns, status, running, asked=True, unanswered=unanswered)

    def status(self) -> str:
        if self.ahead:
            return chat_view.note(
                f"{self.ahead} other message{'s' if self.ahead > 1 else ''} come first.", busy=True
            )
        return chat_view.note("Answering …", busy=True)

    def summary(self) -> str:
        problems = list(dict.fromkeys(answer.problem for answer in self.answers if answer.problem))
        if problems:
            return chat_view.problem(" ".join(problems))
        counts = " · ".join(
            f"{name}: {answer.tokens} token{'' if answer.tokens == 1 else 's'}"
            for name, answer in zip(COLUMNS, self.answers, strict=True)
            if answer.tokens
        )
        return chat_view.note(counts)


async def send(
    context: Context,
    stops: Stops,
    session: str,
    user: str,
    conversation_id: int | None,
    text: str,
    files: Sequence[str],
    cast: Cast,
    values: Mapping[str, Any],
) -> AsyncGenerator[View]:
    """Store the question, then have it answered.

    Raises:
        PlumbError: the question could not be stored; nothing has changed.
    """
    decoding = check_decoding(values)
    arguments = (context, user, conversation_id, text, files, cast, decoding)
    stored = await asyncio.to_thread(store_question, *arguments)
    async with aclosing(answer_last(context, stops, session, user, stored, cast, decoding)) as views:
        async for view in views:
            yield view


async def answer_last(
    context: Context, stops: Stops, session: str, user: str, conversation_id: int, cast: Cast, decoding: Decoding
) -> AsyncGenerator[View]:
    """Have the conversation's last question answered by both columns, and store what they said.

    Closing this iterator (a closed tab) stops the decoding and stores what there is. It yields often, also
    while nothing happens: between two yields nobody could tell it that the tab has gone.
    """
    halt = stops.begin(session)
    with context.database() as db:
        round_ = _Round(get_conversation(db, conversation_id, user), cast)
    try:
        yield round_.view(chat_view.note("Looking for the model …", busy=True))
        async for status in _converse(context, user, round_, decoding, halt):
            if halt.abandoned:
                break
            yield round_.view(status)
        round_.close("stopped" if halt.asked else "failed")
        summary = round_.summary()
    except PlumbError as error:
        round_.close("failed")
        summary = chat_view.problem(str(error))
    finally:
        round_.close("stopped")
        try:
            if round_.said:  # else the question stays open, and can be tried again
                _store_answers(context, round_)
        finally:
            stops.end(session, halt)
    if halt.abandoned:
        return
    yield round_.view(summary, running=False)


async def _converse(
    context: Context, user: str, round_: _Round, decoding: Decoding, halt: Halt
) -> AsyncGenerator[str]:
    """Find the model and stream the answers into the round; yields the status line."""
    needed = [adapter for adapter in round_.cast.adapters if adapter is not None]
    for _ in range(SEARCHES):
        ready = None
        async with aclosing(ready_process(context, user, round_.cast.model, needed)) as states:
            async for state in states:
                if halt.asked:
                    return
                if isinstance(state, Ready):
                    ready = state
                else:
                    yield chat_view.waiting(state)
        assert ready is not None  # ready_process ends with it, or raises
        turns = round_.conversation.turns
        columns = [
            {"id": name, "adapter": adapter, "messages": await asyncio.to_thread(history, context, turns, number)}
            for number, (name, adapter) in enumerate(zip(COLUMNS, round_.cast.adapters, strict=True))
        ]
        round_.spoke = True
        source = stream(context, ready, columns, decoding.model_dump())
        try:
            async with aclosing(paced(source, halt)) as frames:
                async for frame in frames:
                    for event in frame:
                        round_.take(event)
                    yield round_.status()
            return
        except ModelGone:
            # It has left, but its last event isn't read yet: the next look finds it ended and starts another.
            round_.spoke = False
            yield chat_view.note("The model's process has left; looking for another …", busy=True)
            await asyncio.sleep(PATIENCE_SECONDS * 2)
    raise PlumbError("The model's process does not answer. Stop its job on the Jobs page and send again.")


async def paced(source: AsyncGenerator[Event], halt: Halt) -> AsyncGenerator[list[Event]]:
    """Events in frames: what came within `FRAME_SECONDS`, or nothing after `PATIENCE_SECONDS` of silence.

    Ends with the source, or when `halt` is asked for; either way the source is closed.
    """
    inbox: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    async def pump() -> None:
        ending: Exception | None = None
        try:
            async with aclosing(source) as events:
                async for event in events:
                    inbox.put_nowait(event)
        except Exception as error:
            ending = error  # raised again where the frames are read
        finally:
            inbox.put_nowait(ending)

    task = asyncio.create_task(pump())
    try:
        while not halt.asked:
            try:
                frame = [await asyncio.wait_for(inbox.get(), PATIENCE_SECONDS)]
            except TimeoutError:
                yield []
                continue
            if frame[0] is not None and not isinstance(frame[0], Exception):
                await asyncio.sleep(FRAME_SECONDS)
            while not inbox.empty():
                frame.append(inbox.get_nowait())
            events = [event for event in frame if event is not None and not isinstance(event, Exception)]
            if events:
                yield events
            if isinstance(frame[-1], Exception):
                raise frame[-1]
            if frame[-1] is None:
                return
    finally:
        task.cancel()
        await asyncio.wait([task])


def _store_answers(context: Context, round_: _Round) -> None:
    with context.database() as db:
        position = next_position(round_.conversation)
        for number, answer in enumerate(round_.answers):
            add_turn(
                db,
                round_.conversation.id,
                position,
                "assistant",
                [{"type": "text", "text": answer.text}],
                column_number=number,
                model=round_.cast.model,
                adapter_id=round_.cast.adapters[number],
                finish=answer.finish,
            )
