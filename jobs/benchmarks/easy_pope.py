"""POPE's probe on easy-VQA's test pictures: is there a shape, or a colour, that is not there?

Each picture's own labels are read off its questions and answers. For each label that is known there are two
items: one asks for it (yes), one for another of its kind (no), so that half of the answers are yes; the absent
ones come up equally often. POPE's random, popular and adversarial sets differ by which objects occur together;
with one shape a picture there is nothing of that kind, so there is one set alone. The wording is easy-VQA's own,
which the demo knows; the grading is POPE's (Li et al. 2023, arXiv 2305.10355).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs.benchmarks import pope
from jobs.benchmarks.contract import Answers, Benchmark, Item
from jobs.benchmarks.easy_vqa import MOST_TOKENS
from jobs.benchmarks.items import answer_to, asked
from jobs.benchmarks.measures import Graded
from storage.easy_vqa import YES_NO, Question, load_questions

KINDS: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "rectangle", "triangle"),
    "colour": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
}
_KIND_OF = {label: kind for kind, labels in KINDS.items() for label in labels}
_LABEL = re.compile(rf"\b({'|'.join(_KIND_OF)})\b")
_NOT = re.compile(r"\b(no|not)\b")


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items `PICTURE/label`, those of one picture as one unit.

    Raises:
        UserError: the package is not installed.
    """
    return items_of(load_questions("test"))


def items_of(questions: Iterable[Question]) -> list[Item]:
    """Two items for each label that the questions tell of a picture."""
    used: Counter[str] = Counter()
    found = []
    for image, labels in labels_of(questions).items():
        for kind in KINDS:
            if kind not in labels:
                continue
            there = labels[kind]
            absent = min((one for one in KINDS[kind] if one != there), key=lambda one: used[one])
            used[absent] += 1
            found += [_item(image, kind, there, "yes"), _item(image, kind, absent, "no")]
    return found


def labels_of(questions: Iterable[Question]) -> dict[Path, dict[str, str]]:
    """{picture: {"shape": "circle", "colour": "red"}}, as far as its questions tell."""
    found: dict[Path, dict[str, str]] = {}
    for one in questions:
        labels = found.setdefault(one.image, {})
        if one.answer not in YES_NO:
            labels[_KIND_OF[one.answer]] = one.answer
        named = _LABEL.search(one.text)
        # “What is the colour of the circle?” names a circle that is there; “is there not a circle?” asks.
        asks = one.answer in YES_NO
        if named and (not asks or (one.answer == "yes") != bool(_NOT.search(one.text))):
            labels[_KIND_OF[named[1]]] = named[1]
    return found


def _item(image: Path, kind: str, label: str, answer: str) -> Item:
    what = label if kind == "shape" else f"{label} shape"
    return Item(
        id=f"{image.stem}/{label}",
        messages=asked(f"is there a {what} in the image?", image),
        categories=(kind,),
        reference=(answer,),
        unit=image.stem,
        extra={"label": answer},
    )


def grade(items: Sequence[Item], answers: Answers) -> list[Graded]:
    """Sums (TP, FP, TN, FN)."""
    found = []
    for item in items:
        answer = answer_to(item, answers)
        if answer is None:
            found.append(Graded(item.id, None, item.categories, unit=item.unit, why="it has no answer"))
            continue
        sums = pope.sums_of(answer, item.extra["label"])
        found.append(Graded(item.id, sums, item.categories, len(answer), item.unit))
    return found


BENCHMARK = Benchmark(
    name="easy-pope",
    title="easy-POPE",
    files="nothing: the package easy-vqa holds the pictures",
    skill="vision",
    max_new_tokens=MOST_TOKENS,
    headline="F1",
    measures=pope.MEASURES,
    read=read,
    grade=grade,
    most=100.0,
)
