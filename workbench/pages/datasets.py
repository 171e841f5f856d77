"""The Data sets page: what is frozen, one in detail with its exports, two against each other.

`/datasets?dataset=3`, `/datasets?dataset=3&with=5`. Plain links and a form: the address is all of its state.
"""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

from storage.dataset_compare import compare, lengths
from storage.datasets import dataset_rows, list_datasets
from storage.jobs import list_jobs
from storage.records import DatasetRow
from workbench import dataset_views
from workbench.context import Context
from workbench.events import CONCURRENCY, told
from workbench.views import notice

LOOKED_AT = 6  # pairs that a data set shows


def show(context: Context, query: Mapping[str, str]) -> str:
    """The page of an address; what it names and is not there is said, and the list stands all the same."""
    with context.database() as db:
        found = list_datasets(db)
        by_id = {str(one.id): one for one in found}
        chosen, other = (query.get(name, "") for name in ("dataset", "with"))
        lost = next((name for name in (chosen, other) if name and name not in by_id), None)
        one = by_id.get(chosen) or (found[0] if found else None)
        side = f"<h2>Data sets</h2>{dataset_views.listed(found, one.id if one else None)}"
        if lost is not None:
            side = notice(f"There is no data set {lost[:40]!r}; choose one of the list.", "bad") + side
        if one is None:
            return f'<div class="ps-page"><section class="pb-panel">{side}</section></div>'
        if other in by_id:
            main = dataset_views.comparison(one, by_id[other], compare(db, one, by_id[other]))
        else:
            rows = dataset_rows(db, one.id)
            main = dataset_views.details(
                one,
                lengths(row.row["chosen"] for row in rows),
                lengths(row.row["rejected"] for row in rows),
                _images(rows),
                [job for job in list_jobs(db) if job.dataset_id == one.id],
                [each for each in found if each.id != one.id],
            )
            main += dataset_views.rows(rows[:LOOKED_AT], "The first pairs")
    return (
        f'<div class="ps-page"><section class="pb-panel ps-list">{side}</section>'
        f'<section class="pb-panel ps-main">{main}</section></div>'
    )


def _images(rows: list[DatasetRow]) -> dict[str, int]:
    """How many images each part shows, and how many both do."""
    parts = {
        split: {sha256 for row in rows if row.split == split for sha256 in row.row["images"]}
        for split in ("train", "heldout")
    }
    both = parts["train"] & parts["heldout"]
    return {**{split: len(images) for split, images in parts.items()}, "both": len(both)}


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Data sets · Plumb", analytics_enabled=False) as page:
        found = gr.HTML("", apply_default_css=False, elem_id="datasets")

        def opening(request: gr.Request) -> str:
            return show(context, dict(request.query_params))

        page.load(
            told(opening),
            None,
            [found],
            show_progress="hidden",
            concurrency_limit=CONCURRENCY,
            api_visibility="private",
        )
    return page
