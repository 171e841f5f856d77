"""The rule-based judge: its docstring's table, row by row."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.judges.rules import judge_answer
from jobs.judges.run import judge_row
from jobs.pairing import QUALITY
from storage.records import METRICS

SHAPE, CLOSED = "what shape is in the image?", "is there a red shape in the image?"
NEGATIVE = "does the image not contain a red shape?"


@pytest.mark.parametrize(
    ("question", "reference", "text", "expected"),
    [
        (SHAPE, "circle", "The shape in the image is a circle.", (4, 4, 4, 2, 2)),
        (SHAPE, "circle", "The image shows a red circle.", (4, 4, 4, 3, 2)),
        (SHAPE, "circle", "circle", (2, 4, 3, 0, 1)),
        (SHAPE, "circle", "It is a circle or a triangle.", (1, 2, 1, 1, 2)),
        (SHAPE, "circle", "The shape in the image is a triangle.", (1, 0, 4, 1, 2)),
        (SHAPE, "circle", "triangle", (0, 0, 3, 0, 1)),
        (SHAPE, "circle", "I like pictures very much.", (0, 1, 2, 0, 2)),
        (SHAPE, "circle", "", (0, 0, 0, 0, 0)),
        (SHAPE, "circle", "?!", (0, 0, 0, 0, 0)),
        (SHAPE, "circle", "circle circle circle", (1, 4, 1, 0, 1)),
        (SHAPE, "circle", "The shape is a circle. The shape is a circle.", (3, 4, 2, 2, 2)),
        (CLOSED, "yes", "Yes, there is a red shape in the image.", (4, 4, 4, 2, 2)),
        (CLOSED, "no", "No, there is no red shape in the image.", (4, 4, 4, 2, 2)),
        (CLOSED, "no", "yes", (0, 0, 3, 0, 1)),
        (CLOSED, "yes", "Yes, there is no red shape.", (1, 2, 1, 1, 2)),
        (CLOSED, "yes", "There is a red shape in the image.", (4, 4, 4, 2, 2)),
        (CLOSED, "no", "There is not a red shape here.", (4, 4, 4, 2, 2)),
        (CLOSED, "no", "No, there is a red shape.", (1, 2, 1, 1, 2)),
        (CLOSED, "no", "No, there is a blue shape.", (4, 4, 4, 2, 2)),
        (CLOSED, "no", "No, yes it is red.", (1, 2, 1, 1, 2)),
        (SHAPE, "circle", "It is not a circle.", (0, 1, 2, 0, 2)),
        (SHAPE, "circle", "It is a circle, not a triangle.", (1, 2, 1, 1, 2)),
        (NEGATIVE, "yes", "Yes, there is no red shape in the image.", (4, 4, 4, 2, 2)),
        (NEGATIVE, "yes", "There is not a red shape here.", (4, 4, 4, 2, 2)),
        (NEGATIVE, "yes", "There is a red shape in the image.", (1, 0, 4, 1, 2)),
        (NEGATIVE, "no", "No, it contains a red shape.", (4, 4, 4, 2, 2)),
        ("what color is the circle?", "gray", "The circle is grey.", (4, 4, 4, 3, 2)),
    ],
)
def test_the_table(question: str, reference: str, text: str, expected: tuple[int, ...]) -> None:
    verdict = judge_answer(question, reference, text)
    assert tuple(verdict.scores[metric] for metric in METRICS) == expected, verdict.reason
    assert verdict.reason


def test_the_candidates_of_one_sample_spread() -> None:
    """Right and wrong, sentence and word: at least 2 apart, so that the paper's rule finds pairs."""
    texts = ["The shape in the image is a circle.", "circle", "The shape in the image is a triangle.", "red"]
    qualities = [sum(judge_answer(SHAPE, "circle", text).scores[metric] for metric in QUALITY) for text in texts]
    assert qualities == sorted(qualities, reverse=True)
    assert all(a - b >= 2 for a, b in itertools.pairwise(qualities))


@given(question=st.text(), reference=st.sampled_from(["yes", "no", "circle", "red"]), text=st.text())
def test_any_text_gets_whole_numbers_in_range_and_always_the_same(
    question: str, reference: str, text: str
) -> None:
    verdict = judge_answer(question, reference, text)
    assert set(verdict.scores) == set(METRICS)
    assert all(isinstance(value, int) and 0 <= value <= 4 for value in verdict.scores.values())
    assert verdict == judge_answer(question, reference, text)


def test_a_sample_that_the_rules_do_not_know_fails_visibly() -> None:
    row = {"source": "radiology", "reference": "yes", "messages": [], "candidates": [{"id": 1, "text": "yes"}]}
    judged = judge_row(row)
    assert judged["state"] == "failed"
    assert judged["scores"] == []
    assert "'radiology'" in judged["reason"]
