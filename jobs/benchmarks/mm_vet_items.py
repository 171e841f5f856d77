"""MM-Vet as items, and what its judge is asked.

The judge continues a table of graded examples, as in the official evaluator (yuweihao/MM-Vet, mm-vet_evaluator):
question, ground truth, prediction, correctness, with <AND> and <OR> explained. The official examples are not
repeated here: where the evaluator's own text lies beside mm-vet.json as `prompt.txt`, it is used to the letter;
else the table below, which has the same form and the same kinds of case. The official evaluator asks GPT-4 (0613)
and may average several runs; here one reply is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.benchmarks import mm_vet
from jobs.benchmarks.contract import Answers, Benchmark, Item, JudgeRequest
from jobs.benchmarks.files import BadFile
from jobs.benchmarks.items import (
    answer_to,
    asked,
    given,
    in_folder,
    length_of,
    official_text,
    pictures,
    text_of,
    why_unread,
)
from jobs.benchmarks.measures import Graded

FILES = "mm-vet.json, or the folder with it and images (prompt.txt: the evaluator's prompt, where you have it)"
PROMPT = """\
Below, predictions of AI models are compared with a ground truth, and each gets a score for its correctness:\
 one of 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9 and 1.0, where 0.0 is totally wrong and 1.0 totally\
 right. <AND> in a ground truth means that a prediction is totally right only if it has all of the elements;\
 <OR> means that any one of them is enough. Complete the last row: reply with its correctness and nothing \
else.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which numbers are on the two doors? | 12 <AND> 14 | 21 | 0.0
Which numbers are on the two doors? | 12 <AND> 14 | 12 | 0.5
Which numbers are on the two doors? | 12 <AND> 14 | There are 12 and 41 on them. | 0.5
Which numbers are on the two doors? | 12 <AND> 14 | The left door has 12, the right one 14. | 1.0
What is the man riding? | bicycle <OR> bike | a bike | 1.0
Why is this picture funny? | A sign that forbids leaning on the fence hangs on a fence that has fallen over,\
 so that nobody could lean on it, and the rule has lost its meaning. | It is funny that a sign hangs on a \
broken fence. | 0.4
Why is this picture funny? | A sign that forbids leaning on the fence hangs on a fence that has fallen over,\
 so that nobody could lean on it, and the rule has lost its meaning. | The sign says not to lean on the \
fence, yet the fence lies on the ground already. As no one can lean on it any more, the warning is \
pointless. | 1.0
"""


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items v1_0, …; those of one picture are one unit. Raises BadFile."""
    path = given(path, "MM-Vet", FILES)
    file = in_folder(path, "mm-vet.json") if path.is_dir() else path
    questions = mm_vet.read_questions(file)
    files = pictures(file, images, (one.image for one in questions))
    official = official_text(file.parent, "prompt.txt")
    if official is not None and "Correctness" not in official:
        raise BadFile(f"{file.parent / 'prompt.txt'} has no column Correctness; is it the evaluator's prompt?")
    return [
        Item(
            id=one.id,
            messages=asked(one.question, files[one.image]),
            categories=one.capabilities,
            reference=(one.reference,),
            unit=one.image,
            extra={} if official is None else {"prompt": official},
        )
        for one in questions
    ]


def requests(items: Sequence[Item], answers: Answers) -> list[JudgeRequest]:
    """One an answered item, under its id."""
    found = []
    for item in items:
        answer = answer_to(item, answers)
        if answer is None:
            continue
        truth = item.reference[0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        row = " | ".join([text_of(item), truth, answer, ""])
        found.append(JudgeRequest(item.id, item.id, f"{item.extra.get('prompt', PROMPT)}\n{row}"))
    return found


def grade_replies(items: Sequence[Item], answers: Answers, replies: Mapping[str, str]) -> list[Graded]:
    """Sums (grade, 1) of each item."""
    found = []
    for item in items:
        answer, reply = answer_to(item, answers), replies.get(item.id)
        value = None if answer is None or reply is None else mm_vet.read_grade(reply)
        why = ""
        if value is None:
            why = "it has no answer" if answer is None else why_unread(reply, "grade from 0 to 1")
        sums = None if value is None else (value, 1.0)
        found.append(Graded(item.id, sums, item.categories, length_of(answer), item.unit, why))
    return found


BENCHMARK = Benchmark(
    name="mm-vet",
    title="MM-Vet",
    files=FILES,
    skill="vision",
    max_new_tokens=1024,  # LLaVA's model_vqa.py
    headline="score",
    measures={"score": mm_vet.score},
    read=read,
    requests=requests,
    grade_replies=grade_replies,
    most=100.0,
)
