"""The Chat page: base, adapters and outside models side by side. `/chat?conversation=3`, `/chat?adapter=5`."""

from __future__ import annotations

import gradio as gr

from workbench.chat_parts import Parts
from workbench.chat_wiring import QUIET, wire
from workbench.context import Context
from workbench.vote_panel import standings_panel


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Chat · Plumb", analytics_enabled=False) as page:
        parts = Parts()
        standings_panel(context, QUIET)
        wire(context, page, parts)
    return page
