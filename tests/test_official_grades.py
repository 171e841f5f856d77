"""Official judgment, review, result and answer files: their grades, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import benchmark_files as make
from benchmark_files import lines, value
from jobs.benchmarks.files import BadFile
from jobs.benchmarks.measures import by_category, difference, figure
from jobs.benchmarks.official import OFFICIAL, read_official
from jobs.benchmarks.registry import BENCHMARKS


def as_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


# --- POPE ---


def pope_answers(folder: Path, own: bool) -> Path:
    """Yes to all, one file a set."""
    for name in ("random", "popular", "adversarial"):
        rows = [
            {"question": "?", "answer": "Yes"} if own else {"question_id": number, "text": "Yes", "model_id": "x"}
            for number in range(1, 5)
        ]
        lines(folder / f"answers_{name}.json", rows)
    return folder


@pytest.mark.parametrize("own", [True, False], ids=["POPE's", "LLaVA's"])
def test_popes_answers_a_file_a_set(own: bool, tmp_path: Path) -> None:
    asked, answers = make.pope_folder(tmp_path / "pope"), pope_answers(tmp_path / "answers", own)
    found = read_official("pope", answers, asked, "LLaVA")
    assert list(found) == ["LLaVA"]
    assert value(found["LLaVA"], BENCHMARKS["pope"]) == pytest.approx(200 / 3)
    assert found["LLaVA"][0].id == "random/1"
    one = read_official("pope", answers / "answers_popular.json", asked / "coco_pope_popular.json", "")
    assert list(one) == ["answers_popular"]
    assert len(one["answers_popular"]) == 4
    lines(answers / "more_random.json", [{"question_id": 1, "text": "Yes"}])
    with pytest.raises(BadFile, match="must have one file with random in its name; it has answers_random"):
        read_official("pope", answers, asked, "")


def test_llavas_one_file_of_all_sets_is_told_apart_by_its_numbering(tmp_path: Path) -> None:
    asked = make.pope_folder(tmp_path / "pope")
    sets = ("adversarial", "popular", "random")
    numbers = [{"question_id": n, "category": sets[n // 4], "text": "?"} for n in range(12)]
    answers = lines(
        tmp_path / "a.jsonl", [{"question_id": n, "text": "No" if n % 2 else "Yes"} for n in range(11)]
    )
    with pytest.raises(BadFile, match=r"Put LLaVA's llava_pope_test\.jsonl"):
        read_official("pope", answers, asked, "")
    lines(asked / "llava_pope_test.jsonl", numbers)
    graded = read_official("pope", answers, asked, "")["a"]
    assert [one.id for one in graded if one.sums is None] == ["random/4"]
    assert value(graded, BENCHMARKS["pope"]) == 100
    lines(asked / "llava_pope_test.jsonl", numbers[:-1])
    with pytest.raises(BadFile, match="has 3 questions of random, its official file 4: they"):
        read_official("pope", answers, asked, "")
    lines(asked / "llava_pope_test.jsonl", numbers)
    with pytest.raises(BadFile, match="belong to no question"):
        read_official("pope", lines(tmp_path / "b.jsonl", [{"question_id": 99, "text": ""}]), asked, "")
    with pytest.raises(BadFile, match="holds no labels"):
        read_official("pope", answers, None, "")


def test_official_grades_compare_with_ones_own_item_by_item(tmp_path: Path) -> None:
    asked, pope = make.pope_folder(tmp_path / "pope"), BENCHMARKS["pope"]
    assert pope.grade
    for name in ("a.jpg", "b.jpg"):
        make.picture(asked / name)
    items = pope.read(asked, None, tmp_path)
    ours = pope.grade(items, {item.id: [item.reference[0]] for item in items})
    theirs = read_official("pope", pope_answers(tmp_path / "answers", True), asked, "x")["x"]
    found = difference(ours, theirs, pope.measures["F1"])
    assert (found.items, found.failures) == (12, 0)
    assert found.value == pytest.approx(100 / 3)


# --- MT-Bench ---


def judgment(number: int, turn: int, score: float, model: str = "a") -> dict[str, Any]:
    return {"question_id": number, "model": model, "turn": turn, "score": score, "judgment": "…"}


def test_mt_benchs_judgments_by_model(tmp_path: Path) -> None:
    rows = [
        judgment(81, 1, 8),
        judgment(81, 2, -1),
        judgment(111, 1, 5),
        judgment(111, 2, 2),
        judgment(81, 1, 9, "b"),
    ]
    path, asked = lines(tmp_path / "gpt-4_single.jsonl", rows), make.mt_folder(tmp_path / "mt")
    found = read_official("mt-bench", path, asked, "")
    assert list(found) == ["a", "b"]
    bench = BENCHMARKS["mt-bench"]
    assert value(found["a"], bench) == 5
    assert figure(found["a"], bench.measures["rating"]).failures == 1
    assert by_category(found["a"], bench.measures["rating"])["math"].value == 3.5
    assert list(read_official("mt-bench", path, asked / "question.jsonl", "b")) == ["b"]
    assert value(read_official("mt-bench", path, None, "b")["b"], bench) == 9
    with pytest.raises(BadFile, match="no judgments of c; it has those of a, b"):
        read_official("mt-bench", path, asked, "c")
    with pytest.raises(BadFile, match="belong to no question"):
        read_official("mt-bench", lines(tmp_path / "o", [judgment(1, 1, 5)]), asked, "")
    with pytest.raises(BadFile, match="is judged twice"):
        read_official("mt-bench", lines(tmp_path / "t", [rows[0]] * 2), asked, "")


@pytest.mark.parametrize("broken", [{"score": "high"}, {"score": None}, {"turn": "one"}])
def test_judgments_that_are_no_numbers_are_refused(broken: dict[str, Any], tmp_path: Path) -> None:
    path = lines(tmp_path / "j", [judgment(81, 1, 8), {**judgment(81, 2, 8), **broken}])
    with pytest.raises(BadFile, match="question 81"):
        read_official("mt-bench", path, None, "")


# --- AlpacaEval ---


def annotation(number: int, preference: Any, **changed: Any) -> dict[str, Any]:
    row = {
        "instruction": f"Do {number}.",
        "output_1": "no",
        "generator_1": "davinci",
        "output_2": "longer",
        "generator_2": "vicuna",
        "dataset": "koala",
        "preference": preference,
    }
    return {**row, **changed}


def test_alpaca_evals_annotations(tmp_path: Path) -> None:
    path = as_json(tmp_path / "annotations.json", [annotation(n, p) for n, p in enumerate([2, 1, 0, 1.25, None])])
    found = read_official("alpaca-eval", path, None, "")
    assert list(found) == ["vicuna"]
    bench = BENCHMARKS["alpaca-eval"]
    assert value(found["vicuna"], bench) == pytest.approx(100 * (1 + 0 + 0.5 + 0.25) / 4)
    assert value(found["vicuna"], bench, "baseline's length") == 2
    assert by_category(found["vicuna"], bench.measures["win rate"])["koala"].failures == 1
    items = bench.read(make.alpaca_file(tmp_path / "outputs.json"), None, tmp_path)
    assert {item.id for item in items} & {one.id for one in found["vicuna"]} == {items[n].id for n in range(3)}
    swapped = read_official("alpaca-eval", path, None, "davinci")["davinci"]
    assert value(swapped, bench) == pytest.approx(100 - 43.75)
    with pytest.raises(BadFile, match="not llava"):
        read_official("alpaca-eval", path, None, "llava")
    mixed = as_json(tmp_path / "mixed", [annotation(1, 2), annotation(2, 2, generator_2="x")])
    with pytest.raises(BadFile, match="mixes comparisons"):
        read_official("alpaca-eval", mixed, None, "")
    with pytest.raises(BadFile, match="more than once"):
        read_official("alpaca-eval", as_json(tmp_path / "twice", [annotation(1, 2)] * 2), None, "")


# --- LLaVA-Bench, MM-Vet ---


def test_llava_benchs_reviews(tmp_path: Path) -> None:
    rows = [
        {"question_id": 0, "category": "llava_bench_conv", "content": "8 4\u2028\nso"},
        {"question_id": 1, "category": "llava_bench_detail", "content": "10 5\nso"},
    ]
    path, bench = lines(tmp_path / "llava-13b.jsonl", rows), BENCHMARKS["llava-bench"]
    alone = read_official("llava-bench", path, None, "")
    assert list(alone) == ["llava-13b"]
    assert [one.sums for one in alone["llava-13b"]] == [(8, 4), (10, 5)]
    asked = make.llava_folder(tmp_path / "llava")
    whole = read_official("llava-bench", path, asked, "mine")["mine"]
    assert [one.why for one in whole] == ["", "", "it has no review"]
    assert [one.unit for one in whole] == ["001.jpg", "001.jpg", "002.jpg"]
    assert value(whole, bench) == 50
    other = lines(tmp_path / "o.jsonl", [{**rows[0], "question_id": 77}])
    with pytest.raises(BadFile, match="belong to no question"):
        read_official("llava-bench", other, asked, "")


def test_mm_vets_results(tmp_path: Path) -> None:
    asked, bench = make.mm_vet_folder(tmp_path / "mm-vet"), BENCHMARKS["mm-vet"]
    path = as_json(tmp_path / "llava_gpt-4.json", {"v1_0": {"score": [0.5, 1.0], "content": ["0.5", "1.0"]}})
    found = read_official("mm-vet", path, asked, "")["llava_gpt-4"]
    assert value(found, bench) == 75
    assert [one.unit for one in found] == ["v1_0.png", "v1_1.png"]
    assert [one.sums for one in found] == [(0.75, 1), None]
    with pytest.raises(BadFile, match=r"give mm-vet\.json as well"):
        read_official("mm-vet", path, None, "")
    with pytest.raises(BadFile, match="belong to no question"):
        read_official("mm-vet", as_json(tmp_path / "v2", {"v2_0": {"score": [1]}}), asked, "")
    with pytest.raises(BadFile, match="no list named score"):
        read_official("mm-vet", as_json(tmp_path / "none", {"v1_0": 1}), asked, "")


# --- all ---


@pytest.mark.parametrize("benchmark", OFFICIAL)
@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}\n', "\ufeffnot json", "[1, 2]", "null"])
def test_files_that_are_no_such_files_are_refused(benchmark: str, text: str, tmp_path: Path) -> None:
    questions = {
        "pope": lambda: make.pope_folder(tmp_path / "q") / "coco_pope_random.json",
        "mm-vet": lambda: make.mm_vet_folder(tmp_path / "q"),
    }.get(benchmark, lambda: None)()
    path = tmp_path / "file.json"
    path.write_text(text, "utf-8")
    with pytest.raises(BadFile, match=r"file\.json"):
        read_official(benchmark, path, questions, "")


def test_what_has_no_official_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="ifeval has no official files of grades; these have: pope, mm-vet"):
        read_official("ifeval", tmp_path, None, "")
    with pytest.raises(BadFile, match="nothing is not there"):
        read_official("pope", tmp_path / "nothing", None, "")
    assert set(OFFICIAL) <= set(BENCHMARKS)
