"""HTML of the Samples page and what both lists share. Every text from data goes through `escape`.

Pure functions: records in, HTML out. Buttons and links carry `data-…` attributes; plumb.js does what they say.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from urllib.parse import urlencode

from storage.records import HIGHEST, LOWEST, METRICS, Candidate, Checklist, Image, Judgement, Pair, Sample, Score
from storage.samples import SampleFilter
from storage.scores import latest_ok
from workbench.judge_marks import Desk, ask_button, checklist_section, given_scores, judges_calls, letter


@dataclass(frozen=True)
class Mark:
    """What the list says of a sample at a glance."""

    candidates: int = 0
    judged: bool = False
    scored: bool = False
    problems: Sequence[str] = ()  # states of judges' latest calls that are not ok


_drawings = itertools.count()


def drawn(html: str) -> str:
    """The HTML with a number of its own.

    Gradio renders nothing when a value is what it was; but plumb.js has changed the page since (a score that is
    pressed), so that after an undo the old HTML must be drawn again.
    """
    return f"{html}<!--{next(_drawings)}-->"


def data_counts(numbers: Mapping[str, int]) -> str:
    """An attribute from which plumb.js brings the header's numbers up to date."""
    return f'data-counts="{escape(json.dumps(numbers), quote=True)}"'


def link(where: SampleFilter, sample_id: int | None = None) -> str:
    """The query string of a view of the Samples page."""
    query = where.as_query() | ({"sample": str(sample_id)} if sample_id is not None else {})
    return "?" + urlencode(query)


def go(search: str, text: str, classes: str = "", label: str = "") -> str:
    """A link within the page: a real address, taken over by plumb.js so that the page is not loaded again."""
    named = f' aria-label="{escape(label, quote=True)}"' if label else ""
    return f'<a class="{classes}" href="{escape(search, quote=True)}" data-go{named}>{text}</a>'


def empty(title: str, text: str, href: str = "", action: str = "") -> str:
    """What stands where nothing is yet, and what to do next. `text` may hold HTML of ours."""
    button = f'<p><a class="pb-button primary" href="{escape(href, quote=True)}">{action}</a></p>' if href else ""
    return f'<div class="pb-empty"><h3>{title}</h3><p>{text}</p>{button}</div>'


def thumbnail(sha256: str, text: str = "") -> str:
    return f'<img class="pb-thumb" src="/thumbnails/{escape(sha256)}" alt="{escape(text)}" loading="lazy">'


# --- the list ---


def sample_list(
    samples: Sequence[Sample],
    marks: Mapping[int, Mark],
    where: SampleFilter,
    *,
    total: int,
    start: int,
    current: int | None,
    before: int | None,
    after: int | None,
) -> str:
    """A keyset page of the list.

    Args:
        total: how many samples the filter has.
        start: how many of them stand before this page.
        current: the pinned sample.
        before, after: the samples to pin when paging backwards and forwards; None at the ends.
    """
    if not samples:
        text = "No sample fits these filters." if where.as_query() else "There are no samples yet."
        clear = go("?", "Clear the filters", "pb-button") if where.as_query() else ""
        return f'<div class="pb-list-note" role="status">{text}</div>{clear}'
    items = "".join(_item(sample, marks.get(sample.id, Mark()), where, current) for sample in samples)
    pages = (
        (go(link(where, before), "‹", "pb-button small", "Previous page") if before is not None else _off("‹"))
        + f'<span class="pb-range">{start + 1:,}–{start + len(samples):,} of {total:,}</span>'
        + (go(link(where, after), "›", "pb-button small", "Next page") if after is not None else _off("›"))
    )
    return (
        f'<nav class="pb-pages" aria-label="Pages of the list">{pages}</nav>'
        f'<ol class="pb-list" aria-label="Samples">{items}</ol>'
    )


def problem_links(numbers: Mapping[str, int], where: SampleFilter) -> str:
    """How many samples have judges' calls without scores, each number a link to them."""
    links = [
        f'<b class="pb-warn">{number:,} {escape(state)}</b>'
        if state == where.state
        else go(link(replace(where, state=state)), f"{number:,} {escape(state)}", "pb-warn")
        for state, number in numbers.items()
    ]
    return f'<p class="pb-sub pb-problems">Judges: {", ".join(links)}</p>' if links else ""


def _item(sample: Sample, mark: Mark, where: SampleFilter, current: int | None) -> str:
    here = ' aria-current="true"' if sample.id == current else ""
    image = thumbnail(sample.images[0]) if sample.images else '<span class="pb-thumb none">text</span>'
    more = f'<span class="pb-more">+{len(sample.images) - 1}</span>' if len(sample.images) > 1 else ""
    state = f"{mark.candidates} answers" if mark.candidates != 1 else "1 answer"
    state += " · judged" if mark.judged else ""
    state += " · scored" if mark.scored else ""
    state += "".join(f' · <span class="pb-warn">{escape(problem)}</span>' for problem in mark.problems)
    return (
        f'<li><a href="{escape(link(where, sample.id), quote=True)}" data-go{here}>'
        f'<span class="pb-pic">{image}{more}</span>'
        f'<span class="pb-item"><span class="pb-q">{escape(sample.question)}</span>'
        f'<span class="pb-sub">#{sample.id} · {state if mark.candidates else "no answers"}</span></span></a></li>'
    )


def _off(text: str) -> str:
    return f'<span class="pb-button small" aria-disabled="true">{text}</span>'


# --- the pinned sample ---


@dataclass(frozen=True)
class Detail:
    """All that the pinned sample's view needs."""

    sample: Sample
    images: Mapping[str, Image]
    candidates: Sequence[Candidate]
    judgements: Sequence[Judgement]
    pairs: Sequence[Pair]
    adapters: Mapping[int, str]
    user: str
    where: SampleFilter
    position: int
    inside: bool
    total: int
    before: int | None
    after: int | None
    checklists: Sequence[Checklist]  # all versions, oldest first
    desk: Desk
    agreement: str  # HTML of a line on how far judges and people agree


def sample_detail(detail: Detail) -> str:
    """The sample pinned beside its candidates."""
    sample = detail.sample
    steps = (
        _step(detail.before, detail.where, "‹ Previous", "prev")
        + f'<span class="pb-range">{_place(detail)}</span>'
        + _step(detail.after, detail.where, "Next ›", "next")
    )
    return (
        f'<article class="pb-sample" data-sample="{sample.id}" aria-label="Sample {sample.id}">'
        f'<div class="pb-bar"><nav class="pb-steps" aria-label="Samples">{steps}</nav>'
        f'<span class="pb-spacer"></span>{ask_button(detail.desk, sample.id, key="J")}'
        '<button type="button" class="pb-button small" data-undo>Undo</button></div>'
        f'<div class="pb-columns"><section class="pb-left" aria-label="Image and question">'
        f"{_images(sample, detail.images)}{_question(sample)}"
        f"{checklist_section(sample.id, detail.checklists)}</section>"
        f'<section class="pb-right" aria-label="Candidates">{_candidates(detail)}</section></div></article>'
    )


def _place(detail: Detail) -> str:
    """Where the sample stands in the list; scoring it may have taken it out of the filter."""
    return f"{detail.position + 1:,} of {detail.total:,}" if detail.inside else "not in this filter"


def _step(sample_id: int | None, where: SampleFilter, text: str, name: str) -> str:
    if sample_id is None:
        return f'<span class="pb-button small" aria-disabled="true">{text}</span>'
    href = escape(link(where, sample_id), quote=True)
    return f'<a class="pb-button small" href="{href}" data-go data-step="{name}">{text}</a>'


def _images(sample: Sample, images: Mapping[str, Image]) -> str:
    if not sample.images:
        return '<p class="pb-sub">This sample has no image.</p>'
    shown = []
    for number, sha256 in enumerate(sample.images, 1):
        image = images.get(sha256)
        size = f'width="{image.width}" height="{image.height}"' if image else ""
        # Small pictures are scaled up, each of their pixels a crisp square.
        crisp = " crisp" if image and max(image.width, image.height) <= 160 else ""
        words = f"{image.width} × {image.height} pixels" if image else "missing"
        shown.append(
            f'<figure><a href="/images/{escape(sha256)}" target="_blank" title="Open the image alone">'
            f'<img class="pb-image{crisp}" src="/images/{escape(sha256)}" {size} alt="Image {number} of sample '
            f'{sample.id}"></a><figcaption class="pb-sub">{words}</figcaption></figure>'
        )
    return f'<div class="pb-images n{min(len(shown), 3)}">{"".join(shown)}</div>'


def _question(sample: Sample) -> str:
    turns = ""
    if len(sample.messages) > 1:
        turns = "".join(
            f'<p class="pb-turn"><b>{escape(str(message["role"]))}</b> {escape(text_of(message["content"]))}</p>'
            for message in sample.messages[:-1]
        )
        summary = f"<summary>{len(sample.messages) - 1} turns before</summary>"
        turns = f'<details class="pb-turns">{summary}{turns}</details>'
    reference = (
        f'<dt>Reference</dt><dd class="pb-reference">{escape(sample.reference)}</dd>'
        if sample.reference is not None
        else ""
    )
    split = f" · {escape(sample.split)}" if sample.split else ""
    return (
        f'{turns}<dl class="pb-facts"><dt>Question</dt><dd class="pb-question">{escape(sample.question)}</dd>'
        f"{reference}</dl>"
        f'<p class="pb-sub">{escape(sample.source)} {escape(sample.source_id)}{split}</p>'
    )


def text_of(content: object) -> str:
    """A turn's content in one line; an image part stands as [image]."""
    if isinstance(content, str):
        return content
    assert isinstance(content, list)
    return " ".join(part["text"] if part["type"] == "text" else "[image]" for part in content)


def _candidates(detail: Detail) -> str:
    if not detail.candidates:
        return empty(
            "No answers yet",
            "A model has to answer this question before answers can be scored and compared.",
            "/jobs?kind=generate",
            "Generate candidates",
        )
    note = ""
    if not any(judgement.rater.kind == "judge" for judgement in detail.judgements):
        note = (
            '<p class="pb-hint">No judge has been asked about these answers. Score them below, press '
            '<kbd>J</kbd>, or <a href="/jobs?kind=judge">let a judge score all samples</a>.</p>'
        )
    latest = latest_ok(detail.judgements)
    cards = "".join(_card(candidate, index, latest, detail) for index, candidate in enumerate(detail.candidates))
    calls = judges_calls(detail.judgements, detail.desk, detail.sample.id)
    return note + calls + detail.agreement + cards + _pairs(detail)


def _card(candidate: Candidate, index: int, latest: Sequence[Judgement], detail: Detail) -> str:
    name = letter(index)
    checklists = {checklist.id: checklist for checklist in detail.checklists}
    own, others = Score(candidate.id), []
    for judgement in latest:
        for score in judgement.scores:
            if score.candidate_id != candidate.id:
                continue
            if judgement.rater.kind == "person" and judgement.rater.name == detail.user:
                own = score
            else:
                others.append(given_scores(judgement, score, checklists))
    text = escape(candidate.text) or '<i class="pb-sub">(an empty answer)</i>'
    return (
        f'<article class="pb-card" data-candidate="{candidate.id}" aria-label="Answer {name}">'
        f'<div class="pb-answer"><b class="pb-letter">{name}</b><p class="pb-text">{text}</p>'
        f'<div class="pb-picks" role="group" aria-label="Answer {name} in a pair">'
        f'<button type="button" class="pb-pick good" data-pick="chosen" aria-pressed="false" '
        f'aria-label="Answer {name}: chosen">Chosen</button>'
        f'<button type="button" class="pb-pick bad" data-pick="rejected" aria-pressed="false" '
        f'aria-label="Answer {name}: rejected">Rejected</button></div></div>'
        f'<p class="pb-sub pb-maker">{_maker(candidate, detail.adapters)}</p>'
        f'<div class="pb-grid"><span class="pb-rater">Your scores</span>{_buttons(own, name)}</div>'
        f"{''.join(others)}"
        "</article>"
    )


def _buttons(own: Score, name: str) -> str:
    sets = []
    for metric in METRICS:
        value = own.value(metric)
        buttons = "".join(
            f'<button type="button" data-metric="{metric}" data-value="{number}" '
            f'aria-pressed="{"true" if value == number else "false"}" '
            f'aria-label="Answer {name}, {metric}: {number}">{number}</button>'
            for number in range(LOWEST, HIGHEST + 1)
        )
        sets.append(f'<fieldset class="pb-metric"><legend>{metric.capitalize()}</legend>{buttons}</fieldset>')
    return "".join(sets)


def _maker(candidate: Candidate, adapters: Mapping[int, str]) -> str:
    """Who made an answer."""
    if candidate.author is not None:
        by = f"written by {escape(candidate.author)}"
        return by + (f" from answer #{candidate.parent_id}" if candidate.parent_id else "")
    parts = [escape(candidate.model or "unknown model")]
    if candidate.adapter_id is not None:
        known = adapters.get(candidate.adapter_id, f"adapter {candidate.adapter_id}")
        parts.append(f'<a href="/chat?adapter={candidate.adapter_id}">{escape(known)}</a>')
    else:
        parts.append("base")
    if candidate.job_id is not None:
        parts.append(f'<a href="/jobs?job={candidate.job_id}">job {candidate.job_id}</a>')
    if "temperature" in candidate.settings:
        parts.append(f"T {escape(str(candidate.settings['temperature']))}")
    if candidate.tokens is not None:
        parts.append(f"{candidate.tokens} tokens")
    if candidate.finish == "length":
        parts.append('<span class="pb-warn">cut off at the limit</span>')
    return " · ".join(parts)


def _pairs(detail: Detail) -> str:
    if not detail.pairs:
        return (
            '<p class="pb-hint">No pair yet: press <b>Chosen</b> on one answer and <b>Rejected</b> on another, '
            'or <a href="/pairs">make pairs by rule</a>.</p>'
        )
    names = {candidate.id: letter(index) for index, candidate in enumerate(detail.candidates)}
    shown = ", ".join(
        f"{names.get(pair.chosen_id, '?')} over {names.get(pair.rejected_id, '?')} "
        f'<span class="pb-chip {pair.status}">{pair.status}</span>'
        for pair in detail.pairs
    )
    href = f"/pairs?sample={detail.sample.id}"
    return f'<p class="pb-hint" data-pairs>Pairs: {shown} · <a href="{href}">see on the Pairs page</a></p>'


# --- first steps ---


def progress(done: int, total: int, text: str) -> str:
    """A bar for what takes a while."""
    share = 100 * done / total if total else 0
    return (
        f'<div class="pb-progress" role="status"><progress max="{total}" value="{done}"></progress>'
        f"<span>{escape(text)} {done:,} of {total:,} ({share:.0f} %)</span></div>"
    )


def notice(text: str, kind: str = "info") -> str:
    """A message that stays on the page; kind is info, good or bad."""
    role = "alert" if kind == "bad" else "status"
    return f'<div class="pb-notice {kind}" role="{role}">{escape(text)}</div>' if text else ""


def next_step(candidates: int, judged: bool, pairs: int) -> str:
    """What to do next on the way from samples to pairs; nothing once it is walked."""
    if not candidates:
        text, href, action = "The samples have no answers yet.", "/jobs?kind=generate", "Generate candidates"
    elif not judged:
        text, href, action = "The answers are not scored yet.", "/jobs?kind=judge", "Judge the candidates"
    elif not pairs:
        text, href, action = "The answers are scored.", "/pairs", "Make pairs"
    else:
        return ""
    return (
        f'<div class="pb-next" role="status"><span>{text}</span>'
        f'<a class="pb-button primary small" href="{href}">Next: {action[0].lower()}{action[1:]}</a></div>'
    )
