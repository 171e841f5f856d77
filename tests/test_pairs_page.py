"""The Pairs page: the rule's preview, pairs added, reviewed and frozen; all texts escaped."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from factories import USER, World
from jobs.pairing import QUALITY, PairRule
from storage import history
from storage.errors import Conflict, UserError
from storage.pair_finding import PairPage
from storage.pairs import choose_by_hand, count_pairs, get_pair, list_pairs
from storage.records import METRICS
from test_samples_page import EVIL, Shape
from workbench import pair_desk, pair_list_views, pair_views, rule_desk
from workbench.context import Context
from workbench.door import Door
from workbench.pages import pairs as page
from workbench.pair_address import read_address
from workbench.ui import build_api

RULE = PairRule()


@pytest.fixture
def web(context: Context) -> TestClient:
    return TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")


def fill(world: World, *qualities: list[int]) -> None:
    for number, values in enumerate(qualities, 1):
        world.judged(world.sample(number), values)


# --- the rule ---


def test_a_rule_is_stored_alike_whatever_was_ticked_first() -> None:
    assert rule_desk.make_rule(["coherence", "helpfulness", "correctness"], 2, 0, "people") == rule_desk.make_rule(
        list(QUALITY), 2, 0, "people"
    )


@pytest.mark.parametrize(
    ("metrics", "margin", "seed", "said"),
    [
        (["helpfulness"], 0, 0, "margin = 0"),
        (["helpfulness"], None, 0, "margin = None"),
        (["helpfulness"], 2.5, 0, "margin = 2.5"),
        (["helpfulness"], 2, -1, "seed = -1"),
        ([], 2, 0, "choose one or more of helpfulness"),
        (["beauty"], 2, 0, "choose one or more of helpfulness"),
    ],
)
def test_a_rule_that_cannot_be_names_its_field(metrics: Any, margin: Any, seed: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        rule_desk.make_rule(metrics, margin, seed, "people")


def test_the_preview_says_what_the_rule_would_make(world: World, context: Context) -> None:
    fill(world, [12, 2, 3], [7, 6], [5, 5])
    world.candidates(world.sample(9), ["not", "scored"])
    html, number = page.show_preview(context, RULE)
    assert number == 1
    shape = Shape(html)
    label = next(str(found["aria-label"]) for tag, found in shape.tags if tag == "svg")
    assert label == "Samples by spread of quality: 1 with 0, 1 with 1, 1 with 10; margin 2"
    assert len(shape.all(**{"class": "in"})) == 1
    assert len(shape.all(**{"class": "out"})) == 2
    for figure in ("pairs1", "too close2", "not scored1", "chosen, mean length", "rejected, mean length"):
        assert figure in shape.text


def test_the_preview_without_answers_or_scores_says_what_to_do(world: World, context: Context) -> None:
    assert "/jobs?kind=generate" in page.show_preview(context, RULE)[0]
    world.candidates(world.sample(), ["a", "b"])
    html, number = page.show_preview(context, RULE)
    assert "/jobs?kind=judge" in html
    assert number == 0


@pytest.mark.parametrize("metrics", [("helpfulness",), QUALITY, METRICS])
def test_the_histogram_stays_within_its_picture(metrics: tuple[str, ...]) -> None:
    most = 4 * len(metrics)
    for margin in (1, most, 20):
        drawn = Shape(pair_views.histogram({0: 3, most: 50}, margin, most))
        bars = [found for tag, found in drawn.tags if tag == "rect"]
        assert len(bars) == 2
        for bar in bars:
            assert 0 <= float(str(bar["x"])) <= 300 - float(str(bar["width"]))
            assert float(str(bar["y"])) >= 0
        (line,) = drawn.all(**{"class": "margin"})
        assert 0 < float(str(line["x1"])) <= 300


def test_pairs_are_added_once_and_undone_together(world: World, context: Context) -> None:
    fill(world, [12, 2], [9, 1], [5, 5])
    assert page.add_pairs(context, USER, RULE) == "2 pairs added as proposed."
    assert "all 2 pairs of this rule are there already" in page.add_pairs(context, USER, RULE)
    assert get_pair(world.db, 1).rule == RULE.stored()
    world.judged(world.sample(7), [8, 0])
    assert "2 were there already" in page.add_pairs(context, USER, RULE)
    history.undo(world.db, USER)
    history.undo(world.db, USER)
    assert sum(count_pairs(world.db).values()) == 0


def test_a_rule_that_makes_no_pairs_is_refused(world: World, context: Context) -> None:
    fill(world, [5, 5])
    with pytest.raises(UserError, match="margin = 2: the rule makes no pairs"):
        page.add_pairs(context, USER, RULE)


def test_a_refused_act_is_said_in_place() -> None:
    def refuse() -> str:
        raise Conflict("taken <b>")

    assert page.said(refuse) == '<div class="pb-notice bad" role="alert">taken &lt;b&gt;</div>'
    assert 'role="status"' in page.said(lambda: "done")


# --- the list ---


def test_accept_reject_and_flip_are_saved_and_undone(world: World, context: Context, web: TestClient) -> None:
    fill(world, [12, 2])
    page.add_pairs(context, USER, RULE)
    before = get_pair(world.db, 1)

    def act(verb: str) -> dict[str, Any]:
        answer = web.post(f"/api/pairs/1/{verb}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    told = act("accept")
    assert told["counts"]["accepted"] == 1
    assert 'class="pb-pair accepted"' in told["html"]
    assert act("reject")["counts"]["rejected"] == 1
    assert act("propose")["counts"]["proposed"] == 1
    act("flip")
    flipped = get_pair(world.db, 1)
    assert (flipped.chosen_id, flipped.rejected_id) == (before.rejected_id, before.chosen_id)
    for _ in range(4):
        assert web.post("/api/undo").status_code == 200
    assert get_pair(world.db, 1) == before


@pytest.mark.parametrize(("path", "status"), [("9/accept", 404), ("1/eat", 404), ("x/accept", 422)])
def test_what_cannot_be_done_to_a_pair_is_said(
    world: World, context: Context, web: TestClient, path: str, status: int
) -> None:
    fill(world, [12, 2])
    page.add_pairs(context, USER, RULE)
    answer = web.post(f"/api/pairs/{path}")
    assert answer.status_code == status
    assert answer.json()["error"]


def test_all_proposed_are_accepted_at_once(world: World, context: Context) -> None:
    fill(world, [12, 2], [9, 1], [7, 0])
    page.add_pairs(context, USER, RULE)
    assert page.accept_all(context, USER).startswith("3 pairs accepted")
    assert count_pairs(world.db) == {"proposed": 0, "accepted": 3, "rejected": 0}
    with pytest.raises(UserError, match="no proposed pair"):
        page.accept_all(context, USER)
    history.undo(world.db, USER)
    assert count_pairs(world.db)["proposed"] == 3


def test_the_address_says_which_pairs_are_listed(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_desk, "PAGE", 2)
    fill(world, [12, 2], [9, 1], [7, 0], [6, 1], [11, 2])
    page.add_pairs(context, USER, RULE)

    def cards(search: str) -> list[str | None]:
        return [
            found["data-card"]
            for _, found in Shape(pair_desk.show_list(context, search)[1]).tags
            if "data-card" in found
        ]

    assert cards("") == ["1", "2"]
    assert 'href="/pairs?after=2"' in pair_desk.show_list(context, "")[1]
    assert cards("?after=4") == ["5"]
    assert "First page" in pair_desk.show_list(context, "?after=4")[1]
    assert cards("?status=accepted") == []
    assert cards("?status=nonsense&after=x") == ["1", "2"]
    sample = list_pairs(world.db)[3].pair.sample_id
    assert cards(f"?sample={sample}") == ["4"]
    tabs = Shape(pair_desk.show_list(context, "?status=proposed")[0])
    assert [found["href"] for found in tabs.all(aria_current="true")] == ["/pairs?status=proposed"]


def test_pages_of_one_samples_pairs_stay_with_it() -> None:
    here = read_address("?status=accepted&sample=7&after=99")
    foot = pair_list_views.pair_list(PairPage((), None, None), here, 0)
    assert "/pairs?status=accepted&amp;sample=7" in foot
    assert "No more pairs" in foot


def test_the_cards_escape_their_texts(world: World, context: Context) -> None:
    sample = world.sample(1, question=EVIL, reference=EVIL)
    first, second = world.candidates(sample, [EVIL, EVIL + "!"])
    choose_by_hand(world.db, EVIL, first.id, second.id)
    page.freeze(context, EVIL, EVIL[:80], ["accepted"], 0, 0)
    shape = Shape(pair_desk.show_list(context, "")[1] + page.show_datasets(context))
    assert "script" not in {tag for tag, _ in shape.tags}
    assert all(name[:2] != "on" for _, attributes in shape.tags for name in attributes)
    assert shape.text.count(EVIL) >= 4


# --- data sets ---


def test_a_data_set_is_frozen_and_shown_with_the_way_on(world: World, context: Context) -> None:
    fill(world, *([12, 2] for _ in range(10)))
    page.add_pairs(context, USER, RULE)
    page.accept_all(context, USER)
    entry = page.freeze(context, USER, " shapes & co ", ["accepted"], 20, 1)
    assert (entry.counts["train"], entry.counts["heldout"]) == (8, 2)
    shape = Shape(page.show_datasets(context))
    assert entry.hash[:12] in shape.text
    assert "8 to train on, 2 held out" in shape.text
    assert shape.all(href="/jobs?kind=dpo&dataset=shapes%20%26%20co")


def test_the_panel_tells_what_will_be_in_the_set_and_what_is(world: World, context: Context) -> None:
    fill(world, [12, 2], [9, 1], [5, 5])
    page.add_pairs(context, USER, RULE)

    def would_hold(*statuses: Any, raters: str = "people before judges", judge: str = "") -> str:
        return Shape(page.show_contents(context, statuses, raters, judge)).text

    assert would_hold("accepted") == "No pair is accepted yet: there is nothing to freeze."
    assert would_hold() == "Tick which pairs to freeze."
    page.accept_all(context, USER)
    told = "2 pairs, 3 samples with 6 scored answers, 3 references"
    assert would_hold("accepted", "proposed") == f"Would hold {told}."
    alone = would_hold("accepted", raters="people")
    assert alone.startswith("Would hold 2 pairs, 0 samples with 0 scored answers, 2 references.")
    assert alone.endswith("DPO alone can train on it: no answer is scored.")
    choice = rule_desk.judge_choices(context)[1][1]
    assert would_hold("accepted", raters="judges", judge=choice) == f"Would hold {told}."

    entry = page.freeze(context, USER, "shapes", ["accepted"], 0, 0)
    assert page.say_frozen(context, entry) == f"“shapes” is frozen: {told}."
    assert told in Shape(page.show_datasets(context)).text
    by_people = page.freeze(context, USER, "people", ["accepted"], 0, 0, "people")
    assert by_people.rule["whose_scores"] == "people"
    by_judge = page.freeze(context, USER, "judge", ["accepted"], 0, 0, "judges", choice)
    assert by_judge.rule["judge"] == ["test-judge", "", ""]


def test_a_set_from_before_answers_were_kept_says_so(world: World, context: Context) -> None:
    fill(world, [12, 2])
    page.add_pairs(context, USER, RULE)
    page.freeze(context, USER, "old", ["proposed"], 0, 0)
    counts = '{"train": 1, "heldout": 0, "samples": 1, "chosen_characters": 9, "rejected_characters": 9}'
    world.db.conn.execute("UPDATE datasets SET counts = ?", [counts])
    assert "pairs alone: freeze again for SteerLM" in Shape(page.show_datasets(context)).text


@pytest.mark.parametrize(
    ("name", "statuses", "heldout", "seed", "said"),
    [
        ("", ["accepted"], 10, 0, "name"),
        ("x", ["accepted"], 10, 0, "no pairs that are accepted"),
        ("x", [], 10, 0, "tick at least one"),
        ("x", ["proposed"], 91, 0, "held-out = 91"),
        ("x", ["proposed"], None, 0, "Held out = empty"),
        ("x", ["proposed"], 10, None, "Seed = None"),
        ("x", ["proposed"], 10, -1, "Seed = -1"),
    ],
)
def test_what_cannot_be_frozen_is_said(
    world: World, context: Context, name: str, statuses: Any, heldout: Any, seed: Any, said: str
) -> None:
    fill(world, [12, 2])
    page.add_pairs(context, USER, RULE)
    with pytest.raises(UserError, match=said):
        page.freeze(context, USER, name, statuses, heldout, seed)


def test_two_data_sets_of_one_name(world: World, context: Context) -> None:
    fill(world, [12, 2])
    page.add_pairs(context, USER, RULE)
    page.freeze(context, USER, "one", ["proposed"], 0, 0)
    with pytest.raises(Conflict, match="already"):
        page.freeze(context, USER, "one", ["proposed"], 0, 0)


def test_each_judge_that_has_scored_can_be_chosen(world: World, context: Context) -> None:
    assert rule_desk.judge_choices(context) == [("whichever judged last", "")]
    world.judged(world.sample(1), [9, 2], "one")
    world.judged(world.sample(2), [9, 2], "two")
    choices = rule_desk.judge_choices(context)
    assert [label for label, _ in choices] == ["whichever judged last", "one", "two"]
    rule = rule_desk.make_rule(list(QUALITY), 2, 0, "judges", choices[1][1])
    assert rule.judge == ("one", "", "")
    assert [pair.sample_id for pair in page.apply_rule(context, rule).pairs] == [1]
    assert len(page.apply_rule(context, rule_desk.make_rule(list(QUALITY), 2, 0, "judges")).pairs) == 2
