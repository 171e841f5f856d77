"""The Chat page: base and adapter side by side. `/chat?conversation=3`, `/chat?adapter=5`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from storage.chats import delete_conversation, get_conversation, list_conversations
from storage.errors import NotFound, PlumbError
from storage.records import HIGHEST, METRICS
from workbench import chat_view
from workbench.chat_desk import (
    Cast,
    Decoding,
    View,
    cast_of,
    check_decoding,
    choices_of,
    default_cast,
    model_state,
    models_of,
    opened,
)
from workbench.chat_round import Stops, answer_last, send
from workbench.context import Context
from workbench.events import CONCURRENCY, read_id, told
from workbench.forms import Form, build_form, collect, controls_of
from workbench.vote_desk import HIDDEN, hidden_cast, is_hidden, shuffled
from workbench.vote_panel import VotePanel, standings_panel

# An answer may wait for a training: many may wait at once, and none of them does anything meanwhile.
ANSWERS_AT_ONCE = 64

QUIET: dict[str, Any] = {
    "concurrency_limit": CONCURRENCY,
    "show_progress": "hidden",
    "api_visibility": "private",
}

_CHOOSE_JS = """
element.addEventListener('click', (event) => {
  const link = event.target.closest('a[data-conversation]');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  trigger('click', {conversation: Number(link.dataset.conversation)});
});
watch('value', () => {
  const marked = element.querySelector('[data-url]');
  if (marked) history.replaceState(null, '', location.pathname + marked.dataset.url);
});
"""

_NOBODY = """### Ask both at once
Write below; add images if you like. The left column answers with the base, the right one with an adapter."""


def build(context: Context) -> gr.Blocks:
    controls = controls_of(Decoding)
    plain = [control for control in controls if control.path not in METRICS]
    steering = [control for control in controls if control.path in METRICS]
    with gr.Blocks(title="Chat · Plumb", analytics_enabled=False) as page:
        conversation = gr.State(None)
        with gr.Row(elem_classes="plumb-split plumb-chat"):
            with gr.Column(scale=1, min_width=230, elem_classes="plumb-side"):
                new = gr.Button("New conversation", size="md", elem_id="chat-new")
                model = gr.Dropdown(
                    label="Base model",
                    choices=["demo"],
                    value="demo",
                    allow_custom_value=True,
                    interactive=True,
                    elem_id="chat-model",
                )
                with gr.Accordion("Settings of the answers", open=False, elem_classes="plumb-narrow"):
                    form = build_form(plain, [control.path for control in plain])
                with gr.Accordion("Asked of SteerLM adapters", open=False, elem_classes="plumb-narrow"):
                    sliders = [
                        gr.Slider(0, HIGHEST, step=1, value=HIGHEST, label=control.title, interactive=True)
                        for control in steering
                    ]
                    form = Form((*plain, *steering), (*form.components, *sliders), form.groups)
                blind = gr.Checkbox(
                    False,
                    label="Blind",
                    info="a new conversation hides and shuffles the names until you vote",
                    elem_id="chat-blind",
                )
                search = gr.Textbox(
                    label="Search your conversations",
                    show_label=False,
                    container=False,
                    placeholder="Search your conversations",
                    max_lines=1,
                    elem_id="chat-search",
                )
                talks = gr.HTML(js_on_load=_CHOOSE_JS, apply_default_css=False, elem_id="chat-talks")
                delete = gr.Button("Delete this conversation", size="sm", visible=False, elem_id="chat-delete")
            with gr.Column(scale=5, min_width=480):
                with gr.Row(equal_height=True):
                    sides = [_side(name) for name in ("left", "right")]
                status = gr.HTML(apply_default_css=False, elem_id="chat-status")
                votes = VotePanel()
                with gr.Row(elem_classes="plumb-ask"):
                    box = gr.MultimodalTextbox(
                        file_types=["image"],
                        file_count="multiple",
                        placeholder="Message for both columns; paste or drop images. Shift+Enter breaks the line.",
                        label="Message",
                        show_label=False,
                        max_lines=8,
                        max_plain_text_length=100_000,
                        scale=8,
                        elem_id="chat-box",
                    )
                    with gr.Column(scale=0, min_width=110):
                        stop = gr.Button("Stop", variant="stop", size="md", interactive=False, elem_id="chat-stop")
                        again = gr.Button("Try again", size="md", visible=False, elem_id="chat-again")
                standings_panel(context, QUIET)
        speakers, logs = (sides[0][0], sides[1][0]), (sides[0][1], sides[1][1])
        parts = _Parts(
            conversation,
            model,
            form,
            talks,
            speakers,
            logs,
            status,
            box,
            stop,
            again,
            blind,
            votes,
            search,
            delete,
        )
        _wire(context, page, parts, new)
    return page


def _side(name: str) -> tuple[Any, Any]:
    """A column of the chat: who speaks, and what was said."""
    with gr.Column(min_width=240):
        speaker = gr.Dropdown(
            label=f"{name.capitalize()} column",
            choices=[("base (demo)", "base")],
            value="base",
            interactive=True,
            elem_id=f"chat-{name}",
        )
        log = gr.Chatbot(
            label=f"Answers, {name}",
            show_label=False,
            sanitize_html=True,
            allow_tags=False,
            latex_delimiters=[],
            feedback_options=None,
            buttons=["copy"],
            height="calc(100vh - 384px)",
            min_height=240,
            placeholder=_NOBODY,
            elem_id=f"chat-log-{name}",
        )
    return speaker, log


@dataclass(frozen=True)
class _Parts:
    """The page's components by name."""

    conversation: Any
    model: Any
    form: Form
    talks: Any
    speakers: tuple[Any, Any]
    logs: tuple[Any, Any]
    status: Any
    box: Any
    stop: Any
    again: Any
    blind: Any
    votes: VotePanel
    search: Any
    delete: Any

    @property
    def shown(self) -> list[Any]:
        changing = [self.status, self.box, self.stop, self.again, self.delete]
        return [self.conversation, self.talks, *self.logs, *changing]

    @property
    def cast(self) -> list[Any]:
        return [self.model, *self.speakers]

    def hide(self) -> dict[Any, Any]:
        """Updates that keep it secret who speaks in which column."""
        choices = [("hidden until you vote", HIDDEN)]
        return {speaker: gr.update(choices=choices, value=HIDDEN) for speaker in self.speakers}

    def show(self, view: View) -> dict[Any, Any]:
        return {
            self.conversation: view.conversation,
            self.logs[0]: view.columns[0],
            self.logs[1]: view.columns[1],
            self.status: view.status,
            self.stop: gr.update(interactive=view.running),
            self.again: gr.update(visible=view.unanswered),
            self.delete: gr.update(visible=view.conversation is not None and not view.running),
        }


def _wire(context: Context, page: gr.Blocks, parts: _Parts, new: Any) -> None:
    stops = Stops()
    # At an event's end Gradio shows its last values again; these change nothing, whatever is shown by then.
    still = {parts.status: gr.skip()}

    def talks_of(user: str, selected: int | None, cast: Cast) -> str:
        with context.database() as db:
            return chat_view.conversation_list(list_conversations(db, user), selected, cast.adapters[1])

    def cast_updates(cast: Cast) -> dict[Any, Any]:
        with context.database() as db:
            models, choices = models_of(db), choices_of(db, cast.model)
        known = [value for _, value in choices]
        updates = {parts.model: gr.update(choices=[*dict.fromkeys([*models, cast.model])], value=cast.model)}
        for speaker, adapter in zip(parts.speakers, cast.adapters, strict=True):
            value = str(adapter) if str(adapter) in known else "base"
            updates[speaker] = gr.update(choices=choices, value=value)
        return updates

    def turn_to(user: str, conversation_id: int | None, adapter: int | None = None) -> dict[Any, Any]:
        """Updates that open a conversation, or an empty one."""
        settings: dict[str, Any] = {}
        problem, hidden = "", False
        view = View(None, ([], []))
        with context.database() as db:
            try:
                cast = default_cast(db, adapter=adapter)
                if conversation_id is not None:
                    found = get_conversation(db, conversation_id, user)
                    cast, view, settings = cast_of(found), opened(found), found.settings
                    hidden = is_hidden(db, found)
            except PlumbError as error:
                cast, problem = default_cast(db), chat_view.problem(str(error))
        fields = {
            control.path: settings[control.path] for control in parts.form.controls if control.path in settings
        }
        return (
            parts.show(view)
            | cast_updates(cast)
            | (parts.hide() if hidden else {})
            | parts.form.fill(fields)
            | {parts.talks: talks_of(user, view.conversation, cast)}
            | {parts.status: problem or view.status or model_state(context, cast)}
        )

    def opening(request: gr.Request) -> dict[Any, Any]:
        query = dict(request.query_params)
        return turn_to(context.user(request), read_id(query.get("conversation")), read_id(query.get("adapter")))

    def emptied(user: str, cast: Cast) -> dict[Any, Any]:
        """Updates that show a conversation without a turn."""
        view = View(None, ([], []), model_state(context, cast))
        return parts.show(view) | {parts.talks: talks_of(user, None, cast)}

    def speakers(user: str, conversation: int | None, model: str, left: str, right: str) -> Cast:
        """Who shall answer: as the dropdowns say, or as a blind conversation keeps to itself."""
        if HIDDEN in (left, right):
            return hidden_cast(context, user, conversation)
        return Cast.read(model, left, right)

    def fresh_cast(model: str) -> Cast:
        with context.database() as db:
            return default_cast(db, model)

    def reveal(user: str, conversation: int | None) -> dict[Any, Any]:
        """Updates of the dropdowns after a vote: from then on the names are known."""
        return cast_updates(hidden_cast(context, user, conversation))

    def refused(error: PlumbError) -> dict[Any, Any]:
        """What was shown stays; no answer runs in it any more."""
        return {parts.status: chat_view.problem(str(error)), parts.stop: gr.update(interactive=False)}

    # Whoever turns to another conversation ends the answer of this one: its words would come up in the other.
    # Gradio's own `cancels` would leave "Error" in the columns.
    async def choosing(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        await stops.abandon(str(request.session_hash))
        wanted = read_id(str((event._data or {}).get("conversation")))
        try:
            if wanted is None:
                raise NotFound("There is no such conversation of yours; start a new one.")
            return await asyncio.to_thread(turn_to, context.user(request), wanted)
        except PlumbError as error:
            return refused(error)

    async def fresh(
        conversation: int | None, model: str, left: str, right: str, request: gr.Request
    ) -> dict[Any, Any]:
        await stops.abandon(str(request.session_hash))
        user = context.user(request)
        try:
            cast = await asyncio.to_thread(speakers, user, conversation, model, left, right)
            if HIDDEN in (left, right):  # who spoke stays a secret: the next pair is chosen anew
                cast = await asyncio.to_thread(fresh_cast, cast.model)
            return await asyncio.to_thread(emptied, user, cast) | await asyncio.to_thread(cast_updates, cast)
        except PlumbError as error:
            return refused(error)

    def searching(
        conversation: int | None, search: str, model: str, left: str, right: str, request: gr.Request
    ) -> dict[Any, Any]:
        user, words = context.user(request), (search or "").strip()
        cast = speakers(user, conversation, model, left, right)
        with context.database() as db:
            found = list_conversations(db, user, search=words)
        return {parts.talks: chat_view.conversation_list(found, conversation, cast.adapters[1], words)}

    def deleting(
        conversation: int | None, model: str, left: str, right: str, request: gr.Request
    ) -> dict[Any, Any]:
        if conversation is None:
            return {parts.status: chat_view.problem("No conversation is open; choose one from the list.")}
        user = context.user(request)
        cast = speakers(user, conversation, model, left, right)
        if HIDDEN in (left, right):  # an undo brings it back: who spoke stays a secret
            cast = fresh_cast(cast.model)
        with context.database() as db:
            delete_conversation(db, user, conversation)
        told_ = chat_view.note("The conversation is deleted; “Undo” on Samples or Pairs brings it back.")
        return emptied(user, cast) | cast_updates(cast) | {parts.status: told_}

    def recasting(model: str) -> dict[Any, Any]:
        with context.database() as db:
            cast = default_cast(db, (model or "").strip())
        return cast_updates(cast) | {parts.status: model_state(context, cast)}

    async def asking(
        request: gr.Request,
        conversation: int | None,
        message: Mapping[str, Any],
        model: str,
        left: str,
        right: str,
        blind: bool,
        *raw: Any,
    ) -> AsyncIterator[dict[Any, Any]]:
        user = context.user(request)
        try:
            cast = await asyncio.to_thread(speakers, user, conversation, model, left, right)
            values = collect(parts.form.controls, raw)
            begins_blind = blind and conversation is None
            if begins_blind:
                cast = shuffled(cast)
            text, files = message.get("text") or "", list(message.get("files") or ())
            session = str(request.session_hash)
            views = send(context, stops, session, user, conversation, text, files, cast, values, begins_blind)
            asked = False
            async with aclosing(views):
                async for view in views:
                    updates = parts.show(view)
                    if view.asked and not asked:
                        asked = True
                        updates[parts.box] = {"text": "", "files": []}
                        updates[parts.talks] = await asyncio.to_thread(talks_of, user, view.conversation, cast)
                        updates |= parts.hide() if begins_blind else {}
                    yield updates
            yield still
        except PlumbError as error:
            yield refused(error)

    async def retrying(
        request: gr.Request, conversation: int | None, model: str, left: str, right: str, blind: bool, *raw: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        if conversation is None:
            return
        try:
            cast = await asyncio.to_thread(speakers, context.user(request), conversation, model, left, right)
            decoding = check_decoding(collect(parts.form.controls, raw))
            session, user = str(request.session_hash), context.user(request)
            views = answer_last(context, stops, session, user, conversation, cast, decoding)
            async with aclosing(views):
                async for view in views:
                    yield parts.show(view)
            yield still
        except PlumbError as error:
            yield refused(error)

    async def stopping(request: gr.Request) -> None:
        stops.stop(str(request.session_hash))

    everything = [*parts.shown, *parts.cast, *parts.form.components]
    settings = [*parts.cast, parts.blind, *parts.form.components]
    answered = [*parts.shown, *parts.speakers]
    answering = {**QUIET, "concurrency_limit": ANSWERS_AT_ONCE, "trigger_mode": "once"}
    look = parts.votes.wire(context, parts.conversation, reveal, parts.cast, QUIET)
    followed = [
        page.load(told(opening), None, everything, **QUIET),
        parts.talks.click(choosing, None, everything, **QUIET),
        new.click(fresh, [parts.conversation, *parts.cast], [*parts.shown, *parts.cast], **QUIET),
        parts.box.submit(asking, [parts.conversation, parts.box, *settings], answered, **answering),
        parts.again.click(retrying, [parts.conversation, *settings], parts.shown, **answering),
        parts.delete.click(
            told(deleting), [parts.conversation, *parts.cast], [*parts.shown, *parts.cast], **QUIET
        ),
    ]
    for event in followed:
        event.then(look, [parts.conversation], parts.votes.outputs, **QUIET)
    parts.search.input(
        told(searching),
        [parts.conversation, parts.search, *parts.cast],
        [parts.talks],
        trigger_mode="always_last",
        **QUIET,
    )
    parts.model.input(told(recasting), [parts.model], [*parts.cast, parts.status], **QUIET)
    parts.stop.click(stopping, None, None, **QUIET)
