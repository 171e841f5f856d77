"""easy-VQA's test split, for the embedded demo: shapes with questions that a word answers, each also beside
another's picture.

The questions are asked as the package has them, which is how the demo learnt them. An answer is right if it begins
with the expected words, case, punctuation and articles apart. Each question has a twin that shows the picture of
another question: what a model gets right there it gets without looking (three in four of the yes/no questions can
be guessed from their words alone). The gain over the twins is what seeing is worth.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from jobs.benchmarks.contract import Answers, Benchmark, Item
from jobs.benchmarks.items import answer_to, asked
from jobs.benchmarks.measures import Array, Graded, Score, share_of
from storage.easy_vqa import YES_NO, load_questions

SHUFFLED = "shuffled"
MOST_TOKENS = 16
_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"\w+")
_SEED = 0


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items `0`, `0/shuffled`, `1`, …; twins are one unit.

    Raises:
        UserError: the package is not installed.
    """
    questions = load_questions("test")
    others = _others([one.image for one in questions])
    found = []
    for one in questions:
        kind = "yes/no" if one.answer in YES_NO else "open"
        for name, image, group in ((str(one.number), one.image, kind), ("", others[one.image], SHUFFLED)):
            found.append(
                Item(
                    id=name or f"{one.number}/{SHUFFLED}",
                    messages=asked(one.text, image),
                    categories=(group,),
                    reference=(one.answer,),
                    unit=str(one.number),
                    extra={"answer": one.answer, "shuffled": group == SHUFFLED},
                )
            )
    return found


def _others(images: Sequence[Path]) -> dict[Path, Path]:
    """Another picture for each, the same one in every evaluation, and each used once."""
    order = list(dict.fromkeys(images))
    random.Random(_SEED).shuffle(order)
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def words_of(text: str) -> list[str]:
    """The words that count, in lower case."""
    return [word for word in _WORD.findall(text.lower()) if word not in _ARTICLES]


def is_right(answer: str, expected: str) -> bool:
    """Whether an answer begins with the expected words."""
    wanted = words_of(expected)
    return words_of(answer[:1000])[: len(wanted)] == wanted


def grade(items: Sequence[Item], answers: Answers) -> list[Graded]:
    """Sums (right, 1, 0, 0), of a twin (0, 0, right, 1)."""
    found = []
    for item in items:
        answer = answer_to(item, answers)
        if answer is None:
            found.append(Graded(item.id, None, item.categories, unit=item.unit, why="it has no answer"))
            continue
        right = float(is_right(answer, item.extra["answer"]))
        sums = (0.0, 0.0, right, 1.0) if item.extra["shuffled"] else (right, 1.0, 0.0, 0.0)
        found.append(Graded(item.id, sums, item.categories, len(answer), item.unit))
    return found


_accuracy, _shuffled = share_of(0, 1), share_of(2, 3)


def _gain(sums: Array) -> Array:
    return _accuracy(sums) - _shuffled(sums)


MEASURES: dict[str, Score] = {"accuracy": _accuracy, SHUFFLED: _shuffled, "gain by the picture": _gain}

BENCHMARK = Benchmark(
    name="easy-vqa",
    title="easy-VQA",
    files="nothing: the package easy-vqa holds them",
    skill="vision",
    max_new_tokens=MOST_TOKENS,
    headline="accuracy",
    measures=MEASURES,
    read=read,
    grade=grade,
    most=100.0,
)
