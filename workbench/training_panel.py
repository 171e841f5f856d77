"""The tab "Train" as components: method, presets, form, sweep, what it will need. No events in here."""

from __future__ import annotations

from typing import Any

import gradio as gr

from jobs.configs import PRESETS
from workbench import training_form
from workbench.forms import Form, build_form
from workbench.training_form import TRAINED

#: The names of all methods' presets, in their order.
PRESET_NAMES = tuple(dict.fromkeys(name for kind in TRAINED for name in PRESETS[kind]))


def _html(value: str = "", **arguments: Any) -> Any:
    return gr.HTML(value, apply_default_css=False, elem_classes="plumb-piece", **arguments)


class TrainingPanel:
    """One form for the four methods.

    Attributes:
        form: the fields of all methods; `forms` those of each, on the same components.
        sweep: the text fields of the sweep, by the setting that they give several values.
    """

    def __init__(self) -> None:
        first = TRAINED[0]
        self.method = gr.Radio(
            choices=list(training_form.METHODS),
            value=first,
            label="Method",
            show_label=False,
            container=False,
            elem_id="train-method",
            elem_classes="plumb-methods",
        )
        self.about = _html(about(first))
        self.hint = _html()
        self.presets: dict[str, Any] = {}
        with gr.Row(elem_classes="plumb-presets"):
            _html('<span class="plumb-label">Preset</span>')
            for name in PRESET_NAMES:
                self.presets[name] = gr.Button(
                    name, size="sm", min_width=70, scale=0, visible=name in PRESETS[first]
                )
        self.form = build_form(
            training_form.all_controls(),
            training_form.MAIN,
            training_form.DROPDOWNS,
            groups=training_form.GROUPS,
            wide=training_form.WIDE,
        )
        self.forms: dict[str, Form] = {kind: self.form.part(training_form.controls(kind)) for kind in TRAINED}
        self.sweep = self._sweep()
        self.error = _html(elem_id="error-train")
        self.needs = _html(elem_id="needs-train")
        with gr.Row(elem_classes="plumb-actions"):
            self.start = gr.Button(START, variant="primary", scale=0, min_width=160, elem_id="start-train")
            self.check = gr.Button("Check", scale=0, min_width=120, elem_id="check-train")
            self.try_step = gr.Button("Try a step", scale=0, min_width=120, elem_id="try-train")

    def _sweep(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        with gr.Accordion("Sweep", open=False, elem_id="sweep-train"):
            _html(
                '<p class="plumb-about">Several values of a setting, with commas between them, make a job for '
                "each combination. All of them share what the reference thinks of the pairs.</p>"
            )
            with gr.Row(elem_classes="plumb-form plumb-even"):
                for path, (label, example) in training_form.SWEPT.items():
                    fields[path] = gr.Textbox(label=label, placeholder=example, max_lines=1, min_width=150)
            with gr.Row(elem_classes="plumb-presets"):
                self.paper_sweep = gr.Button("Paper's sweep", size="sm", scale=0, min_width=110)
                self.clear_sweep = gr.Button("No sweep", size="sm", scale=0, min_width=90)
                self.sweep_told = _html(elem_id="sweep-told")
        return fields

    @property
    def outputs(self) -> list[Any]:
        fields = [*self.form.components, *self.form.groups.values(), *self.sweep.values()]
        rest = [self.method, self.about, self.hint, self.error, self.needs, self.start, self.sweep_told]
        return [*fields, *rest, *self.presets.values()]

    def show_method(self, kind: str) -> dict[Any, Any]:
        """Updates that show a method's fields, under its own names, and hide the others'."""
        updates: dict[Any, Any] = {self.method: gr.update(value=kind), self.about: about(kind)}
        shown = training_form.paths(kind)
        for control, component in zip(self.form.controls, self.form.components, strict=True):
            updates[component] = gr.update(visible=control.path in shown)
        for control, component in zip(self.forms[kind].controls, self.forms[kind].components, strict=True):
            updates[component] = gr.update(visible=True, label=control.title, info=control.info or None)
        for heading, frame in self.form.groups.items():
            updates[frame] = gr.update(visible=training_form.group_shown(heading, kind))
        for name, button in self.presets.items():
            updates[button] = gr.update(visible=name in PRESETS[kind])
        for path, component in self.sweep.items():
            offered = path in training_form.swept(kind)
            updates[component] = gr.update(visible=True) if offered else gr.update(visible=False, value="")
        return updates


START = "Start"


def about(kind: str) -> str:
    return f'<p class="plumb-about">{training_form.ABOUT[kind]}</p>'


def start_words(jobs: int) -> str:
    """What the button says that queues them."""
    return f"Start {jobs} jobs" if jobs > 1 else START
