"""Conversations: turns of text and images, one answer a column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from sqlite_utils import Database

from storage import history
from storage.database import immediate
from storage.errors import NotFound
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
) -> int:
    """Append a turn; the first user text becomes the conversation's title."""
    with immediate(db):
        cursor = db.conn.execute(
            "INSERT INTO turns (conversation_id, position, column_number, role, content, model, adapter_id,"
            " finish, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                conversation_id,
                position,
                column_number,
                role,
                json.dumps(content, ensure_ascii=False),
                model,
                adapter_id,
                finish,
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
    """A conversation of this user with its turns, in order.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    found = one(db, "SELECT * FROM conversations WHERE id = ? AND user = ?", [conversation_id, user])
    if found is None:
        raise NotFound(f"There is no conversation {conversation_id} of yours; start a new one.")
    turns = rows(
        db,
        "SELECT id, position, column_number, role, content, model, adapter_id, finish FROM turns"
        " WHERE conversation_id = ? ORDER BY position, column_number, id",
        [conversation_id],
    )
    return Conversation(
        **with_json(found, "settings"), turns=tuple(Turn(**with_json(turn, "content")) for turn in turns)
    )


def list_conversations(db: Database, user: str, limit: int = 50, search: str = "") -> list[Conversation]:
    """The user's conversations, newest first, without their turns.

    Args:
        search: words that all stand somewhere in a conversation, in any turn; "" for no choice.
    """
    conditions, values = ["user = ?"], [user]
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
    """
    with immediate(db):  # a turn that comes in between would go without a note in the undo log
        found = get_conversation(db, conversation_id, user)
        votes = rows(
            db,
            "SELECT v.id FROM votes v JOIN turns t ON t.id = v.left_turn_id WHERE t.conversation_id = ?",
            [conversation_id],
        )
        with history.action(db, user, f"conversation {conversation_id} deleted") as change:
            for row in votes:
                change.delete("votes", {"id": row["id"]})
            for turn in found.turns:
                change.delete("turns", {"id": turn.id})
            change.delete("conversations", {"id": conversation_id})
