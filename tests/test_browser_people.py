"""People in the browser: log in, invite, and what an annotator may not do is dimmed and says why."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from browser import browsing, serving
from factories import open_world
from storage.users import add_user, list_users

PASSWORD = "four words in a row"
NAME = "<img src=x onerror=document.title='run'>"


@pytest.mark.slow
@pytest.mark.usefixtures("chromium")
def test_an_admin_invites_and_an_annotator_is_told_what_is_not_theirs(tmp_path: Path) -> None:
    world = open_world(tmp_path / "data")
    world.judged(world.sample(), [3, 5])
    add_user(world.db, "root", "admin", PASSWORD)
    with serving(tmp_path / "data", PLUMB_HOST="0.0.0.0") as told, browsing() as page:
        address = f"http://127.0.0.1:{urlsplit(told).port}"
        page.goto(f"{address}/people")
        page.fill("#name", "root")
        page.fill("#password", PASSWORD)
        page.keyboard.press("Enter")
        invite = page.locator("form[data-people='/api/people/invite']")
        invite.locator("[name=name]").fill(NAME)
        invite.get_by_role("button").click()
        link = page.locator(".pp-link").input_value()
        row = page.locator(".pp-people tr", has_text="onerror")
        assert row.locator("img").count() == 0
        page.locator(".pb-logout button").click()
        page.locator("#name").wait_for()

        page.goto(link)
        for field in ("#password", "#again"):
            page.fill(field, PASSWORD)
        page.keyboard.press("Enter")
        page.locator(".pb-sample").wait_for()
        assert page.locator(".pb-user").inner_text() == NAME
        assert page.title() != "run"
        page.goto(f"{address}/pairs")
        page.wait_for_function("window.plumb && window.plumb.me")
        freeze = page.locator("#pb-freeze")
        freeze.hover()
        assert "needs a researcher" in freeze.evaluate("e => (e.closest('[title]') || e).title")
        freeze.focus()  # a click would wait for what is marked as disabled, or, forced, miss what is still moving
        page.keyboard.press("Enter")
        page.locator("#pb-status").get_by_text("An admin can give you the role").wait_for()
    assert [(user.role, user.has_password) for user in list_users(world.db) if user.name == NAME] == [
        ("annotator", True)
    ]
    world.db.close()
