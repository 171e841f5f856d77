"""Text tasks for the embedded demo: short instructions that a program can check, without any file.

Twelve subjects under ten of IFEval's instructions (arXiv 2311.07911), worded so that a small language model can
follow them in a few dozen words. Nothing here is from IFEval's own prompts, and no training of Plumb's sees these:
they measure what visual tuning does to the following of instructions where the official file is not at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.benchmarks import ifeval
from jobs.benchmarks.contract import Benchmark, Item
from jobs.benchmarks.items import asked

SUBJECTS = (
    ("the sea", "water"),
    ("dogs", "friend"),
    ("bread", "flour"),
    ("winter", "snow"),
    ("trains", "station"),
    ("music", "song"),
    ("gardens", "flower"),
    ("the moon", "night"),
    ("books", "story"),
    ("tea", "cup"),
    ("mountains", "climb"),
    ("bicycles", "wheel"),
)

Arguments = dict[str, Any]

# (instruction, how it is worded, its arguments), of a subject and a word that goes with it.
TASKS: tuple[tuple[str, Callable[[str, str], str], Callable[[str], Arguments]], ...] = (
    (
        "keywords:existence",
        lambda subject, word: f"Write one sentence about {subject}. Use the word “{word}” in it.",
        lambda word: {"keywords": [word]},
    ),
    (
        "keywords:forbidden_words",
        lambda subject, word: f"Describe {subject} in one sentence without the words “very” and “{word}”.",
        lambda word: {"forbidden_words": ["very", word]},
    ),
    (
        "length_constraints:number_sentences",
        lambda subject, word: f"Tell me about {subject} in at least 3 sentences.",
        lambda word: {"num_sentences": 3, "relation": "at least"},
    ),
    (
        "length_constraints:number_words",
        lambda subject, word: f"Explain {subject} to a child in at least 30 words.",
        lambda word: {"num_words": 30, "relation": "at least"},
    ),
    (
        "detectable_format:number_bullet_lists",
        lambda subject, word: (
            f"List exactly 3 facts about {subject} as Markdown bullet points. Begin each with “* ”."
        ),
        lambda word: {"num_bullets": 3},
    ),
    (
        "change_case:english_lowercase",
        lambda subject, word: f"Write a sentence about {subject} in lowercase letters only. No capital letters.",
        lambda word: {},
    ),
    (
        "change_case:english_capital",
        lambda subject, word: f"Write a sentence about {subject} in capital letters only.",
        lambda word: {},
    ),
    (
        "punctuation:no_comma",
        lambda subject, word: f"Write two sentences about {subject}. Do not use any commas.",
        lambda word: {},
    ),
    (
        "startend:end_checker",
        lambda subject, word: f"Write a sentence about {subject}. End your answer with the words: That is all.",
        lambda word: {"end_phrase": "That is all."},
    ),
    (
        "startend:quotation",
        lambda subject, word: (
            f"Write a sentence about {subject}. Wrap your whole answer in double quotation marks."
        ),
        lambda word: {},
    ),
)


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items `sea/no_comma`, …, by subject; no files."""
    return [
        Item(
            id=f"{subject.removeprefix('the ')}/{name.split(':')[1]}",
            messages=asked(worded(subject, word)),
            categories=(name.split(":")[0],),
            extra={"instructions": [[name, arguments(word)]]},
        )
        for subject, word in SUBJECTS
        for name, worded, arguments in TASKS
    ]


BENCHMARK = Benchmark(
    name="text-tasks",
    title="Text tasks",
    files="none: they are part of Plumb",
    skill="text",
    max_new_tokens=96,
    headline="prompt strict",
    measures=ifeval.MEASURES,
    read=read,
    grade=ifeval.grade,
    most=100.0,
)
