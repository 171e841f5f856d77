"""HTML of the Samples page's list, and of what is set of its filters. Every text from data goes through `escape`.

Pure functions: records in, HTML out. Links carry `data-go`; the scripts do what they say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from storage.finding import Count, SampleFilter
from storage.records import Sample
from workbench.addresses import Address
from workbench.views import data_counts, go, thumbnail


@dataclass(frozen=True)
class Mark:
    """What the list says of a sample at a glance."""

    candidates: int = 0
    judged: bool = False
    scored: bool = False
    flagged: bool = False
    skipped: bool = False
    discarded: bool = False
    problems: Sequence[str] = ()  # states of judges' latest calls that are not ok


@dataclass(frozen=True)
class ListPage:
    """A page of the list.

    Attributes:
        start: how many of the filter's samples stand before it.
        before, after: the samples to pin when paging backwards and forwards; None at the ends.
    """

    samples: Sequence[Sample]
    marks: Mapping[int, Mark]
    start: Count
    total: Count
    before: int | None
    after: int | None


def sample_list(page: ListPage, address: Address, current: int | None) -> str:
    """A page of the list; it carries what `samples_desk.Drawn` needs to know that it need not be drawn again."""
    where = address.where
    if not page.samples:
        return nothing(where)
    items = "".join(
        sample_item(one, page.marks.get(one.id, Mark()), address, current == one.id) for one in page.samples
    )
    first = page.start.number + 1
    shown = f"{first:,}–{first + len(page.samples) - 1:,}"
    if page.start.kind != "exact":
        shown = f"{page.start.told} and on"
    pages = (
        _turn(address, page.before, "‹", "Previous page")
        + f'<span class="pb-range">{shown} of {page.total.told}</span>'
        + _turn(address, page.after, "›", "Next page")
    )
    drawn = {
        "filter": where.as_query(),
        "start": page.start.number,
        "start_kind": page.start.kind,
        "total": page.total.number,
        "total_kind": page.total.kind,
        "ids": [one.id for one in page.samples],
    }
    return (
        f'<nav class="pb-pages" aria-label="Pages of the list">{pages}</nav>'
        f'<ol class="pb-list" aria-label="Samples" data-drawn="{escape(json.dumps(drawn), quote=True)}">'
        f"{items}</ol>"
    )


def nothing(where: SampleFilter) -> str:
    """What stands in the list's place where the filter selects nothing."""
    if not where.as_query():
        return '<div class="pb-list-note" role="status">There are no samples yet.</div>'
    return (
        '<div class="pb-list-note" role="status">No sample fits these filters.</div>'
        f'<p class="pf-nothing">{go("?", "Clear the filters", "pb-button small")}</p>'
    )


def sample_item(sample: Sample, mark: Mark, address: Address, current: bool = False) -> str:
    """A sample's line in the list."""
    here = ' aria-current="true"' if current else ""
    image = thumbnail(sample.images[0]) if sample.images else '<span class="pb-thumb none">text</span>'
    more = f'<span class="pb-more">+{len(sample.images) - 1}</span>' if len(sample.images) > 1 else ""
    answers = f"{mark.candidates} answers" if mark.candidates != 1 else "1 answer"
    said = [answers if mark.candidates else "no answers"]
    said += [name for name in ("judged", "scored") if getattr(mark, name)]
    said += [f'<span class="pb-warn">{escape(problem)}</span>' for problem in mark.problems]
    said += [f"<b>{name}</b>" for name in ("flagged", "skipped", "discarded") if getattr(mark, name)]
    href = replace(address, sample=sample.id, queue=None, trail=()).href()
    return (
        f'<li data-item="{sample.id}"><a href="{escape(href, quote=True)}" data-go{here}>'
        f'<span class="pb-pic">{image}{more}</span>'
        f'<span class="pb-item"><span class="pb-q" dir="auto">{escape(sample.question)}</span>'
        f'<span class="pb-sub">#{sample.id} · {" · ".join(said)}</span></span></a></li>'
    )


def _turn(address: Address, sample: int | None, text: str, label: str) -> str:
    if sample is None:
        return f'<span class="pb-button small" aria-disabled="true">{text}</span>'
    return go(replace(address, sample=sample, queue=None, trail=()).href(), text, "pb-button small", label)


# --- what is set, and how much it selects ---


def told_count(total: Count, everything: Count, pairs: int, where: SampleFilter) -> str:
    """“12 of 1,000 samples”, and the header's numbers for the scripts."""
    share = f" of {everything.told}" if where.selects else ""
    numbers = data_counts({"samples": everything.number, "pairs": pairs})
    return f'<p class="pb-total" {numbers} role="status"><b>{total.told}</b>{share} samples</p>'


def problem_links(numbers: Mapping[str, int], address: Address) -> str:
    """How many samples have judges' calls without scores, each number a link to them."""
    links = [
        f'<b class="pb-warn">{number:,} {escape(state)}</b>'
        if state == address.where.state
        else go(
            address.filtered(replace(address.where, state=state)).href(), f"{number:,} {escape(state)}", "pb-warn"
        )
        for state, number in numbers.items()
    ]
    return f'<p class="pb-sub pb-problems">Judges: {", ".join(links)}</p>' if links else ""


def chips(address: Address) -> str:
    """What is set of the filters, each with a × that takes it away."""
    where = address.where
    found = []
    for names, text in _told(where):
        left = address.filtered(replace(where, **dict.fromkeys(names, "")))
        found.append(
            f'<span class="pf-chip"><span dir="auto">{escape(text)}</span>'
            f"{go(left.href(), '×', 'pf-off', f'Remove the filter: {text}')}</span>"
        )
    if len(found) > 1:
        rest = replace(SampleFilter(), order=where.order)
        found.append(go(address.filtered(rest).href(), "Clear all", "pf-clear"))
    return (
        f'<div class="pf-chips" role="group" aria-label="Filters that are set">{"".join(found)}</div>'
        if found
        else ""
    )


def _told(where: SampleFilter) -> list[tuple[tuple[str, ...], str]]:
    """The fields of each chip, and what it says."""
    told: list[tuple[tuple[str, ...], str]] = []
    if where.q:
        told.append((("q",), f"“{where.q}”"))
    told += [((name,), getattr(where, name)) for name in ("state", "source", "split") if getattr(where, name)]
    if where.rater:
        told.append((("rater",), f"scored by {where.rater}"))
    if where.metric:
        low, high = where.low or "0", where.high or "4"
        told.append((("metric", "low", "high"), f"{where.metric} {low}" + (f"–{high}" if high != low else "")))
    elif where.low or where.high:
        told.append((("low", "high"), "a range without a metric (choose one)"))
    if where.gap:
        told.append((("gap",), f"judges and people differ by {where.gap} or more"))
    for name, one in (("images", "image"), ("turns", "turn")):
        if value := getattr(where, name):
            told.append(((name,), f"{value} {one}{'' if value == '1' else 's'}"))
    return told


def fresh_items(items: str) -> str:
    """Lines for the scripts to put in the place of those that are drawn."""
    return f"<ol hidden data-fresh>{items}</ol>" if items else ""


# --- acts on all that is selected ---

#: act → what its button says; "keep" is offered among the discarded, "discard" elsewhere
ACTS: dict[str, str] = {
    "judge": "Judge",
    "pair": "Pair by rule",
    "flag": "Flag",
    "unflag": "Take my flags down",
    "discard": "Discard",
    "keep": "Take back",
}


def bulk_bar(total: Count, where: SampleFilter) -> str:
    """What can be done with everything that the filter selects; each is asked about before it is done."""
    if not total.number:
        return ""
    hidden = ("discard", "judge", "pair") if where.state == "discarded" else ("keep",)
    buttons = "".join(
        f'<button type="button" class="pb-button small" data-bulk="{act}">{title}</button>'
        for act, title in ACTS.items()
        if act not in hidden
    )
    what = f"these {total.told}" if where.selects else f"all {total.told}"
    return (
        f'<details class="pf-bulk"><summary>With {what} …</summary>'
        f'<div class="pf-bulk-acts">{buttons}</div><div class="pf-ask" role="alertdialog" '
        'aria-label="Confirm" hidden></div></details>'
    )
