"""How long grading takes: 805 annotations of AlpacaEval, 9,000 answers to POPE, intervals included.

    python benchmarks/grading.py [--rounds 3]

Files as official scripts write them are made in a temporary folder (answers of some 1,000 characters, three sets
of 3,000 questions), read, graded and scored with 2,000 resamples, as the Evaluation page does it. The last line is
JSON; times are the best of the rounds:

    alpaca_s, pope_s   reading, grading, the figure and, for POPE, those of the three sets
    total_s            both
    bars               whether total_s is under 2
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from jobs.benchmarks import pope  # noqa: E402
from jobs.benchmarks.measures import by_category, figure  # noqa: E402
from jobs.benchmarks.official import read_official  # noqa: E402
from jobs.benchmarks.registry import BENCHMARKS  # noqa: E402

BAR = 2.0  # seconds
INSTRUCTIONS, QUESTIONS, PICTURES = 805, 3000, 500


def annotated_file(path: Path, chance: random.Random) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "instruction": f"Explain subject {number}.",
            "output_1": "word " * chance.randint(20, 200),
            "generator_1": "text_davinci_003",
            "output_2": "word " * chance.randint(100, 300),
            "generator_2": "ours",
            "dataset": chance.choice(["koala", "oasst", "vicuna"]),
            "preference": chance.choice([1, 2, 2, 0]),
        }
        for number in range(INSTRUCTIONS)
    ]
    path.write_text(json.dumps(rows), "utf-8")
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def sets(folder: Path, chance: random.Random) -> tuple[Path, Path]:
    """(questions, answers)"""
    for name in pope.SETS:
        asked, said = [], []
        for number in range(QUESTIONS):
            label = "no" if number % 2 else "yes"
            image = f"COCO_val2014_{number * PICTURES // QUESTIONS:012}.jpg"
            asked.append({"question_id": number + 1, "image": image, "text": "Is there a cup?", "label": label})
            said.append({"question_id": number + 1, "text": label if chance.random() < 0.87 else "Yes"})
        lines(folder / "questions" / f"coco_pope_{name}.json", asked)
        lines(folder / "answers" / f"{name}.jsonl", said)
    return folder / "questions", folder / "answers"


def alpaca(path: Path) -> None:
    graded = read_official("alpaca-eval", path, None, "")["ours"]
    found = figure(graded, BENCHMARKS["alpaca-eval"].measures["win rate"])
    assert found.items == INSTRUCTIONS, found
    assert found.low is not None


def nine_thousand(questions: Path, answers: Path) -> None:
    graded = read_official("pope", answers, questions, "ours")["ours"]
    score = BENCHMARKS["pope"].measures["F1"]
    found = figure(graded, score)
    assert found.items == len(pope.SETS) * QUESTIONS, found
    assert found.low is not None
    assert set(by_category(graded, score)) == set(pope.SETS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    best = {"alpaca_s": float("inf"), "pope_s": float("inf")}
    with tempfile.TemporaryDirectory() as held:
        chance = random.Random(0)
        annotated = annotated_file(Path(held) / "annotations.json", chance)
        questions, answers = sets(Path(held), chance)
        for _ in range(rounds):
            begun = time.perf_counter()
            alpaca(annotated)
            between = time.perf_counter()
            nine_thousand(questions, answers)
            took = {"alpaca_s": between - begun, "pope_s": time.perf_counter() - between}
            best = {name: min(best[name], took[name]) for name in best}
    total = sum(best.values())
    print(
        json.dumps(
            {name: round(value, 3) for name, value in (best | {"total_s": total}).items()} | {"bars": total < BAR}
        )
    )


if __name__ == "__main__":
    main()
