"""Conversations as JSONL: one line a conversation, each column's messages as its model saw them, and the votes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from sqlite_utils import Database

from storage.chats import get_conversation, list_conversations
from storage.records import Conversation
from storage.votes import prompt_of, votes_of
from workbench.chat_view import COLUMNS
from workbench.context import Context
from workbench.door import Door
from workbench.vote_desk import is_hidden

_MOST = 100_000
_NAMES = ("model", "adapters")  # settings that say who speaks


def routes(context: Context, doorkeeper: Door) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.get("/conversations.jsonl")
    def export(
        request: Request, conversation: Annotated[int | None, Query(ge=1, lt=2**63)] = None
    ) -> StreamingResponse:
        user = doorkeeper.identify(request)
        assert user is not None, "the door lets nobody else in"
        name = f"conversation-{conversation}" if conversation else "conversations"
        with context.database() as db:  # an unknown one is told before anything is sent
            chosen = (
                [get_conversation(db, conversation, user).id]
                if conversation is not None
                else [one.id for one in list_conversations(db, user, _MOST)]
            )
        headers = {
            "content-disposition": f'attachment; filename="{name}.jsonl"',
            "cache-control": "private, no-store",
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(lines(context, user, chosen), media_type="application/jsonl", headers=headers)

    return router


def lines(context: Context, user: str, conversation_ids: list[int]) -> Iterator[str]:
    """The conversations as lines, read one by one."""
    for number in reversed(conversation_ids):
        with context.database() as db:
            yield json.dumps(as_row(db, get_conversation(db, number, user)), ensure_ascii=False) + "\n"


def as_row(db: Database, conversation: Conversation) -> dict[str, Any]:
    """A conversation as one object; images by their sha256. Who speaks stays secret while it is blind."""
    votes = votes_of(db, conversation.id, conversation.user)
    hidden = is_hidden(db, conversation)
    settings = {name: value for name, value in conversation.settings.items() if not (hidden and name in _NAMES)}
    return {
        "id": conversation.id,
        "title": conversation.title,
        "created_at": conversation.created_at,
        "settings": settings,
        "columns": {name: _column(conversation, number, hidden) for number, name in enumerate(COLUMNS)},
        "votes": [
            {
                "after_turn": next(turn.position for turn in conversation.turns if turn.id == left),
                "verdict": vote.verdict,
                "note": vote.note,
                "pair": vote.pair_id,
            }
            for left, vote in sorted(votes.items())
        ],
    }


def _column(conversation: Conversation, number: int, hidden: bool) -> dict[str, Any]:
    spoke = [turn for turn in conversation.turns if turn.role == "assistant" and turn.column_number == number]
    return {
        "model": spoke[-1].model if spoke and not hidden else None,
        "adapter": spoke[-1].adapter_id if spoke and not hidden else None,
        "messages": prompt_of(conversation.turns, number),
    }
