"""The events of the tab "Train": method, presets, base, sweep, check, trial step, start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from jobs import sweeps
from storage.datasets import list_datasets
from storage.errors import PlumbError
from workbench import job_launch, job_views, training_form
from workbench.context import Context
from workbench.events import CONCURRENCY, told
from workbench.forms import merged
from workbench.job_desk import checked, start, start_sweep, sweep_told, try_step
from workbench.training_panel import TrainingPanel, start_words

QUIET: dict[str, Any] = {
    "concurrency_limit": CONCURRENCY,
    "show_progress": "hidden",
    "api_visibility": "private",
}

#: Opens a job: (its id, what the browser knows, how many jobs are listed) → updates.
TurnTo = Callable[[int | None, Mapping[str, int], int], dict[Any, Any]]


def wire_training(
    context: Context, panel: TrainingPanel, at: Sequence[Any], shown: Sequence[Any], turn_to: TurnTo
) -> None:
    """Wire the tab.

    Args:
        at: the page's state that `turn_to` takes.
        shown: what `turn_to` updates.
    """
    fields = list(panel.form.components)
    swept = list(panel.sweep.values())
    places = {control.path: place for place, control in enumerate(panel.form.controls)}

    def of_method(kind: str, raw: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
        """(controls, what is typed) of one method, from what all fields hold."""
        controls = panel.forms[kind].controls
        return controls, [raw[places[control.path]] for control in controls]

    def texts_of(kind: str, raw: Sequence[Any]) -> dict[str, str]:
        typed = dict(zip(panel.sweep, raw[len(fields) :], strict=True))
        return {path: typed[path] for path in training_form.swept(kind)}

    def choosing_method(kind: str, dataset: str | None, model: str) -> dict[Any, Any]:
        """The other method's fields; what was typed stays, but for the learning rate, which suits one alone."""
        with context.database() as db:
            datasets = list_datasets(db)
        preset = job_launch.preset_values(kind, job_launch.preset_for(model))
        form = panel.forms[kind]
        offered = form.offer("dataset", training_form.dataset_choices(datasets, kind), dataset)
        filled = form.fill({"learning_rate": preset["learning_rate"]})
        hint = {panel.hint: job_views.hint(training_form.hint(datasets, kind)), panel.error: "", panel.needs: ""}
        return merged(panel.show_method(kind), offered, filled) | hint

    def preset(name: str) -> Callable[[str], dict[Any, Any]]:
        def fill(kind: str) -> dict[Any, Any]:
            return panel.forms[kind].fill(job_launch.preset_values(kind, name))

        return fill

    def choosing_model(kind: str, model: str) -> dict[Any, Any]:
        form = panel.forms[kind]
        with context.database() as db:
            adapters = job_launch.adapter_choices(db, model)
        filled = form.fill(job_launch.preset_values(kind, job_launch.preset_for(model)))
        return merged(filled, form.offer("start_adapter", adapters, ""))

    def counting(kind: str, *raw: Any) -> tuple[Any, Any]:
        texts = dict(zip(panel.sweep, raw, strict=True))
        found, jobs = sweep_told(kind, {path: texts[path] for path in training_form.swept(kind)})
        return found, gr.update(value=start_words(jobs))

    def paper(kind: str) -> list[str]:
        return list(training_form.sweep_texts(kind, sweeps.PAPER).values())

    # The request stands first: Gradio does not fill it in behind *raw.
    def begin(request: gr.Request, known: dict[str, int], most: int, kind: str, *raw: Any) -> dict[Any, Any]:
        controls, held = of_method(kind, raw)
        try:
            grid = sweeps.read_grid(texts_of(kind, raw))
            if grid:
                job = start_sweep(context, context.user(request), kind, controls, held, grid)[0]
            else:
                job = start(context, context.user(request), kind, controls, held)
        except PlumbError as error:
            return {panel.error: job_views.error(str(error))}
        return turn_to(job.id, known, most) | {panel.error: ""}

    def trying(request: gr.Request, known: dict[str, int], most: int, kind: str, *raw: Any) -> dict[Any, Any]:
        try:
            job = try_step(context, context.user(request), kind, *of_method(kind, raw))
        except PlumbError as error:
            return {panel.error: job_views.error(str(error))}
        return turn_to(job.id, known, most) | {panel.error: ""}

    def checking(kind: str, *raw: Any) -> str:
        return checked(context, kind, *of_method(kind, raw), texts_of(kind, raw))

    method, form = panel.method, panel.form
    model = form.component("model")
    busy = {**QUIET, "show_progress": "minimal"}
    chosen = [method, form.component("dataset"), model]
    method.input(told(choosing_method), chosen, panel.outputs, **QUIET)
    model.input(told(choosing_model), [method, model], fields, **QUIET)
    for name, button in panel.presets.items():
        button.click(told(preset(name)), [method], fields, **QUIET)
    count = [panel.sweep_told, panel.start]
    changes = [field.change for field in swept]
    gr.on(changes, told(counting), [method, *swept], count, **QUIET, trigger_mode="always_last")
    panel.paper_sweep.click(told(paper), [method], swept, **QUIET)
    panel.clear_sweep.click(lambda: [""] * len(swept), None, swept, **QUIET)
    panel.start.click(begin, [*at, method, *fields, *swept], list(shown), **busy)
    panel.try_step.click(trying, [*at, method, *fields], list(shown), **busy)
    panel.check.click(told(checking), [method, *fields, *swept], [panel.needs], **busy, trigger_mode="always_last")
    # Figures of other settings than those that stand there would mislead.
    gr.on(
        [field.change for field in (*fields, *swept, method)],
        None,
        None,
        [panel.needs],
        js="() => ''",
        api_visibility="private",
    )
