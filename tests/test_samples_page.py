"""The Samples page: views by address, scores and pairs saved at a click, undo, images, the demo's import."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from browser import browsing, find_chromium, serving
from factories import USER, World, metrics_of, open_world, png
from jobs.settings import local_user
from storage.candidates import add_generated, candidates_of
from storage.errors import UserError
from storage.finding import PROBLEMS, STATES, SampleFilter, count_problems, count_samples, find_samples
from storage.images import ensure_image
from storage.records import METRICS
from storage.scores import add_judgement, ensure_rater, get_judgements, set_score
from workbench import samples_desk
from workbench.context import Context
from workbench.door import Door
from workbench.judge_marks import letter
from workbench.pages import samples as page
from workbench.ui import build_api

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)"> \' " & {{value}} ${alert(3)}'


@pytest.fixture
def web(context: Context) -> TestClient:
    return TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")


class Shape(HTMLParser):
    """The tags and the text of a piece of HTML, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [found for _, found in self.tags if wanted.items() <= found.items()]


def show(context: Context, user: str, search: str) -> Any:
    """The whole view: nothing is on the screen yet."""
    return page.show(context, user, search)


# --- views by address ---


def test_a_fresh_folder_shows_the_welcome(context: Context) -> None:
    view = show(context, USER, "")
    assert view.empty
    assert view.detail == ""
    assert view.steps == ""


def test_the_address_says_what_is_shown(world: World, context: Context) -> None:
    red = world.sample(1, question="is there a red shape?", source="a")
    blue = world.sample(2, question="is there a blue shape?", source="b", split="test")
    assert f'data-sample="{red}"' in show(context, USER, "").detail, "the first, where none is named"
    assert f'data-sample="{blue}"' in show(context, USER, f"?sample={blue}").detail
    view = show(context, USER, "?q=blu&source=b&split=test&state=no+candidates")
    assert f'data-sample="{blue}"' in view.detail
    assert view.where == SampleFilter("blu", "b", "test", "no candidates")
    assert "<b>1</b> of 2 samples" in view.count
    options = [found["value"] for found in Shape(page.show_finder(context, USER)).all() if "value" in found]
    assert {"a", "b", "test", "train", "unjudged", "longest answer", "helpfulness"} <= set(options)


@pytest.mark.parametrize(
    "search", ["?sample=x", "?sample=-1", "?sample=" + "9" * 40, "?state=nonsense", "?&&=", "?%ff"]
)
def test_an_address_that_means_nothing_is_passed_over(world: World, context: Context, search: str) -> None:
    first = world.sample()
    assert f'data-sample="{first}"' in show(context, USER, search).detail


def test_a_sample_that_is_not_there_is_said(world: World, context: Context) -> None:
    world.sample()
    assert "There is no sample 99" in show(context, USER, "?sample=99").detail


def test_filters_without_a_match_say_so_and_can_be_cleared(world: World, context: Context) -> None:
    world.sample()
    view = show(context, USER, "?q=zebra")
    assert not view.empty
    assert "No sample fits these filters" in view.rows + view.detail
    assert 'href="?"' in view.rows


def test_a_sample_outside_the_filter_says_so(world: World, context: Context) -> None:
    first = world.sample(1, "what shape is it?")
    world.sample(2, "what colour is it?")
    assert "1 of 1" in show(context, USER, f"?sample={first}&q=shape").detail
    assert "not in this filter" in show(context, USER, f"?sample={first}&q=colour").detail


def test_next_and_previous_keep_the_filter(world: World, context: Context) -> None:
    ids = [world.sample(i, question="a red one" if i % 2 else "a blue one") for i in range(1, 7)]
    detail = Shape(show(context, USER, f"?q=red&sample={ids[2]}").detail)
    assert [found["href"] for found in detail.all(data_step="prev")] == [f"?q=red&sample={ids[0]}"]
    assert [found["href"] for found in detail.all(data_step="next")] == [f"?q=red&sample={ids[4]}"]
    assert "2 of 3" in detail.text
    ends = show(context, USER, f"?q=red&sample={ids[4]}").detail
    assert 'data-step="next"' not in ends


def test_the_list_pages_by_key(world: World, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_desk, "PAGE", 3)
    ids = [world.sample(i) for i in range(1, 9)]
    view = show(context, USER, f"?sample={ids[4]}")
    assert "4–6 of 8" in view.rows
    shown = [found["href"] for found in Shape(view.rows).all(aria_current="true")]
    assert shown == [f"?sample={ids[4]}"]
    assert f'href="?sample={ids[2]}" data-go aria-label="Previous page"' in view.rows
    assert f'href="?sample={ids[6]}" data-go aria-label="Next page"' in view.rows


def test_empty_states_say_what_to_do_next(world: World, context: Context) -> None:
    sample = world.sample()
    view = show(context, USER, "")
    assert "/jobs?kind=generate" in view.steps
    assert "/jobs?kind=generate" in view.detail
    world.candidates(sample, ["a", "b"])
    view = show(context, USER, "")
    assert "/jobs?kind=judge" in view.steps
    assert "/jobs?kind=judge" in view.detail
    other = world.sample(2)
    world.judged(other, [12, 0])
    assert "/pairs" in show(context, USER, f"?sample={other}").steps


def test_own_scores_stand_apart_from_others(world: World, context: Context) -> None:
    sample = world.sample()
    first, second = world.judged(sample, [9, 3], judge="the-judge")
    set_score(world.db, USER, first.id, "helpfulness", 2)
    set_score(world.db, "bob", first.id, "helpfulness", 4)
    mine = Shape(show(context, USER, "").detail)
    assert len(mine.all(data_metric="helpfulness")) == 2 * 5
    assert [found["aria-label"] for found in mine.all(aria_pressed="true")] == ["Answer A, helpfulness: 2"]
    for name in ("the-judge", "bob", "9 of 12", "3 of 12", "partial"):
        assert name in mine.text
    theirs = Shape(show(context, "carl", "").detail)
    assert theirs.all(aria_pressed="true") == []
    assert USER in theirs.text
    assert second.id


def test_a_judgement_without_scores_is_seen(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a", "b"])
    rater = ensure_rater(world.db, "judge", "the-judge")
    add_judgement(
        world.db, rater_id=rater, sample_id=sample, job_id=None, state="unparseable", reason="no JSON <here>"
    )
    view = show(context, USER, "")
    assert "unparseable no JSON <here>" in Shape(view.detail).text
    assert "2 answers · unparseable" in Shape(view.rows).text


def judged(world: World, sample: int, *states: str, judge: str = "the-judge") -> None:
    rater = ensure_rater(world.db, "judge", judge)
    for state in states:
        add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state=state)  # type: ignore[arg-type]


def selected(world: World, **where: str) -> list[int]:
    return [sample.id for sample in find_samples(world.db, SampleFilter(**where))]


def test_a_judges_latest_call_decides_the_state(world: World, context: Context) -> None:
    ids = [world.sample(i, source="a" if i < 3 else "b") for i in range(1, 6)]
    judged(world, ids[0], "ok", "blocked")
    judged(world, ids[1], "blocked", "ok")
    judged(world, ids[2], "blocked", "truncated")
    judged(world, ids[3], "ok")
    judged(world, ids[3], "blocked", "failed", judge="another")
    judged(world, ids[3], "blocked", judge="a third")
    set_score(world.db, USER, world.candidates(ids[4], ["a"])[0].id, "helpfulness", 1)
    assert selected(world, state="blocked") == [ids[0], ids[3]]
    assert selected(world, state="truncated") == [ids[2]]
    assert selected(world, state="failed") == [ids[3]]
    assert selected(world, state="unparseable") == []
    assert selected(world, state="blocked", source="b") == [ids[3]]
    assert count_problems(world.db, SampleFilter()) == {"blocked": 2, "truncated": 1, "failed": 1}
    assert count_problems(world.db, SampleFilter(state="failed", source="a")) == {"blocked": 1}
    assert count_problems(world.db, SampleFilter(q="shape")) == {"blocked": 2, "truncated": 1, "failed": 1}
    view = show(context, USER, "?source=b&state=failed")
    assert f'data-sample="{ids[3]}"' in view.detail
    world.candidates(ids[3], ["a"])
    count = Shape(view.count)
    assert "Judges: 1 blocked, 1 truncated, 1 failed" in count.text
    links = [
        attributes["href"] for tag, attributes in count.tags if attributes.get("class") == "pb-warn" and tag == "a"
    ]
    assert links == ["?source=b&state=blocked", "?source=b&state=truncated"], "the state one is in is no link"
    rows = Shape(show(context, USER, "").rows).text
    assert "judged · blocked · failed" in rows
    assert "Judges:" not in show(context, USER, "?source=c").count


def test_every_state_of_the_filter_is_offered_and_can_be_asked_for(world: World) -> None:
    world.sample()
    assert set(PROBLEMS) < set(STATES)
    for state in STATES:
        assert SampleFilter.from_query({"state": state}).state == state
        selected(world, state=state)


def test_who_made_an_answer_is_linked(world: World, context: Context) -> None:
    sample = world.sample()
    job = world.job()
    add_generated(
        world.db,
        job_id=job.id,
        sample_id=sample,
        number=0,
        text="a",
        model="owner/model",
        settings={"temperature": 0.7},
        tokens=64,
        finish="length",
    )
    detail = show(context, USER, "").detail
    assert f'<a href="/jobs?job={job.id}">job {job.id}</a>' in detail
    for part in ("owner/model", "base", "T 0.7", "64 tokens", "cut off"):
        assert part in detail


def test_all_texts_are_escaped(world: World, context: Context) -> None:
    sample = world.sample(1, question=EVIL, reference=EVIL, source=EVIL, split=EVIL)
    world.candidates(sample, [EVIL, EVIL + "2"])
    rater = ensure_rater(world.db, "judge", EVIL, EVIL)
    scores = [{"candidate_id": one.id, **metrics_of(5)} for one in candidates_of(world.db, [sample])[sample]]
    add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state="ok", scores=scores)
    view = show(context, EVIL, "?q=" + "x")
    view = show(context, EVIL, "")
    shape = Shape(view.rows + view.detail + view.count + view.steps)
    assert "script" not in {tag for tag, _ in shape.tags}
    assert all(name[:2] != "on" for _, attributes in shape.tags for name in attributes)
    assert shape.text.count(EVIL) >= 5
    sources = [attributes.get("src") or "" for tag, attributes in shape.tags if tag == "img"]
    assert all(source.startswith(("/images/", "/thumbnails/")) for source in sources)


def test_several_images_and_earlier_turns(world: World, context: Context) -> None:
    sample = world.sample(1, images=3)
    detail = show(context, USER, f"?sample={sample}").detail
    assert detail.count('class="pb-image crisp"') == 3
    sha = ensure_image(world.db, world.folder, png(size=(900, 700))).sha256
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "image": sha}, {"type": "text", "text": "first"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "reply"}]},
        {"role": "user", "content": "second"},
    ]
    from storage.samples import add_sample

    long = add_sample(world.db, "x", "1", messages)
    shape = Shape(show(context, USER, f"?sample={long}").detail)
    assert "crisp" not in str(shape.all(width="900")[0]["class"])
    assert "[image] first" in shape.text
    assert "2 turns before" in shape.text


def test_letters_go_on_after_z() -> None:
    assert [letter(index) for index in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


# --- what is saved at a click ---


def test_a_score_is_saved_changed_cleared_and_undone(world: World, web: TestClient) -> None:
    sample = world.sample()
    first = world.candidates(sample, ["a", "b"])[0]

    def score(value: int | None) -> dict[str, Any]:
        answer = web.post("/api/scores", json={"candidate": first.id, "metric": "coherence", "value": value})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def stored() -> int | None:
        judgements = get_judgements(world.db, [sample])[sample]
        return judgements[0].scores[0].coherence if judgements else None

    assert score(3)["value"] == 3
    assert stored() == 3
    assert score(4)["value"] == 4
    assert score(None)["value"] is None
    assert stored() is None
    answer = web.post("/api/undo")
    assert answer.json()["undone"] == f"coherence cleared for candidate {first.id}"
    assert answer.json()["sample"] == sample
    assert stored() == 4
    assert get_judgements(world.db, [sample])[sample][0].rater.name == local_user()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"candidate": 1, "metric": "helpfulness", "value": 5}, 400, "helpfulness = 5"),
        ({"candidate": 1, "metric": "beauty", "value": 1}, 400, "beauty"),
        ({"candidate": 99, "metric": "helpfulness", "value": 1}, 404, "candidate 99"),
        ({"candidate": 1, "metric": "helpfulness", "value": True}, 422, "value"),
        ({"candidate": 1, "metric": "helpfulness", "value": "3"}, 422, "value"),
        ({"candidate": 1, "metric": "helpfulness"}, 422, "value"),
        ({"candidate": 1, "metric": "helpfulness", "value": 1, "user": "eve"}, 422, "user"),
        ([], 422, ""),
    ],
)
def test_a_bad_score_is_refused_with_its_reason(
    world: World, web: TestClient, body: Any, status: int, said: str
) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    answer = web.post("/api/scores", json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert get_judgements(world.db, [sample])[sample] == []


@pytest.mark.parametrize("candidate", [0, -1, 2**63, 10**20])
def test_a_number_that_can_be_no_id_is_refused(web: TestClient, candidate: int) -> None:
    body = {"candidate": candidate, "metric": "correctness", "value": 1}
    assert web.post("/api/scores", json=body).status_code == 422
    assert web.post(f"/api/pairs/{candidate}/accept").status_code == 422


def test_a_locked_database_is_said_and_can_be_tried_again(
    world: World, web: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.candidates(world.sample(), ["a"])[0]
    from storage import database

    monkeypatch.setattr(database.connect, "__defaults__", (0.05,))
    monkeypatch.setattr(database.session.__wrapped__, "__defaults__", (0.05,))  # type: ignore[attr-defined]
    body = {"candidate": first.id, "metric": "helpfulness", "value": 1}
    world.db.conn.execute("BEGIN IMMEDIATE")
    answer = web.post("/api/scores", json=body)
    assert answer.status_code == 503
    assert "held by another process" in answer.json()["error"]
    world.db.conn.execute("COMMIT")
    assert web.post("/api/scores", json=body).status_code == 200


def test_a_pair_by_hand(world: World, context: Context, web: TestClient) -> None:
    sample = world.sample()
    first, second = world.candidates(sample, ["good", "bad"])
    told = web.post("/api/pairs", json={"chosen": first.id, "rejected": second.id}).json()
    assert told["sample"] == sample
    assert told["counts"]["pairs"] == told["counts"]["accepted"] == 1
    assert "A over B" in Shape(show(context, USER, "").detail).text
    same = web.post("/api/pairs", json={"chosen": first.id, "rejected": first.id})
    assert same.status_code == 400
    assert "both chosen and rejected" in same.json()["error"]


# --- images ---


def test_images_are_served_once_and_for_all(world: World, web: TestClient) -> None:
    data = png((1, 2, 3))
    image = ensure_image(world.db, world.folder, data)
    whole = web.get(f"/images/{image.sha256}")
    assert whole.content == data
    assert whole.headers["content-type"] == "image/png"
    small = web.get(f"/thumbnails/{image.sha256}")
    assert small.headers["content-type"] == "image/webp"
    for answer in (whole, small):
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'"
    again = web.get(f"/images/{image.sha256}", headers={"if-none-match": whole.headers["etag"]})
    assert again.status_code == 304


def test_only_images_that_the_database_knows_are_served(world: World, web: TestClient) -> None:
    stray = world.folder.images / "ab" / ("ab" * 32 + ".png")
    stray.parent.mkdir(parents=True)
    stray.write_bytes(png())
    for name in ("ab" * 32, "0" * 64, "x", "..%2f..%2fplumb.db", "A" * 64, "ab" * 32 + ".png"):
        for kind in ("images", "thumbnails"):
            assert web.get(f"/{kind}/{name}").status_code == 404, name


def test_a_missing_file_is_said(world: World, web: TestClient) -> None:
    image = ensure_image(world.db, world.folder, png())
    (world.folder.images / image.sha256[:2] / image.name).unlink()
    answer = web.get(f"/images/{image.sha256}")
    assert answer.status_code == 404
    assert "python -m storage check" in answer.json()["error"]
    assert answer.headers["cache-control"] == "no-store"


# --- the demo's samples ---


def test_the_demo_is_loaded_with_progress(world: World, context: Context) -> None:
    said = list(page.load_demo(context, 40))
    assert "<progress" in said[0]
    assert "40 of 40" in said[-2]
    assert "40 samples of easy-VQA loaded" in said[-1]
    assert count_samples(world.db, SampleFilter()) == 40
    assert not show(context, USER, "").empty


@pytest.mark.parametrize("number", [None, 0, 19, 4001, 20.5])
def test_a_number_of_samples_out_of_range_is_named(context: Context, number: float | None) -> None:
    with pytest.raises(UserError, match=r"Number of samples = .*20 to 4000"):
        list(page.load_demo(context, number))


def test_a_missing_wheel_is_said(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("storage.easy_vqa.importlib.import_module", missing)
    with pytest.raises(UserError, match="easy-vqa is not installed"):
        list(page.load_demo(context, 20))


# --- in a browser ---


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")
def test_working_through_samples_in_a_browser(tmp_path: Path, wait_for: Callable[..., None]) -> None:
    world = open_world(tmp_path / "data")
    ids = [world.sample(i, question=f"{EVIL} number {'red' if i == 2 else 'blue'} {i}") for i in range(1, 4)]
    for sample in ids:
        world.candidates(sample, [f"good {EVIL}", "bad"])
    world.db.conn.execute("UPDATE jobs SET status = 'done'")  # the factory's: nothing is to run
    with serving(world.folder.root) as address, browsing() as tab:

        def button(metric: str, value: int, card: int = 0) -> Any:
            return tab.locator(".pb-card").nth(card).locator(f'[data-metric="{metric}"][data-value="{value}"]')

        def pinned(sample: int) -> None:
            tab.locator(f'.pb-sample[data-sample="{sample}"]').wait_for()

        tab.goto(f"{address}/?sample={ids[1]}")
        pinned(ids[1])
        assert EVIL in tab.locator(".pb-question").inner_text()
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sideways"

        tab.keyboard.press("ArrowRight")
        pinned(ids[2])
        assert tab.url.endswith(f"sample={ids[2]}")
        tab.go_back()
        pinned(ids[1])

        for metric, value in zip(METRICS, (4, 3, 2, 1, 0), strict=True):
            button(metric, value).click()
        tab.locator("#pb-status").get_by_text("Saved", exact=True).wait_for()
        wait_for(lambda: get_judgements(world.db, [ids[1]])[ids[1]][0].scores[0].complete, "five scores", 10)
        stored = get_judgements(world.db, [ids[1]])[ids[1]][0].scores[0]
        assert [stored.value(metric) for metric in METRICS] == [4, 3, 2, 1, 0]

        tab.locator("[data-undo]").click()
        tab.locator("#pb-status").get_by_text("Undone: verbosity 0").wait_for()
        tab.locator('[data-metric="verbosity"][data-value="0"][aria-pressed="false"]').first.wait_for()
        button("verbosity", 0).click()
        tab.locator("[data-undo]").click()  # the same HTML as before the click: it must be drawn again
        tab.locator('.pb-card:first-of-type [data-metric="verbosity"][aria-pressed="true"]').wait_for(
            state="detached"
        )

        tab.route("**/api/scores", lambda route: route.abort())
        button("verbosity", 2).click()
        tab.locator("#pb-status").get_by_text("Not saved yet").wait_for()
        assert tab.evaluate("window.plumb.waiting().map((change) => change.body.value)") == [2]
        tab.unroute("**/api/scores")
        tab.reload()  # what was not saved survives, and is sent
        tab.locator(
            '.pb-card:first-of-type [data-metric="verbosity"][data-value="2"][aria-pressed="true"]'
        ).wait_for()
        wait_for(
            lambda: get_judgements(world.db, [ids[1]])[ids[1]][0].scores[0].verbosity == 2, "the score is sent", 20
        )

        tab.locator('.pb-card [data-pick="chosen"]').nth(0).click()
        tab.locator('.pb-card [data-pick="rejected"]').nth(1).click()
        tab.locator("[data-pairs]").get_by_text("A over B").wait_for()

        tab.get_by_label("Search").fill("red")
        tab.locator(".pb-total").get_by_text("1 of 3 samples").wait_for()
        tab.wait_for_function("location.search.includes('q=red')")
        problems = [text for text in tab.problems if "ERR_FAILED" not in text]
        assert problems == []
    world.db.close()
