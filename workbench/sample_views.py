"""HTML of the pinned sample: what can be done to it, image and question, notes and history; answers beside them.

Every text from data goes through `escape`. Pure functions; the scripts in static/ do what `data-…` attributes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from storage.discarding import Discarded
from storage.records import Image, Sample
from storage.remarks import Note
from storage.texts import LONGEST_NOTE
from workbench.answer_views import Answers, answers_section
from workbench.judge_marks import ask_button, checklist_section
from workbench.views import text_of


@dataclass(frozen=True)
class Links:
    """Where Previous and Next lead ("?…", None at an end), and what stands between them."""

    before: str | None
    after: str | None
    place: str


@dataclass(frozen=True)
class Detail:
    """All that the pinned sample's view needs.

    Attributes:
        stamp: names the state of the sample that is shown; see `storage.traces.stamp`.
        notes, flags, skips: of everybody.
        discarded: who discarded it, and when; None: it is kept.
    """

    sample: Sample
    images: Mapping[str, Image]
    answers: Answers
    links: Links
    stamp: str = ""
    notes: Sequence[Note] = ()
    flags: Sequence[str] = ()
    skips: Sequence[str] = ()
    discarded: Discarded | None = None


def sample_detail(detail: Detail) -> str:
    """The sample pinned beside its candidates."""
    sample = detail.sample
    links = detail.links
    steps = (
        _step(links.before, "‹ Previous", "prev")
        + f'<span class="pb-range">{escape(links.place)}</span>'
        + _step(links.after, "Next ›", "next")
    )
    suggested = next(
        (one.id for one in reversed(detail.answers.judgements) if one.rater.kind == "judge" and one.state == "ok"),
        None,
    )
    offered = f' data-suggestion="{suggested}"' if suggested is not None else ""
    return (
        f'<article class="pb-sample" data-sample="{sample.id}" data-stamp="{escape(detail.stamp, quote=True)}"'
        f' data-user="{escape(detail.answers.user, quote=True)}"'
        f'{offered} aria-label="Sample {sample.id}">'
        f'<div class="pb-bar"><nav class="pb-steps" aria-label="Samples">{steps}</nav>'
        f'<span class="pb-spacer"></span>{_marks(detail)}{ask_button(detail.answers.desk, sample.id, key="J")}'
        '<button type="button" class="pb-button small" data-undo title="Undo (U)">Undo</button>'
        '<button type="button" class="pb-button small" data-redo title="Redo (Shift U)">Redo</button>'
        '<button type="button" class="pb-button small" data-keys aria-label="Map of the keys">'
        "Keys <kbd>?</kbd></button>"
        f'</div><p class="pb-others" role="status"></p>{_state(detail)}'
        f'<div class="pb-columns"><section class="pb-left" aria-label="Image and question">'
        f"{_images(sample, detail.images)}{_question(sample)}{_notes(detail)}"
        f"{checklist_section(sample.id, detail.answers.checklists)}{_history()}</section>"
        f'<section class="pb-right" aria-label="Candidates">{answers_section(detail.answers)}</section>'
        "</div></article>"
    )


def _step(href: str | None, text: str, name: str) -> str:
    if href is None:
        return f'<span class="pb-button small" aria-disabled="true">{text}</span>'
    return f'<a class="pb-button small" href="{escape(href, quote=True)}" data-go data-step="{name}">{text}</a>'


def _marks(detail: Detail) -> str:
    """Flag, skip and discard; what is set is pressed."""
    user = detail.answers.user

    def button(mark: str, text: str, key: str, on: bool, title: str) -> str:
        hint = f" <kbd>{key}</kbd>" if key else ""
        return (
            f'<button type="button" class="pb-button small pb-mark-button" data-mark="{mark}" '
            f'aria-pressed="{"true" if on else "false"}" title="{title}">{text}{hint}</button>'
        )

    return (
        button("flag", "Flag", "M", user in detail.flags, "Mark it for a second look")
        + button("skip", "Skip", "S", user in detail.skips, "Not for me: queues give it to others")
        + button("discard", "Discard", "", detail.discarded is not None, "Leave it out, until taken back")
    )


def _state(detail: Detail) -> str:
    """Who flagged, skipped or discarded it."""
    told = []
    if detail.discarded is not None:
        told.append(f'<span class="pb-chip rejected">discarded</span> by {escape(detail.discarded.user)}')
    for word, people in (("flagged", detail.flags), ("skipped", detail.skips)):
        if people:
            told.append(f'<span class="pb-chip proposed">{word}</span> by {escape(", ".join(people))}')
    return f'<p class="pb-sub pb-state">{" · ".join(told)}</p>' if told else ""


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
            f'<figure><a href="/images/{escape(sha256)}" target="_blank" data-zoom title="Look closely (I)">'
            f'<img class="pb-image{crisp}" src="/images/{escape(sha256)}" {size} alt="Image {number} of sample '
            f'{sample.id}"></a><figcaption class="pb-sub">{words}</figcaption></figure>'
        )
    return f'<div class="pb-images n{min(len(shown), 3)}">{"".join(shown)}</div>'


def _question(sample: Sample) -> str:
    turns = ""
    if len(sample.messages) > 1:
        turns = "".join(
            f'<p class="pb-turn" dir="auto"><b>{escape(str(message["role"]))}</b> '
            f"{escape(text_of(message['content']))}</p>"
            for message in sample.messages[:-1]
        )
        summary = f"<summary>{len(sample.messages) - 1} turns before</summary>"
        turns = f'<details class="pb-turns">{summary}{turns}</details>'
    reference = (
        f'<dt>Reference</dt><dd class="pb-reference" dir="auto">{escape(sample.reference)}</dd>'
        if sample.reference is not None
        else ""
    )
    split = f" · {escape(sample.split)}" if sample.split else ""
    return (
        f'{turns}<dl class="pb-facts"><dt>Question</dt><dd class="pb-question" dir="auto">'
        f"{escape(sample.question)}</dd>{reference}</dl>"
        f'<p class="pb-sub">{escape(sample.source)} {escape(sample.source_id)}{split}</p>'
    )


def _notes(detail: Detail) -> str:
    """One's own note to write in, others' to read."""
    user = detail.answers.user
    own = next((note.text for note in detail.notes if note.user == user), "")
    others = "".join(
        f'<p class="pb-others-note" dir="auto"><b>{escape(note.user)}</b> {escape(note.text)}</p>'
        for note in detail.notes
        if note.user != user
    )
    number = len(detail.notes)
    title = f"Notes ({number})" if number else "Add a note"
    return (
        f'<details class="pb-notes"{" open" if number else ""}><summary>{title} <kbd>T</kbd></summary>{others}'
        f'<form class="pb-note pb-editor pb-writing" data-was="{escape(own, quote=True)}">'
        f'<textarea rows="2" maxlength="{LONGEST_NOTE}" dir="auto" aria-label="Your note" '
        f'placeholder="What others should know">{escape(own)}</textarea>'
        '<div class="pb-edit-acts"><button type="submit" class="pb-button small">Save the note</button></div>'
        "</form>"
        "</details>"
    )


def _history() -> str:
    return '<details class="pb-history"><summary>History</summary><ol aria-label="Who did what"></ol></details>'
