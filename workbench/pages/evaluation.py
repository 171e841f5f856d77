"""The Evaluation page: models against benchmarks, and what each answered, item by item.

The address holds the state (workbench/evaluation_place.py); choices in the HTML change it (static/evaluation.js).
"""

from __future__ import annotations

import gradio as gr

from workbench import evaluation_item_views, evaluation_views
from workbench.context import Context
from workbench.evaluation_desk import Overview, look
from workbench.evaluation_place import read_place
from workbench.events import CONCURRENCY, told
from workbench.views import drawn

# The list keeps its place and the keyboard its focus when what they show is drawn anew.
_KEEP_JS = """
let top = 0, focused = '';
element.addEventListener('scroll', (event) => {
  if (event.target.matches('.ev-list')) top = event.target.scrollTop;
}, true);
element.addEventListener('focusin', (event) => { focused = event.target.dataset.keep || ''; });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) focused = ''; });
watch('value', () => requestAnimationFrame(() => {
  const list = element.querySelector('.ev-list');
  const current = list && list.querySelector('[aria-current]');
  if (list) list.scrollTop = top;
  if (current) {
    const inner = current.getBoundingClientRect(), outer = list.getBoundingClientRect();
    if (inner.top < outer.top || inner.bottom > outer.bottom) list.scrollTop += inner.top - outer.top - 80;
  }
  const again = focused && element.querySelector(`[data-keep="${CSS.escape(focused)}"]`);
  if (again && document.activeElement === document.body) again.focus({preventScroll: true});
}));
"""


def show(context: Context, search: str) -> str:
    """The page of an address."""
    found = look(context, read_place(search or ""))
    return evaluation_views.page(found) if isinstance(found, Overview) else evaluation_item_views.page(found)


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Evaluation · Plumb", analytics_enabled=False) as page:
        address = gr.Textbox(visible="hidden", label="address", elem_id="pb-address")
        refresh = gr.Button("refresh", visible="hidden", elem_id="pb-refresh")
        restore = gr.Button("restore", visible="hidden", elem_id="pb-restore")
        found = gr.HTML(apply_default_css=False, elem_id="ev-found", js_on_load=_KEEP_JS)

        def looking(search: str) -> str:
            return drawn(show(context, search))

        gr.on(
            [page.load, refresh.click, restore.click],
            told(looking),
            [address],
            [found],
            js="() => [window.location.search]",
            trigger_mode="always_last",
            show_progress="minimal",
            concurrency_limit=CONCURRENCY,
            api_visibility="private",
        )
    return page
