"""Looking closely at images, and writing while the view is drawn anew, in the real app and a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browser import browsing, serving
from factories import World, open_world, png
from storage.images import ensure_image
from storage.samples import add_sample

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.usefixtures("chromium")]
LONG = "word " * 2000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = open_world(tmp_path_factory.mktemp("look") / "data")
    many = [ensure_image(made.db, made.folder, png((90 * place, 40, 200), (300, 200))) for place in range(3)]
    parts = [{"type": "image", "image": image.sha256} for image in many]
    add_sample(made.db, "x", "1", [{"role": "user", "content": [*parts, {"type": "text", "text": "which?"}]}])
    tall = ensure_image(made.db, made.folder, png((9, 9, 9), (200, 3000)))
    content = [{"type": "image", "image": tall.sha256}, {"type": "text", "text": LONG}]
    add_sample(made.db, "x", "2", [{"role": "user", "content": content}])
    made.candidates(1, ["yes", "no"])
    made.candidates(2, [LONG, "שלום " * 900, "مرحبا"])
    made.db.conn.execute("UPDATE jobs SET status = 'done'")  # the factory's: nothing is to run
    yield made
    made.db.close()


@pytest.fixture(scope="module")
def tab(world: World) -> Iterator[Any]:
    with serving(world.folder.root) as address, browsing() as page:
        page.address = address
        yield page


def at(tab: Any, sample: int) -> None:
    tab.goto(f"{tab.address}/?sample={sample}")
    tab.locator(f'.pb-sample[data-sample="{sample}"] [data-zoom][data-ready]').first.wait_for()
    tab.locator(".pb-card.pb-at").wait_for()


def scales(tab: Any, within: str = ".pb-left") -> list[float]:
    """How far each image is zoomed, from what the browser shows."""
    found = tab.locator(f"{within} [data-zoom] img").evaluate_all(
        "all => all.map(one => new DOMMatrix(getComputedStyle(one).transform).a)"
    )
    return [round(scale, 2) for scale in found]


def corners(tab: Any, place: int) -> tuple[dict[str, float], dict[str, float]]:
    """The frame and the image in it, on the screen."""
    frame = tab.locator(".pb-left [data-zoom]").nth(place)
    return frame.bounding_box(), frame.locator("img").bounding_box()


def test_scripts_run_in_order_however_they_arrive(tab: Any) -> None:
    def late(route: Any) -> None:
        tab.wait_for_timeout(150)
        route.continue_()

    tab.route("**/plumb.js*", late)
    tab.goto(f"{tab.address}/?sample=1&fresh=1")
    tab.locator(".pb-card.pb-at").wait_for(timeout=10_000)  # what scoring.js does when a view is there
    tab.unroute("**/plumb.js*")
    order = tab.locator("script[src*='plumb-static']").evaluate_all(
        "all => all.map(one => [one.src.split('/').pop().split('?')[0], one.async])"
    )
    assert order[0] == ["plumb.js", False]
    assert all(not at_once for _, at_once in order)
    assert tab.problems == []


def test_images_are_zoomed_in_place_by_keys_wheel_and_drag(tab: Any) -> None:
    at(tab, 1)
    press = tab.keyboard.press
    assert scales(tab) == [1, 1, 1]
    press("+")
    press("=")
    assert scales(tab) == [2.25] * 3, "without a focus all are meant"
    before = corners(tab, 0)[1]
    press("Shift+ArrowRight")
    assert tab.locator('.pb-sample[data-sample="1"]').count() == 1, "the arrow moves the image, not the sample"
    assert corners(tab, 0)[1]["x"] < before["x"]
    for _ in range(9):
        press("Shift+ArrowRight")
    frame, image = corners(tab, 0)
    assert image["x"] + image["width"] == pytest.approx(frame["x"] + frame["width"], abs=2.5), "never out of it"
    press("3")
    assert tab.locator('.pb-metric button[data-value="3"][aria-pressed="true"]').count() == 1, "scored meanwhile"
    press("Escape")
    assert scales(tab) == [1, 1, 1]

    # The point under the pointer stays where it is; the other images are left alone.
    frame, _ = corners(tab, 1)
    x, y = frame["x"] + frame["width"] * 0.25, frame["y"] + frame["height"] * 0.5
    tab.mouse.move(x, y)
    tab.mouse.wheel(0, -400)
    tab.wait_for_function("document.querySelectorAll('.pb-left [data-zoom].zoomed').length === 1")
    frame, image = corners(tab, 1)
    assert (x - image["x"]) / image["width"] == pytest.approx(0.25, abs=0.02)
    tab.mouse.down()
    tab.mouse.move(x + 20, y, steps=3)
    tab.mouse.up()
    assert corners(tab, 1)[1]["x"] == pytest.approx(image["x"] + 20, abs=2)
    assert tab.locator("#pb-large").count() == 0, "a drag is no click"

    # A view that is drawn anew shows the same part.
    kept = scales(tab)
    tab.evaluate("document.querySelector('.pb-sample').dataset.old = 1; window.plumb.refresh()")
    tab.wait_for_function("!document.querySelector('.pb-sample').dataset.old")
    assert scales(tab) == kept
    tab.locator(".pb-left [data-whole]").click()
    assert scales(tab) == [1, 1, 1]
    assert tab.problems == []


def test_images_large_side_by_side(tab: Any) -> None:
    at(tab, 1)
    press = tab.keyboard.press
    press("i")
    tab.locator("#pb-large[open]").wait_for()
    boxes = [one.bounding_box() for one in tab.locator("#pb-large [data-zoom]").all()]
    assert len(boxes) == 3
    assert len({box["y"] for box in boxes}) == 1, "side by side"
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= 720 for box in boxes)
    press("+")
    assert scales(tab, "#pb-large") == [1.5] * 3
    press("0")
    assert scales(tab, "#pb-large") == [1] * 3
    tab.locator("#pb-large [data-zoom]").nth(1).focus()
    press("+")
    press("ArrowLeft")
    assert scales(tab, "#pb-large") == [1, 1.5, 1], "one that has the focus is meant alone"
    press("i")
    tab.locator("#pb-large").wait_for(state="detached")
    assert scales(tab) == [1, 1.5, 1], "what was found there is seen beside the answers"
    tab.locator(".pb-left [data-zoom]").nth(2).focus()
    press("Enter")
    tab.locator("#pb-large[open]").wait_for()
    press("Escape")
    tab.locator("#pb-large").wait_for(state="detached")
    assert tab.evaluate("document.activeElement.dataset.place") == "2", "the focus is where it was"
    at(tab, 2)
    assert scales(tab) == [1], "another sample begins whole"
    assert tab.problems == []


def test_a_tall_image_and_long_texts_stay_on_the_screen(tab: Any) -> None:
    at(tab, 2)
    for height in (0, 4000):
        tab.evaluate(f"window.scrollTo(0, {height}); document.querySelector('.pb-left').scrollTop = {height}")
        _, box = corners(tab, 0)
        assert box["y"] >= 44
        assert box["y"] + box["height"] <= 720, "whole, however far down one is"
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing overflows"
    heights = tab.locator(".pb-card").evaluate_all("all => all.map(one => one.offsetHeight)")
    assert max(heights) < 420, "a long answer scrolls in its card"
    directions = tab.locator(".pb-card .pb-text").evaluate_all(
        "all => all.map(one => getComputedStyle(one).direction)"
    )
    assert directions == ["ltr", "rtl", "rtl"]


def test_nothing_is_lost_where_a_view_is_drawn_under_somebody_who_writes(tab: Any) -> None:
    for opens, field, wanted in (
        ("n", '.pb-own[data-parent=""] textarea', "a new answer, word by word"),
        ("w", ".pb-card .pb-own textarea", "yes, rewritten at length"),
        ("t", ".pb-note textarea", "a note for others"),
    ):
        at(tab, 1)
        tab.keyboard.press(opens)
        tab.locator(field).wait_for()
        tab.keyboard.press("Control+a")
        for number, letter in enumerate(wanted):
            if number % 6 == 2:  # as after a judge's answer, while the hands are in the field
                tab.evaluate("document.querySelector('.pb-sample').dataset.old = 1; window.plumb.refresh()")
            tab.keyboard.press(letter)
            if number % 6 == 4:
                tab.wait_for_function("!document.querySelector('.pb-sample').dataset.old")
        tab.wait_for_function("!document.querySelector('.pb-sample').dataset.old")
        assert tab.locator(field).input_value() == wanted
        assert tab.evaluate(f"document.activeElement.matches({field!r})")
        # The caret too: a letter within stays within.
        for _ in range(3):
            tab.keyboard.press("ArrowLeft")
        tab.evaluate("document.querySelector('.pb-sample').dataset.old = 1; window.plumb.refresh()")
        tab.wait_for_function("!document.querySelector('.pb-sample').dataset.old")
        tab.keyboard.press("X")
        assert tab.locator(field).input_value() == f"{wanted[:-3]}X{wanted[-3:]}"
    assert tab.problems == []
