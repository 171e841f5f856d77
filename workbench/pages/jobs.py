"""The Jobs page: launch, estimate, queue, progress, curves, answers along a training, log, pause, stop.

`/jobs?job=12`, `/jobs?kind=dpo&dataset=NAME`, `/jobs?rest=12` (judge again what job 12 could not).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from sqlite_utils import Database

from storage.errors import DatabaseBusy, PlumbError
from storage.jobs import get_job
from workbench import job_launch, job_views
from workbench.context import Context
from workbench.events import told
from workbench.forms import Choice, Form, merged
from workbench.job_desk import estimated, form_values, selected_by, start
from workbench.job_look import PAGE, changed, look
from workbench.job_panels import Launcher, Opened, Queue, Undo
from workbench.job_wiring import FORGET, Shown, wire_opened
from workbench.progress import Watch
from workbench.training_form import TRAINED
from workbench.training_panel import START
from workbench.training_wiring import QUIET, TurnTo, wire_training

TICK_SECONDS = 2.0

# A click on a job's link selects it in place; with a modifier key it opens in a tab of its own, as links do.
# The browser's bar follows what is shown, so that the address can be passed on.
_CLICK_JS = """
element.addEventListener('click', (event) => {
  const link = event.target.closest('a[data-job], a[data-more]');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  trigger('click', {job: Number(link.dataset.job || 0), more: link.dataset.more === '1'});
});
"""

_CHOOSE_JS = (
    _CLICK_JS
    + """
watch('value', () => {
  const marked = element.querySelector('[data-url]');
  if (marked) history.replaceState(null, '', location.pathname + marked.dataset.url);
  const open = element.querySelector('[data-open]');
  if (open) window.plumb.showCounts({jobs: Number(open.dataset.open)});
});
"""
)

# Drawn anew because another run was deleted, it stays as unfolded as it was.
_DELETED_JS = (
    _CLICK_JS
    + """
let unfolded = false;
element.addEventListener('toggle', (event) => { unfolded = event.target.open; }, true);
watch('value', () => {
  const folded = element.querySelector('details');
  if (folded && unfolded) folded.open = true;
});
"""
)


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Jobs · Plumb", analytics_enabled=False) as page:
        with gr.Row(elem_classes="plumb-split"):
            with gr.Column(scale=2, min_width=300, elem_classes="plumb-side"):
                new = gr.Button("New job", variant="primary", size="md")
                queue = Queue()
                jobs = gr.HTML(js_on_load=_CHOOSE_JS, elem_id="jobs-list", apply_default_css=False)
                deleted = gr.HTML(js_on_load=_DELETED_JS, elem_id="jobs-bin", apply_default_css=False)
            with gr.Column(scale=5, min_width=420):
                undo = Undo()
                launcher = Launcher()
                opened = Opened()
        _wire(context, page, new, jobs, deleted, queue, undo, launcher, opened)
    return page


def _wire(
    context: Context,
    page: gr.Blocks,
    new: Any,
    jobs: Any,
    deleted: Any,
    queue: Queue,
    undo: Undo,
    launcher: Launcher,
    opened: Opened,
) -> None:
    watch = Watch()
    chosen = gr.State(None)
    seen = gr.State({})
    limit = gr.State(PAGE)
    checkpoint = gr.State(None)  # the place that a person has chosen on the slider; None follows the newest
    part = gr.State(None)  # the attempt whose log a person has chosen; None for the log's end
    timer = gr.Timer(TICK_SECONDS)
    shown = [jobs, deleted, *queue.outputs, *opened.outputs, seen, chosen, limit, checkpoint, part]
    shown += [launcher.column, opened.column, *opened.asked, *opened.searched, *undo.outputs, *launcher.all_errors]

    def show(
        job_id: int | None, known: Mapping[str, int], most: int, place: int | None, attempt: int | None
    ) -> dict[Any, Any]:
        """Updates for a look at this job, or at none."""
        found = look(context, watch, job_id, most, place, attempt)
        news, digests = changed(found, known)
        updates = opened.updates(news, found, place) | queue.updates(news)
        if "jobs" in news:
            updates[jobs] = news["jobs"]
        if "bin" in news:
            updates[deleted] = news["bin"]
        return updates | {seen: digests}  # Gradio takes no empty answer

    def turn_to(job_id: int | None, known: Mapping[str, int], most: int) -> dict[Any, Any]:
        return {
            **show(job_id, known, most, None, None),
            **dict.fromkeys((checkpoint, part)),
            **opened.ask("", ""),
            **opened.forget_search(),
            **undo.show(None),
            chosen: job_id,
            limit: most,
            opened.problem: "",
            launcher.column: gr.update(visible=job_id is None),
            opened.column: gr.update(visible=job_id is not None),
        }

    def offer(values: Mapping[str, Mapping[str, Any]], kind: str) -> dict[Any, Any]:
        """The forms as they stand at first, the one of this kind before one's eyes."""
        with context.database() as db:
            offers = job_launch.offers(db, context.settings)
            updates: dict[Any, Any] = {}
            for name, form in launcher.forms.items():
                updates |= _filled(db, form, values[name], offers.choices[name])
                judge = values[name].get("judge")
                remote = form.show(job_launch.remote_fields(name), job_launch.is_remote(judge))
                updates = merged(updates, remote)
                hint = offers.hints.get(name) or job_launch.key_hint(judge, context.settings)
                updates[launcher.hints[name]] = job_views.hint(hint)
            method = kind if kind in TRAINED else TRAINED[0]
            panel = launcher.training
            filled = _filled(db, panel.forms[method], values[method], offers.choices[method])
        updates |= merged(panel.show_method(method), filled)
        updates |= {panel.hint: job_views.hint(offers.hints.get(method, ""))}
        empty = (*launcher.all_errors, *launcher.estimates.values(), panel.needs, panel.sweep_told)
        updates |= dict.fromkeys(empty, "") | {panel.start: START}
        updates = merged(updates, {field: gr.update(value="") for field in panel.sweep.values()})
        return updates | {launcher.tabs: gr.update(selected=job_launch.tab_of(kind))}

    def opening(request: gr.Request) -> dict[Any, Any]:
        query = dict(request.query_params)
        kind, values = form_values(context, query)
        return offer(values, kind) | turn_to(selected_by(query), {}, PAGE)

    def choosing(
        current: int | None,
        known: dict[str, int],
        most: int,
        place: int | None,
        attempt: int | None,
        event: gr.EventData,
    ) -> dict[Any, Any]:
        data = event._data or {}
        if data.get("more"):
            return show(current, known, most + PAGE, place, attempt) | {limit: most + PAGE}
        if data.get("job"):
            return turn_to(int(data["job"]), known, most)
        return show(current, known, most, place, attempt)

    def ticking(
        job_id: int | None, known: dict[str, int], most: int, place: int | None, attempt: int | None
    ) -> dict[Any, Any]:
        try:
            return show(job_id, known, most, place, attempt)
        except DatabaseBusy:
            return {seen: known}  # the next look is two seconds away

    def sliding(
        value: float, job_id: int | None, known: dict[str, int], most: int, attempt: int | None
    ) -> dict[Any, Any]:
        place = int(value)
        newest = len(look(context, watch, job_id, most).checkpoints) - 1
        kept = place if place < newest else None
        return show(job_id, known, most, kept, attempt) | {checkpoint: kept}

    def fresh(known: dict[str, int], most: int) -> dict[Any, Any]:
        values = {name: job_launch.start_values(name, {}) for name in job_launch.LAUNCHED}
        return offer(values, job_launch.LAUNCHED[0]) | turn_to(None, known, most)

    def cloning(job_id: int | None, known: dict[str, int], most: int) -> dict[Any, Any]:
        """The form with the job's settings, to change some of them before it is started."""
        if job_id is None:
            return show(job_id, known, most, None, None)
        with context.database() as db:
            job = get_job(db, job_id)
        values = {name: job_launch.start_values(name, {}) for name in job_launch.LAUNCHED}
        values[job.kind] |= job_launch.rerun_values(job)
        return offer(values, job.kind) | turn_to(None, known, most)

    everything = list(dict.fromkeys([*shown, *launcher.outputs]))
    page.load(told(opening), None, everything, **QUIET)
    at = [chosen, seen, limit, checkpoint, part]
    timer.tick(ticking, at, shown, **QUIET)
    for links in (jobs, deleted):
        links.click(told(choosing), at, shown, **QUIET)
    new.click(told(fresh), [seen, limit], everything, **QUIET, js=FORGET)
    opened.clone.click(told(cloning), [chosen, seen, limit], everything, **QUIET, js=FORGET)
    wire_opened(context, Shown(at, shown, show, turn_to), opened, queue, undo)
    # While a person slides, only the last place counts.
    slid = [opened.checkpoint, chosen, seen, limit, part]
    opened.checkpoint.input(told(sliding), slid, shown, **QUIET, trigger_mode="always_last")
    for kind, form in launcher.forms.items():
        begin = _starter(context, kind, form, launcher.errors[kind], turn_to)
        inputs = [seen, limit, *form.components]
        launcher.starts[kind].click(begin, inputs, shown, **{**QUIET, "show_progress": "minimal"})
    for kind in launcher.estimators:
        _wire_estimate(context, kind, launcher)
    wire_training(context, launcher.training, [seen, limit], shown, turn_to)
    for kind in ("generate", "evaluate"):
        form = launcher.forms[kind]
        model, adapter = form.component("model"), form.component("adapter")
        model.input(_adapters(context, form), [model], [adapter], **QUIET)


def _filled(
    db: Database, form: Form, values: Mapping[str, Any], offered: Mapping[str, Sequence[Choice]]
) -> dict[Any, Any]:
    """A form with these values and choices."""
    choices = dict(offered)
    for path in ("adapter", "start_adapter"):
        if path in choices:
            choices[path] = job_launch.adapter_choices(db, values["model"])
    plain = form.fill({path: value for path, value in values.items() if path not in choices and _has(form, path)})
    changes = [plain]
    for path, options in choices.items():
        value = values.get(path)
        changes.append(form.offer(path, options, "" if value is None else value))
        if path == "outside":
            changes.append(form.show([path], bool(options or value)))
    return merged(*changes)


def _has(form: Form, path: str) -> bool:
    return any(control.path == path for control in form.controls)


def _wire_estimate(context: Context, kind: str, launcher: Launcher) -> None:
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
        told(estimating), fields, [panel], **{**QUIET, "show_progress": "minimal"}, trigger_mode="always_last"
    )
    outputs = [*(form.component(path) for path in remote), launcher.hints[kind]]
    judge.input(told(choosing_judge), [judge], outputs, **QUIET)
    # An estimate of other settings than those that stand there would mislead.
    gr.on([field.change for field in fields], None, None, [panel], js="() => ''", api_visibility="private")


def _starter(
    context: Context, kind: str, form: Form, problem: Any, turn_to: TurnTo
) -> Callable[..., dict[Any, Any]]:
    # The request stands first: Gradio does not fill it in behind *raw.
    def begin(request: gr.Request, known: dict[str, int], most: int, *raw: Any) -> dict[Any, Any]:
        try:
            job = start(context, context.user(request), kind, form.controls, raw)
        except PlumbError as error:
            return {problem: job_views.error(str(error))}
        return turn_to(job.id, known, most) | {problem: ""}

    return begin


def _adapters(context: Context, form: Form) -> Callable[[str], dict[Any, Any]]:
    def offer(model: str) -> dict[Any, Any]:
        with context.database() as db:
            return form.offer("adapter", job_launch.adapter_choices(db, model), "")

    return offer
