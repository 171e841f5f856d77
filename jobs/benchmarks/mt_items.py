"""MT-Bench as items of two turns, and what its judge is asked: with FastChat's own prompts, read from its file.

The second turn is judged with both turns in sight. Each item carries its two prompts, so that answers can be
graded when the files are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.benchmarks import mt_bench
from jobs.benchmarks.contract import Answers, Benchmark, Item, JudgeRequest
from jobs.benchmarks.files import BadFile, read_lines, unique
from jobs.benchmarks.items import answer_to, asked, given, in_folder, text_of, why_unread
from jobs.benchmarks.measures import Graded

FILES = "FastChat's folder with question.jsonl, judge_prompts.jsonl and reference_answer/gpt-4.jsonl"
TURNS = 2


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items by question_id. Raises BadFile."""
    path = given(path, "MT-Bench", FILES)
    if not path.is_dir():
        raise BadFile(f"{path} is a file; MT-Bench needs {FILES}.")
    asked_in = in_folder(path, "question.jsonl")
    rows = read_lines(asked_in, "question_id", "category", "turns")
    unique(asked_in, [str(row["question_id"]) for row in rows])
    templates = mt_bench.read_templates(in_folder(path, "judge_prompts.jsonl"))
    references = _references(in_folder(path, "reference_answer/gpt-4.jsonl", "reference_answer_gpt-4.jsonl"))
    found = []
    for row in rows:
        name, category, turns = str(row["question_id"]), str(row["category"]), row["turns"]
        if not isinstance(turns, list) or len(turns) != TURNS or not all(isinstance(one, str) for one in turns):
            raise BadFile(f"{asked_in}: question {name} must have two turns of text; is this MT-Bench's file?")
        reference = references.get(name, ()) if category in mt_bench.WITH_REFERENCE else ()
        # Dry: every prompt that this question will need can be made.
        for turn in range(1, TURNS + 1):
            try:
                mt_bench.judge_prompt(templates, category, turns, [""] * turn, reference)
            except KeyError as error:
                raise BadFile(f"{path / 'judge_prompts.jsonl'} has no {error}; is it FastChat's?") from None
            except BadFile as error:
                raise BadFile(f"{path}: question {name}: {error}") from None
        found.append(
            Item(
                id=name,
                messages=asked(turns[0]),
                following=(({"type": "text", "text": turns[1]},),),
                categories=(category,),
                reference=tuple(reference),
                temperature=mt_bench.temperature_of(category),
                extra={
                    "category": category,
                    "templates": {
                        one: list(templates[one])
                        for one in (mt_bench.template_of(category, turn) for turn in range(1, TURNS + 1))
                    },
                },
            )
        )
    return found


def _references(path: Path) -> dict[str, tuple[str, ...]]:
    """The answers of each question that has any."""
    rows = read_lines(path, "question_id", "choices")
    try:
        return {str(row["question_id"]): tuple(str(one) for one in row["choices"][0]["turns"]) for row in rows}
    except (IndexError, KeyError, TypeError):
        raise BadFile(f"{path}: choices must hold [{{turns: [text, text]}}]; is it FastChat's?") from None


def requests(items: Sequence[Item], answers: Answers) -> list[JudgeRequest]:
    """One an answered turn: `81/1` and `81/2`."""
    found = []
    for item in items:
        questions = [text_of(item), *(part["text"] for parts in item.following for part in parts)]
        templates = {name: (one[0], one[1]) for name, one in item.extra["templates"].items()}
        given_ = list(answers.get(item.id, ()))[:TURNS]
        for turn in range(1, len(given_) + 1):
            system, prompt = mt_bench.judge_prompt(
                templates, item.extra["category"], questions, given_[:turn], item.reference
            )
            found.append(JudgeRequest(f"{item.id}/{turn}", item.id, prompt, system))
    return found


def grade_replies(items: Sequence[Item], answers: Answers, replies: Mapping[str, str]) -> list[Graded]:
    """Sums (rating, 1) of each turn; the two turns of a question are one unit."""
    found = []
    for item in items:
        for turn in range(1, TURNS + 1):
            name, category = f"{item.id}/{turn}", item.extra["category"]
            groups = (category, f"turn {turn}")
            answer, reply = answer_to(item, answers, turn), replies.get(f"{item.id}/{turn}")
            if answer is None:
                found.append(Graded(name, None, groups, unit=item.id, why="it has no answer"))
            elif reply is None:
                found.append(Graded(name, None, groups, len(answer), item.id, why_unread(None, "")))
            else:
                found.append(mt_bench.grade(item.id, category, turn, reply, answer))
    return found


BENCHMARK = Benchmark(
    name="mt-bench",
    title="MT-Bench",
    files=FILES,
    skill="text",
    max_new_tokens=mt_bench.MOST_TOKENS,
    headline="rating",
    measures={"rating": mt_bench.score},
    read=read,
    requests=requests,
    grade_replies=grade_replies,
    most=10.0,
)
