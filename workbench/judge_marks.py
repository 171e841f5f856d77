"""HTML of what judges said of the pinned sample, and of its checklist. Every text from data goes through `escape`.

Pure functions: records in, HTML out. Buttons carry `data-…` attributes; plumb.js does what they say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from storage.checklists import MOST_CHARACTERS, MOST_ITEMS
from storage.records import HIGHEST, METRICS, Checklist, ChecklistItem, Judgement, Score

QUALITY = ("helpfulness", "correctness", "coherence")
LONGEST_RAW = 50_000  # characters of a reply that the page takes along; the rest stays in the database


@dataclass(frozen=True)
class Desk:
    """The judge that “Score this sample” asks.

    Attributes:
        rater: its name, version and mode; empty where that cannot be read.
        obstacle: why it cannot be asked; "" where it can.
        remedy: the address of the page on which that is mended, and what the link to it says.
    """

    rater: tuple[str, str, str] = ("", "", "")
    obstacle: str = ""
    remedy: tuple[str, str] = ("/judges", "See the Judges page")


def letter(index: int) -> str:
    """A, B, C … for the candidates of a sample, AA after Z."""
    return chr(65 + index) if index < 26 else letter(index // 26 - 1) + letter(index % 26)


def money(dollars: float) -> str:
    """What one call cost, as people read it; "" for nothing."""
    if not dollars:
        return ""
    return f"${dollars:.4f}" if dollars >= 0.0001 else "under $0.0001"


def ask_button(desk: Desk, sample_id: int, text: str = "Score this sample", key: str = "") -> str:
    """Asks the desk's judge; one that cannot be asked stays in reach, since it says why when pressed."""
    title = desk.obstacle or f"Ask {desk.rater[0]}"
    off = (
        f' aria-disabled="true" data-remedy="{escape(desk.remedy[0], quote=True)}" '
        f'data-remedy-text="{escape(desk.remedy[1], quote=True)}"'
        if desk.obstacle
        else ""
    )
    hint = f" <kbd>{key}</kbd>" if key else ""
    return (
        f'<button type="button" class="pb-button small" data-judge="{sample_id}" '
        f'data-name="{escape(desk.rater[0], quote=True)}" title="{escape(title, quote=True)}"{off}>'
        f'<span class="pb-ask">{text}</span>{hint}</button>'
    )


# --- the calls of judges ---


def judges_calls(judgements: Sequence[Judgement], desk: Desk, sample_id: int) -> str:
    """A line for each judge: how its latest call went; earlier failures are folded into it."""
    calls: dict[int, list[Judgement]] = {}
    for judgement in judgements:
        if judgement.rater.kind == "judge":
            calls.setdefault(judgement.rater.id, []).append(judgement)
    lines = "".join(_calls(calls[rater_id], desk, sample_id) for rater_id in sorted(calls))
    return f'<ul class="pb-calls" aria-label="Judges">{lines}</ul>' if lines else ""


def problems(judgements: Iterable[Judgement]) -> list[str]:
    """The states, other than ok, of the latest call of each judge, each once."""
    latest = {given.rater.id: given.state for given in judgements if given.rater.kind == "judge"}
    return sorted({state for state in latest.values() if state != "ok"})


def _calls(calls: Sequence[Judgement], desk: Desk, sample_id: int) -> str:
    latest = calls[-1]
    rater = latest.rater
    earlier = [judgement for judgement in calls[:-1] if judgement.state != "ok"]
    asked = f"asked by {latest.asked_by}" if latest.asked_by else ""
    facts = _facts(*_terms(latest), money(latest.cost), asked, latest.note)
    folded = _folded(
        [f"{_call(judgement.state, judgement.reason)}{_raw(judgement.raw)}" for judgement in earlier],
        [judgement.state for judgement in earlier],
    )
    name = f"<b>{escape(rater.name)}</b>"
    if latest.state == "ok":
        return f"<li>{name} {facts}{_raw(latest.raw)}{folded}</li>"
    same = (rater.name, rater.version, rater.mode) == desk.rater
    again = (
        ask_button(desk, sample_id, "Ask again")
        if same
        else '<a class="pb-button small" href="/jobs?kind=judge">Ask again</a>'
    )
    return (
        f'<li class="warn">{name} {facts}<span class="pb-again">{again}</span>'
        f"{_call(latest.state, latest.reason)}{_raw(latest.raw)}{folded}</li>"
    )


def _terms(judgement: Judgement) -> list[str]:
    """What tells raters of one name apart: the rubric's version, the mode."""
    version, mode = judgement.rater.version, judgement.rater.mode
    return [part for part in (f"version {version}" if version.isdigit() else version, mode) if part]


def _facts(*parts: str) -> str:
    shown = " · ".join(escape(part) for part in parts if part)
    return f'<span class="pb-sub">{shown}</span>' if shown else ""


def _call(state: str, reason: str) -> str:
    """What became of a call that brought nothing."""
    said = f" {escape(reason)}" if reason else ""
    return f'<p class="pb-call"><span class="pb-chip {escape(state)}">{escape(state)}</span>{said}</p>'


def _raw(raw: str) -> str:
    """A reply, word for word."""
    if not raw:
        return ""
    cut = f"\n… ({len(raw):,} characters in all)" if len(raw) > LONGEST_RAW else ""
    return (
        '<details class="pb-raw"><summary>Reply</summary>'
        f'<pre tabindex="0">{escape(raw[:LONGEST_RAW])}{cut}</pre></details>'
    )


def _folded(lines: Sequence[str], states: Sequence[str]) -> str:
    if not lines:
        return ""
    word = "attempt" if len(lines) == 1 else "attempts"
    told = escape(", ".join(dict.fromkeys(states)))
    return (
        f'<details class="pb-earlier"><summary>{len(lines)} earlier {word}: {told}</summary>'
        f"{''.join(lines)}</details>"
    )


# --- scores beside a candidate ---


def given_scores(judgement: Judgement, score: Score, checklists: Mapping[int, Checklist]) -> str:
    """The scores of a judge or of another person for one candidate; a judge's points of the checklist below."""
    rater = judgement.rater
    kind = "Judge" if rater.kind == "judge" else "Person"
    total = sum(score.value(metric) or 0 for metric in QUALITY)
    quality = f"{total} of {HIGHEST * len(QUALITY)}" if score.complete else "partial"
    cells = "".join(
        f'<span class="pb-given" title="{metric}">{"–" if value is None else value}</span>'
        for metric, value in ((metric, score.value(metric)) for metric in METRICS)
    )
    place = "" if score.position is None else f"read as answer {letter(score.position)}"
    facts = [*_terms(judgement), *([place] if place else [])]
    title = " · ".join((f"{kind} {rater.name}", *facts, *filter(None, (money(judgement.cost), judgement.note))))
    # Two raters may share a name: what tells them apart is read, not only pointed at.
    line = f'<span class="pb-terms">{escape(" · ".join(facts))}</span>' if rater.kind == "judge" and facts else ""
    return (
        f'<div class="pb-grid other" title="{escape(title, quote=True)}"><span class="pb-rater">'
        f'{escape(rater.name)}<br><span class="pb-kind">{kind}</span> · {quality}</span>{cells}{line}</div>'
        f"{_points(judgement, score.candidate_id, checklists)}"
    )


def _points(judgement: Judgement, candidate_id: int, checklists: Mapping[int, Checklist]) -> str:
    points = [point for point in judgement.points if point.candidate_id == candidate_id]
    if not points:
        return ""
    checklist = checklists.get(judgement.checklist_id or 0)
    items = checklist.items if checklist else ()
    lines = ""
    for point in points:
        known = items[point.number - 1] if point.number <= len(items) else None
        text = escape(known.text) if known else f"Item {point.number}"
        kind = ' <span class="pb-sub">essential</span>' if known and known.essential else ""
        met, mark = ("met", "✓") if point.met else ("not met", "✗")
        lines += (
            f'<li class="{"met" if point.met else "unmet"}"><span class="pb-mark">'
            f'<span aria-hidden="true">{mark}</span> {met}</span><span>{text}{kind}</span></li>'
        )
    version = f", version {checklist.version}" if checklist else ""
    met_in_all = sum(point.met for point in points)
    return (
        f'<details class="pb-points"><summary>Checklist {met_in_all} of {len(points)} met</summary>'
        f"<ul>{lines}</ul>"
        f'<p class="pb-sub">as {escape(judgement.rater.name)} reads it{version}</p></details>'
    )


# --- the checklist beside the question ---


def checklist_section(sample_id: int, versions: Sequence[Checklist]) -> str:
    """The sample's checklist as it stands; plumb.js makes an editor of it in place.

    Args:
        versions: all of them, oldest first, with those that failed.
    """
    current = next((one for one in reversed(versions) if one.state == "ok"), None)
    failed = [one for one in versions if one.state != "ok"]
    open_failures = [one for one in failed if current is None or one.version > current.version]
    shown = "".join(_failed(one) for one in open_failures)
    old = [one for one in failed if one not in open_failures]
    folded = _folded([f"{_call(one.state, one.reason)}{_raw(one.raw)}" for one in old], [one.state for one in old])
    items = [{"text": item.text, "essential": item.essential} for item in current.items] if current else []
    data = escape(json.dumps(items, ensure_ascii=False), quote=True)
    return (
        f'<section class="pb-checklist" aria-label="Checklist" data-checklist="{sample_id}" '
        f'data-version="{current.version if current else 0}" data-items="{data}" data-most="{MOST_ITEMS}" '
        f'data-longest="{MOST_CHARACTERS}"><div class="pb-checklist-view">'
        f"{_present(current) if current else _absent()}{shown}{folded}</div></section>"
    )


def _present(checklist: Checklist) -> str:
    parts = [f"version {checklist.version}", _writer(checklist), money(checklist.cost)]
    numbered = list(enumerate(checklist.items, start=1))
    essential = [(number, item) for number, item in numbered if item.essential]
    additional = [(number, item) for number, item in numbered if not item.essential]
    body = _items("Essential", essential) + _items("Additional", additional)
    return (
        '<div class="pb-checklist-head"><h3>Checklist</h3>'
        '<button type="button" class="pb-button small" data-edit-checklist>Edit</button></div>'
        f'<p class="pb-sub">{" · ".join(part for part in parts if part)}</p>'
        + (body or '<p class="pb-sub">It has no items: this sample is judged without a checklist.</p>')
    )


def _writer(checklist: Checklist) -> str:
    if checklist.author is not None:
        return f"edited by {escape(checklist.author)}"
    model = escape(checklist.model or "a model")
    if checklist.job_id is None:
        return f"written by {model}"
    return f'written by {model} (<a href="/jobs?job={checklist.job_id}">job {checklist.job_id}</a>)'


def _items(title: str, items: Sequence[tuple[int, ChecklistItem]]) -> str:
    """A part of the list; the numbers are those by which a judge answers."""
    if not items:
        return ""
    lines = "".join(f'<li value="{number}">{escape(item.text)}</li>' for number, item in items)
    return f"<h4>{title}</h4><ol>{lines}</ol>"


def _absent() -> str:
    return (
        '<div class="pb-checklist-head"><h3>No checklist</h3>'
        '<button type="button" class="pb-button small" data-edit-checklist>Add a checklist</button></div>'
        '<p class="pb-sub">A checklist says what a good answer to this question must have. Write one, or '
        '<a href="/jobs?kind=checklist">let a model write them</a>.</p>'
    )


def _failed(checklist: Checklist) -> str:
    who = escape(checklist.model or "the model")
    return (
        f'<div class="pb-failed"><p class="pb-sub">{who} was asked for a checklist'
        f' · <a href="/jobs?kind=checklist">ask again</a></p>'
        f"{_call(checklist.state, checklist.reason)}{_raw(checklist.raw)}</div>"
    )
