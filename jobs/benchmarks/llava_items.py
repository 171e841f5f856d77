"""LLaVA-Bench (in the wild) as items, and what its judge is asked.

The parts of the prompt, their order and the system message are those of LLaVA's eval_gpt_review_bench.py: context,
question, the reference's answer first, the model's second, then the rule. LLaVA's own rules (its
eval/table/rule.json) are used to the letter where that file lies beside questions.jsonl; else the rule is worded
here: the same scale, criteria and form of reply. Nothing is added to the question (its docs/Evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.benchmarks import llava_bench
from jobs.benchmarks.contract import Answers, Benchmark, Item, JudgeRequest
from jobs.benchmarks.files import BadFile, read_object
from jobs.benchmarks.items import answer_to, asked, given, length_of, pictures, text_of, why_unread
from jobs.benchmarks.measures import Graded

FILES = (
    "the folder with questions.jsonl, context.jsonl, answers_gpt4.jsonl and images (rule.json, where you have it)"
)
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
RULE = (
    "Two AI assistants have answered the user's question above, which was asked about an image. You cannot see "
    "the image; the context describes it in a few sentences.\n"
    "Rate both answers for how helpful, relevant, accurate and detailed they are. Give each assistant one overall "
    "score from 1 to 10; a higher score means a better answer.\n"
    "The first line of your reply must hold nothing but the two scores, that of Assistant 1 and then that of "
    "Assistant 2, with a space between them. Explain your scores from the second line on. Do not let the order of "
    "the answers influence you."
)


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items by question_id; those of one picture are one unit. Raises BadFile."""
    path = given(path, "LLaVA-Bench", FILES)
    if not path.is_dir():
        raise BadFile(f"{path} is a file; LLaVA-Bench needs {FILES}.")
    questions = llava_bench.read_questions(path)
    files = pictures(path, images, (one.image for one in questions))
    rules = _rules(path / "rule.json", {one.category for one in questions})
    return [
        Item(
            id=one.id,
            messages=asked(one.text, files[one.image]),
            categories=(one.category,),
            reference=(one.reference,),
            unit=one.image,
            extra={"caption": one.caption} | ({"rule": rules[one.category]} if rules else {}),
        )
        for one in questions
    ]


def _rules(path: Path, categories: set[str]) -> dict[str, str]:
    """The official rule of each category; {} where there is no file."""
    if not path.is_file():
        return {}
    rules = read_object(path)
    found: dict[str, str] = {}
    for name in sorted(categories):
        rule = rules.get(f"llava_bench_{name}")
        if not isinstance(rule, dict) or not isinstance(rule.get("prompt"), str):
            raise BadFile(f"{path} has no rule llava_bench_{name} with a prompt; is this LLaVA's rule.json?")
        found[name] = rule["prompt"]
    return found


def requests(items: Sequence[Item], answers: Answers) -> list[JudgeRequest]:
    """One an answered item, under its id."""
    found = []
    for item in items:
        answer = answer_to(item, answers)
        if answer is None:
            continue
        prompt = (
            f"[Context]\n{item.extra['caption']}\n\n"
            f"[Question]\n{text_of(item)}\n\n"
            f"[Assistant 1]\n{item.reference[0]}\n\n[End of Assistant 1]\n\n"
            f"[Assistant 2]\n{answer}\n\n[End of Assistant 2]\n\n"
            f"[System]\n{item.extra.get('rule', RULE)}\n\n"
        )
        found.append(JudgeRequest(item.id, item.id, prompt, SYSTEM))
    return found


def grade_replies(items: Sequence[Item], answers: Answers, replies: Mapping[str, str]) -> list[Graded]:
    """Sums (reference's rating, model's rating) of each item."""
    found = []
    for item in items:
        answer, reply = answer_to(item, answers), replies.get(item.id)
        ratings = None if answer is None or reply is None else llava_bench.read_ratings(reply)
        why = ""
        if ratings is None:
            why = "it has no answer" if answer is None else why_unread(reply, "two ratings in its first line")
        found.append(Graded(item.id, ratings, item.categories, length_of(answer), item.unit, why))
    return found


BENCHMARK = Benchmark(
    name="llava-bench",
    title="LLaVA-Bench (in the wild)",
    files=FILES,
    skill="vision",
    max_new_tokens=1024,  # LLaVA's model_vqa.py
    headline="relative score",
    measures={"relative score": llava_bench.relative},
    read=read,
    requests=requests,
    grade_replies=grade_replies,
)
