"""The left side of the Samples page in Chromium: filters, views, acts on all, a queue, guidelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser import browsing, serving
from factories import open_world
from jobs.settings import local_user
from storage.finding import SampleFilter, sample_ids
from storage.guidelines import get_guidelines
from storage.queues import holders
from storage.saved_views import list_views

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.usefixtures("chromium")]

EVIL = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


def test_finding_and_working_through_a_queue(tmp_path: Path, wait_for: Callable[..., None]) -> None:
    world = open_world(tmp_path / "data")
    ids = [world.sample(i, question=f"{'a red' if i % 2 else 'a blue'} one? {EVIL}") for i in range(1, 9)]
    for sample in ids:
        world.candidates(sample, ["yes", "no"])
    world.db.conn.execute("UPDATE jobs SET status = 'done'")  # the factory's: nothing is to run
    red = ids[::2]
    me = local_user()
    with serving(world.folder.root) as address, browsing() as tab:

        def pinned(sample: int) -> None:
            tab.locator(f'.pb-sample[data-sample="{sample}"]').wait_for()

        def flagged() -> list[int]:
            return sample_ids(world.db, SampleFilter(state="flagged"))

        # Filters: typed and chosen, in the address, taken away by their chips.
        tab.goto(address)
        pinned(ids[0])
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sideways"
        tab.get_by_label("Search").fill("red")
        tab.locator(".pb-total").get_by_text("4 of 8 samples").wait_for()
        tab.keyboard.press("Tab")  # to Filters
        tab.keyboard.press("Enter")
        tab.get_by_label("Order").select_option("newest")
        pinned(red[-1])
        assert {"q=red", "order=newest"} <= set(tab.url.split("?")[1].split("&"))
        tab.locator(f'#pb-list [data-item="{red[1]}"] a').click()
        pinned(red[1])
        wait_for(lambda: _current(tab) == [str(red[1])], "the line is marked", 10)
        tab.reload()
        pinned(red[1])
        assert tab.get_by_label("Order").input_value() == "newest", "the form says what the address says"
        tab.get_by_label("Search").fill("zebra")
        tab.locator(".pb-list-note").get_by_text("No sample fits").wait_for()
        tab.get_by_label("Remove the filter: “zebra”").click()
        tab.locator(".pb-total").get_by_text("8 samples").wait_for()
        tab.get_by_label("Search").fill("red")
        tab.locator(".pb-total").get_by_text("4 of 8 samples").wait_for()

        # A view of that, under a name that is no HTML.
        tab.locator('[data-panel="views"]').click()
        tab.get_by_label("Name of this view").fill(EVIL)
        tab.locator("[data-save-view] [type=submit]").click()
        tab.locator(".pf-views").get_by_text(EVIL).wait_for()
        assert list_views(world.db, me)[0].parameters == {"q": "red", "order": "newest"}

        # All that is selected: asked with a count, done, undone.
        tab.locator(".pf-bulk summary").click()
        tab.locator('[data-bulk="flag"]').click()
        tab.locator(".pf-ask").get_by_text("Flag 4 samples?").wait_for()
        assert flagged() == []
        tab.locator("[data-bulk-yes]").click()
        tab.locator(".pf-done").get_by_text("4 samples flagged.").wait_for()
        assert flagged() == red
        tab.locator(".pf-done [data-undo]").click()
        tab.locator("#pb-status").get_by_text("Undone: 4 samples flagged").wait_for()
        assert flagged() == []

        # A queue of these: on by the key, back, over a reload; held while open, let go when left.
        tab.locator('[data-panel="queue"]').click()
        tab.locator("[data-queue-form] [type=submit]").click()
        pinned(red[0])
        assert holders(world.db, red[0]) == [me]
        assert tab.locator("#pb-list .pb-list").count() == 0
        tab.locator("body").press("ArrowRight")
        pinned(red[1])
        tab.wait_for_function(f"location.search.includes('sample={red[1]}')")
        tab.reload()
        pinned(red[1])
        wait_for(lambda: holders(world.db, red[1]) == [me], "it is held again", 10)
        tab.locator('[data-step="prev"]').click()
        pinned(red[0])
        tab.get_by_label("Leave the queue").click()
        tab.locator("#pb-list .pb-list").wait_for()
        wait_for(lambda: holders(world.db, red[0]) == [], "the lease is let go", 10)

        # Guidelines: written beside the sample, folded out again after a reload, nothing in them runs.
        tab.locator(".pf-fold > summary").click()
        tab.locator('[data-guide="edit"]').click()
        tab.get_by_label("Guidelines, in Markdown").fill(f"**Be kind.** {EVIL} [x](javascript:alert(1))")
        tab.locator("[data-guide-form] [type=submit]").click()
        tab.locator(".pf-guide-text strong").get_by_text("Be kind.").wait_for()
        tab.reload()
        tab.locator(".pf-guide-text strong").get_by_text("Be kind.").wait_for()
        assert EVIL in tab.locator(".pf-guide-text").inner_text()
        assert tab.locator(".pf-guide-text a, .pf-guide-text img").count() == 0
        assert get_guidelines(world.db).number == 1
        assert tab.title() != "run"
        assert tab.problems == []
    world.db.close()


def _current(tab: Any) -> list[str]:
    """The lines of the list that are marked as the pinned sample's."""
    lines = tab.locator("#pb-list li:has([aria-current])")
    return list(lines.evaluate_all("all => all.map(one => one.dataset.item)"))
