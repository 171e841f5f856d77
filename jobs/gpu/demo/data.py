"""easy-VQA as the demo VLM learns it: image, question, bare answer, and the same answer as a whole sentence.

easy-VQA (PyPI ``easy-vqa``, MIT) holds 64×64 pictures of one coloured shape and questions made from 24
patterns. The sentences are ours: a few varied templates a question, chosen by seed, so that the demo VLM
knows two styles of answer and preference training has something to prefer.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

Split = Literal["train", "test"]
Kind = Literal["color", "shape", "yes/no"]

_NEGATIVE = re.compile(r"\b(?:no|not)\b")


@dataclass(frozen=True)
class Question:
    """One easy-VQA question. ``number`` is its place in the split's file, ``image_id`` names ``<id>.png``."""

    split: Split
    number: int
    image_id: int
    image_path: Path
    text: str
    answer: str

    @property
    def kind(self) -> Kind:
        """What the answer tells: a colour, a shape, or yes/no."""
        if self.answer in COLORS:
            return "color"
        return "shape" if self.answer in SHAPES else "yes/no"


@dataclass(frozen=True)
class Traits:
    """What a picture shows."""

    color: str
    shape: str


def load_questions(split: Split) -> list[Question]:
    """All questions of a split, in the package's order. Raises ModuleNotFoundError without ``easy-vqa``."""
    import easy_vqa

    if split == "train":
        rows, paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    else:
        rows, paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    return [
        Question(split, number, image_id, Path(paths[image_id]), text, answer)
        for number, (text, answer, image_id) in enumerate(zip(*rows, strict=True))
    ]


def asked_color(question: str) -> str | None:
    """The colour that a question names, if it names one: "is there a blue shape?" → "blue"."""
    return _first_word_of(question, COLORS)


def asked_shape(question: str) -> str | None:
    """The shape that a question names, if it names one: "what color is the circle?" → "circle"."""
    return _first_word_of(question, SHAPES)


def is_negative(question: str) -> bool:
    """Whether a yes/no question asks for absence: "is there not a circle?", "is no circle present?"."""
    return _NEGATIVE.search(question) is not None


def asks_for_what_is_there(question: Question) -> bool:
    """Whether the thing that a yes/no question names is in the picture, as its answer tells."""
    return (question.answer == "yes") != is_negative(question.text)


def traits_from_answers(questions: Iterable[Question]) -> dict[int, Traits]:
    """Colour and shape of each image, as far as the questions and answers tell both.

    Open questions say it outright ("what is the color of the circle?" → "blue"); a yes/no question whose
    answer means presence names it. Images of which only one trait is told are left out.

    Raises ValueError where two answers about one image contradict each other.
    """
    colors: dict[int, str] = {}
    shapes: dict[int, str] = {}
    for question in questions:
        found = [question.answer]
        present = question.kind != "yes/no" or asks_for_what_is_there(question)
        if present:
            found += [word for word in (asked_color(question.text), asked_shape(question.text)) if word]
        for word in found:
            for table, words in ((colors, COLORS), (shapes, SHAPES)):
                if word in words and table.setdefault(question.image_id, word) != word:
                    raise ValueError(f"easy-VQA answers contradict each other about image {question.image_id}")
    return {number: Traits(colors[number], shapes[number]) for number in sorted(colors.keys() & shapes.keys())}


def sentence_answer(question: Question, traits: Traits, seed: int = 0) -> str:
    """The answer as one whole English sentence, from a few templates; the same for the same seed."""
    # The file's own numbering makes the choice independent of the order in which rows are visited.
    choose = random.Random(f"{seed}/{question.split}/{question.number}").choice
    color, shape = traits.color, traits.shape
    if question.kind == "color":
        return choose(
            [
                f"The {shape} in the image is {color}.",
                f"The color of the {shape} is {color}.",
                f"It is a {color} {shape}.",
            ]
        )
    if question.kind == "shape":
        return choose(
            [
                f"The shape in the image is a {shape}.",
                f"The image contains a {shape}.",
                f"It is a {color} {shape}.",
            ]
        )
    present = asks_for_what_is_there(question)
    named = asked_shape(question.text) or f"{asked_color(question.text)} shape"
    start = "Yes" if question.answer == "yes" else "No"
    if present:
        return choose(
            [
                f"{start}, there is a {named} in the image.",
                f"{start}, there is a {color} {shape} in the image.",
            ]
        )
    return choose(
        [f"{start}, there is no {named} in the image.", f"{start}, the image contains a {color} {shape}."]
    )


def _first_word_of(question: str, words: tuple[str, ...]) -> str | None:
    return next((word for word in re.findall(r"[a-z]+", question.lower()) if word in words), None)
