"""AlpacaEval v1 as items, and what its judge is asked: to rank two outputs, whose order is drawn by the item's id.

The form of the prompt and of the reply are those of alpaca_eval_gpt4 (tatsu-lab/alpaca_eval, evaluators_configs):
instruction and outputs as Python dictionaries, a ranking of model_1 and model_2 back, read as its ranking_parser
does. The official words are used where its `alpaca_eval.txt` lies beside the baseline's outputs; else those below.
In v1 there are no draws: a ranking has a first. The baseline of v1 is text_davinci_003.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.benchmarks import alpaca_eval
from jobs.benchmarks.contract import Answers, Benchmark, Item, JudgeRequest
from jobs.benchmarks.files import BadFile
from jobs.benchmarks.items import answer_to, asked, given, in_folder, length_of, official_text, text_of, why_unread
from jobs.benchmarks.measures import Graded

FILES = "the baseline's outputs (model_outputs.json of text_davinci_003), or the folder with them"
NAMES = ("model_outputs.json", "alpaca_eval.json", "outputs.json")
SYSTEM = "You rank models by the quality of their answers, and you reply in the form that is asked for."
PROMPT = '''\
Two language models were given the same instruction. Rank them as most people would, by which answer they would \
rather have. What you are given, and what you return, are Python dictionaries.

The instruction:
{
    "instruction": """{instruction}""",
}

The models' answers:
[
    {
        "model": "model_1",
        "answer": """{output_1}"""
    },
    {
        "model": "model_2",
        "answer": """{output_2}"""
    }
]

The better answer's model has rank 1, the other rank 2. Return this list and nothing else, for a program will \
read it:
[
    {'model': <name of the model>, 'rank': <its rank>},
    {'model': <name of the model>, 'rank': <its rank>}
]'''
_FIELDS = ("{instruction}", "{output_1}", "{output_2}")
_FIELD = re.compile(r"\{(instruction|output_1|output_2)\}")
_CHATML = re.compile(r"<\|im_start\|>(system|user)\n(.*?)\n?<\|im_end\|>", re.DOTALL)


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items by a hash of their instruction: the same in every baseline's file. Raises BadFile."""
    path = given(path, "AlpacaEval", FILES)
    file = in_folder(path, *NAMES) if path.is_dir() else path
    outputs = alpaca_eval.read_outputs(file)
    official = official_text(file.parent, "alpaca_eval.txt")
    template = {} if official is None else {"template": _template(file.parent / "alpaca_eval.txt", official)}
    return [
        Item(
            id=alpaca_eval.name_of(one.instruction),
            messages=asked(one.instruction),
            categories=(one.dataset,) if one.dataset else (),
            reference=(one.output,),
            extra={"baseline": one.generator, "baseline_characters": len(one.output), **template},
        )
        for one in outputs
    ]


def _template(path: Path, text: str) -> list[str]:
    """[system message, prompt] of an official prompt in ChatML."""
    parts = dict(_CHATML.findall(text))
    missing = [field for field in _FIELDS if field not in parts.get("user", "")]
    if missing:
        raise BadFile(f"{path} has no user's message with {' and '.join(missing)}; is it alpaca_eval's prompt?")
    return [parts.get("system", ""), parts["user"]]


def requests(items: Sequence[Item], answers: Answers) -> list[JudgeRequest]:
    """One an answered item, under its id."""
    found = []
    for item in items:
        answer = answer_to(item, answers)
        if answer is None:
            continue
        both = (answer, item.reference[0]) if alpaca_eval.model_first(item.id) else (item.reference[0], answer)
        values = {"instruction": text_of(item), "output_1": both[0], "output_2": both[1]}
        system, template = item.extra.get("template", (SYSTEM, PROMPT))
        # In one pass: an answer may hold "{output_2}" itself.
        prompt = _FIELD.sub(lambda match, values=values: values[match[1]], template)  # type: ignore[misc]
        found.append(JudgeRequest(item.id, item.id, prompt, system))
    return found


def read_ranking(reply: str) -> int | None:
    """Which output is better, 1 or 2, by the rank of model_1; None where the reply holds no such ranking."""
    start, end = reply.find("["), reply.rfind("]")
    if start < 0 or end < start or end - start > 10_000:
        return None
    try:
        rows: Any = ast.literal_eval(reply[start : end + 1])
        ranks = [row["rank"] for row in rows if row["model"] == "model_1"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        return None
    return ranks[0] if ranks and ranks[0] in (1, 2) and not isinstance(ranks[0], bool) else None


def grade_replies(items: Sequence[Item], answers: Answers, replies: Mapping[str, str]) -> list[Graded]:
    """Sums (1 where the model wins, 1, the baseline's characters) of each item."""
    found = []
    for item in items:
        answer, reply = answer_to(item, answers), replies.get(item.id)
        better = None if answer is None or reply is None else read_ranking(reply)
        if better is None:
            why = "it has no answer" if answer is None else why_unread(reply, "ranking of model_1 and model_2")
            found.append(Graded(item.id, None, item.categories, length_of(answer), why=why))
            continue
        won = (better == 1) == alpaca_eval.model_first(item.id)
        sums = (float(won), 1.0, float(item.extra["baseline_characters"]))
        found.append(Graded(item.id, sums, item.categories, length_of(answer)))
    return found


BENCHMARK = Benchmark(
    name="alpaca-eval",
    title="AlpacaEval",
    files=FILES,
    skill="text",
    max_new_tokens=2048,  # as alpaca_eval's own configurations of open models generate
    headline="win rate",
    measures=alpaca_eval.MEASURES,
    read=read,
    requests=requests,
    grade_replies=grade_replies,
    most=100.0,
)
