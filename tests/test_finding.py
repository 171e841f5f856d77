"""Every filter, order and count against the same thing in slow, plain Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import find_reference as slow
from factories import USER, World, open_world
from storage import facts, finding, history, selecting
from storage.discarding import discard
from storage.errors import PlumbError
from storage.finding import NUMBERS, ORDERS, STATES, Count, SampleFilter, find_ids
from storage.records import METRICS
from storage.scores import add_judgement, ensure_rater, set_score

OFTEN = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, list[slow.Known]]]:
    """A database of sixty samples that nothing here changes, and what it holds."""
    world = open_world(tmp_path_factory.mktemp("crowd"))
    slow.fill(world, seed=7)
    facts.catch_up(world.db)
    yield world, slow.read_all(world.db)
    world.db.close()


def alone() -> list[SampleFilter]:
    """Each named filter with each of its values, alone, and what nothing has."""
    told: list[dict[str, str]] = [{"state": state} for state in STATES]
    told += [{name: value} for name in ("images", "turns") for value in NUMBERS]
    told += [{"source": value} for value in (*slow.SOURCES, "no such")] + [{"split": "test"}, {"split": "no such"}]
    told += [{"rater": name} for name in (*slow.PEOPLE, *slow.JUDGES, "nobody")]
    told += [{"metric": metric, "low": "3"} for metric in METRICS] + [{"metric": METRICS[0], "high": "1"}]
    told += [{"metric": METRICS[1], "low": "3", "high": "2"}, {"metric": METRICS[1]}]
    told += [{"gap": gap} for gap in ("0", "0.5", "0.6", "1", "1.75", "4")]
    told += [{"q": words} for words in ("red", "re", "red circ", "größ", "GROSS", "שלום", "π", "x blue", "absent")]
    told += [{"order": order} for order in ORDERS]
    return [SampleFilter(**one) for one in told]


@pytest.mark.parametrize("where", alone(), ids=lambda where: str(where.as_query()))
def test_each_filter_selects_what_plain_python_does(
    crowd: tuple[World, list[slow.Known]], where: SampleFilter
) -> None:
    world, everything = crowd
    assert find_ids(world.db, where, limit=100) == slow.expected(everything, where)
    assert SampleFilter.from_query(where.as_query()) == where


def test_the_samples_of_this_test_are_of_every_kind(crowd: tuple[World, list[slow.Known]]) -> None:
    """Else a filter that selects nothing would pass."""
    _, everything = crowd
    empty = [where.as_query() for where in alone() if not slow.expected(everything, where)]
    assert empty == [
        {"turns": "0"},
        {"source": "no such"},
        {"split": "no such"},
        {"rater": "nobody"},
        {"metric": "correctness", "low": "3", "high": "2"},
        {"gap": "4"},
        {"q": "GROSS"},
        {"q": "absent"},
    ]


def some(*values: str) -> st.SearchStrategy[str]:
    return st.one_of(st.just(""), st.sampled_from(values))


FILTERS = st.builds(
    SampleFilter,
    q=some("red", "b", "circ x", "größe", "absent"),
    source=some(*slow.SOURCES),
    split=some("train", "test"),
    state=some(*STATES),
    rater=some(*slow.PEOPLE, *slow.JUDGES, "nobody"),
    metric=some(*METRICS),
    low=some("0", "2", "4"),
    high=some("1", "3"),
    gap=some("0.25", "0.7", "1.5"),
    images=some(*NUMBERS),
    turns=some(*NUMBERS),
    order=some(*ORDERS),
)
WIDE = st.builds(  # few conditions, so that much is left to walk through
    SampleFilter, state=some(*STATES), q=some("red", "b"), rater=some("ada", "gpt"), order=some(*ORDERS)
)


@OFTEN
@given(where=st.one_of(FILTERS, WIDE), few=st.sampled_from([0, 3, 2_000]), size=st.integers(1, 9))
def test_pages_neighbours_and_counts_agree(
    crowd: tuple[World, list[slow.Known]], where: SampleFilter, few: int, size: int
) -> None:
    """Whichever index leads (`few` moves that), forwards and backwards."""
    world, everything = crowd
    wanted = slow.expected(everything, where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selecting, "_FEW", few)
        pages: list[int] = []
        while page := find_ids(world.db, where, pages[-1] if pages else 0, size):
            pages += page
        assert pages == wanted
        assert find_ids(world.db, where, 0, 100, forward=False) == wanted[::-1]
        assert finding.total(world.db, where) == Count(len(wanted))
        assert finding.count_samples(world.db, where) == len(wanted)
        assert finding.sample_ids(world.db, where) == sorted(wanted)
        for place, sample in list(enumerate(wanted))[:: max(1, len(wanted) // 4)]:
            assert finding.position_of(world.db, where, sample) == Count(place)
            assert finding.neighbour(world.db, where, sample, True) == [*wanted, None][place + 1]
            assert finding.neighbour(world.db, where, sample, False) == [None, *wanted][place]
            start = finding.page_start(world.db, where, sample, size)
            assert sample in find_ids(world.db, where, start, size)
        chosen = set(wanted)
        for one in everything[::7]:
            assert finding.is_selected(world.db, where, one.id) == (one.id in chosen)


@OFTEN
@given(where=FILTERS | WIDE, steps=st.sampled_from([0, 150]))
def test_a_count_that_costs_too_much_says_so(
    crowd: tuple[World, list[slow.Known]], where: SampleFilter, steps: int
) -> None:
    world, everything = crowd
    wanted = slow.expected(everything, where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selecting, "_STEPS", steps)
        patch.setattr(selecting, "_STEP", 1)
        patch.setattr(selecting, "_SAMPLED", 10_000)  # all are asked: the estimate is right but for its digits
        found = selecting.count_of(world.db, selecting.Selection(where), most=4)
    if found.kind == "exact":
        assert found.number == len(wanted)
    elif found.kind == "about":
        assert abs(found.number - len(wanted)) <= max(4, len(wanted) * 0.05)
        assert not where.q
    else:
        assert where.q
        assert found.told == f"over {found.number}"
        assert found.number <= len(wanted)
    if len(wanted) > 4:
        assert found.kind != "exact"


def test_facts_follow_whatever_is_done_undone_and_redone(world: World) -> None:
    ids = slow.fill(world, seed=3, samples=12)
    facts.catch_up(world.db)
    generator = random.Random(5)
    for number in range(150):
        user = generator.choice(slow.PEOPLE)
        kind = generator.randrange(6)
        try:
            if kind == 0:
                history.undo(world.db, user)
            elif kind == 1:
                history.redo(world.db, user)
            elif kind == 2:
                slow.judge(world.db, generator.choice(ids), generator)
            else:
                slow.act(world.db, generator.choice(ids), generator)
        except PlumbError:
            continue
        if number % 10 == 0:
            everything = slow.read_all(world.db)
            for where in alone()[::3]:
                assert find_ids(world.db, where, limit=100) == slow.expected(everything, where), where
    facts.catch_up(world.db)
    kept = world.db.conn.execute("SELECT * FROM sample_facts").fetchall()
    facts.forget(world.db)
    facts.catch_up(world.db)
    assert world.db.conn.execute("SELECT * FROM sample_facts").fetchall() == kept


def test_means_of_thirds_make_up_a_quarter(world: World) -> None:
    """In floating point these four differences, 1, 1, 1/3 and 2/3, come to less than 3/4 in the mean."""
    sample = world.sample()
    (answer,) = world.candidates(sample, ["circle"])
    rater = ensure_rater(world.db, "judge", "gemini")
    scores = [{"candidate_id": answer.id, **dict(zip(METRICS, (0, 2, 1, 2, 3), strict=True))}]
    add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state="ok", scores=scores)
    for user, values in (("ada", (0, 4, 4, 1)), ("bob", (0, 2, 0, 4)), ("eve", (3, 3, 0, 3))):
        for metric, value in zip(METRICS, values, strict=False):
            set_score(world.db, user, answer.id, metric, value)
    assert find_ids(world.db, SampleFilter(gap="0.75")) == [sample]


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ('red "circle', [1]),
        ("red AND circle", []),
        ("NEAR(red circle)", []),
        ("question:red", []),
        ("re-d", []),
        ("-red", [1, 2]),
        ("red*", [1, 2]),
        ("^red", [1, 2]),
        ("(red)", [1, 2]),
        ("!!! red", [1, 2]),
        ("!!!", []),
        ('"', []),
        ("'; DROP TABLE samples; --", []),
        ("🙂", [3]),
        ("مرحبا", [3]),
        ("<script>", [3]),
        ("x" * 10_000, []),
        ("a " * 300, [1, 3]),
    ],
)
def test_signs_in_a_search_are_only_signs(world: World, text: str, hits: list[int]) -> None:
    for number, question in enumerate(["a red circle", "red", "🙂 مرحبا <script>alert(1)</script>"], start=1):
        assert world.sample(number, question, reference=None) == number
    where = SampleFilter.from_query({"q": text})
    assert find_ids(world.db, where) == hits
    assert finding.total(world.db, where) == Count(len(hits))
    assert finding.is_selected(world.db, where, 1) == (1 in hits)


def test_a_word_that_very_many_have_is_asked_for_as_a_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the lists of all words that begin so would be put together, among a million samples."""
    questions = ["a circle", "two circles", "the circle", "circles and squares", "one circle"]
    for number, question in enumerate(questions, start=1):
        world.sample(number, question, reference=None)
    assert find_ids(world.db, SampleFilter(q="circle")) == [1, 2, 3, 4, 5]
    monkeypatch.setattr(selecting, "COMMON", 3)
    assert find_ids(world.db, SampleFilter(q="circle")) == [1, 3, 5]
    assert find_ids(world.db, SampleFilter(q="circl")) == [1, 2, 3, 4, 5]
    assert find_ids(world.db, SampleFilter(q="circles squar")) == [4]
    assert finding.total(world.db, SampleFilter(q="circle o")) == Count(1)


def test_an_address_that_means_nothing_filters_nothing() -> None:
    told: dict[str, Any] = {
        "state": "odd",
        "metric": "size",
        "low": "-1",
        "high": "7",
        "images": "4",
        "turns": "x",
    }
    told |= {"gap": "wide", "order": "random", "no": "such", "q": "  ", "source": "\0"}
    assert SampleFilter.from_query(told) == SampleFilter()
    for gap in ("nan", "inf", "-1", "5", "1e400", "٣٣"):
        assert SampleFilter.from_query({"gap": gap}).gap == "", gap


def test_what_a_person_discards_is_in_no_list(world: World) -> None:
    first, second = world.sample(1), world.sample(2)
    discard(world.db, USER, first)
    for order in ORDERS:
        assert first not in find_ids(world.db, SampleFilter(order=order))
    assert find_ids(world.db, SampleFilter()) == [second]
    assert find_ids(world.db, SampleFilter(state="discarded")) == [first]
    assert finding.total(world.db, SampleFilter()).told == "1"


def test_a_filter_before_any_sample_finds_nothing(tmp_path: Path) -> None:
    world = open_world(tmp_path)
    for where in alone():
        assert find_ids(world.db, where) == []
        assert finding.total(world.db, where) == Count(0)
        assert finding.neighbour(world.db, where, 1, True) is None
        assert finding.page_start(world.db, where, 1, 50) == 0
    world.db.close()
