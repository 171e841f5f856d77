"""POPE: is an object in the picture? (Li et al. 2023, arXiv 2305.10355; its evaluate.py.)

Questions: JSON lines {question_id, image, text, label}, in three sets of 3,000: random, popular, adversarial.
The answer counts as "no" if its first sentence, without commas, has the word No, no or not; else as "yes".
Precision and recall are of "yes". What is reported is the mean of the three sets' F1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.benchmarks.files import BadFile, matched, read_lines, unique
from jobs.benchmarks.measures import Array, Graded, Score, ratio

SETS = ("random", "popular", "adversarial")
_NO = {"No", "no", "not"}


@dataclass(frozen=True)
class Question:
    id: str
    image: str
    text: str
    label: str  # "yes" or "no"


def read_questions(path: Path) -> list[Question]:
    """Raises BadFile."""
    found = [
        Question(str(one["question_id"]), str(one["image"]), str(one["text"]), str(one["label"]).strip().lower())
        for one in read_lines(path, "question_id", "image", "text", "label")
    ]
    unique(path, [one.id for one in found])
    strange = next((one for one in found if one.label not in ("yes", "no")), None)
    if strange:
        raise BadFile(f"{path}: question {strange.id} has the label {strange.label!r}; it must be yes or no.")
    return found


def read_answers(path: Path, questions: Sequence[Question]) -> dict[str, str]:
    """Answers by question: JSON lines {question_id, text} (LLaVA's) or {question, answer} in the questions' order
    (POPE's own).

    Raises:
        BadFile: also where POPE's own form, which names no ids, has another number of lines than there are
        questions.
    """
    rows = read_lines(path)
    if "answer" in rows[0] and "question_id" not in rows[0]:
        if len(rows) != len(questions):
            raise BadFile(
                f"{path} has {len(rows)} answers without question_id for {len(questions)} questions: they "
                "cannot be matched. Add question_id, or answer all."
            )
        return {one.id: str(row.get("answer", "")) for one, row in zip(questions, rows, strict=True)}
    rows = read_lines(path, "question_id", "text")
    unique(path, [str(row["question_id"]) for row in rows])
    found = {str(row["question_id"]): str(row["text"]) for row in rows}
    matched(path, found, [one.id for one in questions])
    return found


def says_yes(answer: str) -> bool:
    """What an answer counts as."""
    first = answer.split(".")[0].replace(",", "")
    return not _NO & set(first.split(" "))


def sums_of(answer: str, label: str) -> tuple[float, float, float, float]:
    """(TP, FP, TN, FN) of one answer. `label`: "yes" or "no"."""
    yes, right = says_yes(answer), label == "yes"
    return float(yes and right), float(yes and not right), float(not yes and not right), float(not yes and right)


def grade(questions: Sequence[Question], answers: Mapping[str, str], name: str = "") -> list[Graded]:
    """Sums (TP, FP, TN, FN) of each question. `name`: of the set, as a category and before the ids."""
    found = []
    for one in questions:
        answer = answers.get(one.id)
        known = f"{name}/{one.id}" if name else one.id
        categories = (name,) if name else ()
        if answer is None:
            found.append(Graded(known, None, categories, why="it has no answer"))
            continue
        found.append(Graded(known, sums_of(answer, one.label), categories, len(answer)))
    return found


def f1(sums: Array) -> Array:
    """F1 of "yes", in per cent."""
    true, wrong, _, missed = np.moveaxis(sums, -1, 0)
    return ratio(200 * true, 2 * true + wrong + missed)


def accuracy(sums: Array) -> Array:
    true, _, refused, _ = np.moveaxis(sums, -1, 0)
    return ratio(100 * (true + refused), sums.sum(axis=-1))


def precision(sums: Array) -> Array:
    return ratio(100 * sums[..., 0], sums[..., 0] + sums[..., 1])


def recall(sums: Array) -> Array:
    return ratio(100 * sums[..., 0], sums[..., 0] + sums[..., 3])


def yes_ratio(sums: Array) -> Array:
    """How many answers are "yes", in per cent."""
    return ratio(100 * (sums[..., 0] + sums[..., 1]), sums.sum(axis=-1))


def of_sets(sets: Mapping[str, Sequence[Graded]]) -> list[Graded]:
    """The grades of several sets as one list whose sums stand side by side, for `mean_f1`."""
    width = 4 * len(sets)
    found = []
    for place, graded in enumerate(sets.values()):
        for one in graded:
            sums = None
            if one.sums is not None:
                sums = (*(0.0,) * (4 * place), *one.sums, *(0.0,) * (width - 4 * place - 4))
            found.append(Graded(one.id, sums, one.categories, one.characters, one.unit, one.why))
    return found


def mean_f1(sums: Array) -> Array:
    """The mean of the F1 of those sets that anything was asked of: what the paper reports; sums as `of_sets` lays
    them out, or those of one set."""
    sets = _apart(sums)
    asked = sets.sum(axis=-1) > 0
    return ratio(np.where(asked, f1(sets), 0.0).sum(axis=-1), asked.sum(axis=-1))


def _apart(sums: Array) -> Array:
    """[…, sets, 4]"""
    found: Array = sums.reshape(*sums.shape[:-1], -1, 4)
    return found


def _over_all(score: Score) -> Score:
    return lambda sums: score(_apart(sums).sum(axis=-2))


#: For sums of one set, or of several side by side.
MEASURES: dict[str, Score] = {
    "F1": mean_f1,
    "accuracy": _over_all(accuracy),
    "precision": _over_all(precision),
    "recall": _over_all(recall),
    "yes ratio": _over_all(yes_ratio),
}
