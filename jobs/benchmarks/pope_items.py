"""POPE's official sets as items, graded by rules.

The question ends as LLaVA asks short answers (its docs/Evaluation.md, and the paper's runs): a line that wants a
single word or phrase. LLaVA's script model_vqa_loader.py generates at most 128 tokens, greedily. The questions of
one picture stand together and are one unit: the three sets ask some questions in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.benchmarks import pope
from jobs.benchmarks.contract import Answers, Benchmark, Item
from jobs.benchmarks.files import BadFile
from jobs.benchmarks.items import answer_to, asked, given, pictures
from jobs.benchmarks.measures import Graded

PROMPT_END = "Answer the question using a single word or phrase."
MOST_TOKENS = 128
FILES = (
    "the folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, or one of them"
)


def read_sets(path: Path) -> dict[str, list[pope.Question]]:
    """The questions of each set, by its name: of the three files of a folder, or of one file.

    Raises:
        BadFile: a folder lacks one of the three; or what `pope.read_questions` refuses.
    """
    if path.is_dir():
        missing = [name for name in pope.SETS if not (path / f"coco_pope_{name}.json").is_file()]
        if missing:
            wanted = " and ".join(f"coco_pope_{name}.json" for name in missing)
            raise BadFile(f"{path} has no {wanted}; POPE is the mean of three sets. Give one file to ask one set.")
        return {name: pope.read_questions(path / f"coco_pope_{name}.json") for name in pope.SETS}
    name = next((name for name in pope.SETS if name in path.name), path.stem)
    return {name: pope.read_questions(path)}


def read(path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
    """Items `random/1`, …, picture by picture. Raises BadFile."""
    path = given(path, "POPE", FILES)
    sets = read_sets(path)
    files = pictures(path, images, (one.image for found in sets.values() for one in found))
    by_picture: dict[str, list[Item]] = {}
    for place, (name, found) in enumerate(sets.items()):
        for one in found:
            by_picture.setdefault(one.image, []).append(
                Item(
                    id=f"{name}/{one.id}",
                    messages=asked(f"{one.text}\n{PROMPT_END}", files[one.image]),
                    categories=(name,),
                    reference=(one.label,),
                    unit=one.image,
                    extra={"label": one.label, "place": place, "sets": len(sets)},
                )
            )
    return [item for items in by_picture.values() for item in items]


def grade(items: Sequence[Item], answers: Answers) -> list[Graded]:
    """Sums (TP, FP, TN, FN) of each set side by side."""
    found = []
    for item in items:
        answer = answer_to(item, answers)
        if answer is None:
            found.append(Graded(item.id, None, item.categories, unit=item.unit, why="it has no answer"))
            continue
        place, sets = int(item.extra["place"]), int(item.extra["sets"])
        sums = [0.0] * (4 * sets)
        sums[4 * place : 4 * place + 4] = pope.sums_of(answer, item.extra["label"])
        found.append(Graded(item.id, tuple(sums), item.categories, len(answer), item.unit))
    return found


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    files=FILES,
    skill="vision",
    max_new_tokens=MOST_TOKENS,
    headline="F1",
    measures=pope.MEASURES,
    read=read,
    grade=grade,
    most=100.0,
)
