"""Whether a free answer to an easy-VQA question is right. Torch-free."""

import re

from jobs.gpu.demo.data import (
    COLORS,
    SHAPES,
    Question,
    asked_color,
    asked_shape,
    asks_for_what_is_there,
    is_negative,
)


def is_right(question: Question, reply: str) -> bool:
    """Score a reply, bare word or sentence, by the words it holds.

    Open questions: the right word occurs, and no other colour (shape) beside the right colour (shape). Yes/no
    questions: the first word is the right one, and what follows must not contradict it. "No, there is a
    circle in the image." is wrong for "is there a circle?" whatever the picture shows; so is "Yes, the image
    contains a blue circle." for "is there a triangle?".
    """
    words = re.findall(r"[a-z]+", reply.lower())
    if question.kind != "yes/no":
        family = COLORS if question.kind == "color" else SHAPES
        return {word for word in words if word in family} == {question.answer}
    if not words or words[0] != question.answer:
        return False
    claims = _claims_presence(question.text, " ".join(words[1:]))
    return claims is None or claims == asks_for_what_is_there(question)


def is_sentence(reply: str) -> bool:
    """Whether the reply is more than a bare word."""
    return len(reply.split()) > 1


def _claims_presence(question: str, rest: str) -> bool | None:
    """Whether a reply says that the thing asked for is in the picture; None where it says neither."""
    for asked, family in ((asked_color(question), COLORS), (asked_shape(question), SHAPES)):
        named = {word for word in rest.split() if word in family}
        if asked and named:
            return (asked in named) != is_negative(rest)
    return None
