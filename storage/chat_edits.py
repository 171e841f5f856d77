"""How a conversation goes on, and how what was said in it is changed: questions, answers, edits.

Asking on is no action of the undo log; edits, cuts and other answers to the same question are. What is answered to
an edited question belongs to the edit: one undo takes both back. Whoever asks on has accepted what was changed
before, and its actions can be undone no more: an undo would bring back turns that the later ones never saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlite_utils import Database

from storage import history
from storage.chats import add_turn, delete_turns, next_position, own_conversation, text_of
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.records import Conversation, Part, Turn, now
from storage.rows import one

TITLE_LENGTH = 80  # characters


@dataclass(frozen=True)
class Answer:
    """What a column answered.

    Attributes:
        model, adapter_id: who spoke, as in `Turn`.
        finish: stop, length, stopped or failed.
        settings: where it was drawn otherwise than its question says.
    """

    column_number: int
    model: str
    adapter_id: int | None
    text: str
    finish: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)


def ask(db: Database, user: str, conversation_id: int, content: list[Part], settings: Mapping[str, Any]) -> int:
    """Append a question; returns its turn.

    Raises:
        NotFound, UserError: as `own_conversation`.
    """
    with immediate(db):  # two tabs may ask at once: each question gets its own place
        known = own_conversation(db, conversation_id, user)
        _accept(db, known)
        return add_turn(db, conversation_id, next_position(known.turns), "user", content, settings=settings)


def replace_question(
    db: Database,
    user: str,
    conversation_id: int,
    turn_id: int,
    content: list[Part],
    settings: Mapping[str, Any],
) -> int:
    """Put a question in another one's place, of which nothing that followed stays; returns its turn.

    Raises:
        NotFound, UserError, Conflict: as `cut_from`.
    """
    with immediate(db):
        known, old = _question(db, user, conversation_id, turn_id)
        with history.action(db, user, f"question changed in conversation {conversation_id}") as change:
            _cut(db, change, known, old)
            made = change.insert(
                "turns",
                {
                    "conversation_id": conversation_id,
                    "position": old.position,
                    "role": "user",
                    "content": json.dumps(content, ensure_ascii=False),
                    "settings": json.dumps(dict(settings), ensure_ascii=False),
                    "created_at": now(),
                },
            )
            _entitle(change, known, old, content)
            return made


def cut_from(db: Database, user: str, conversation_id: int, turn_id: int) -> None:
    """Delete a question and all that followed, with the votes on it; undoable.

    Raises:
        NotFound: there is no such question of this person.
        UserError: the conversation is a contest's, whose answers stay as they are.
        Conflict: others have voted on what would go.
    """
    with immediate(db):
        known, old = _question(db, user, conversation_id, turn_id)
        with history.action(db, user, f"conversation {conversation_id} cut") as change:
            _cut(db, change, known, old)
            _entitle(change, known, old, [])


def add_answers(
    db: Database, conversation: Conversation, asked: Mapping[str, Any], answers: Sequence[Answer]
) -> None:
    """Store the answers to the question that `conversation` ends with: all or none.

    Args:
        asked: how the question was asked in the end, which may have taken several tries.

    Raises:
        NotFound: the conversation is gone.
        Conflict: the question is gone, or has been answered meanwhile.
    """
    question = conversation.turns[-1]
    with immediate(db):
        known = own_conversation(db, conversation.id, conversation.user)
        if all(turn.id != question.id for turn in known.turns):
            raise Conflict("The question was changed or undone meanwhile; open the conversation again.")
        if any(turn.position == question.position + 1 for turn in known.turns):
            raise Conflict("The question was answered from another tab first; open the conversation again.")
        action = _action_that_made(db, known, question)
        kept = {"settings": json.dumps(dict(asked), ensure_ascii=False)}
        if action is None:
            db.conn.execute("UPDATE turns SET settings = ? WHERE id = ?", [kept["settings"], question.id])
            for answer in answers:
                add_turn(
                    db,
                    conversation.id,
                    question.position + 1,
                    "assistant",
                    [{"type": "text", "text": answer.text}],
                    column_number=answer.column_number,
                    model=answer.model,
                    adapter_id=answer.adapter_id,
                    finish=answer.finish,
                    settings=answer.settings,
                )
            return
        with history.reopened(db, action) as change:
            change.update("turns", {"id": question.id}, kept)
            for answer in answers:
                change.insert("turns", _row(conversation.id, question.position + 1, answer))


def replace_answer(db: Database, conversation: Conversation, old: Turn, answer: Answer, *, going_on: bool) -> int:
    """Put another answer in an answer's place; the old one and the votes on it go into the undo log.

    Args:
        conversation: as it was when the answer was asked for.
        going_on: it is the same answer, gone on with.

    Raises:
        NotFound: the conversation is gone.
        UserError: it is a contest's.
        Conflict: the conversation has gone on, or the old answer is gone; or others have voted on it.
    """
    what = "gone on with" if going_on else "tried again"
    with immediate(db):
        known = own_conversation(db, conversation.id, conversation.user)
        _refuse_contest(known)
        if known.turns[-1].position != old.position or all(turn.id != old.id for turn in known.turns):
            raise Conflict("The conversation has gone on in another tab; open it again to see it.")
        label = f"answer {what} in conversation {conversation.id}"
        with history.action(db, conversation.user, label) as change:
            delete_turns(db, change, conversation.user, conversation.id, [old])
            return change.insert("turns", _row(conversation.id, old.position, answer))


def _row(conversation_id: int, position: int, answer: Answer) -> dict[str, Any]:
    return {
        "conversation_id": conversation_id,
        "position": position,
        "column_number": answer.column_number,
        "role": "assistant",
        "content": json.dumps([{"type": "text", "text": answer.text}], ensure_ascii=False),
        "model": answer.model,
        "adapter_id": answer.adapter_id,
        "finish": answer.finish,
        "settings": json.dumps(dict(answer.settings), ensure_ascii=False),
        "created_at": now(),
    }


def _question(db: Database, user: str, conversation_id: int, turn_id: int) -> tuple[Conversation, Turn]:
    known = own_conversation(db, conversation_id, user)
    _refuse_contest(known)
    for turn in known.turns:
        if turn.id == turn_id and turn.role == "user":
            return known, turn
    raise NotFound("This question is not there any more; open the conversation again.")


def _refuse_contest(conversation: Conversation) -> None:
    """What others are to vote on stays as it is."""
    if conversation.contest_id is not None:
        raise UserError(
            f"Conversation {conversation.id} belongs to a contest, whose answers stay as they are: ask on, or "
            "begin a conversation of your own."
        )


def _cut(db: Database, change: history.Recorder, conversation: Conversation, question: Turn) -> None:
    gone = [turn for turn in conversation.turns if turn.position >= question.position]
    delete_turns(db, change, conversation.user, conversation.id, gone)


def _entitle(change: history.Recorder, conversation: Conversation, old: Turn, content: list[Part]) -> None:
    """The first question names the conversation; "" lets the next one do so."""
    if old.position == min(turn.position for turn in conversation.turns):
        title = " ".join(text_of(content).split())[:TITLE_LENGTH] or ("(image)" if content else "")
        change.update("conversations", {"id": conversation.id}, {"title": title})


def _action_that_made(db: Database, conversation: Conversation, turn: Turn) -> int | None:
    """The action that put a turn there and can still be undone; None for one that was simply asked."""
    found = one(
        db,
        f"""SELECT action_id FROM changes WHERE action_id IN ({_OPEN}) AND table_name = 'turns' AND before IS NULL
            AND row_key = ? ORDER BY action_id DESC LIMIT 1""",
        [conversation.user, conversation.created_at, json.dumps({"id": turn.id})],
    )
    return None if found is None else int(found["action_id"])


def _accept(db: Database, conversation: Conversation) -> None:
    """Mark what was changed in a conversation so far as beyond undoing."""
    db.conn.execute(
        f"""UPDATE actions SET refused_at = ? WHERE id IN (
              SELECT action_id FROM changes WHERE action_id IN ({_OPEN}) AND table_name = 'turns'
              AND coalesce(after, before) ->> 'conversation_id' = ?)""",
        [now(), conversation.user, conversation.created_at, conversation.id],
    )


# Those of the person, since the conversation began: only their changes are looked through.
_OPEN = "SELECT id FROM actions WHERE user = ? AND created_at >= ? AND undone_at IS NULL AND refused_at IS NULL"
