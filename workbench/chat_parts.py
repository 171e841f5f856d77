"""The Chat page's components, and how a view is shown in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from storage.records import HIGHEST, METRICS
from storage.speakers import MOST, SIDES, sides
from workbench import chat_view
from workbench.chat_desk import Cast, Decoding, View
from workbench.forms import Choice, Form, build_form, controls_of
from workbench.vote_desk import HIDDEN
from workbench.vote_panel import VotePanel

ALL_SIDES = sides(MOST)

Updates = dict[Any, Any]

EMPTY: dict[str, Any] = {"text": "", "files": []}  # the box with nothing in it

_CHOOSE_JS = """
element.addEventListener('click', (event) => {
  const copy = event.target.closest('a[data-copy]');
  if (copy) {
    event.preventDefault();
    navigator.clipboard?.writeText(copy.href).then(() => { copy.textContent = 'Link copied'; });
    return;
  }
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

# The buttons under the columns and in the bar. The pencils stand in the chatbots, which tell nothing of clicks.
_ACT_JS = """
const told = (target) => {
  const {act, column} = target.dataset;
  trigger('click', {act, column: column === undefined ? null : Number(column)});
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-act]');
  if (button) told(button);
});
// A pressed button makes room for another one; the focus goes there, not to the page's top.
let group = null;
element.addEventListener('focusin', (event) => { group = event.target.closest('[role=group]'); });
document.addEventListener('focusin', (event) => { if (!element.contains(event.target)) group = null; });
watch('value', () => {
  if (group?.isConnected && document.activeElement === document.body)
    group.querySelector('button:not([hidden])')?.focus();
});
"""
_PENCIL_JS = """
document.addEventListener('click', (event) => {
  const pencil = event.target.closest('a[href*="#edit-"]');
  if (!pencil || !pencil.closest('.plumb-chat')) return;
  event.preventDefault();
  trigger('click', {act: 'edit', turn: Number(pencil.getAttribute('href').split('#edit-')[1])});
}, true);
document.addEventListener('keydown', (event) => {
  const here = event.target === document.body || event.target.closest('#chat-box, #chat-bar, .chat-log');
  if (event.key === 'Escape' && here) element.querySelector('[data-act=cancel]')?.click();
});
// Gradio calls each column "chatbot conversation", and a box whose label isn't shown nothing at all.
const named = {'#chat-box textarea': 'Message'};
for (const side of ['left', 'middle', 'right']) named[`#chat-log-${side} [role=log]`] = `Answers, ${side} column`;
const names = new MutationObserver(() => {
  for (const [where, name] of Object.entries(named)) {
    const found = document.querySelector(where);
    if (found && found.getAttribute('aria-label') !== name) found.setAttribute('aria-label', name);
  }
});
names.observe(element.closest('.plumb-chat'), {childList: true, subtree: true});
watch('value', () => {
  if (!element.querySelector('[data-act=cancel]')) return;
  const box = document.querySelector('#chat-box');
  box?.querySelector('textarea')?.focus({preventScroll: true});
  // Its images come a moment later, and make it higher.
  setTimeout(() => box?.scrollIntoView({block: 'nearest', behavior: 'smooth'}), 250);
});
"""

_NOBODY = """### Ask all at once
Write below; add images if you like. Who answers in a column is chosen above it: the base, an adapter of it, or an
outside model."""


@dataclass(frozen=True)
class Side:
    """A column: its frame, who speaks, what was said."""

    frame: Any
    speaker: Any
    log: Any


def build_side(name: str) -> Side:
    with gr.Column(min_width=200, visible=name != "middle") as frame:
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
            latex_delimiters=chat_view.FORMULAS,
            feedback_options=None,
            buttons=["copy"],
            height="calc(100vh - 452px)",
            min_height=200,
            placeholder=_NOBODY,
            elem_id=f"chat-log-{name}",
            elem_classes="chat-log",
        )
    return Side(frame, speaker, log)


@dataclass
class Parts:
    """The page's components by name. Made inside the current Blocks."""

    conversation: Any = field(init=False)
    editing: Any = field(init=False)  # the turn of the question that the next message replaces
    draft: Any = field(init=False)  # what stood in the box before that

    def __post_init__(self) -> None:
        self.conversation = gr.State(None)
        self.editing = gr.State(None)
        self.draft = gr.State(EMPTY)
        with gr.Row(elem_classes="plumb-split plumb-chat"):
            with gr.Column(scale=1, min_width=220, elem_classes="plumb-side"):
                self._build_choices()
            with gr.Column(scale=5, min_width=480):
                self._build_talk()

    def _build_choices(self) -> None:
        controls = controls_of(Decoding)
        plain = [control for control in controls if control.path not in METRICS]
        steering = [control for control in controls if control.path in METRICS]
        self.new = gr.Button("New conversation", size="md", elem_id="chat-new")
        self.model = gr.Dropdown(
            label="Base model",
            choices=["demo"],
            value="demo",
            allow_custom_value=True,
            interactive=True,
            elem_id="chat-model",
        )
        self.number = gr.Radio(
            [str(number) for number in SIDES],
            value="2",
            label="Columns",
            interactive=True,
            elem_id="chat-columns",
        )
        with gr.Accordion("Settings of the answers", open=False, elem_classes="plumb-narrow"):
            form = build_form(plain, [control.path for control in plain])
        with gr.Accordion("Asked of SteerLM adapters", open=False, elem_classes="plumb-narrow"):
            sliders = [
                gr.Slider(0, HIGHEST, step=1, value=HIGHEST, label=control.title, interactive=True)
                for control in steering
            ]
        self.form = Form((*plain, *steering), (*form.components, *sliders), form.groups)
        self.blind = gr.Checkbox(
            False,
            label="Blind",
            info="a new conversation hides and shuffles the names until you vote",
            elem_id="chat-blind",
        )
        self.search = gr.Textbox(
            label="Search your conversations",
            show_label=False,
            container=False,
            placeholder="Search your conversations",
            max_lines=1,
            elem_id="chat-search",
        )
        self.talks = gr.HTML(js_on_load=_CHOOSE_JS, apply_default_css=False, elem_id="chat-talks")
        self.delete = gr.Button("Delete this conversation", size="sm", visible=False, elem_id="chat-delete")

    def _build_talk(self) -> None:
        with gr.Row(equal_height=True):
            self.sides = {name: build_side(name) for name in ALL_SIDES}
        self.acts = gr.HTML(js_on_load=_ACT_JS, apply_default_css=False, elem_id="chat-acts")
        self.status = gr.HTML(apply_default_css=False, elem_id="chat-status")
        self.votes = VotePanel()
        self.bar = gr.HTML(js_on_load=_ACT_JS + _PENCIL_JS, apply_default_css=False, elem_id="chat-bar")
        with gr.Row(elem_classes="plumb-ask"):
            self.box = gr.MultimodalTextbox(
                file_types=["image"],
                file_count="multiple",
                placeholder="Message for all columns; paste or drop images. Shift+Enter breaks the line.",
                label="Message",
                show_label=False,
                max_lines=8,
                max_plain_text_length=100_000,
                scale=8,
                elem_id="chat-box",
            )
            with gr.Column(scale=0, min_width=110):
                self.stop = gr.Button("Stop", variant="stop", size="md", interactive=False, elem_id="chat-stop")
                self.again = gr.Button("Try again", size="md", visible=False, elem_id="chat-again")

    @property
    def speakers(self) -> list[Any]:
        return [side.speaker for side in self.sides.values()]

    @property
    def cast(self) -> list[Any]:
        """What says who shall answer."""
        return [self.model, self.number, *self.speakers]

    @property
    def shown(self) -> list[Any]:
        """What a view changes."""
        logs = [side.log for side in self.sides.values()]
        changing = [self.acts, self.status, self.bar, self.box, self.editing, self.draft]
        return [self.conversation, self.talks, *logs, *changing, self.stop, self.again, self.delete]

    @property
    def frames(self) -> list[Any]:
        return [side.frame for side in self.sides.values()]

    @property
    def everything(self) -> list[Any]:
        return [*self.shown, *self.cast, *self.frames, *self.form.components]

    def show(self, view: View) -> Updates:
        names = sides(len(view.columns))
        none = (False,) * len(names)
        updates: Updates = {
            self.conversation: view.conversation,
            self.acts: chat_view.column_acts(view.live or none, view.cut or none, view.answered or none),
            self.status: view.status,
            self.stop: gr.update(interactive=view.running),
            self.again: gr.update(visible=view.unanswered),
            self.delete: gr.update(visible=view.conversation is not None and not view.running),
        }
        for name, column in zip(names, view.columns, strict=True):
            updates[self.sides[name].log] = column
        return updates

    def bar_of(self, view: View) -> Updates:
        """The bar over the box after a round: what to do about one that was too long."""
        return {self.bar: chat_view.too_long(view.images) if view.too_long else ""}

    def show_cast(self, cast: Cast, models: list[str], choices: list[Choice]) -> Updates:
        """Updates of the dropdowns and frames."""
        known = [value for _, value in choices]
        updates: Updates = {
            self.model: gr.update(choices=[*dict.fromkeys([*models, cast.model])], value=cast.model),
            self.number: str(len(cast.speakers)),
        }
        held = dict(zip(cast.sides, cast.speakers, strict=True))
        for name, side in self.sides.items():
            spelt = held[name].spelling if name in held else "base"
            # Whom a conversation is with and who isn't there now stays named: the base in its place would answer
            # the next question in silence.
            gone = [] if spelt in known else [(f"{spelt} (not there now)", spelt)]
            updates[side.speaker] = gr.update(choices=[*choices, *gone], value=spelt)
            updates[side.frame] = gr.update(visible=name in held)
        return updates

    def hide(self) -> Updates:
        """Updates that keep it secret who speaks in which column."""
        choices = [("hidden until you vote", HIDDEN)]
        return {speaker: gr.update(choices=choices, value=HIDDEN) for speaker in self.speakers}

    def fill(self, settings: Mapping[str, Any]) -> Updates:
        """Updates of the form by settings of a question; what they don't name stays."""
        held = {one.path: settings[one.path] for one in self.form.controls if one.path in settings}
        return dict(self.form.fill(held))
