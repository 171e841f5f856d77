"""easy-VQA as samples: 64×64 shapes with questions, from the package `easy-vqa` (MIT)."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import UserError
from storage.folder import DataFolder
from storage.images import ensure_image_file
from storage.samples import add_sample

SOURCE = "easy-vqa"
YES_NO = ("yes", "no")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    number: int
    text: str
    answer: str
    image: Path


def load_questions(split: Literal["train", "test"]) -> list[Question]:
    """All questions of a split, in the package's order.

    Raises:
        UserError: the package is not installed, or the split is unknown.
    """
    if split not in ("train", "test"):
        raise UserError(f"split = {split!r}: easy-VQA has 'train' and 'test'.")
    try:
        package: Any = importlib.import_module("easy_vqa")
    except ImportError as error:
        raise UserError(
            "The demo's data is missing: the package easy-vqa is not installed. Run `make setup`, "
            "or `pip install --no-deps -r requirements-demo.txt`."
        ) from error
    texts, answers, image_ids = getattr(package, f"get_{split}_questions")()
    paths = getattr(package, f"get_{split}_image_paths")()
    return [
        Question(number, text, answer, Path(paths[image_id]))
        for number, (text, answer, image_id) in enumerate(zip(texts, answers, image_ids, strict=True))
    ]


def choose(questions: list[Question], number: int, seed: int) -> list[Question]:
    """A seeded choice with as many open questions as yes/no ones, as far as they go.

    Four in five questions of easy-VQA are yes/no, and the question alone gives 76 % of those away.
    """
    order = list(questions)
    random.Random(seed).shuffle(order)
    closed = [question for question in order if question.answer in YES_NO]
    opened = [question for question in order if question.answer not in YES_NO]
    half = min(number // 2, len(opened))
    taken = opened[:half] + closed[: number - half]
    return sorted(taken, key=lambda question: question.number)


def import_easy_vqa(
    db: Database,
    folder: DataFolder,
    number: int,
    split: Literal["train", "test"] = "train",
    seed: int = 0,
    progress: Progress | None = None,
) -> int:
    """Add `number` samples of a split; returns how many are new (a second import of the same adds none).

    Raises:
        UserError: the package is missing, or `number` is not positive.
    """
    if number < 1:
        raise UserError(f"number = {number}: import at least 1 sample.")
    chosen = choose(load_questions(split), number, seed)
    added = 0
    for start in range(0, len(chosen), 50):
        with immediate(db):
            for question in chosen[start : start + 50]:
                image = ensure_image_file(db, folder, question.image)
                content = [{"type": "image", "image": image.sha256}, {"type": "text", "text": question.text}]
                sample_id = add_sample(
                    db,
                    SOURCE,
                    f"{split}/{question.number}",
                    [{"role": "user", "content": content}],
                    reference=question.answer,
                    split=split,
                )
                added += sample_id is not None
        if progress:
            progress(min(start + 50, len(chosen)), len(chosen))
    return added
