"""The left side of the Samples page: addresses, chips, the list that stays, queues, views, bulk acts."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from factories import USER, World
from jobs.configs import JudgeConfig
from jobs.desk import write_desk
from jobs.settings import local_user
from storage import history, queues
from storage.finding import NUMBERS, ORDERS, STATES, Count, SampleFilter, find_samples
from storage.jobs import list_jobs
from storage.pairs import count_pairs
from storage.queues import QUEUES, Queue
from storage.records import METRICS
from storage.remarks import flags_of, set_skip
from storage.saved_views import list_views, save_view
from storage.scores import set_score
from test_samples_page import EVIL, Shape
from workbench import bulk_desk, samples_desk
from workbench import list_views as lists
from workbench.addresses import LONGEST_TRAIL, Address, read_address
from workbench.context import Context
from workbench.door import Door
from workbench.drawn_list import Drawn, read_drawn
from workbench.ui import build_api


@pytest.fixture
def web(context: Context) -> TestClient:
    return TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")


def pinned(view: samples_desk.View) -> int:
    found = re.search(r'data-sample="(\d+)"', view.detail)
    assert found, view.detail
    return int(found[1])


def step(view: samples_desk.View, name: str) -> str | None:
    found = Shape(view.detail).all(data_step=name)
    return found[0]["href"] if found else None


def links_of(shape: Shape) -> list[str]:
    return [found["href"] or "" for _, found in shape.tags if "data-go" in found]


def on_screen(view: samples_desk.View, at: int | None = None) -> Drawn:
    """What the browser tells of the list that the view draws."""
    assert view.rows is not None
    found = re.search(r'data-drawn="([^"]*)"', view.rows)
    assert found, view.rows
    drawn = read_drawn(json.dumps({**json.loads(html.unescape(found[1])), "pinned": at}))
    assert drawn is not None
    return drawn


# --- addresses ---

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).map(str.strip)
_FILTERS = st.builds(
    SampleFilter,
    q=_TEXT,
    source=_TEXT,
    state=st.sampled_from(STATES),
    rater=_TEXT,
    metric=st.sampled_from(("", *METRICS)),
    low=st.sampled_from(("", "0", "4")),
    gap=st.sampled_from(("", "1", "0.5")),
    images=st.sampled_from(("", *NUMBERS)),
    order=st.sampled_from(tuple(ORDERS)),
)
_QUEUES = st.builds(Queue, st.sampled_from(tuple(QUEUES)), where=_FILTERS)
_IDS = st.integers(1, 10**9)


@given(_FILTERS, st.none() | _IDS, st.none() | _QUEUES, st.lists(_IDS, max_size=LONGEST_TRAIL))
def test_an_address_is_read_as_it_was_written(
    where: SampleFilter, sample: int | None, queue: Queue | None, trail: list[int]
) -> None:
    address = Address(queue.where if queue else where, sample, queue, tuple(trail) if queue else ())
    assert read_address(address.href()) == address


@given(st.text(max_size=200))
def test_any_text_can_stand_as_an_address(search: str) -> None:
    assert read_address(read_address(search).href()) == read_address(search)


def test_a_queue_is_walked_on_and_back() -> None:
    first = Address(queue=Queue("unscored"), sample=5)
    second = first.onward().at(9)
    assert (second.sample, second.trail) == (9, (5,))
    assert second.back() == first
    assert first.back() is None
    far = first
    for sample in range(100, 200):
        far = far.onward().at(sample)
    assert len(far.trail) == LONGEST_TRAIL
    assert far.trail[-1] == 198


# --- what is set ---


def test_each_chip_takes_its_own_filter_away() -> None:
    where = SampleFilter.from_query(
        {
            **{"q": "red", "state": "judged", "source": "a", "rater": "bob", "metric": "verbosity", "low": "1"},
            **{"gap": "1", "images": "1", "turns": "3+", "order": "newest"},
        }
    )
    shape = Shape(lists.chips(Address(where, 7)))
    links = {link["aria-label"]: link["href"] for link in shape.all() if "aria-label" in link and "href" in link}
    assert set(links) == {
        f"Remove the filter: {said}"
        for said in (
            *("“red”", "judged", "a", "scored by bob", "verbosity 1–4", "1 image", "3+ turns"),
            "judges and people differ by 1 or more",
        )
    }
    left = read_address(links["Remove the filter: verbosity 1–4"] or "")
    assert left == Address(replace(where, metric="", low=""))
    assert shape.all(**{"class": "pf-clear"})[0]["href"] == "?order=newest", "an order hides nothing"
    assert lists.chips(Address(SampleFilter(order="newest"))) == ""


def test_chips_say_what_is_set() -> None:
    shape = Shape(lists.chips(Address(SampleFilter(q=EVIL, source=EVIL, rater=EVIL))))
    assert shape.text == f"“{EVIL}”×{EVIL}×scored by {EVIL}×Clear all"
    assert {tag for tag, _ in shape.tags} == {"div", "span", "a"}


def test_chips_stay_in_the_queue() -> None:
    queue = Queue("disagree", gap=2.0, where=SampleFilter(q="red"))
    shape = Shape(lists.chips(Address(queue.where, 7, queue, (1, 2))))
    assert read_address(links_of(shape)[0]) == Address(queue=Queue("disagree", gap=2.0))


def test_an_estimate_is_told_as_one() -> None:
    everything = Count(1_000_000)
    said = Shape(lists.told_count(Count(310_000, "about"), everything, 0, SampleFilter(q="a"))).text
    assert said == "about 310,000 of 1,000,000 samples"
    assert "With these about 310,000" in Shape(lists.bulk_bar(Count(310_000, "about"), SampleFilter(q="a"))).text


# --- the list that is on the screen ---


def test_a_step_within_the_list_draws_the_sample_alone(world: World, context: Context) -> None:
    ids = [world.sample(i, question=EVIL) for i in range(1, 6)]
    world.candidates(ids[1], ["a"])
    drawn = on_screen(samples_desk.show(context, USER, f"?sample={ids[0]}"), at=ids[1])
    view = samples_desk.show(context, USER, f"?sample={ids[2]}", drawn)
    assert (view.steps, view.count, view.rows) == (None, None, None)
    assert pinned(view) == ids[2]
    assert "3 of 5" in Shape(view.detail).text
    assert (step(view, "prev"), step(view, "next")) == (f"?sample={ids[1]}", f"?sample={ids[3]}")
    fresh = Shape(view.fresh)
    assert [line["data-item"] for tag, line in fresh.tags if tag == "li"] == [str(ids[1]), str(ids[2])]
    assert "1 answer" in fresh.text
    assert "script" not in {tag for tag, _ in fresh.tags}
    assert step(samples_desk.show(context, USER, f"?sample={ids[4]}", drawn), "next") is None


def test_a_step_beyond_the_list_or_to_another_filter_draws_all(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_desk, "PAGE", 2)
    ids = [world.sample(i) for i in range(1, 5)]
    drawn = on_screen(samples_desk.show(context, USER, ""))
    assert step(samples_desk.show(context, USER, f"?sample={ids[1]}", drawn), "next") == f"?sample={ids[2]}"
    for search in (f"?sample={ids[2]}", f"?sample={ids[1]}&q=shape", f"?sample={ids[1]}&order=newest", ""):
        assert samples_desk.show(context, USER, search, drawn).rows is not None, search


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "7", '{"ids": []}', '{"ids": [1e999]}', "[" * 5000),
        '{"ids": [1], "filter": {}, "start": 0, "start_kind": "<b>", "total": 1, "total_kind": "exact"}',
        '{"ids": [-1], "filter": {}, "start": 0, "start_kind": "exact", "total": 1, "total_kind": "exact"}',
        '{"ids": [1], "filter": [], "start": 0, "start_kind": "exact", "total": 1, "total_kind": "exact"}',
    ],
)
def test_what_no_list_of_ours_says_is_passed_over(text: str) -> None:
    assert read_drawn(text) is None


def test_marks_are_seen_in_the_list(world: World, context: Context, web: TestClient) -> None:
    ids = [world.sample(i) for i in (1, 2)]
    assert web.post("/api/bulk", json={"act": "flag", "search": "?q=shape", "count": 2}).status_code == 200
    set_skip(world.db, USER, ids[0], True)
    rows = Shape(str(samples_desk.show(context, USER, "").rows)).text
    assert "flagged · skipped" in rows
    web.post("/api/discard", json={"sample": ids[1], "on": True})
    assert str(samples_desk.show(context, USER, "").rows).count("data-item") == 1
    assert "discarded" in Shape(str(samples_desk.show(context, USER, "?state=discarded").rows)).text


def test_a_folder_whose_samples_are_all_discarded_is_not_new(
    world: World, context: Context, web: TestClient
) -> None:
    world.sample()
    web.post("/api/bulk", json={"act": "discard", "search": "", "count": 1})
    view = samples_desk.show(context, USER, "")
    assert not view.empty
    assert "state=discarded" in view.detail, "the way to take them back"


# --- queues ---


def queued(world: World, number: int) -> list[int]:
    ids = [world.sample(i) for i in range(1, number + 1)]
    for sample in ids:
        world.candidates(sample, ["a", "b"])
    return ids


def test_the_queue_gives_and_holds_the_next_sample(world: World, context: Context) -> None:
    ids = queued(world, 4)
    view = samples_desk.show(context, "ada", "?queue=unscored")
    assert pinned(view) == ids[0]
    assert queues.holders(world.db, ids[0]) == ["ada"]
    assert "pb-list" not in str(view.rows), "the list is not asked for"
    assert "4 left" in Shape(str(view.rows)).text
    assert pinned(samples_desk.show(context, "bob", "?queue=unscored")) == ids[1], "no two get the same"
    onward = step(view, "next") or ""
    after = samples_desk.show(context, "ada", onward)
    assert pinned(after) == ids[2], "left unscored, and yet it goes on"
    assert queues.holders(world.db, ids[0]) == []
    back = samples_desk.show(context, "ada", step(after, "prev") or "")
    assert pinned(back) == ids[0]
    assert queues.holders(world.db, ids[0]) == ["ada"]
    assert step(back, "prev") is None


def test_a_reload_keeps_the_queues_sample(world: World, context: Context) -> None:
    ids = queued(world, 3)
    samples_desk.show(context, "ada", "?queue=unscored")
    set_score(world.db, "ada", 1, "helpfulness", 1)
    again = samples_desk.show(context, "ada", f"?queue=unscored&sample={ids[0]}")
    assert pinned(again) == ids[0]
    assert "By you 1" in Shape(str(again.rows)).text
    assert pinned(samples_desk.show(context, "ada", step(again, "next") or "")) == ids[1]


def test_who_else_holds_the_sample_is_said(world: World, context: Context) -> None:
    ids = queued(world, 2)
    world.db.conn.execute("INSERT INTO users (name, created_at) VALUES (?, '')", [EVIL])
    assert queues.renew(world.db, EVIL, ids[0])
    view = samples_desk.show(context, "ada", f"?queue=unscored&sample={ids[0]}")
    shape = Shape(str(view.rows))
    assert f"{EVIL} has this sample just now, and it is not held for you" in shape.text
    assert queues.holders(world.db, ids[0]) == [EVIL]
    assert "Go on to the next" in shape.text


def test_an_empty_queue_says_what_to_do(world: World, context: Context) -> None:
    ids = queued(world, 2)
    set_skip(world.db, "ada", ids[0], True)
    set_score(world.db, "bob", 3, "helpfulness", 1)
    view = samples_desk.show(context, "ada", "?queue=unscored")
    shape = Shape(view.detail)
    assert "Nothing is left in this queue" in shape.text
    links = links_of(shape)
    assert {read_address(link).where.state for link in links} == {"", "skipped"}
    assert {read_address(link).queue.kind for link in links if read_address(link).queue} == {"fewer"}  # type: ignore[union-attr]
    narrow = samples_desk.show(context, "ada", "?queue=flagged&q=zebra")
    assert "No sample of the filters that are set" in narrow.detail
    assert "queue=flagged" in narrow.detail
    assert samples_desk.show(context, "ada", "?queue=unscored&sample=99").detail.count("Nothing is left") == 1


def test_leaving_lets_the_sample_go(world: World, context: Context, web: TestClient) -> None:
    ids = queued(world, 1)
    held = web.post("/api/lease", json={"sample": ids[0], "on": True}).json()
    assert held == {"held": True, "others": []}
    assert queues.holders(world.db, ids[0]) == [local_user()]
    web.post("/api/lease", json={"on": False})
    assert queues.holders(world.db, ids[0]) == []
    queues.renew(world.db, "bob", ids[0])
    assert web.post("/api/lease", json={"sample": ids[0], "on": True}).json() == {"held": False, "others": ["bob"]}


# --- saved views ---


def test_a_view_is_saved_shared_and_deleted(world: World, web: TestClient) -> None:
    me = local_user()
    body = {"name": f" {EVIL[:60]} ", "search": "?state=judged&sample=7&nonsense=1", "shared": True}
    told = web.post("/api/views", json=body).json()
    view = list_views(world.db, me)[0]
    assert (view.name, view.parameters, view.shared) == (EVIL[:60].strip(), {"state": "judged"}, True)
    shape = Shape(told["html"])
    assert "script" not in {tag for tag, _ in shape.tags}
    assert "?state=judged" in links_of(shape)
    save_view(world.db, "bob", "theirs", {"queue": "flagged"}, True)
    save_view(world.db, "bob", "private", {}, False)
    assert web.post(f"/api/views/{list_views(world.db, 'bob')[0].id}/delete").status_code in (404, 409)
    told = web.post(f"/api/views/{view.id}/delete").json()
    assert "theirs" in told["html"]
    assert "private" not in told["html"]
    history.undo(world.db, me)
    assert [one.name for one in list_views(world.db, me) if one.user == me] == [view.name]
    assert web.post("/api/views", json={"name": " ", "search": "", "shared": False}).status_code == 400


def test_a_view_keeps_its_queue(world: World, web: TestClient) -> None:
    web.post("/api/views", json={"name": "q", "search": "?queue=overlap&percent=5&sample=3&trail=1.2"})
    query = list_views(world.db, local_user())[0].parameters
    assert read_address(urlencode(query)) == Address(queue=Queue("overlap", percent=5.0))


# --- acts on all that is selected ---


def asked(web: TestClient, act: str, search: str) -> Any:
    answer = web.post("/api/bulk", json={"act": act, "search": search})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("act", "other", "state"), [("flag", "unflag", "flagged"), ("discard", "keep", "discarded")]
)
def test_all_that_is_selected_is_marked_counted_first_and_undone(
    world: World, web: TestClient, act: str, other: str, state: str
) -> None:
    me = local_user()
    red = [world.sample(i, question="a red one") for i in (1, 2, 3)]
    world.sample(4, question="a blue one")

    def marked() -> list[int]:
        return [sample.id for sample in find_samples(world.db, SampleFilter(state=state))]

    told = asked(web, act, "?q=red&sample=4")
    assert (told["count"], told["question"]) == (3, f"{act.title()} 3 samples?")
    assert marked() == []
    done = web.post("/api/bulk", json={"act": act, "search": "?q=red", "count": 3}).json()
    assert done["undo"]
    assert marked() == red
    history.undo(world.db, me)
    assert marked() == []
    history.redo(world.db, me)
    there = f"?state={state}"
    assert asked(web, other, there)["count"] == 3
    web.post("/api/bulk", json={"act": other, "search": there, "count": 3})
    assert marked() == []
    history.undo(world.db, me)
    assert marked() == red


def test_nothing_is_done_to_more_than_was_asked_about(world: World, web: TestClient) -> None:
    ids = [world.sample(i) for i in (1, 2)]
    answer = web.post("/api/bulk", json={"act": "flag", "search": "", "count": 1})
    assert answer.status_code == 409
    assert "2 samples by now, not 1" in answer.json()["error"]
    assert flags_of(world.db, ids) == {ids[0]: [], ids[1]: []}


@pytest.mark.parametrize(
    ("act", "search", "said"), [("flag", "?q=zebra", "No sample fits"), ("drop", "", "choose one of")]
)
def test_an_act_on_nothing_is_refused(world: World, web: TestClient, act: str, search: str, said: str) -> None:
    world.sample()
    answer = web.post("/api/bulk", json={"act": act, "search": search})
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_the_judge_is_asked_about_these_alone(
    world: World, context: Context, web: TestClient, no_supervisor: None
) -> None:
    write_desk(world.folder, JudgeConfig(judge="easy-vqa-rules"))
    ids = queued(world, 3)
    assert asked(web, "judge", "?q=shape")["question"] == "Ask easy-vqa-rules about 3 samples?"
    world.sample(9, question="a red one")
    world.candidates(ids[0] + 3, ["a"])
    done = bulk_desk.do(context, USER, "judge", "?q=red", 1)
    job = next(job for job in list_jobs(world.db) if job.kind == "judge")
    assert done.href == f"/jobs?job={job.id}"
    assert not done.undo
    assert job.config["samples"]["ids"] == [ids[0] + 3]


def test_a_judge_without_a_key_cannot_be_asked(world: World, web: TestClient) -> None:
    queued(world, 1)
    write_desk(world.folder, JudgeConfig(judge="gemini"))
    answer = web.post("/api/bulk", json={"act": "judge", "search": ""})
    assert answer.status_code == 400
    assert "key" in answer.json()["error"].lower()


def test_pairs_are_made_of_these_alone(world: World, web: TestClient) -> None:
    ids = [world.sample(i, question="red" if i == 1 else "blue") for i in (1, 2)]
    for sample in ids:
        world.judged(sample, [12, 0])
    assert asked(web, "pair", "?q=red")["question"] == "Add 1 new pair from 1 sample?"
    assert web.post("/api/bulk", json={"act": "pair", "search": "?q=red", "count": 1}).json()["undo"]
    assert sum(count_pairs(world.db).values()) == 1
    assert asked(web, "pair", "?q=red")["question"] == "Add 0 new pairs from 1 sample?"
    history.undo(world.db, local_user())
    assert sum(count_pairs(world.db).values()) == 0
