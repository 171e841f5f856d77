"""One round of the chat: a question answered by all columns, or by one again; streamed, stopped, stored.

Plain asynchronous generators above Gradio: they take plain values and yield what the page shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace as changed
from typing import Any

from storage.chat_edits import Answer
from storage.errors import DatabaseBusy, PlumbError
from storage.records import Conversation
from workbench import chat_view
from workbench.chat_again import read_again
from workbench.chat_desk import (
    Cast,
    Decoding,
    View,
    asked_with,
    check_decoding,
    check_message,
    read_open_question,
    store_again,
    store_answers,
    store_question,
)
from workbench.chat_history import history
from workbench.chat_own import Asked, own_answers
from workbench.chat_state import Round, Speech
from workbench.chat_streams import Halt, Told, paced, until_stopped
from workbench.context import Context
from workbench.vote_desk import is_hidden

STORE_TRIES = 3  # each waits for the database's lock as long as any write does

Store = Callable[[], Conversation]


class Stops:
    """Which browser sessions asked their answers to stop. All calls come from the event loop's thread."""

    def __init__(self) -> None:
        self._halts: dict[str, Halt] = {}

    def begin(self, session: str) -> Halt:
        if session in self._halts:  # an answer that still runs in this session gives way
            self._halts[session].ask(abandon=True)
        self._halts[session] = Halt()
        return self._halts[session]

    def stop(self, session: str, side: str | None = None) -> None:
        """Stop this session's answers, or what one of its columns says."""
        if session in self._halts:
            self._halts[session].ask(side)

    async def abandon(self, session: str) -> None:
        """Stop, and wait until what was said is stored and nothing more will be shown."""
        halt = self._halts.get(session)
        if halt is not None:
            halt.ask(abandon=True)
            with suppress(TimeoutError):  # what it still stores then has a place of its own
                await asyncio.wait_for(halt.ended.wait(), 5.0)

    def end(self, session: str, halt: Halt) -> None:
        halt.ended.set()
        if self._halts.get(session) is halt:
            del self._halts[session]


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
    replace: int | None = None,
) -> AsyncGenerator[View]:
    """Store the question, then have it answered.

    Args:
        blind: a conversation that begins with it keeps its names secret until its owner has voted.
        replace: the turn of a question that this one stands for; all that followed goes, and one undo brings it
            back.

    Raises:
        PlumbError: the question could not be stored, or has vanished since.
    """
    decoding = check_decoding(values)
    if conversation_id is None:  # what was left out of another conversation says nothing about this one
        decoding = decoding.model_copy(update={"without_images": 0})
    check_message(text, files, cast)
    await stops.abandon(session)  # an answer that still runs here belongs above this question
    arguments = (context, user, conversation_id, text, files, cast, decoding, blind, replace)
    stored = await asyncio.to_thread(store_question, *arguments)
    async with aclosing(answer_last(context, stops, session, user, stored, cast, decoding)) as views:
        async for view in views:
            yield view


async def answer_last(
    context: Context, stops: Stops, session: str, user: str, conversation_id: int, cast: Cast, decoding: Decoding
) -> AsyncGenerator[View]:
    """Have the conversation's last question answered by all columns, and store what they said.

    Closing this iterator (a closed tab) stops the decoding and stores what there is. It yields often, also
    while nothing happens: between two yields nobody could tell it that the tab has gone.

    Raises:
        PlumbError: there is no such conversation, its last question has been answered, or a speaker is not
            there. Whatever goes wrong later is shown in the last view, which never runs.
    """
    await stops.abandon(session)
    found = await asyncio.to_thread(read_open_question, context, user, conversation_id, cast)
    speeches = tuple(
        Speech(number, side, speaker)
        for number, (side, speaker) in enumerate(zip(cast.sides, cast.speakers, strict=True))
    )
    round_ = await _round(context, found, cast, speeches, decoding)

    def store() -> Conversation:
        said = [_answer(speech, {}) for speech in round_.speeches]
        return store_answers(context, found, asked_with(cast, decoding), said)

    async with aclosing(_run(context, stops, session, user, round_, decoding, store)) as views:
        async for view in views:
            yield view


async def answer_column(
    context: Context,
    stops: Stops,
    session: str,
    user: str,
    conversation_id: int,
    column: int,
    decoding: Decoding,
    go_on: bool,
) -> AsyncGenerator[View]:
    """Have the last question answered again in one column, or its answer there gone on with.

    Who spoke there speaks again, with the system prompt that the question was asked with. A new try is drawn with
    another seed than any before. The old answer and the votes on it go into the undo log; where nothing comes of
    the new one, the old one stays.

    Args:
        column: its number, from the left.
        go_on: from where the answer was cut (`View.cut`), instead of trying again (`View.answered`).

    Raises:
        PlumbError: there is no such answer, it has its end already, or its speaker is not there. Whatever goes
            wrong later is shown in the last view.
    """
    await stops.abandon(session)
    again = await asyncio.to_thread(read_again, context, user, conversation_id, column, decoding, go_on)
    speech = Speech(column, again.cast.sides[column], again.cast.speakers[column], again.old, again.begin)
    round_ = await _round(context, again.conversation, again.cast, (speech,), again.decoding)
    round_.note = again.note

    def store() -> Conversation:
        answer = _answer(speech, again.settings)
        return store_again(context, again.conversation, again.old, answer, going_on=go_on)

    async with aclosing(_run(context, stops, session, user, round_, again.decoding, store)) as views:
        async for view in views:
            yield view


async def _round(
    context: Context, conversation: Conversation, cast: Cast, speeches: tuple[Speech, ...], decoding: Decoding
) -> Round:
    def hidden() -> bool:
        with context.database() as db:
            return is_hidden(db, conversation)

    return Round(conversation, cast, speeches, await asyncio.to_thread(hidden), decoding.without_images)


def _answer(speech: Speech, settings: Mapping[str, Any]) -> Answer:
    speaker = speech.speaker
    return Answer(speech.column, speaker.model, speaker.adapter, speech.whole, speech.finish, settings)


async def _run(
    context: Context, stops: Stops, session: str, user: str, round_: Round, decoding: Decoding, store: Store
) -> AsyncGenerator[View]:
    halt = stops.begin(session)
    try:
        yield round_.view(chat_view.note("Looking for the model …", busy=True))
        sources = await asyncio.to_thread(_sources, context, user, round_, decoding, halt)
        async with aclosing(paced(sources, halt)) as frames:
            async for frame in frames:
                for event in frame:
                    round_.take(event)
                if halt.abandoned:
                    break
                yield round_.view(round_.status())
        round_.close("stopped" if halt.asked else "failed")
        summary = round_.summary()
    except PlumbError as error:
        round_.close("failed")
        summary = chat_view.problem(str(error))
    finally:
        round_.close("stopped")
        # A task of its own: it goes on if this one is cancelled, and only its end is the round's end.
        keeping = asyncio.create_task(_keep(stops, session, halt, round_, store))
        trouble = await asyncio.shield(keeping)
    if halt.abandoned:
        return
    yield round_.view(trouble or summary, running=False)


async def _keep(stops: Stops, session: str, halt: Halt, round_: Round, store: Store) -> str:
    """Store what was said, off the event loop, and end the round; returns what the page says if that failed."""
    try:
        again = any(speech.old for speech in round_.speeches)
        if not (any(speech.replaces for speech in round_.speeches) if again else round_.said):
            return ""  # the question stays open, or the old answer as it was: both can be tried again
        for left in reversed(range(STORE_TRIES)):
            try:
                round_.kept = await asyncio.to_thread(store)
                break
            except DatabaseBusy:
                if not left:
                    raise
        return ""
    except PlumbError as error:
        return chat_view.problem(f"These answers are shown, but they could not be stored. {error}")
    finally:
        stops.end(session, halt)


def _sources(
    context: Context, user: str, round_: Round, decoding: Decoding, halt: Halt
) -> list[AsyncGenerator[Told]]:
    """Who is asked: the base's process for all of its columns at once, and each endpoint for itself.

    Raises:
        UserError: an image's file is missing.
    """
    question = next(turn for turn in reversed(round_.conversation.turns) if turn.role == "user")
    turns = [turn for turn in round_.conversation.turns if turn.position <= question.position]
    read: dict[str, str] = {}
    own: list[dict[str, Any]] = []
    sources: list[AsyncGenerator[Told]] = []
    for speech in round_.speeches:
        messages = history(context, turns, speech.column, decoding.system, decoding.without_images, read)
        if speech.speaker.outside is None:
            begun = {"prefix": speech.begin} if speech.begin else {}
            own.append({"id": speech.side, "adapter": speech.speaker.adapter, "messages": messages, **begun})
            continue
        from workbench.outside_chat import stream_outside

        answers = stream_outside(context.settings, speech.side, speech.speaker, messages, decoding)
        sources.append(until_stopped(answers, speech.side, halt))
    if own:
        adapters = changed(round_.cast, speakers=tuple(speech.speaker for speech in round_.speeches)).needed
        asked = Asked(user, round_.cast.model, adapters, own, decoding.asked())
        sources.append(own_answers(context, asked, halt))
    return sources
