"""Conversations as JSONL: one line a conversation, each column's messages as its model saw them, and the votes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from sqlite_utils import Database

from storage.chats import get_conversation, list_conversations
from storage.contests import entries, get_contest
from storage.errors import NotFound
from storage.records import Conversation
from storage.speakers import sides, speakers_of
from storage.vote_pairs import prompt_of
from storage.votes import turn_scores, votes_of
from workbench.context import Context
from workbench.door import Door
from workbench.vote_desk import is_hidden

_MOST = 100_000
_NAMES = ("model", "adapters", "columns")  # settings that say who speaks


def routes(context: Context, doorkeeper: Door) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.get("/conversations.jsonl")
    def export(
        request: Request,
        conversation: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
        contest: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    ) -> StreamingResponse:
        user = doorkeeper.identify(request)
        assert user is not None, "the door lets nobody else in"
        with context.database() as db:  # an unknown one is told before anything is sent
            if conversation is not None:
                name, chosen = f"conversation-{conversation}", [get_conversation(db, conversation, user).id]
            elif contest is not None:
                prompts = entries(db, get_contest(db, contest, user).id, user)
                name, chosen = f"contest-{contest}", [entry.conversation_id for entry in prompts]
            else:
                own = list_conversations(db, user, _MOST)
                name, chosen = "conversations", [one.id for one in reversed(own)]
        headers = {
            "content-disposition": f'attachment; filename="{name}.jsonl"',
            "cache-control": "private, no-store",
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(lines(context, user, chosen), media_type="application/jsonl", headers=headers)

    return router


def lines(context: Context, user: str, conversation_ids: list[int]) -> Iterator[str]:
    """The conversations as lines, read one by one; one that was deleted meanwhile is left out."""
    for number in conversation_ids:
        with context.database() as db:
            try:
                found = get_conversation(db, number, user)
            except NotFound:
                continue
            yield json.dumps(as_row(db, found, user), ensure_ascii=False) + "\n"


def as_row(db: Database, conversation: Conversation, user: str) -> dict[str, Any]:
    """A conversation as one object; images by their sha256. Who speaks stays secret while it is blind."""
    hidden = is_hidden(db, conversation, user)
    names = sides(len(speakers_of(conversation)))
    found = {
        "id": conversation.id,
        "title": conversation.title,
        "created_at": conversation.created_at,
        "settings": _settings(conversation.settings, hidden),
        "questions": [
            {"turn": turn.position, **_settings(turn.settings, hidden)}
            for turn in conversation.turns
            if turn.role == "user" and turn.settings
        ],
        "columns": {name: _column(conversation, number, hidden) for number, name in enumerate(names)},
        "votes": _votes(db, conversation, user, names),
    }
    if conversation.contest_id is not None:
        found |= {"contest": conversation.contest_id, "number": conversation.number}
    return found


def _settings(settings: Mapping[str, Any], hidden: bool) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not (hidden and name in _NAMES)}


def _votes(db: Database, conversation: Conversation, user: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The user's own votes and scores, by the answers that they are on."""
    votes = votes_of(db, conversation.id, user)
    said = [turn for turn in conversation.turns if turn.role == "assistant"]
    scores = turn_scores(db, user, [turn.id for turn in said])
    found = []
    for position in dict.fromkeys(turn.position for turn in said):
        answers = [turn for turn in said if turn.position == position]
        vote = votes.get(answers[0].id)
        scored = {names[turn.column_number or 0]: scores[turn.id] for turn in answers if scores[turn.id]}
        if vote is None and not scored:
            continue
        told = {"verdict": vote.best, "note": vote.note, "pairs": list(vote.pair_ids)} if vote else {}
        found.append({"after_turn": position, **told, **({"scores": scored} if scored else {})})
    return found


def _column(conversation: Conversation, number: int, hidden: bool) -> dict[str, Any]:
    spoke = [turn for turn in conversation.turns if turn.role == "assistant" and turn.column_number == number]
    asked = next((turn.settings for turn in reversed(conversation.turns) if turn.role == "user"), {})
    system = str((asked or conversation.settings).get("system") or "")
    return {
        "model": spoke[-1].model if spoke and not hidden else None,
        "adapter": spoke[-1].adapter_id if spoke and not hidden else None,
        "messages": prompt_of(conversation.turns, number, system),
    }
