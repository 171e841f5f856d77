"""Votes between two answers of a chat, and the pairs that are made of them.

A vote is of one round: one question of a conversation and what the left and the right column answered. Every
change goes through the undo log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlite_utils import Database

from storage import history
from storage.chats import get_conversation, text_of
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.pairs import get_pair
from storage.records import Conversation, Message, Pair, Turn, now
from storage.rows import one, rows
from storage.samples import add_sample

Verdict = Literal["left", "right", "tie", "both bad"]
VERDICTS: tuple[Verdict, ...] = ("left", "right", "tie", "both bad")
SOURCE = "chat"


@dataclass(frozen=True)
class Vote:
    id: int
    left_turn_id: int
    right_turn_id: int
    verdict: Verdict
    note: str
    user: str
    pair_id: int | None
    created_at: str


@dataclass(frozen=True)
class Round:
    """One question of a conversation with both answers.

    Attributes:
        before: the turns up to and with the question.
    """

    before: tuple[Turn, ...]
    left: Turn
    right: Turn


@dataclass(frozen=True)
class Duel:
    """A vote with who stood on which side, as `verdict_of` counts them.

    Attributes:
        left, right: (base model, adapter or None).
        left_length, right_length: of the answers, in characters.
    """

    conversation_id: int
    left: tuple[str, int | None]
    right: tuple[str, int | None]
    verdict: Verdict
    left_length: int
    right_length: int
    user: str


def rounds_of(conversation: Conversation) -> list[Round]:
    """The questions that both columns have answered, oldest first.

    Answers that broke off are none, nor are those that were stopped before a word.
    """
    found: list[Round] = []
    for place, turn in enumerate(conversation.turns):
        if turn.role != "user":
            continue
        answers = {
            other.column_number: other
            for other in conversation.turns
            if other.role == "assistant" and other.position == turn.position + 1 and _is_whole(other)
        }
        if answers.keys() >= {0, 1}:
            found.append(Round(conversation.turns[: place + 1], answers[0], answers[1]))
    return found


def _is_whole(answer: Turn) -> bool:
    return answer.finish != "failed" and bool(answer.finish == "stop" or text_of(answer.content).strip())


def votes_of(db: Database, conversation_id: int, user: str) -> dict[int, Vote]:
    """A person's votes in a conversation, by the left answer's turn."""
    return {
        row["left_turn_id"]: Vote(**row)
        for row in rows(
            db,
            "SELECT v.* FROM votes v JOIN turns t ON t.id = v.left_turn_id"
            " WHERE t.conversation_id = ? AND v.user = ?",
            [conversation_id, user],
        )
    }


def get_vote(db: Database, vote_id: int, user: str) -> Vote:
    """Raises NotFound where there is none of this person's."""
    found = one(db, "SELECT * FROM votes WHERE id = ? AND user = ?", [vote_id, user])
    if found is None:
        raise NotFound(f"There is no vote {vote_id} of yours (any more); vote again.")
    return Vote(**found)


def cast_vote(
    db: Database, user: str, conversation_id: int, left_turn_id: int, verdict: str, note: str = ""
) -> Vote:
    """Vote on one round, or change one's vote; undoable.

    Raises:
        UserError: there is no such verdict.
        NotFound: there is no such conversation of this person, or no such round in it.
        Conflict: a pair was made of the vote already; it is undone or changed on Pairs.
    """
    if verdict not in VERDICTS:
        raise UserError(f"verdict = {verdict!r}: use one of {', '.join(VERDICTS)}.")
    with immediate(db):  # a pair that is made of it meanwhile would say another thing than the vote
        return _cast_vote(db, user, conversation_id, left_turn_id, verdict, note)


def _cast_vote(db: Database, user: str, conversation_id: int, left_turn_id: int, verdict: str, note: str) -> Vote:
    found = _round(db, user, conversation_id, left_turn_id)
    known = votes_of(db, conversation_id, user).get(left_turn_id)
    if known and known.pair_id is not None and known.verdict != verdict:
        raise Conflict(
            f"Pair {known.pair_id} was made of this vote; flip or reject it on Pairs, or undo it first."
        )
    values = {"verdict": verdict, "note": note.strip()}
    label = f"vote: {verdict} in conversation {conversation_id}"
    with history.action(db, user, label) as change:
        if known:
            change.update("votes", {"id": known.id}, values)
            vote_id = known.id
        else:
            turns = {"left_turn_id": found.left.id, "right_turn_id": found.right.id}
            vote_id = change.insert("votes", {**turns, **values, "user": user, "created_at": now()})
    return get_vote(db, vote_id, user)


def make_pair(db: Database, user: str, conversation_id: int, left_turn_id: int) -> Pair:
    """Make an accepted pair of a vote: the answers become candidates of a sample, the conversation its prompt.

    After the first turn the columns have histories of their own: the prompt is what the chosen one had seen. One
    undo takes candidates, pair and the vote's mark back; the sample stays.

    Raises:
        NotFound: there is no vote on this round.
        UserError: the vote prefers neither, or there is nothing to learn from the answers.
        Conflict: there is a pair of it already.
    """
    with immediate(db):  # two clicks make one pair
        return _make_pair(db, user, conversation_id, left_turn_id)


def _make_pair(db: Database, user: str, conversation_id: int, left_turn_id: int) -> Pair:
    found = _round(db, user, conversation_id, left_turn_id)
    vote = votes_of(db, conversation_id, user).get(left_turn_id)
    if vote is None:
        raise NotFound("There is no vote on these answers yet; vote first.")
    if vote.pair_id is not None:
        raise Conflict(f"Pair {vote.pair_id} was made of this vote already; see it on Pairs.")
    if vote.verdict not in ("left", "right"):
        raise UserError(f"The vote says {vote.verdict!r}: a pair needs one answer that is better than the other.")
    chosen, rejected = (found.left, found.right) if vote.verdict == "left" else (found.right, found.left)
    if chosen.finish == "stopped":
        raise UserError("The better answer was stopped before its end, and would be learned so: no pair made.")
    texts = [text_of(turn.content) for turn in (chosen, rejected)]
    if not all(text.strip() for text in texts) or texts[0].strip() == texts[1].strip():
        raise UserError("An empty answer, or two that are the same, teach nothing: no pair was made.")
    messages = prompt_of(found.before, chosen.column_number or 0)
    with history.action(db, user, f"pair of a vote in conversation {conversation_id}") as change:
        sample_id = _sample(db, messages)
        ids = [_candidate(change, sample_id, turn) for turn in (chosen, rejected)]
        pair_id = change.insert(
            "pairs",
            {
                "sample_id": sample_id,
                "chosen_id": ids[0],
                "rejected_id": ids[1],
                "origin": "vote",
                "status": "accepted",
                "user": user,
                "created_at": now(),
            },
        )
        change.update("votes", {"id": vote.id}, {"pair_id": pair_id})
    return get_pair(db, pair_id)


def duels(db: Database) -> list[Duel]:
    """All votes between two different speakers, oldest first."""
    found = rows(
        db,
        """SELECT l.conversation_id, l.model AS left_model, l.adapter_id AS left_adapter, l.content AS left_said,
                  r.model AS right_model, r.adapter_id AS right_adapter, r.content AS right_said, v.verdict, v.user
           FROM votes v JOIN turns l ON l.id = v.left_turn_id JOIN turns r ON r.id = v.right_turn_id
           WHERE l.model IS NOT r.model OR l.adapter_id IS NOT r.adapter_id ORDER BY v.id""",
    )
    return [
        Duel(
            conversation_id=row["conversation_id"],
            left=(row["left_model"], row["left_adapter"]),
            right=(row["right_model"], row["right_adapter"]),
            verdict=row["verdict"],
            left_length=len(text_of(json.loads(row["left_said"]))),
            right_length=len(text_of(json.loads(row["right_said"]))),
            user=row["user"],
        )
        for row in found
    ]


def prompt_of(turns: Sequence[Turn], column: int) -> list[Message]:
    """The messages that a column had seen when it answered the last of these turns.

    A question that it had not answered is put together with the next one, as it was sent.
    """
    messages: list[Message] = []
    for turn in turns:
        if turn.role == "assistant" and (turn.column_number != column or not text_of(turn.content)):
            continue
        if messages and messages[-1]["role"] == turn.role:
            messages[-1] = {**messages[-1], "content": [*messages[-1]["content"], *turn.content]}
        else:
            messages.append({"role": turn.role, "content": list(turn.content)})
    return messages


def _round(db: Database, user: str, conversation_id: int, left_turn_id: int) -> Round:
    for found in rounds_of(get_conversation(db, conversation_id, user)):
        if found.left.id == left_turn_id:
            return found
    raise NotFound("These answers are not there any more; open the conversation again.")


def _sample(db: Database, messages: list[Message]) -> int:
    """The sample with these messages: the same prompt is the same sample, whoever asked it."""
    name = hashlib.sha256(json.dumps(messages, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]
    made = add_sample(db, SOURCE, name, messages)
    if made is not None:
        return made
    known = one(db, "SELECT id FROM samples WHERE source = ? AND source_id = ?", [SOURCE, name])
    assert known is not None
    return int(known["id"])


def _candidate(change: history.Recorder, sample_id: int, turn: Turn) -> int:
    return change.insert(
        "candidates",
        {
            "sample_id": sample_id,
            "text": text_of(turn.content),
            "model": turn.model,
            "adapter_id": turn.adapter_id,
            "settings": json.dumps({"chat_turn": turn.id}),
            "finish": turn.finish,
            "created_at": now(),
        },
    )
