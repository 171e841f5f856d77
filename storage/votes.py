"""Votes between the answers of a chat.

A vote is of one round: one question of a conversation and what each of its two or three columns answered. It is
kept as comparisons of two answers each: "the middle one is best" of three is two of them, a tie is three. Every
change goes through the undo log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from sqlite_utils import Database

from storage import history
from storage.chats import get_conversation, text_of
from storage.contests import GIVEN
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.records import HIGHEST, LOWEST, METRICS, Conversation, Turn, now
from storage.rows import marks, rows
from storage.speakers import sides, speakers_of

Verdict = Literal["left", "right", "tie", "both bad"]
NEITHER: tuple[str, ...] = ("tie", "both bad")

Scores = Mapping[int, Mapping[str, int | None]]  # by the answer's turn: values of the metrics, None to clear one


@dataclass(frozen=True)
class Vote:
    """A person's vote on one round.

    Attributes:
        first_turn_id: of the round's first answer.
        best: "left", "middle", "right", "tie" or "both bad" (with three columns: none is good).
        pair_ids: of the pairs that were made of it.
    """

    first_turn_id: int
    best: str
    note: str
    user: str
    pair_ids: tuple[int, ...]
    created_at: str


@dataclass(frozen=True)
class Round:
    """One question of a conversation with all its answers.

    Attributes:
        before: the turns up to and with the question.
        answers: from left to right, one a column.
        settings: how the question was asked.
    """

    before: tuple[Turn, ...]
    answers: tuple[Turn, ...]
    settings: Mapping[str, Any]

    @property
    def first(self) -> int:
        """The id of its first answer's turn, by which the round is known."""
        return self.answers[0].id

    @property
    def sides(self) -> tuple[str, ...]:
        return sides(len(self.answers))


@dataclass(frozen=True)
class Duel:
    """One comparison with who stood on which side, as `vote_stats` counts them.

    Attributes:
        left, right: (base model or MODEL@ENDPOINT, adapter or None).
        left_length, right_length: of the answers, in characters.
        category: of the prompt, where a contest's list names one.
    """

    conversation_id: int
    left: tuple[str, int | None]
    right: tuple[str, int | None]
    verdict: Verdict
    left_length: int
    right_length: int
    user: str
    category: str = ""


def rounds_of(conversation: Conversation) -> list[Round]:
    """The questions that all columns have answered, oldest first.

    Answers that broke off are none, nor are those that were stopped before a word, or that nobody spoke.
    """
    number = len(speakers_of(conversation))
    found: list[Round] = []
    for place, turn in enumerate(conversation.turns):
        if turn.role != "user":
            continue
        answers = {
            other.column_number: other
            for other in conversation.turns
            if other.role == "assistant" and other.position == turn.position + 1 and _is_whole(other)
        }
        if answers.keys() >= set(range(number)):
            said = tuple(answers[side] for side in range(number))
            found.append(Round(conversation.turns[: place + 1], said, turn.settings or conversation.settings))
    return found


def _is_whole(answer: Turn) -> bool:
    if answer.finish in ("failed", GIVEN):
        return False
    return bool(answer.finish == "stop" or text_of(answer.content).strip())


def last_round(conversation: Conversation) -> Round | None:
    """The round that is voted on: the last one, in a contest the one of its last question.

    None while a newer question waits for its answers: what it brings is what the next vote will be on.
    """
    found = rounds_of(conversation)
    if conversation.contest_id is not None:
        position = conversation.settings.get("last_answer")
        return next((one for one in found if one.answers[0].position == position), None)
    if not found or found[-1].answers[0].position != conversation.turns[-1].position:
        return None
    return found[-1]


def has_voted(db: Database, conversation: Conversation, user: str) -> bool:
    """Whether a person has voted in a conversation; in a contest's, on the round that is the contest's."""
    voted = votes_of(db, conversation.id, user)
    if conversation.contest_id is None:
        return bool(voted)
    found = last_round(conversation)
    return found is not None and found.first in voted


def round_at(db: Database, user: str, conversation_id: int, first_turn_id: int) -> Round:
    """The round whose first answer is this turn.

    Raises:
        NotFound: there is no such conversation that this person may see, or no such round in it (any more).
    """
    for found in rounds_of(get_conversation(db, conversation_id, user)):
        if found.first == first_turn_id:
            return found
    raise NotFound("These answers are not there any more; open the conversation again.")


def votes_of(db: Database, conversation_id: int, user: str) -> dict[int, Vote]:
    """A person's votes in a conversation, by the first answer's turn of each round."""
    compared: dict[int, list[dict[str, Any]]] = {}
    for row in comparisons_of(db, conversation_id, user):
        compared.setdefault(row["position"], []).append(row)
    if not compared:
        return {}
    places = list(compared)
    columns = rows(
        db,
        f"""SELECT position, min(CASE column_number WHEN 0 THEN id END) AS first, count(*) AS number FROM turns
            WHERE conversation_id = ? AND role = 'assistant' AND position IN ({marks(places)})
            GROUP BY position""",
        [conversation_id, *places],
    )
    return {row["first"]: _vote(row["first"], row["number"], compared[row["position"]]) for row in columns}


def _vote(first: int, number: int, compared: list[dict[str, Any]]) -> Vote:
    one = compared[0]
    best = one["verdict"]
    if best not in NEITHER:
        best = sides(number)[one["left_column"] if best == "left" else one["right_column"]]
    pair_ids = tuple(row["pair_id"] for row in compared if row["pair_id"] is not None)
    return Vote(first, best, one["note"], one["user"], pair_ids, one["created_at"])


def comparisons_of(db: Database, conversation_id: int, user: str) -> list[dict[str, Any]]:
    """The rows of a person's votes in a conversation, with the places of the answers."""
    return rows(
        db,
        """SELECT v.*, l.position, l.column_number AS left_column, r.column_number AS right_column
           FROM votes v JOIN turns l ON l.id = v.left_turn_id JOIN turns r ON r.id = v.right_turn_id
           WHERE l.conversation_id = ? AND v.user = ? ORDER BY v.id""",
        [conversation_id, user],
    )


def cast_vote(
    db: Database,
    user: str,
    conversation_id: int,
    first_turn_id: int,
    best: str,
    note: str = "",
    scores: Scores | None = None,
) -> Vote:
    """Vote on one round, or change one's vote; one undoable action.

    Args:
        scores: values of metrics for the round's answers, set together with the vote.

    Raises:
        UserError: there is no such verdict, or a score is none.
        NotFound: there is no such conversation for this person, or no such round in it.
        Conflict: a pair was made of the vote already; it is undone or changed on Pairs.
    """
    with immediate(db):  # a pair that is made of it meanwhile would say another thing than the vote
        found = round_at(db, user, conversation_id, first_turn_id)
        wanted = _comparisons(found, best)
        check_scores(found, scores or {})
        known = {
            (row["left_turn_id"], row["right_turn_id"]): row
            for row in comparisons_of(db, conversation_id, user)
            if row["position"] == found.answers[0].position
        }
        for turns, row in known.items():
            if row["pair_id"] is not None and wanted.get(turns) != row["verdict"]:
                raise Conflict(
                    f"Pair {row['pair_id']} was made of this vote; flip or reject it on Pairs, or undo it first."
                )
        said = {turns: (row["verdict"], row["note"]) for turns, row in known.items()}
        fresh = _changed(db, user, found, scores or {})
        if not fresh and said == {turns: (verdict, note.strip()) for turns, verdict in wanted.items()}:
            return votes_of(db, conversation_id, user)[first_turn_id]  # an undo that changes nothing helps nobody
        with history.action(db, user, f"vote: {best} in conversation {conversation_id}") as change:
            for turns, row in known.items():
                if turns not in wanted:
                    change.delete("votes", {"id": row["id"]})
            for turns, verdict in wanted.items():
                values = {"verdict": verdict, "note": note.strip()}
                if turns in known:
                    change.update("votes", {"id": known[turns]["id"]}, values)
                else:
                    named = {"left_turn_id": turns[0], "right_turn_id": turns[1], "user": user}
                    change.insert("votes", {**named, **values, "created_at": now()})
            _write_scores(change, user, fresh)
        return votes_of(db, conversation_id, user)[first_turn_id]


def _comparisons(found: Round, best: str) -> dict[tuple[int, int], str]:
    """{(left turn, right turn): verdict}: the best against each other one, or all as equals."""
    if best not in (*found.sides, *NEITHER):
        raise UserError(f"verdict = {best!r}: use one of {', '.join((*found.sides, *NEITHER))}.")
    ids = [turn.id for turn in found.answers]
    if best in NEITHER:
        return dict.fromkeys(combinations(ids, 2), best)
    winner = ids[found.sides.index(best)]
    return {
        (one, two): "left" if winner == one else "right"
        for one, two in combinations(ids, 2)
        if winner in (one, two)
    }


def check_scores(found: Round, scores: Scores) -> None:
    """Raise UserError where a score is of another answer, of no metric, or no whole number from 0 to 4."""
    ids = {turn.id for turn in found.answers}
    for turn_id, values in scores.items():
        if turn_id not in ids:
            raise UserError(f"scores of answer {turn_id}: it is not one of those that are voted on.")
        for metric, value in values.items():
            if metric not in METRICS:
                raise UserError(f"Unknown metric {metric!r}; use one of {', '.join(METRICS)}.")
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and LOWEST <= value <= HIGHEST):
                raise UserError(f"{metric} = {value!r}: give a whole number from {LOWEST} to {HIGHEST}.")


def set_turn_scores(
    db: Database, user: str, conversation_id: int, first_turn_id: int, scores: Scores
) -> dict[int, dict[str, int]]:
    """Set or clear metrics of a round's answers, without a vote; undoable. Returns all of the round's.

    Raises:
        UserError, NotFound: as `cast_vote`.
    """
    with immediate(db):
        found = round_at(db, user, conversation_id, first_turn_id)
        check_scores(found, scores)
        fresh = _changed(db, user, found, scores)
        if fresh:
            with history.action(db, user, f"scores of answers in conversation {conversation_id}") as change:
                _write_scores(change, user, fresh)
        return turn_scores(db, user, [turn.id for turn in found.answers])


def _changed(db: Database, user: str, found: Round, scores: Scores) -> Scores:
    """Those of the scores that differ from what is stored."""
    known = turn_scores(db, user, [turn.id for turn in found.answers])
    return {
        turn_id: changed
        for turn_id, values in scores.items()
        if (changed := {name: value for name, value in values.items() if known[turn_id].get(name) != value})
    }


def _write_scores(change: history.Recorder, user: str, scores: Scores) -> None:
    for turn_id, values in scores.items():
        for metric, value in values.items():
            key = {"turn_id": turn_id, "user": user, "metric": metric}
            if value is None:
                change.delete("turn_scores", key)
            else:
                change.upsert("turn_scores", key, {"value": value})


def turn_scores(db: Database, user: str, turn_ids: list[int]) -> dict[int, dict[str, int]]:
    """A person's metrics for each of these answers; {} for one without any."""
    found: dict[int, dict[str, int]] = {turn_id: {} for turn_id in turn_ids}
    for row in rows(
        db,
        f"SELECT turn_id, metric, value FROM turn_scores WHERE user = ? AND turn_id IN ({marks(turn_ids)})",
        [user, *turn_ids],
    ):
        found[row["turn_id"]][row["metric"]] = row["value"]
    return {turn_id: {name: known[name] for name in METRICS if name in known} for turn_id, known in found.items()}


# What the owner of a contest goes on to say in Chat is no part of it.
_OF_CONTEST = "AND c.contest_id = ? AND l.position = c.settings ->> 'last_answer'"


def duels(db: Database, contest_id: int | None = None) -> list[Duel]:
    """All comparisons between two different speakers, oldest first; of one contest, where one is named."""
    found = rows(
        db,
        f"""SELECT l.conversation_id, l.model AS left_model, l.adapter_id AS left_adapter, l.content AS left_said,
                  r.model AS right_model, r.adapter_id AS right_adapter, r.content AS right_said,
                  v.verdict, v.user,
                  coalesce(c.settings ->> 'category', '') AS category
           FROM votes v JOIN turns l ON l.id = v.left_turn_id JOIN turns r ON r.id = v.right_turn_id
           JOIN conversations c ON c.id = l.conversation_id
           WHERE (l.model IS NOT r.model OR l.adapter_id IS NOT r.adapter_id)
             {"" if contest_id is None else _OF_CONTEST} ORDER BY v.id""",
        [] if contest_id is None else [contest_id],
    )
    return [
        Duel(
            conversation_id=row["conversation_id"],
            left=(row["left_model"] or "", row["left_adapter"]),
            right=(row["right_model"] or "", row["right_adapter"]),
            verdict=row["verdict"],
            left_length=len(text_of(json.loads(row["left_said"]))),
            right_length=len(text_of(json.loads(row["right_said"]))),
            user=row["user"],
            category=row["category"],
        )
        for row in found
    ]
