"""Official judgment, review, result and answer files as grades: what others graded, beside one's own evaluations.

The grades have the ids, sums and units of one's own, so that both stand in one table and compare item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.benchmarks import alpaca_eval, llava_bench, mm_vet, mt_bench, pope, pope_items
from jobs.benchmarks.contract import Item
from jobs.benchmarks.files import BadFile, matched, read_lines, unique
from jobs.benchmarks.items import asked, in_folder
from jobs.benchmarks.measures import Graded

Grades = dict[str, list[Graded]]
_LLAVAS_POPE = "llava_pope_test.jsonl"


def read_official(benchmark: str, path: Path, questions: Path | None, model: str) -> Grades:
    """The grades of a file, by model.

    Args:
        benchmark: its name in the registry; `OFFICIAL` says which have such files, and what they are.
        path: the file; for POPE also a folder with one file a set.
        questions: the benchmark's own file or folder, as `read` takes it (no images are needed). POPE and MM-Vet
            need it; MT-Bench takes its categories from there, LLaVA-Bench its pictures.
        model: as the table is to name it, where the file names none; else the one to take, "" for all.

    Raises:
        BadFile: says which file is wrong, where, and what to do.
    """
    if benchmark not in OFFICIAL:
        raise BadFile(f"{benchmark} has no official files of grades; these have: {', '.join(OFFICIAL)}.")
    for one in (path, questions):
        if one is not None and not one.exists():
            raise BadFile(f"{one} is not there.")
    return _READERS[benchmark](path, questions, model.strip())


def _mt_bench(path: Path, questions: Path | None, model: str) -> Grades:
    categories: dict[str, str] = {}
    if questions is not None:
        file = in_folder(questions, "question.jsonl") if questions.is_dir() else questions
        rows = read_lines(file, "question_id", "category")
        categories = {str(row["question_id"]): str(row["category"]) for row in rows}
    found = mt_bench.read_judgments(path, categories)
    if categories:
        for graded in found.values():
            matched(path, {one.unit: one for one in graded}, list(categories))
    if not model:
        return found
    if model not in found:
        raise BadFile(f"{path} has no judgments of {model}; it has those of {', '.join(sorted(found))}.")
    return {model: found[model]}


def _alpaca_eval(path: Path, questions: Path | None, model: str) -> Grades:
    graded, _ = alpaca_eval.read_annotations(path, model)
    return {model or alpaca_eval.model_of(path): graded}


def _llava_bench(path: Path, questions: Path | None, model: str) -> Grades:
    graded = llava_bench.read_reviews(path)
    if questions is not None:
        asked_ = llava_bench.read_questions(questions if questions.is_dir() else questions.parent)
        known = {one.id: one for one in graded}
        matched(path, known, [one.id for one in asked_])
        graded = [
            replace(
                known.get(one.id, Graded(one.id, None, why="it has no review")),
                categories=(one.category,),
                unit=one.image,
            )
            for one in asked_
        ]
    return {model or path.stem: graded}


def _mm_vet(path: Path, questions: Path | None, model: str) -> Grades:
    if questions is None:
        raise BadFile("A result file of MM-Vet names no capabilities: give mm-vet.json as well.")
    asked_ = mm_vet.read_questions(in_folder(questions, "mm-vet.json") if questions.is_dir() else questions)
    graded = mm_vet.read_results(path, asked_)
    units = {one.id: one.image for one in asked_}
    return {model or path.stem: [replace(one, unit=units[one.id]) for one in graded]}


# POPE --------------------------------------------------------------------------------------------------------


def _pope(path: Path, questions: Path | None, model: str) -> Grades:
    """LLaVA's answers (one file of all sets, or one a set) and POPE's own (one a set, in the questions' order)."""
    if questions is None:
        raise BadFile(
            "An answer file of POPE holds no labels: give the folder of its three sets, or one set's file."
        )
    sets = pope_items.read_sets(questions)
    items = [
        Item(
            f"{name}/{one.id}",
            asked(one.text),
            categories=(name,),
            unit=one.image,
            extra={"label": one.label, "place": place, "sets": len(sets)},
        )
        for place, (name, found) in enumerate(sets.items())
        for one in found
    ]
    answers = _answers_of_sets(path, questions, sets)
    graded = pope_items.grade(items, {name: [answer] for name, answer in answers.items()})
    return {model or path.stem: graded}


def _answers_of_sets(path: Path, questions: Path, sets: Mapping[str, Sequence[pope.Question]]) -> dict[str, str]:
    """{set/question: answer}"""
    files: dict[str, Path]
    if len(sets) == 1:
        files = dict.fromkeys(sets, path)
    elif path.is_dir():
        files = {name: _file_of_set(path, name) for name in sets}
    else:
        return _of_all_sets(path, questions / _LLAVAS_POPE, sets)
    return {
        f"{name}/{one}": answer
        for name, file in files.items()
        for one, answer in pope.read_answers(file, sets[name]).items()
    }


def _file_of_set(folder: Path, name: str) -> Path:
    found = sorted(one for one in folder.iterdir() if name in one.name and one.is_file())
    if len(found) != 1:
        told = ", ".join(one.name for one in found) or "none"
        raise BadFile(f"{folder} must have one file with {name} in its name; it has {told}.")
    return found[0]


def _of_all_sets(path: Path, numbering: Path, sets: Mapping[str, Sequence[pope.Question]]) -> dict[str, str]:
    """LLaVA's: one file of answers to `llava_pope_test.jsonl`, which numbers all questions in the sets' order."""
    if not numbering.is_file():
        raise BadFile(
            f"{path} is one file of answers to several sets. Put LLaVA's {_LLAVAS_POPE}, which says what was "
            f"asked, into {numbering.parent}; or give one set's questions; or a folder with one file of answers "
            "a set."
        )
    rows = read_lines(numbering, "question_id", "category")
    unique(numbering, [str(row["question_id"]) for row in rows])
    numbers: dict[str, list[str]] = {name: [] for name in sets}
    for row in rows:
        if row["category"] not in numbers:
            raise BadFile(f"{numbering}: {row['category']!r} is none of the sets {', '.join(sets)}.")
        numbers[row["category"]].append(str(row["question_id"]))
    names: dict[str, str] = {}
    for name, found in sets.items():
        if len(numbers[name]) != len(found):
            raise BadFile(
                f"{numbering} has {len(numbers[name])} questions of {name}, its official file {len(found)}: they "
                "are of different versions."
            )
        names |= {number: f"{name}/{one.id}" for number, one in zip(numbers[name], found, strict=True)}
    answered = read_lines(path, "question_id", "text")
    unique(path, [str(row["question_id"]) for row in answered])
    texts = {str(row["question_id"]): str(row["text"]) for row in answered}
    matched(path, texts, list(names))
    return {names[number]: text for number, text in texts.items()}


#: What can be read, by benchmark, for people.
OFFICIAL: dict[str, str] = {
    "pope": "answers as LLaVA (question_id, text) or POPE (question, answer) writes them; a file or a folder of 3",
    "mm-vet": "the evaluator's grades ({v1_0: {score: [0.5]}})",
    "llava-bench": "reviews of eval_gpt_review_bench.py (question_id, category, content)",
    "mt-bench": "FastChat's judgments, gpt-4_single.jsonl (question_id, model, turn, score)",
    "alpaca-eval": "annotations.json (instruction, output_1, output_2, preference)",
}

_READERS: dict[str, Callable[[Path, Path | None, str], Grades]] = {
    "pope": _pope,
    "mm-vet": _mm_vet,
    "llava-bench": _llava_bench,
    "mt-bench": _mt_bench,
    "alpaca-eval": _alpaca_eval,
}
