"""Small files in the official forms of benchmarks, for tests."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.benchmarks.contract import Benchmark, Item
from jobs.benchmarks.measures import Graded, figure

SHARED = Path(__file__).parents[2] / "shared" / "benchmarks"


def shared(name: str) -> Path:
    """A folder of the official files; the test is skipped aloud where they are not."""
    if not SHARED.is_dir():
        pytest.skip("../shared/benchmarks is not there")
    return SHARED / name


def lines(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def scratch(folder: Path) -> Path:
    found = folder / "scratch"
    found.mkdir(exist_ok=True)
    return found


def value(graded: Sequence[Graded], benchmark: Benchmark, measure: str = "") -> float | None:
    return figure(graded, benchmark.measures[measure or benchmark.headline], resamples=20).value


def images_of(items: Iterable[Item]) -> list[Path]:
    return [
        Path(part["image"])
        for item in items
        for message in item.messages
        for part in message["content"]
        if part["type"] == "image"
    ]


def pope_folder(folder: Path, pictures: Sequence[str] = ("a.jpg", "b.jpg")) -> Path:
    """Three sets of one yes and one no about each picture."""
    for set_, other in (("random", "cup"), ("popular", "chair"), ("adversarial", "knife")):
        rows = []
        for place, name in enumerate(pictures):
            for number, what, label in ((1, "fork", "yes"), (2, other, "no")):
                asked = f"Is there a {what} in the image?"
                rows.append({"question_id": 2 * place + number, "image": name, "text": asked, "label": label})
        lines(folder / f"coco_pope_{set_}.json", rows)
    return folder


def llava_folder(folder: Path) -> Path:
    """Two questions about one picture, one about another."""
    rows = [
        {"question_id": 0, "image": "001.jpg", "category": "conv", "text": "What is it?"},
        {"question_id": 1, "image": "001.jpg", "category": "detail", "text": "Describe it."},
        {"question_id": 2, "image": "002.jpg", "category": "complex", "text": "Why?"},
    ]
    lines(folder / "questions.jsonl", rows)
    captions = [
        {"image": "001.jpg", "caption": ["A fork.", "It is red."]},
        {"image": "002.jpg", "caption": "A cup."},
    ]
    lines(folder / "context.jsonl", captions)
    lines(folder / "answers_gpt4.jsonl", [{"question_id": n, "text": f"reference {n}"} for n in range(3)])
    for name in ("001.jpg", "002.jpg"):
        picture(folder / "images" / name)
    return folder


TEMPLATES = [
    ("single-v1", "[Q]{question}[A]{answer}"),
    ("single-v1-multi-turn", "{question_1}{answer_1}{question_2}{answer_2}"),
    ("single-math-v1", "{question}{ref_answer_1}{answer}"),
    ("single-math-v1-multi-turn", "{question_1}{ref_answer_1}{answer_1}{question_2}{ref_answer_2}{answer_2}"),
]


def mt_folder(folder: Path) -> Path:
    """A question of writing and one of maths."""
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]},
        {"question_id": 111, "category": "math", "turns": ["One and one?", "And one?"]},
    ]
    lines(folder / "question.jsonl", rows)
    prompts = [{"name": name, "system_prompt": "Judge.", "prompt_template": text} for name, text in TEMPLATES]
    lines(folder / "judge_prompts.jsonl", prompts)
    references = [{"question_id": 111, "choices": [{"index": 0, "turns": ["two", "three"]}]}]
    lines(folder / "reference_answer" / "gpt-4.jsonl", references)
    return folder


def mm_vet_folder(folder: Path) -> Path:
    rows = {
        "v1_0": {"imagename": "v1_0.png", "question": "x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
        "v1_1": {"imagename": "v1_1.png", "question": "Who?", "answer": "Ann<OR>Anna", "capability": ["rec"]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mm-vet.json").write_text(json.dumps(rows))
    for name in ("v1_0.png", "v1_1.png"):
        picture(folder / "images" / name)
    return folder


def base64_picture(colour: str = "blue") -> str:
    held = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(held, "JPEG")
    return base64.b64encode(held.getvalue()).decode()


MMBENCH_COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image")


def mmbench_row(index: int = 5, **changed: str) -> dict[str, str]:
    row = {
        "index": str(index),
        "question": "What is on the table?",
        "hint": "",
        "A": "a fork",
        "B": "a cup",
        "C": "a knife",
        "D": "nan",
        "answer": "B",
        "category": "object",
        "l2-category": "perception",
        "image": base64_picture(),
    }
    return {**row, **changed}


def mmbench_file(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    table = [MMBENCH_COLUMNS, *([row[name] for name in MMBENCH_COLUMNS] for row in rows)]
    path.write_text("\n".join("\t".join(row) for row in table) + "\n", "utf-8")
    return path


def alpaca_file(path: Path, number: int = 3) -> Path:
    rows = [
        {"instruction": f"Do {n}.", "output": "no" * n, "generator": "davinci", "dataset": "koala"}
        for n in range(1, number + 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def ifeval_file(path: Path) -> Path:
    rows = [
        {
            "key": 1,
            "prompt": "Greet me. No commas. Three words or more.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [{}, {"relation": "at least", "num_words": 3}],
        },
        {
            "key": 2,
            "prompt": "Give a title in double angular brackets.",
            "instruction_id_list": ["detectable_format:title"],
            "kwargs": [{"num_words": None}],
        },
    ]
    return lines(path, rows)
