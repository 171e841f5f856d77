"""Statistics of agreement: by hand, against the libraries, and what must hold of any of them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from sklearn.metrics import cohen_kappa_score, confusion_matrix  # type: ignore[import-untyped]

from factories import USER, World
from storage import history
from storage.agreement import MISSING, answer_texts, counting_scores, scores_version
from storage.records import METRICS, Rater
from storage.scores import add_judgement, ensure_rater, get_judgements, latest_ok, list_raters, set_score
from workbench import agreement_stats as stats
from workbench.agreement import (
    PEOPLE,
    Scores,
    choose_sides,
    families,
    gather,
    levels_of,
    means_of,
    overlap,
    share,
    stretches,
    units_of,
)
from workbench.agreement_desk import LISTED, contrast, furthest_apart, length_bias, letters_of, side_of
from workbench.agreement_stats import Matched, Units

Row = tuple[int, ...]


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def rated(
    rater: int,
    answer: int,
    *metrics: int,
    sample: int | None = None,
    position: int = MISSING,
    characters: int = 10,
) -> Row:
    """A row as storage hands it out; one metric given is all five; two answers a sample."""
    values = metrics * 5 if len(metrics) == 1 else metrics
    return (rater, answer // 2 if sample is None else sample, answer, position, characters, *values)


ADA, BOB, CAROL = (Rater(number, "person", name, "", "") for number, name in enumerate(("ada", "bob", "carol"), 1))
PLAIN = Rater(4, "judge", "gemini", "1", "all answers together")
LISTS = Rater(5, "judge", "gemini", "1", "all answers together, with checklist")


def scores_of(*rows: Row) -> Scores:
    return gather([ADA, BOB, CAROL, PLAIN, LISTS], list(rows))


def matched(first: Any, second: Any, sample: Any = None, levels: int = 5) -> Matched:
    first, second = np.asarray(first, np.int64), np.asarray(second, np.int64)
    sample = np.arange(len(first)) if sample is None else np.asarray(sample, np.int64)
    return Matched(first, second, sample, levels)


def units(pairs: Matched) -> Units:
    """Of two raters, an answer a pair."""
    counts = np.zeros((len(pairs.first), pairs.levels), np.int64)
    for column in (pairs.first, pairs.second):
        counts[np.arange(len(column)), column] += 1
    return Units(counts, pairs.sample)


def agreement(pairs: Matched) -> stats.Agreement:
    return stats.agreement(pairs, units(pairs))


def tables(pairs: Matched) -> Any:
    return stats.confusion(pairs)[None].astype(float)


some_pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 6)), min_size=2, max_size=40)


# --- by hand ---


def test_a_small_case_by_hand() -> None:
    # Pairs (0,0) (1,2) (2,2) (4,2). The same: 2 of 4; within one: 3 of 4.
    found = agreement(matched([0, 1, 2, 4], [0, 2, 2, 2]))
    assert (found.n, found.samples) == (4, 4)
    assert found.exact.value == 0.5
    assert found.within_one.value == 0.75
    # Observed (0 + 1 + 0 + 4) / 4 = 1.25; expected, over all 16 couples of the
    # margins, (0 + 1 + 4 + 16 + 3 · (4 + 1 + 0 + 4)) / 16 = 3.
    assert found.kappa.value == pytest.approx(1 - 1.25 / 3)
    # Ranks 1 2 3 4 and 1 3 3 3: covariance 3, deviations 5 and 3.
    assert found.spearman.value == pytest.approx(3 / (5 * 3) ** 0.5)


def test_alpha_of_the_published_example() -> None:
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): 12 units, 4 raters, some missing."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
        [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
    ]
    counts = np.array([[column.count(value) for value in range(1, 6)] for column in zip(*table, strict=True)])
    found = Units(counts, np.arange(12))
    value, _ = stats._alpha(found)
    assert value == pytest.approx(0.815, abs=5e-4)
    # With every unit in one sample that sample's row is the whole matrix of coincidences.
    one = Units(counts, np.zeros(12, np.int64))
    together = stats._coincidences(one, stats.Resampling(one.sample)).reshape(1, 5, 5)
    assert stats.alpha_of(together)[0] == pytest.approx(value)


# --- the formulas for tables against the libraries ---


@pytest.mark.parametrize("levels", [5, 13])
def test_tables_give_what_libraries_give(levels: int) -> None:
    draws = np.random.default_rng(levels)
    for _ in range(20):
        first = draws.integers(0, levels, 60)
        second = np.clip(first + draws.integers(-2, 3, 60), 0, levels - 1)
        pairs = matched(first, second, levels=levels)
        labels = list(range(levels))
        kappa = cohen_kappa_score(first, second, labels=labels, weights="quadratic")
        assert stats.kappa_of(tables(pairs))[0] == pytest.approx(kappa)
        assert stats.spearman_of(tables(pairs))[0] == pytest.approx(spearmanr(first, second).statistic)
        alpha = krippendorff.alpha(reliability_data=[first, second], level_of_measurement="ordinal")
        coincidences = stats._coincidences(units(pairs), stats.Resampling(pairs.sample)).sum(0)
        assert stats.alpha_of(coincidences.reshape(1, levels, levels))[0] == pytest.approx(alpha)
        assert (stats.confusion(pairs) == confusion_matrix(first, second, labels=labels)).all()
        found = agreement(pairs)
        assert found.kappa.value == pytest.approx(kappa)
        assert found.alpha.value == pytest.approx(alpha)


def test_every_resample_is_what_the_library_says_of_it() -> None:
    """Draw by draw: the samples drawn, written out as lists of scores, and given to the libraries."""
    draws = np.random.default_rng(3)
    first = draws.integers(0, 5, 40)
    second = np.clip(first + draws.integers(-1, 2, 40), 0, 4)
    pairs = matched(first, second, np.arange(40) // 4)
    _, resampled, samples = stats.replicates(pairs, units(pairs))
    assert samples == 10
    weights = stats.Resampling(pairs.sample)._weights
    for number in range(0, stats.RESAMPLES, 97):
        drawn = np.repeat(np.arange(40), weights[number][pairs.sample])
        a, b = first[drawn], second[drawn]
        kappa = cohen_kappa_score(a, b, labels=list(range(5)), weights="quadratic")
        assert resampled["kappa"][number] == pytest.approx(kappa)
        assert resampled["spearman"][number] == pytest.approx(spearmanr(a, b).statistic)
        alpha = krippendorff.alpha(reliability_data=[a, b], level_of_measurement="ordinal")
        assert resampled["alpha"][number] == pytest.approx(alpha)
        assert resampled["exact"][number] == pytest.approx(np.mean(a == b))
        assert resampled["within_one"][number] == pytest.approx(np.mean(abs(a - b) <= 1))


def test_correlation_ranks_each_resample_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(8)
    length = draws.integers(1, 20, 60)
    score = np.clip(length / 6 + draws.normal(0, 1, 60), 0, 4).round(1)
    sample = np.arange(60) // 3
    kept: list[Any] = []
    real = stats.estimate

    def keep(value: float | None, resampled: Any, *rest: Any) -> stats.Estimate:
        kept.append(resampled)
        return real(value, resampled, *rest)

    monkeypatch.setattr(stats, "estimate", keep)
    found = stats.correlation(length, score, sample)
    assert found.value == pytest.approx(spearmanr(length, score).statistic)
    weights = stats.Resampling(sample)._weights
    for number in range(0, stats.RESAMPLES, 211):
        drawn = np.repeat(np.arange(60), weights[number][sample])
        assert kept[0][number] == pytest.approx(spearmanr(length[drawn], score[drawn]).statistic)


# --- what must hold of any scores ---


@settings(max_examples=25, deadline=None)
@given(some_pairs)
def test_perfect_agreement_is_one(pairs: list[tuple[int, int, int]]) -> None:
    values = [first for first, _, _ in pairs]
    found = agreement(matched(values, values, [sample for *_, sample in pairs]))
    assert found.exact.value == found.within_one.value == 1
    if len(set(values)) > 1:
        for name in ("kappa", "alpha", "spearman"):
            assert getattr(found, name).value == pytest.approx(1)
    else:
        for name in ("kappa", "alpha", "spearman"):
            assert getattr(found, name).value is None
            assert getattr(found, name).why


@settings(max_examples=25, deadline=None)
@given(some_pairs, st.randoms(use_true_random=False))
def test_neither_order_nor_side_changes_anything(
    pairs: list[tuple[int, int, int]], shuffle: random.Random
) -> None:
    first, second, sample = (list(column) for column in zip(*pairs, strict=True))
    found = agreement(matched(first, second, sample))
    shuffle.shuffle(pairs)
    first, second, sample = (list(column) for column in zip(*pairs, strict=True))
    for other in (agreement(matched(first, second, sample)), agreement(matched(second, first, sample))):
        for name in stats.STATISTICS:
            one, two = getattr(found, name), getattr(other, name)
            assert one.why == two.why
            for field in ("value", "low", "high"):
                assert getattr(one, field) == pytest.approx(getattr(two, field))


@settings(max_examples=25, deadline=None)
@given(some_pairs)
def test_nothing_is_ever_not_a_number(pairs: list[tuple[int, int, int]]) -> None:
    first, second, sample = (list(column) for column in zip(*pairs, strict=True))
    found = agreement(matched(first, second, sample))
    for name in stats.STATISTICS:
        entry = getattr(found, name)
        if entry.value is None:
            assert entry.why
        elif entry.low is None:
            assert np.isfinite(entry.value)
            assert entry.why
        else:
            assert -1 <= entry.low <= entry.high <= 1


@pytest.mark.parametrize(
    ("first", "second", "missing"),
    [
        ([], [], stats.STATISTICS),
        ([2], [3], stats.STATISTICS),
        ([2, 2], [2, 2], ("kappa", "alpha", "spearman")),
        ([2, 2, 2], [1, 2, 3], ("spearman",)),
    ],
)
def test_what_is_not_defined_says_why(first: list[int], second: list[int], missing: tuple[str, ...]) -> None:
    found = agreement(matched(first, second))
    assert tuple(name for name in stats.STATISTICS if getattr(found, name).value is None) == missing
    assert all(getattr(found, name).why for name in missing)


# --- the bootstrap ---


def test_the_bootstrap_is_seeded_and_by_sample() -> None:
    draws = np.random.default_rng(0)
    first = np.repeat(draws.integers(0, 5, 30), 8)
    second = np.repeat(
        draws.integers(0, 5, 30), 8
    )  # eight answers of a sample are alike: they say little more than one
    together = agreement(matched(first, second, np.repeat(np.arange(30), 8)))
    assert together == agreement(matched(first, second, np.repeat(np.arange(30), 8)))
    apart = agreement(matched(first, second))
    assert together.kappa.value == apart.kappa.value
    assert together.samples == 30

    def width(found: stats.Estimate) -> float:
        assert found.high is not None
        assert found.low is not None
        return found.high - found.low

    for name in stats.STATISTICS:
        # Eight times the entries, as if independent: an interval narrower by about the root of eight.
        assert width(getattr(together, name)) > 2 * width(getattr(apart, name))


def test_one_sample_has_no_interval() -> None:
    found = agreement(matched([0, 1, 2], [0, 1, 3], [7, 7, 7]))
    assert found.kappa.value is not None
    assert found.kappa.low is None
    assert found.kappa.why == stats.ONE_SAMPLE


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(11)
    hits = 0
    for _ in range(100):
        same = (draws.random(120) < 0.6).astype(float)
        ((_, found),) = stats.group_means(same, np.zeros(120, np.int64), 1, np.arange(120))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.6 <= found.high
    assert 88 <= hits <= 100


def test_samples_are_drawn_as_often_as_there_are_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ints(5, 5, 9, 1, 3)
    whole = stats.Resampling(sample)
    assert (whole._weights.sum(axis=1) == 4).all()
    monkeypatch.setattr(stats, "_CELLS", 10)
    parts = stats.Resampling(sample)
    assert (parts._weights.sum(axis=1) == 4).all()
    by_sample = np.eye(4)
    assert (parts.totals(by_sample) == parts._weights).all()
    assert (parts.each(lambda weights: weights.sum(axis=1), 5) == parts._weights[:, parts.of].sum(axis=1)).all()


def test_means_of_groups() -> None:
    found = stats.group_means(ints(1, 2, 3, 4), ints(0, 0, 2, 2), 3, ints(1, 2, 1, 2))
    assert [n for n, _ in found] == [2, 0, 2]
    assert [mean.value for _, mean in found] == [1.5, None, 3.5]
    assert found[0][1].low == 1
    assert found[0][1].high == 2
    assert found[1][1].why


# --- from scores to pairs of scores ---


def test_a_judge_is_held_against_every_person() -> None:
    scores = scores_of(rated(4, 1, 3), rated(4, 2, 0), rated(1, 1, 2), rated(2, 1, 4), rated(2, 9, 1))
    shared = share(scores, [4], scores.members(PEOPLE), "helpfulness")
    assert sorted(zip(shared.first.tolist(), shared.second.tolist(), strict=True)) == [(3, 2), (3, 4)]
    assert overlap(scores, "4", PEOPLE) == 2
    assert units_of(scores, shared).counts.tolist() == [[0, 0, 1, 1, 1]]
    assert share(scores, [4], [1, 2], "quality").first.tolist() == [9, 9]


def test_nobody_is_held_against_themselves() -> None:
    scores = scores_of(rated(1, 1, 2), rated(2, 1, 3))
    assert share(scores, [1], [1], "helpfulness").candidate.tolist() == []
    assert share(scores, [1], [1, 2], "helpfulness").second.tolist() == [3]


def test_people_among_themselves_do_not_depend_on_who_comes_first() -> None:
    rows = [rated(1, 1, 0), rated(2, 1, 1), rated(3, 1, 4), rated(1, 2, 2), rated(3, 2, 2), rated(2, 4, 3)]
    scores = scores_of(*rows)
    shared = share(scores, [1, 2, 3], [1, 2, 3], "helpfulness")
    assert shared.matched.n == 4  # three pairs of people on the first answer, one on the second
    assert shared.matched.both_orders
    table = stats.confusion(shared.matched)
    assert (table == table.T).all()
    # Two people are told apart: each pair once.
    two = share(scores, [1, 2], [1, 2], "helpfulness")
    assert not two.matched.both_orders
    assert two.matched.n == 1


def test_parts_of_scores_count_where_they_are() -> None:
    scores = scores_of(rated(4, 1, 3), rated(1, 1, 3, MISSING, 2, MISSING, MISSING), rated(1, 2, MISSING))
    for metric, n in (("helpfulness", 1), ("correctness", 0), ("coherence", 1), ("quality", 0)):
        assert len(share(scores, [4], [1], metric).candidate) == n
    assert scores.given[1].candidate.tolist() == [1]  # an answer whose scores were cleared again is not scored
    assert [rater.id for rater in scores_of(rated(4, 1, 1), rated(2, 1, MISSING)).raters] == [4]


def test_levels() -> None:
    assert levels_of("verbosity") == 5
    assert levels_of("quality") == 13


def test_the_usual_sides() -> None:
    assert choose_sides(scores_of()) is None
    assert choose_sides(scores_of(rated(4, 1, 1), rated(1, 2, 1))) is None
    assert choose_sides(scores_of(rated(4, 1, 1), rated(1, 1, 1))) == ("4", PEOPLE)
    more = [rated(5, answer, 1) for answer in (1, 2)] + [rated(1, answer, 1) for answer in (1, 2)]
    assert choose_sides(scores_of(rated(4, 1, 1), *more)) == ("5", PEOPLE)
    assert choose_sides(scores_of(rated(1, 1, 1), rated(2, 1, 1))) == (PEOPLE, PEOPLE)
    assert choose_sides(scores_of(rated(4, 1, 1), rated(5, 1, 1))) == ("4", "5")


def test_means_of_a_group_are_of_each_answer() -> None:
    scores = scores_of(rated(1, 1, 2, characters=7), rated(2, 1, 3, characters=7), rated(2, 4, 0, characters=30))
    candidate, sample, characters, mean = means_of(scores, PEOPLE, "helpfulness")
    assert candidate.tolist() == [1, 4]
    assert sample.tolist() == [0, 2]
    assert characters.tolist() == [7, 30]
    assert mean.tolist() == [2.5, 0]


@given(st.lists(st.integers(0, 50), max_size=60))
def test_stretches_hold_every_length_once(lengths: list[int]) -> None:
    found = stretches(np.array(lengths, np.int64))
    assert len(found) <= 6
    for length in lengths:
        assert sum(start <= length <= end for start, end in found) == 1
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(found))


# --- biases, contrasts, disagreements ---


def test_letters_show_a_bias_for_places() -> None:
    rows = [rated(4, 2 * n + k, 4 - 2 * k, position=k) for n in range(10) for k in range(2)]
    scores = scores_of(*rows, rated(5, 1, 2))
    found = letters_of(scores, side_of(scores, "4"), "helpfulness")
    assert found is not None
    assert [(n, mean.value) for n, mean in found.means] == [(10, 4), (10, 2)]
    assert found.overall == 3
    assert letters_of(scores, side_of(scores, "5"), "helpfulness") is None  # read each answer alone


def test_length_is_compared_on_the_same_answers() -> None:
    rows = [rated(4, n, n % 5, characters=10 * (n % 5) + 1) for n in range(20)]
    rows += [rated(1, n, 4 - n % 5, characters=10 * (n % 5) + 1) for n in range(10)]
    scores = scores_of(*rows)
    one, other = side_of(scores, "4"), side_of(scores, PEOPLE)
    found = length_bias(scores, one, other, "helpfulness")
    assert found is not None
    assert found.same
    assert [line.correlation.value for line in found.sides] == [pytest.approx(1), pytest.approx(-1)]
    assert [sum(n for n, _ in line.means) for line in found.sides] == [10, 10]
    apart = scores_of(rated(4, 1, 2), rated(4, 3, 3, characters=20), rated(1, 8, 1))
    found = length_bias(apart, side_of(apart, "4"), side_of(apart, PEOPLE), "helpfulness")
    assert found is not None
    assert not found.same


def test_checklists_are_held_against_the_same_answers_without() -> None:
    draws = np.random.default_rng(2)
    rows = []
    for answer in range(120):
        truth = int(draws.integers(0, 5))
        rows.append(rated(1, answer, truth))
        if answer % 3:
            rows.append(rated(2, answer, truth))
        rows.append(rated(4, answer, int(draws.integers(0, 5))))  # without: chance
        if answer < 80:
            rows.append(rated(5, answer, truth))  # with: perfect, on fewer answers
    scores = scores_of(*rows)
    assert families(scores) == [(4, 5)]
    found = contrast(scores, 4, 5)
    assert found is not None
    assert found.checklists
    assert (found.n, found.samples) == (80 + sum(1 for n in range(80) if n % 3), 40)
    without, with_lists, difference = found.values["kappa"]
    assert with_lists == pytest.approx(1)
    assert without is not None
    assert without < 0.4
    assert difference.value == pytest.approx(1 - without)
    assert difference.low is not None
    assert difference.low > 0.3
    back = contrast(scores, 5, 4)
    assert back is not None
    assert back.values["kappa"][2].value == pytest.approx(-difference.value)  # type: ignore[operator]
    assert not back.checklists
    assert contrast(scores_of(rated(4, 1, 1), rated(5, 2, 1), rated(1, 1, 1)), 4, 5) is None


def test_alike_judges_differ_by_nothing_at_all() -> None:
    rows = [
        rated(rater, answer, (answer * 7 + rater * (rater < 4)) % 5) for rater in (1, 4, 5) for answer in range(40)
    ]
    found = contrast(scores_of(*rows), 4, 5)
    assert found is not None
    for before, after, difference in found.values.values():
        assert before == after
        # Drawn alike: not two independent intervals.
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_disagreements_by_quality_then_by_the_metric() -> None:
    def row(rater: int, answer: int, quality: int, verbosity: int) -> Row:
        values = [min(4, quality), min(4, max(0, quality - 4)), max(0, quality - 8), 1, verbosity]
        return rated(rater, answer, *values)

    rows = [row(4, answer, 6, 2) for answer in range(6)]
    rows += [row(1, 0, 6, 2), row(1, 1, 2, 2), row(1, 2, 10, 4), row(1, 3, 6, 3), row(2, 1, 12, 2)]
    rows += [rated(1, 4, MISSING, MISSING, MISSING, MISSING, 0)]  # no quality, and two apart on the metric
    scores = scores_of(*rows)
    found = furthest_apart(scores, "4", PEOPLE, "verbosity")
    assert found == [(1, 4, 2), (2, 4, 1), (1, 4, 1), (4, 4, 1), (3, 4, 1)]  # equal scores are left out
    many = scores_of(*(rated(rater, answer, rater % 4) for rater in (1, 4) for answer in range(50)))
    assert len(furthest_apart(many, "4", "1", "quality")) == LISTED


# --- what storage reads ---


def test_the_latest_ok_judgement_counts(world: World) -> None:
    sample = world.sample()
    first, second = world.candidates(sample, ["a", "bcd"])
    judge = ensure_rater(world.db, "judge", "gemini", "1", "all answers together")

    def judged(value: int, state: Any = "ok") -> None:
        scores = [
            {"candidate_id": one.id, **dict.fromkeys(METRICS, value), "position": place}
            for place, one in enumerate((second, first))
        ]
        add_judgement(world.db, rater_id=judge, sample_id=sample, job_id=None, state=state, scores=scores)

    judged(1)
    judged(3)
    add_judgement(world.db, rater_id=judge, sample_id=sample, job_id=None, state="blocked")
    set_score(world.db, USER, first.id, "verbosity", 2)
    rows = counting_scores(world.db)
    person = next(rater.id for rater in list_raters(world.db) if rater.kind == "person")
    assert rows == [
        (judge, sample, first.id, 1, 1, 3, 3, 3, 3, 3),
        (judge, sample, second.id, 0, 3, 3, 3, 3, 3, 3),
        (person, sample, first.id, MISSING, 1, MISSING, MISSING, MISSING, MISSING, 2),
    ]
    counting = latest_ok(get_judgements(world.db, [sample])[sample])
    assert sorted((one.rater.id, score.candidate_id) for one in counting for score in one.scores) == [
        row[0:3:2] for row in rows
    ]


def test_the_version_changes_with_whatever_counts(world: World) -> None:
    seen = [scores_version(world.db)]

    def changed() -> None:
        seen.append(scores_version(world.db))
        assert seen[-1] not in seen[:-1]
        assert scores_version(world.db) == seen[-1]

    sample = world.sample()
    first, _ = world.candidates(sample, ["a", "b"])
    changed()
    set_score(world.db, USER, first.id, "verbosity", 2)
    changed()
    set_score(world.db, USER, first.id, "verbosity", 3)  # in its place
    changed()
    history.undo(world.db, USER)
    changed()
    add_judgement(
        world.db, rater_id=ensure_rater(world.db, "judge", "x"), sample_id=sample, job_id=None, state="ok"
    )
    changed()


def test_texts_are_cut(world: World) -> None:
    sample = world.sample(question="q" * 30)
    first, _ = world.candidates(sample, ["a" * 50, "b"])
    found = answer_texts(world.db, [first.id], 20)
    assert found[first.id].text == "a" * 20
    assert found[first.id].question == "q" * 20
    assert found[first.id].sample_id == sample
    assert answer_texts(world.db, [], 20) == {}
