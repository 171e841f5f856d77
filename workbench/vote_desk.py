"""Votes on the Chat page: what can be voted on, blind casts, pairs of votes. Plain functions above Gradio."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlite_utils import Database

from storage.chats import get_conversation
from storage.errors import NotFound, PlumbError
from storage.records import METRICS, Conversation
from storage.vote_pairs import make_pairs
from storage.votes import (
    NEITHER,
    Vote,
    cast_vote,
    duels,
    has_voted,
    last_round,
    round_at,
    set_turn_scores,
    turn_scores,
    votes_of,
)
from workbench import chat_view, vote_views
from workbench.chat_desk import Cast, cast_of
from workbench.context import Context
from workbench.vote_stats import verdicts

_GONE_ON = "This conversation has gone on in another tab; open it again from the list to vote on what it says now."
HIDDEN = "hidden"  # what a column's dropdown holds while nobody may know who speaks


@dataclass(frozen=True)
class Ballot:
    """What can be voted on now.

    Attributes:
        first_turn: of the round that is voted on; None where there is none.
        sides: what its columns are called, from left to right.
        vote: one's own vote on it.
        names: who spoke in which column; "" while they are hidden.
        scores: one's own metrics of the answers, from left to right.
        told: what stands below the buttons, as HTML.
    """

    first_turn: int | None = None
    sides: tuple[str, ...] = ("left", "right")
    vote: Vote | None = None
    names: str = ""
    scores: tuple[Mapping[str, int], ...] = field(default=())
    told: str = ""

    @property
    def pairable(self) -> bool:
        return self.vote is not None and self.vote.best not in NEITHER and not self.vote.pair_ids


def shuffled(cast: Cast, chance: random.Random | None = None) -> Cast:
    """The same speakers, each in every column as often as in any other."""
    speakers = list(cast.speakers)
    (chance or random.SystemRandom()).shuffle(speakers)
    return replace(cast, speakers=tuple(speakers))


def is_hidden(db: Database, conversation: Conversation, user: str | None = None) -> bool:
    """Whether its names are secret for this person (its owner by default): it is blind, and there is no vote."""
    return bool(conversation.settings.get("blind")) and not has_voted(db, conversation, user or conversation.user)


def hidden_cast(context: Context, user: str, conversation_id: int | None) -> Cast:
    """Who speaks in a blind conversation; the page doesn't know.

    Raises:
        NotFound: there is no such conversation.
    """
    if conversation_id is None:
        raise NotFound("Who speaks here is not known any more; choose both columns again.")
    with context.database() as db:
        return cast_of(get_conversation(db, conversation_id, user))


def ballot(
    context: Context, user: str, conversation_id: int | None, problem: str = "", passed_over: Sequence[str] = ()
) -> Ballot:
    """What stands in the ballot under the answers."""
    if conversation_id is None:
        return Ballot(told=chat_view.problem(problem))
    with context.database() as db:
        try:
            conversation = get_conversation(db, conversation_id, user)
        except PlumbError as error:
            return Ballot(told=chat_view.problem(str(error)))
        found = last_round(conversation)
        if found is None:
            return Ballot(told=chat_view.problem(problem))
        vote = votes_of(db, conversation_id, user).get(found.first)
        hidden = is_hidden(db, conversation, user)
        names = "" if hidden else vote_views.names(db, found)
        scores = turn_scores(db, user, [turn.id for turn in found.answers])
    told = chat_view.problem(problem) or vote_views.told(vote, names, hidden, len(found.answers), passed_over)
    return Ballot(found.first, found.sides, vote, names, tuple(scores.values()), told)


def vote(
    context: Context, user: str, conversation_id: int | None, seen: int | None, best: str, note: str
) -> Ballot:
    """Vote on the round that the page shows; what stood in the way is told in the ballot.

    Args:
        seen: the shown round's `first_turn`. Where another tab has gone on meanwhile, nothing is voted.
    """
    found = ballot(context, user, conversation_id)
    if conversation_id is None or (seen is None and found.first_turn is None):
        return replace(found, told=chat_view.problem("There are no answers to vote on yet; ask something."))
    if seen is None or seen != found.first_turn:
        return _gone_on(found, seen)
    try:
        with context.database() as db:
            cast_vote(db, user, conversation_id, seen, best, note)
    except PlumbError as error:
        return ballot(context, user, conversation_id, str(error))
    return ballot(context, user, conversation_id)


def score(
    context: Context,
    user: str,
    conversation_id: int | None,
    seen: int | None,
    column: int,
    metric: str,
    value: int | None,
) -> Ballot:
    """Score one metric of one of the shown answers; saved at once, undoable."""
    found = ballot(context, user, conversation_id)
    if conversation_id is None or seen is None or seen != found.first_turn:
        return _gone_on(found, seen)
    assert metric in METRICS
    try:
        with context.database() as db:
            answers = round_at(db, user, conversation_id, seen).answers
            if column >= len(answers):
                return found
            set_turn_scores(db, user, conversation_id, seen, {answers[column].id: {metric: value}})
    except PlumbError as error:
        return ballot(context, user, conversation_id, str(error))
    return ballot(context, user, conversation_id)


def pair_up(context: Context, user: str, conversation_id: int | None, seen: int | None) -> Ballot:
    """Make pairs of the vote on the round that the page shows (`seen`, as in `vote`)."""
    found = ballot(context, user, conversation_id)
    if conversation_id is None or seen is None or seen != found.first_turn:
        return _gone_on(found, seen)
    try:
        with context.database() as db:
            made = make_pairs(db, user, conversation_id, seen)
    except PlumbError as error:
        return ballot(context, user, conversation_id, str(error))
    return ballot(context, user, conversation_id, passed_over=made.passed_over)


def _gone_on(found: Ballot, seen: int | None) -> Ballot:
    """The shown round, of which no more is known here: a newer one's vote is not its own."""
    lost = found.told if found.first_turn is None else ""  # the whole conversation is gone, for example
    return Ballot(seen, found.sides, told=lost or chat_view.problem(_GONE_ON))


def standings(context: Context, contest_id: int | None = None) -> str:
    """The verdicts between all speakers that met, everywhere or in one contest, as HTML."""
    with context.database() as db:
        return vote_views.table(db, verdicts(duels(db, contest_id)))
