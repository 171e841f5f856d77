"""Votes as HTML: what was voted, who stood where, the verdict between two speakers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sqlite_utils import Database

from storage.adapters import get_adapter
from storage.errors import NotFound
from storage.speakers import Speaker as Spoken
from storage.votes import Round, Vote
from workbench.vote_stats import LEAST, Speaker, VerdictBetween

_WORDS = {
    "left": "The left one is better.",
    "middle": "The middle one is better.",
    "right": "The right one is better.",
    "tie": "A tie.",
    "both bad": "Both bad.",
}


def told(vote: Vote | None, names: str, hidden: bool, columns: int = 2, passed_over: Sequence[str] = ()) -> str:
    """What stands below the buttons.

    Args:
        passed_over: the sides whose answers made no pair, where some were just made.
    """
    if vote is None:
        return '<p class="plumb-note">The names are shown once you have voted.</p>' if hidden else ""
    words = "All bad." if vote.best == "both bad" and columns > 2 else _WORDS[vote.best]
    if columns > 2:
        words = words.replace("better", "best")
    note = f" “{escape(vote.note)}”" if vote.note else ""
    return f'<p class="plumb-note" role="status">{words}{note} {names}{_pairs(vote, passed_over)}</p>'


def _pairs(vote: Vote, passed_over: Sequence[str]) -> str:
    if not vote.pair_ids:
        return ""
    # `after` is the pair before it: the page then begins with this one.
    links = " and ".join(f'<a href="/pairs?after={number - 1}">#{number}</a>' for number in vote.pair_ids)
    one = len(vote.pair_ids) == 1
    told = f" {'Pair' if one else 'Pairs'} {links} {'was' if one else 'were'} made of it; “Undo” on Pairs takes "
    told += "it back." if one else "them back."
    if passed_over:
        told += f" The {' and '.join(passed_over)} one made none: it is empty, or the same as the best."
    return told


def names(db: Database, found: Round) -> str:
    """Who stood in which column."""
    speakers = [name_of(db, (turn.model or "", turn.adapter_id)) for turn in found.answers]
    told = ", ".join(f"{side}: <b>{escape(name)}</b>" for side, name in zip(found.sides, speakers, strict=True))
    return f"{told[0].upper()}{told[1:]}."


def name_of(db: Database, speaker: Speaker) -> str:
    model, adapter = speaker
    if adapter is None:
        return model if Spoken(model).outside else f"base ({model})"
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
