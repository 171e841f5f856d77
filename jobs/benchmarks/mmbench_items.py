"""MMBench's rows as items, their pictures as files, and what a judge is asked of answers that rules cannot read.

Asked as LLaVA asks (its model_vqa_mmbench.py with --single-pred-prompt): hint, question, options, and the wish
for a letter. The judge matches an answer with the options as in MMBench's own evaluation (open-compass/VLMEvalKit,
multiple_choice.py): two worked examples, one letter back, Z where no option is meant. The wording here is ours.
There, an answer that neither can read gets a random letter; here it is wrong by rules, a failure by the judge.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from jobs.benchmarks import mmbench
from jobs.benchmarks.contract import Answers, Benchmark, Item, JudgeRequest
from jobs.benchmarks.files import BadFile
from jobs.benchmarks.items import answer_to, asked, given, why_unread
from jobs.benchmarks.measures import Graded
from jobs.benchmarks.mmbench import Question

FILES = "MMBench's TSV with answers (the dev split), its images in it"
NONE = "Z"
_LETTER = re.compile(r"\b([A-DZ])\b")
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items by index, the rotations of a question together; they are made where the file has each question once.

    Raises:
        BadFile: also where answers are missing (a test split), a rotation is, or a picture cannot be read.
    """
    path = given(path, "MMBench", FILES)
    if path.is_dir():
        raise BadFile(f"{path} is a folder; MMBench needs {FILES}.")
    questions = mmbench.read_questions(path)
    if not questions:
        raise BadFile(f"{path} is empty.")
    secret = sum(not one.answer for one in questions)
    if secret:
        raise BadFile(
            f"{path}: {secret:,} of {len(questions):,} rows have no answer; those of the test split are secret. "
            "Give the dev split."
        )
    turns = _units(path, questions)
    found = []
    for unit, rotations in turns.items():
        picture = _picture(path, rotations[0], scratch)
        for one in rotations:
            found.append(
                Item(
                    id=str(one.index),
                    messages=asked(one.prompt, picture),
                    categories=tuple(dict.fromkeys(filter(None, (one.group, one.category)))),
                    reference=(one.answer,),
                    unit=str(unit),
                    extra={
                        "question": one.question,
                        "options": one.options,
                        "group": one.group,
                        "category": one.category,
                    },
                )
            )
    return found


def _units(path: Path, questions: Sequence[Question]) -> dict[int, list[Question]]:
    """The rotations of each question."""
    counts = Counter(one.unit for one in questions)
    if max(counts.values()) == 1 and all(one.index < mmbench.ROTATIONS for one in questions):
        return {one.unit: mmbench.rotations(one) for one in questions}
    found: dict[int, list[Question]] = {}
    for one in questions:
        found.setdefault(one.unit, []).append(one)
    for unit, rotations in found.items():
        if len(rotations) != len(rotations[0].options):
            raise BadFile(
                f"{path}: question {unit} has {len(rotations[0].options)} options and {len(rotations)} rotations; "
                "each must be there once. Is the file cut short?"
            )
    return found


def _picture(path: Path, question: Question, scratch: Path) -> Path:
    """A file of the picture that a row holds as base64."""
    try:
        data = base64.b64decode(question.image, validate=False)
        with Image.open(io.BytesIO(data)) as image:
            suffix = _SUFFIXES.get(image.format or "", ".img")
    except (binascii.Error, OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path}: the image of row {question.index} cannot be read ({error}).") from None
    file = scratch / f"{question.unit}{suffix}"
    file.write_bytes(data)
    return file


def _question(item: Item) -> Question:
    """The row that an item was made of, without its picture."""
    extra = item.extra
    return Question(
        int(item.id),
        extra["question"],
        "",
        extra["options"],
        item.reference[0],
        extra["category"],
        extra["group"],
        "",
    )


def _by_rules(items: Sequence[Item], answers: Answers) -> dict[int, str | None]:
    """The letter of each row that was answered, as rules read it."""
    return {
        int(item.id): mmbench.read_letter(answer, item.extra["options"])
        for item in items
        if (answer := answer_to(item, answers)) is not None
    }


def _lengths(items: Sequence[Item], answers: Answers) -> dict[int, int]:
    return {int(item.id): len(answer) for item in items if (answer := answer_to(item, answers)) is not None}


def grade(items: Sequence[Item], answers: Answers) -> list[Graded]:
    """By rules alone: an answer that they cannot read is wrong, and is told."""
    return mmbench.grade([_question(one) for one in items], _by_rules(items, answers), _lengths(items, answers))


def requests(items: Sequence[Item], answers: Answers) -> list[JudgeRequest]:
    """One for each answer that rules cannot read, under its row's index. An empty answer names nothing: none."""
    letters = _by_rules(items, answers)
    return [
        JudgeRequest(item.id, item.id, _prompt(item, answer))
        for item in items
        if (answer := answer_to(item, answers)) is not None and answer.strip() and letters[int(item.id)] is None
    ]


def _prompt(item: Item, answer: str) -> str:
    options = " ".join(f"{letter}. {text}" for letter, text in item.extra["options"].items())
    letters = ", ".join(item.extra["options"])
    return (
        "Match an answer with the options of a multiple-choice question: find the option that means most nearly "
        f"the same as the answer. Reply with its letter alone, one of {letters}; reply {NONE} if the answer means "
        "something quite different from every option.\n"
        "Example 1:\nQuestion: Which animal is on the mat?\nOptions: A. dog B. parrot C. horse D. fish\n"
        "Answer: It looks like a big hound.\nYour reply: A\n"
        "Example 2:\nQuestion: Which animal is on the mat?\nOptions: A. dog B. parrot C. horse D. fish\n"
        f"Answer: A spider\nYour reply: {NONE}\n"
        f"Example 3:\nQuestion: {item.extra['question']}\nOptions: {options}\nAnswer: {answer}\nYour reply: "
    )


def read_reply(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter that a judge names, Z among them; None where it names none, or several."""
    named = {one for one in _LETTER.findall(reply) if one in options or one == NONE}
    return named.pop() if len(named) == 1 else None


def grade_replies(items: Sequence[Item], answers: Answers, replies: Mapping[str, str]) -> list[Graded]:
    """With the judge's letters for what rules could not read."""
    letters, troubles = _by_rules(items, answers), {}
    known = {item.id: item for item in items}
    for request in requests(items, answers):
        index, reply = int(request.item), replies.get(request.id)
        letter = None if reply is None else read_reply(reply, known[request.item].extra["options"])
        if letter is None:
            del letters[index]
            troubles[index] = why_unread(reply, "letter of an option")
        else:
            letters[index] = letter
    return mmbench.grade([_question(one) for one in items], letters, _lengths(items, answers), troubles)


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench",
    files=FILES,
    skill="vision",
    max_new_tokens=1024,  # LLaVA's model_vqa_mmbench.py
    headline="accuracy",
    measures={"accuracy": mmbench.score},
    read=read,
    grade=grade,
    requests=requests,
    grade_replies=grade_replies,
    most=100.0,
)
