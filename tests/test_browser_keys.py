"""The Samples page by keyboard alone, in the real app and a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import browsing, find_chromium, serving
from factories import World, open_world
from jobs.settings import local_user
from storage.pairs import choose_by_hand, pairs_of_sample, set_status
from storage.records import METRICS
from storage.rows import rows
from storage.scores import add_judgement, ensure_rater, get_judgements, set_score

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed"),
]
EVIL = '<script>window.ran=1</script><img src=x onerror="window.ran=2"> \' " & {{value}} שלום 🙂'
Wait = Callable[..., None]


class Presses:
    """A keyboard that counts."""

    def __init__(self, tab: Any) -> None:
        self.tab, self.number = tab, 0

    def __call__(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)
            self.number += 1


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = open_world(tmp_path / "data")
    made.db.conn.execute("UPDATE jobs SET status = 'done'")
    yield made
    made.db.close()


def own_scores(world: World, sample: int) -> list[list[int | None]]:
    for judgement in get_judgements(world.db, [sample])[sample]:
        if judgement.rater.kind == "person" and judgement.rater.name == local_user():
            return [[score.value(metric) for metric in METRICS] for score in judgement.scores]
    return []


def test_four_answers_are_scored_and_paired_with_at_most_25_keys(world: World, wait_for: Wait) -> None:
    samples = [world.sample(number) for number in range(1, 4)]
    texts = ["circle", "It is a circle.", "a square", EVIL]
    candidates = world.candidates(samples[0], texts)
    for sample in samples[1:]:
        world.candidates(sample, ["yes", "no"])
    with serving(world.folder.root) as address, browsing() as tab:
        tab.set_default_timeout(30_000)
        tab.set_viewport_size({"width": 1280, "height": 720})
        tab.goto(f"{address}/?sample={samples[0]}")
        tab.locator(f'.pb-sample[data-sample="{samples[0]}"] .pb-metric.pb-at').wait_for()
        press = Presses(tab)
        wanted = [[4, 3, 4, 2, 1], [4, 4, 4, 1, 2], [0, 1, 2, 3, 4], [1, 0, 0, 0, 0]]
        for row in wanted:
            press(*map(str, row))
        press("b")
        tab.evaluate("window.plumb.refresh()")  # a view that comes in between takes nothing away
        tab.locator('.pb-card [data-pick="chosen"][aria-pressed="true"]').wait_for()
        tab.wait_for_timeout(300)
        press("Shift+C")
        assert press.number <= 25
        wait_for(lambda: own_scores(world, samples[0]) == wanted, "all scores are stored", 30)
        wait_for(lambda: pairs_of_sample(world.db, samples[0]) != [], "the pair is stored", 30)
        (pair,) = pairs_of_sample(world.db, samples[0])
        assert (pair.chosen_id, pair.rejected_id) == (candidates[1].id, candidates[2].id)
        assert tab.evaluate("window.ran") is None
        assert tab.locator(".pb-text").nth(3).inner_text() == EVIL

        # The focus is seen, and the image is whole beside the answers however far down one is.
        tab.locator(".pb-card.pb-at .pb-metric.pb-at").wait_for()
        assert tab.evaluate("document.activeElement.matches('.pb-metric.pb-at button')")
        box = tab.locator(".pb-image").first.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 720
        tab.screenshot(path=world.folder.root.parent / "scored.png")
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing overflows"

        # Undo and redo, one key each.
        press("u")
        wait_for(lambda: pairs_of_sample(world.db, samples[0]) == [], "the pair is undone", 30)
        tab.locator("#pb-status").get_by_text("Undone").wait_for()
        press("Shift+U")
        wait_for(lambda: pairs_of_sample(world.db, samples[0]) != [], "the pair is redone", 30)
        tab.locator("#pb-status").get_by_text("Redone").wait_for()

        # A flag, a note, an answer of one's own, the next sample.
        press("m")
        wait_for(lambda: rows(world.db, "SELECT * FROM flags") != [], "it is flagged", 30)
        tab.locator(".pb-state").get_by_text("flagged").wait_for()
        press("t")
        tab.keyboard.type(EVIL)
        tab.keyboard.press("Control+Enter")
        wait_for(lambda: [row["text"] for row in rows(world.db, "SELECT * FROM notes")] == [EVIL], "a note", 30)
        tab.keyboard.press("Escape")
        tab.locator(".pb-notes").get_by_text("Notes (1)").wait_for()
        press("n")
        tab.keyboard.type("a blue circle")
        tab.keyboard.press("Control+Enter")
        tab.locator(".pb-card").nth(4).get_by_text("a blue circle").wait_for()
        assert tab.evaluate("window.ran") is None
        press("?")
        tab.locator("#pb-keys").wait_for()
        tab.screenshot(path=world.folder.root.parent / "keys.png")
        press("Escape", "i")
        tab.locator("#pb-large").wait_for()
        press("+", "+")
        tab.locator("#pb-large").get_by_text("×2.3").wait_for()
        press("Escape", "Escape", "ArrowRight")
        tab.locator(f'.pb-sample[data-sample="{samples[1]}"]').wait_for()
        press("s")
        tab.locator(f'.pb-sample[data-sample="{samples[2]}"]').wait_for()
        wait_for(
            lambda: [row["sample_id"] for row in rows(world.db, "SELECT * FROM skips")] == [samples[1]],
            "a skip",
            30,
        )
        tab.locator(".pb-history").scroll_into_view_if_needed()
        tab.goto(f"{address}/?sample={samples[0]}")
        tab.locator(".pb-history summary").click()
        tab.locator(".pb-history li").nth(3).wait_for()
        tab.screenshot(path=world.folder.root.parent / "history.png")
        assert tab.problems == []


def test_a_judges_values_are_accepted_by_one_key(world: World, wait_for: Wait) -> None:
    sample = world.sample()
    first, second = world.candidates(sample, ["circle", "square"])
    rater = ensure_rater(world.db, "judge", "gemini", "1")
    scores = [
        {"candidate_id": one.id, **dict.fromkeys(METRICS, value)} for one, value in ((first, 3), (second, 1))
    ]
    add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state="ok", scores=scores)
    set_score(world.db, local_user(), first.id, "helpfulness", 0)
    with serving(world.folder.root) as address, browsing() as tab:
        tab.set_default_timeout(30_000)
        tab.goto(f"{address}/?sample={sample}")
        tab.locator(".pb-metric.pb-at").wait_for()
        assert tab.locator(".pb-metric button.suggested").count() == 9, "one is scored by oneself"
        tab.screenshot(path=world.folder.root.parent / "suggested.png")
        tab.keyboard.press("y")
        wait_for(lambda: own_scores(world, sample)[:1] == [[0, 3, 3, 3, 3]], "the first is accepted", 30)
        tab.keyboard.press("Shift+Y")
        wait_for(lambda: own_scores(world, sample) == [[0, 3, 3, 3, 3], [1] * 5], "all are accepted", 30)
        assert tab.problems == []


def test_what_cannot_be_sent_waits_and_is_sent_once(world: World, wait_for: Wait) -> None:
    sample = world.sample()
    world.candidates(sample, ["circle", "square"])
    with serving(world.folder.root) as address, browsing() as tab:
        tab.set_default_timeout(30_000)
        tab.goto(f"{address}/?sample={sample}")
        tab.locator(".pb-metric.pb-at").wait_for()
        # The server takes the change, and its answer is lost on the way.
        lost: list[int] = []

        def lose(route: Any) -> None:
            if not lost:
                lost.append(route.fetch().status)
                route.abort()
            else:
                route.continue_()

        tab.route("**/api/scores", lose)
        tab.keyboard.press("4")
        tab.locator("#pb-status").get_by_text("Plumb keeps 1 change here").wait_for()
        wait_for(lambda: lost == [200], "it was stored", 10)
        tab.locator("#pb-status").get_by_text("Saved", exact=True).wait_for()
        wait_for(lambda: own_scores(world, sample) == [[4, None, None, None, None]], "it is there", 20)
        assert len(rows(world.db, "SELECT * FROM actions")) == 1, "once"
        tab.unroute("**/api/scores")
        # Nobody answers; the page is loaded anew meanwhile; what waits is still shown, and sent in order.
        tab.route("**/api/**", lambda route: route.abort())
        tab.keyboard.press("3")
        tab.keyboard.press("n")
        tab.keyboard.type("my own words")
        tab.keyboard.press("Control+Enter")
        tab.locator("#pb-status").get_by_text("Plumb keeps 2 changes here").wait_for()
        tab.reload()
        tab.locator(".pb-metric.busy button[data-value='3'][aria-pressed='true']").wait_for()
        tab.unroute("**/api/**")
        tab.locator(".pb-card").nth(2).get_by_text("my own words").wait_for()
        wait_for(lambda: own_scores(world, sample) == [[4, 3, None, None, None]], "both are there", 20)
        assert tab.evaluate("window.plumb.waiting().length") == 0
        # Somebody else works on the same sample.
        set_score(world.db, "<b>bob</b>", world.candidates(sample, ["late"])[0].id, "correctness", 2)
        tab.locator(".pb-others").get_by_text("<b>bob</b>").wait_for()
        tab.get_by_role("button", name="Show it").click()
        tab.locator(".pb-card").nth(3).wait_for()


def test_pairs_are_reviewed_by_keys(world: World, wait_for: Wait) -> None:
    made = []
    for number in (1, 2, 3):
        better, worse = world.candidates(world.sample(number), [f"yes {number}", EVIL])
        made.append(choose_by_hand(world.db, local_user(), better.id, worse.id).id)
    set_status(world.db, local_user(), made, "proposed")

    def statuses() -> list[str]:
        return [row["status"] for row in rows(world.db, "SELECT status FROM pairs ORDER BY id")]

    with serving(world.folder.root) as address, browsing() as tab:
        tab.set_default_timeout(30_000)
        tab.set_viewport_size({"width": 1280, "height": 720})
        tab.goto(f"{address}/pairs")
        tab.locator("[data-card]").nth(2).wait_for()
        tab.wait_for_function("typeof window.plumb?.undo === 'function'")  # a bare function would be called
        press = Presses(tab)
        press("ArrowDown", "a")
        wait_for(lambda: statuses() == ["accepted", "proposed", "proposed"], "the first is accepted", 30)
        press("ArrowDown", "r")
        wait_for(lambda: statuses() == ["accepted", "rejected", "proposed"], "the second is rejected", 30)
        press("ArrowDown", "f")
        wait_for(lambda: rows(world.db, "SELECT chosen_id FROM pairs")[2]["chosen_id"] % 2 == 0, "flipped", 30)
        assert tab.evaluate("document.activeElement.closest('[data-card]') !== null"), "the focus stays"
        press("u")
        wait_for(lambda: rows(world.db, "SELECT chosen_id FROM pairs")[2]["chosen_id"] % 2 == 1, "undone", 30)
        tab.screenshot(path=world.folder.root.parent / "pairs.png")
        assert tab.evaluate("window.ran") is None
        assert tab.problems == []
