"""Each benchmark's scoring, on cases worked by hand; the files' errors; the bootstrap."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.benchmarks import alpaca_eval, llava_bench, mm_vet, mmbench, mt_bench, pope
from jobs.benchmarks.files import BadFile
from jobs.benchmarks.measures import Graded, by_category, difference, figure, mean_of

SHARED = Path(__file__).parents[2] / "shared" / "benchmarks"


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# --- POPE ---


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is a dog", False),
        ("There is not a dog", False),
        ("Yes. There is no cat", True),  # the first sentence alone
        ("No, but yes", False),
        ("Nothing to see", True),  # words, not letters
        ("NO", True),  # as in POPE's evaluate.py: No, no and not alone
        ("", True),
        ("I cannot say", True),
        ("不", True),
    ],
)
def test_what_an_answer_to_pope_counts_as(answer: str, yes: bool) -> None:
    assert pope.says_yes(answer) is yes


def questions(labels: str) -> list[pope.Question]:
    return [
        pope.Question(str(number), "a.jpg", "Is there a dog?", {"y": "yes", "n": "no"}[label])
        for number, label in enumerate(labels)
    ]


def test_pope_by_hand() -> None:
    graded = pope.grade(questions("yyynn"), dict(enumerate_text("Yes", "Yes", "No", "Yes", "No")))
    found = {name: figure(graded, score).value for name, score in pope.MEASURES.items()}
    # TP 2, FP 1, TN 1, FN 1
    assert found["F1"] == pytest.approx(100 * 4 / 6)
    assert found["accuracy"] == pytest.approx(60)
    assert found["precision"] == pytest.approx(200 / 3)
    assert found["recall"] == pytest.approx(200 / 3)
    assert found["yes ratio"] == pytest.approx(60)


def enumerate_text(*texts: str) -> list[tuple[str, str]]:
    return [(str(number), text) for number, text in enumerate(texts)]


def test_popes_mean_is_that_of_the_sets_f1_and_not_the_f1_of_all() -> None:
    sets = {
        "random": pope.grade(questions("yn"), dict(enumerate_text("Yes", "No")), "random"),
        "popular": pope.grade(questions("yyyn"), dict(enumerate_text("Yes", "No", "No", "No")), "popular"),
    }
    assert figure(pope.of_sets(sets), pope.mean_f1).value == pytest.approx((100 + 50) / 2)
    assert {name: one.value for name, one in by_category(sets["popular"], pope.f1).items()} == {"popular": 50}


def test_a_pope_question_without_an_answer_is_a_failure() -> None:
    found = figure(pope.grade(questions("yn"), {"0": "Yes"}), pope.accuracy)
    assert (found.value, found.items, found.failures, found.characters) == (100, 1, 1, 3)


def test_popes_files(tmp_path: Path) -> None:
    asked = [{"question_id": n, "image": "a", "text": "?", "label": "yes"} for n in range(3)]
    read = pope.read_questions(lines(tmp_path / "q", asked))
    own = lines(tmp_path / "own", [{"question": "?", "answer": text} for text in ("Yes", "No", "Yes")])
    assert pope.read_answers(own, read) == {"0": "Yes", "1": "No", "2": "Yes"}
    with pytest.raises(BadFile, match="2 answers without question_id for 3"):
        pope.read_answers(lines(tmp_path / "few", [{"question": "?", "answer": "Yes"}] * 2), read)
    with pytest.raises(BadFile, match="belong to no question"):
        pope.read_answers(lines(tmp_path / "other", [{"question_id": 9, "text": "Yes"}]), read)
    with pytest.raises(BadFile, match="1 ids come more than once"):
        pope.read_answers(lines(tmp_path / "twice", [{"question_id": 1, "text": "Yes"}] * 2), read)
    with pytest.raises(BadFile, match="the label 'maybe'"):
        pope.read_questions(lines(tmp_path / "label", [{**asked[0], "label": "maybe"}]))
    with pytest.raises(BadFile, match="line 1 has no label"):
        pope.read_questions(lines(tmp_path / "none", [{"question_id": 1, "image": "a", "text": "?"}]))


def test_the_official_pope_sets_are_graded_quickly() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/benchmarks is not there")
    sets, took = {}, 0.0
    for name in pope.SETS:
        asked = pope.read_questions(SHARED / "pope" / f"coco_pope_{name}.json")
        assert len(asked) == 3000
        begun = time.monotonic()
        sets[name] = pope.grade(asked, {one.id: one.label.capitalize() for one in asked}, name)
        took += time.monotonic() - begun
    begun = time.monotonic()
    found = figure(pope.of_sets(sets), pope.mean_f1)
    print(f"9,000 answers of POPE graded in {took + time.monotonic() - begun:.2f} s")
    assert (found.value, found.low, found.items) == (100, 100, 9000)


# --- LLaVA-Bench ---


@pytest.mark.parametrize(
    ("reply", "ratings"),
    [
        ("8 7\nAssistant 2 is vague.", (8, 7)),
        ("8.5, 7\n", (8.5, 7)),
        ("  10 1  \nx", (10, 1)),
        ("8 7 6\n", None),
        ("Assistant 1: 8", None),
        ("0 5", None),
        ("11 5", None),
        ("", None),
        ("Ratings:\n8 7", None),
        ("8 7\u2028because", None),  # no end of a line, there as here
    ],
)
def test_ratings_of_llava_bench(reply: str, ratings: tuple[float, float] | None) -> None:
    assert llava_bench.read_ratings(reply) == ratings


def test_llava_bench_by_hand(tmp_path: Path) -> None:
    reviews = [
        {"question_id": 0, "category": "llava_bench_conv", "content": "8 4\n"},
        {"question_id": 1, "category": "llava_bench_conv", "content": "10 8\n"},
        {"question_id": 2, "category": "llava_bench_detail", "content": "6 6\n"},
        {"question_id": 3, "category": "llava_bench_complex", "content": "I can't rate these."},
    ]
    graded = llava_bench.read_reviews(lines(tmp_path / "reviews", reviews))
    found = figure(graded, llava_bench.relative)
    assert found.value == pytest.approx(100 * 18 / 24)
    assert (found.items, found.failures) == (3, 1)
    parts = by_category(graded, llava_bench.relative)
    assert parts["conv"].value == pytest.approx(100 * 12 / 18)
    assert parts["detail"].value == pytest.approx(100)
    assert parts["complex"].value is None
    assert parts["complex"].failures == 1


def test_llava_benchs_own_files() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/benchmarks is not there")
    folder = SHARED / "llava_bench_wild"
    asked = llava_bench.read_questions(folder)
    assert len(asked) == 60
    assert {one.category for one in asked} == {"conv", "detail", "complex"}
    answers = llava_bench.read_answers(folder / "bard_0718.jsonl", [one.id for one in asked])
    replies = {one.id: "8 6\nbecause" for one in asked[:59]}
    found = figure(llava_bench.grade(asked, replies, answers), llava_bench.relative)
    assert found.value == pytest.approx(75)
    assert found.failures == 1
    assert found.characters is not None


# --- MT-Bench ---


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Good. Rating: [[8]]", 8),
        ("Rating: [[7.5]]", 7.5),
        ("Rating: [6]", 6),
        ("[[3]] and then [[9]]", 3),
        ("Rating: 8", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("", None),
        ("评分：[[5]]", 5),
    ],
)
def test_ratings_of_mt_bench(reply: str, rating: float | None) -> None:
    assert mt_bench.read_rating(reply) == rating


def test_mt_benchs_judgments_by_hand(tmp_path: Path) -> None:
    rows = [
        {"question_id": 81, "model": "a", "turn": 1, "score": 8},
        {"question_id": 81, "model": "a", "turn": 2, "score": -1},
        {"question_id": 82, "model": "a", "turn": 1, "score": 5},
        {"question_id": 82, "model": "a", "turn": 2, "score": 2},
        {"question_id": 81, "model": "b", "turn": 1, "score": 10},
    ]
    found = mt_bench.read_judgments(lines(tmp_path / "j", rows), {"81": "writing", "82": "math"})
    assert figure(found["b"], mt_bench.score).value == 10
    ours = figure(found["a"], mt_bench.score)
    assert ours.value == pytest.approx(5)
    assert (ours.items, ours.failures) == (3, 1)
    parts = by_category(found["a"], mt_bench.score)
    assert (parts["turn 1"].value, parts["turn 2"].value, parts["math"].value) == (6.5, 2, 3.5)
    with pytest.raises(BadFile, match="turn 1 of question 81 is judged twice for a"):
        mt_bench.read_judgments(lines(tmp_path / "twice", [rows[0]] * 2))


def test_mt_bench_asks_with_fastchats_own_prompts() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/benchmarks is not there")
    templates = mt_bench.read_templates(SHARED / "mt_bench" / "judge_prompts.jsonl")
    system, text = mt_bench.judge_prompt(templates, "writing", ["Q1", "Q2"], ["A1"])
    assert "Q1" in text
    assert "A1" in text
    assert "Q2" not in text
    assert "[[5]]" in system + text
    _, text = mt_bench.judge_prompt(templates, "math", ["Q1", "Q2"], ["A1", "A2"], ["R1", "R2"])
    assert all(part in text for part in ("Q1", "Q2", "A1", "A2", "R1", "R2"))
    with pytest.raises(BadFile, match="there is none for turn 2"):
        mt_bench.judge_prompt(templates, "math", ["Q1", "Q2"], ["A1", "A2"], ["R1"])


def test_temperatures_by_category() -> None:
    assert [mt_bench.temperature_of(name) for name in ("writing", "stem", "math")] == [0.7, 0.1, 0]


# --- AlpacaEval ---


def comparison(number: int, preference: Any, ours: str = "longer", theirs: str = "no") -> dict[str, Any]:
    return {
        "instruction": f"do {number}",
        "output_1": theirs,
        "generator_1": "davinci",
        "output_2": ours,
        "generator_2": "llava",
        "preference": preference,
    }


def test_alpaca_eval_by_hand(tmp_path: Path) -> None:
    given_ = [2, 1, 1.5, 0, 2.0, None, float("nan"), "2", 3]  # 0: a draw, as early versions wrote it
    path = lines(tmp_path / "a", [comparison(number, value) for number, value in enumerate(given_)])
    graded, lengths = alpaca_eval.read_annotations(path)
    found = figure(graded, alpaca_eval.win_rate)
    assert found.value == pytest.approx(100 * (1 + 0 + 0.5 + 0.5 + 1) / 5)
    assert (found.items, found.failures) == (
        5,
        4,
    )
    assert (lengths.model, lengths.baseline, found.characters) == (6, 2, 6)
    other, swapped = alpaca_eval.read_annotations(path, "davinci")
    assert figure(other, alpaca_eval.win_rate).value == pytest.approx(40)
    assert swapped.model == 2


def test_alpaca_evals_files_that_are_refused(tmp_path: Path) -> None:
    mixed = [comparison(1, 2), {**comparison(2, 2), "generator_2": "vicuna"}]
    with pytest.raises(BadFile, match="mixes comparisons"):
        alpaca_eval.read_annotations(lines(tmp_path / "mixed", mixed))
    with pytest.raises(BadFile, match="not vicuna"):
        alpaca_eval.read_annotations(lines(tmp_path / "one", [comparison(1, 2)]), "vicuna")
    with pytest.raises(BadFile, match="more than once"):
        alpaca_eval.read_annotations(lines(tmp_path / "twice", [comparison(1, 2)] * 2))


def test_the_order_of_outputs_is_random_and_fixed() -> None:
    first = [alpaca_eval.model_first(f"do {number}") for number in range(805)]
    assert first == [alpaca_eval.model_first(f"do {number}") for number in range(805)]
    assert 340 < sum(first) < 465
    assert first != [alpaca_eval.model_first(f"do {number}", 1) for number in range(805)]


# --- MM-Vet ---


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("0.5", 0.5),
        ("1.0", 1),
        ("0", 0),
        ("x | y | z | 0.8", 0.8),
        ("The answer is mostly right.\n0.9", 0.9),
        ("1.5", None),
        ("10", None),
        ("no grade", None),
        ("", None),
    ],
)
def test_grades_of_mm_vet(reply: str, value: float | None) -> None:
    assert mm_vet.read_grade(reply) == value


def test_mm_vet_by_hand(tmp_path: Path) -> None:
    asked = {
        name: {"imagename": "a.jpg", "question": "?", "answer": "a<OR>b", "capability": capability}
        for name, capability in {"v1_0": ["ocr", "math"], "v1_1": ["ocr"], "v1_2": ["know"]}.items()
    }
    (tmp_path / "q.json").write_text(json.dumps(asked))
    read = mm_vet.read_questions(tmp_path / "q.json")
    results = {"v1_0": {"score": [1.0, 0.5]}, "v1_1": {"score": [0.25]}, "v1_2": {"score": [-1]}}
    (tmp_path / "r.json").write_text(json.dumps(results))
    graded = mm_vet.read_results(tmp_path / "r.json", read)
    found = figure(graded, mm_vet.score)
    assert found.value == pytest.approx(50)
    assert (found.items, found.failures) == (2, 1)
    parts = by_category(graded, mm_vet.score)
    assert parts["ocr"].value == pytest.approx(50)
    assert parts["math"].value == pytest.approx(75)
    assert parts["know"].value is None
    del asked["v1_0"]["capability"]
    (tmp_path / "bad.json").write_text(json.dumps(asked))
    with pytest.raises(BadFile, match="has no capability"):
        mm_vet.read_questions(tmp_path / "bad.json")


# --- MMBench ---

OPTIONS = {"A": "a red circle", "B": "a blue square", "C": "nothing"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("The answer is B.", "B"),
        ("A", "A"),
        ("A red circle", "A"),
        ("It shows A circle that is red", None),  # the article
        ("a blue square", "B"),
        ("A or B", None),
        ("", None),
        ("D", None),
        ("C " + "word " * 200, "C"),
        ("a blue square " * 20, None),
    ],
)
def test_letters_of_mmbench(answer: str, letter: str | None) -> None:
    assert mmbench.read_letter(answer, OPTIONS) == letter


def mmbench_question(answer: str = "B", index: int = 5) -> mmbench.Question:
    return mmbench.Question(index, "What is it?", "", dict(OPTIONS), answer, "shape", "perception", "x" * 80)


def test_every_rotation_must_be_right() -> None:
    turns = mmbench.rotations(mmbench_question())
    assert [one.options[one.answer] for one in turns] == ["a blue square"] * 3
    assert [one.answer for one in turns] == ["B", "A", "C"]
    assert len({one.index for one in turns}) == 3
    assert {one.unit for one in turns} == {5}
    lengths = {one.index: 1 for one in turns}
    right: dict[int, str | None] = {one.index: one.answer for one in turns}
    assert [one.sums for one in mmbench.grade(turns, right, lengths)] == [(1, 1)]
    assert mmbench.grade(turns, {**right, turns[2].index: "A"}, lengths)[0].sums == (0, 1)
    unread = mmbench.grade(turns, {**right, turns[2].index: None}, lengths)[0]
    assert list(unread.sums or ()) == [0, 1]
    assert "1 of its 3 answers name no option" in unread.why
    del right[turns[0].index]
    assert [one.sums for one in mmbench.grade(turns, right, lengths)] == [None]
    always_b: dict[int, str | None] = {one.index: "B" for one in turns}  # guessing one letter is never right
    assert mmbench.grade(turns, always_b, lengths)[0].sums == (0, 1)


def test_mmbenchs_table(tmp_path: Path) -> None:
    header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\timage"
    rows = [
        f"5\tWhat?\tnan\tx\ty\t\t\tB\tshape\tseeing\t{'i' * 80}",
        "1000005\tWhat?\t\ty\tx\t\t\tA\tshape\tseeing\t5",
    ]
    path = tmp_path / "m.tsv"
    path.write_text("\n".join([header, *rows]))
    found = mmbench.read_questions(path)
    assert [one.options for one in found] == [{"A": "x", "B": "y"}, {"A": "y", "B": "x"}]
    assert found[1].image == "i" * 80
    assert found[0].hint == ""
    assert found[0].prompt == "What?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly."
    path.write_text("\n".join([header, rows[0].replace("\tB\tshape", "\tD\tshape")]))
    with pytest.raises(BadFile, match="the answer 'D', which is none of its options"):
        mmbench.read_questions(path)
    path.write_text("index\tquestion\nx\ty")
    with pytest.raises(BadFile, match="no column A"):
        mmbench.read_questions(path)


# --- figures ---


def test_an_interval_is_that_of_a_plain_bootstrap() -> None:
    chance = random.Random(0)
    values = [chance.random() for _ in range(60)]
    graded = [Graded(str(number), (value, 1.0)) for number, value in enumerate(values)]
    found = figure(graded, mean_of(), resamples=4000)
    means = [np.mean(chance.choices(values, k=60)) for _ in range(4000)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    assert found == figure(graded, mean_of(), resamples=4000), "the same seed, the same interval"


def test_units_are_drawn_whole() -> None:
    """Two turns of one question that always agree are one piece of evidence."""
    both = [
        Graded(f"{number}/{turn}", (float(number % 2), 1.0), unit=str(number))
        for number in range(40)
        for turn in (1, 2)
    ]
    apart = [Graded(one.id, one.sums) for one in both]
    wide, narrow = figure(both, mean_of()), figure(apart, mean_of())
    assert wide.low is not None
    assert narrow.low is not None
    assert wide.low < narrow.low - 0.03


def test_a_difference_is_drawn_in_pairs() -> None:
    chance = random.Random(1)
    hard = [chance.gauss(5, 3) for _ in range(100)]
    base = [Graded(str(n), (value, 1.0), characters=10) for n, value in enumerate(hard)]
    ours = [Graded(str(n), (value + 0.5, 1.0), characters=30) for n, value in enumerate(hard)]
    found = difference(ours, base, mean_of())
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.characters == 20
    partly = difference(ours[:60], [*base[10:], Graded("x", None)], mean_of())
    assert (partly.items, partly.failures) == (50, 51)
    assert difference(ours[:1], base[1:], mean_of()).value is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(1, 10)), max_size=30))
def test_figures_of_anything(values: list[float | None]) -> None:
    graded = [Graded(str(n), None if value is None else (value, 1.0)) for n, value in enumerate(values)]
    found = figure(graded, mean_of(), resamples=50)
    assert found.items + found.failures == len(values)
    if found.value is None:
        assert found.items == 0
    else:
        assert found.low is not None
        assert found.high is not None
        assert found.low - 1e-9 <= found.value <= found.high + 1e-9 or found.items > 1
