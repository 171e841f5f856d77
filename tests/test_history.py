"""Undo: whatever people did, taking it back leads to the same database."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import USER, World, open_world
from storage import history, pairs
from storage.errors import Conflict, NotFound, PlumbError
from storage.records import METRICS
from storage.rows import rows
from storage.scores import ensure_rater, get_judgements, set_score

LIVE = ("judgements", "scores", "pairs", "pair_judgements")


def dump(world: World) -> dict[str, Any]:
    """The tables that people change, ids and all."""
    return {table: sorted(map(repr, rows(world.db, f"SELECT * FROM {table}"))) for table in LIVE}


def count_actions(world: World) -> int:
    return len(rows(world.db, "SELECT id FROM actions WHERE undone_at IS NULL"))


def test_undo_takes_back_one_act_at_a_time(world: World) -> None:
    sample = world.sample()
    candidate = world.candidates(sample, ["a"])[0]
    empty = dump(world)
    set_score(world.db, USER, candidate.id, "correctness", 1)
    first = dump(world)
    set_score(world.db, USER, candidate.id, "correctness", 4)
    assert "correctness 4" in history.undo(world.db, USER).label
    assert dump(world) == first
    history.undo(world.db, USER)
    assert dump(world) == empty
    with pytest.raises(NotFound, match="nothing to undo"):
        history.undo(world.db, USER)


def test_undo_is_ones_own(world: World) -> None:
    candidate = world.candidates(world.sample(), ["a"])[0]
    set_score(world.db, USER, candidate.id, "correctness", 1)
    set_score(world.db, "bob", candidate.id, "correctness", 2)
    history.undo(world.db, USER)
    left = get_judgements(world.db, [candidate.sample_id])[candidate.sample_id]
    assert [judgement.rater.name for judgement in left] == ["bob"]


def test_undo_refuses_what_somebody_changed_since(world: World) -> None:
    one, two = world.candidates(world.sample(), ["a", "b"])
    set_score(world.db, USER, one.id, "correctness", 3)
    pair = pairs.choose_by_hand(world.db, USER, one.id, two.id)
    pairs.set_status(world.db, USER, [pair.id], "rejected")
    pairs.flip(world.db, "bob", pair.id)
    before = dump(world)
    for _ in range(2):  # the rejection, then the pair itself
        with pytest.raises(Conflict, match="changed since"):
            history.undo(world.db, USER)
        assert dump(world) == before
    assert history.undo(world.db, USER).label == f"correctness 3 for candidate {one.id}"
    with pytest.raises(NotFound, match="nothing to undo"):
        history.undo(world.db, USER)


def test_a_failing_action_leaves_nothing(world: World) -> None:
    one, two = world.candidates(world.sample(), ["a", "b"])
    pair = pairs.choose_by_hand(world.db, USER, one.id, two.id)
    before = dump(world)
    with pytest.raises(NotFound):
        pairs.set_status(world.db, USER, [pair.id, 999], "rejected")
    assert dump(world) == before
    assert history.undo(world.db, USER).label.startswith("pair by hand")


acts = st.lists(
    st.one_of(
        st.tuples(st.just("score"), st.integers(0, 5), st.sampled_from(METRICS), st.integers(0, 4) | st.none()),
        st.tuples(st.just("pair"), st.integers(0, 5), st.integers(0, 5)),
        st.tuples(st.just("status"), st.integers(0, 5), st.sampled_from(pairs.STATUSES)),
        st.tuples(st.just("flip"), st.integers(0, 5)),
        st.tuples(st.just("rule"), st.integers(0, 5), st.integers(0, 5)),
        st.tuples(st.just("all"), st.sampled_from(pairs.STATUSES)),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=acts)
@pytest.mark.slow
def test_undoing_everything_leads_back_to_the_start(acts: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        world = open_world(Path(root))
        candidates = [
            candidate for n in (1, 2) for candidate in world.candidates(world.sample(n), ["a", "b", "c"])
        ]
        ensure_rater(world.db, "person", USER)
        start = dump(world)
        states = [start]
        for act in acts:
            before = count_actions(world)
            try:
                _perform(world, candidates, act)
            except PlumbError:
                assert dump(world) == states[-1], "a refused act changes nothing"
            if count_actions(world) > before:
                states.append(dump(world))
        for expected in reversed(states[:-1]):
            history.undo(world.db, USER)
            assert dump(world) == expected
        assert dump(world) == start
        world.db.close()


def _perform(world: World, candidates: list[Any], act: tuple[Any, ...]) -> None:
    existing = pairs.list_pairs(world.db)
    match act:
        case ("score", index, metric, value):
            set_score(world.db, USER, candidates[index].id, metric, value)
        case ("pair", first, second):
            pairs.choose_by_hand(world.db, USER, candidates[first].id, candidates[second].id)
        case ("status", index, status) if existing:
            pairs.set_status(world.db, USER, [existing[index % len(existing)].pair.id], status)
        case ("flip", index) if existing:
            pairs.flip(world.db, USER, existing[index % len(existing)].pair.id)
        case ("rule", first, second) if first // 3 == second // 3 and first != second:
            new = pairs.NewPair(candidates[first].sample_id, candidates[first].id, candidates[second].id, 9, 3)
            pairs.add_rule_pairs(world.db, USER, {"margin": 2}, [new])
        case ("all", status) if existing:
            pairs.set_status(world.db, USER, [view.pair.id for view in existing], status)
