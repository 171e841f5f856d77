"""easy-VQA with shuffled twins, and POPE's probe on its pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmark_files import images_of, value
from jobs.benchmarks import easy_pope, easy_vqa
from jobs.benchmarks.contract import Item
from jobs.benchmarks.measures import by_category
from storage.easy_vqa import Question, load_questions

VQA, POPE = easy_vqa.BENCHMARK, easy_pope.BENCHMARK


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return easy_vqa.read(None, None, Path())


def test_each_question_has_a_twin_beside_it_with_another_picture(items: list[Item]) -> None:
    questions = load_questions("test")
    assert len(items) == 2 * len(questions)
    for place, question in enumerate(questions[:500]):
        true, twin = items[2 * place : 2 * place + 2]
        assert (true.id, twin.id) == (str(question.number), f"{question.number}/shuffled")
        assert true.unit == twin.unit == str(question.number)
        assert images_of([true]) == [question.image]
        assert images_of([twin]) != [question.image]
        assert true.messages[0]["content"][1] == twin.messages[0]["content"][1]
        assert true.categories == (("yes/no",) if question.answer in ("yes", "no") else ("open",))
        assert twin.categories == ("shuffled",)
    pairs = {
        (images_of([one])[0], images_of([twin])[0]) for one, twin in zip(items[::2], items[1::2], strict=True)
    }
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}), "each used once"


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("circle", "circle", True),
        ("Circle.", "circle", True),
        ("A circle", "circle", True),
        ("The circle is blue", "circle", True),
        ("It is a circle", "circle", False),
        ("yes", "yes", True),
        ("Yes, there is.", "yes", True),
        ("yesterday", "yes", False),
        ("no", "yes", False),
        ("", "yes", False),
        ("圆形", "circle", False),
        ("circle\u2028square", "circle", True),
        ("circle " * 20_000, "circle", True),
    ],
)
def test_what_is_right(answer: str, expected: str, right: bool) -> None:
    assert easy_vqa.is_right(answer, expected) is right


def test_accuracy_is_of_true_pictures_and_stands_beside_the_shuffled_one() -> None:
    def pair(number: int, answer: str, kind: str) -> list[Item]:
        return [
            Item(
                f"{number}{end}",
                (),
                categories=(kind if not end else "shuffled",),
                unit=str(number),
                extra={"answer": answer, "shuffled": bool(end)},
            )
            for end in ("", "/shuffled")
        ]

    asked = [
        *pair(1, "yes", "yes/no"),
        *pair(2, "red", "open"),
        *pair(3, "no", "yes/no"),
        *pair(4, "blue", "open"),
    ]
    said = {
        "1": "yes",
        "1/shuffled": "yes",
        "2": "red",
        "2/shuffled": "blue",
        "3": "no",
        "3/shuffled": "yes",
        "4": "x",
    }
    graded = easy_vqa.grade(asked, {name: [text] for name, text in said.items()})
    assert value(graded, VQA) == pytest.approx(100 * 3 / 4)
    assert value(graded, VQA, "shuffled") == pytest.approx(100 / 3)
    assert value(graded, VQA, "gain by the picture") == pytest.approx(75 - 100 / 3)
    parts = by_category(graded, VQA.measures["accuracy"])
    assert (parts["yes/no"].value, parts["open"].value) == (100, 50)
    assert [one.id for one in graded if one.sums is None] == ["4/shuffled"]


def test_a_model_that_never_looks_gains_nothing(items: list[Item]) -> None:
    """The same answer to the same words."""
    graded = easy_vqa.grade(items, {item.id: ["no" if " not " in str(item.messages) else "yes"] for item in items})
    assert value(graded, VQA, "gain by the picture") == 0
    assert value(graded, VQA) == value(graded, VQA, "shuffled")


def test_half_of_the_probes_ask_for_what_is_not_there() -> None:
    probes = easy_pope.read(None, None, Path())
    assert Counter(item.reference[0] for item in probes) == {"yes": len(probes) // 2, "no": len(probes) // 2}
    absent = Counter(item.id.split("/")[1] for item in probes if item.reference == ("no",))
    for labels in easy_pope.KINDS.values():
        numbers = [absent[label] for label in labels]
        assert max(numbers) - min(numbers) <= 1
    assert len({item.id for item in probes}) == len(probes)


def test_the_probes_agree_with_easy_vqas_own_answers() -> None:
    """Each question of the package that asks what a probe asks has the probe's answer."""
    own = {
        (question.image.stem, question.text): question.answer
        for question in load_questions("test")
        if question.answer in ("yes", "no")
    }
    both = 0
    for item in easy_pope.read(None, None, Path()):
        known = own.get((item.unit, item.messages[0]["content"][1]["text"]))
        both += known is not None
        assert known in (None, item.reference[0]), item.id
    assert both > 100


def test_labels_are_read_off_questions() -> None:
    def of(*asked: tuple[str, str]) -> dict[str, str]:
        questions = [Question(n, text, answer, Path("7.png")) for n, (text, answer) in enumerate(asked)]
        return easy_pope.labels_of(questions)[Path("7.png")]

    assert of(("what shape is present?", "circle")) == {"shape": "circle"}
    assert of(("what is the color of the triangle?", "red")) == {"shape": "triangle", "colour": "red"}
    assert of(("is there a blue shape?", "yes")) == {"colour": "blue"}
    assert of(("is there a blue shape?", "no")) == {}
    assert of(("is there not a blue shape?", "no")) == {"colour": "blue"}
    assert of(("does the image not contain a circle?", "yes")) == {}
    assert of(("is no teal shape present?", "no")) == {"colour": "teal"}


def test_probes_are_graded_as_pope_grades() -> None:
    probes = easy_pope.read(None, None, Path())[:400]
    always = easy_pope.grade(probes, {item.id: ["Yes"] for item in probes})
    assert value(always, POPE) == pytest.approx(200 / 3)
    assert value(always, POPE, "yes ratio") == 100
    right = easy_pope.grade(probes, {item.id: [item.reference[0]] for item in probes})
    assert value(right, POPE) == 100
    assert len({one.unit for one in right}) < len(right)
