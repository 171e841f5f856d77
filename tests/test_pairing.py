"""The paper's rule (paper.md, section 3), by example and by property."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factories import USER, World, metrics_of
from jobs.pairing import PairRule, ScoredSample, pairs_of, preview
from storage.pairs import NewPair
from storage.records import METRICS, Candidate, Judgement, Rater, Score
from storage.scored import walk_scored
from storage.scores import set_score

JUDGE = Rater(1, "judge", "test", "1", "")
PERSON = Rater(2, "person", USER, "", "")


def candidate(number: int, sample_id: int = 1) -> Candidate:
    return Candidate(
        number, sample_id, f"answer {number}", "demo", None, 1, number, None, None, {}, None, None, ""
    )


def judgement(qualities: list[int | None], rater: Rater = JUDGE, number: int = 1, state: str = "ok") -> Judgement:
    scores = tuple(
        Score(index + 1, **(metrics_of(value) if value is not None else {}))
        for index, value in enumerate(qualities)
    )
    return Judgement(number, rater, 1, None, state, "", "", 0, 0, 0.0, "", scores)  # type: ignore[arg-type]


def scored(*judgements: Judgement, sample_id: int = 1) -> ScoredSample:
    size = max(len(one.scores) for one in judgements)
    return ScoredSample(sample_id, [candidate(n + 1) for n in range(size)], judgements)


def pair_of(sample: ScoredSample, rule: PairRule) -> tuple[NewPair | None, float | None]:
    found, spread, _ = pairs_of(sample, rule)
    return (found[0] if found else None), spread


def test_the_first_of_the_best_is_chosen() -> None:
    pair, spread = pair_of(scored(judgement([5, 9, 9, 2])), PairRule())
    assert pair is not None
    assert (pair.chosen_id, spread) == (2, 7)
    assert (pair.chosen_quality, pair.judgement_ids) == (9, (1,))


def test_rejected_is_drawn_from_all_that_are_far_enough() -> None:
    drawn = {
        pair.rejected_id
        for seed in range(60)
        if (pair := pair_of(scored(judgement([9, 7, 8, 1])), PairRule(seed=seed))[0])
    }
    assert drawn == {2, 4}, "8 is within the margin of 2"


def test_a_sample_below_the_margin_makes_no_pair() -> None:
    assert pair_of(scored(judgement([9, 8, 9, 8])), PairRule()) == (None, 1)
    assert pair_of(scored(judgement([9, 8, 9, 8])), PairRule(margin=1))[0] is not None


def test_a_person_who_is_not_done_decides_nothing_yet() -> None:
    half = judgement([1, None], PERSON, 2)
    both = judgement([1, 12], PERSON, 3)
    judge = judgement([12, 1])
    rule = PairRule()
    assert pair_of(scored(judge, half), rule)[0].chosen_id == 1  # type: ignore[union-attr]
    assert pair_of(scored(judge, both), rule)[0].chosen_id == 2  # type: ignore[union-attr]
    assert pair_of(scored(judge, both), PairRule(raters="judges"))[0].chosen_id == 1  # type: ignore[union-attr]
    assert pair_of(scored(judge, half), PairRule(raters="people")) == (None, None)


def test_only_judgements_that_are_ok_count_and_the_latest_of_them() -> None:
    old, new = judgement([12, 1], number=1), judgement([1, 12], number=2)
    failed = judgement([12, 1], number=3, state="failed")
    assert pair_of(scored(old, new, failed), PairRule())[0].chosen_id == 2  # type: ignore[union-attr]


def test_empty_answers_and_equal_texts_make_no_pair() -> None:
    def texts(*answers: str) -> ScoredSample:
        base = scored(judgement([12, 1, 0]))
        made = [replace(one, text=text) for one, text in zip(base.candidates, answers, strict=True)]
        return ScoredSample(1, made, base.judgements)

    chosen = pair_of(texts(" ", "b", "c"), PairRule(margin=1))[0]
    assert chosen is not None
    assert (chosen.chosen_id, chosen.rejected_id) == (2, 3), "the best answer is empty"
    assert pair_of(texts("same", "same ", "same"), PairRule())[0] is None
    drawn = {pair_of(texts("same", "same", "other"), PairRule(seed=seed))[0] for seed in range(9)}
    assert {pair.rejected_id for pair in drawn if pair} == {3}


@pytest.mark.parametrize(
    "values",
    [
        {"margin": 0},
        {"metrics": []},
        {"metrics": ["charm"]},
        {"seed": -1},
        {"weights": {"charm": 2}},
        {"weights": {"correctness": 0}},
        {"weights": {"correctness": 1.5}},
        {"several": "loudest"},
        {"longest_difference": -1},
    ],
)
def test_bad_rules_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PairRule.model_validate(values)


@given(
    samples=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6), max_size=12),
    margin=st.integers(1, 6),
    seed=st.integers(0, 3),
)
def test_what_holds_for_every_pair(samples: list[list[int]], margin: int, seed: int) -> None:
    world = [scored(judgement(list(values)), sample_id=n + 1) for n, values in enumerate(samples)]
    rule = PairRule(margin=margin, seed=seed)
    made = preview(world, rule)
    assert len({pair.sample_id for pair in made.pairs}) == len(made.pairs), "one pair a sample"
    for pair in made.pairs:
        values = samples[pair.sample_id - 1]
        assert pair.chosen_id != pair.rejected_id
        assert values[pair.chosen_id - 1] == max(values) == pair.chosen_quality
        assert pair.chosen_id - 1 == values.index(max(values))
        assert values[pair.rejected_id - 1] <= max(values) - margin
    assert len(made.pairs) + made.too_close + made.unscored == len(samples)
    assert sum(made.spreads.values()) == len(made.pairs) + made.too_close
    # A pair depends on its own sample and the seed, not on what else is there or in which order.
    assert {pair for one in reversed(world) for pair in preview([one], rule).pairs} == set(made.pairs)


def test_from_the_database(world: World) -> None:
    first, second = world.sample(1), world.sample(2)
    judged = world.judged(first, [12, 3])
    world.candidates(second, ["nobody scored me"])
    for chosen in judged:
        for metric in metrics_of(0):
            set_score(world.db, USER, chosen.id, metric, 4 if chosen is judged[1] else 0)
    made = preview((ScoredSample(*row) for row in walk_scored(world.db, batch=1)), PairRule())
    assert [(pair.chosen_id, pair.rejected_id) for pair in made.pairs] == [(judged[1].id, judged[0].id)]
    assert made.unscored == 1


def test_one_judge_of_several_can_be_chosen() -> None:
    """Their scales are not mixed from sample to sample."""
    first = judgement([9, 2], Rater(1, "judge", "a", "1", "x"), 1)
    second = judgement([2, 9], Rater(2, "judge", "b", "1", "x"), 2)
    person = judgement([2, 9], Rater(3, "person", "ada", "", ""), 3)
    both = scored(first, second)
    assert pair_of(both, PairRule())[0].chosen_id == 2  # type: ignore[union-attr]
    chosen = PairRule(judge=("a", "1", "x"))
    assert pair_of(both, chosen)[0].chosen_id == 1  # type: ignore[union-attr]
    assert pair_of(scored(second), chosen) == (None, None)
    assert pair_of(scored(first, person), chosen)[0].chosen_id == 2, "people come first"  # type: ignore[union-attr]
    assert PairRule.model_validate(PairRule().model_dump(exclude={"judge"})).judge is None, "rules of before"


# --- beyond the paper ---


def of_people(*qualities: list[int]) -> ScoredSample:
    people = [Rater(10 + number, "person", f"p{number}", "", "") for number in range(len(qualities))]
    return scored(
        *(judgement(list(one), rater, 1 + n) for n, (one, rater) in enumerate(zip(qualities, people, strict=True)))
    )


def chosen_over(found: list[NewPair]) -> set[tuple[int, int]]:
    return {(pair.chosen_id, pair.rejected_id) for pair in found}


def test_weights_count_a_metric_several_times() -> None:
    helpful, correct = Score(1, 4, 0, 0, 0, 0), Score(2, 0, 3, 0, 0, 0)
    sample = scored(replace(judgement([0, 0]), scores=(helpful, correct)))
    assert pair_of(sample, PairRule(margin=1))[0].chosen_id == 1  # type: ignore[union-attr]
    rule = PairRule(margin=1, weights={"correctness": 2, "coherence": 1})
    pair, spread = pair_of(sample, rule)
    assert pair is not None
    assert (pair.chosen_id, pair.chosen_quality, pair.rejected_quality, spread) == (2, 6, 4, 2)
    assert rule.weights == {"correctness": 2}, "what counts once says nothing"
    assert rule.highest == 16


def test_the_papers_rule_is_stored_as_ever_and_old_rules_are_read() -> None:
    old = {"metrics": ["helpfulness", "correctness", "coherence"], "margin": 2, "seed": 0}
    old |= {"raters": "people before judges", "judge": None}
    assert PairRule().stored() == old
    assert PairRule.model_validate(old) == PairRule()
    full = PairRule(weights={"verbosity": 3}, several="mean", keep="all", longest_difference=9)
    assert PairRule.model_validate(full.stored()) == full


def test_several_raters_are_put_together() -> None:
    sample = of_people([12, 1], [0, 2], [0, 2])
    assert chosen_over(pairs_of(sample, PairRule())[0]) == {(2, 1)}, "the latest"
    assert chosen_over(pairs_of(sample, PairRule(several="mean"))[0]) == {(1, 2)}, "4 over 5/3"
    assert pairs_of(sample, PairRule(several="majority"))[0] == [], "the mean's best is beaten by two of three"
    by_all = PairRule(several="majority", keep="all")
    assert chosen_over(pairs_of(sample, by_all)[0]) == {(2, 1)}
    assert pairs_of(sample, PairRule(several="mean"))[0][0].judgement_ids == (1, 2, 3)
    split = of_people([12, 1], [1, 12])
    assert pairs_of(split, by_all)[0] == [], "one against one is no majority"
    assert pairs_of(split, PairRule(several="mean"))[0] == []


def test_candidates_that_not_all_have_scored_are_left_out_of_the_mean() -> None:
    first = judgement([12, 6, 0], Rater(10, "person", "a", "", ""), 1)
    second = judgement([None, 6, 0], Rater(11, "person", "b", "", ""), 2)
    found = pairs_of(scored(first, second), PairRule(several="mean"))[0]
    assert chosen_over(found) == {(2, 3)}


def test_all_pairs_above_the_margin() -> None:
    found = pairs_of(scored(judgement([9, 7, 8, 1])), PairRule(keep="all"))[0]
    assert chosen_over(found) == {(1, 2), (1, 4), (2, 4), (3, 4)}


def test_a_cap_on_the_difference_of_length() -> None:
    base = scored(judgement([12, 1, 0]))
    texts = ("four", "a very long answer", "cats")
    sample = ScoredSample(
        1, [replace(one, text=text) for one, text in zip(base.candidates, texts, strict=True)], base.judgements
    )
    for seed in range(9):
        assert chosen_over(pairs_of(sample, PairRule(seed=seed, longest_difference=0))[0]) == {(1, 3)}
    lone = ScoredSample(1, sample.candidates[:2], [judgement([12, 1])])
    assert pairs_of(lone, PairRule(longest_difference=5)) == ([], 11, True)
    made = preview([lone, sample], PairRule(longest_difference=5))
    assert (len(made.pairs), made.too_long, made.too_close) == (1, 1, 0)


@given(
    qualities=st.lists(st.lists(st.integers(0, 12), min_size=4, max_size=4), min_size=1, max_size=4),
    margin=st.integers(1, 6),
    several=st.sampled_from(["latest", "mean", "majority"]),
    seed=st.integers(0, 3),
    weight=st.integers(1, 9),
)
def test_what_holds_for_every_rule(
    qualities: list[list[int]], margin: int, several: str, seed: int, weight: int
) -> None:
    sample = of_people(*qualities)
    values = {"margin": margin, "several": several, "seed": seed}
    one = pairs_of(sample, PairRule.model_validate(values))[0]
    everything = pairs_of(sample, PairRule.model_validate(values | {"keep": "all"}))[0]
    assert chosen_over(one) <= chosen_over(everything), "the one pair is among all pairs"
    both_ways = {(worse, better) for better, worse in chosen_over(everything)}
    assert not both_ways & chosen_over(everything), "nothing is better and worse than the same"
    for pair in everything:
        assert pair.chosen_id != pair.rejected_id
        if several != "majority":
            assert pair.chosen_quality is not None
            assert pair.rejected_quality is not None
            assert pair.chosen_quality - pair.rejected_quality >= margin
    # All metrics weighed alike, and the margin with them: the same pairs.
    if margin * weight <= 20:
        scaled = values | {"margin": margin * weight, "weights": dict.fromkeys(METRICS, weight)}
        assert chosen_over(pairs_of(sample, PairRule.model_validate(scaled))[0]) == chosen_over(one)
