"""The Models page: bases and adapters with their lineage, one of them opened; training runs side by side.

The address holds the state: `/models?adapter=3`, `/models?merged=NAME`, and for the runs
`/models?view=runs&dataset=NAME&base=…&method=dpo&sweep=12&best=reward_accuracy&curve=kl&runs=3,5`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from storage.errors import PlumbError
from workbench import model_desk, model_views
from workbench.context import Context
from workbench.events import CONCURRENCY, told
from workbench.model_desk import Models, read_address
from workbench.views import drawn, notice

# Frames keep their place and the keyboard its focus when what they show is drawn anew.
_KEEP_JS = """
const places = {};
element.addEventListener('scroll', (event) => {
  const frame = event.target;
  if (frame.className) places[frame.className] = [frame.scrollTop, frame.scrollLeft];
}, true);
let focused = null;
element.addEventListener('focusin', (event) => {
  const data = event.target.dataset;
  const name = ['key', 'query', 'run'].find((each) => data && each in data);
  focused = name ? `[data-${name}="${CSS.escape(data[name])}"]` : null;
});
element.addEventListener('focusout', (event) => { if (event.relatedTarget) focused = null; });
watch('value', () => requestAnimationFrame(() => {
  for (const [name, [top, left]] of Object.entries(places)) {
    const frame = element.getElementsByClassName(name)[0];
    if (frame) { frame.scrollTop = top; frame.scrollLeft = left; }
  }
  const again = focused && element.querySelector(focused);
  if (again && document.activeElement === document.body) again.focus({preventScroll: true});
  const frame = element.querySelector('.pm-frame');
  const current = frame && frame.querySelector('[aria-current]');
  if (current) {
    const inner = current.getBoundingClientRect(), outer = frame.getBoundingClientRect();
    if (inner.top < outer.top || inner.bottom > outer.bottom) frame.scrollTop += inner.top - outer.top - 60;
    if (inner.left < outer.left || inner.right > outer.right) frame.scrollLeft += inner.left - outer.left - 60;
  }
}));
"""

# Filters and ticks change the address; the page follows it.
_QUERY_JS = (
    _KEEP_JS
    + """
element.addEventListener('change', (event) => {
  const query = new URLSearchParams(window.location.search);
  query.set('view', 'runs');
  const {query: name, run} = event.target.dataset;
  if (name) query.set(name, event.target.value);
  else if (run) {
    const ticked = [...element.querySelectorAll('[data-run]:checked')].map((box) => box.dataset.run);
    query.set('runs', ticked.join(','));
  } else return;
  for (const [key, value] of [...query]) if (!value) query.delete(key);
  window.plumb.go('/models?' + query.toString(), true);
});
"""
)

_SEARCH_JS = "() => [window.location.search]"
# The first tells of what was done, in the line at the lower right; then the page is drawn anew.
_RENAMED_JS = "(text) => { if (text) { window.plumb.say(text, 'good'); window.plumb.refresh(); } return text; }"
_DELETED_JS = (
    "(text) => { if (text) { window.plumb.say(text, 'good'); window.plumb.go('/models'); } return text; }"
)


@dataclass(frozen=True)
class Selected:
    """What the acts are about: an adapter's id or the name of merged weights."""

    adapter: int | None = None
    merged: str = ""

    @property
    def what(self) -> int | str:
        return self.merged if self.adapter is None else self.adapter

    @classmethod
    def of(cls, found: Models) -> Selected:
        if found.opened is not None:
            return cls(adapter=found.opened.adapter.id)
        return cls(merged=found.merged.folder.name) if found.merged is not None else cls()


def _html(value: str = "", **arguments: Any) -> Any:
    return gr.HTML(value, apply_default_css=False, elem_classes="pm-piece", **arguments)


class Acts:
    """What can be done with what is selected. No events in here."""

    def __init__(self) -> None:
        with gr.Row(elem_classes="pm-panels", visible=False) as self.row:
            with gr.Accordion("Merge into full weights", open=False, elem_id="pm-merge") as self.merging:
                _html(
                    "<p class='pb-sub'>A folder that plain from_pretrained loads and that can be a base model, "
                    "below models/merged. It needs as much disk as the base.</p>"
                )
                self.merge_name = gr.Textbox(label="Name", max_lines=1)
                self.merge = gr.Button("Merge", size="sm", scale=0, min_width=110, elem_id="pm-merge-go")
                self.merge_told = _html(elem_id="pm-merge-told")
            with gr.Accordion("Push to a hub", open=False, elem_id="pm-push"):
                self.push_hint = _html(elem_id="pm-push-hint")
                self.repository = gr.Textbox(
                    label="Repository", placeholder="owner/name", info="made where it isn't there", max_lines=1
                )
                self.private = gr.Checkbox(value=True, label="Private")
                self.push = gr.Button("Push", size="sm", scale=0, min_width=110, elem_id="pm-push-go")
                self.push_told = _html(elem_id="pm-push-told")
            with gr.Accordion("Rename", open=False, elem_id="pm-rename") as self.renaming:
                self.name = gr.Textbox(
                    label="Name", info="a label here; the card in its files keeps the old one", max_lines=1
                )
                self.rename = gr.Button("Rename", size="sm", scale=0, min_width=110, elem_id="pm-rename-go")
                self.rename_told = _html(elem_id="pm-rename-told")
            with gr.Accordion("Delete", open=False, elem_id="pm-delete") as self.deleting:
                self.ask = gr.Button(
                    "Delete…", variant="stop", size="sm", scale=0, min_width=110, elem_id="pm-delete-ask"
                )
                self.question = _html(elem_id="pm-delete-question")
                with gr.Row(visible=False) as self.sure:
                    self.delete = gr.Button(
                        "Delete for good",
                        variant="stop",
                        size="sm",
                        scale=0,
                        min_width=130,
                        elem_id="pm-delete-go",
                    )
                    self.keep = gr.Button("Keep it", size="sm", scale=0, min_width=90, elem_id="pm-delete-keep")


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Models · Plumb", analytics_enabled=False) as page:
        address = gr.Textbox(visible="hidden", label="address", elem_id="pb-address")
        refresh = gr.Button("refresh", visible="hidden", elem_id="pb-refresh")
        restore = gr.Button("restore", visible="hidden", elem_id="pb-restore")
        said = gr.Textbox(visible="hidden", label="said")
        selected = gr.State(Selected())
        tabs = _html()
        with gr.Column(elem_classes="plumb-split pm-models") as models:
            picture = _html(elem_id="pm-picture", js_on_load=_KEEP_JS)
            opened = _html(elem_id="pm-opened")
            acts = Acts()
            with gr.Accordion("Model card", open=True, visible=False) as card_frame:
                card = _html(elem_id="pm-card")
        with gr.Column(elem_classes="plumb-split pm-runs", visible=False) as runs:
            table = _html(elem_id="pm-runs", js_on_load=_QUERY_JS)

        def show(search: str) -> dict[Any, Any]:
            asked = read_address(search)
            updates: dict[Any, Any] = {
                tabs: model_views.tabs(asked.runs),
                models: gr.update(visible=not asked.runs),
                runs: gr.update(visible=asked.runs),
            }
            if asked.runs:
                return updates | {table: drawn(model_views.runs(model_desk.runs(context, asked)))}
            found = model_desk.models(context, asked)
            hint = model_desk.token_hint()
            shown, alone = bool(found.opened or found.merged), found.opened is None
            name = found.opened.adapter.name if found.opened else ""
            cleared = (acts.merge_told, acts.push_told, acts.rename_told, acts.question)
            return (
                updates
                | dict.fromkeys(cleared, "")
                | {
                    picture: drawn(model_views.family(found)),
                    opened: model_views.opened(found),
                    card_frame: gr.update(visible=shown),
                    card: model_views.card(found),
                    selected: Selected.of(found),
                    acts.row: gr.update(visible=shown),
                    acts.merging: gr.update(visible=not alone),
                    acts.renaming: gr.update(visible=not alone),
                    acts.deleting: gr.update(visible=not alone),
                    acts.sure: gr.update(visible=False),
                    acts.merge_name: model_desk.suggested_name(found.opened) if found.opened else "",
                    acts.name: name,
                    acts.push_hint: model_views.hint(hint),
                    acts.push: gr.update(interactive=not hint),
                }
            )

        outputs = [tabs, models, runs, table, picture, opened, card_frame, card, selected, acts.row, acts.merging]
        outputs += [acts.renaming, acts.deleting, acts.sure, acts.merge_name, acts.name, acts.push_hint, acts.push]
        outputs += [acts.merge_told, acts.push_told, acts.rename_told, acts.question]
        gr.on(
            [page.load, refresh.click, restore.click],
            told(show),
            [address],
            outputs,
            js=_SEARCH_JS,
            trigger_mode="always_last",
            show_progress="hidden",
            concurrency_limit=CONCURRENCY,
            api_visibility="private",
        )
        _wire(context, acts, selected, said)
    return page


def _wire(context: Context, acts: Acts, selected: Any, said: Any) -> None:
    quiet: dict[str, Any] = {
        "concurrency_limit": CONCURRENCY,
        "show_progress": "hidden",
        "api_visibility": "private",
    }

    def merging(request: gr.Request, chosen: Selected, name: str) -> str:
        try:
            job = model_desk.merge(context, context.user(request), _adapter(chosen), name)
        except PlumbError as error:
            return notice(str(error), "bad")
        return model_views.queued(job.id, "The merge")

    def pushing(request: gr.Request, chosen: Selected, repository: str, private: bool) -> str:
        try:
            job = model_desk.push(context, context.user(request), chosen.what, repository, private)
        except PlumbError as error:
            return notice(str(error), "bad")
        return model_views.queued(job.id, "The upload")

    def renaming(chosen: Selected, name: str) -> tuple[str, str]:
        try:
            adapter = model_desk.rename(context, _adapter(chosen), name)
        except PlumbError as error:
            return notice(str(error), "bad"), ""
        return "", f"The adapter is named {adapter.name}."

    def asking(chosen: Selected) -> tuple[str, Any]:
        try:
            adapter, uses = model_desk.deletion(context, _adapter(chosen))
        except PlumbError as error:
            return notice(str(error), "bad"), gr.update(visible=False)
        return model_views.deletion(adapter, uses), gr.update(visible=True)

    def deleting(chosen: Selected) -> tuple[str, Any, str]:
        try:
            done = model_desk.delete(context, _adapter(chosen))
        except PlumbError as error:
            return notice(str(error), "bad"), gr.update(visible=False), ""
        return "", gr.update(visible=False), done

    acts.merge.click(told(merging), [selected, acts.merge_name], [acts.merge_told], **quiet)
    acts.push.click(told(pushing), [selected, acts.repository, acts.private], [acts.push_told], **quiet)
    acts.rename.click(told(renaming), [selected, acts.name], [acts.rename_told, said], **quiet).then(
        None, [said], [said], js=_RENAMED_JS, api_visibility="private"
    )
    acts.ask.click(told(asking), [selected], [acts.question, acts.sure], **quiet)
    acts.keep.click(lambda: ("", gr.update(visible=False)), None, [acts.question, acts.sure], **quiet)
    acts.delete.click(told(deleting), [selected], [acts.question, acts.sure, said], **quiet).then(
        None, [said], [said], js=_DELETED_JS, api_visibility="private"
    )


def _adapter(chosen: Selected) -> int:
    if chosen.adapter is None:
        raise PlumbError("Choose an adapter in the picture first.")
    return chosen.adapter
