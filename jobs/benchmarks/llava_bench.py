"""LLaVA-Bench (in the wild): 60 questions about 24 pictures, rated against a reference by a judge that reads a
caption.

Liu et al. 2023 (arXiv 2304.08485), section 5.1, and its eval_gpt_review_bench.py. The judge's first line holds
two ratings from 1 to 10: of the reference's answer, then of the model's. The score is 100 × mean(model) /
mean(reference), over all and for conv, detail and complex. A reply whose first line cannot be read is a failure;
the official script averages it in as −1 and −1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.benchmarks.files import BadFile, matched, read_lines, unique
from jobs.benchmarks.measures import Array, Graded, ratio

_TWO_RATINGS = re.compile(r"^[\s*]*(\d+(?:\.\d+)?)[\s,;/]+(\d+(?:\.\d+)?)[\s*.]*$")


@dataclass(frozen=True)
class Question:
    id: str
    image: str
    category: str  # "conv", "detail" or "complex"
    text: str
    caption: str
    reference: str


def read_questions(folder: Path) -> list[Question]:
    """From a folder with questions.jsonl, context.jsonl and answers_gpt4.jsonl.

    Raises:
        BadFile: also where a question has no caption or no reference.
    """
    path = folder / "questions.jsonl"
    rows = read_lines(path, "question_id", "image", "category", "text")
    unique(path, [str(row["question_id"]) for row in rows])
    captions = {
        str(row["image"]): _caption(row["caption"])
        for row in read_lines(folder / "context.jsonl", "image", "caption")
    }
    references = read_answers(folder / "answers_gpt4.jsonl", [str(row["question_id"]) for row in rows])
    found = []
    for row in rows:
        name = str(row["question_id"])
        if row["image"] not in captions:
            raise BadFile(
                f"{folder / 'context.jsonl'} has no caption of {row['image']}, which question {name} shows."
            )
        if name not in references:
            raise BadFile(f"{folder / 'answers_gpt4.jsonl'} has no answer to question {name}.")
        category = str(row["category"]).removeprefix("llava_bench_")
        found.append(
            Question(name, str(row["image"]), category, str(row["text"]), captions[row["image"]], references[name])
        )
    return found


def _caption(value: Any) -> str:
    """Several sentences come as a list."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def read_answers(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Answers by question: JSON lines {question_id, text}. Raises BadFile."""
    rows = read_lines(path, "question_id", "text")
    unique(path, [str(row["question_id"]) for row in rows])
    found = {str(row["question_id"]): str(row["text"]) for row in rows}
    matched(path, found, ids)
    return found


def read_ratings(reply: str) -> tuple[float, float] | None:
    """(reference's, model's) from a judge's reply; None where its first line is not two ratings from 1 to 10."""
    lines = reply.strip().split("\n")
    found = _TWO_RATINGS.match(lines[0]) if lines else None
    if found is None:
        return None
    reference, model = float(found[1]), float(found[2])
    return (reference, model) if 1 <= reference <= 10 and 1 <= model <= 10 else None


def grade(
    questions: Sequence[Question], replies: Mapping[str, str], answers: Mapping[str, str] | None = None
) -> list[Graded]:
    """Sums (reference's rating, model's rating) of each question.

    Args:
        replies: the judge's, by question.
        answers: the model's, for their lengths.
    """
    found = []
    for one in questions:
        answer = (answers or {}).get(one.id)
        length = None if answer is None else len(answer)
        reply = replies.get(one.id)
        ratings = None if reply is None else read_ratings(reply)
        why = (
            ""
            if ratings
            else "no judge was asked"
            if reply is None
            else f"the reply begins {reply.strip()[:60]!r}"
        )
        found.append(Graded(one.id, ratings, (one.category,), length, why=why))
    return found


def read_reviews(path: Path) -> list[Graded]:
    """The grades of an official review file: JSON lines {question_id, category, content}. Raises BadFile."""
    rows = read_lines(path, "question_id", "content")
    unique(path, [str(row["question_id"]) for row in rows])
    found = []
    for row in rows:
        category = str(row.get("category", "")).removeprefix("llava_bench_")
        ratings = read_ratings(str(row["content"]))
        why = "" if ratings else f"the reply begins {str(row['content']).strip()[:60]!r}"
        found.append(Graded(str(row["question_id"]), ratings, (category,) if category else (), why=why))
    return found


def relative(sums: Array) -> Array:
    """100 × mean(model) / mean(reference)."""
    return ratio(100 * sums[..., 1], sums[..., 0])
