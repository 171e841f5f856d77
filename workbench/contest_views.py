"""Contests as HTML: the list, the places in one, its question, its standings. Pure: records in, text out.

A contest is a list of prompts that two or three speakers answer, and that people vote through blind. No name of a
speaker is written here but by `speakers` and `by_category`, whose callers know when they may be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from storage.contests import Contest, Entry
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job, Part
from workbench.job_words import bar, chip, state_words, when
from workbench.views import drawn, empty
from workbench.vote_stats import LEAST, VerdictBetween

KEYS: dict[str, tuple[tuple[str, ...], str]] = {
    "vote-left": (("1", "←"), "left"),
    "vote-middle": (("2", "↓", "M"), "middle"),
    "vote-right": (("3", "→"), "right"),
    "vote-tie": (("T",), "tie"),
    "vote-both-bad": (("B",), "bad"),
    "contest-next": (("N",), "next"),
    "contest-undo": (("Z",), "undo"),
}
MOST_CELLS = 200  # places of a contest that are listed at once

#: Which button a key presses, as the browser names the key.
PRESSED: dict[str, str] = {
    {"←": "ArrowLeft", "↓": "ArrowDown", "→": "ArrowRight"}.get(key, key.lower()): name
    for name, (keyed, _) in KEYS.items()
    for key in keyed
}


def address(contest: int | None, number: int | None = None, standings: bool = False) -> str:
    """The query string of what is open; "" for nothing."""
    if contest is None:
        return ""
    more = "&view=standings" if standings else f"&number={number}" if number is not None else ""
    return f"?contest={contest}{more}"


# --- the list ---


def contest_list(
    contests: Sequence[Contest],
    names: Mapping[int, str],
    opened: int | None,
    now: datetime,
    url: str = "",
) -> str:
    """All contests as links, newest first, marked with the address of what is open.

    Args:
        names: who speaks, by contest, where it may be told.
    """
    mark = f'<span data-url="{escape(url, quote=True)}"></span>'
    if not contests:
        return (
            f'{mark}<div class="plumb-empty"><b>No contests yet.</b><p>Give it a list of prompts and two or '
            "three speakers to answer them, on the right. You vote through the answers without knowing whose they "
            "are.</p></div>"
        )
    entries = "".join(_entry(one, names.get(one.id, ""), one.id == opened, now) for one in contests)
    return f'{mark}<nav class="pc-list" aria-label="Contests">{entries}</nav>'


def _entry(contest: Contest, names: str, opened: bool, now: datetime) -> str:
    who = escape(names) if names else "speakers hidden until all is voted"
    current = ' aria-current="true"' if opened else ""
    return (
        f'<a class="pc-entry" href="/contests{address(contest.id)}" data-contest="{contest.id}"{current}>'
        f"<b>{escape(contest.name)}</b>"
        f'<span class="pc-who" title="{who}">{who}</span>'
        f"{voted_bar(contest)}"
        f"<span>{_answered(contest)} · {contest.voted:,} voted by you</span>"
        f'<span class="pc-who">{escape(contest.user)}, {when(contest.created_at, now)}</span></a>'
    )


def _answered(contest: Contest) -> str:
    return f"{contest.answered:,} of {contest.total:,} answered"


def voted_bar(contest: Contest) -> str:
    """How many prompts are voted on, over how many are answered, over all."""
    total = max(contest.total, 1)
    answered, voted = (f"{100 * min(part, total) / total:.1f}" for part in (contest.answered, contest.voted))
    return (
        f'<span class="pc-bar" role="progressbar" aria-label="voted by you" aria-valuemin="0" '
        f'aria-valuemax="{contest.total}" aria-valuenow="{contest.voted}">'
        f'<span class="pc-bar-answered" style="width:{answered}%"></span>'
        f'<span class="pc-bar-voted" style="width:{voted}%"></span></span>'
    )


def speakers(names: Sequence[str]) -> str:
    """Who speaks, as one line."""
    return " · ".join(names)


# --- one contest ---


def head(contest: Contest, entry: Entry | None, job: Job | None, now: datetime) -> str:
    """What is open: the contest, the prompt's place and category, how far one has come, what its job does."""
    place = ""
    if entry is not None:
        category = f' <span class="pb-chip">{escape(entry.category)}</span>' if entry.category else ""
        place = f'<span class="pc-place">Prompt {entry.number:,} of {contest.total:,}</span>{category}'
    return (
        f'<div class="pc-head"><h2>{escape(contest.name)}</h2>{place}<span class="pb-spacer"></span>'
        f'<span class="pc-count">{contest.voted:,} of {contest.total:,} voted by you</span>'
        f"{voted_bar(contest)}</div>{_job(contest, job, now)}"
    )


def _job(contest: Contest, job: Job | None, now: datetime) -> str:
    """What the job that answers is at; nothing once all is answered."""
    if job is None or job.status is JobStatus.DONE:
        return ""
    link = f'<a href="/jobs?job={job.id}">Job {job.id}</a>'
    if job.status in ENDED:
        failed = job.status is JobStatus.FAILED
        why = f": {escape(job.reason.rstrip('.'))}" if job.reason else ""
        left = f" {_answered(contest)}; those can be voted on. Resume it on Jobs for the rest."
        role = ' role="alert"' if failed else ""
        return f'<p class="plumb-{"error" if failed else "note"}"{role}>{link} {job.status}{why}.{left}</p>'
    words = escape(state_words(job, 0))
    return f'<div class="pc-job" role="status">{chip(job)} {link} {words}{bar(job)}</div>'


def strip(contest: Contest, entries: Sequence[Entry], number: int | None) -> str:
    """The places of a contest as small links: voted, not voted yet, not answered. Of many, those around one."""
    known = {entry.number: entry for entry in entries}
    first = max(1, min((number or 1) - MOST_CELLS // 2, contest.total - MOST_CELLS + 1))
    last = min(contest.total, first + MOST_CELLS - 1)
    cells = "".join(_cell(contest.id, n, known.get(n), n == number) for n in range(first, last + 1))
    return f'<nav class="pc-strip" aria-label="Prompts">{cells}</nav>' if cells else ""


def _cell(contest: int, place: int, entry: Entry | None, current: bool) -> str:
    if entry is None or not entry.complete:
        return f'<span class="pc-cell" title="Prompt {place}: not answered yet">{place}</span>'
    state = "voted" if entry.voted else "to vote"
    mark = ' aria-current="true"' if current else ""
    title = f"Prompt {place}, {state}: {entry.title}"
    href = escape("/contests" + address(contest, place), quote=True)
    return (
        f'<a class="pc-cell {"voted" if entry.voted else "open"}" href="{href}" '
        f'data-contest="{contest}" data-number="{place}"{mark} title="{escape(title, quote=True)}" '
        f'aria-label="{escape(title, quote=True)}">{place}</a>'
    )


def question(parts: Sequence[Part], round_: int, rounds: int, given: str | None = None) -> str:
    """A question: its pictures whole, then its words as they were written; which of several it is.

    Args:
        given: the answer that came with the prompt, where nobody in the contest gave one.
    """
    images = "".join(
        f'<a href="/images/{part["image"]}" target="_blank" title="Open the image alone">'
        f'<img src="/images/{part["image"]}" alt="Image of the question"></a>'
        for part in parts
        if part["type"] == "image" and part["image"].isalnum()
    )
    words = escape("\n".join(part["text"] for part in parts if part["type"] == "text"))
    which = f'<span class="pc-which">Question {round_} of {rounds}</span>' if rounds > 1 else ""
    shown = f'<div class="pc-images">{images}</div>' if images else ""
    text = f'<p class="pc-text">{words}</p>' if words else ""
    came = (
        f'<div class="pc-given"><span class="pc-which">Answer that came with the prompt</span>'
        f'<p class="pc-text">{escape(given)}</p></div>'
        if given is not None
        else ""
    )
    return f'<div class="pc-question">{shown}<div class="pc-words">{which}{text}{came}</div></div>'


def keys(columns: int) -> str:
    """The keys, as they are shown under the ballot."""
    shown = [
        "".join(f"<kbd>{key}</kbd>" for key in keyed) + f" {word}"
        for name, (keyed, word) in KEYS.items()
        if columns > 2 or name != "vote-middle"
    ]
    return f'<p class="pc-keys">{" ".join(f"<span>{one}</span>" for one in shown)}</p>'


def last_round(rounds: int) -> str:
    """Which of several rounds the vote is on; nothing where there is one."""
    if rounds < 2:
        return ""
    return f'<p class="plumb-note">You vote on the answers to question {rounds}, the last one.</p>'


def waiting(contest: Contest, job: Job | None) -> str:
    """What stands in place of a prompt where there is none to vote on."""
    if job is not None and job.status not in ENDED:
        text = (
            "No prompt is answered by all yet. Each comes up here by itself as soon as it can be voted on."
            if not contest.answered
            else "You have voted on all that is answered so far. The next prompt comes up here by itself."
        )
        return empty("More is on its way", text)
    link = f'<a href="/jobs?job={contest.job_id}">Job {contest.job_id}</a>'
    return empty("Nothing to vote on", f"No prompt has been answered by all speakers. {link} tells why.")


def after(milliseconds: int) -> str:
    """A mark at which the script goes on to the next prompt after a moment."""
    return drawn(f'<span data-after="{milliseconds}"></span>')


# --- standings ---


def before_standings(contest: Contest) -> str:
    """What is asked before the names are told to somebody who still votes."""
    left = max(contest.answered - contest.voted, 0)
    prompts = "1 prompt is" if left == 1 else f"{left:,} prompts are"
    return (
        f'<p class="plumb-note" role="alert">{prompts} still without your vote. The standings name the speakers: '
        "what you vote afterwards may be less blind. Which column is whose stays hidden until each vote.</p>"
    )


def by_category(found: Mapping[str, Sequence[tuple[str, str, VerdictBetween]]]) -> str:
    """Win rates within each category.

    Args:
        found: by category, (name of the first, name of the second, their verdict).
    """
    if not any(category for category in found):
        return ""
    body = ""
    for category, verdicts in found.items():
        for place, (first, second, verdict) in enumerate(verdicts):
            heading = (
                f'<th scope="rowgroup" rowspan="{len(verdicts)}">{escape(category) or "none"}</th>'
                if place == 0
                else ""
            )
            interval = (
                f"from {LEAST} conversations on"
                if verdict.low is None
                else f"{verdict.low:.0%} to {verdict.high:.0%}"
            )
            cells = (first, second, f"{verdict.rate:.0%}", interval, f"{verdict.votes:,}")
            body += f"<tr>{heading}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    titles = ("category", "", "against", "wins", "95 % interval", "votes")
    head_ = "".join(f"<th scope=col>{title}</th>" for title in titles)
    return (
        '<h3 class="pc-heading">By category</h3><div class="plumb-scroll"><table class="plumb-verdicts">'
        f"<thead><tr>{head_}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def standings_head(contest: Contest, names: Sequence[str], done: bool) -> str:
    """What the standings are of, with the export."""
    told = "You have voted on every prompt. " if done else ""
    return (
        f'<div class="pc-standings-head"><p>{told}{escape(speakers(names))}. '
        f"{contest.answered:,} of {contest.total:,} prompts answered, {contest.voted:,} voted by you. Everybody's "
        f'votes are counted.</p><a class="pb-button small" download '
        f'href="/api/conversations.jsonl?contest={contest.id}">Export as JSONL</a></div>'
    )
