"""“Score this sample”: the endpoint, what the button says, and how judges' calls look beside the sample."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient

from browser import browsing, find_chromium, serving
from factories import USER, World, metrics_of, open_world
from jobs import desk
from jobs.configs import JudgeConfig
from jobs.judges.identity import rater_of
from jobs.judges.keys import NAMES
from jobs.settings import Settings, local_user
from storage.candidates import candidates_of
from storage.checklists import checklists_of, edit_checklist, latest_checklists
from storage.errors import Conflict, DatabaseBusy, NotFound, PlumbError, UserError
from storage.folder import DataFolder
from storage.records import ChecklistItem
from storage.scores import add_judgement, ensure_rater, get_judgements, latest_ok
from test_samples_page import EVIL, Shape
from workbench import api, judge_marks, samples_desk
from workbench.context import Context
from workbench.door import Door
from workbench.pages import samples as page
from workbench.ui import build_api

RATER = rater_of(desk.DEFAULT)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in NAMES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def web(context: Context) -> TestClient:
    return TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")


def answering(monkeypatch: pytest.MonkeyPatch, outcome: desk.Outcome | Exception) -> list[tuple[Any, ...]]:
    """Put `outcome` in the place of asking; returns what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def score_now(folder: DataFolder, settings: Settings, sample_id: int, user: str) -> desk.Outcome:
        calls.append((folder, settings, sample_id, user))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(desk, "score_now", score_now)
    return calls


def called(world: World, sample: int, state: str, rater: tuple[str, str, str] = RATER, **values: Any) -> int:
    """A judge's call; an ok one with scores for all candidates."""
    found = candidates_of(world.db, [sample])[sample] if state == "ok" else []
    made = add_judgement(
        world.db,
        rater_id=ensure_rater(world.db, "judge", *rater),
        sample_id=sample,
        job_id=None,
        state=state,  # type: ignore[arg-type]
        **{
            "scores": [
                {"candidate_id": one.id, **metrics_of(7), "position": (number + 2) % len(found)}
                for number, one in enumerate(found)
            ],
            **values,
        },
    )
    assert made is not None
    return made


# --- the endpoint ---


@pytest.mark.parametrize(
    "outcome",
    [
        desk.Outcome("ok", "", 0.00123, False, RATER),
        desk.Outcome("ok", "", 0.0, True, RATER),
        desk.Outcome("blocked", "for safety", 0.0002, False, RATER),
    ],
)
def test_what_came_of_it_is_answered(
    world: World, web: TestClient, monkeypatch: pytest.MonkeyPatch, outcome: desk.Outcome
) -> None:
    calls = answering(monkeypatch, outcome)
    answer = web.post("/api/judge", json={"sample": 7})
    assert answer.status_code == 200
    assert answer.json() == {
        "sample": 7,
        "state": outcome.state,
        "reason": outcome.reason,
        "cost": outcome.cost,
        "already": outcome.already,
        "rater": list(RATER),
    }
    assert calls == [(world.folder, world.settings, 7, local_user())]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("No key for Gemini is set."), 400),
        (NotFound("There is no sample 7."), 404),
        (Conflict("This judgement is being asked for right now."), 409),
        (PlumbError("The budget of the day is used up."), 400),
        (DatabaseBusy("The database is held by another process."), 503),
    ],
)
def test_why_it_was_not_judged_is_said(
    web: TestClient, monkeypatch: pytest.MonkeyPatch, error: PlumbError, status: int
) -> None:
    answering(monkeypatch, error)
    answer = web.post("/api/judge", json={"sample": 7})
    assert answer.status_code == status
    assert answer.json() == {"error": str(error)}


@pytest.mark.parametrize(
    "body", [{}, {"sample": "7"}, {"sample": 0}, {"sample": 2**63}, {"sample": 7, "user": "eve"}, []]
)
def test_a_bad_body_asks_nobody(web: TestClient, monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    calls = answering(monkeypatch, desk.Outcome("ok", "", 0.0, False, RATER))
    assert web.post("/api/judge", json=body).status_code == 422
    assert calls == []


def test_without_a_key_nothing_is_asked(world: World, web: TestClient) -> None:
    """The desk itself, not a stand-in."""
    sample = world.sample()
    world.candidates(sample, ["a", "b"])
    answer = web.post("/api/judge", json={"sample": sample})
    assert answer.status_code == 400
    assert "GEMINI_API_KEY" in answer.json()["error"]
    assert get_judgements(world.db, [sample])[sample] == []


def test_the_rules_can_stand_at_the_desk(world: World, web: TestClient) -> None:
    desk.write_desk(world.folder, JudgeConfig(judge="easy-vqa-rules"))
    sample = world.sample()
    world.candidates(sample, ["circle", "It is a square."])
    told = web.post("/api/judge", json={"sample": sample}).json()
    assert (told["state"], told["rater"][0]) == ("ok", "easy-vqa-rules")
    assert len(latest_ok(get_judgements(world.db, [sample])[sample])[0].scores) == 2


def test_judges_that_think_leave_the_other_requests_their_threads(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More calls than a server has threads: each waits in line, and a page is served meanwhile."""
    calls, at_work, most = 60, threading.Semaphore(0), []
    go_on = threading.Event()
    lock = threading.Lock()
    busy = 0

    def score_now(*arguments: Any) -> desk.Outcome:
        nonlocal busy
        with lock:
            busy += 1
            most.append(busy)
        at_work.release()
        assert go_on.wait(60)
        with lock:
            busy -= 1
        return desk.Outcome("ok", "", 0.0, False, RATER)

    monkeypatch.setattr(desk, "score_now", score_now)
    app = build_api(context, Door(context.settings))
    answers: list[httpx.Response] = []

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as web:

            async def judge(sample: int) -> None:
                answers.append(await web.post("/api/judge", json={"sample": sample}))

            async with anyio.create_task_group() as group:
                for sample in range(1, calls + 1):
                    group.start_soon(judge, sample)
                try:
                    for _ in range(api.JUDGED_AT_ONCE):
                        assert await anyio.to_thread.run_sync(partial(at_work.acquire, timeout=30))
                    with anyio.fail_after(30):
                        assert (await web.get("/health")).status_code == 200
                finally:
                    go_on.set()

    anyio.run(run)
    assert [answer.status_code for answer in answers] == [200] * calls
    assert max(most) == api.JUDGED_AT_ONCE


# --- the button ---


def button(context: Context, sample: int) -> dict[str, str | None]:
    detail = Shape(page.show(context, USER, f"?sample={sample}").detail)
    return detail.all(data_judge=str(sample))[0]


def test_the_button_names_the_judge(world: World, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "secret-key-1234")
    sample = world.sample()
    world.candidates(sample, ["a"])
    found = button(context, sample)
    assert found["title"] == "Ask gemini-2.5-flash"
    assert found["data-name"] == "gemini-2.5-flash"
    assert "aria-disabled" not in found
    assert "secret-key-1234" not in page.show(context, USER, "").detail
    desk.write_desk(world.folder, JudgeConfig(judge="gemini", model="gemini-2.5-pro"))
    assert button(context, sample)["data-name"] == "gemini-2.5-pro"
    assert "<kbd>J</kbd>" in page.show(context, USER, "").detail


def test_the_button_says_why_it_cannot_be_pressed(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, full = world.sample(1), world.sample(2)
    world.candidates(full, ["a"])
    found = button(context, bare)
    assert (found["aria-disabled"], found["data-remedy"]) == ("true", "/jobs?kind=generate")
    assert "no answers" in str(found["title"])
    found = button(context, full)
    assert (found["aria-disabled"], found["data-remedy"]) == ("true", "/judges")
    assert "GEMINI_API_KEY" in str(found["title"])
    desk.write_desk(world.folder, JudgeConfig(judge="easy-vqa-rules"))
    assert "aria-disabled" not in button(context, full)
    monkeypatch.setenv("GEMINI_API_KEY", "secret-key-1234")
    desk.write_desk(world.folder, JudgeConfig(judge="gemini", checklists=True))
    assert "this sample has none" in str(button(context, full)["title"])
    edit_checklist(world.db, USER, full, [ChecklistItem("a", True)])
    assert "aria-disabled" not in button(context, full)
    edit_checklist(world.db, USER, full, [])
    assert "this sample has none" in str(button(context, full)["title"])


def test_a_desk_that_cannot_be_read_is_said_not_raised(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    (world.folder.judges / desk.FILE).write_text("{")
    found = button(context, sample)
    assert "is not JSON" in str(found["title"])
    assert found["data-remedy"] == "/judges"


# --- the calls beside the sample ---


def test_an_ok_call_shows_who_how_and_for_how_much(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a", "b", "c"])
    note = "image 8000 × 6000 was sent as 3072 × 2304"
    called(world, sample, "ok", cost=0.00123, note=note, raw='{"<b>": 1}', asked_by=None)
    shape = Shape(page.show(context, USER, "").detail)
    assert f"gemini-2.5-flash plumb-1 · all answers together · $0.0012 · {note}" in shape.text
    assert '{"<b>": 1}' in shape.text
    titles = [
        str(attributes.get("title")) for _, attributes in shape.tags if attributes.get("class") == "pb-grid other"
    ]
    assert [title.split(" · ")[3] for title in titles] == [f"read as answer {name}" for name in "CAB"]
    assert all(title.startswith("Judge gemini-2.5-flash · plumb-1 · all answers together") for title in titles)
    assert all(title.endswith(f"$0.0012 · {note}") for title in titles)
    assert shape.text.count("plumb-1 · all answers together · read as answer") == 3


def test_raters_of_one_model_are_told_apart(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    called(world, sample, "ok")
    called(world, sample, "ok", (RATER[0], "strict-2", "each answer alone"))
    called(world, sample, "ok", ("easy-vqa-rules", "1", "each answer alone"))
    text = Shape(page.show(context, USER, "").detail).text
    for terms in (
        "plumb-1 · all answers together",
        "strict-2 · each answer alone",
        "version 1 · each answer alone",
    ):
        assert text.count(terms) == 2, "in the list of calls and beside the scores"


@pytest.mark.parametrize("state", ["blocked", "truncated", "unparseable", "failed"])
def test_a_call_without_scores_shows_state_reason_and_reply(world: World, context: Context, state: str) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    called(world, sample, state, reason=f"why {EVIL}", raw=f"\nreply {EVIL}")
    view = page.show(context, USER, "")
    shape = Shape(view.detail)
    assert f"{state} why {EVIL}" in shape.text
    assert f"reply {EVIL}" in shape.text
    assert "script" not in {tag for tag, _ in shape.tags}
    assert shape.all(**{"class": f"pb-chip {state}"})
    again = [found for found in shape.all(data_judge=str(sample)) if found]
    assert len(again) == 2, "Score this sample, and Ask again"
    assert state in Shape(str(view.rows)).text


def test_another_judge_is_asked_again_by_a_job(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    called(world, sample, "failed", ("gemini-2.5-pro", *RATER[1:]))
    shape = Shape(page.show(context, USER, "").detail)
    assert len(shape.all(data_judge=str(sample))) == 1
    assert len(shape.all(href="/jobs?kind=judge")) == 1


def test_earlier_failures_are_folded(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    for state in ("blocked", "ok"):
        called(world, sample, state, reason=f"{state}-reason")
    view = page.show(context, USER, "")
    shape = Shape(view.detail)
    assert "1 earlier attempt: blocked" in shape.text
    assert "blocked blocked-reason" in shape.text, "still there to be read"
    assert "Ask again" not in shape.text
    assert "blocked" not in Shape(str(view.rows)).text
    assert "judged" in Shape(str(view.rows)).text
    for state in ("truncated", "truncated", "unparseable"):
        called(world, sample, state)
    view = page.show(context, USER, "")
    shape = Shape(view.detail)
    assert "3 earlier attempts: blocked, truncated" in shape.text
    assert "Ask again" in shape.text
    assert "judged · unparseable" in Shape(str(view.rows)).text
    assert "7 of 12" in shape.text, "the scores of the ok one stay"


def test_agreement_stands_before_the_answers(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    called(world, sample, "ok")
    monkeypatch.setattr(samples_desk, "sample_agreement", lambda judgements: f"<p>agreed on {len(judgements)}</p>")
    detail = page.show(context, USER, "").detail
    assert detail.index("pb-calls") < detail.index("<p>agreed on 1</p>") < detail.index("pb-card")


def test_a_very_long_reply_is_cut_for_the_page(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    called(world, sample, "unparseable", raw="<" * 60_000)
    text = Shape(page.show(context, USER, "").detail).text
    assert text.count("<") == judge_marks.LONGEST_RAW
    assert "60,000 characters in all" in text


@pytest.mark.parametrize(
    ("dollars", "said"), [(0, ""), (0.00001, "under $0.0001"), (0.00123, "$0.0012"), (1.5, "$1.5000")]
)
def test_money_is_never_shown_as_nothing(dollars: float, said: str) -> None:
    assert judge_marks.money(dollars) == said


# --- in a browser ---


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")
def test_the_key_j_and_the_checklist_in_a_browser(tmp_path: Path, wait_for: Callable[..., None]) -> None:
    world = open_world(tmp_path / "data")
    ids = [world.sample(i) for i in range(1, 5)]
    for sample in ids[:3]:
        world.candidates(sample, ["circle", "It is a square."])
    world.db.conn.execute("UPDATE jobs SET status = 'done'")  # the factory's: nothing is to run
    desk.write_desk(world.folder, JudgeConfig(judge="easy-vqa-rules"))  # asks nobody outside

    def judged(sample: int) -> int:
        return len(get_judgements(world.db, [sample])[sample])

    with serving(world.folder.root) as address, browsing() as tab:

        def pinned(sample: int) -> None:
            tab.locator(f'.pb-sample[data-sample="{sample}"]').wait_for()

        def items() -> list[str]:
            return [field.input_value() for field in tab.locator(".pb-checklist .pb-editor textarea").all()]

        status = tab.locator("#pb-status")
        tab.goto(f"{address}/?sample={ids[0]}")
        pinned(ids[0])
        tab.get_by_label("Search").click()
        tab.keyboard.press("j")  # text, no command
        tab.get_by_label("Search").fill("")
        tab.locator(".pb-total").get_by_text("4").wait_for()
        tab.locator(".pb-sample").click(position={"x": 2, "y": 2})
        tab.keyboard.press("Shift+J")
        assert judged(ids[0]) == 0
        tab.keyboard.press("j")
        status.get_by_text("Judged by easy-vqa-rules.").wait_for()
        tab.locator(".pb-calls").get_by_text("easy-vqa-rules").wait_for()
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("j")  # meant for the sample that is on its way
        pinned(ids[1])
        tab.locator(".pb-calls").get_by_text("easy-vqa-rules").wait_for()
        assert [judged(sample) for sample in ids] == [1, 1, 0, 0]
        tab.goto(f"{address}/?sample={ids[3]}")
        pinned(ids[3])
        tab.keyboard.press("j")
        status.get_by_role("link", name="Generate candidates").wait_for()

        tab.goto(f"{address}/?sample={ids[1]}")
        pinned(ids[1])
        tab.locator("[data-edit-checklist]").click()
        tab.keyboard.type(f"first j {EVIL}")
        tab.locator("[data-add-item]").click()
        tab.keyboard.type("second")
        tab.locator('[data-step="next"]').click()
        pinned(ids[2])
        assert tab.locator(".pb-checklist .pb-editor").count() == 0
        tab.locator('[data-step="prev"]').click()
        pinned(ids[1])
        tab.locator(".pb-checklist .pb-editor").wait_for()
        assert items() == [f"first j {EVIL}", "second"], "a draft survives moving away"
        tab.reload()
        tab.locator(".pb-checklist .pb-editor").wait_for()
        assert items() == [f"first j {EVIL}", "second"], "and a reload"
        assert [box.is_checked() for box in tab.locator(".pb-checklist .pb-editor input").all()] == [True, False]

        tab.locator(".pb-bar [data-judge]").click()
        tab.locator(".pb-checklist .pb-editor textarea").nth(1).click()
        tab.keyboard.press("End")
        tab.evaluate("window.redraws = setInterval(window.plumb.refresh, 70)")  # under the hands that type
        tab.keyboard.type(" item", delay=60)
        tab.evaluate("clearInterval(window.redraws)")
        status.get_by_text("nothing was paid").wait_for()
        assert judged(ids[1]) == 1, "the same is not judged twice"
        # The view may be drawn anew just now; what was written is there again.
        wait_for(
            lambda: items()[1:] == ["second item"], "a judge's word is not drawn over what a person writes", 20
        )

        tab.get_by_label("Remove item 1").click()
        assert items() == ["second item"]
        tab.get_by_role("button", name="Save", exact=True).click()
        status.get_by_text("saved as version 1").wait_for()
        tab.locator(".pb-checklist:not(.editing)").get_by_text("second item").wait_for()
        assert [item.text for item in latest_checklists(world.db, [ids[1]])[ids[1]].items] == ["second item"]
        tab.locator("[data-undo]").click()
        tab.locator(".pb-checklist").get_by_text("No checklist").wait_for()
        assert checklists_of(world.db, ids[1]) == []

        tab.locator("[data-edit-checklist]").click()
        tab.get_by_role("button", name="Save", exact=True).click()
        status.get_by_text("Item 1 of the checklist is empty").wait_for()
        tab.locator("[data-drop-draft]").click()
        assert tab.locator(".pb-checklist .pb-editor").count() == 0
        assert tab.evaluate("localStorage.getItem('plumb-drafts-' + window.plumbStore)") == "{}"
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sideways"
        assert [text for text in tab.problems if "400 (Bad Request)" not in text] == []
    world.db.close()
