"""Preference pairs made of votes: the best answer against each other one, the conversation as their prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from storage import history
from storage.chats import text_of, without_oldest_images
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.pairs import get_pair
from storage.records import Message, Pair, Turn, now
from storage.rows import one
from storage.samples import add_sample
from storage.scores import ensure_rater
from storage.votes import NEITHER, Round, comparisons_of, round_at, turn_scores, votes_of

SOURCE = "chat"


@dataclass(frozen=True)
class Made:
    """What came of a vote.

    Attributes:
        passed_over: the sides whose answers could be no part of a pair: empty, or the same as the best one.
    """

    pairs: tuple[Pair, ...]
    passed_over: tuple[str, ...] = ()


def make_pairs(db: Database, user: str, conversation_id: int, first_turn_id: int) -> Made:
    """Make accepted pairs of a vote: the answers become candidates of a sample, the conversation its prompt.

    After the first turn the columns have histories of their own: the prompt is what the best one had seen. Scores
    that the person gave the answers become scores of the candidates. One undo takes candidates, scores, pairs and
    the vote's marks back; the sample stays.

    Raises:
        NotFound: there is no vote on this round.
        UserError: the vote prefers none, or there is nothing to learn from the answers.
        Conflict: there are pairs of it already.
    """
    with immediate(db):  # two clicks make one pair
        found = round_at(db, user, conversation_id, first_turn_id)
        vote = votes_of(db, conversation_id, user).get(first_turn_id)
        if vote is None:
            raise NotFound("There is no vote on these answers yet; vote first.")
        if vote.pair_ids:
            raise Conflict(f"Pair {vote.pair_ids[0]} was made of this vote already; see it on Pairs.")
        if vote.best in NEITHER:
            raise UserError(f"The vote says {vote.best!r}: a pair needs one answer that is better than the other.")
        best = found.answers[found.sides.index(vote.best)]
        if best.finish == "stopped":
            raise UserError("The better answer was stopped before its end, and would be learned so: no pair made.")
        worse = [turn for turn in found.answers if turn is not best and _teaches(best, turn)]
        if not worse:
            raise UserError("An empty answer, or two that are the same, teach nothing: no pair was made.")
        pair_ids = _write(db, user, conversation_id, found, best, worse)
        passed = [turn for turn in found.answers if turn is not best and turn not in worse]
        names = tuple(found.sides[turn.column_number or 0] for turn in passed)
        return Made(tuple(get_pair(db, pair_id) for pair_id in pair_ids), names)


def _teaches(best: Turn, other: Turn) -> bool:
    texts = [text_of(turn.content).strip() for turn in (best, other)]
    return all(texts) and texts[0] != texts[1]


def _write(
    db: Database, user: str, conversation_id: int, found: Round, best: Turn, worse: Sequence[Turn]
) -> list[int]:
    compared = {
        frozenset((row["left_turn_id"], row["right_turn_id"])): row["id"]
        for row in comparisons_of(db, conversation_id, user)
    }
    scores = turn_scores(db, user, [turn.id for turn in (best, *worse)])
    without = best.settings.get("without_images", found.settings.get("without_images")) or 0
    messages = prompt_of(
        found.before, best.column_number or 0, str(found.settings.get("system") or ""), int(without)
    )
    pair_ids = []
    with history.action(db, user, f"pair of a vote in conversation {conversation_id}") as change:
        sample_id = _sample(db, messages)
        ids = {turn.id: _candidate(change, sample_id, turn) for turn in (best, *worse)}
        for turn in worse:
            values = {
                "sample_id": sample_id,
                "chosen_id": ids[best.id],
                "rejected_id": ids[turn.id],
                "origin": "vote",
                "status": "accepted",
                "user": user,
                "created_at": now(),
            }
            pair_ids.append(change.insert("pairs", values))
            change.update("votes", {"id": compared[frozenset((best.id, turn.id))]}, {"pair_id": pair_ids[-1]})
        _score(db, change, user, sample_id, {ids[turn_id]: known for turn_id, known in scores.items() if known})
    return pair_ids


def _score(
    db: Database, change: history.Recorder, user: str, sample_id: int, scores: dict[int, dict[str, int]]
) -> None:
    """The person's scores of candidates, in the one judgement that a person has of a sample."""
    if not scores:
        return
    rater_id = ensure_rater(db, "person", user)
    known = one(db, "SELECT id FROM judgements WHERE rater_id = ? AND sample_id = ?", [rater_id, sample_id])
    fresh = {"rater_id": rater_id, "sample_id": sample_id, "state": "ok", "created_at": now()}
    judgement_id = known["id"] if known else change.insert("judgements", fresh)
    for candidate_id, values in scores.items():
        change.upsert("scores", {"judgement_id": judgement_id, "candidate_id": candidate_id}, values)


def prompt_of(turns: Sequence[Turn], column: int, system: str = "", without_images: int = 0) -> list[Message]:
    """The messages that a column had seen when it answered the last of these turns.

    A question that it had not answered is put together with the next one, as it was sent; an empty answer that
    ended by itself is one (workbench/chat_history.py sends it).

    Args:
        system: the system prompt that it was asked with.
        without_images: how many of the oldest images were left out of what it was sent.
    """
    messages: list[Message] = []
    if system.strip():
        messages.append({"role": "system", "content": [{"type": "text", "text": system.strip()}]})
    for turn in without_oldest_images(turns, without_images):
        if turn.role == "assistant":
            said = text_of(turn.content) or turn.finish == "stop"
            if turn.column_number != column or not said:
                continue
        if messages and messages[-1]["role"] == turn.role:
            messages[-1] = {**messages[-1], "content": [*messages[-1]["content"], *turn.content]}
        else:
            messages.append({"role": turn.role, "content": list(turn.content)})
    return messages


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
