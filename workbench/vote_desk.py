"""Votes on the Chat page: what can be voted on, blind casts, pairs of votes. Plain functions above Gradio."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from sqlite_utils import Database

from storage.chats import get_conversation
from storage.errors import NotFound, PlumbError
from storage.records import Conversation
from storage.votes import Vote, cast_vote, duels, make_pair, rounds_of, votes_of
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
        left_turn: of the last round that both columns answered; None where there is none.
        vote: one's own vote on it.
        names: who spoke on the left and on the right; "" while they are hidden.
        told: what stands below the buttons, as HTML.
    """

    left_turn: int | None = None
    vote: Vote | None = None
    names: str = ""
    told: str = ""

    @property
    def pairable(self) -> bool:
        return self.vote is not None and self.vote.verdict in ("left", "right") and self.vote.pair_id is None


def shuffled(cast: Cast, chance: random.Random | None = None) -> Cast:
    """The same two speakers, each on either side as often as on the other."""
    left, right = cast.adapters
    swap = (chance or random.SystemRandom()).random() < 0.5
    return replace(cast, adapters=(right, left)) if swap else cast


def is_hidden(db: Database, conversation: Conversation) -> bool:
    """Whether its names are still secret: it is blind, and its owner has not voted in it yet."""
    return bool(conversation.settings.get("blind")) and not votes_of(db, conversation.id, conversation.user)


def hidden_cast(context: Context, user: str, conversation_id: int | None) -> Cast:
    """Who speaks in a blind conversation; the page doesn't know.

    Raises:
        NotFound: there is no such conversation.
    """
    if conversation_id is None:
        raise NotFound("Who speaks here is not known any more; choose both columns again.")
    with context.database() as db:
        return cast_of(get_conversation(db, conversation_id, user))


def ballot(context: Context, user: str, conversation_id: int | None, problem: str = "") -> Ballot:
    """What stands in the ballot under the answers."""
    if conversation_id is None:
        return Ballot(told=chat_view.problem(problem))
    with context.database() as db:
        try:
            conversation = get_conversation(db, conversation_id, user)
        except PlumbError as error:
            return Ballot(told=chat_view.problem(str(error)))
        rounds = rounds_of(conversation)
        # A newer question, without its answers yet, is what the next vote will be on.
        if not rounds or rounds[-1].left.position != conversation.turns[-1].position:
            return Ballot(told=chat_view.problem(problem))
        vote = votes_of(db, conversation_id, user).get(rounds[-1].left.id)
        hidden = is_hidden(db, conversation)
        names = "" if hidden else vote_views.sides(db, rounds[-1])
    told = chat_view.problem(problem) or vote_views.told(vote, names, hidden)
    return Ballot(rounds[-1].left.id, vote, names, told)


def vote(
    context: Context, user: str, conversation_id: int | None, seen: int | None, verdict: str, note: str
) -> Ballot:
    """Vote on the round that the page shows; what stood in the way is told in the ballot.

    Args:
        seen: the shown round's `left_turn`. Where another tab has gone on meanwhile, nothing is voted.
    """
    found = ballot(context, user, conversation_id)
    if conversation_id is None or (seen is None and found.left_turn is None):
        return replace(found, told=chat_view.problem("There are no two answers to vote on yet; ask something."))
    if seen is None or seen != found.left_turn:
        return _gone_on(found, seen)
    try:
        with context.database() as db:
            cast_vote(db, user, conversation_id, seen, verdict, note)
    except PlumbError as error:
        return ballot(context, user, conversation_id, str(error))
    return ballot(context, user, conversation_id)


def pair_up(context: Context, user: str, conversation_id: int | None, seen: int | None) -> Ballot:
    """Make a pair of the vote on the round that the page shows (`seen`, as in `vote`)."""
    found = ballot(context, user, conversation_id)
    if conversation_id is None or seen is None or seen != found.left_turn:
        return _gone_on(found, seen)
    try:
        with context.database() as db:
            make_pair(db, user, conversation_id, seen)
    except PlumbError as error:
        return ballot(context, user, conversation_id, str(error))
    return ballot(context, user, conversation_id)


def _gone_on(found: Ballot, seen: int | None) -> Ballot:
    """The shown round, of which no more is known here: a newer one's vote is not its own."""
    lost = found.told if found.left_turn is None else ""  # the whole conversation is gone, for example
    return Ballot(seen, told=lost or chat_view.problem(_GONE_ON))


def standings(context: Context) -> str:
    """The verdicts between all speakers that met, as HTML."""
    with context.database() as db:
        return vote_views.table(db, verdicts(duels(db)))
