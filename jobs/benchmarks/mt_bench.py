"""MT-Bench: 80 questions of two turns in eight categories, each turn rated from 1 to 10 by a judge.

Zheng et al. 2023 (arXiv 2306.05685) and FastChat's llm_judge. The rating stands in the reply as [[n]]; maths,
reasoning and coding are judged with a reference. Ratings that cannot be read are dropped and counted, and the
score is the mean of all that are left, of both turns. Decoding: temperature 0.7 for writing and roleplay, 0.1
for stem and humanities, else 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.benchmarks.files import BadFile, read_lines
from jobs.benchmarks.measures import Graded, mean_of

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
WITH_REFERENCE = frozenset({"math", "reasoning", "coding"})
MOST_TOKENS = 1024  # of an answer, as FastChat generates them

# FastChat's one_score_pattern, and its second try.
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))

score = mean_of()


def temperature_of(category: str) -> float:
    return TEMPERATURES.get(category, 0.0)


def read_rating(reply: str) -> float | None:
    """The rating that a reply gives, or None where it gives none from 1 to 10."""
    for pattern in _RATINGS:
        if found := pattern.search(reply):
            rating = float(found[1])
            return rating if 1 <= rating <= 10 else None
    return None


def template_of(category: str, turn: int) -> str:
    """The name of the judge's prompt in FastChat's judge_prompts.jsonl. `turn`: 1 or 2."""
    name = "single-math-v1" if category in WITH_REFERENCE else "single-v1"
    return f"{name}-multi-turn" if turn == 2 else name


def read_templates(path: Path) -> dict[str, tuple[str, str]]:
    """(system prompt, prompt template) of each of FastChat's judge_prompts.jsonl, by name. Raises BadFile."""
    rows = read_lines(path, "name", "system_prompt", "prompt_template")
    return {str(row["name"]): (str(row["system_prompt"]), str(row["prompt_template"])) for row in rows}


def judge_prompt(
    templates: Mapping[str, tuple[str, str]],
    category: str,
    questions: Sequence[str],
    answers: Sequence[str],
    references: Sequence[str] = (),
) -> tuple[str, str]:
    """(system prompt, prompt) for the judge, of the last of these turns.

    Args:
        questions, answers: of one turn, or of both where the second is judged.
        references: as many, where the category is judged with them.

    Raises:
        BadFile: the category is judged with a reference and none is there.
    """
    turn = len(answers)
    if category in WITH_REFERENCE and len(references) < turn:
        raise BadFile(f"A question of {category} is judged with a reference, and there is none for turn {turn}.")
    system, template = templates[template_of(category, turn)]
    if turn == 1:
        values = {"question": questions[0], "answer": answers[0]}
        values |= {"ref_answer_1": references[0]} if category in WITH_REFERENCE else {}
    else:
        values = {f"question_{number}": text for number, text in enumerate(questions[:turn], 1)}
        values |= {f"answer_{number}": text for number, text in enumerate(answers, 1)}
        if category in WITH_REFERENCE:
            values |= {f"ref_answer_{number}": text for number, text in enumerate(references[:turn], 1)}
    return system, template.format_map(values)


def read_judgments(path: Path, categories: Mapping[str, str] | None = None) -> dict[str, list[Graded]]:
    """The grades of an official judgment file (gpt-4_single.jsonl), by model.

    JSON lines {question_id, model, turn, score, judgment?}; FastChat writes score −1 where it found no rating.

    Args:
        categories: by question, from question.jsonl; the file itself has none.

    Raises:
        BadFile: also where a model's turn is judged twice.
    """
    found: dict[str, list[Graded]] = {}
    seen: set[tuple[str, str, int]] = set()
    for row in read_lines(path, "question_id", "model", "turn", "score"):
        model, name, turn = str(row["model"]), str(row["question_id"]), row["turn"]
        if turn not in (1, 2) or not _is_number(row["score"]):
            raise BadFile(
                f"{path}: question {name} of {model} has turn {turn!r:.20} and score {row['score']!r:.20}, "
                "which must be 1 or 2, and a number. Is this FastChat's gpt-4_single.jsonl?"
            )
        if (model, name, turn) in seen:
            raise BadFile(f"{path}: turn {turn} of question {name} is judged twice for {model}.")
        seen.add((model, name, turn))
        found.setdefault(model, []).append(_graded(row, name, turn, (categories or {}).get(name, "")))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _graded(row: dict[str, Any], name: str, turn: int, category: str) -> Graded:
    groups = (*((category,) if category else ()), f"turn {turn}")
    rating = float(row["score"])
    if not 1 <= rating <= 10:
        return Graded(f"{name}/{turn}", None, groups, unit=name, why="the judge's reply holds no rating")
    return Graded(f"{name}/{turn}", (rating, 1.0), groups, unit=name)


def grade(name: str, category: str, turn: int, reply: str, answer: str) -> Graded:
    """The grade of one turn by the judge's reply."""
    rating = read_rating(reply)
    groups = (category, f"turn {turn}")
    if rating is None:
        why = f"the reply holds no [[rating]]; it ends {reply.strip()[-60:]!r}"
        return Graded(f"{name}/{turn}", None, groups, len(answer), name, why)
    return Graded(f"{name}/{turn}", (rating, 1.0), groups, len(answer), name)
