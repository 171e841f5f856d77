"""The panels of the Contests page as components: the form of a new one, the booth, the standings. No events."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from storage.speakers import sides
from workbench import contest_form, contest_views
from workbench.contest_desk import ROUNDS, Scene
from workbench.forms import build_form
from workbench.vote_panel import VotePanel

SIDES = ("left", "middle", "right")

# A click on a contest or a prompt opens it in place; the address follows what is shown, so that it can be passed
# on.
CHOOSE_JS = """
element.addEventListener('click', (event) => {
  const link = event.target.closest('a[data-contest]');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  const number = link.dataset.number;
  trigger('click', {contest: Number(link.dataset.contest), number: number === undefined ? null : Number(number)});
});
watch('value', () => {
  const marked = element.querySelector('[data-url]');
  if (marked) history.replaceState(null, '', location.pathname + marked.dataset.url);
  const current = element.querySelector('.pc-cell[aria-current]');
  if (current) current.scrollIntoView({block: 'nearest'});
});
"""


# The keys press the buttons that stand on the page; none of them means anything while one types. `later` goes on
# after a vote, unless one has pressed something by then; while a prompt is on its way, nothing can be voted on.
KEYS_JS = """
if (!window.plumbContest) {
  const keys = KEYS;
  const typing = 'input:not([type=checkbox]), textarea, select, [contenteditable], [role=listbox]';
  const ways = '#contest-next, #contest-back, #contest-undo, #contest-keep, #contest-on, a[data-contest]';
  let timer = null;
  const find = (id) => {
    const found = document.getElementById(id);
    const button = found && (found.matches('button') ? found : found.querySelector('button'));
    return button && !button.disabled && button.offsetParent ? button : null;
  };
  const stay = () => { clearTimeout(timer); timer = null; };
  const arrived = () => {
    document.body.classList.remove('pc-moving');
    const read = document.getElementById('contest-read');
    if (read) read.scrollTop = 0;
  };
  document.addEventListener('click', (event) => {
    if (event.target.closest('.plumb-ballot button, .pc-ways button, .pc-ways input, a')) stay();
    if (!event.target.closest(ways) || event.metaKey || event.ctrlKey || event.shiftKey) return;
    document.body.classList.add('pc-moving');
    setTimeout(() => document.body.classList.remove('pc-moving'), 8000);
  }, true);
  document.addEventListener('focusin', (event) => { if (event.target.closest(typing)) stay(); });
  document.addEventListener('keydown', (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey || event.shiftKey) return;
    if (event.repeat || event.defaultPrevented) return;
    if (event.target.closest(typing)) return;
    const id = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!id || (id.startsWith('vote-') && document.body.classList.contains('pc-moving'))) return;
    const button = find(id);
    if (!button) return;
    event.preventDefault();
    button.click();
  });
  window.plumbContest = {
    arrived,
    later: (milliseconds) => {
      stay();
      timer = setTimeout(() => { const next = find('contest-next'); if (next) next.click(); }, milliseconds);
    },
  };
}
""".replace("KEYS", json.dumps(contest_views.PRESSED))
ARRIVED_JS = "() => { if (window.plumbContest) window.plumbContest.arrived(); }"
AFTER_JS = """
watch('value', () => {
  const marked = element.querySelector('[data-after]');
  if (marked && window.plumbContest) window.plumbContest.later(Number(marked.dataset.after));
});
"""


def _html(value: str = "", **arguments: Any) -> Any:
    """A piece of HTML that takes no room while it is empty."""
    return gr.HTML(value, apply_default_css=False, elem_classes="plumb-piece", **arguments)


class NewContest:
    """What a contest is begun with."""

    def __init__(self) -> None:
        with gr.Column(elem_classes="pb-panel pc-new", elem_id="contest-form") as self.column:
            _html(
                "<h2>New contest</h2><p class='pb-sub'>A list of prompts, answered by two or three speakers in a "
                "background job. You and others vote on the answers one by one, without knowing whose they are."
                "</p>"
            )
            with gr.Row(elem_classes="pc-row"):
                self.name = gr.Textbox(
                    label="Name", max_lines=1, placeholder="MT-Bench, base against DPO", elem_id="contest-name"
                )
                self.model = gr.Dropdown(
                    label="Base model",
                    choices=["demo"],
                    value="demo",
                    allow_custom_value=True,
                    interactive=True,
                    elem_id="contest-model",
                )
            with gr.Row(elem_classes="pc-row"):
                self.speakers = [
                    gr.Dropdown(
                        label=f"Speaker {number}",
                        choices=[("base (demo)", "base")],
                        value="base" if number == 1 else None,
                        interactive=True,
                        elem_id=f"contest-speaker-{number}",
                    )
                    for number in (1, 2, 3)
                ]
            with gr.Row(elem_classes="pc-prompts"):
                with gr.Column(min_width=300):
                    self.source = gr.Radio(
                        [("A file", contest_form.FILE), ("Samples of this workbench", contest_form.SAMPLES)],
                        value=contest_form.FILE,
                        label="Prompts",
                        elem_id="contest-source",
                    )
                    self.about = _html(contest_form.ABOUT_FILES)
                self.file = gr.File(
                    label="A file with prompts, and its pictures",
                    file_count="multiple",
                    file_types=[".jsonl", ".json", ".txt", "image"],
                    height=120,
                    elem_id="contest-file",
                )
                with gr.Column(visible=False, min_width=300) as self.selection:
                    self.samples = build_form(
                        contest_form.sample_controls(), contest_form.SAMPLES_MAIN, contest_form.DROPDOWNS
                    )
            self.form = build_form(contest_form.controls(), contest_form.MAIN, contest_form.DROPDOWNS)
            self.plan = _html(elem_id="contest-plan")
            with gr.Row(elem_classes="plumb-actions"):
                self.start = gr.Button(
                    "Start", variant="primary", size="md", elem_id="contest-start", elem_classes="pb-fit"
                )
                self.check = gr.Button("Check", size="md", elem_id="contest-check", elem_classes="pb-fit")

    @property
    def fields(self) -> list[Any]:
        """In the order in which `contest_form.Wanted.read` takes what they hold."""
        own = [self.name, self.model, *self.speakers, self.source, self.file]
        return [*own, *self.samples.components, *self.form.components]


class Booth:
    """One prompt with its answers side by side, the ballot below, and the ways on."""

    def __init__(self) -> None:
        with gr.Column(elem_classes="pc-booth", elem_id="contest-booth", visible=False) as self.column:
            with gr.Column(elem_classes="pc-read", elem_id="contest-read") as self.read:
                self.rounds = [_Round(number) for number in range(ROUNDS)]
            self.instead = _html(elem_id="contest-instead")
            with gr.Column(elem_classes="pc-ballot") as self.ballot:
                self.last = _html()
                self.votes = VotePanel()
            with gr.Row(elem_classes="pc-ways") as self.ways:
                self.back = gr.Button("Back", size="sm", elem_id="contest-back", elem_classes="pb-fit")
                self.next = gr.Button("Next", size="sm", elem_id="contest-next", elem_classes="pb-fit")
                self.undo = gr.Button("Undo", size="sm", elem_id="contest-undo", elem_classes="pb-fit")
                self.moving = gr.Checkbox(
                    True, label="Go on after a vote", container=False, elem_id="contest-moving"
                )
                self.keys = _html(elem_id="contest-keys", js_on_load=KEYS_JS)
            self.after = gr.HTML(apply_default_css=False, elem_id="contest-after", js_on_load=AFTER_JS)

    @property
    def outputs(self) -> list[Any]:
        rounds = [part for one in self.rounds for part in one.outputs]
        ways = [self.back, self.keys, self.after]
        return [self.column, self.read, *rounds, self.instead, self.ballot, self.last, *ways]


class _Round:
    """A question over its answers."""

    def __init__(self, number: int) -> None:
        with gr.Column(elem_classes="pc-round", visible=number == 0) as self.column:
            self.question = _html(elem_id=f"contest-question-{number}")
            with gr.Row(elem_classes="pc-answers", equal_height=True):
                self.answers = {side: _Answer(side, number) for side in SIDES}

    @property
    def outputs(self) -> list[Any]:
        answers = [part for one in self.answers.values() for part in (one.column, one.text)]
        return [self.column, self.question, *answers]


class _Answer:
    def __init__(self, side: str, number: int) -> None:
        with gr.Column(
            min_width=200, elem_classes="pc-answer", elem_id=f"contest-{side}-{number}", visible=side != "middle"
        ) as self.column:
            gr.HTML(f"<h3>{side.capitalize()}</h3>", apply_default_css=False)
            self.text = gr.Markdown(
                sanitize_html=True, line_breaks=True, latex_delimiters=[], elem_classes="pc-said"
            )


class StandingsPanel:
    """Who won how often; asked for first by whoever still votes."""

    def __init__(self) -> None:
        with gr.Row(elem_classes="pc-ask-standings", elem_id="contest-ask", visible=False) as self.asking:
            self.question = _html(elem_id="contest-question")
            self.sure = gr.Button("Show them", size="sm", elem_id="contest-sure", elem_classes="pb-fit")
            self.keep = gr.Button(
                "Go on voting", size="sm", variant="primary", elem_id="contest-keep", elem_classes="pb-fit"
            )
        with gr.Column(elem_classes="pb-panel", elem_id="contest-standings", visible=False) as self.column:
            self.shown = _html(elem_id="contest-standings-shown")
            self.on = gr.Button("Go on voting", size="sm", elem_id="contest-on", elem_classes="pb-fit")

    @property
    def outputs(self) -> list[Any]:
        return [self.asking, self.question, self.column, self.shown, self.on]


def shown(scene: Scene, booth: Booth) -> dict[Any, Any]:
    """Updates of the booth for a scene."""
    voting = scene.view == "vote"
    used = sides(scene.columns)
    updates: dict[Any, Any] = {
        booth.column: gr.update(visible=scene.view in ("vote", "waiting")),
        booth.read: gr.update(visible=voting),
        booth.instead: scene.instead,
        booth.ballot: gr.update(visible=voting),
        booth.last: contest_views.last_round(scene.questions),
        booth.back: gr.update(interactive=scene.before is not None),
        booth.keys: contest_views.keys(scene.columns) if voting else "",
    }
    for number, slot in enumerate(booth.rounds):
        there = number < len(scene.rounds)
        updates[slot.column] = gr.update(visible=there)
        if not there:
            continue
        found = scene.rounds[number]
        said = dict(zip(used, found.answers, strict=True)) if found.answers else {}
        updates[slot.question] = found.question
        for side, answer in slot.answers.items():
            updates[answer.column] = gr.update(visible=side in said)
            updates[answer.text] = said.get(side, "")
    return updates
