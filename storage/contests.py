"""Contests: lists of prompts that two or three speakers answer in a job, for people to vote on one by one, blind.

Each prompt becomes a conversation as its answers come. Who stands on which side differs from prompt to prompt and
is the conversation's (`settings["columns"]`); the contest's own columns are in the order in which they were asked
for. Every user may see and vote on a contest's conversations; the contest is its owner's.

A conversation's settings are a chat's, and {"blind", "category", "prompt_id", "reference"?, "first_question",
"last_answer"}: the positions of the first question that was asked and of the answers to the last one. What its
owner goes on to say afterwards lies behind these, and is no part of the contest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from storage import history
from storage.chats import add_turn
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.lifecycle import ENDED
from storage.records import LONGEST_NAME, Conversation, Job, Message, Part, now
from storage.rows import BLANKS, one, rows, with_json
from storage.speakers import read_speaker

#: The finish of an answer that a prompt brought along: nobody in the contest spoke it.
GIVEN = "given"


@dataclass(frozen=True)
class Contest:
    """One contest, as a person sees it.

    Attributes:
        settings: {"model", "columns", "prompts", "blind", "file", and how answers are drawn}.
        total: prompts.
        answered: those to whose last question every column has an answer: they can be voted on.
        partial: those that have some answers and not all: the job is at them, or one could not be given.
        voted: those of the answered ones that this person has voted on.
    """

    id: int
    name: str
    user: str
    job_id: int
    settings: dict[str, Any]
    created_at: str
    total: int
    answered: int
    partial: int
    voted: int


@dataclass(frozen=True)
class Entry:
    """A prompt of a contest that has at least one answer. `complete` and `voted` as `Contest` counts them."""

    number: int
    conversation_id: int
    title: str
    category: str
    complete: bool
    voted: bool


# Conversations of contests with what a person has done there. An answer that was cut off before a word cannot be
# voted on, so its conversation stays partial (storage/votes.py).
_ENTRIES = """
    SELECT c.contest_id, c.number, c.id AS conversation_id, c.title,
           coalesce(c.settings ->> 'category', '') AS category,
           (SELECT count(DISTINCT t.column_number) FROM turns t
            WHERE t.conversation_id = c.id AND t.role = 'assistant' AND t.position = c.settings ->> 'last_answer'
              AND (t.finish = 'stop' OR (t.finish IS NOT 'failed'
                   AND trim(coalesce(t.content ->> '$[0].text', ''), :blanks) <> '')))
             >= json_array_length(c.settings, '$.columns') AS complete,
           EXISTS (SELECT 1 FROM turns t JOIN votes v ON v.left_turn_id = t.id
                   WHERE t.conversation_id = c.id AND t.position = c.settings ->> 'last_answer'
                     AND v.user = :user) AS voted
    FROM conversations c WHERE c.contest_id IS NOT NULL"""


def create_contest(db: Database, job: Job, name: str, settings: Mapping[str, Any]) -> int:
    """The contest of a job that is just queued; returns its id. There is one a job.

    Args:
        settings: with "columns" as they are spelt, "model", and "prompts", their number.
    """
    cursor = db.conn.execute(
        "INSERT INTO contests (name, user, job_id, settings, created_at) VALUES (?, ?, ?, ?, ?)",
        [name, job.user, job.id, json.dumps(dict(settings), ensure_ascii=False), now()],
    )
    return int(cursor.lastrowid or 0)


def list_contests(db: Database, user: str) -> list[Contest]:
    """All contests, newest first, with this person's votes counted."""
    return _contests(db, user, "1", {})


def get_contest(db: Database, contest_id: int, user: str) -> Contest:
    """Raises NotFound."""
    found = _contests(db, user, "x.id = :contest", {"contest": contest_id})
    if not found:
        raise NotFound(f"There is no contest {contest_id} (any more); choose another.")
    return found[0]


def contest_of(db: Database, conversation: Conversation, user: str) -> Contest | None:
    """The contest that a conversation belongs to, if any."""
    return None if conversation.contest_id is None else get_contest(db, conversation.contest_id, user)


def contest_of_job(db: Database, job_id: int, user: str = "") -> Contest | None:
    """What a contest's job is for; None for other jobs, and where the contest was deleted."""
    found = _contests(db, user, "x.job_id = :job", {"job": job_id})
    return found[0] if found else None


def entries(db: Database, contest_id: int, user: str) -> list[Entry]:
    """The prompts of a contest that have answers, in their order."""
    found = rows(
        db,
        f"SELECT * FROM ({_ENTRIES} AND c.contest_id = :contest) ORDER BY number",
        {"user": user, "blanks": BLANKS, "contest": contest_id},
    )
    return [
        Entry(
            number=row["number"],
            conversation_id=row["conversation_id"],
            title=row["title"],
            category=row["category"],
            complete=bool(row["complete"]),
            voted=bool(row["voted"]),
        )
        for row in found
    ]


def conversation_at(db: Database, contest_id: int, number: int) -> int | None:
    """The conversation of a prompt; None where it has no answer yet, or the conversation was deleted."""
    found = one(db, "SELECT id FROM conversations WHERE contest_id = ? AND number = ?", [contest_id, number])
    return None if found is None else int(found["id"])


def next_to_vote(db: Database, contest_id: int, user: str, after: int | None = None) -> int | None:
    """The conversation that a person votes on next, or None where none is left.

    Args:
        after: the number of a prompt: the first one behind it, else the first of all.
    """
    found = one(
        db,
        f"""SELECT conversation_id FROM ({_ENTRIES} AND c.contest_id = :contest) WHERE complete AND NOT voted
            ORDER BY number <= :after, number LIMIT 1""",
        {"user": user, "blanks": BLANKS, "contest": contest_id, "after": -1 if after is None else after},
    )
    return None if found is None else int(found["conversation_id"])


def rename_contest(db: Database, user: str, contest_id: int, name: str) -> Contest:
    """Give a contest another name; undoable.

    Raises:
        NotFound: there is no such contest.
        UserError: it is somebody else's; the name is empty or too long.
    """
    with immediate(db):
        _own(db, user, contest_id, "rename")
        plain = " ".join(name.split())
        if not 0 < len(plain) <= LONGEST_NAME:
            raise UserError(f"name = {name[:100]!r}: give 1 to {LONGEST_NAME} characters.")
        with history.action(db, user, f"contest {contest_id} renamed to {plain}") as change:
            change.update("contests", {"id": contest_id}, {"name": plain})
    return get_contest(db, contest_id, user)


def delete_contest(db: Database, user: str, contest_id: int) -> None:
    """Delete a contest with its conversations and everybody's votes on them; undoable. Pairs made of votes stay.

    Raises:
        NotFound: there is no such contest.
        UserError: it is somebody else's.
        Conflict: its job has not ended.
    """
    with immediate(db):  # no answer and no vote comes in between
        found = _own(db, user, contest_id, "delete")
        status = one(db, "SELECT status FROM jobs WHERE id = ?", [found.job_id])
        if status is not None and status["status"] not in ENDED:
            raise Conflict(f"Job {found.job_id} is still at this contest; stop it first, or wait for its end.")
        inside = "SELECT t.id FROM turns t JOIN conversations c ON c.id = t.conversation_id WHERE c.contest_id = ?"
        with history.action(db, user, f"contest {found.name} deleted") as change:
            # What names others goes first, so that none goes by itself and is missed by an undo.
            for row in rows(db, f"SELECT id FROM votes WHERE left_turn_id IN ({inside})", [contest_id]):
                change.delete("votes", row)
            scored = f"SELECT turn_id, user, metric FROM turn_scores WHERE turn_id IN ({inside})"
            for row in rows(db, scored, [contest_id]):
                change.delete("turn_scores", row)
            for row in rows(db, inside, [contest_id]):
                change.delete("turns", row)
            for row in rows(db, "SELECT id FROM conversations WHERE contest_id = ?", [contest_id]):
                change.delete("conversations", row)
            change.delete("contests", {"id": contest_id})


def add_contest_answer(
    db: Database,
    job: Job,
    *,
    number: int,
    turn: int,
    column: int,
    text: str,
    finish: str,
    prompt: Mapping[str, Any] | None = None,
    question: Sequence[Part] | None = None,
) -> None:
    """Store what a column of a contest answered to one question; the same answer is stored once.

    Nothing is stored where the contest, or the conversation of this prompt, was deleted meanwhile.

    Args:
        number: the prompt's place in the list.
        turn: which of its questions, from 0.
        column: by its place in the contest's columns.
        prompt: with the first answer to a prompt: {"id", "category", "reference", "system", "messages", "turns",
            "order"}; messages as samples have them, the last is the question; `turns` is the number of questions,
            `order` holds the columns' places from left to right.
        question: with an answer to a further question: its content.
    """
    contest = one(db, "SELECT id, settings FROM contests WHERE job_id = ?", [job.id])
    if contest is None:
        return
    settings = json.loads(contest["settings"])
    with immediate(db):
        conversation_id = conversation_at(db, contest["id"], number)
        if conversation_id is None:
            if prompt is None:
                return
            conversation_id = _begin(db, job, contest["id"], number, settings, prompt)
        held = one(db, "SELECT settings FROM conversations WHERE id = ?", [conversation_id])
        assert held is not None
        shown = json.loads(held["settings"])
        position = shown["first_question"] + 2 * turn
        if question is not None and not _has(db, conversation_id, position, None):
            add_turn(db, conversation_id, position, "user", list(question), settings=_asked(shown))
        side = shown["columns"].index(settings["columns"][column])
        if _has(db, conversation_id, position + 1, side):
            return
        speaker = read_speaker(settings["columns"][column], settings["model"])
        add_turn(
            db,
            conversation_id,
            position + 1,
            "assistant",
            [{"type": "text", "text": text}],
            column_number=side,
            model=speaker.model,
            adapter_id=speaker.adapter,
            finish=finish,
        )


def _begin(
    db: Database,
    job: Job,
    contest_id: int,
    number: int,
    settings: Mapping[str, Any],
    prompt: Mapping[str, Any],
) -> int:
    """The conversation of a prompt, up to its first question."""
    messages: list[Message] = [message for message in prompt["messages"] if message["role"] != "system"]
    first = len(messages) - 1
    shown = {
        "model": settings["model"],
        "columns": [settings["columns"][place] for place in prompt["order"]],
        **settings["drawn"],
        "system": prompt["system"],
        "blind": settings["blind"],
        "category": prompt["category"],
        "prompt_id": prompt["id"],
        "first_question": first,
        "last_answer": first + 2 * prompt["turns"] - 1,
    }
    if prompt.get("reference"):
        shown["reference"] = prompt["reference"]
    cursor = db.conn.execute(
        "INSERT INTO conversations (user, settings, created_at, contest_id, number) VALUES (?, ?, ?, ?, ?)",
        [job.user, json.dumps(shown, ensure_ascii=False), now(), contest_id, number],
    )
    conversation_id = int(cursor.lastrowid or 0)
    for position, message in enumerate(messages):
        content = message["content"]
        parts: list[Part] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        if message["role"] == "user":
            add_turn(db, conversation_id, position, "user", parts, settings=_asked(shown))
            continue
        for side in range(len(shown["columns"])):  # what came with the prompt is every column's history
            add_turn(db, conversation_id, position, "assistant", parts, column_number=side, finish=GIVEN)
    return conversation_id


def _asked(shown: Mapping[str, Any]) -> dict[str, Any]:
    """How a question was asked, as `Turn.settings` has it: the conversation's, but for what is the contest's."""
    own = {"blind", "category", "prompt_id", "reference", "first_question", "last_answer"}
    return {name: value for name, value in shown.items() if name not in own}


def _has(db: Database, conversation_id: int, position: int, side: int | None) -> bool:
    found = one(
        db,
        "SELECT 1 FROM turns WHERE conversation_id = ? AND position = ? AND column_number IS ?",
        [conversation_id, position, side],
    )
    return found is not None


def _own(db: Database, user: str, contest_id: int, act: str) -> Contest:
    found = get_contest(db, contest_id, user)
    if found.user != user:
        raise UserError(f"Contest {contest_id} ({found.name}) is {found.user}'s, who alone can {act} it.")
    return found


def _contests(db: Database, user: str, condition: str, values: Mapping[str, Any]) -> list[Contest]:
    found = rows(
        db,
        f"""SELECT x.*, x.settings ->> 'prompts' AS total, coalesce(sum(e.complete), 0) AS answered,
                   coalesce(sum(NOT e.complete), 0) AS partial, coalesce(sum(e.complete AND e.voted), 0) AS voted
            FROM contests x LEFT JOIN ({_ENTRIES}) e ON e.contest_id = x.id
            WHERE {condition} GROUP BY x.id ORDER BY x.id DESC""",
        {"user": user, "blanks": BLANKS, **values},
    )
    return [Contest(**with_json(row, "settings")) for row in found]
