"""IFEval: 541 prompts with instructions that a program can check, 834 in all.

Zhou et al. 2023 (arXiv 2311.07911) and google-research/instruction_following_eval. Four accuracies: of prompts
(all of their instructions are followed) and of instructions, each strictly and loosely. Prompts are asked as they
are, greedily, with at most 1,280 tokens (as lm-evaluation-harness asks them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.benchmarks.contract import Answers, Benchmark, Item
from jobs.benchmarks.files import BadFile, read_lines, unique
from jobs.benchmarks.ifeval_rules import RULES, follows, follows_loosely
from jobs.benchmarks.items import answer_to, asked, given, in_folder
from jobs.benchmarks.measures import Graded, Score, share_of

FILES = "input_data.jsonl, or the folder with it"
LONGEST_ANSWER = 200_000  # characters; what is longer is cut before it is checked


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items by key; their categories are the groups of their instructions. Raises BadFile."""
    path = given(path, "IFEval", FILES)
    file = in_folder(path, "input_data.jsonl") if path.is_dir() else path
    rows = read_lines(file, "key", "prompt", "instruction_id_list", "kwargs")
    unique(file, [str(row["key"]) for row in rows])
    found = []
    for row in rows:
        instructions = _instructions(file, row)
        found.append(
            Item(
                id=str(row["key"]),
                messages=asked(str(row["prompt"])),
                categories=tuple(dict.fromkeys(name.split(":")[0] for name, _ in instructions)),
                extra={"instructions": [[name, arguments] for name, arguments in instructions]},
            )
        )
    return found


def _instructions(file: Path, row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(type, arguments) of each; checked by a dry run, so that a broken file is told before anything is asked."""
    names, arguments = row["instruction_id_list"], row["kwargs"]
    where = f"{file}: prompt {row['key']}"
    if not isinstance(names, list) or not isinstance(arguments, list) or not names or len(names) != len(arguments):
        raise BadFile(f"{where} must have instructions, and as many kwargs; is this IFEval's input_data.jsonl?")
    found = []
    for name, one in zip(names, arguments, strict=True):
        if name not in RULES:
            raise BadFile(f"{where} has the instruction {name!r}, which is none of IFEval's {len(RULES)} types.")
        # The copy on the Hub has every argument in each, most of them null.
        held = {key: value for key, value in (one or {}).items() if value is not None}
        try:
            wanted = {key: held[key] for key in RULES[name][1]}
            if name != "language:response_language":  # loads a library, and takes any text
                follows("A dry run.", name, wanted)
        except KeyError as error:
            raise BadFile(f"{where}: {name} has no {error}.") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise BadFile(f"{where}: {name} cannot be checked: {error}.") from None
        found.append((name, wanted))
    return found


def grade(items: Sequence[Item], answers: Answers) -> list[Graded]:
    """Sums (prompt strict, prompt loose, 1, instructions strict, instructions loose, instructions)."""
    found = []
    for item in items:
        answer = answer_to(item, answers)
        if answer is None:
            found.append(Graded(item.id, None, item.categories, why="it has no answer"))
            continue
        text, instructions = answer[:LONGEST_ANSWER], item.extra["instructions"]
        strict = [follows(text, name, arguments) for name, arguments in instructions]
        loose = [
            one or follows_loosely(text, name, arguments)
            for one, (name, arguments) in zip(strict, instructions, strict=True)
        ]
        sums = (float(all(strict)), float(all(loose)), 1.0, sum(strict), sum(loose), len(instructions))
        broken = [name for one, (name, _) in zip(strict, instructions, strict=True) if not one]
        why = f"not followed: {', '.join(broken)}" if broken else ""
        found.append(Graded(item.id, tuple(map(float, sums)), item.categories, len(answer), why=why))
    return found


MEASURES: dict[str, Score] = {
    "prompt strict": share_of(0, 2),
    "prompt loose": share_of(1, 2),
    "instruction strict": share_of(3, 5),
    "instruction loose": share_of(4, 5),
}

BENCHMARK = Benchmark(
    name="ifeval",
    title="IFEval",
    files=FILES,
    skill="text",
    max_new_tokens=1280,
    headline="prompt strict",
    measures=MEASURES,
    read=read,
    grade=grade,
    most=100.0,
)
