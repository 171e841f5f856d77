"""Conversations found again, exported and deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from factories import World
from storage import history
from storage.chats import add_turn, delete_conversation, get_conversation, list_conversations
from storage.errors import NotFound
from storage.upkeep import check
from storage.vote_pairs import make_pairs
from storage.votes import cast_vote
from test_votes import USER, left_of, talk, text
from workbench import chat_export, chat_view
from workbench.context import Context


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", [3, 2, 1]),
        ("circle", [1]),
        ("RED what", [2, 1]),
        ("100%", [3]),
        ("10_%", []),
        ("type", []),
        ("  ", [3, 2, 1]),
        ('say "hi"', [3]),
    ],
)
def test_words_find_conversations_in_any_turn(world: World, search: str, found: list[int]) -> None:
    talk(world, ("what is it?", "a red circle", "red"))
    talk(world, ("what?", "blue", "red, I think"))
    talk(world, ('say "hi" at 100%', "hi", "hi"))
    assert [one.id for one in list_conversations(world.db, USER, search=search)] == found
    assert list_conversations(world.db, "eve", search=search) == []


def test_a_search_without_a_hit_says_so_and_is_no_markup() -> None:
    shown = chat_view.conversation_list([], None, None, "<b>x")
    assert "No conversation of yours has “&lt;b&gt;x” in it." in shown


def test_a_deleted_conversation_comes_back_whole(world: World) -> None:
    number = talk(world, ("what?", "red", "a red circle"))
    cast_vote(world.db, USER, number, left_of(world, number), "right", "clear")
    make_pairs(world.db, USER, number, left_of(world, number))
    before = get_conversation(world.db, number, USER)
    with pytest.raises(NotFound):
        delete_conversation(world.db, "eve", number)
    delete_conversation(world.db, USER, number)
    assert list_conversations(world.db, USER) == []
    assert world.db.execute("SELECT count(*) FROM pairs").fetchone() == (1,), "what was learnt from it stays"
    assert check(world.db, world.folder) == []
    history.undo(world.db, USER)
    assert get_conversation(world.db, number, USER) == before
    assert check(world.db, world.folder) == []


class _Door:
    def identify(self, request: Any) -> str:
        return USER


@pytest.fixture
def client(world: World) -> TestClient:
    from storage.errors import PlumbError
    from workbench import api

    app = FastAPI()
    app.include_router(chat_export.routes(Context(world.settings), _Door()))  # type: ignore[arg-type]
    app.add_exception_handler(PlumbError, api.answer_error)
    return TestClient(app)


def test_export_has_each_columns_messages_and_the_votes(world: World, client: TestClient) -> None:
    number = talk(world, ("what?", "red", "a red circle"), ("sure?", "no", "yes"))
    cast_vote(world.db, USER, number, left_of(world, number), "right", "clear")
    add_turn(world.db, number, 4, "user", text("über?"))
    other = talk(world, ("hello", "hi", "hi"))
    answer = client.get("/api/conversations.jsonl")
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["id"] for one in found] == [number, other]
    right = found[0]["columns"]["right"]
    assert right["model"] == "base-1"
    assert [message["role"] for message in right["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert right["messages"][1]["content"] == text("a red circle")
    assert found[0]["votes"] == [{"after_turn": 3, "verdict": "right", "note": "clear", "pairs": []}]
    assert "über?" in answer.text
    one = client.get(f"/api/conversations.jsonl?conversation={other}")
    assert len(one.text.splitlines()) == 1
    assert "attachment" in one.headers["content-disposition"]


@pytest.mark.parametrize(("query", "status"), [("99", 404), ("0", 422), ("x", 422), ("99999999999999999999", 422)])
def test_an_export_of_nothing_is_refused(world: World, client: TestClient, query: str, status: int) -> None:
    assert client.get(f"/api/conversations.jsonl?conversation={query}").status_code == status


def test_an_export_keeps_a_blind_conversations_secret_until_the_vote(world: World, client: TestClient) -> None:
    number = talk(world, ("what?", "red", "blue"), blind=True)
    before = json.loads(client.get("/api/conversations.jsonl").text)
    assert "base-" not in json.dumps(before)
    assert not before["settings"].keys() & {"model", "adapters"}
    cast_vote(world.db, USER, number, left_of(world, number), "left")
    after = json.loads(client.get("/api/conversations.jsonl").text)
    assert after["columns"]["right"]["model"] == "base-1"
