"""The Jobs page: launch, estimate, queue, progress, curves, log, pause, stop.

`/jobs?job=12`, `/jobs?kind=dpo&dataset=NAME`, `/jobs?rest=12` (judge again what job 12 could not).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from jobs.configs import PRESETS
from storage.errors import DatabaseBusy, PlumbError
from storage.jobs import get_job
from workbench import job_launch, job_views
from workbench.context import Context
from workbench.events import CONCURRENCY, told
from workbench.forms import Form, merged
from workbench.job_desk import (
    PAGE,
    changed,
    estimated,
    form_values,
    go_on,
    halt,
    look,
    pause,
    resume,
    selected_by,
    start,
)
from workbench.job_panels import Launcher, Opened
from workbench.progress import Watch

TICK_SECONDS = 2.0

# A click on a job's link selects it in place; with a modifier key it opens in a tab of its own, as links do.
# The browser's bar follows what is shown, so that the address can be passed on.
_CHOOSE_JS = """
element.addEventListener('click', (event) => {
  const link = event.target.closest('a[data-job], a[data-more]');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  trigger('click', {job: Number(link.dataset.job || 0), more: link.dataset.more === '1'});
});
watch('value', () => {
  const marked = element.querySelector('[data-url]');
  if (marked) history.replaceState(null, '', location.pathname + marked.dataset.url);
  const open = element.querySelector('[data-open]');
  if (open) window.plumb.showCounts({jobs: Number(open.dataset.open)});
});
"""

# The opened job leaves the address, the inputs pass through.
_FORGET = "(...inputs) => { history.replaceState(null, '', location.pathname); return inputs; }"


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Jobs · Plumb", analytics_enabled=False) as page:
        with gr.Row(elem_classes="plumb-split"):
            with gr.Column(scale=2, min_width=300, elem_classes="plumb-side"):
                new = gr.Button("New job", variant="primary", size="md")
                jobs = gr.HTML(js_on_load=_CHOOSE_JS, elem_id="jobs-list", apply_default_css=False)
            with gr.Column(scale=5, min_width=420):
                launcher = Launcher()
                opened = Opened()
        _wire(context, page, new, jobs, launcher, opened)
    return page


def _wire(context: Context, page: gr.Blocks, new: Any, jobs: Any, launcher: Launcher, opened: Opened) -> None:
    watch = Watch()
    chosen = gr.State(None)
    seen = gr.State({})
    limit = gr.State(PAGE)
    timer = gr.Timer(TICK_SECONDS)
    names = ("head", "figures", "charts", "more", "results", "settings", "log")
    parts = {name: getattr(opened, name) for name in names}
    parts["jobs"] = jobs
    # Buttons that stand there only where they do something, by what a look says of the job.
    acts = {
        "rerunnable": opened.again,
        "pausable": opened.pause,
        "paused": opened.go_on,
        "resumable": opened.resume,
    }
    shown = [*parts.values(), opened.stop, *acts.values(), seen, chosen, limit, launcher.column, opened.column]
    shown += [opened.problem, *launcher.errors.values()]
    quiet: dict[str, Any] = {
        "concurrency_limit": CONCURRENCY,
        "show_progress": "hidden",
        "api_visibility": "private",
    }

    def show(job_id: int | None, known: Mapping[str, int], most: int) -> dict[Any, Any]:
        """Updates for a look at this job, or at none."""
        news, digests = changed(look(context, watch, job_id, most), known)
        updates: dict[Any, Any] = {parts[name]: value for name, value in news.items() if name in parts}
        if "stoppable" in news:
            updates[opened.stop] = gr.update(interactive=news["stoppable"])
        updates |= {button: gr.update(visible=news[name]) for name, button in acts.items() if name in news}
        return updates | {seen: digests}  # Gradio takes no empty answer

    def turn_to(job_id: int | None, known: Mapping[str, int], most: int) -> dict[Any, Any]:
        return show(job_id, known, most) | {
            chosen: job_id,
            limit: most,
            opened.problem: "",
            launcher.column: gr.update(visible=job_id is None),
            opened.column: gr.update(visible=job_id is not None),
        }

    def offer(values: Mapping[str, Mapping[str, Any]]) -> dict[Any, Any]:
        with context.database() as db:
            offers = job_launch.offers(db, context.settings)
            updates: dict[Any, Any] = {}
            for kind, form in launcher.forms.items():
                choices = dict(offers.choices[kind])
                if "adapter" in choices:
                    choices["adapter"] = job_launch.adapter_choices(db, values[kind]["model"])
                changes = [form.fill({path: value for path, value in values[kind].items() if path not in choices})]
                for path, options in choices.items():
                    value = values[kind].get(path)
                    changes.append(form.offer(path, options, "" if value is None else value))
                judge = values[kind].get("judge")
                changes.append(form.show(job_launch.remote_fields(kind), job_launch.is_remote(judge)))
                updates |= merged(*changes)
                hint = offers.hints.get(kind) or job_launch.key_hint(judge, context.settings)
                updates[launcher.hints[kind]] = job_views.hint(hint)
        return updates | dict.fromkeys((*launcher.errors.values(), *launcher.estimates.values()), "")

    def opening(request: gr.Request) -> dict[Any, Any]:
        query = dict(request.query_params)
        kind, values = form_values(context, query)
        return offer(values) | turn_to(selected_by(query), {}, PAGE) | {launcher.tabs: gr.update(selected=kind)}

    def choosing(most: int, known: dict[str, int], current: int | None, event: gr.EventData) -> dict[Any, Any]:
        data = event._data or {}
        if data.get("more"):
            return show(current, known, most + PAGE) | {limit: most + PAGE}
        return turn_to(int(data["job"]), known, most) if data.get("job") else show(current, known, most)

    def ticking(job_id: int | None, known: dict[str, int], most: int) -> dict[Any, Any]:
        try:
            return show(job_id, known, most)
        except DatabaseBusy:
            return {seen: known}  # the next look is two seconds away

    def fresh(known: dict[str, int], most: int) -> dict[Any, Any]:
        values = {name: job_launch.start_values(name, {}) for name in launcher.forms}
        return offer(values) | turn_to(None, known, most)

    def asking(act: Callable[[Context, int | None], str]) -> Callable[..., dict[Any, Any]]:
        def ask(job_id: int | None, known: dict[str, int], most: int) -> dict[Any, Any]:
            problem = act(context, job_id)
            return show(job_id, known, most) | {opened.problem: job_views.error(problem)}

        return ask

    def again(job_id: int | None, known: dict[str, int], most: int) -> dict[Any, Any]:
        if job_id is None:
            return show(job_id, known, most)
        with context.database() as db:
            job = get_job(db, job_id)
        values = {name: job_launch.start_values(name, {}) for name in launcher.forms}
        values[job.kind] |= job_launch.rerun_values(job)
        return offer(values) | turn_to(None, known, most) | {launcher.tabs: gr.update(selected=job.kind)}

    everything = [*shown, *launcher.outputs]
    page.load(told(opening), None, everything, **quiet)
    timer.tick(ticking, [chosen, seen, limit], shown, **quiet)
    jobs.click(told(choosing), [limit, seen, chosen], shown, **quiet)
    new.click(told(fresh), [seen, limit], everything, **quiet, js=_FORGET)
    asked = {opened.stop: halt, opened.pause: pause, opened.go_on: go_on, opened.resume: resume}
    for button, act in asked.items():
        button.click(told(asking(act)), [chosen, seen, limit], shown, **quiet)
    opened.again.click(told(again), [chosen, seen, limit], everything, **quiet, js=_FORGET)
    for kind, form in launcher.forms.items():
        begin = _starter(context, kind, form, launcher.errors[kind], turn_to)
        inputs = [seen, limit, *form.components]
        launcher.starts[kind].click(begin, inputs, shown, **{**quiet, "show_progress": "minimal"})
    for kind in launcher.estimators:
        _wire_estimate(context, kind, launcher, quiet)
    for (kind, name), button in launcher.presets.items():
        button.click(_presetter(kind, name, launcher), None, list(launcher.forms[kind].components), **quiet)
    for kind in PRESETS:
        form = launcher.forms[kind]
        form.component("model").input(
            _by_model(kind, form), [form.component("model")], list(form.components), **quiet
        )
    generate = launcher.forms["generate"]
    generate.component("model").input(
        _adapters(context, generate), [generate.component("model")], [generate.component("adapter")], **quiet
    )


def _wire_estimate(context: Context, kind: str, launcher: Launcher, quiet: Mapping[str, Any]) -> None:
    """The estimate of a form, and what its choice of a judge changes on it."""
    form, panel = launcher.forms[kind], launcher.estimates[kind]
    judge = form.component("judge")
    remote = job_launch.remote_fields(kind)

    def estimating(*raw: Any) -> str:
        return estimated(context, kind, form.controls, raw)

    def choosing_judge(name: str | None) -> dict[Any, Any]:
        with context.database() as db:
            lacking = job_launch.offers(db, context.settings).hints.get(kind)
        hint = lacking or job_launch.key_hint(name, context.settings)
        return form.show(remote, job_launch.is_remote(name)) | {launcher.hints[kind]: job_views.hint(hint)}

    fields = list(form.components)
    launcher.estimators[kind].click(
        told(estimating), fields, [panel], **{**quiet, "show_progress": "minimal"}, trigger_mode="always_last"
    )
    outputs = [*(form.component(path) for path in remote), launcher.hints[kind]]
    judge.input(told(choosing_judge), [judge], outputs, **quiet)
    # An estimate of other settings than those that stand there would mislead.
    gr.on([field.change for field in fields], None, None, [panel], js="() => ''", api_visibility="private")


def _starter(
    context: Context, kind: str, form: Form, problem: Any, turn_to: Callable[..., dict[Any, Any]]
) -> Callable[..., dict[Any, Any]]:
    # The request stands first: Gradio does not fill it in behind *raw.
    def begin(request: gr.Request, known: dict[str, int], most: int, *raw: Any) -> dict[Any, Any]:
        try:
            job = start(context, context.user(request), kind, form.controls, raw)
        except PlumbError as error:
            return {problem: job_views.error(str(error))}
        return turn_to(job.id, known, most) | {problem: ""}

    return begin


def _presetter(kind: str, name: str, launcher: Launcher) -> Callable[[], dict[Any, Any]]:
    return lambda: launcher.forms[kind].fill(job_launch.preset_values(kind, name))


def _by_model(kind: str, form: Form) -> Callable[[str], dict[Any, Any]]:
    return lambda model: form.fill(job_launch.preset_values(kind, job_launch.preset_for(model)))


def _adapters(context: Context, form: Form) -> Callable[[str], dict[Any, Any]]:
    def offer(model: str) -> dict[Any, Any]:
        with context.database() as db:
            return form.offer("adapter", job_launch.adapter_choices(db, model), "")

    return offer
