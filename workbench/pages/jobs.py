"""The Jobs page: launch, queue, progress, curves, log, stop. `/jobs?job=12`, `/jobs?kind=dpo&dataset=NAME`."""

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
from workbench.forms import Form
from workbench.job_desk import PAGE, changed, halt, look, selected_by, start
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
    parts = {name: getattr(opened, name) for name in ("head", "charts", "more", "results", "settings", "log")}
    parts["jobs"] = jobs
    shown = [*parts.values(), opened.stop, opened.again, seen, chosen, limit, launcher.column, opened.column]
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
        if "rerunnable" in news:
            updates[opened.again] = gr.update(visible=news["rerunnable"])
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
                updates |= form.fill({path: value for path, value in values[kind].items() if path not in choices})
                for path, options in choices.items():
                    value = values[kind].get(path)
                    updates |= form.offer(path, options, "" if value is None else value)
                hint = offers.hints.get(kind, "")
                updates[launcher.hints[kind]] = f'<p class="plumb-hint">{hint}</p>' if hint else ""
        return updates | {launcher.errors[kind]: "" for kind in launcher.forms}

    def opening(request: gr.Request) -> dict[Any, Any]:
        query = dict(request.query_params)
        kind = query.get("kind", "")
        kind = kind if kind in launcher.forms else job_launch.LAUNCHED[0]
        values = {name: job_launch.start_values(name, query if name == kind else {}) for name in launcher.forms}
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

    def stopping(job_id: int | None, known: dict[str, int], most: int) -> dict[Any, Any]:
        problem = halt(context, job_id)
        return show(job_id, known, most) | {opened.problem: job_views.error(problem)}

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
    opened.stop.click(told(stopping), [chosen, seen, limit], shown, **quiet)
    opened.again.click(told(again), [chosen, seen, limit], everything, **quiet, js=_FORGET)
    for kind, form in launcher.forms.items():
        begin = _starter(context, kind, form, launcher.errors[kind], turn_to)
        inputs = [seen, limit, *form.components]
        launcher.starts[kind].click(begin, inputs, shown, **{**quiet, "show_progress": "minimal"})
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
