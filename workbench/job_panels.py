"""The panels of the Jobs page as components: the launch forms, the queue, the opened job. No events in here."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from jobs.steering import Where
from workbench import job_launch, run_views, training_form
from workbench.forms import Form, build_form
from workbench.job_look import Look
from workbench.job_words import KIND_NAMES, PRIORITY_NAMES
from workbench.training_panel import TrainingPanel

# A button beside an attempt, or above its log, shows that attempt's part; 0 stands for the log's end.
_ATTEMPT_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-attempt]');
  if (button) trigger('click', {attempt: Number(button.dataset.attempt)});
});
"""


def _html(value: str = "", **arguments: Any) -> Any:
    """A piece of HTML that takes no room while it is empty."""
    return gr.HTML(value, apply_default_css=False, elem_classes="plumb-piece", **arguments)


class Launcher:
    """The forms: one tab a kind, and one for the four trainings."""

    def __init__(self) -> None:
        self.forms: dict[str, Form] = {}
        self.hints: dict[str, Any] = {}
        self.starts: dict[str, Any] = {}
        self.errors: dict[str, Any] = {}
        self.estimators: dict[str, Any] = {}
        self.estimates: dict[str, Any] = {}
        with (
            gr.Column(elem_id="job-launch") as self.column,
            gr.Tabs(selected="generate") as self.tabs,
        ):
            for kind in dict.fromkeys(job_launch.tab_of(kind) for kind in job_launch.LAUNCHED):
                name = "Train" if kind == training_form.TAB else KIND_NAMES[kind]
                with gr.Tab(name, id=kind, elem_id=f"launch-{kind}"):
                    if kind == training_form.TAB:
                        self.training = TrainingPanel()
                    else:
                        self._tab(kind)

    def _tab(self, kind: str) -> None:
        _html(f'<p class="plumb-about">{job_launch.ABOUT[kind]}</p>')
        self.hints[kind] = _html()
        main, dropdowns = job_launch.MAIN[kind], job_launch.DROPDOWNS[kind]
        self.forms[kind] = build_form(job_launch.controls(kind), main, dropdowns)
        self.errors[kind] = _html(elem_id=f"error-{kind}")
        if kind in job_launch.ESTIMATED:
            self.estimates[kind] = _html(elem_id=f"estimate-{kind}")
        with gr.Row(elem_classes="plumb-actions"):
            self.starts[kind] = gr.Button(
                "Download" if kind == "download" else "Start",
                variant="primary",
                scale=0,
                min_width=160,
                elem_id=f"start-{kind}",
            )
            if kind in job_launch.ESTIMATED:
                self.estimators[kind] = gr.Button("Estimate", scale=0, min_width=120, elem_id=f"ask-{kind}")

    @property
    def outputs(self) -> list[Any]:
        fields = [component for form in self.forms.values() for component in form.components]
        told = [*self.hints.values(), *self.errors.values(), *self.estimates.values()]
        return [*fields, *told, *self.training.outputs, self.tabs]

    @property
    def all_errors(self) -> list[Any]:
        """What stands there because a job could not start."""
        return [*self.errors.values(), self.training.error]


class Queue:
    """What stands above the list: what is done to the whole queue."""

    def __init__(self) -> None:
        self.line = _html(elem_id="queue-line")
        with gr.Row(elem_classes="plumb-actions"):
            self.hold = gr.Button(hold_words(False), size="sm", scale=0, min_width=130, elem_id="queue-hold")
            _html(
                '<button type="button" class="pb-button small plumb-notify" data-notify hidden></button>',
                js_on_load="window.plumbNotices && window.plumbNotices.show(element)",
            )

    @property
    def outputs(self) -> list[Any]:
        return [self.line, self.hold]

    def updates(self, news: Mapping[str, Any]) -> dict[Any, Any]:
        updates: dict[Any, Any] = {}
        if "queue" in news:
            updates[self.line] = news["queue"]
        if "held" in news:
            updates[self.hold] = gr.update(value=hold_words(news["held"]))
        return updates


def hold_words(held: bool) -> str:
    return "Release the queue" if held else "Hold the queue"


class Undo:
    """What is told after a run was deleted, with a button that takes it out of the bin again."""

    def __init__(self) -> None:
        with gr.Row(visible=False, elem_id="job-undo", elem_classes="plumb-confirm") as self.row:
            self.told = _html()
            self.button = gr.Button("Undo", size="sm", scale=0, min_width=90)

    @property
    def outputs(self) -> list[Any]:
        return [self.row, self.told]

    def show(self, job_id: int | None) -> dict[Any, Any]:
        """Updates that tell that this job's run was deleted; None takes the notice away."""
        if job_id is None:
            return {self.row: gr.update(visible=False)}
        told = f'<p role="status">Job {job_id} is deleted. Its run lies in the bin below the list.</p>'
        return {self.row: gr.update(visible=True), self.told: told}


def _button(text: str, width: int = 90, **more: Any) -> Any:
    return gr.Button(text, size="sm", scale=0, min_width=width, **{"visible": False, **more})


#: Which button stands there by which word of a look.
_BUTTONS = {
    "pausable": "pause",
    "paused": "go_on",
    "resumable": "resume",
    "stoppable": "stop",
    "swept": "stop_sweep",
    "repeatable": "run_again",
    "clonable": "clone",
    "deletable": "delete",
    "restorable": "restore",
    "queued": "moves_row",
    "training": "answers_frame",
}
_HTML = (
    "head",
    "figures",
    "charts",
    "more",
    "results",
    "settings",
    "log",
    "downloads",
    "attempts",
    "ends",
    "answers",
)


class Opened:
    """The opened job."""

    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="job-open") as self.column:
            self.head = _html(elem_id="job-head")
            self.figures = _html(elem_id="job-figures")
            self._actions()
            self._queue()
            self.results = _html(elem_id="job-results")
            self.charts = _html(elem_id="job-charts")
            self.ends = _html(elem_id="job-ends")
            with gr.Accordion("Answers along the run", open=True, visible=False) as self.answers_frame:
                self.checkpoint = gr.Slider(
                    minimum=0,
                    maximum=1,
                    value=0,
                    step=1,
                    label="Checkpoint",
                    buttons=[],
                    interactive=True,
                    visible=False,
                    elem_id="job-checkpoint",
                )
                self.answers = _html(elem_id="job-answers")
            with gr.Accordion("More curves", open=False):
                self.more = _html(elem_id="job-more")
            with gr.Accordion("Attempts", open=False, elem_id="job-attempts-frame") as self.attempts_frame:
                self.attempts = _html(elem_id="job-attempts", js_on_load=_ATTEMPT_JS)
                self.retries = gr.Number(
                    value=0,
                    step=1,
                    minimum=0,
                    label="Tries again, at most",
                    info="after attempts in a row that came no further",
                    interactive=True,
                    min_width=260,
                    scale=0,
                    visible=False,
                    elem_id="job-retries",
                )
            self._log()
            with gr.Accordion("Settings", open=False):
                self.settings = _html(elem_id="job-settings")

    def _actions(self) -> None:
        with gr.Row(elem_classes="plumb-actions", elem_id="job-actions"):
            self.pause = _button("Pause")
            self.go_on = _button("Go on")
            self.resume = _button("Go on", elem_id="job-resume")
            self.run_again = _button("Run again", 110, elem_id="job-run-again")
            self.clone = _button("Clone into the form", 150, elem_id="job-clone")
            self.restore = _button("Restore", elem_id="job-restore")
            self.stop = _button("Stop", variant="stop", elem_id="job-stop")
            self.stop_sweep = _button("Stop the sweep", 130, variant="stop")
            self.delete = _button("Delete", variant="stop", elem_id="job-delete")
        self.problem = _html(elem_id="job-problem")
        with gr.Row(visible=False, elem_id="job-confirm", elem_classes="plumb-confirm") as self.confirm_row:
            self.question = _html(elem_id="job-question")
            self.confirm_stop = _button("Stop", variant="stop", elem_id="confirm-stop")
            self.confirm_delete = _button("Delete", variant="stop", elem_id="confirm-delete")
            self.cancel = _button("Cancel", visible=True, elem_id="confirm-cancel")

    def _queue(self) -> None:
        """Where it stands in the queue, and what it waits for."""
        with gr.Row(elem_id="job-queue", elem_classes="plumb-queue", visible=False) as self.queue_row:
            with gr.Row(visible=False, elem_classes="plumb-moves") as self.moves_row:
                _html('<span class="plumb-label">Move</span>')
                self.moves: dict[Where, Any] = {
                    "first": _button("First", 60, visible=True),
                    "up": _button("Up", 60, visible=True),
                    "down": _button("Down", 60, visible=True),
                    "last": _button("Last", 60, visible=True),
                }
            self.priority = gr.Dropdown(
                choices=[(name, number) for number, name in PRIORITY_NAMES.items()],
                value=0,
                label="Priority",
                interactive=True,
                filterable=False,
                min_width=140,
                scale=0,
                visible=False,
                elem_id="job-priority",
            )
            self.after = gr.Dropdown(
                choices=[("none", 0)],
                value=0,
                label="After job",
                interactive=True,
                min_width=220,
                scale=1,
                visible=False,
                elem_id="job-after",
            )

    def _log(self) -> None:
        with gr.Accordion("Log", open=True, elem_id="job-log-frame"):
            self.log = _html(elem_id="job-log", js_on_load=_ATTEMPT_JS)
            with gr.Row(elem_classes="plumb-actions plumb-search"):
                self.wanted = gr.Textbox(
                    label="Search the log",
                    show_label=False,
                    placeholder="Search the whole log",
                    container=False,
                    max_lines=1,
                    min_width=200,
                    scale=1,
                    elem_id="log-wanted",
                )
                self.search = _button("Search", visible=True, elem_id="log-search")
                self.search_on = _button("Search on", 100, elem_id="log-search-on")
                self.downloads = _html(elem_id="job-downloads")
            self.found = _html(elem_id="log-found")

    @property
    def outputs(self) -> list[Any]:
        """What a look changes."""
        html = [getattr(self, name) for name in _HTML]
        buttons = [getattr(self, name) for name in _BUTTONS.values()]
        steering = [self.queue_row, self.priority, self.after, self.retries, self.attempts_frame, self.checkpoint]
        return [*html, *buttons, *steering]

    @property
    def asked(self) -> list[Any]:
        """What stands there while a person is asked, or was told why something could not be done."""
        return [self.problem, self.confirm_row, self.question, self.confirm_stop, self.confirm_delete]

    @property
    def searched(self) -> list[Any]:
        return [self.wanted, self.found, self.search_on]

    def updates(self, news: Mapping[str, Any], look: Look, place: int | None) -> dict[Any, Any]:
        """Updates for the parts of a look that are news.

        Args:
            place: the checkpoint that a person has chosen on the slider.
        """
        updates: dict[Any, Any] = {getattr(self, name): news[name] for name in _HTML if name in news}
        updates |= {
            getattr(self, button): gr.update(visible=news[word])
            for word, button in _BUTTONS.items()
            if word in news
        }
        if "checkpoints" in news:
            updates[self.checkpoint] = slider(news["checkpoints"], place)
        if "attempt_count" in news:
            number = news["attempt_count"]
            updates[self.attempts_frame] = gr.update(label=f"Attempts ({number})" if number > 1 else "Attempts")
        if {"waiting", "priority"} & news.keys():
            updates[self.priority] = gr.update(value=look.priority, visible=look.waiting)
        if {"waiting", "follows"} & news.keys():
            after, offered = look.follows
            updates[self.after] = gr.update(choices=list(offered), value=after, visible=look.waiting)
        if "retries" in news:
            there = look.retries is not None
            updates[self.retries] = gr.update(value=look.retries or 0, visible=there)
        if "waiting" in news:
            updates[self.queue_row] = gr.update(visible=look.waiting)
        return updates

    def ask(self, question: str, act: str) -> dict[Any, Any]:
        """Updates that ask before something is done; "" takes the question away."""
        return {
            self.confirm_row: gr.update(visible=bool(question)),
            self.question: f'<p role="alert">{escape(question)}</p>' if question else "",
            self.confirm_stop: gr.update(visible=act in ("stop", "stop_sweep")),
            self.confirm_delete: gr.update(visible=act == "delete"),
        }

    def forget_search(self) -> dict[Any, Any]:
        return {self.wanted: "", self.found: "", self.search_on: gr.update(visible=False)}


def slider(steps: tuple[int, ...], place: int | None) -> Any:
    """The slider over a run's checkpoints: it stands there where there are two to choose from."""
    last = max(1, len(steps) - 1)
    value = last if place is None else min(place, last)
    return gr.update(maximum=last, value=value, visible=len(steps) > 1, label=run_views.slider_label(steps))
