"""The list of the Pairs page in Chromium: filters, pages both ways, an act on all, its undo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from browser import browsing, serving
from factories import open_world
from jobs.settings import local_user
from storage.pairs import choose_by_hand, count_pairs

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.usefixtures("chromium")]


def test_finding_pairs_and_deciding_them_at_once(tmp_path: Path, wait_for: Callable[..., None]) -> None:
    world = open_world(tmp_path / "data")
    me = local_user()
    for number in range(1, 31):
        colour = "red" if number <= 3 else "blue"
        first, second = world.candidates(world.sample(number), [f"a {colour} circle", "a square"])
        choose_by_hand(world.db, me, first.id, second.id)
    world.db.conn.execute("UPDATE jobs SET status = 'done'")  # the factory's: nothing is to run
    with serving(world.folder.root) as address, browsing() as tab:
        tab.goto(address + "/pairs")
        tab.locator("#pb-pairs").get_by_text("Next page").click()
        tab.locator("#pb-pairs").get_by_text("Previous page").click()
        tab.locator('[data-card="1"]').wait_for()
        tab.get_by_label("Words in question or answers").fill("red")
        tab.locator("#pb-tabs").get_by_text("With all 3 of this list").wait_for()
        assert "q=red" in tab.url
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sideways"
        tab.reload()
        tab.locator("#pb-tabs").get_by_text("With all 3 of this list").click()
        assert tab.get_by_label("Words in question or answers").input_value() == "red"
        tab.locator('[data-bulk="reject"]').click()
        tab.locator(".pf-ask").get_by_text("Reject 3 pairs?").wait_for()
        assert count_pairs(world.db)["rejected"] == 0
        tab.locator("[data-bulk-yes]").click()
        tab.locator(".pf-done").get_by_text("3 pairs rejected.").wait_for()
        assert count_pairs(world.db)["rejected"] == 3
        tab.locator(".pf-done [data-undo]").click()
        wait_for(lambda: count_pairs(world.db)["rejected"] == 0, "it is undone", 10)
        tab.get_by_label("Where from").select_option("rule")
        tab.locator("#pb-pairs").get_by_text("No pair fits these filters").wait_for()
        tab.locator("#pb-pairs").get_by_text("Clear the filters").click()
        tab.locator('[data-card="25"]').wait_for()
