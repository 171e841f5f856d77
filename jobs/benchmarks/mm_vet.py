"""MM-Vet: 218 open questions about pictures, each of one or more of six capabilities, graded from 0.0 to 1.0.

Yu et al. 2023 (arXiv 2308.02490), its evaluator and prompt. A judge continues a table of graded examples; <AND>
in the ground truth means that all of it is needed, <OR> that one of them is. Score = 100 × mean, and so for each
capability.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.benchmarks.files import BadFile, matched, read_object
from jobs.benchmarks.measures import Graded, mean_of

score = mean_of(100.0)

_NUMBER = re.compile(r"(?<![\d.])(?:0?\.\d+|[01](?:\.\d+)?)(?![\d.]*\d)")


@dataclass(frozen=True)
class Question:
    id: str
    image: str
    question: str
    reference: str
    capabilities: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """mm-vet.json: {"v1_0": {imagename, question, answer, capability: [name, …]}, …}. Raises BadFile."""
    found = []
    for name, one in read_object(path).items():
        missing = [
            field for field in ("imagename", "question", "answer", "capability") if field not in (one or {})
        ]
        if missing:
            raise BadFile(f"{path}: {name} has no {' and no '.join(missing)}; is this mm-vet.json?")
        capabilities = tuple(map(str, one["capability"]))
        found.append(Question(name, str(one["imagename"]), str(one["question"]), str(one["answer"]), capabilities))
    if not found:
        raise BadFile(f"{path} is empty.")
    return found


def read_answers(path: Path, questions: Sequence[Question]) -> dict[str, str]:
    """A model's answers: {"v1_0": text, …}. Raises BadFile."""
    found = {name: str(text) for name, text in read_object(path).items()}
    matched(path, found, [one.id for one in questions])
    return found


def read_grade(reply: str) -> float | None:
    """The grade that a reply ends in, or None where its last number is not from 0 to 1."""
    last = reply.strip().split("\n")[-1]
    numbers = _NUMBER.findall(last)
    if not numbers:
        return None
    value = float(numbers[-1])
    return value if 0 <= value <= 1 else None


def grade(
    questions: Sequence[Question], grades: Mapping[str, float | None], answers: Mapping[str, str] | None = None
) -> list[Graded]:
    """Sums (grade, 1) of each question; those without a grade are failures."""
    found = []
    for one in questions:
        value, answer = grades.get(one.id), (answers or {}).get(one.id)
        length = None if answer is None else len(answer)
        if value is None:
            found.append(Graded(one.id, None, one.capabilities, length, why="the judge gave no grade"))
        else:
            found.append(Graded(one.id, (value, 1.0), one.capabilities, length))
    return found


def read_results(path: Path, questions: Sequence[Question]) -> list[Graded]:
    """The grades of an official result file: {"v1_0": {"score": [grade of each run, …], …}}; several runs are
    averaged.

    Raises:
        BadFile: also where a grade is not from 0 to 1.
    """
    grades: dict[str, float | None] = {}
    rows = read_object(path)
    matched(path, rows, [one.id for one in questions])
    for name, one in rows.items():
        scores = one.get("score") if isinstance(one, dict) else None
        if not isinstance(scores, list):
            raise BadFile(f"{path}: {name} has no list named score.")
        known = [float(value) for value in scores if isinstance(value, int | float) and 0 <= value <= 1]
        grades[name] = sum(known) / len(known) if known else None
    return grade(questions, grades)
