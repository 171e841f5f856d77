"""A blind vote in Chromium: names come with it, and a pair of it stands on Pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import browsing, serving
from factories import World, open_world
from jobs.settings import local_user
from storage.chats import add_turn, start_conversation
from storage.database import session
from storage.folder import DataFolder
from storage.votes import duels

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("chromium")]


def blind_talk(world: World) -> int:
    """A conversation of one question, answered by two bases whose names are hidden."""
    settings = {"model": "base-0", "adapters": [None, None], "blind": True}
    number = start_conversation(world.db, local_user(), settings)
    add_turn(world.db, number, 0, "user", [{"type": "text", "text": "What is a circle?"}])
    for column, answer in enumerate(("A square.", "All points at one distance from a centre.")):
        add_turn(
            world.db,
            number,
            1,
            "assistant",
            [{"type": "text", "text": answer}],
            column_number=column,
            model=f"base-{column}",
            finish="stop",
        )
    return number


def test_a_blind_vote_becomes_a_pair(tmp_path: Path) -> None:
    data = tmp_path / "data"
    world = open_world(data)
    number = blind_talk(world)
    world.db.close()
    with serving(data) as address, browsing() as page:
        page.goto(f"{address}/chat?conversation={number}")
        page.locator("#chat-log-right").get_by_text("All points at one distance").wait_for()
        told = page.locator("#vote-told")
        told.get_by_text("The names are shown once you have voted.").wait_for()
        assert page.locator("#chat-left input").input_value() == "hidden until you vote"
        assert "base-1" not in page.content()

        page.get_by_label("Note to the vote").fill("says <b>what</b> it is")
        page.locator("#vote-right").click()
        told.get_by_text("The right one is better.").wait_for()
        told.get_by_text("says <b>what</b> it is").wait_for()
        told.get_by_text("base (base-1)").wait_for()
        page.wait_for_function("document.querySelector('#chat-left input').value.startsWith('base (')")

        page.locator("#vote-pair").click()
        told.get_by_role("link", name="#1").click()
        page.wait_for_url("**/pairs?after=0")
        page.get_by_text("All points at one distance from a centre.").first.wait_for()
        page.get_by_role("link", name="vote in a chat").click()
        page.wait_for_url(f"**/chat?conversation={number}")
        page.locator("#chat-log-right").get_by_text("All points at one distance").wait_for()
        page.locator("#vote-told").get_by_text("Pair #1").wait_for()
        assert page.problems == []
    with session(DataFolder(data)) as db:
        assert [duel.verdict for duel in duels(db)] == ["right"]
