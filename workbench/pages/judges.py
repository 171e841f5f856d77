"""The Judges page: keys, prices and limits, rubrics, the judge of the key J.

`/judges?rubric=plumb-2` opens that rubric.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from jobs.rubric import ANCHORS
from storage.errors import PlumbError
from storage.records import METRICS
from workbench import job_launch, judge_desk
from workbench.context import Context
from workbench.events import CONCURRENCY, told
from workbench.forms import Form, build_form, merged
from workbench.views import drawn, notice

TICK_SECONDS = 5.0

# Rows are added and removed in the browser; nothing is saved before Save.
_TABLE_JS = """
element.addEventListener('click', (event) => {
  const remove = event.target.closest('[data-remove]');
  if (!remove) return;
  const row = remove.closest('tr');
  if (row.nextElementSibling) row.remove();
  else row.querySelectorAll('input').forEach((input) => { input.value = ''; });
});
element.addEventListener('input', (event) => {
  const row = event.target.closest('tr');
  if (!row || row.nextElementSibling || !event.target.value) return;
  const following = row.cloneNode(true);
  following.querySelectorAll('input').forEach((input) => { input.value = ''; });
  row.after(following);
});
"""

_OPEN_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-open]');
  if (button) trigger('click', {model: button.dataset.open});
});
"""

# What stands in the table, as rows of texts by field, in place of the hidden input.
_READ_TABLE = """(raw, ...others) => [JSON.stringify(
  [...document.querySelectorAll('#judge-prices tbody tr')].map((row) =>
    Object.fromEntries([...row.querySelectorAll('input')].map((input) => [input.name, input.value])))
), ...others]"""

# The browser's bar follows the rubric that was chosen, so that the address can be passed on.
_ADDRESS_JS = """
watch('value', () => {
  const marked = element.querySelector('[data-url]');
  if (marked) history.replaceState(null, '', location.pathname + marked.dataset.url);
});
"""

# Whoever leaves with edits in the open editor is asked first; a saved or a cancelled one has gone by then.
_LEAVING_JS = """
let typed = false;
const inside = (event, place) => event.target.closest && event.target.closest(place);
document.addEventListener('input', (event) => { if (inside(event, '#judge-editor')) typed = true; });
document.addEventListener('click', (event) => { if (inside(event, '#judge-edit')) typed = false; }, true);
window.addEventListener('beforeunload', (event) => {
  const editor = document.querySelector('#judge-editor');
  if (typed && editor && editor.offsetParent) event.preventDefault();
});
"""


def _html(value: str = "", **arguments: Any) -> Any:
    return gr.HTML(value, apply_default_css=False, **arguments)


class Prices:
    """The table, what all judging may cost in a day, and what today came to."""

    def __init__(self) -> None:
        with gr.Column(elem_classes="pb-panel"):
            _html(
                "<h2>Prices and limits</h2><p class='pb-sub'>A model without a row is never asked; a name that "
                "ends in * stands for all that begin so. The defaults are list prices of 2025 and the limits of "
                "the first paid tier: check them against your provider's.</p>"
            )
            self.table = _html(elem_id="judge-prices", js_on_load=_TABLE_JS)
            self.raw = gr.Textbox(visible="hidden", label="table", elem_id="judge-raw")
            with gr.Row(elem_classes="pj-row"):
                self.money = gr.Number(label="Most money a day", info="dollars, of all judging", min_width=150)
                self.zone = gr.Dropdown(
                    list(judge_desk.ZONES),
                    label="Days begin in",
                    info="time zone of the provider's quotas",
                    allow_custom_value=True,
                    min_width=220,
                )
                self.save = gr.Button(
                    "Save prices and limits",
                    variant="primary",
                    size="md",
                    elem_id="judge-save-prices",
                    elem_classes="pb-fit",
                )
            self.outcome = _html(elem_id="judge-prices-outcome")
        with gr.Column(elem_classes="pb-panel"):
            _html("<h2>Today</h2>")
            self.today = _html(elem_id="judge-today", js_on_load=_OPEN_JS)
            self.opened = _html(elem_id="judge-opened")


class Rubrics:
    """The versions, the one that is chosen, and the editor for the next."""

    def __init__(self) -> None:
        with gr.Column(elem_classes="pb-panel"):
            _html(
                "<h2>Rubrics</h2><p class='pb-sub'>What a judge scores by. A version is never changed, since "
                "scores stand under its name; an edit makes a new one.</p>"
            )
            with gr.Row(elem_classes="pj-row"):
                self.version = gr.Dropdown([], label="Version", min_width=200, elem_id="judge-rubric-version")
                self.edit = gr.Button(
                    "Make a new version from it", size="md", elem_id="judge-edit", elem_classes="pb-fit"
                )
            self.problem = _html(elem_id="judge-rubric-problem")
            with gr.Column(visible=False, elem_id="judge-editor") as self.editor:
                self.fields = self._editor()
                self.refused = _html(elem_id="judge-editor-problem")
                with gr.Row(elem_classes="pj-row"):
                    self.save = gr.Button(
                        "Save the new version",
                        variant="primary",
                        size="md",
                        elem_id="judge-save-rubric",
                        elem_classes="pb-fit",
                    )
                    self.cancel = gr.Button("Cancel", size="md", elem_classes="pb-fit")
            self.view = _html(elem_id="judge-rubric", js_on_load=_ADDRESS_JS + _LEAVING_JS)

    @staticmethod
    def _editor() -> list[Any]:
        """A field for each of `judge_desk.FIELDS`, in that order."""
        title = judge_desk.field_title
        with gr.Row(elem_classes="pj-row"):
            fields = [
                gr.Textbox(label=title("version"), max_lines=1, min_width=180),
                gr.Textbox(label=title("title"), max_lines=1, min_width=320, scale=3),
            ]
        with gr.Tabs():
            with gr.Tab("Guide"):
                info = "what a judge is told before all else"
                fields.append(gr.Textbox(label=title("guide"), info=info, lines=12, max_lines=30))
            for metric in METRICS:
                with gr.Tab(metric.capitalize()):
                    fields.append(gr.Textbox(label=title(f"{metric}.definition"), lines=3, max_lines=12))
                    fields += [
                        gr.Textbox(label=title(f"{metric}.{value}"), lines=1, max_lines=8) for value in ANCHORS
                    ]
        return fields


class DeskPanel:
    """The judge that “Score this sample” asks."""

    def __init__(self) -> None:
        with gr.Column(elem_classes="pb-panel plumb-narrow"):
            _html(
                "<h2>The judge of the key J</h2><p class='pb-sub'>“Score this sample” on <a href='/'>Samples</a> "
                "asks it at once, without a job.</p>"
            )
            controls = judge_desk.desk_controls()
            dropdowns = {"judge": False, "model": True, "rubric": False, "mode": False}
            self.form: Form = build_form(controls, judge_desk.MAIN, dropdowns)
            self.save = gr.Button("Save this judge", variant="primary", size="md", elem_id="judge-save-desk")
            self.outcome = _html(elem_id="judge-desk-outcome")


@dataclass(frozen=True)
class Parts:
    keys: Any
    desk: DeskPanel
    prices: Prices
    rubrics: Rubrics


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Judges · Plumb", analytics_enabled=False) as page:
        with gr.Row(elem_classes="pb-split"):
            with gr.Column(scale=0, min_width=340, elem_classes="pb-side wide"):
                with gr.Column(elem_classes="pb-panel"):
                    _html("<h2>Keys</h2>")
                    keys = _html(elem_id="judge-keys")
                desk = DeskPanel()
            with gr.Column(scale=1, min_width=480, elem_classes="pb-main pj-main"):
                parts = Parts(keys, desk, Prices(), Rubrics())
        _wire(context, page, parts)
    return page


def _wire(context: Context, page: gr.Blocks, parts: Parts) -> None:
    prices, rubrics, desk = parts.prices, parts.rubrics, parts.desk
    quiet: dict[str, Any] = {
        "concurrency_limit": CONCURRENCY,
        "show_progress": "hidden",
        "api_visibility": "private",
    }

    seen = gr.State("")  # the mark of the table that this tab shows

    def desk_shown() -> dict[Any, Any]:
        values, problem = judge_desk.desk_values(context)
        choices = judge_desk.desk_choices(context.settings)
        changes = [desk.form.fill({path: value for path, value in values.items() if path not in choices})]
        changes += [desk.form.offer(path, options, values[path]) for path, options in choices.items()]
        changes.append(_remote(desk.form, values["judge"]))
        return merged(*changes) | {desk.outcome: notice(problem, "bad")}

    def opening(request: gr.Request) -> dict[Any, Any]:
        terms, problem = judge_desk.table(context)
        updates: dict[Any, Any] = {parts.keys: judge_desk.show_keys(context), prices.today: ""}
        updates |= {seen: judge_desk.mark_of(terms), prices.opened: ""}
        if terms is None:
            updates |= {prices.table: "", prices.outcome: notice(problem, "bad")}
        else:
            updates |= {
                prices.table: drawn(judge_desk.show_table(terms)),
                prices.money: terms.money_a_day,
                prices.zone: terms.day_begins_in,
                prices.today: judge_desk.show_today(context),
                prices.outcome: "",
            }
        updates |= desk_shown()
        asked, addressed = judge_desk.rubric_by(
            dict(request.query_params), judge_desk.desk_values(context)[0].get("rubric")
        )
        version, view = judge_desk.open_rubric(context, asked, addressed)
        return updates | {
            rubrics.version: gr.update(choices=judge_desk.versions(context), value=version),
            rubrics.view: view,
            rubrics.editor: gr.update(visible=False),
            rubrics.problem: "",
        }

    def choosing(version: str | None) -> str:
        return judge_desk.open_rubric(context, version)[1]

    def editing(version: str | None) -> dict[Any, Any]:
        try:
            texts = judge_desk.draft(context, version or "")
        except PlumbError as error:
            return {rubrics.problem: notice(str(error), "bad")}
        updates: dict[Any, Any] = dict(zip(rubrics.fields, texts, strict=True))
        return updates | {
            rubrics.editor: gr.update(visible=True),
            rubrics.edit: gr.update(interactive=False),
            rubrics.version: gr.update(interactive=False),
            rubrics.problem: "",
            rubrics.refused: "",
        }

    closed = {
        rubrics.editor: gr.update(visible=False),
        rubrics.edit: gr.update(interactive=True),
        rubrics.version: gr.update(interactive=True),
        rubrics.refused: "",
        rubrics.problem: "",
    }

    def saving(base: str, *texts: str) -> dict[Any, Any]:
        try:
            made = judge_desk.save_draft(context, base, texts)
        except PlumbError as error:
            return {rubrics.refused: notice(str(error), "bad")}
        version, view = judge_desk.open_rubric(context, made.version)
        known = judge_desk.versions(context)
        return closed | {
            rubrics.version: gr.update(choices=known, value=version, interactive=True),
            rubrics.view: view,
            rubrics.problem: notice(f"{made.version} is saved. Judges use it where it is chosen.", "good"),
            desk.form.component("rubric"): gr.update(choices=[(name, name) for name in known]),
        }

    def saving_table(raw: str, money: float | None, zone: str | None, mark: str) -> dict[Any, Any]:
        message, table = judge_desk.save_table(context, raw, money, zone, mark)
        updates = {prices.outcome: drawn(message)}
        if table:
            choices = judge_desk.desk_choices(context.settings)["model"]
            updates |= {
                prices.table: drawn(table),
                prices.today: judge_desk.show_today(context),
                seen: judge_desk.mark_of(judge_desk.table(context)[0]),
                desk.form.component("model"): gr.update(choices=choices),
            }
        return updates

    def opening_again(event: gr.EventData) -> tuple[str, str]:
        model = str((event._data or {}).get("model", ""))
        return drawn(judge_desk.open_again(context, model)), judge_desk.show_today(context)

    def saving_desk(*raw: Any) -> str:
        return drawn(judge_desk.said_of_desk(context, desk.form.controls, raw))

    editor = [rubrics.editor, rubrics.edit, rubrics.version, rubrics.refused, rubrics.problem]
    fields = list(desk.form.components)
    loaded = [parts.keys, prices.table, prices.money, prices.zone, prices.today, prices.outcome, rubrics.view]
    loaded += [seen, prices.opened]
    page.load(told(opening), None, [*loaded, *fields, desk.outcome, *editor], **quiet)
    gr.Timer(TICK_SECONDS).tick(told(partial(judge_desk.show_today, context)), None, [prices.today], **quiet)
    prices.save.click(
        told(saving_table),
        [prices.raw, prices.money, prices.zone, seen],
        [prices.outcome, prices.table, prices.today, seen, desk.form.component("model")],
        js=_READ_TABLE,
        **quiet,
    )
    prices.today.click(told(opening_again), None, [prices.opened, prices.today], **quiet)
    rubrics.version.input(told(choosing), [rubrics.version], [rubrics.view], **quiet)
    rubrics.edit.click(told(editing), [rubrics.version], [*editor, *rubrics.fields], **quiet)
    rubrics.cancel.click(told(lambda: closed), None, editor, **quiet)
    rubrics.save.click(
        told(saving),
        [rubrics.version, *rubrics.fields],
        [*editor, rubrics.view, desk.form.component("rubric")],
        **quiet,
    )
    judge = desk.form.component("judge")
    remote = [desk.form.component(path) for path in _remote_paths(desk.form)]
    judge.input(told(partial(_remote, desk.form)), [judge], remote, **quiet)
    desk.save.click(told(saving_desk), fields, [desk.outcome], **quiet)


def _remote_paths(form: Form) -> list[str]:
    return [control.path for control in form.controls if control.path in job_launch.REMOTE_ONLY]


def _remote(form: Form, judge: str | None) -> dict[Any, Any]:
    """Show the fields that matter for remote judges where one is chosen."""
    return form.show(_remote_paths(form), job_launch.is_remote(judge))
