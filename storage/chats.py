"""Conversations: turns of text and images, one answer a column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sqlite_utils import Database

from storage import history
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.records import Conversation, Part, Turn, now
from storage.rows import one, rows, with_json
from storage.users import ensure_user


def text_of(parts: Sequence[Part]) -> str:
    """The text of a turn's content."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


def start_conversation(db: Database, user: str, settings: dict[str, Any]) -> int:
    with immediate(db):
        ensure_user(db, user)
        cursor = db.conn.execute(
            "INSERT INTO conversations (user, settings, created_at) VALUES (?, ?, ?)",
            [user, json.dumps(settings), now()],
        )
    return int(cursor.lastrowid or 0)


def add_turn(
    db: Database,
    conversation_id: int,
    position: int,
    role: Literal["system", "user", "assistant"],
    content: list[Part],
    *,
    column_number: int | None = None,
    model: str | None = None,
    adapter_id: int | None = None,
    finish: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> int:
    """Append a turn; the first user text becomes the conversation's title."""
    with immediate(db):
        cursor = db.conn.execute(
            "INSERT INTO turns (conversation_id, position, column_number, role, content, model, adapter_id,"
            " finish, settings, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                conversation_id,
                position,
                column_number,
                role,
                json.dumps(content, ensure_ascii=False),
                model,
                adapter_id,
                finish,
                json.dumps(settings or {}, ensure_ascii=False),
                now(),
            ],
        )
        if role == "user":
            text = " ".join(part["text"] for part in content if part["type"] == "text").strip()
            db.conn.execute(
                "UPDATE conversations SET title = ? WHERE id = ? AND title = ''",
                [text[:80] or "(image)", conversation_id],
            )
    return int(cursor.lastrowid or 0)


def get_conversation(db: Database, conversation_id: int, user: str) -> Conversation:
    """A conversation of this user, or one of a contest, with its turns in order.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    found = one(
        db,
        "SELECT * FROM conversations WHERE id = ? AND (user = ? OR contest_id IS NOT NULL)",
        [conversation_id, user],
    )
    if found is None:
        raise NotFound(f"There is no conversation {conversation_id} of yours; start a new one.")
    turns = rows(
        db,
        "SELECT id, position, column_number, role, content, model, adapter_id, finish, settings"
        " FROM turns WHERE conversation_id = ? ORDER BY position, column_number, id",
        [conversation_id],
    )
    return Conversation(
        **with_json(found, "settings"),
        turns=tuple(Turn(**with_json(turn, "content", "settings")) for turn in turns),
    )


def own_conversation(db: Database, conversation_id: int, user: str) -> Conversation:
    """`get_conversation` for whoever wants to ask in it.

    Raises:
        NotFound: there is none, or it is somebody else's.
        UserError: it is another person's contest's.
    """
    found = get_conversation(db, conversation_id, user)
    if found.user != user:
        raise UserError(
            f"Conversation {conversation_id} belongs to a contest of {found.user}: vote on it, and ask in one of "
            "your own."
        )
    return found


def next_position(turns: Sequence[Turn]) -> int:
    """Where the next question goes; the place after an open one stays free for an answer still on its way."""
    if not turns:
        return 0
    return turns[-1].position + (2 if turns[-1].role == "user" else 1)


def without_oldest_images(turns: Sequence[Turn], number: int) -> tuple[Turn, ...]:
    """The same turns less so many images, counted from the first turn on.

    A turn that had nothing else says "(image)", so that it keeps its place.
    """
    kept: list[Turn] = []
    for turn in turns:
        content: list[Part] = []
        for part in turn.content:
            if part["type"] == "image" and number > 0:
                number -= 1
            else:
                content.append(part)
        kept.append(replace(turn, content=content or (turn.content and [{"type": "text", "text": "(image)"}])))
    return tuple(kept)


def list_conversations(db: Database, user: str, limit: int = 50, search: str = "") -> list[Conversation]:
    """The user's conversations, newest first, without their turns and without those of contests.

    Args:
        search: words that all stand somewhere in a conversation, in any turn; "" for no choice.
    """
    conditions, values = ["user = ?", "contest_id IS NULL"], [user]
    for word in search.split():
        conditions.append(
            "EXISTS (SELECT 1 FROM turns t, json_each(t.content) p WHERE t.conversation_id = conversations.id"
            " AND p.value ->> 'text' LIKE ? ESCAPE '\\')"
        )
        plain = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        values.append(f"%{plain}%")
    return [
        Conversation(**with_json(row, "settings"), turns=())
        for row in rows(
            db,
            f"SELECT * FROM conversations WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?",
            [*values, limit],
        )
    ]


def delete_conversation(db: Database, user: str, conversation_id: int) -> None:
    """Delete a conversation with its turns and votes; undoable. Pairs made of its votes stay.

    Raises:
        NotFound: there is none, or it is somebody else's.
        Conflict: it is a contest's, and others have voted on it.
    """
    with immediate(db):  # a turn that comes in between would go without a note in the undo log
        found = own_conversation(db, conversation_id, user)
        with history.action(db, user, f"conversation {conversation_id} deleted") as change:
            delete_turns(db, change, user, conversation_id, found.turns)
            change.delete("conversations", {"id": conversation_id})


def delete_turns(
    db: Database, change: history.Recorder, user: str, conversation_id: int, turns: Sequence[Turn]
) -> None:
    """Delete turns of a conversation with the votes and scores on them; pairs made of the votes stay.

    A vote goes as a whole: among three answers it is several comparisons, and those of the two that stay would
    read as a vote on the new answer as well.

    Raises:
        Conflict: somebody else has voted on one.
    """
    ids = {turn.id for turn in turns}
    places = {turn.position for turn in turns if turn.role == "assistant"}
    votes = rows(
        db,
        "SELECT v.id, v.user, t.position FROM votes v"
        " JOIN turns t ON t.id = v.left_turn_id WHERE t.conversation_id = ? ORDER BY v.id",
        [conversation_id],
    )
    votes = [row for row in votes if row["position"] in places]
    scores = rows(
        db,
        "SELECT s.turn_id, s.user, s.metric FROM turn_scores s JOIN turns t ON t.id = s.turn_id"
        " WHERE t.conversation_id = ? ORDER BY s.turn_id, s.user, s.metric",
        [conversation_id],
    )
    scores = [row for row in scores if row["turn_id"] in ids]
    if any(row["user"] != user for row in (*votes, *scores)):
        raise Conflict("Others have voted on these answers: they stay as they are. Ask in a new conversation.")
    for row in votes:
        change.delete("votes", {"id": row["id"]})
    for row in scores:
        change.delete("turn_scores", row)
    for turn in turns:
        change.delete("turns", {"id": turn.id})
