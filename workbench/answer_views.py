"""HTML of the answers to the pinned sample: their texts, scores, suggestions, and what can be done to each.

Every text from data goes through `escape`. Pure functions; the scripts in static/ do what `data-…` attributes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from storage.records import HIGHEST, LOWEST, METRICS, Candidate, Checklist, Judgement, Pair, Score
from storage.scores import latest_ok
from workbench.judge_marks import Desk, given_scores, judges_calls, letter
from workbench.views import empty


@dataclass(frozen=True)
class Answers:
    """All that the right side of the pinned sample's view needs."""

    sample_id: int
    candidates: Sequence[Candidate]
    judgements: Sequence[Judgement]
    pairs: Sequence[Pair]
    adapters: Mapping[int, str]
    user: str
    checklists: Sequence[Checklist]
    desk: Desk
    agreement: str


def answers_section(answers: Answers) -> str:
    """The judges' calls, a card an answer, the pairs, and the way to an answer of one's own."""
    own = (
        '<p class="pb-new"><button type="button" class="pb-button small" data-new-answer>'
        "Write an answer <kbd>N</kbd></button></p>"
    )
    if not answers.candidates:
        none = empty(
            "No answers yet",
            "A model has to answer this question before answers can be scored and compared.",
            "/jobs?kind=generate",
            "Generate candidates",
        )
        return none + own
    note = ""
    if not any(judgement.rater.kind == "judge" for judgement in answers.judgements):
        note = (
            '<p class="pb-hint">No judge has been asked about these answers. Score them below, press '
            '<kbd>J</kbd>, or <a href="/jobs?kind=judge">let a judge score all samples</a>.</p>'
        )
    latest = latest_ok(answers.judgements)
    suggested = suggestion(latest)
    cards = "".join(
        _card(candidate, index, latest, suggested, answers) for index, candidate in enumerate(answers.candidates)
    )
    calls = judges_calls(answers.judgements, answers.desk, answers.sample_id)
    return note + calls + _accept_all(suggested) + answers.agreement + cards + own + _pairs(answers)


def suggestion(latest: Sequence[Judgement]) -> Judgement | None:
    """The judgement whose scores are suggested: the latest of any judge."""
    judged = [judgement for judgement in latest if judgement.rater.kind == "judge" and judgement.scores]
    return max(judged, key=lambda judgement: judgement.id) if judged else None


def _accept_all(suggested: Judgement | None) -> str:
    if suggested is None:
        return ""
    name = escape(suggested.rater.name)
    return (
        f'<p class="pb-hint pb-accepts">Outlined values are those of {name}. '
        '<button type="button" class="pb-button small" data-accept>Accept them all <kbd>Shift Y</kbd></button></p>'
    )


def _card(
    candidate: Candidate, index: int, latest: Sequence[Judgement], suggested: Judgement | None, answers: Answers
) -> str:
    name = letter(index)
    checklists = {checklist.id: checklist for checklist in answers.checklists}
    own, others = Score(candidate.id), []
    scored = False
    for judgement in latest:
        for score in judgement.scores:
            if score.candidate_id != candidate.id:
                continue
            scored = scored or any(score.value(metric) is not None for metric in METRICS)
            if judgement.rater.kind == "person" and judgement.rater.name == answers.user:
                own = score
            else:
                others.append(given_scores(judgement, score, checklists))
    suggestions = suggested.scores if suggested else ()
    hints = next((one for one in suggestions if one.candidate_id == candidate.id), None)
    text = escape(candidate.text) or '<i class="pb-sub">(an empty answer)</i>'
    paired = any(candidate.id in (pair.chosen_id, pair.rejected_id) for pair in answers.pairs)
    mine = " data-own" if candidate.author == answers.user and not scored and not paired else ""
    accept = ""
    if suggested and hints and any(own.value(metric) is None for metric in METRICS):
        accept = '<button type="button" class="pb-plain-button pb-accept" data-accept>accept <kbd>Y</kbd></button>'
    offered = f' data-suggestion="{suggested.id}"' if suggested and hints else ""
    return (
        f'<article class="pb-card" data-candidate="{candidate.id}"{mine}{offered} aria-label="Answer {name}">'
        f'<div class="pb-answer"><b class="pb-letter">{name}</b><p class="pb-text" dir="auto" '
        f'data-text="{escape(candidate.text, quote=True)}">{text}</p>'
        f'<div class="pb-picks" role="group" aria-label="Answer {name} in a pair">'
        f'<button type="button" class="pb-pick good" data-pick="chosen" aria-pressed="false" '
        f'aria-label="Answer {name}: chosen">Chosen</button>'
        f'<button type="button" class="pb-pick bad" data-pick="rejected" aria-pressed="false" '
        f'aria-label="Answer {name}: rejected">Rejected</button></div></div>'
        f'<p class="pb-sub pb-maker">{_maker(candidate, answers.adapters)} · '
        f'<button type="button" class="pb-plain-button" data-edit-answer '
        f'aria-label="Edit answer {name}">edit</button></p>'
        f'<div class="pb-grid"><span class="pb-rater">Your scores {accept}</span>'
        f"{_buttons(own, hints, name)}</div>"
        f"{''.join(others)}"
        "</article>"
    )


def _buttons(own: Score, hints: Score | None, name: str) -> str:
    sets = []
    for metric in METRICS:
        value = own.value(metric)
        hint = hints.value(metric) if hints is not None and value is None else None
        buttons = "".join(
            f'<button type="button" data-metric="{metric}" data-value="{number}" '
            f'aria-pressed="{"true" if value == number else "false"}"'
            f"{' class=suggested' if hint == number else ''} "
            f'aria-label="Answer {name}, {metric}: {number}{", as the judge says" if hint == number else ""}">'
            f"{number}</button>"
            for number in range(LOWEST, HIGHEST + 1)
        )
        sets.append(
            f'<fieldset class="pb-metric" data-set="{metric}"><legend>{metric.capitalize()}</legend>'
            f"{buttons}</fieldset>"
        )
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


def _pairs(answers: Answers) -> str:
    if not answers.pairs:
        return (
            '<p class="pb-hint">No pair yet: press <b>Chosen</b> on one answer, <b>Rejected</b> on another (keys '
            '<kbd>A</kbd>, <kbd>Shift B</kbd>), or <a href="/pairs">make pairs by rule</a>.</p>'
        )
    names = {candidate.id: letter(index) for index, candidate in enumerate(answers.candidates)}
    shown = ", ".join(
        f"{names.get(pair.chosen_id, '?')} over {names.get(pair.rejected_id, '?')} "
        f'<span class="pb-chip {pair.status}">{pair.status}</span>'
        for pair in answers.pairs
    )
    href = f"/pairs?sample={answers.sample_id}"
    return f'<p class="pb-hint" data-pairs>Pairs: {shown} · <a href="{href}">see on the Pairs page</a></p>'
