"""Votes as HTML: what was voted, who stood where, the verdict between two speakers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sqlite_utils import Database

from storage.adapters import get_adapter
from storage.errors import NotFound
from storage.votes import Round, Vote
from workbench.vote_stats import LEAST, Speaker, VerdictBetween

_WORDS = {
    "left": "The left one is better.",
    "right": "The right one is better.",
    "tie": "A tie.",
    "both bad": "Both bad.",
}


def told(vote: Vote | None, names: str, hidden: bool) -> str:
    """What stands below the buttons."""
    if vote is None:
        return '<p class="plumb-note">The names are shown once you have voted.</p>' if hidden else ""
    note = f" “{escape(vote.note)}”" if vote.note else ""
    pair = (
        f' <a href="/pairs">Pair #{vote.pair_id}</a> was made of it; “Undo” on Pairs takes it back.'
        if vote.pair_id is not None
        else ""
    )
    return f'<p class="plumb-note" role="status">{_WORDS[vote.verdict]}{note} {names}{pair}</p>'


def sides(db: Database, found: Round) -> str:
    """Who stood on the left and on the right."""
    left, right = (name_of(db, (turn.model or "", turn.adapter_id)) for turn in (found.left, found.right))
    return f"Left: <b>{escape(left)}</b>, right: <b>{escape(right)}</b>."


def name_of(db: Database, speaker: Speaker) -> str:
    model, adapter = speaker
    if adapter is None:
        return f"base ({model})"
    try:
        return f"{get_adapter(db, adapter).name} (#{adapter})"
    except NotFound:
        return f"adapter #{adapter}"


def table(db: Database, found: Sequence[VerdictBetween]) -> str:
    """Win rates with their intervals, position bias and lengths."""
    if not found:
        return (
            '<p class="plumb-note">No votes between two different speakers yet. Choose two, ask, and vote below '
            "the answers; blind votes are the honest ones.</p>"
        )
    rows = "".join(_row(db, verdict) for verdict in found)
    head = "".join(
        f"<th scope=col>{title}</th>"
        for title in (
            "",
            "against",
            "wins",
            "95 % interval",
            "won / lost / tie / both bad",
            "left side won",
            "length",
        )
    )
    return (
        f'<div class="plumb-scroll"><table class="plumb-verdicts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        '<p class="plumb-note">Ties and “both bad” count half for each. The interval draws conversations again. '
        "Left side won: of the votes that prefer one; far from 50 % means that the side decided. Length: mean "
        "characters of the answers.</p>"
    )


def _row(db: Database, found: VerdictBetween) -> str:
    interval = f"from {LEAST} conversations on" if found.low is None else f"{found.low:.0%} to {found.high:.0%}"
    side = f"{found.left_wins / found.decided:.0%} of {found.decided}" if found.decided else "–"
    cells = (
        f"{found.rate:.0%}",
        interval,
        f"{found.wins} / {found.losses} / {found.ties} / {found.both_bad}",
        side,
        f"{found.lengths[0]:,.0f} / {found.lengths[1]:,.0f}",
    )
    return (
        f"<tr><th scope=row>{escape(name_of(db, found.first))}</th><td>{escape(name_of(db, found.second))}</td>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
    )
