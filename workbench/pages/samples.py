"""The Samples page: the list with search and filters, one sample pinned, its candidates scored by hand.

The address holds the whole state: `?sample=7&q=red&state=unjudged`. The browser changes the address and asks for
the view that belongs to it, so links, reloads and the Back button all lead to the same place.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from sqlite_utils import Database

from jobs import desk
from jobs.judges.identity import rater_of
from jobs.judges.keys import need_key
from storage import samples as store
from storage.adapters import list_adapters
from storage.candidates import candidates_of, count_candidates
from storage.checklists import checklists_of
from storage.errors import NotFound, UserError
from storage.images import get_images
from storage.pairs import count_pairs, pairs_of_sample
from storage.records import Candidate, Checklist, Sample
from storage.samples import SampleFilter
from storage.scores import get_judgements, list_raters
from workbench import judge_marks, views
from workbench.agreement_views import sample_agreement
from workbench.context import Context
from workbench.events import read_id, told

PAGE = 50
DEMO_DEFAULT, DEMO_LEAST, DEMO_MOST = 400, 20, 4000


@dataclass(frozen=True)
class View:
    """What the page shows for one address."""

    empty: bool
    where: SampleFilter
    sources: list[str]
    splits: list[str]
    count: str
    steps: str
    rows: str
    detail: str


def read_address(search: str) -> tuple[SampleFilter, int | None]:
    """The filter and the sample of an address's query string; what cannot be read is passed over."""
    query = {name: values[-1] for name, values in parse_qs(search.lstrip("?")).items()}
    wanted = query.get("sample", "")
    return SampleFilter.from_query(query), read_id(wanted)


def show(context: Context, user: str, search: str) -> View:
    """The view that belongs to an address; a sample that is not there is said, not raised."""
    where, wanted = read_address(search)
    with context.database() as db:
        facets = store.facets(db)
        total = store.count_samples(db, where)
        everything = total if not where.as_query() else store.count_samples(db, SampleFilter())
        pinned, problem = _pinned(db, where, wanted)
        rows = _list(db, where, user, total, pinned.id if pinned else None)
        if pinned:
            detail = views.sample_detail(_detail(db, context, where, user, total, pinned))
        else:
            detail = views.empty("Nothing to show", problem) if everything else ""
        pairs = sum(count_pairs(db).values())
        judged = any(rater.kind == "judge" for rater in list_raters(db))
        steps = views.next_step(count_candidates(db), judged, pairs) if everything else ""
        problems = views.problem_links(store.count_problems(db, where), where)
    told_counts = views.data_counts({"samples": everything, "pairs": pairs})
    share = f" of {everything:,}" if where.as_query() else ""
    count = f'<p class="pb-total" {told_counts} role="status"><b>{total:,}</b>{share} samples</p>{problems}'
    return View(everything == 0, where, facets["source"], facets["split"], count, steps, rows, detail)


def load_demo(context: Context, number: float | None) -> Iterator[str]:
    """Import easy-VQA's samples; yields HTML of the progress, at last of the outcome.

    The import runs in a thread of its own: a closed tab does not cut it off.

    Raises:
        UserError: the number is out of range; the wheel of easy-VQA is missing.
    """
    if number is None or number != int(number) or not DEMO_LEAST <= number <= DEMO_MOST:
        raise UserError(f"Number of samples = {number}: give a whole number from {DEMO_LEAST} to {DEMO_MOST}.")
    news: queue.SimpleQueue[tuple[int, int] | Exception | str] = queue.SimpleQueue()
    threading.Thread(target=_import_demo, args=(context, int(number), news), daemon=True).start()
    yield views.progress(0, int(number), "Loading")
    while True:
        item = news.get()
        if isinstance(item, Exception):
            raise item
        if isinstance(item, str):
            yield views.notice(item, "good")
            return
        yield views.progress(*item, "Loading")


def _import_demo(
    context: Context, number: int, news: queue.SimpleQueue[tuple[int, int] | Exception | str]
) -> None:
    from storage.easy_vqa import import_easy_vqa

    def tell(done: int, total: int) -> None:
        news.put((done, total))

    try:
        with context.database() as db:
            added = import_easy_vqa(db, context.folder, number, progress=tell)
        news.put(f"{added:,} samples of easy-VQA loaded.")
    except Exception as error:  # carried over to the thread that asked, where it is raised
        news.put(error)


def _pinned(db: Database, where: SampleFilter, wanted: int | None) -> tuple[Sample | None, str]:
    if wanted is not None:
        try:
            return store.get_sample(db, wanted), ""
        except NotFound as error:
            return None, str(error)
    first = store.find_samples(db, where, limit=1)
    return (first[0], "") if first else (None, "No sample fits these filters. Change or clear them.")


def _list(db: Database, where: SampleFilter, user: str, total: int, current: int | None) -> str:
    after = store.page_start(db, where, current, PAGE) if current is not None else 0
    found = store.find_samples(db, where, after, PAGE)
    ids = [sample.id for sample in found]
    candidates, judgements = candidates_of(db, ids), get_judgements(db, ids)
    marks = {
        sample_id: views.Mark(
            candidates=len(candidates[sample_id]),
            judged=any(given.rater.kind == "judge" and given.state == "ok" for given in judgements[sample_id]),
            scored=any(given.rater.kind == "person" for given in judgements[sample_id]),
            problems=judge_marks.problems(judgements[sample_id]),
        )
        for sample_id in ids
    }
    return views.sample_list(
        found,
        marks,
        where,
        total=total,
        start=store.position_of(db, where, ids[0]) if ids else 0,
        current=current,
        before=store.neighbour(db, where, ids[0], forward=False) if ids else None,
        after=store.neighbour(db, where, ids[-1], forward=True) if ids else None,
    )


def _detail(
    db: Database, context: Context, where: SampleFilter, user: str, total: int, sample: Sample
) -> views.Detail:
    candidates = candidates_of(db, [sample.id])[sample.id]
    judgements = get_judgements(db, [sample.id])[sample.id]
    checklists = checklists_of(db, sample.id)
    return views.Detail(
        sample=sample,
        images=get_images(db, sample.images),
        candidates=candidates,
        judgements=judgements,
        pairs=pairs_of_sample(db, sample.id),
        adapters={adapter.id: adapter.name for adapter in list_adapters(db)},
        user=user,
        where=where,
        position=store.position_of(db, where, sample.id),
        inside=store.is_selected(db, where, sample.id),
        total=total,
        before=store.neighbour(db, where, sample.id, forward=False),
        after=store.neighbour(db, where, sample.id, forward=True),
        checklists=checklists,
        desk=desk_of(context, candidates, checklists),
        agreement=sample_agreement(judgements),
    )


def desk_of(
    context: Context, candidates: Sequence[Candidate], checklists: Sequence[Checklist]
) -> judge_marks.Desk:
    """The judge that the key J asks, and why it cannot be asked about this sample, if it cannot."""
    try:
        config = desk.read_desk(context.folder)
    except UserError as error:
        return judge_marks.Desk(obstacle=str(error))
    rater = rater_of(config)
    if not candidates:
        there = ("/jobs?kind=generate", "Generate candidates")
        return judge_marks.Desk(rater, "There are no answers to judge yet.", there)
    try:
        need_key(config.judge, context.settings)
    except UserError as error:
        return judge_marks.Desk(rater, str(error))
    newest = next((one for one in reversed(checklists) if one.state == "ok"), None)
    if config.checklists and (newest is None or not newest.items):
        there = ("/judges", "Choose a judge without")
        return judge_marks.Desk(rater, f"{rater[0]} judges with checklists, and this sample has none.", there)
    return judge_marks.Desk(rater)


# --- wiring ---


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Samples · Plumb", analytics_enabled=False) as page:
        address = gr.Textbox(visible="hidden", label="address", elem_id="pb-address")
        refresh = gr.Button("refresh", visible="hidden", elem_id="pb-refresh")
        restore = gr.Button("restore", visible="hidden", elem_id="pb-restore")
        with gr.Column(visible=False, elem_classes="pb-welcome") as welcome:
            gr.HTML(WELCOME, apply_default_css=False)
            with gr.Row(elem_classes="pb-welcome-row"):
                number = gr.Number(
                    DEMO_DEFAULT,
                    label="Number of samples",
                    info=f"{DEMO_LEAST} to {DEMO_MOST:,}; fewer are quicker to work through",
                    precision=0,
                    elem_id="pb-demo-number",
                )
                demo = gr.Button("Load the demo", variant="primary", elem_id="pb-load-demo")
            outcome = gr.HTML(elem_id="pb-demo-outcome", apply_default_css=False)
        with gr.Column(visible=False, elem_classes="pb-work") as work:
            steps = gr.HTML(apply_default_css=False)
            with gr.Row(elem_classes="pb-split"):
                with gr.Column(scale=0, min_width=264, elem_classes="pb-side"):
                    q = gr.Textbox(
                        label="Search",
                        show_label=False,
                        container=False,
                        placeholder="Search questions and references",
                        elem_id="pb-search",
                    )
                    with gr.Row(elem_classes="pb-filters"):
                        state = gr.Dropdown(
                            _choices(store.STATES, "any state"), value="", label="State", show_label=False
                        )
                        source = gr.Dropdown(
                            _choices([], "any source"), value="", label="Source", show_label=False
                        )
                        split = gr.Dropdown(_choices([], "any split"), value="", label="Split", show_label=False)
                    count = gr.HTML(apply_default_css=False)
                    rows = gr.HTML(apply_default_css=False, elem_id="pb-list")
                    with gr.Accordion("Load more of the demo", open=False):
                        # The same questions come first: a larger number adds those that are missing.
                        more_number = gr.Number(
                            DEMO_DEFAULT,
                            label="Samples of the demo, in all",
                            info=f"{DEMO_LEAST} to {DEMO_MOST:,}; those that are there are not added again",
                            precision=0,
                        )
                        more = gr.Button("Load", size="sm")
                        more_outcome = gr.HTML(apply_default_css=False)
                with gr.Column(scale=1, min_width=480, elem_classes="pb-main"):
                    detail = gr.HTML(apply_default_css=False, elem_id="pb-detail")

        filters = [q, state, source, split]
        pieces = [welcome, work, steps, count, rows, detail]

        def on_refresh(search: str, request: gr.Request) -> list[Any]:
            return _pieces(show(context, context.user(request), search))

        def on_restore(search: str, request: gr.Request) -> list[Any]:
            view = show(context, context.user(request), search)
            return [
                *_pieces(view),
                view.where.q,
                view.where.state,
                gr.Dropdown(_choices(view.sources, "any source"), value=view.where.source),
                gr.Dropdown(_choices(view.splits, "any split"), value=view.where.split),
            ]

        read = "() => [window.location.search]"
        quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        refresh.click(told(on_refresh), [address], pieces, js=read, trigger_mode="always_last", **quiet).then(
            None, js="() => window.plumb.shown()"
        )
        gr.on(
            [page.load, restore.click],
            told(on_restore),
            [address],
            [*pieces, *filters],
            js=read,
            trigger_mode="always_last",
            **quiet,
        ).then(None, js="() => window.plumb.shown()")
        # change, not input: Gradio's input event passes over what is pasted.
        q.change(None, filters, js="(...values) => window.plumb.filter(values, 250)")
        for chosen in (state, source, split):
            chosen.change(None, filters, js="(...values) => window.plumb.filter(values, 0)")
        for button, wanted, told_in in ((demo, number, outcome), (more, more_number, more_outcome)):
            button.click(told(partial(load_demo, context)), [wanted], [told_in], api_visibility="private").success(
                None, js="() => window.plumb.restore()"
            )
    return page


def _pieces(view: View) -> list[Any]:
    return [
        gr.Column(visible=view.empty),
        gr.Column(visible=not view.empty),
        view.steps,
        view.count,
        view.rows,
        views.drawn(view.detail),
    ]


def _choices(values: Any, all_of_them: str) -> list[tuple[str, str]]:
    return [(all_of_them, ""), *((value, value) for value in values if value)]


WELCOME = """<div class="pb-hero"><h1>From questions about images to an aligned model</h1>
<p>Plumb walks one way: browse samples, let a model answer each several times, score the answers, make pairs of a
better and a worse one, train on them, and chat with the model before and after.</p>
<ol class="pb-way"><li><b>Samples</b> an image and a question</li>
<li><b>Candidates</b> several answers a sample</li>
<li><b>Scores</b> five metrics, 0 to 4</li><li><b>Pairs</b> chosen over rejected</li>
<li><b>Training</b> DPO with LoRA</li><li><b>Chat</b> base and aligned, side by side</li></ol>
<p>There are no samples yet. The demo brings easy-VQA: small pictures of coloured shapes, with questions and the
right answers. It needs no network, no GPU and no key.</p></div>"""
