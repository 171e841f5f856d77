"""The Machine page in Chromium: it lives while it is seen, checks on demand, takes a budget, restores a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser import browsing, serving
from factories import open_world
from jobs import bin as recycling
from jobs import disk
from storage import jobs as store
from storage.database import session
from storage.folder import DataFolder
from storage.lifecycle import JobStatus

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("chromium")]


def leave_with_an_edited_rubric(page: Any, address: str) -> None:
    """On Judges: it is asked first, but not where nothing was typed, or where the editor was closed."""
    asked: list[str] = []

    def answer(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", answer)
    guide = page.locator("#judge-editor textarea").first
    for typed, closed in ((False, False), (True, True), (True, False)):
        page.goto(f"{address}/judges")
        page.locator("#judge-rubric summary").first.wait_for()
        page.locator("#judge-edit").click()
        guide.wait_for()
        if typed:
            guide.fill("Look twice.")
        if closed:
            page.locator("#judge-editor").get_by_role("button", name="Cancel").click()
            guide.wait_for(state="hidden")
        assert asked == []
    page.goto(f"{address}/machine")
    assert asked == ["beforeunload"]


def test_the_machine_page_is_used(tmp_path: Path) -> None:
    data = tmp_path / "data"
    world = open_world(data)
    job = world.job("dpo")
    store.move(world.db, job.id, JobStatus.FAILED, "it broke")
    world.folder.run(job.id).mkdir(parents=True)
    (world.folder.run(job.id) / "job.json").write_text("{}")
    recycling.delete_run(world.db, world.settings, job.id, "ada")
    world.db.close()
    with serving(data) as address, browsing() as page:
        looks: list[str] = []
        page.on("request", lambda asked: looks.append(asked.url) if "/gradio_api/" in asked.url else None)
        page.goto(f"{address}/machine")
        page.locator('.pd-device[aria-label="cpu"]').wait_for()
        page.locator("#machine-checks").get_by_text("Nobody has checked").wait_for()

        number = len(looks)
        with page.expect_response(lambda answer: "/gradio_api/" in answer.url):
            pass  # nobody presses anything: the page looks by itself
        assert len(looks) > number
        page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        page.wait_for_timeout(1_000)  # what is under way
        number = len(looks)
        page.wait_for_timeout(4_000)  # it looks every three seconds
        assert len(looks) == number, "unseen, it asks nothing"
        page.evaluate("Object.defineProperty(document, 'hidden', {value: false, configurable: true})")

        page.locator("#machine-check").click()
        page.locator("#machine-checks").get_by_text("Data folder").first.wait_for()
        page.locator("#machine-check").get_by_text("Check again").or_(
            page.locator("button#machine-check", has_text="Check again")
        ).first.wait_for()

        page.locator("#machine-budget").get_by_role("textbox").fill("many")
        page.locator("#machine-set-budget").click()
        page.locator("#machine-budget-outcome").get_by_text("budget = 'many'").wait_for()
        page.locator("#machine-budget").get_by_role("textbox").fill("5")
        page.locator("#machine-set-budget").click()
        page.locator("#machine-budget-outcome").get_by_text("The budget is 5.0 GB.").wait_for()
        page.locator("#machine-disk").get_by_text("of 5.0 GB").wait_for()

        page.locator(f'#machine-bin [data-restore="{job.id}"]').click()
        page.locator("#machine-bin-outcome").get_by_text("is back").wait_for()
        page.locator("#machine-bin").get_by_text("The bin is empty").wait_for()
        page.reload()
        page.locator("#machine-checks").get_by_text("Data folder").first.wait_for()
        assert page.locator("#machine-budget").get_by_role("textbox").input_value() == "5"
        leave_with_an_edited_rubric(page, address)
        assert page.problems == []
    with session(DataFolder(data)) as db:
        assert disk.get_budget(db) == 5_000_000_000
        assert store.get_job(db, job.id).deleted_at is None
