"""The Agreement page: how far judges and people give the same scores, and where they do not.

The address holds the state: `?first=3&second=people&metric=helpfulness`. A side is a rater's id, or "people".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from workbench import agreement_views
from workbench.agreement import MEASURES, PEOPLE
from workbench.agreement_desk import AgreementDesk, Side, View
from workbench.context import Context
from workbench.events import read_id, told
from workbench.views import drawn


@dataclass(frozen=True)
class Address:
    """The comparison that an address asks for; "" where it leaves a choice to the page."""

    first: str = ""
    second: str = ""
    metric: str = ""


def read_address(search: str) -> Address:
    """Read a query string; what cannot be read is passed over."""
    query = {name: values[-1] for name, values in parse_qs(search.lstrip("?")).items()}
    metric = query.get("metric", "")
    return Address(_side(query.get("first")), _side(query.get("second")), metric if metric in MEASURES else "")


def _side(text: str | None) -> str:
    number = read_id(text)
    return PEOPLE if text == PEOPLE else str(number) if number is not None else ""


def show(desk: AgreementDesk, search: str) -> tuple[View, str]:
    """(what was found, HTML) for an address."""
    asked = read_address(search)
    view = desk.view(asked.first, asked.second, asked.metric)
    return view, agreement_views.page(view)


def choices(sides: tuple[Side, ...]) -> list[tuple[str, str]]:
    """What the dropdowns offer."""
    return [(_offered(side), side.key) for side in sides]


def _offered(side: Side) -> str:
    if side.key == PEOPLE:
        return f"All people ({side.people})"
    return side.title if side.judge else f"{side.name} (person)"


# --- wiring ---


def build(context: Context) -> gr.Blocks:
    desk = AgreementDesk(context)
    with gr.Blocks(title="Agreement · Plumb", analytics_enabled=False) as page:
        address = gr.Textbox(visible="hidden", label="address", elem_id="pb-address")
        refresh = gr.Button("refresh", visible="hidden", elem_id="pb-refresh")
        restore = gr.Button("restore", visible="hidden", elem_id="pb-restore")
        with gr.Row(elem_classes="pb-raters", visible=False) as row:
            first = gr.Dropdown([], label="Rater", elem_id="pb-first", filterable=False)
            second = gr.Dropdown([], label="Against", elem_id="pb-second", filterable=False)
        found = gr.HTML(apply_default_css=False, elem_id="pb-found")

        def on_show(search: str) -> list[Any]:
            view, html = show(desk, search)
            offered = choices(view.sides)
            return [
                gr.Row(visible=len(view.sides) > 1),
                gr.Dropdown(offered, value=view.first.key if view.first else None),
                gr.Dropdown(offered, value=view.second.key if view.second else None),
                drawn(html),
            ]

        gr.on(
            [page.load, restore.click, refresh.click],
            told(on_show),
            [address],
            [row, first, second, found],
            js="() => [window.location.search]",
            trigger_mode="always_last",
            show_progress="minimal",
            queue=False,
            api_visibility="private",
        )
        # input, not change: the handler above sets the dropdowns too, which is nobody's choice.
        for chosen in (first, second):
            chosen.input(None, [first, second], js=_GO)
    return page


_GO = """(first, second) => {
  const query = new URLSearchParams(window.location.search);
  query.set("first", first || "");
  query.set("second", second || "");
  // Gradio tells of one choice twice.
  const search = "?" + query.toString();
  if (search !== window.location.search) window.plumb.go("/agreement" + search);
}"""
