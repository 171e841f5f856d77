"""The Chat page's events: opening, asking, stopping, retrying, editing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from storage.chats import delete_conversation, get_conversation, list_conversations
from storage.errors import NotFound, PlumbError
from storage.records import Conversation
from storage.speakers import sides
from workbench import chat_edit, chat_view
from workbench.chat_casting import cast_for, cast_held, offered
from workbench.chat_desk import (
    Cast,
    Decoding,
    View,
    cast_of,
    check_decoding,
    last_answers,
    model_state,
    opened,
    settings_of,
)
from workbench.chat_parts import EMPTY, Parts, Updates
from workbench.chat_round import Stops, answer_column, answer_last, send
from workbench.context import Context
from workbench.events import CONCURRENCY, read_id, told
from workbench.forms import collect
from workbench.vote_desk import HIDDEN, hidden_cast, is_hidden, shuffled

# An answer may wait for a training: many may wait at once, and none of them does anything meanwhile.
ANSWERS_AT_ONCE = 64

QUIET: dict[str, Any] = {
    "concurrency_limit": CONCURRENCY,
    "show_progress": "hidden",
    "api_visibility": "private",
}


class Desk:
    """What the page's events do; each method's updates are for the parts that `wire` names as its outputs."""

    def __init__(self, context: Context, parts: Parts) -> None:
        self.context, self.parts = context, parts
        self.stops = Stops()
        # At an event's end Gradio shows its last values again; these change nothing, whatever is shown by then.
        self.still: Updates = {parts.status: gr.skip()}

    # --- what is open ---

    def talks_of(self, user: str, selected: int | None, cast: Cast, search: str = "") -> str:
        with self.context.database() as db:
            found = list_conversations(db, user, search=search)
        return chat_view.conversation_list(found, selected, cast.speakers[-1].adapter, search)

    def cast_updates(self, cast: Cast) -> Updates:
        return self.parts.show_cast(cast, *offered(self.context, cast.model))

    def turn_to(self, user: str, conversation_id: int | None, adapter: int | None = None) -> Updates:
        """Updates that open a conversation, or an empty one."""
        parts, settings, problem, hidden = self.parts, {}, "", False
        view = View(None, ([], []))
        with self.context.database() as db:
            try:
                cast = cast_for(db, "demo", 2, adapter)
                if conversation_id is not None:
                    found = get_conversation(db, conversation_id, user)
                    cast, view, settings = cast_of(found), opened(found), settings_of(found)
                    hidden = is_hidden(db, found, user)
            except PlumbError as error:
                cast, problem = cast_for(db, "demo", 2), chat_view.problem(str(error))
        return (
            parts.show(view)
            | self.cast_updates(cast)
            | (parts.hide() if hidden else {})
            | parts.fill({"without_images": 0, **settings})
            | {parts.talks: self.talks_of(user, view.conversation, cast), **self.no_editing()}
            | {parts.status: problem or view.status or model_state(self.context, cast)}
        )

    def no_editing(self) -> Updates:
        return {self.parts.editing: None, self.parts.draft: EMPTY, self.parts.bar: ""}

    def put_back(self, editing: int | None, draft: Mapping[str, Any]) -> Updates:
        """Updates that end an edit: what stood in the box before comes back."""
        return {**self.no_editing(), **({self.parts.box: dict(draft)} if editing is not None else {})}

    def emptied(self, user: str, cast: Cast) -> Updates:
        """Updates that show a conversation without a turn."""
        columns: tuple[list[Any], ...] = tuple([] for _ in cast.speakers)
        view = View(None, columns, model_state(self.context, cast))
        return (
            self.parts.show(view)
            | self.no_editing()
            | self.parts.fill({"without_images": 0})
            | {self.parts.talks: self.talks_of(user, None, cast)}
        )

    def begun(self, user: str, conversation: int | None, held: Cast, hidden: bool) -> Updates:
        """Updates of a new conversation with the same speakers; after a blind one, with others."""
        cast = held
        if hidden:  # who spoke stays a secret: the next ones are chosen anew
            with self.context.database() as db:
                cast = cast_for(db, held.model, len(held.speakers))
        return self.emptied(user, cast) | self.cast_updates(cast)

    def refused(self, error: PlumbError) -> Updates:
        """What was shown stays; no answer runs in it any more."""
        return {
            self.parts.status: chat_view.problem(str(error)),
            self.parts.stop: gr.update(interactive=False),
        }

    def reveal(self, user: str, conversation: int | None) -> Updates:
        """Updates of the dropdowns after a vote: from then on the names are known."""
        updates = self.cast_updates(hidden_cast(self.context, user, conversation))
        return {part: updates[part] for part in self.parts.speakers}

    # --- opening and beginning ---

    def opening(self, request: gr.Request) -> Updates:
        query = dict(request.query_params)
        asked = read_id(query.get("conversation")), read_id(query.get("adapter"))
        return self.turn_to(self.context.user(request), *asked)

    # Whoever turns to another conversation ends the answer of this one: its words would come up in the other.
    # Gradio's own `cancels` would leave "Error" in the columns.
    async def choosing(
        self, event: gr.EventData, request: gr.Request, editing: int | None = None, draft: Any = EMPTY
    ) -> Updates:
        await self.stops.abandon(str(request.session_hash))
        wanted = read_id(str((event._data or {}).get("conversation")))
        try:
            if wanted is None:
                raise NotFound("There is no such conversation of yours; start a new one.")
            opened_ = await asyncio.to_thread(self.turn_to, self.context.user(request), wanted)
            return opened_ | self.put_back(editing, draft)
        except PlumbError as error:
            return self.refused(error)

    async def fresh(
        self,
        request: gr.Request,
        editing: int | None,
        draft: Mapping[str, Any],
        conversation: int | None,
        model: str,
        number: str,
        *spelt: str,
    ) -> Updates:
        await self.stops.abandon(str(request.session_hash))
        user = self.context.user(request)
        try:
            cast = await asyncio.to_thread(self.held, user, conversation, model, number, spelt)
            begun = await asyncio.to_thread(self.begun, user, conversation, cast, HIDDEN in spelt)
            return begun | self.put_back(editing, draft)
        except PlumbError as error:
            return self.refused(error)

    async def counting(
        self,
        request: gr.Request,
        editing: int | None,
        draft: Mapping[str, Any],
        conversation: int | None,
        model: str,
        number: str,
    ) -> Updates:
        """Another number of columns: a new conversation, since an open one keeps its own."""
        await self.stops.abandon(str(request.session_hash))
        user = self.context.user(request)

        def begin() -> Updates:
            with self.context.database() as db:
                cast = cast_for(db, (model or "").strip(), int(number))
            updates = self.emptied(user, cast) | self.cast_updates(cast)
            if conversation is not None:
                note = f"A new conversation with {number} columns; the other one keeps its own and is in the list."
                updates[self.parts.status] = chat_view.note(note)
            return updates | self.put_back(editing, draft)

        try:
            return await asyncio.to_thread(begin)
        except PlumbError as error:
            return self.refused(error)

    def recasting(self, model: str, number: str) -> Updates:
        with self.context.database() as db:
            cast = cast_for(db, (model or "").strip(), int(number))
        return self.cast_updates(cast) | {self.parts.status: model_state(self.context, cast)}

    def searching(
        self, request: gr.Request, conversation: int | None, search: str, model: str, number: str, *spelt: str
    ) -> Updates:
        user = self.context.user(request)
        cast = self.held(user, conversation, model, number, spelt)
        return {self.parts.talks: self.talks_of(user, conversation, cast, (search or "").strip())}

    def deleting(
        self,
        request: gr.Request,
        editing: int | None,
        draft: Mapping[str, Any],
        conversation: int | None,
        model: str,
        number: str,
        *spelt: str,
    ) -> Updates:
        if conversation is None:
            return {self.parts.status: chat_view.problem("No conversation is open; choose one from the list.")}
        user = self.context.user(request)
        cast = self.held(user, conversation, model, number, spelt)
        with self.context.database() as db:
            delete_conversation(db, user, conversation)
        note = "The conversation is deleted; “Undo” on Samples or Pairs brings it back."
        begun = self.begun(user, None, cast, HIDDEN in spelt) | self.put_back(editing, draft)
        return begun | {self.parts.status: chat_view.note(note)}

    def held(self, user: str, conversation: int | None, model: str, number: str, spelt: Any) -> Cast:
        return cast_held(self.context, user, conversation, model, number, spelt)

    # --- asking ---

    async def asking(
        self,
        request: gr.Request,
        conversation: int | None,
        message: Mapping[str, Any],
        editing: int | None,
        draft: Mapping[str, Any],
        blind: bool,
        model: str,
        number: str,
        *rest: Any,
    ) -> AsyncIterator[Updates]:
        user, session = self.context.user(request), str(request.session_hash)
        spelt, raw = rest[:3], rest[3:]
        try:
            cast = await asyncio.to_thread(self.held, user, conversation, model, number, spelt)
            values = collect(self.parts.form.controls, raw)
            begins_blind = blind and conversation is None
            if begins_blind:
                cast = shuffled(cast)
            text, files = message.get("text") or "", list(message.get("files") or ())
            arguments = (user, conversation, text, files, cast, values, begins_blind, editing)
            views = send(self.context, self.stops, session, *arguments)
            asked = False
            async with aclosing(views):
                async for view in views:
                    updates = self.parts.show(view)
                    if view.asked and not asked:
                        asked = True
                        updates |= {self.parts.box: dict(draft if editing is not None else EMPTY)}
                        updates |= self.no_editing()
                        talks = await asyncio.to_thread(self.talks_of, user, view.conversation, cast)
                        updates[self.parts.talks] = talks
                        updates |= self.parts.hide() if begins_blind else {}
                    yield updates | (self.parts.bar_of(view) if not view.running else {})
            yield self.still
        except PlumbError as error:
            yield self.refused(error)

    async def retrying(
        self, request: gr.Request, conversation: int | None, model: str, number: str, *rest: Any
    ) -> AsyncIterator[Updates]:
        """Ask the open question again."""
        if conversation is None:
            return
        user = self.context.user(request)
        try:
            cast = await asyncio.to_thread(self.held, user, conversation, model, number, rest[:3])
            decoding = check_decoding(collect(self.parts.form.controls, rest[3:]))
            views = answer_last(
                self.context, self.stops, str(request.session_hash), user, conversation, cast, decoding
            )
            async with aclosing(self.frames_of(views)) as frames:
                async for updates in frames:
                    yield updates
        except PlumbError as error:
            yield self.refused(error)

    async def frames_of(self, views: AsyncGenerator[View]) -> AsyncGenerator[Updates]:
        async with aclosing(views):
            async for view in views:
                yield self.parts.show(view) | (self.parts.bar_of(view) if not view.running else {})
        yield self.still

    # --- one column, one question ---

    async def acting(
        self,
        event: gr.EventData,
        request: gr.Request,
        conversation: int | None,
        editing: int | None,
        draft: Mapping[str, Any],
        message: Mapping[str, Any],
        model: str,
        number: str,
        *rest: Any,
    ) -> AsyncIterator[Updates]:
        """The buttons under the columns, in the bar, and the pencils."""
        data = event._data or {}
        act, column, turn = str(data.get("act")), data.get("column"), read_id(str(data.get("turn")))
        user, session = self.context.user(request), str(request.session_hash)
        if conversation is None:
            yield self.still
            return
        try:
            match act:
                case "stop" if isinstance(column, int):
                    names = sides(int(number))
                    if 0 <= column < len(names):
                        self.stops.stop(session, names[column])
                    yield self.still
                case "retry" | "continue" if isinstance(column, int):
                    decoding = check_decoding(collect(self.parts.form.controls, rest[3:]))
                    arguments = (user, conversation, column, decoding, act == "continue")
                    views = answer_column(self.context, self.stops, session, *arguments)
                    async with aclosing(self.frames_of(views)) as frames:
                        async for updates in frames:
                            yield updates
                case "edit" if turn is not None:
                    kept = draft if editing is not None else message
                    yield await asyncio.to_thread(self.edit, user, conversation, turn, kept)
                case "cancel":
                    yield self.put_back(editing, draft)
                case "delete" if editing is not None:
                    await self.stops.abandon(session)
                    cut = await asyncio.to_thread(self.cut, user, conversation, editing)
                    yield cut | self.put_back(editing, draft)
                case "leave":
                    async with aclosing(self.leaving(session, user, conversation, model, number, rest)) as frames:
                        async for updates in frames:
                            yield updates
                case "new":
                    await self.stops.abandon(session)
                    cast = await asyncio.to_thread(self.held, user, conversation, model, number, rest[:3])
                    yield await asyncio.to_thread(self.begun, user, conversation, cast, HIDDEN in rest[:3])
                case _:
                    yield self.still
        except PlumbError as error:
            yield self.refused(error)

    def edit(self, user: str, conversation: int, turn: int, kept: Mapping[str, Any]) -> Updates:
        """Put a question into the box; the conversation changes only when it is sent.

        Args:
            kept: what stood in the box, for the edit's end.
        """
        found = chat_edit.question(self.context, user, conversation, turn)
        # Gradio shows, and takes back, only what lies in its own folder.
        files = [save_file_to_cache(file, self.parts.box.GRADIO_CACHE) for file in found.files]
        with self.context.database() as db:
            asked = opened(get_conversation(db, conversation, user)).questions
        place = asked.index(turn) + 1 if turn in asked else 1
        return {
            self.parts.box: {"text": found.text, "files": files},
            self.parts.editing: turn,
            self.parts.draft: {"text": kept.get("text") or "", "files": list(kept.get("files") or ())},
            self.parts.bar: chat_view.editing(place),
        }

    def cut(self, user: str, conversation: int, turn: int) -> Updates:
        """Delete the question that is being edited, with all that follows."""
        chat_edit.cut_from(self.context, user, conversation, turn)
        note = "Deleted from that question on; “Undo” on Samples or Pairs brings it back."
        return self.turn_to(user, conversation) | {self.parts.status: chat_view.note(note)}

    async def leaving(
        self, session: str, user: str, conversation: int, model: str, number: str, rest: tuple[Any, ...]
    ) -> AsyncGenerator[Updates]:
        """Leave the oldest image out and ask again: all columns, or those whose answer failed."""
        values = collect(self.parts.form.controls, rest[3:])
        values["without_images"] = int(values.get("without_images") or 0) + 1
        decoding: Decoding = check_decoding(values)
        yield self.parts.fill({"without_images": decoding.without_images})
        found = await asyncio.to_thread(self.read, user, conversation)
        if opened(found).unanswered:
            cast = await asyncio.to_thread(self.held, user, conversation, model, number, rest[:3])
            rounds = [answer_last(self.context, self.stops, session, user, conversation, cast, decoding)]
        else:
            failed = [column for column, turn in last_answers(found).items() if turn.finish == "failed"]
            rounds = [
                answer_column(self.context, self.stops, session, user, conversation, column, decoding, False)
                for column in failed
            ]
        for views in rounds:
            async with aclosing(self.frames_of(views)) as frames:
                async for updates in frames:
                    yield updates

    def read(self, user: str, conversation: int) -> Conversation:
        with self.context.database() as db:
            return get_conversation(db, conversation, user)

    async def stopping(self, request: gr.Request) -> None:
        self.stops.stop(str(request.session_hash))


def wire(context: Context, page: gr.Blocks, parts: Parts) -> None:
    """Tie the parts to what they do."""
    desk = Desk(context, parts)
    opened_ = [*parts.everything]
    asked = [*parts.cast, *parts.form.components]
    answered = [*parts.shown, *parts.speakers]
    answering = {**QUIET, "concurrency_limit": ANSWERS_AT_ONCE, "trigger_mode": "once"}
    acting = {**QUIET, "concurrency_limit": ANSWERS_AT_ONCE, "trigger_mode": "multiple"}
    edited = [parts.editing, parts.draft]
    acted = [parts.conversation, *edited, parts.box, *asked]
    look = parts.votes.wire(context, parts.conversation, desk.reveal, parts.speakers, QUIET)
    followed = [
        page.load(told(desk.opening), None, opened_, **QUIET),
        parts.talks.click(desk.choosing, edited, opened_, **QUIET),
        parts.new.click(desk.fresh, [*edited, parts.conversation, *parts.cast], opened_, **QUIET),
        parts.number.input(
            desk.counting, [*edited, parts.conversation, parts.model, parts.number], opened_, **QUIET
        ),
        parts.box.submit(
            desk.asking,
            [parts.conversation, parts.box, parts.editing, parts.draft, parts.blind, *asked],
            answered,
            **answering,
        ),
        parts.again.click(desk.retrying, [parts.conversation, *asked], parts.shown, **answering),
        parts.acts.click(desk.acting, acted, opened_, **acting),
        parts.bar.click(desk.acting, acted, opened_, **acting),
        parts.delete.click(told(desk.deleting), [*edited, parts.conversation, *parts.cast], opened_, **QUIET),
    ]
    for event in followed:
        event.then(look, [parts.conversation], parts.votes.outputs, **QUIET)
    parts.search.input(
        told(desk.searching),
        [parts.conversation, parts.search, *parts.cast],
        [parts.talks],
        trigger_mode="always_last",
        **QUIET,
    )
    parts.model.input(
        told(desk.recasting), [parts.model, parts.number], [*parts.cast, *parts.frames, parts.status], **QUIET
    )
    parts.stop.click(desk.stopping, None, None, **QUIET)
