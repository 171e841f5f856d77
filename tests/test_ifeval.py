"""IFEval's 25 kinds of instruction, each by hand; what its file may hold; odd answers."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import benchmark_files as make
from benchmark_files import lines, shared, value
from jobs.benchmarks import ifeval
from jobs.benchmarks.files import BadFile
from jobs.benchmarks.ifeval_rules import RULES, follows, follows_loosely, variants
from jobs.benchmarks.ifeval_text import count_capital_words, count_sentences, count_words, language_of
from jobs.benchmarks.measures import by_category

FIRST = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Well"}

#: (instruction, arguments, answers that follow, answers that don't)
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["sea", "Blue"]}, ["The SEA is bluest."], ["The sea.", "x"]),
    (
        "keywords:frequency",
        {"keyword": "go", "frequency": 2, "relation": "at least"},
        ["Go, go!", "gogo"],
        ["go", "gone"],
    ),
    ("keywords:frequency", {"keyword": "a.c", "frequency": 1, "relation": "at least"}, ["a.c"], ["abc"]),
    ("keywords:forbidden_words", {"forbidden_words": ["he"]}, ["They left."], ["HE left.", "(he)"]),
    (
        "keywords:letter_frequency",
        {"letter": "A", "let_frequency": 3, "let_relation": "at least"},
        ["Banana"],
        ["Bana"],
    ),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "less than"}, ["#"], ["##"]),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein kurzer Satz über den Winter in den Bergen."],
        ["This is a short sentence about the winter in the mountains."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two.", "Why? Because."],
        ["One."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***a***b***"],
        ["a", "a******b"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ["two words"],
        ["these are three", "it's mine"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        FIRST,
        ["One.\n\nWell, two.", 'One.\n\n"Well" two.', "a\n\nWELL\n\n"],
        ["Well.\n\nOne.", "a\n\nb\n\nWell", "a", "a\n\nWellness"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] and [address]"],
        ["[name]", "[a\n] [b]", "[[a]"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\nP.S. y", "p. s. z"], ["PS: x"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S. x", "p. p. s"], ["P.S. x"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  - b", "intro\n\n* a\n- b"],
        ["* a", "** a\n* b", "* a\n* b\n* c"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["I think: My answer is maybe."],
        ["my answer is no", "Maybe."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**both count**\n*x*"],
        ["*a*", "** and **", "*a\nb*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1 a SECTION 2 b", "SECTION1\nSECTION2"],
        ["SECTION 1", "Section 1 Section 2", "SECTION I SECTION II"],
    ),
    ("detectable_format:json_format", {}, ['{"a": 1}', "```json\n[1]\n```", "3"], ["{a: 1}", "Here: {}"]),
    ("detectable_format:title", {}, ["<<A title>>\nx"], ["<<>>", "<<a\nb>>", "<A>", "<< >>"]),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b"],
        ["a******a", "a***b", "a******b******c"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, ["say it. It."], ["I say it. It."]),
    ("startend:end_checker", {"end_phrase": "Any more?"}, ['Well. "any more? "'[:-2] + '"'], ["Any more? Yes."]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["THIS IS it", "I MEAN"],
        ["This Is", "WELL-KNOWN thing"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS ALL WRITTEN IN CAPITAL LETTERS, EVERY WORD OF IT."],
        ["This is not.", "DAS IST ALLES IN GROSSBUCHSTABEN GESCHRIEBEN, JEDES WORT DAVON."],
    ),
    ("change_case:english_lowercase", {}, ["this is all written in small letters, every word of it."], ["This."]),
    ("punctuation:no_comma", {}, ["No comma here."], ["Well, one."]),
    ("startend:quotation", {}, ['"All of it."', ' "x" '], ['"', '"a" b', "'a'"]),
]


@pytest.mark.parametrize(("name", "given", "good", "bad"), CASES, ids=[f"{n} {c[0]}" for n, c in enumerate(CASES)])
def test_instructions_by_hand(name: str, given: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert [answer for answer in good if not follows(answer, name, given)] == []
    assert [answer for answer in bad if follows(answer, name, given)] == []


def test_every_kind_is_worked_by_hand() -> None:
    assert {case[0] for case in CASES} == set(RULES)
    assert len(RULES) == 25


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("   ", 0),
        ("No end", 1),
        ("One. Two! Three?", 3),
        ("Mr. Smith met Dr. Jones.", 1),
        ("It costs 3.50 dollars. Cheap.", 2),
        ("J. R. Tolkien wrote it.", 1),
        ("He lives in the U.S. and works.", 1),
        ("He lives in the U.S. He works.", 2),
        ('He said "Stop." Then he left.', 2),
        ("(It rains.) We stay.", 2),
        ("1. Open the box.\n2. Close it.", 4),  # Punkt's count, too: a number ends a sentence
        ("Well... maybe not.", 1),
        ("这是一个答案。", 1),
        ("One.\u2028Two.", 2),
    ],
)
def test_sentences(text: str, number: int) -> None:
    assert count_sentences(text) == number


def test_words_and_capitals() -> None:
    assert count_words("It's a well-known fact, isn't it?") == 9
    assert count_capital_words("IT'S A WELL-KNOWN FACT; DON'T ASK (EVER)!") == 9
    assert count_capital_words("I'm at the U.N., and you CANNOT be. 42 Nobody") == 4


def test_languages_are_the_same_each_time() -> None:
    assert {language_of("Hola amigo") for _ in range(5)} == {language_of("Hola amigo")}
    assert language_of("12345 !!!") is None
    assert language_of("") is None


def test_loosely_an_answer_may_have_asterisks_and_a_line_around_it() -> None:
    quoted = 'Sure, here it is:\n**"All of it."**\nAnything else?'
    assert not follows(quoted, "startend:quotation", {})
    assert follows_loosely(quoted, "startend:quotation", {})
    assert not follows_loosely(f"{quoted}\nTell me.", "startend:quotation", {})
    assert len(variants("a\nb\nc*")) == 6  # of eight, those that differ
    assert variants("one line")[0] == "one line"
    assert not follows_loosely("\n \n", "punctuation:no_comma", {})


def test_ifeval_by_hand(tmp_path: Path) -> None:
    items = ifeval.read(make.ifeval_file(tmp_path / "input_data.jsonl"), None, tmp_path)
    assert [item.id for item in items] == ["1", "2"]
    assert items[0].categories == ("punctuation", "length_constraints")
    # 1: the comma breaks one of two; without its first line it is there no more. 2: followed.
    answers = {"1": ["Well, hello.\nGood day to you."], "2": ["<<Title>>"]}
    graded = ifeval.grade(items, answers)
    bench = ifeval.BENCHMARK
    assert value(graded, bench, "prompt strict") == 50
    assert value(graded, bench, "prompt loose") == 100
    assert value(graded, bench, "instruction strict") == pytest.approx(100 * 2 / 3)
    assert value(graded, bench, "instruction loose") == 100
    assert graded[0].why == "not followed: punctuation:no_comma"
    assert by_category(graded, bench.measures["prompt strict"])["detectable_format"].value == 100
    nothing = ifeval.grade(items, {"1": [""]})
    assert list(nothing[0].sums or ()) == [0, 0, 1, 0, 0, 2]
    assert nothing[1].why == "it has no answer"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"instruction_id_list": ["length:words"]}, "is none of IFEval's 25 types"),
        ({"instruction_id_list": ["detectable_format:title"] * 2}, "as many kwargs"),
        ({"instruction_id_list": ["startend:end_checker"]}, "has no 'end_phrase'"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"relation": "about", "num_words": 3}],
            },
            "the relation 'about'",
        ),
        (
            {
                "instruction_id_list": ["detectable_format:number_bullet_lists"],
                "kwargs": [{"num_bullets": "many"}],
            },
            "cannot be checked",
        ),
        ({"instruction_id_list": []}, "must have instructions"),
    ],
)
def test_files_that_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = {"key": 7, "prompt": "x", "instruction_id_list": ["detectable_format:title"], "kwargs": [{}]}
    with pytest.raises(BadFile, match=f"prompt 7.*{message}"):
        ifeval.read(lines(tmp_path / "input_data.jsonl", [{**row, **changed}]), None, tmp_path)


def test_keys_come_once(tmp_path: Path) -> None:
    row = {"key": 7, "prompt": "x", "instruction_id_list": ["detectable_format:title"], "kwargs": [{}]}
    with pytest.raises(BadFile, match="more than once"):
        ifeval.read(lines(tmp_path / "input_data.jsonl", [row, row]), None, tmp_path)


HARD = {
    "spaces": " " * 100_000 + "x",
    "lines": "\n" * 100_000 + "x",
    "brackets": "[" * 100_000,
    "angles": "<" * 100_000,
    "asterisks": "*" * 100_000,
    "stops": "a." * 50_000,
    "tabs": "." + "\t" * 100_000,
    "another language": "这是一个答案。" * 14_000,
}


@pytest.mark.parametrize("text", HARD.values(), ids=HARD.keys())
def test_endless_answers_take_no_time(text: str) -> None:
    """Every rule is linear: the official patterns are quadratic in some of these, and take minutes."""
    given = {name: arguments for name, arguments, _, _ in CASES}
    language_of("Load the profiles first.")
    begun = time.process_time()
    for name, arguments in given.items():
        follows_loosely(text, name, arguments)
    assert time.process_time() - begun < 10


def test_the_official_prompts(tmp_path: Path) -> None:
    items = ifeval.read(shared("ifeval"), None, tmp_path)
    assert len(items) == 541
    numbers = Counter(name for item in items for name, _ in item.extra["instructions"])
    assert sum(numbers.values()) == 834
    assert set(numbers) == set(RULES)
    assert json.dumps(items[0].extra)
