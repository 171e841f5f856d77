"""The list of the Pairs page: filters, pages both ways, acts on all that is selected, warnings at freezing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from factories import USER, World
from jobs.pairing import PairRule
from jobs.settings import local_user
from storage import history
from storage.errors import NotFound
from storage.pair_finding import PairFilter, PairPage, count_found, find_pairs, pairs_to_decide, people_of_pairs
from storage.pair_trouble import find_troubles
from storage.pairs import choose_by_hand, count_pairs, set_status
from test_pairs_page import fill
from test_samples_page import EVIL, Shape
from workbench import pair_desk, pair_list_views
from workbench.context import Context
from workbench.door import Door
from workbench.pages import pairs as page
from workbench.pair_address import Address, read_address
from workbench.ui import build_api

BULK = "/api/pairs/bulk"


@pytest.fixture
def web(context: Context) -> TestClient:
    return TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")


def by_hand(world: World, number: int, better: str, worse: str, user: str = USER) -> int:
    first, second = world.candidates(world.sample(number), [better, worse])
    return choose_by_hand(world.db, user, first.id, second.id).id


def ids(world: World, where: PairFilter, **more: Any) -> list[int]:
    return [view.pair.id for view in find_pairs(world.db, where, **more).views]


# --- what is selected ---


def test_by_origin_person_words_and_status(world: World, context: Context) -> None:
    fill(world, [12, 2], [9, 1])
    page.add_pairs(context, "eve", PairRule())
    circle = by_hand(world, 3, "a Red circle", "a square", "ann")
    other = by_hand(world, 4, "a blue circle", "red, and a line", "bob")
    set_status(world.db, USER, [other], "rejected")
    ruled = ids(world, PairFilter(origin="rule"))
    assert len(ruled) == 2
    assert ids(world, PairFilter(origin="hand")) == [circle, other]
    assert ids(world, PairFilter(user="ann")) == [circle]
    assert ids(world, PairFilter(q="RED circle")) == [circle, other], "in any of the texts, whatever the case"
    assert ids(world, PairFilter(q="square")) == [circle]
    assert ids(world, PairFilter(q="red", status="rejected")) == [other]
    assert ids(world, PairFilter(q="what shape", origin="hand", user="bob")) == [other], "the question's words"
    assert ids(world, PairFilter(q="zebra")) == []
    assert people_of_pairs(world.db) == ["ann", "bob", "eve"]
    assert pairs_to_decide(world.db, PairFilter(origin="hand"), "accepted") == [other]
    world.db.conn.execute("UPDATE pairs SET imported = '{}' WHERE id = ?", [circle])
    assert ids(world, PairFilter(origin="imported")) == [circle]
    assert ids(world, PairFilter(origin="hand")) == [other], "what came with data is nobody's hand here"


@pytest.mark.parametrize(("number", "size"), [(1, 1), (5, 2), (6, 2), (7, 3), (3, 4)])
def test_pages_lead_both_ways_over_the_same_pairs(world: World, number: int, size: int) -> None:
    made = [by_hand(world, index, f"red {index}", "a line") for index in range(1, number + 1)]
    page_now, there = find_pairs(world.db, PairFilter(), size=size), list[int]()
    while True:
        there += [view.pair.id for view in page_now.views]
        if page_now.after is None:
            break
        page_now = find_pairs(world.db, PairFilter(), page_now.after, size=size)
    assert there == made
    back = [view.pair.id for view in page_now.views]
    while page_now.before is not None:
        page_now = find_pairs(world.db, PairFilter(), before=page_now.before, size=size)
        back = [*(view.pair.id for view in page_now.views), *back]
    assert back == made


def test_the_address_holds_the_filter() -> None:
    text = "?status=proposed&origin=rule&user=ann&q=red+cube&after=120"
    address = read_address(text)
    assert address == Address(PairFilter("proposed", "rule", "ann", "red cube"), after=120)
    assert read_address(address.href().removeprefix("/pairs")) == replace(address, after=0)
    assert read_address(address.href(before=7)).before == 7
    assert read_address("?origin=nonsense&before=x&among=accepted&q=%00") == Address()
    assert Address().href() == "/pairs"


def test_the_page_goes_back_and_tells_what_does_not_fit(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_desk, "PAGE", 2)
    made = [by_hand(world, number, f"red {number}", "a line") for number in range(1, 6)]

    def cards(search: str) -> list[int]:
        tags = Shape(pair_desk.show_list(context, search)[1]).tags
        return [int(str(found["data-card"])) for _, found in tags if "data-card" in found]

    assert cards("?after=4") == made[4:]
    assert f"before={made[4]}" in pair_desk.show_list(context, "?after=4")[1]
    assert cards(f"?before={made[4]}") == made[2:4]
    assert cards(f"?before={made[1]}") == made[:2], "a short first page is filled"
    assert "5 others fit the rest" in pair_desk.show_list(context, "?q=red&status=rejected")[1]
    nothing = pair_desk.show_list(context, "?q=zebra")[1]
    assert "No pair fits these filters" in nothing
    assert "Clear the filters" in nothing
    head = Shape(pair_desk.show_list(context, "?q=line&user=x")[0])
    assert "All 0" in head.text


def test_names_of_people_are_escaped(world: World, context: Context) -> None:
    by_hand(world, 1, "one", "two", EVIL)
    shape = Shape(pair_desk.show_finder(context))
    assert {tag for tag, _ in shape.tags} <= {"form", "input", "select", "option"}
    assert EVIL in shape.text
    assert "script" not in {tag for tag, _ in Shape(pair_desk.show_list(context, f"?q={EVIL}")[0]).tags}


# --- acts on all ---


def asked(web: TestClient, act: str, search: str) -> dict[str, Any]:
    answer = web.post(BULK, json={"act": act, "search": search})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(
    ("act", "status"), [("accept", "accepted"), ("reject", "rejected"), ("propose", "proposed")]
)
def test_all_of_a_list_are_decided_counted_first_and_undone(
    world: World, web: TestClient, act: str, status: str
) -> None:
    red = [by_hand(world, number, f"red {number}", "a line") for number in range(1, 4)]
    blue = by_hand(world, 4, "blue", "a line")
    before = {"accept": "proposed", "reject": "accepted", "propose": "rejected"}[act]
    set_status(world.db, USER, [*red, blue], before)  # type: ignore[arg-type]
    told = asked(web, act, "?q=red")
    assert told["count"] == 3
    assert "3 pairs?" in told["question"]
    assert count_found(world.db, PairFilter(status=before)) == 4, "asking does nothing"  # type: ignore[arg-type]
    done = web.post(BULK, json={"act": act, "search": "?q=red", "count": 3}).json()
    assert done["undo"]
    assert done["counts"]
    assert ids(world, PairFilter(status=status)) == red  # type: ignore[arg-type]
    history.undo(world.db, local_user())
    assert count_pairs(world.db)[before] == 4
    history.redo(world.db, local_user())
    assert count_pairs(world.db)[status] == 3


def test_those_that_are_decided_already_are_told_apart(world: World, web: TestClient) -> None:
    first = by_hand(world, 1, "red", "a line")
    by_hand(world, 2, "red too", "a line")
    set_status(world.db, USER, [first], "rejected")
    told = asked(web, "accept", "?q=red")
    assert told["count"] == 1
    assert told["note"] == "Of 2 pairs that the filter selects, 1 is accepted already."


@pytest.mark.parametrize(
    ("act", "search", "said"),
    [
        ("burn", "", "act = 'burn': choose one of accept, reject, propose."),
        ("accept", "?q=zebra", "No pair fits these filters; change or clear them."),
        ("accept", "", "1 pair fit these filters, and all are accepted already."),
    ],
)
def test_acts_that_cannot_be_say_why(world: World, web: TestClient, act: str, search: str, said: str) -> None:
    by_hand(world, 1, "red", "a line")
    answer = web.post(BULK, json={"act": act, "search": search})
    assert answer.status_code == 400
    assert answer.json()["error"] == said


def test_nothing_is_done_to_more_than_was_asked_about(world: World, web: TestClient) -> None:
    by_hand(world, 1, "red", "a line")
    by_hand(world, 2, "red", "a line")
    answer = web.post(BULK, json={"act": "reject", "search": "", "count": 1})
    assert answer.status_code == 409
    assert "2 pairs by now, not 1" in answer.json()["error"]
    assert count_pairs(world.db)["rejected"] == 0


def test_many_rows_at_once_or_none(world: World) -> None:
    pair = by_hand(world, 1, "red", "a line")
    with pytest.raises(NotFound):
        set_status(world.db, USER, [pair, 999], "rejected")
    assert count_pairs(world.db)["accepted"] == 1


# --- contradictions at freezing ---


def test_freezing_pairs_that_contradict_each_other_is_warned_of(world: World, context: Context) -> None:
    sample = world.sample(1)
    for better, worse in (("circle", "square"), ("square", "circle")):
        first, second = world.candidates(sample, [better, worse])
        choose_by_hand(world.db, USER, first.id, second.id)
    panel = page.show_contents(context, ["accepted"], "people before judges", "")
    assert "2 of these pairs contradict another" in panel
    assert "/pairs?trouble=contradiction&amp;among=accepted" in panel
    assert "contradict" not in page.show_contents(context, ["proposed"], "people before judges", "")
    frozen = page.freeze(context, USER, "both", ["accepted"], 0, 0)
    assert "2 of its pairs contradict another" in page.say_frozen(context, frozen)
    assert len(find_troubles(world.db, ("rejected",)).contradiction) == 0
    head, cards = pair_desk.show_list(context, "?trouble=contradiction&among=accepted")
    assert "among the accepted ones" in head
    assert cards.count("data-card") == 2


def test_an_empty_list_says_what_to_do() -> None:
    shown = pair_list_views.pair_list(PairPage((), None, None), read_address(""), 0)
    assert "No pairs yet" in shown
