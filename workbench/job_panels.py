"""The two panels of the Jobs page as components: the launch forms, the opened job. No events in here."""

from __future__ import annotations

from typing import Any

import gradio as gr

from workbench import job_launch, job_views, training_form
from workbench.forms import Form, build_form
from workbench.training_form import TRAINED
from workbench.training_panel import TrainingPanel

#: Kinds whose form is a tab of its own.
OWN_TAB = tuple(kind for kind in job_launch.LAUNCHED if kind not in TRAINED)


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
            for kind in OWN_TAB:
                with gr.Tab(job_views.KIND_NAMES[kind], id=kind, elem_id=f"launch-{kind}"):
                    self._tab(kind)
            with gr.Tab("Train", id=training_form.TAB, elem_id=f"launch-{training_form.TAB}"):
                self.training = TrainingPanel()

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
                "Start", variant="primary", scale=0, min_width=160, elem_id=f"start-{kind}"
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


class Opened:
    """The opened job."""

    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="job-open") as self.column:
            self.head = _html(elem_id="job-head")
            self.figures = _html(elem_id="job-figures")
            self.problem = _html()
            with gr.Row(elem_classes="plumb-actions"):
                self.pause = gr.Button("Pause", size="sm", scale=0, min_width=90, visible=False)
                self.go_on = gr.Button("Go on", size="sm", scale=0, min_width=90, visible=False)
                self.resume = gr.Button("Resume", size="sm", scale=0, min_width=90, visible=False)
                self.stop = gr.Button("Stop", variant="stop", size="sm", scale=0, min_width=90, interactive=False)
                self.stop_sweep = gr.Button(
                    "Stop the sweep", variant="stop", size="sm", scale=0, min_width=130, visible=False
                )
                self.again = gr.Button("Use these settings again", size="sm", scale=0, min_width=190)
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
            with gr.Accordion("Log", open=True):
                self.log = _html(elem_id="job-log")
            with gr.Accordion("Settings", open=False):
                self.settings = _html(elem_id="job-settings")
