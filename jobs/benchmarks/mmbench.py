"""MMBench: choices of two to four options about pictures, each asked under every rotation of its options.

Liu et al. 2023 (arXiv 2307.06281), CircularEval: a question counts only if it is right under every rotation,
whose rows have indices that are equal modulo a million. The answer's letter is matched by rules first; what they
cannot read goes to a judge, who names the letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.benchmarks.files import BadFile, read_table, unique
from jobs.benchmarks.measures import Graded, mean_of

LETTERS = "ABCD"
ROTATIONS = 1_000_000
PROMPT_END = "Answer with the option's letter from the given choices directly."  # LLaVA's, paper.md section 5

score = mean_of(100.0)

_MARKS = re.compile(r"[.()\[\],:;!*#{}\"'`]")


@dataclass(frozen=True)
class Question:
    """One row: a question under one rotation of its options."""

    index: int
    question: str
    hint: str
    options: dict[str, str]  # letter → text
    answer: str  # "" in a test split, whose answers are secret
    category: str
    group: str  # l2-category
    image: str  # base64

    @property
    def unit(self) -> int:
        """Names the question that this is a rotation of."""
        return self.index % ROTATIONS

    @property
    def prompt(self) -> str:
        """As LLaVA asks it: hint, question, options, and the request for a letter."""
        lines = [self.hint] if self.hint else []
        lines += [self.question, *(f"{letter}. {text}" for letter, text in self.options.items()), PROMPT_END]
        return "\n".join(lines)


def read_questions(path: Path) -> list[Question]:
    """The official TSV. Raises BadFile."""
    rows = read_table(path, "index", "question", "A", "B", "image")
    unique(path, [row["index"] for row in rows])
    found, images = [], {row["index"]: row["image"] for row in rows}
    for row in rows:
        options = {letter: row[letter] for letter in LETTERS if row.get(letter, "").strip() not in ("", "nan")}
        answer = row.get("answer", "").strip()
        if not row["index"].isdecimal():
            raise BadFile(f"{path}: the index {row['index']!r} is not a number.")
        if answer and answer not in options:
            raise BadFile(f"{path}: row {row['index']} has the answer {answer!r}, which is none of its options.")
        image = row["image"]
        if len(image) < 64 and image in images:  # a rotation names the row whose picture it shows
            image = images[image]
        hint = row.get("hint", "").strip()
        found.append(
            Question(
                int(row["index"]),
                row["question"],
                "" if hint == "nan" else hint,
                options,
                answer,
                row.get("category", ""),
                row.get("l2-category", ""),
                image,
            )
        )
    return found


def rotations(question: Question) -> list[Question]:
    """The question under every rotation of its options, where a file has it once: MMBench's own numbering."""
    letters = list(question.options)
    found = []
    for turn in range(len(letters)):
        texts = [question.options[letters[(place + turn) % len(letters)]] for place in range(len(letters))]
        options = dict(zip(letters, texts, strict=True))
        place = letters.index(question.answer) if question.answer else 0
        answer = letters[(place - turn) % len(letters)] if question.answer else ""
        index = question.index + turn * ROTATIONS
        found.append(
            Question(
                index,
                question.question,
                question.hint,
                options,
                answer,
                question.category,
                question.group,
                question.image,
            )
        )
    return found


def read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names, by letter or by text; None where that is unclear (a judge has to say).

    A letter counts where it stands alone as a word and no other one does; "A" among more than three words may be
    the article. A text counts where it is the only option whose text is in the answer, in an answer no longer
    than all options together twice.
    """
    words = _MARKS.sub(" ", answer).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and not (named == ["A"] and len(words) > 3):
        return named[0]
    lowered = answer.lower()
    if len(lowered) > 2 * sum(len(text) for text in options.values()):
        return None
    told = [letter for letter, text in options.items() if text.lower() in lowered]
    return told[0] if len(told) == 1 else None


def grade(
    questions: Sequence[Question],
    letters: Mapping[int, str | None],
    lengths: Mapping[int, int],
    troubles: Mapping[int, str] | None = None,
) -> list[Graded]:
    """Sums (1 if every rotation is right, 1) of each question.

    Args:
        letters: of each row that was answered; None where neither rules nor a judge could read the answer.
        lengths: characters of the answers, by row.
        troubles: why a judge's letter is missing, by row.

    A question is a failure where a rotation has no answer or waits for a judge in vain; one whose letter nobody
    could read is wrong, and is told in `why`.
    """
    units: dict[int, list[Question]] = {}
    for one in questions:
        units.setdefault(one.unit, []).append(one)
    found = []
    for unit, turns in units.items():
        categories = tuple(dict.fromkeys(filter(None, (turns[0].group, turns[0].category))))
        known = [lengths[one.index] for one in turns if one.index in lengths]
        length = round(sum(known) / len(known)) if known else None
        missing = [one for one in turns if one.index not in letters]
        if missing:
            told = next((why for one in missing if (why := (troubles or {}).get(one.index))), "")
            why = told or f"{len(missing)} of its {len(turns)} rotations have no answer"
            found.append(Graded(str(unit), None, categories, length, str(unit), why))
            continue
        unread = sum(letters[one.index] is None for one in turns)
        right = all(letters[one.index] == one.answer for one in turns)
        why = f"{unread} of its {len(turns)} answers name no option" if unread else ""
        found.append(Graded(str(unit), (float(right), 1.0), categories, length, str(unit), why))
    return found
