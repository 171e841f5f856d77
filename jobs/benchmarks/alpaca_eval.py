"""AlpacaEval v1: 805 instructions, the model's output against a baseline's, preferred by a judge.

Li et al. 2023 (tatsu-lab/alpaca_eval). The preference is 1 for the baseline, 2 for the model, 1.5 for a draw,
and in v2 anything between; which output is shown first is drawn at random. Win rate = 100 × mean(preference −
1). Judges like long answers: the mean lengths of both stand beside every win rate.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from jobs.benchmarks.files import BadFile, read_lines, unique
from jobs.benchmarks.measures import Graded, Score, mean_of, share_of

win_rate = mean_of(100.0)

#: For sums (share of the win, 1, the baseline's characters).
MEASURES: dict[str, Score] = {"win rate": win_rate, "baseline's length": share_of(2, 1, 1.0)}


@dataclass(frozen=True)
class Output:
    instruction: str
    output: str
    generator: str
    dataset: str = ""


@dataclass(frozen=True)
class Lengths:
    """Mean characters of the outputs that were compared."""

    model: float
    baseline: float


def read_outputs(path: Path) -> list[Output]:
    """A file of outputs: JSON [{instruction, output, generator}].

    Raises:
        BadFile: also where an instruction comes twice.
    """
    rows = read_lines(path, "instruction", "output")
    unique(path, [str(row["instruction"]) for row in rows])
    return [
        Output(
            str(row["instruction"]),
            str(row["output"]),
            str(row.get("generator", "")),
            str(row.get("dataset") or ""),
        )
        for row in rows
    ]


def name_of(instruction: str) -> str:
    """An instruction's id, the same in every file that has it."""
    return hashlib.sha256(instruction.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def model_first(name: str, seed: int = 0) -> bool:
    """Whether the model's output is shown before the baseline's: half of the items, by their ids and a seed."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()[0] % 2 == 0


def read_annotations(path: Path, model: str = "") -> tuple[list[Graded], Lengths]:
    """The grades of an official annotations.json, and the lengths of what was compared.

    Args:
        model: the generator whose wins are counted; "" for output_2's, as alpaca_eval writes it.

    Raises:
        BadFile: also where `model` made neither output, or several models' annotations are mixed.
    """
    rows = read_lines(path, "instruction", "output_1", "output_2", "preference")
    names = {(str(row.get("generator_1", "")), str(row.get("generator_2", ""))) for row in rows}
    if len({frozenset(one) for one in names}) > 1:
        pairs = ", ".join(sorted(f"{first} and {second}" for first, second in names))
        raise BadFile(f"{path} mixes comparisons of {pairs}; give a file of one model against one baseline.")
    unique(path, [str(row["instruction"]) for row in rows])
    found, lengths = [], []
    for row in rows:
        second = not model or row.get("generator_2") == model
        if not second and row.get("generator_1") != model:
            raise BadFile(f"{path} compares {row.get('generator_1')} and {row.get('generator_2')}, not {model}.")
        ours, theirs = (row["output_2"], row["output_1"]) if second else (row["output_1"], row["output_2"])
        lengths.append((len(str(ours)), len(str(theirs))))
        preference = _preference(row["preference"])
        share = None if preference is None else preference - 1 if second else 2 - preference
        category = str(row.get("dataset") or "")
        found.append(_graded(str(row["instruction"]), share, len(str(ours)), category, len(str(theirs))))
    return found, Lengths(mean(one for one, _ in lengths), mean(other for _, other in lengths))


def model_of(path: Path) -> str:
    """The generator whose wins a file of annotations counts. Raises BadFile."""
    return str(read_lines(path)[0].get("generator_2") or path.stem)


def _preference(value: Any) -> float | None:
    """From 1 to 2; None where the annotator gave none. Early versions wrote 0 for a draw."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if value == 0:
        return 1.5
    return float(value) if 1 <= value <= 2 else None


def _graded(instruction: str, share: float | None, length: int, category: str, baseline: int) -> Graded:
    name, categories = name_of(instruction), (category,) if category else ()
    if share is None:
        return Graded(name, None, categories, length, why="the judge gave no preference")
    return Graded(name, (share, 1.0, float(baseline)), categories, length)
