"""The Pairs page: pairs by the paper's rule, their review side by side, frozen data sets.

The list and its address are `workbench.pair_desk`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr

from jobs import freezing
from jobs.pairing import QUALITY, PairRule, Preview, ScoredSample, preview
from storage import pairs as store
from storage.datasets import list_datasets
from storage.errors import PlumbError, UserError
from storage.records import METRICS, Dataset, PairStatus
from storage.scored import walk_scored
from workbench import pair_views
from workbench.context import Context
from workbench.events import told
from workbench.pair_desk import show_finder, show_list, warning
from workbench.rule_desk import KEPT, RATERS, SEVERAL, judge_choices, make_rule, read_judge
from workbench.views import drawn, notice


def apply_rule(context: Context, rule: PairRule) -> Preview:
    """What the rule would make of all samples as they are scored now."""
    with context.database() as db:
        return preview((ScoredSample(*scored) for scored in walk_scored(db)), rule)


def add_pairs(context: Context, user: str, rule: PairRule) -> str:
    """Store the rule's pairs; returns what came of it."""
    found = apply_rule(context, rule)
    if not found.pairs:
        raise UserError(
            f"margin = {rule.margin}: the rule makes no pairs. Lower the margin, or score more answers."
        )
    with context.database() as db:
        added = store.add_rule_pairs(db, user, rule.stored(), found.pairs)
    if not added:
        return f"Nothing new: all {len(found.pairs):,} pairs of this rule are there already."
    there = len(found.pairs) - added
    known = f" {there:,} were there already and stay as they are." if there else ""
    return f"{added:,} pairs added as proposed.{known}"


def accept_all(context: Context, user: str) -> str:
    """Accept every proposed pair, as one undoable action."""
    with context.database() as db:
        accepted = store.accept_proposed(db, user)
    if not accepted:
        raise UserError("There is no proposed pair to accept. Add pairs by the rule first.")
    return f"{accepted:,} pairs accepted. “Undo” takes it back."


def show_preview(context: Context, rule: PairRule) -> tuple[str, int]:
    """(HTML, number of pairs that would be added) for a rule."""
    found = apply_rule(context, rule)
    with context.database() as db:
        new = len(store.new_among(db, found.pairs))
    return pair_views.preview(found, rule.margin, rule.highest), new


def freeze(
    context: Context,
    user: str,
    name: str,
    statuses: Sequence[PairStatus],
    heldout: float | None,
    seed: float | None,
    raters: str = freezing.PEOPLE_FIRST,
    judge: str = "",
) -> Dataset:
    """Freeze pairs, and the samples behind them, under a name.

    Raises:
        UserError, Conflict: see `jobs.freezing.freeze`; also for empty fields.
    """
    if not statuses:
        raise UserError("Pairs that are = none: tick at least one status.")
    if heldout is None:
        raise UserError("Held out = empty: give a percentage from 0 to 90.")
    if seed is None or seed != int(seed) or seed < 0:
        raise UserError(f"Seed = {seed}: give a whole number from 0.")
    with context.database() as db:
        return freezing.freeze(db, user, name or "", statuses, heldout, int(seed), raters, read_judge(judge))


def show_contents(context: Context, statuses: Sequence[PairStatus], raters: str, judge: str) -> str:
    """What would be frozen now, or what to do first."""
    with context.database() as db:
        found = freezing.contents(db, statuses, raters, read_judge(judge))
        return pair_views.contents(found, statuses, *warning(db, statuses))


def say_frozen(context: Context, dataset: Dataset) -> str:
    """What came of freezing; a warning where pairs in it contradict each other."""
    with context.database() as db:
        contradicting, _ = warning(db, dataset.rule["statuses"])
    told = f"“{dataset.name}” is frozen: {freezing.contents_of(dataset)}."
    if not contradicting:
        return told
    return f"{told} {contradicting:,} of its pairs contradict another: reject one of two, and freeze anew."


def show_datasets(context: Context) -> str:
    with context.database() as db:
        return pair_views.datasets(list_datasets(db))


def said(act: Callable[[], str]) -> str:
    """What an act says came of it, or why it was refused, as a message in its place."""
    try:
        return notice(act(), "good")
    except PlumbError as error:
        return notice(str(error), "bad")


# --- wiring ---


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Pairs · Plumb", analytics_enabled=False) as page:
        address = gr.Textbox(visible="hidden", label="address", elem_id="pb-address")
        refresh = gr.Button("refresh", visible="hidden", elem_id="pb-refresh")
        restore = gr.Button("restore", visible="hidden", elem_id="pb-restore")
        with gr.Row(elem_classes="pb-split"):
            with gr.Column(scale=0, min_width=340, elem_classes="pb-side wide"):
                with gr.Column(elem_classes="pb-panel"):
                    gr.HTML("<h2>Pairs by rule</h2>", apply_default_css=False)
                    metrics = gr.CheckboxGroup(
                        [(name.capitalize(), name) for name in METRICS],
                        value=list(QUALITY),
                        label="Quality is the sum of",
                        elem_id="pb-metrics",
                    )
                    with gr.Row(elem_classes="pb-tight"):
                        # Without minimum and maximum: Gradio's message for them names no remedy, ours does.
                        margin = gr.Number(2, label="Margin", precision=0, elem_id="pb-margin")
                        seed = gr.Number(0, label="Seed", precision=0)
                    raters = gr.Dropdown(list(RATERS), value=RATERS[0], label="Whose scores")
                    judge = gr.Dropdown([("whichever judged last", "")], value="", label="Which judge")
                    with gr.Accordion("More: weights, several raters, lengths", open=False):
                        with gr.Row(elem_classes="pb-tight pb-weights"):
                            weights = [
                                gr.Number(1, label=f"{name.capitalize()} ×", precision=0) for name in METRICS
                            ]
                        several = gr.Dropdown(
                            list(SEVERAL), value="latest", label="Where several have scored a sample"
                        )
                        keep = gr.Dropdown(list(KEPT), value="one", label="Pairs of a sample")
                        cap = gr.Number(
                            0,
                            label="Lengths may differ by",
                            info="characters; 0: by any number. Judges like long answers",
                            precision=0,
                            elem_id="pb-cap",
                        )
                    figures = gr.HTML(apply_default_css=False, elem_id="pb-preview")
                    add = gr.Button("Add pairs", variant="primary", elem_id="pb-add")
                with gr.Column(elem_classes="pb-panel"):
                    gr.HTML("<h2>Freeze a data set</h2>", apply_default_css=False)
                    name = gr.Textbox(label="Name", placeholder="shapes-1", max_lines=1, elem_id="pb-set-name")
                    statuses = gr.CheckboxGroup(
                        [(status.capitalize(), status) for status in store.STATUSES],
                        value=["accepted"],
                        label="Pairs that are",
                    )
                    with gr.Row(elem_classes="pb-tight"):
                        heldout = gr.Number(10, label="Held out, %")
                        split_seed = gr.Number(0, label="Seed of the split", precision=0)
                    scorers = gr.Dropdown(
                        list(RATERS),
                        value=RATERS[0],
                        label="Answers scored by",
                        info="SteerLM and rejection sampling learn from these scores",
                    )
                    scoring = gr.Dropdown([("whichever judged last", "")], value="", label="Judge of the answers")
                    inside = gr.HTML(apply_default_css=False, elem_id="pb-contents")
                    freezing = gr.Button("Freeze", variant="primary", elem_id="pb-freeze")
                    frozen = gr.HTML(apply_default_css=False, elem_id="pb-frozen")
                    sets = gr.HTML(apply_default_css=False, elem_id="pb-sets")
            with gr.Column(scale=1, min_width=480, elem_classes="pb-main"):
                with gr.Row(elem_classes="pb-bar"):
                    tabs = gr.HTML(apply_default_css=False, elem_id="pb-tabs")
                    gr.HTML(
                        '<button type="button" class="pb-button small" data-undo>Undo</button>',
                        apply_default_css=False,
                        elem_classes="pb-fit",
                    )
                    accepting = gr.Button(
                        "Accept all proposed", size="sm", elem_id="pb-accept-all", elem_classes="pb-fit pb-plain"
                    )
                gr.HTML(
                    '<p class="pb-sub">Keys: <kbd>↑</kbd> <kbd>↓</kbd> move, <kbd>A</kbd> accept, '
                    "<kbd>R</kbd> reject, <kbd>F</kbd> flip, <kbd>U</kbd> undo</p>",
                    apply_default_css=False,
                )
                finder = gr.HTML(apply_default_css=False, elem_id="pq-finder")
                gr.HTML('<div id="pf-told"></div>', apply_default_css=False, elem_classes="pq-told")
                outcome = gr.HTML(apply_default_css=False, elem_id="pb-outcome")
                rows = gr.HTML(apply_default_css=False, elem_id="pb-pairs")

        rule = [metrics, margin, seed, raters, judge, several, keep, cap, *weights]
        holding = [statuses, scorers, scoring]

        def on_list(search: str, request: gr.Request) -> tuple[str, str]:
            filters, cards = show_list(context, search, context.user(request))
            return drawn(filters), drawn(cards)

        def on_preview(*values: Any) -> list[Any]:
            try:
                html, number = show_preview(context, make_rule(*values))
            except UserError as error:  # somebody is still typing: no pop-up
                return [notice(str(error), "bad"), gr.Button("Add pairs", interactive=False)]
            label = f"Add {number:,} new pair{'s' if number != 1 else ''}" if number else "No new pairs to add"
            return [html, gr.Button(label, interactive=number > 0)]

        def on_add(request: gr.Request, *values: Any) -> str:
            user = context.user(request)
            return said(lambda: add_pairs(context, user, make_rule(*values)))

        def on_accept(request: gr.Request) -> str:
            user = context.user(request)
            return said(lambda: accept_all(context, user))

        def on_whose(whose: str) -> Any:
            """A judge is chosen where judges' scores count: elsewhere the choice would do nothing."""
            return gr.Dropdown(interactive=True) if whose != "people" else gr.Dropdown(value="", interactive=False)

        def on_judges() -> list[gr.Dropdown]:
            choices = judge_choices(context)
            return [gr.Dropdown(choices, value=""), gr.Dropdown(choices, value="")]

        def on_freeze(
            name: str,
            statuses: Any,
            heldout: float,
            seed: float,
            raters: str,
            judge: str,
            request: gr.Request,
        ) -> str:
            user = context.user(request)
            return said(
                lambda: say_frozen(context, freeze(context, user, name, statuses, heldout, seed, raters, judge))
            )

        read = "() => [window.location.search]"
        quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        gr.on(
            [page.load, restore.click, refresh.click],
            told(on_list),
            [address],
            [tabs, rows],
            js=read,
            trigger_mode="always_last",
            **quiet,
        ).then(None, js="() => window.plumb.shown()")
        page.load(told(partial(show_datasets, context)), None, [sets], **quiet)
        page.load(told(on_judges), None, [judge, scoring], **quiet)
        gr.on([page.load, restore.click], told(partial(show_finder, context)), None, [finder], **quiet).then(
            None, js="() => window.plumb.shown()"
        )
        raters.change(on_whose, [raters], [judge], **quiet)
        scorers.change(on_whose, [scorers], [scoring], **quiet)
        gr.on(
            [page.load, restore.click, *(field.change for field in rule)],
            told(on_preview),
            rule,
            [figures, add],
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
        gr.on(
            # Cards accepted one by one don't redraw the page: who begins to write a name sees the new count.
            [
                page.load,
                restore.click,
                refresh.click,
                name.focus,
                statuses.change,
                scorers.change,
                scoring.change,
            ],
            told(partial(show_contents, context)),
            holding,
            [inside],
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
        again = {"fn": None, "js": "() => window.plumb.refresh()"}
        added = add.click(on_add, rule, [outcome], api_visibility="private")
        added.success(**again)
        added.success(told(on_preview), rule, [figures, add], **quiet)
        accepting.click(on_accept, None, [outcome], api_visibility="private").success(**again)
        freezing.click(
            on_freeze,
            [name, statuses, heldout, split_seed, scorers, scoring],
            [frozen],
            api_visibility="private",
        ).success(told(partial(show_datasets, context)), None, [sets], **quiet)
    return page
