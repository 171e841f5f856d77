"""The Evaluation page in Chromium: from the table to a regression's answers and back; export, hiding, the dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser import browsing, serving
from evaluation_rows import evaluated, item
from factories import World, open_world, png
from storage.adapters import add_adapter
from storage.images import ensure_image

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("chromium")]

EVIL = "<script>document.title = 'run'</script>"
LONG = "A long answer, with much to say about nothing. " * 12


def fill(world: World) -> None:
    """A base and adapters on three benchmarks; the half of the data that each saw makes a curve."""
    picture = ensure_image(world.db, world.folder, png((20, 90, 200), (640, 400))).sha256
    groups = ("rec", "ocr", "math")
    asked = [
        item(n, picture, categories=[groups[n % 3]], question=f"What does the sign number {n} say?")
        for n in range(1, 61)
    ]
    base = [float(n % 3 > 0) for n in range(60)]
    said = {1: LONG, 2: EVIL}
    evaluated(world, "demo", base, benchmark="mm-vet", items=asked, texts=said, characters=80)
    for place, fraction in enumerate((0.25, 0.5, 1.0)):
        job = world.job("dpo", dataset="pairs", fraction=fraction, flip=0.0)
        add_adapter(world.db, job, f"dpo-{fraction:.0%}", f"{place:064x}", 10, "demo", "dpo")
        values = [min(1.0, one + 0.2 * (n % 5 < 2 + place)) for n, one in enumerate(base)]
        values[1], values[5] = 0.0, 0.5
        label = f"dpo-{fraction:.0%} (adapter {place + 1})"
        evaluated(
            world,
            label,
            values,
            benchmark="mm-vet",
            items=asked,
            adapter=place + 1,
            texts=said,
            characters=130,
            replies={"q2/judge": ("q2", "It says something else. [[0.0]]")},
        )
    evaluated(world, "demo", [6.0, 5.0, None, 7.5] * 5, benchmark="mt-bench", grader="judge A")
    evaluated(
        world, "dpo-100% (adapter 3)", [7.0, 6.0, 6.5, 8.5] * 5, benchmark="mt-bench", adapter=3, grader="judge A"
    )
    evaluated(world, "dpo-25% (adapter 1)", [7.0], benchmark="mt-bench", adapter=1, grader="judge A", limit=1)
    evaluated(world, "dpo-25% (adapter 1)", [1.0] * 9, benchmark="mm-vet", adapter=1, purpose="selection")
    world.db.conn.execute("UPDATE jobs SET status = 'done'")


def look(page: Any, folder: Path, name: str) -> None:
    page.wait_for_timeout(250)
    page.screenshot(path=str(folder / f"{name}.png"), full_page=True)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 1280, (name, width)


def test_from_the_table_to_a_regression_and_back(tmp_path: Path) -> None:
    data = tmp_path / "data"
    world = open_world(data)
    fill(world)
    world.db.close()
    with serving(data) as address, browsing() as page:
        page.goto(f"{address}/evaluation")
        page.locator(".ev-table").wait_for()
        look(page, tmp_path, "table")
        assert page.locator(".ev-table tbody tr").count() == 4
        assert page.locator("figure.ev-curve").count() == 1
        assert page.locator(".ev-categories svg rect").count() > 9

        page.get_by_label("Against").select_option(label="dpo-100% (adapter 3)")
        page.wait_for_url("**/evaluation?base=adapter%3A3")
        page.locator("tr").filter(has_text="the others are compared with it").get_by_text("dpo-100%").wait_for()
        page.go_back()
        page.locator("tr").filter(has_text="the others are compared with it").get_by_text("demo").wait_for()

        page.get_by_label("dpo-25% (adapter 1)", exact=True).uncheck()
        page.wait_for_url("**model=**")
        page.locator('.ev-categories .ev-key:has-text("dpo-25%")').wait_for(state="detached")
        page.go_back()

        with page.expect_download() as saving:
            page.get_by_role("link", name="Markdown").click()
        text = Path(saving.value.path()).read_text(encoding="utf-8")
        assert text.startswith("Reporting.")
        assert "| dpo-100% (adapter 3) |" in text

        page.get_by_label("dpo-100% (adapter 3) on MM-Vet: items").click()
        page.locator(".ev-said").first.wait_for()
        look(page, tmp_path, "items")
        page.get_by_role("link", name="Regressions 2").click()
        page.wait_for_url("**show=regressions**")
        page.locator(".pb-range").get_by_text("1–2 of 2").wait_for()
        assert page.locator(".ev-list li").count() == 2
        page.locator(".ev-list a").first.click()
        page.wait_for_url("**item=q2**")
        page.locator(".ev-item-head").get_by_text("q2").wait_for()
        picture = page.locator(".ev-pictures img").first
        picture.evaluate("image => image.decode()")
        assert picture.evaluate("image => image.naturalWidth") == 640
        assert page.locator(".ev-said").count() == 4
        page.get_by_text("The judge's words").first.click()
        page.get_by_text("It says something else.").first.wait_for()
        assert EVIL in page.locator(".ev-said .pb-text").first.inner_text()
        look(page, tmp_path, "regression")
        page.get_by_role("link", name="Next ›").click()
        page.wait_for_url("**item=q6**")

        page.get_by_label("Search").fill("number 42")
        page.get_by_label("Search").press("Enter")
        page.wait_for_url("**q=number**")
        page.get_by_text("No item passes these filters").wait_for()
        page.get_by_role("link", name="All 60").click()
        page.locator(".ev-item-head").get_by_text("q42").wait_for()
        page.get_by_label("Search").fill("")
        page.get_by_label("Search").press("Enter")
        page.get_by_label("Category").select_option("ocr")
        page.locator(".pb-range").get_by_text("1–20 of 20").wait_for()

        page.get_by_role("button", name="Hide from the table").click()
        page.locator(".ev-hidden-now").wait_for()
        assert page.get_by_label("dpo-100% (adapter 3) on MM-Vet: items").count() == 0
        page.get_by_role("button", name="Undo").click()
        page.get_by_label("dpo-100% (adapter 3) on MM-Vet: items").wait_for()

        page.get_by_role("link", name="Selection").click()
        page.locator(".ev-selection").wait_for()
        assert page.locator(".ev-table tbody tr").count() == 1
        look(page, tmp_path, "selection")
        assert page.title().startswith("Evaluation")
        assert page.problems == []
        assert "run" not in page.title()


def test_the_empty_page_and_the_dark_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    world = open_world(data)
    with serving(data) as address, browsing(dark=True) as page:
        page.goto(f"{address}/evaluation")
        page.get_by_text("No evaluations yet.").wait_for()
        look(page, tmp_path, "empty")
        fill(world)
        world.db.close()
        page.reload()
        page.locator(".ev-table").wait_for()
        look(page, tmp_path, "dark")
        assert page.problems == []
