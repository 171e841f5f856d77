"""The Data page: files or a hub's data set are looked through, shown as they would arrive, and imported.

What is under way belongs to the person and lives in `data_desk.Desk`: the page draws what it finds there, at its
opening and, while something is at work, each second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gradio as gr

from storage.errors import DatabaseBusy, PlumbError
from storage.imports.archives import PICTURES, ROWS
from storage.imports.formats import FORMATS
from workbench import data_views
from workbench.context import Context
from workbench.data_desk import Arrival, Choice, Desk
from workbench.events import CONCURRENCY, told
from workbench.views import notice

LOOK_SECONDS = 1.0

# While something is at work, and the page is before somebody's eyes.
_LOOK_JS = f"""
const timer = setInterval(() => {{
  if (!element.isConnected) return clearInterval(timer);
  const button = document.querySelector('#data-look');
  if (document.hidden || !button || !document.querySelector('#data-status [data-busy]')) return;
  (button.tagName === 'BUTTON' ? button : button.querySelector('button')).click();
}}, {int(LOOK_SECONDS * 1000)});
"""

Updates = dict[Any, Any]
Seen = dict[str, int]


def _html(value: str = "", **arguments: Any) -> Any:
    return gr.HTML(value, apply_default_css=False, elem_classes="pi-piece", **arguments)


class Form:
    """What is chosen before an import."""

    def __init__(self) -> None:
        with gr.Column(visible=False, elem_classes="pb-panel", elem_id="data-form") as self.column:
            self.title = _html()
            with gr.Row(elem_classes="pi-fields"):
                self.kind = gr.Dropdown(
                    [(data_views.KINDS[kind][0], kind) for kind in FORMATS],
                    label="Kind",
                    info="of rows; guessed from the first ones",
                    value="jsonl",
                    interactive=True,
                    min_width=180,
                    elem_id="data-kind",
                )
                self.source = gr.Textbox(
                    label="Source",
                    info="what the samples are filed under",
                    max_lines=1,
                    min_width=180,
                    elem_id="data-source",
                )
                self.split = gr.Textbox(
                    label="Split",
                    info="of rows that name none; may be empty",
                    max_lines=1,
                    min_width=160,
                    elem_id="data-split",
                )
            self.help = _html(elem_id="data-kind-help")
            self.files = gr.CheckboxGroup([], label="Files of rows", visible=False, elem_id="data-files")
            self.strict = gr.Checkbox(False, label="Only if no row is broken", elem_id="data-strict")
            with gr.Row(elem_classes="plumb-actions"):
                self.begin = gr.Button(
                    "Import", variant="primary", size="md", elem_id="data-import", elem_classes="pb-fit"
                )
                self.remove = gr.Button(
                    "Remove these files", size="md", elem_id="data-remove", elem_classes="pb-fit"
                )

    @property
    def fields(self) -> list[Any]:
        """In the order of `read_choice`."""
        return [self.kind, self.files, self.source, self.split, self.strict]


def read_choice(kind: str | None, files: Sequence[str] | None, source: str, split: str, strict: bool) -> Choice:
    """What the form's fields say."""
    return Choice(kind or "", tuple(files or ()), (source or "").strip(), (split or "").strip(), bool(strict))


def build(context: Context) -> gr.Blocks:
    desk = Desk(context.folder)
    desk.open()
    with gr.Blocks(title="Data · Plumb", analytics_enabled=False) as page:
        looking = gr.Button("look", visible="hidden", elem_id="data-look")
        with gr.Row(elem_classes="pb-split pi-page"):
            with gr.Column(scale=1, min_width=480, elem_classes="pb-main pi-main"):
                with gr.Column(elem_classes="pb-panel", elem_id="data-bring"):
                    _html(data_views.INTRODUCTION)
                    with gr.Row(elem_classes="pi-bring"):
                        upload = gr.File(
                            label="Rows with their images, or a zip",
                            file_count="multiple",
                            file_types=[*ROWS, *PICTURES, ".zip"],
                            height=120,
                            elem_id="data-upload",
                        )
                        with gr.Column(min_width=240, elem_classes="pi-hub"):
                            hub = gr.Textbox(
                                label="Or a data set of the Hugging Face hub",
                                info="the token, if it needs one, is HF_TOKEN of this server",
                                placeholder="OWNER/NAME or OWNER/NAME@REVISION",
                                max_lines=1,
                                elem_id="data-hub",
                            )
                            fetch = gr.Button("Fetch", elem_id="data-fetch", elem_classes="pb-fit pb-plain")
                    outcome = _html(elem_id="data-outcome")
                status = _html(elem_id="data-status", js_on_load=_LOOK_JS)
                cancel = gr.Button("Cancel", visible=False, elem_id="data-cancel", elem_classes="pb-fit pb-plain")
                form = Form()
                preview = _html(elem_id="data-preview")
            with (
                gr.Column(scale=0, min_width=340, elem_classes="pb-side wide"),
                gr.Column(elem_classes="pb-panel"),
            ):
                _html("<h2>What is there</h2>")
                sources = _html(elem_id="data-sources")
        parts = Parts(form, upload, hub, fetch, outcome, status, cancel, preview, sources)
        _wire(context, desk, page, looking, parts)
    return page


class Parts:
    """The page's components."""

    def __init__(self, form: Form, *rest: Any) -> None:
        self.form = form
        (
            self.upload,
            self.hub,
            self.fetch,
            self.outcome,
            self.status,
            self.cancel,
            self.preview,
            self.sources,
        ) = rest


def look(context: Context, desk: Desk, user: str) -> tuple[Arrival | None, dict[str, str]]:
    """This person's arrival, and the parts of the page that live, as HTML by their names."""
    arrival = desk.of(user)
    try:
        there = data_views.sources(desk.sources(), datetime.now(UTC))
    except DatabaseBusy:
        there = ""
    return arrival, {
        "status": data_views.status(arrival, desk.others(user)),
        "help": data_views.kind_help(arrival.choice.kind) if arrival and arrival.choice else "",
        "preview": data_views.outlook(arrival),
        "sources": there,
    }


def _wire(context: Context, desk: Desk, page: gr.Blocks, looking: Any, parts: Parts) -> None:
    quiet: dict[str, Any] = {
        "concurrency_limit": CONCURRENCY,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    form, seen = parts.form, gr.State({})
    shown = [
        *(parts.status, parts.preview, parts.sources, parts.cancel, parts.outcome, seen),
        *(form.column, form.title, form.help, form.begin, *form.fields),
    ]

    def show(user: str, known: Mapping[str, int]) -> Updates:
        """What differs from what the browser has; fields only where there is something new to suggest."""
        arrival, found = look(context, desk, user)
        digests: Seen = {name: hash(html) for name, html in found.items()}
        places = {"status": parts.status, "help": form.help, "preview": parts.preview, "sources": parts.sources}
        updates: Updates = {places[name]: html for name, html in found.items() if known.get(name) != digests[name]}
        stage = hash((arrival.key, arrival.stage, arrival.outlook is None)) if arrival else 0
        digests["stage"] = stage
        if known.get("stage") != stage:
            updates |= _stage_updates(arrival)
        form_key = hash((arrival.key, arrival.form)) if arrival and arrival.choice else 0
        digests["form"] = form_key
        if arrival is not None and arrival.choice is not None and known.get("form") != form_key:
            updates |= _field_updates(arrival, arrival.choice)
        return updates | {seen: digests}

    def _stage_updates(arrival: Arrival | None) -> Updates:
        open_ = arrival is not None and arrival.staged is not None and arrival.choice is not None
        can = open_ and arrival is not None and arrival.stage in ("ready", "looking")
        return {
            form.column: gr.update(visible=can),
            form.begin: gr.update(interactive=can and arrival is not None and arrival.outlook is not None),
            parts.cancel: gr.update(visible=arrival is not None and arrival.busy, interactive=True),
        }

    def _field_updates(arrival: Arrival, choice: Choice) -> Updates:
        return {
            form.title: data_views.title(arrival.name),
            form.kind: choice.kind,
            form.source: choice.source,
            form.split: choice.split,
            form.strict: choice.strict,
            form.files: gr.update(
                choices=list(arrival.files), value=list(choice.files), visible=len(arrival.files) > 1
            ),
        }

    def acting(user: str, known: Mapping[str, int], act: Any) -> Updates:
        """Do it, and show what came of it; why not is told beside the fields."""
        said = ""
        try:
            act()
        except PlumbError as error:
            said = notice(str(error), "bad")
        return {parts.outcome: said} | show(user, known)

    def opening(request: gr.Request) -> Updates:
        return show(context.user(request), {})

    def ticking(known: Seen, request: gr.Request) -> Updates:
        return show(context.user(request), known)

    def receiving(files: Sequence[str] | None, known: Seen, request: gr.Request) -> Updates:
        user = context.user(request)
        named = [(Path(path).name, Path(path)) for path in files or ()]
        return {parts.upload: None} | acting(user, known, lambda: desk.receive(user, named))

    def fetching(text: str, known: Seen, request: gr.Request) -> Updates:
        user = context.user(request)
        return acting(user, known, lambda: desk.fetch(user, text or ""))

    def choosing(
        kind: str, files: list[str], source: str, split: str, strict: bool, known: Seen, request: gr.Request
    ) -> Updates:
        user = context.user(request)
        return acting(user, known, lambda: desk.look(user, read_choice(kind, files, source, split, strict)))

    def beginning(
        kind: str, files: list[str], source: str, split: str, strict: bool, known: Seen, request: gr.Request
    ) -> Updates:
        user = context.user(request)
        return acting(user, known, lambda: desk.begin(user, read_choice(kind, files, source, split, strict)))

    def cancelling(known: Seen, request: gr.Request) -> Updates:
        user = context.user(request)
        return acting(user, known, lambda: desk.cancel(user))

    def removing(known: Seen, request: gr.Request) -> Updates:
        user = context.user(request)
        return acting(user, known, lambda: desk.remove(user))

    page.load(told(opening), None, shown, **quiet)
    looking.click(told(ticking), [seen], shown, **quiet)
    parts.upload.upload(told(receiving), [parts.upload, seen], [parts.upload, *shown], **quiet)
    gr.on([parts.fetch.click, parts.hub.submit], told(fetching), [parts.hub, seen], shown, **quiet)
    gr.on(
        [form.kind.input, form.files.input, form.source.blur, form.split.blur, form.source.submit],
        told(choosing),
        [*form.fields, seen],
        shown,
        **quiet,
    )
    form.begin.click(told(beginning), [*form.fields, seen], shown, **quiet)
    parts.cancel.click(told(cancelling), [seen], shown, **quiet)
    form.remove.click(told(removing), [seen], shown, **quiet)
