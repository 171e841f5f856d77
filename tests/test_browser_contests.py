"""A contest voted through by keys in Chromium: names come with the votes, the standings at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser import browsing, serving
from contest_rows import COLUMNS, make_contest
from factories import open_world, png
from jobs.settings import local_user
from storage.contests import list_contests
from storage.database import session
from storage.folder import DataFolder
from storage.votes import duels

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("chromium")]

LONG = "1. A **plan**.\n2. <script>document.title = 'run'</script>\n\n" + "and on and on " * 60
SIZES = ((1280, 720), (1440, 900))


def look(page: Any, folder: Path, name: str) -> None:
    """Screenshots at both sizes, in which nothing lies outside of the window."""
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(200)
        page.screenshot(path=str(folder / f"{name}-{width}.png"))
        found = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert found[0] <= width, (name, found)
        assert found[1] <= height, (name, found)


def test_a_contest_is_voted_through_by_keys(tmp_path: Path) -> None:
    data = tmp_path / "data"
    world = open_world(data)
    made = make_contest(world, total=3, columns=COLUMNS)
    made.answer(1, ("What is this?",), category="detail", picture=png(size=(640, 420)), texts={0: LONG})
    made.answer(2, ("Write a blog.", "Rewrite it."), category="writing", texts={1: LONG})
    made.answer(3, category="math")
    made.end()
    world.db.close()
    with serving(data) as address, browsing() as page:
        head, count, told = page.locator("#contest-head"), page.locator(".pc-count"), page.locator("#vote-told")
        page.goto(f"{address}/contests")
        page.locator("#contest-form").wait_for()
        look(page, tmp_path, "new")
        page.locator(".pc-entry").click()
        page.locator("#contest-question-0 img").wait_for()
        page.wait_for_url("**/contests?contest=1&number=1")
        told.get_by_text("The names are shown once you have voted.").wait_for()
        assert page.locator("#contest-question-0 img").evaluate("image => image.naturalWidth") == 640
        assert "7@lab" not in page.content()
        look(page, tmp_path, "first")

        page.keyboard.press("1")
        count.get_by_text("1 of 3 voted by you").wait_for()
        told.get_by_text("7@lab").wait_for()
        head.get_by_text("Prompt 2 of 3").wait_for()  # it goes on by itself
        page.wait_for_url("**/contests?contest=1&number=2")
        told.get_by_text("The names are shown once you have voted.").wait_for()
        page.get_by_text("question 2, the last one").wait_for()
        look(page, tmp_path, "two-turns")

        note = page.get_by_label("Note to the vote")
        note.press_sequentially("1tb3nz")
        assert note.input_value() == "1tb3nz"
        note.blur()
        page.get_by_label("Go on after a vote").uncheck()
        page.keyboard.press("m")
        count.get_by_text("2 of 3 voted by you").wait_for()
        told.get_by_text("1tb3nz").wait_for()
        look(page, tmp_path, "voted")
        page.keyboard.press("z")
        count.get_by_text("1 of 3 voted by you").wait_for()
        page.locator("#contest-problem").get_by_text("Undone").wait_for()
        told.get_by_text("The names are shown once you have voted.").wait_for()
        page.keyboard.press("ArrowDown")
        count.get_by_text("2 of 3 voted by you").wait_for()

        page.locator("#contest-show-standings").click()
        page.locator("#contest-ask").get_by_text("1 prompt is").wait_for()
        look(page, tmp_path, "asked")
        page.locator("#contest-keep").click()
        head.get_by_text("Prompt 3 of 3").wait_for()
        told.get_by_text("The names are shown once you have voted.").wait_for()
        page.keyboard.press("t")
        count.get_by_text("3 of 3 voted by you").wait_for()
        page.keyboard.press("n")
        shown = page.locator("#contest-standings-shown")
        shown.get_by_text("You have voted on every prompt").wait_for()
        shown.get_by_text("By category").wait_for()
        page.wait_for_url("**/contests?contest=1&view=standings")
        page.locator(".pc-entry").get_by_text("8@lab").wait_for()
        look(page, tmp_path, "standings")
        assert page.title().startswith("Contests")
        assert page.problems == []
    with session(DataFolder(data)) as db:
        assert list_contests(db, local_user())[0].voted == 3
        assert sorted(duel.verdict for duel in duels(db)).count("tie") == 3
