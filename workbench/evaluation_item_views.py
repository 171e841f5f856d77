"""One evaluation's items as HTML: filters and list, and an item with everybody's answers. Pure, all escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jobs.benchmarks.contract import Benchmark
from jobs.evaluation_table import digits_of, number, settings_words, signed, spread
from storage.evaluations import ItemAnswer
from workbench.evaluation_desk import PAGE, Listing, Opened, Said
from workbench.evaluation_items import SHOWS, Case, Item, Show, questions_of
from workbench.evaluation_place import NOBODY, Place
from workbench.evaluation_views import select
from workbench.views import go

_WORDS: dict[Show, str] = {"all": "All", "regressions": "Regressions", "gains": "Gains", "failures": "Failures"}


def page(found: Listing) -> str:
    """The whole of it: head, list, what is opened."""
    opened = (
        _opened(found, found.opened)
        if found.opened
        else f'<div class="pb-empty"><h3>{_nothing(found)}</h3><p>{_remedy(found)}</p></div>'
    )
    return (
        f'<div class="ev-page ev-items">{_head(found)}<div class="ev-split"><div class="ev-side">{_filters(found)}'
        f'{_list(found)}</div><div class="ev-main">{opened}</div></div></div>'
    )


def _nothing(found: Listing) -> str:
    if found.place.item:
        return "There is no such item here."
    return "Nothing to show." if found.total or found.grading else "Nothing is graded yet."


def _remedy(found: Listing) -> str:
    if found.place.item:
        return f"The address names {escape(found.place.item)}; choose one from the list."
    if found.grading is None:
        job = found.evaluation.job_id
        return (
            f'<a href="/jobs?job={job}">Job {job}</a> tells how far it is; where rules can\'t grade, start a '
            '<a href="/jobs?kind=grade">grading</a>.'
        )
    return "No item passes these filters; widen them."


def _head(found: Listing) -> str:
    one, benchmark, place = found.evaluation, found.benchmark, found.place
    digits = digits_of(benchmark)
    measured = "".join(
        f'<div class="ev-measure{" first" if name == benchmark.headline else ""}"><dt>{escape(name)}</dt>'
        f"<dd><b>{number(figure.value, digits)}</b> <small>{spread(figure, digits)}</small></dd></div>"
        for name, figure in found.measured.items()
    )
    job = (
        f'<a href="/jobs?job={one.job_id}">job {one.job_id}</a>' if one.job_id is not None else "an official file"
    )
    purpose = '<span class="pb-chip proposed">selection</span>' if one.purpose == "selection" else ""
    told = [f"evaluation {one.id}", job, escape(settings_words(one)), f"by {escape(one.user)}"]
    told += [f"graded by {escape(found.grading.grader)}"] if found.grading else []
    told += [f"judge ${found.grading.cost:,.2f}"] if found.grading and found.grading.cost else []
    graders = ""
    if len(found.gradings) > 1:
        offered = [(each.grader, each.grader) for each in found.gradings]
        graders = select("grader", "Graded by", offered, found.grading.grader if found.grading else "")
    back = go(place.table().query(), "‹ Table", "pb-button small", "Back to the table")
    return (
        f'<div class="ev-head">{back}<h2>{escape(one.label)} <span class="pb-sub">on</span> '
        f"{escape(benchmark.title)} {purpose}</h2>{graders}"
        f'<span class="pb-spacer"></span><button type="button" class="pb-button small" '
        f'data-hide-evaluation="{one.id}">Hide from the table</button></div>'
        f'<dl class="ev-measures">{measured}</dl><p class="pb-sub ev-told">{" · ".join(told)}</p>'
    )


def _filters(found: Listing) -> str:
    place = found.place
    plain = {"page": 1, "item": ""}
    tabs = "".join(
        f'<a class="pb-tab" href="{escape(place.query(show=show, **plain), quote=True)}" data-go'
        f"{' aria-current=true' if place.show == show else ''}>{_WORDS[show]} "
        f"<small>{found.counts[show]:,}</small></a>"
        for show in SHOWS
        if found.against or show in ("all", "failures")
    )
    others = [(NOBODY, "nobody"), *found.others]
    key = next((key for key, label in found.others if label == found.against), NOBODY)
    against = select("against", "Against", others, key) if found.others else ""
    categories = [("", "all categories"), *((one, one) for one in found.categories)]
    category = select("category", "Category", categories, place.category) if found.categories else ""
    return (
        f'<div class="pb-tabs ev-shows" role="group" aria-label="Which items">{tabs}</div>'
        f'<div class="ev-fields">{against}{category}<label class="ev-select">Search '
        f'<input type="search" data-query="q" value="{escape(place.q, quote=True)}" maxlength="200" '
        'placeholder="question, answer, id"></label></div>'
    )


def _list(found: Listing) -> str:
    place = found.place
    if not found.cases:
        return ""
    first = (place.page - 1) * PAGE + 1
    steps = ""
    if found.pages > 1:
        steps = _step(place, place.page - 1, "‹", place.page > 1) + _step(
            place, place.page + 1, "›", place.page < found.pages
        )
    current = found.opened.case.graded.id if found.opened else ""
    rows = "".join(_row(found, case, case.graded.id == current) for case in found.cases)
    return (
        f'<div class="pb-pages"><span class="pb-range">{first:,}–{first + len(found.cases) - 1:,} of '
        f'{found.total:,}</span><span>{steps}</span></div><ol class="ev-list">{rows}</ol>'
    )


def _step(place: Place, page_number: int, text: str, there: bool) -> str:
    label = "Previous page" if text == "‹" else "Next page"
    if not there:
        return f'<span class="pb-button small" aria-disabled="true" aria-label="{label}">{text}</span>'
    return go(place.query(page=page_number, item=""), text, "pb-button small", label)


def _row(found: Listing, case: Case, current: bool) -> str:
    graded = case.graded
    here = ' aria-current="true"' if current else ""
    href = escape(found.place.query(item=graded.id, page=1), quote=True)
    title = escape(found.titles.get(graded.id, "")) or escape(graded.id)
    return (
        f'<li><a href="{href}" data-go data-keep="{escape(graded.id, quote=True)}"{here}>'
        f'<span class="ev-value">{_value(case)}</span><span class="pb-item">'
        f'<span class="pb-q">{title}</span><span class="pb-sub">{escape(graded.id)}'
        f"{_changed(found.benchmark, case)}</span></span></a></li>"
    )


def _value(case: Case) -> str:
    """A grade in a few signs."""
    if case.graded.sums is None:
        return '<span class="pb-chip failed">failed</span>'
    return f'<span class="pb-chip">{_short(case.value)}</span>'


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def _changed(benchmark: Benchmark, case: Case) -> str:
    if case.change is None or abs(case.change) < 1e-9:
        return ""
    kind = "good" if case.change > 0 else "bad"
    return f' <span class="ev-change {kind}">{signed(case.change, digits_of(benchmark))}</span>'


# an item ---------------------------------------------------------------------------------------------------------


def _opened(found: Listing, opened: Opened) -> str:
    graded, place = opened.case.graded, found.place
    steps = ""
    if opened.number:
        before = _to(place, opened.before, "‹ Previous")
        after = _to(place, opened.after, "Next ›")
        steps = f'{before}<span class="pb-range">{opened.number:,} of {found.total:,}</span>{after}'
    chips = "".join(f'<span class="pb-chip">{escape(one)}</span> ' for one in graded.categories)
    asked = "".join(_item(item) for item in opened.items) or (
        '<p class="pb-hint">These grades came from an official file, which holds no questions; evaluate a '
        "model on the benchmark to see them.</p>"
    )
    said = "".join(_said(found, one, opened.items) for one in opened.said)
    return (
        f'<div class="ev-item-head"><b>{escape(graded.id)}</b> {chips}<span class="pb-spacer"></span>{steps}</div>'
        f'{asked}<div class="ev-said-all">{said}</div>'
    )


def _to(place: Place, item: str, text: str) -> str:
    if not item:
        return f'<span class="pb-button small" aria-disabled="true">{text}</span>'
    href = escape(place.query(item=item, page=1), quote=True)
    return f'<a class="pb-button small" href="{href}" data-go data-keep="{text}">{text}</a>'


def _item(item: Item) -> str:
    shown = "".join(_message(message, len(item["messages"]) > 1) for message in item["messages"])
    shown += "".join(_message({"role": "user", "content": parts}, True) for parts in item["following"])
    references = "".join(f'<p class="pb-text" dir="auto">{escape(one)}</p>' for one in item["reference"])
    reference = f'<div class="ev-reference"><h3>Reference</h3>{references}</div>' if references else ""
    return f'<article class="ev-asked">{shown}{reference}</article>'


def _message(message: Item, told: bool) -> str:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    pictures = "".join(
        f'<a href="/images/{escape(part["image"], quote=True)}" target="_blank"><img src="/images/'
        f'{escape(part["image"], quote=True)}" alt="the item\'s image" loading="lazy"></a>'
        for part in parts
        if part["type"] == "image"
    )
    text = "".join(
        f'<p class="pb-text" dir="auto">{escape(part["text"])}</p>' for part in parts if part["type"] == "text"
    )
    role = f'<span class="pb-sub">{escape(message["role"])}</span>' if told else ""
    return f'<div class="ev-message"><div class="ev-pictures">{pictures}</div><div>{role}{text}</div></div>'


def _said(found: Listing, one: Said, items: Sequence[Item]) -> str:
    own = one.evaluation.id == found.evaluation.id
    head = f'<b>{escape(one.label)}</b> <span class="pb-sub">{escape(one.grader)}</span>'
    grade = _value(one.case) if one.case else '<span class="pb-sub">no grade</span>'
    why = one.case.graded.why if one.case else ""
    why = f'<p class="pb-sub ev-why">{escape(why)}</p>' if why else ""
    answers = "".join(_answers(item, one.answers.get(item["id"], ()), len(items) > 1) for item in items)
    replies = "".join(
        f'<h4>{escape(name)}</h4><p class="pb-text" dir="auto">{escape(reply)}</p>'
        for name, reply in one.replies.items()
    )
    words = f"<details><summary>The judge's words</summary>{replies}</details>" if replies else ""
    return (
        f'<article class="ev-said{" own" if own else ""}" aria-label="{escape(one.label, quote=True)}">'
        f"<header>{head}<span class=pb-spacer></span>{grade}</header>{why}{answers}{words}</article>"
    )


def _answers(item: Item, answers: Sequence[ItemAnswer], several: bool) -> str:
    name = f"<h4>{escape(item['id'])}</h4>" if several else ""
    turns = len(questions_of(item)) > 1
    told = "".join(_answer(one, turns) for one in answers)
    return name + (told or '<p class="pb-sub">no answer is kept</p>')


def _answer(one: ItemAnswer, told: bool) -> str:
    turn = f'<span class="pb-sub">turn {one.turn + 1}</span>' if told else ""
    text = escape(one.text) or '<i class="pb-sub">(an empty answer)</i>'
    cut = ' · <span class="pb-warn">cut off at the limit</span>' if one.finish == "length" else ""
    tokens = f"{one.tokens:,} tokens · " if one.tokens is not None else ""
    return (
        f'{turn}<p class="pb-text" dir="auto">{text}</p>'
        f'<p class="pb-sub">{tokens}{len(one.text):,} characters{cut}</p>'
    )
