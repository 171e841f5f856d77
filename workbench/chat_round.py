"""One round of the chat: a question, answered by both columns, streamed, stopped, stored.

Plain asynchronous generators above Gradio: they take plain values and yield what the page shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from storage.errors import DatabaseBusy, PlumbError
from storage.records import Conversation
from workbench import chat_view
from workbench.chat_client import (
    Apart,
    Delta,
    Done,
    Event,
    Failed,
    Length,
    Line,
    ModelGone,
    Ready,
    Waiting,
    ready_process,
    stream,
)
from workbench.chat_desk import (
    Cast,
    Decoding,
    View,
    check_decoding,
    check_message,
    history,
    read_open_question,
    store_answers,
    store_question,
)
from workbench.chat_holds import Hold
from workbench.chat_view import COLUMNS
from workbench.context import Context

FRAME_SECONDS = 0.08  # how often a growing answer is sent to the browser
PATIENCE_SECONDS = 0.25  # how soon a Stop, or a closed tab, is noticed while nothing happens
SEARCHES = 20
STORE_TRIES = 3  # each waits for the database's lock as long as any write does


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
            with suppress(TimeoutError):  # what it still stores then has a place of its own
                await asyncio.wait_for(halt.ended.wait(), 5.0)

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
    lengths: dict[str, tuple[int, int | None]] = field(default_factory=dict)  #: prompt and context, in tokens
    apart: dict[str, str] = field(default_factory=dict)  #: why a column answers after the other
    spoke: bool = False
    kept: bool = False  # the answers are stored

    def take(self, event: Event) -> None:
        match event:
            case Line():
                self.ahead = event.ahead
            case Length():
                self.lengths[event.column] = (event.tokens, event.context)
            case Apart():
                self.apart[event.column] = event.reason
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
        unanswered = not running and not self.kept
        return View(self.conversation.id, columns, status, running, asked=True, unanswered=unanswered)

    def status(self) -> str:
        if self.ahead:
            return chat_view.note(
                f"{self.ahead} other message{'s' if self.ahead > 1 else ''} come first.", busy=True
            )
        hidden = self.conversation.settings.get("blind")  # only some adapters answer apart: it would name them
        told = " ".join(
            "One answers after the other." if hidden else f"The {column} one answers after the other: {why}."
            for column, why in self.apart.items()
        )
        return chat_view.note(f"Answering … {told}".strip(), busy=True)

    def summary(self) -> str:
        problems = list(dict.fromkeys(answer.problem for answer in self.answers if answer.problem))
        if problems:
            return chat_view.problem(" ".join(problems))
        counts = " · ".join(
            f"{name}: {answer.tokens} token{'' if answer.tokens == 1 else 's'}"
            for name, answer in zip(COLUMNS, self.answers, strict=True)
            if answer.tokens
        )
        return chat_view.note(" · ".join(filter(None, (counts, self._left()))))

    def _left(self) -> str:
        """How much of the model's context the fuller column leaves to the conversation; "" where unknown."""
        left = [
            context - prompt - answer.tokens
            for name, answer in zip(COLUMNS, self.answers, strict=True)
            for prompt, context in [self.lengths.get(name, (0, None))]
            if context is not None
        ]
        return f"{max(0, min(left)):,} tokens left in this conversation" if left else ""


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
    blind: bool = False,
) -> AsyncGenerator[View]:
    """Store the question, then have it answered.

    Args:
        blind: a conversation that begins with it keeps its names secret until its owner has voted.

    Raises:
        PlumbError: the question could not be stored, or has vanished since.
    """
    decoding = check_decoding(values)
    check_message(text, files, cast.model)
    await stops.abandon(session)  # an answer that still runs here belongs above this question
    arguments = (context, user, conversation_id, text, files, cast, decoding, blind)
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

    Raises:
        PlumbError: there is no such conversation, or its last question has been answered. Whatever goes wrong
            later is shown in the last view, which never runs.
    """
    await stops.abandon(session)
    round_ = _Round(await asyncio.to_thread(read_open_question, context, user, conversation_id), cast)
    halt = stops.begin(session)
    try:
        yield round_.view(chat_view.note("Looking for the model …", busy=True))
        async with aclosing(_converse(context, user, round_, decoding, halt)) as states:
            async for status in states:
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
        # A task of its own: it goes on if this one is cancelled, and only its end is the round's end.
        keeping = asyncio.create_task(_keep(context, stops, session, halt, round_))
        trouble = await asyncio.shield(keeping)
    if halt.abandoned:
        return
    yield round_.view(trouble or summary, running=False)


async def _keep(context: Context, stops: Stops, session: str, halt: Halt, round_: _Round) -> str:
    """Store the answers, off the event loop, and end the round; returns what the page says if that failed."""
    answers = [(answer.text, answer.finish) for answer in round_.answers]
    try:
        if not round_.said:
            return ""  # the question stays open, and can be tried again
        for left in reversed(range(STORE_TRIES)):
            try:
                await asyncio.to_thread(store_answers, context, round_.conversation, round_.cast, answers)
                break
            except DatabaseBusy:
                if not left:
                    raise
        round_.kept = True
        return ""
    except PlumbError as error:
        return chat_view.problem(f"These answers are shown, but they could not be stored. {error}")
    finally:
        stops.end(session, halt)


async def _converse(
    context: Context, user: str, round_: _Round, decoding: Decoding, halt: Halt
) -> AsyncGenerator[str]:
    """Find the model and stream the answers into the round; yields the status line."""
    with Hold(context.folder) as hold:
        for _ in range(SEARCHES):
            ready = None
            async with aclosing(_searching(context, user, round_, hold)) as states:
                async for state in states:
                    if halt.asked:
                        return
                    if isinstance(state, Ready):
                        ready = state
                    else:
                        yield chat_view.waiting(state)
            assert ready is not None  # the search ends with it, or raises
            turns = round_.conversation.turns
            columns = [
                {
                    "id": name,
                    "adapter": adapter,
                    "messages": await asyncio.to_thread(history, context, turns, number, decoding.system),
                }
                for number, (name, adapter) in enumerate(zip(COLUMNS, round_.cast.adapters, strict=True))
            ]
            round_.spoke = True
            source = stream(context, ready, columns, decoding.asked())
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


def _searching(context: Context, user: str, round_: _Round, hold: Hold) -> AsyncGenerator[Waiting | Ready]:
    needed = [adapter for adapter in round_.cast.adapters if adapter is not None]
    return ready_process(context, user, round_.cast.model, needed, hold)


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
