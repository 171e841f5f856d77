"""The People page: one's own password; for admins, who may come in and what they may do."""

from __future__ import annotations

import gradio as gr

from workbench.context import Context
from workbench.events import told
from workbench.people_api import shown


def build(context: Context) -> gr.Blocks:
    """A piece of HTML; static/people.js sends its forms to workbench/people_api.py and puts the answer here."""
    with gr.Blocks() as page:
        people = gr.HTML("", apply_default_css=False, elem_id="pb-people")

        def opening(request: gr.Request) -> str:
            return shown(context, context.person(request))

        page.load(told(opening), None, [people], show_progress="hidden", queue=False, api_visibility="private")
    return page
