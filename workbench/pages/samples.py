"""The Samples page: the list with search, filters and queues, one sample pinned, its candidates scored by hand.

The address holds the whole state: `?sample=7&q=red&state=unjudged`. The browser changes the address and asks for
the view that belongs to it, so links, reloads and the Back button all lead to the same place.
"""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import gradio as gr

from workbench import demo_loader, guidelines
from workbench.context import Context
from workbench.demo_loader import DEMO_DEFAULT, DEMO_LEAST, DEMO_MOST, load_demo
from workbench.drawn_list import read_drawn
from workbench.events import told
from workbench.samples_desk import View, show, show_finder
from workbench.views import drawn

__all__ = ["build", "load_demo", "show", "show_finder"]

_READ = "() => [window.location.search, window.plumb.drawn ? window.plumb.drawn() : '']"
_READ_ALL = "() => [window.location.search]"
_SHOWN = "() => window.plumb && window.plumb.shown()"  # a script that comes after the view looks by itself


def _html(**more: Any) -> gr.HTML:
    return gr.HTML(apply_default_css=False, **more)


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Samples · Plumb", analytics_enabled=False) as page:
        address = gr.Textbox(visible="hidden", label="address", elem_id="pb-address")
        known = gr.Textbox(visible="hidden", label="drawn", elem_id="pb-drawn")
        refresh = gr.Button("refresh", visible="hidden", elem_id="pb-refresh")
        restore = gr.Button("restore", visible="hidden", elem_id="pb-restore")
        with gr.Column(visible=False, elem_classes="pb-welcome") as welcome:
            gr.HTML(demo_loader.WELCOME, apply_default_css=False)
            with gr.Row(elem_classes="pb-welcome-row"):
                number = gr.Number(
                    DEMO_DEFAULT,
                    label="Number of samples",
                    info=f"{DEMO_LEAST} to {DEMO_MOST:,}; fewer are quicker to work through",
                    precision=0,
                    elem_id="pb-demo-number",
                )
                demo = gr.Button("Load the demo", variant="primary", elem_id="pb-load-demo")
            outcome = _html(elem_id="pb-demo-outcome")
        with gr.Column(visible=False, elem_classes="pb-work") as work:
            steps = _html()
            with gr.Row(elem_classes="pb-split"):
                with gr.Column(scale=0, min_width=264, elem_classes="pb-side pf-side"):
                    finder = _html(elem_id="pf-finder")
                    gr.HTML('<div id="pf-told"></div>', apply_default_css=False, elem_id="pf-told-place")
                    count = _html()
                    rows = _html(elem_id="pb-list")
                    fresh = _html(elem_id="pf-fresh")
                    guide = _html(elem_id="pf-guide")
                    with gr.Accordion("Load more of the demo", open=False):
                        # The same questions come first: a larger number adds those that are missing.
                        more_number = gr.Number(
                            DEMO_DEFAULT,
                            label="Samples of the demo, in all",
                            info=f"{DEMO_LEAST} to {DEMO_MOST:,}; those that are there are not added again",
                            precision=0,
                        )
                        more = gr.Button("Load", size="sm")
                        more_outcome = _html()
                with gr.Column(scale=1, min_width=480, elem_classes="pb-main"):
                    detail = _html(elem_id="pb-detail")

        pieces = [welcome, work, steps, count, rows, fresh, detail]

        def on_refresh(search: str, before: str, request: gr.Request) -> list[Any]:
            return _pieces(show(context, context.user(request), search, read_drawn(before)), search)

        def on_restore(search: str, request: gr.Request) -> list[Any]:
            user = context.user(request)
            return [
                *_pieces(show(context, user, search), search),
                show_finder(context, user),
                f'<details class="pf-fold" data-fold="guidelines"><summary>Guidelines</summary>'
                f"{guidelines.show_guidelines(context)}</details>",
            ]

        quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        refresh.click(
            told(on_refresh), [address, known], pieces, js=_READ, trigger_mode="always_last", **quiet
        ).then(None, js=_SHOWN)
        gr.on(
            [page.load, restore.click],
            told(on_restore),
            [address],
            [*pieces, finder, guide],
            js=_READ_ALL,
            trigger_mode="always_last",
            **quiet,
        ).then(None, js=_SHOWN)
        for button, wanted, told_in in ((demo, number, outcome), (more, more_number, more_outcome)):
            button.click(told(partial(load_demo, context)), [wanted], [told_in], api_visibility="private").success(
                None, js="() => window.plumb.restore()"
            )
    return page


def _pieces(view: View, search: str) -> list[Any]:
    """The values of the page's pieces; one that is as it is drawn already is passed over.

    The scripts are told which address this is the view of: another may have been asked for meanwhile.
    """
    parts: list[Any] = [gr.skip() if part is None else part for part in (view.steps, view.count, view.rows)]
    return [
        gr.Column(visible=view.empty) if view.rows is not None else gr.skip(),
        gr.Column(visible=not view.empty) if view.rows is not None else gr.skip(),
        *parts,
        f'{view.fresh}<i hidden data-asked="{escape(search, quote=True)}"></i>',
        drawn(view.detail),
    ]
