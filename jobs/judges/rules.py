"""The rule-based judge for easy-VQA: it knows the answers and applies a table. It is no model.

It is named `easy-vqa-rules` wherever its scores appear. Deterministic. How the five metrics (0 to 4) follow from
a candidate, row by row; `claims` are the answer words of the question's own kind that the text holds:

    what the text is                     helpfulness  correctness  coherence  complexity  verbosity
    ------------------------------------ -----------  -----------  ---------  ----------  ---------
    right, a whole sentence                   4            4           4          2*          2**
    right, a bare word or fragment            2            4           3          0           1
    several claims, the right one among       1            2           1          1           **
    wrong, a whole sentence                   1            0           4          1           2**
    wrong, a bare word or fragment            0            0           3          0           1
    words, but no claim                       0            1           2          0           **
    empty, or no words                        0            0           0          0           0

    *   1 more when the sentence names both a shape and a colour, all of it right as far as is known
    **  by words: 1–3 → 1, 4–15 → 2, 16–30 → 3, more → 4
    A text that repeats itself (three times the same word in a row, or the same sentence twice) loses 2 of
    coherence and 1 of helpfulness, never below 0.

A whole sentence has at least four words, begins with a capital and ends with a full stop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.records import METRICS

NAME, VERSION, MODE = "easy-vqa-rules", "1", "each answer alone"
RATER = (NAME, VERSION, MODE)

YES_NO = frozenset({"yes", "no"})
SHAPES = frozenset({"circle", "rectangle", "triangle"})
COLOURS = frozenset({"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"})
_SAME = {"grey": "gray"}
_NEGATIONS = frozenset({"not", "isn't", "doesn't", "without"})
_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")


@dataclass(frozen=True)
class Verdict:
    """The five scores of one candidate, and why."""

    scores: dict[str, int]
    reason: str


def judge_answer(question: str, reference: str, text: str) -> Verdict:
    """Score one candidate by the table above. `reference` is easy-VQA's answer, one word."""
    words = [_SAME.get(word, word) for word in _WORD.findall(text.lower().replace("’", "'"))]
    if not words:
        return _verdict((0, 0, 0, 0, 0), "empty")
    reference = _SAME.get(reference.lower(), reference.lower())
    claims = _claims(question, reference, words)
    sentence = is_sentence(text)
    length = _length_score(len(words))
    if not claims:
        row, reason = (0, 1, 2, 0, length), f"does not answer: no word of {_kind_name(reference)}"
    elif claims == {reference}:
        detail = bool(SHAPES & set(words)) and bool(COLOURS & set(words))
        row = (4, 4, 4, 2 + detail, length) if sentence else (2, 4, 3, 0, 1)
        reason = "right, a whole sentence" if sentence else "right, a bare word"
    elif reference in claims:
        row, reason = (1, 2, 1, 1, length), f"contradicts itself: {' and '.join(sorted(claims))}"
    else:
        row = (1, 0, 4, 1, length) if sentence else (0, 0, 3, 0, 1)
        reason = f"wrong: {' and '.join(sorted(claims))}, not {reference}"
    if repeats(text, words):
        row = (max(0, row[0] - 1), row[1], max(0, row[2] - 2), row[3], row[4])
        reason += "; repeats itself"
    return _verdict(row, reason)


def _verdict(values: tuple[int, int, int, int, int], reason: str) -> Verdict:
    return Verdict(dict(zip(METRICS, values, strict=True)), reason)


def _claims(question: str, reference: str, words: list[str]) -> set[str]:
    """The answers of the question's kind that the words hold.

    A yes/no question may be answered without either word ("There is a red circle."): the text then says that
    what was asked for is there, or, with a negation, that it is not. Some questions are negative themselves
    ("does the image not contain a red shape?"): "Yes, there is no red shape." contradicts nothing there.
    """
    said_words = set(words)
    denies = bool(_NEGATIONS & said_words)
    if reference not in YES_NO:
        kind = SHAPES if reference in SHAPES else COLOURS if reference in COLOURS else frozenset({reference})
        claims = set(kind & said_words)
        return set() if denies and len(claims) == 1 else claims  # "It is not a circle." names no shape
    asked = set(_WORD.findall(question.lower()))
    negative_question = bool(_NEGATIONS & asked) or "no" in asked
    said = YES_NO & set(words[:1]) or YES_NO & said_words
    if said_words >= YES_NO and not negative_question and "yes" in words[1:]:
        return set(YES_NO)
    attributes = (SHAPES | COLOURS) & asked
    names_it = bool(attributes) and attributes <= said_words
    if said == {"yes"}:
        contradicted = (denies or "no" in words) and not negative_question
    else:
        affirms = names_it and not denies and "no" not in words[1:]
        contradicted = said == {"no"} and affirms and not negative_question and _is_about_presence(words)
    if said:
        return set(YES_NO) if contradicted else set(said)
    if names_it:
        return {"yes"} if denies == negative_question else {"no"}
    return set()


def _is_about_presence(words: list[str]) -> bool:
    """Whether a text says that something is there: "there is a …", "contains a …", "shows a …"."""
    return bool({"there", "contains", "shows", "contain", "has"} & set(words))


def is_sentence(text: str) -> bool:
    """At least four words, a capital at the start, a full stop at the end."""
    stripped = text.strip()
    return len(stripped.split()) >= 4 and stripped[:1].isupper() and stripped[-1:] in ".!"


def repeats(text: str, words: list[str]) -> bool:
    """Three times the same word in a row, or a sentence that comes twice."""
    if any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False)):
        return True
    sentences = [part.strip().lower() for part in re.split(r"[.!?\n]+", text) if part.strip()]
    return len(sentences) != len(set(sentences))


def _length_score(words: int) -> int:
    return 1 if words <= 3 else 2 if words <= 15 else 3 if words <= 30 else 4


def _kind_name(reference: str) -> str:
    if reference in YES_NO:
        return "yes or no"
    return "a shape" if reference in SHAPES else "a colour" if reference in COLOURS else reference
