"""Finding samples among many: `python benchmarks/browse.py [--samples 20000] [--keep FOLDER]`.

Fills a database by bulk SQL (4 candidates and 8 score rows a sample), and times what pages ask of `storage`, each
call over a connection of its own, as pages make them: pages in every order, every named filter, words, the next
sample of every queue, counts. Prints one JSON line; milliseconds are the 95th percentile of the slowest of its
kind, which `slowest` names. `import_per_second` is an import of JSON lines without images into that database,
`searchable_per_second` the same until all of them are found by every filter.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlite_utils import Database

from storage import facts
from storage.database import connect, immediate, migrate, session
from storage.finding import ORDERS, STATES, SampleFilter, find_samples, position_of, total
from storage.folder import DataFolder
from storage.imports.intake import import_rows
from storage.imports.reading import Import
from storage.queues import QUEUES, Queue, next_in_queue, progress
from storage.records import METRICS

PEOPLE = [f"person {number}" for number in range(20)]
SOURCES = ["easy-vqa", "llava", "vqa-rad", "vlfeedback"]
AT = "2026-11-23T12:00:00.000+00:00"
BATCH = 10_000
_SYLLABLES = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "is")]


# --- a database ---


class Vocabulary:
    """Words that are as unevenly common as a language's: the n-th is about 1/n as common as the first."""

    def __init__(self, generator: random.Random, size: int = 30_000) -> None:
        self._generator = generator
        self.words = sorted({"".join(generator.choices(_SYLLABLES, k=1 + n % 4)) for n in range(2 * size)})[:size]
        generator.shuffle(self.words)
        self._size = len(self.words)

    def text(self, low: int, high: int) -> str:
        generator = self._generator
        words = self.words
        number = low + int(generator.random() * (high - low + 1))
        return " ".join(words[int(self._size ** generator.random()) - 1] for _ in range(number))


def fill(db: Database, samples: int) -> Vocabulary:
    """Everything but facts: triggers are set aside meanwhile."""
    generator = random.Random(0)
    words = Vocabulary(generator)
    triggers = db.conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    db.conn.execute("PRAGMA foreign_keys = OFF")
    db.conn.execute("PRAGMA synchronous = OFF")
    db.conn.execute("PRAGMA cache_size = -400000")
    with immediate(db):
        for name, _ in triggers:
            db.conn.execute(f'DROP TRIGGER "{name}"')
        for name in PEOPLE:
            db.conn.execute("INSERT INTO users (name, created_at) VALUES (?, ?)", [name, AT])
        raters = [("judge", name, "1", "single") for name in ("first", "second", "third")]
        raters += [("person", name, "", "") for name in PEOPLE]
        db.conn.executemany("INSERT INTO raters (kind, name, version, mode) VALUES (?, ?, ?, ?)", raters)
        images = [(f"{number:064x}", "png", 64, 64, 100, AT) for number in range(100)]
        db.conn.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", images)
    for first in range(1, samples + 1, BATCH):
        with immediate(db):
            _fill(db, range(first, min(first + BATCH, samples + 1)), samples, generator, words)
    with immediate(db):
        for _, sql in triggers:
            db.conn.execute(sql)
        facts.forget(db)
    db.conn.execute("PRAGMA foreign_keys = ON")
    return words


def _fill(db: Database, ids: range, samples: int, generator: random.Random, words: Vocabulary) -> None:
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _COLUMNS}
    chance = generator.random
    for sample in ids:
        question = words.text(6, 12)
        turns, images = 1 + int(3.5 * chance() ** 3), int(3.5 * chance())
        content: list[dict[str, str]] = []
        for position in range(images):
            sha256 = f"{int(100 * chance()):064x}"
            content.append({"type": "image", "image": sha256})
            rows["sample_images"].append((sample, position, sha256))
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        for _ in range(turns - 1):
            messages += [{"role": "assistant", "content": []}, {"role": "user", "content": []}]
        source = "only one" if sample == samples // 2 else SOURCES[int(4 * chance() ** 2)]
        split = ("train", "train", "train", "test", None)[int(5 * chance())]
        row = (sample, source, str(sample), split, json.dumps(messages), question, words.text(1, 3), AT)
        rows["samples"].append(row)
        for number in range(4):
            rows["candidates"].append((4 * sample + number, sample, words.text(6, 14), "model", AT))
        kind = chance()
        person = 4 + int(20 * chance())
        raters = (1, 2) if kind < 0.5 else (1, person) if kind < 0.9 else (person, 4 + (person - 3) % 20)
        for place, rater in enumerate(raters):
            judgement = 3 * sample + place
            rows["judgements"].append((judgement, rater, sample, "ok", AT))
            for number in range(4):
                values = [int(5 * chance()) for _ in METRICS]
                rows["scores"].append((judgement, 4 * sample + number, *values))
        if chance() < 0.003:
            rows["judgements"].append((3 * sample + 2, 3, sample, ("blocked", "truncated")[sample % 2], AT))
        if sample == samples // 3:
            rows["judgements"].append((3 * sample + 2, 3, sample, "failed", AT))
        if chance() < 0.2:
            pair = (sample, 4 * sample, 4 * sample + 1, "hand", "accepted", PEOPLE[0], AT)
            rows["pairs"].append(pair)
        for name, part in (("flags", 0.01), ("skips", 0.005), ("discards", 0.01), ("notes", 0.01)):
            if chance() < part:
                told = (sample, PEOPLE[int(20 * chance())], AT)
                rows[name].append((*told, words.text(3, 8)) if name == "notes" else told)
    for name, columns in _COLUMNS.items():
        marks = ", ".join("?" * len(columns))
        db.conn.executemany(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", rows[name])


_COLUMNS: dict[str, tuple[str, ...]] = {
    "samples": ("id", "source", "source_id", "split", "messages", "question", "reference", "created_at"),
    "sample_images": ("sample_id", "position", "sha256"),
    "candidates": ("id", "sample_id", "text", "model", "created_at"),
    "judgements": ("id", "rater_id", "sample_id", "state", "created_at"),
    "scores": ("judgement_id", "candidate_id", *METRICS),
    "pairs": ("sample_id", "chosen_id", "rejected_id", "origin", "status", "user", "created_at"),
    "flags": ("sample_id", "user", "created_at"),
    "skips": ("sample_id", "user", "created_at"),
    "discards": ("sample_id", "user", "created_at"),
    "notes": ("sample_id", "user", "created_at", "text"),
}


# --- what is asked ---

Call = Callable[[Database], object]


def named_filters() -> dict[str, SampleFilter]:
    """Every filter that the page has a name for, alone; with what selects nothing, and one of all."""
    found = {f"state {state}": SampleFilter(state=state) for state in STATES if state}
    for source in (*SOURCES, "only one", "not there"):
        found[f"source {source}"] = SampleFilter(source=source)
    for split in ("train", "test", "not there"):
        found[f"split {split}"] = SampleFilter(split=split)
    for rater in ("first", PEOPLE[3], "nobody"):
        found[f"rater {rater}"] = SampleFilter(rater=rater)
    for metric in METRICS:
        found[f"{metric} 0 to 1"] = SampleFilter(metric=metric, low="0", high="1")
        found[f"{metric} 4"] = SampleFilter(metric=metric, low="4", high="4")
    for gap in ("0.5", "2", "4"):
        found[f"gap {gap}"] = SampleFilter(gap=gap)
    for number in ("0", "1", "2", "3+"):
        found[f"images {number}"] = SampleFilter(images=number)
        found[f"turns {number}"] = SampleFilter(turns=number)
    return found


def joined_filters(words: Vocabulary) -> dict[str, SampleFilter]:
    """Several at once, one of them narrow or none of them."""
    return {
        "one of a source and unscored": SampleFilter(source="only one", state="not scored by people"),
        "paired and wide": SampleFilter(state="paired", gap="1", images="2", source="llava"),
        "failed and test": SampleFilter(state="failed", split="test"),
        "rater and metric": SampleFilter(rater=PEOPLE[3], metric="correctness", low="4", high="4"),
        "gap in order": SampleFilter(source="vqa-rad", order="gap"),
        "longest of a rare source": SampleFilter(source="only one", order="longest answer"),
        "flagged by gap": SampleFilter(state="flagged", order="gap"),
        "words and flagged": SampleFilter(q=words.words[5], state="flagged"),
        "words and blocked": SampleFilter(q=words.words[5], state="blocked"),
        "some words and blocked": SampleFilter(q=words.words[300], state="blocked"),
        "a beginning and blocked": SampleFilter(q=words.words[0][:-1], state="blocked"),
        "words by gap": SampleFilter(q=words.words[5], order="gap"),
        "unscored by gap": SampleFilter(state="not scored by people", order="gap"),
        "scored by fewest": SampleFilter(state="scored by people", order="least scored"),
        "of a person by fewest": SampleFilter(rater=PEOPLE[3], order="least scored"),
    }


def searches(words: Vocabulary) -> dict[str, str]:
    common, rare = words.words[0], words.words[-1]
    return {
        "commonest word": common,
        "common word": words.words[50],
        "rare word": rare,
        "one letter": common[0],
        "two letters": common[:2],
        "three letters": (common + words.words[1])[:3],
        "two common words": f"{common} {words.words[1]}",
        "common and rare": f"{common} {rare}",
        "two letters twice": f"{words.words[2][:2]} {words.words[3][:2]}",
        "nothing": "xylophone",
        "common and nothing": f"{common} xylophone",
        "four letters": common[:4],
        "commonest but a letter": common[:-1],
        "operators": f'{common}* AND NOT ("{words.words[1]}" OR NEAR(',
    }


class Clock:
    """Times calls and keeps the slowest kind of each group."""

    def __init__(self, folder: DataFolder, repeats: int) -> None:
        self._folder = folder
        self._repeats = repeats
        self.told: dict[str, dict[str, float]] = {}

    def time(self, group: str, name: str, calls: Iterator[Call]) -> None:
        taken = []
        for call, _ in zip(calls, range(self._repeats), strict=False):
            began = time.perf_counter()
            with session(self._folder) as db:
                call(db)
            taken.append(1000 * (time.perf_counter() - began))
        taken.sort()
        self.told.setdefault(group, {})[name] = taken[math.ceil(0.95 * len(taken)) - 1]

    def slowest(self, group: str) -> tuple[str, float]:
        return max(self.told[group].items(), key=lambda item: item[1])


def measure(folder: DataFolder, samples: int, words: Vocabulary, repeats: int) -> Clock:
    clock = Clock(folder, repeats)
    generator = random.Random(1)

    def pages(where: SampleFilter) -> Iterator[Call]:
        yield lambda db: find_samples(db, where)
        while True:
            after = generator.randrange(samples)
            yield lambda db, after=after: find_samples(db, where, after)  # type: ignore[misc]

    def counts(where: SampleFilter) -> Iterator[Call]:
        while True:
            yield lambda db: total(db, where)
            place = generator.randrange(1, samples)
            yield lambda db, place=place: position_of(db, where, place)  # type: ignore[misc]

    def nexts(queue: Queue) -> Iterator[Call]:
        while True:
            user, after = generator.choice(PEOPLE), generator.choice([None, 0, generator.randrange(samples)])
            yield lambda db, user=user, after=after: next_in_queue(db, user, queue, after=after)  # type: ignore[misc]

    def progresses(queue: Queue) -> Iterator[Call]:
        while True:
            yield lambda db: progress(db, PEOPLE[2], queue)

    for order, title in ORDERS.items():
        clock.time("page", title, pages(SampleFilter(order=order)))
        clock.time("count", title, counts(SampleFilter(order=order)))
    for name, where in named_filters().items():
        clock.time("filter", name, pages(where))
        clock.time("count", name, counts(where))
    for name, where in joined_filters(words).items():
        clock.time("joined", name, pages(where))
        clock.time("count", name, counts(where))
    for name, text in searches(words).items():
        clock.time("search", name, pages(SampleFilter(q=text)))
        clock.time("count", f"search {name}", counts(SampleFilter(q=text)))
    for kind in QUEUES:
        clock.time("next", kind, nexts(Queue(kind)))
        clock.time("progress", kind, progresses(Queue(kind)))
    narrow = SampleFilter(source="only one")
    clock.time("next", "unscored of a rare source", nexts(Queue("unscored", where=narrow)))
    clock.time("next", "unscored with words", nexts(Queue("unscored", where=SampleFilter(q=words.words[50]))))
    return clock


def import_speed(folder: DataFolder, root: Path, words: Vocabulary, number: int = 20_000) -> tuple[float, float]:
    """(samples a second of the import alone, with what the search knows of them)."""
    file = root / "rows.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for place in range(number):
            row = {"id": f"new {place}", "prompt": words.text(6, 12), "reference": words.text(1, 3)}
            out.write(json.dumps(row) + "\n")
    with session(folder) as db:
        facts.catch_up(db)
        began = time.perf_counter()
        report = import_rows(db, folder, Import("jsonl", file, source=f"benchmark {time.time():.0f}"), PEOPLE[0])
        imported = time.perf_counter() - began
        facts.catch_up(db)
        known = time.perf_counter() - began
    assert report.added == number, report.told()
    return number / imported, number / known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=40, help="calls of each kind")
    parser.add_argument("--keep", type=Path, help="fill this folder and leave it, or use it as it was left")
    parser.add_argument("--all", action="store_true", help="print every kind first")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.keep or Path(temporary)
        folder = DataFolder(root / "data").create()
        began = time.perf_counter()
        if migrate(folder):
            db = connect(folder)
            words = fill(db, given.samples)
            filled = time.perf_counter() - began
            print(f"filled in {filled:.0f} s", file=sys.stderr, flush=True)
            began = time.perf_counter()
            facts.catch_up(db)
            known = given.samples / (time.perf_counter() - began)
            print(f"facts of {known:,.0f} samples a second", file=sys.stderr, flush=True)
            db.close()
        else:
            words, known = Vocabulary(random.Random(0)), 0.0
        clock = measure(folder, given.samples, words, given.repeats)
        imported, searchable = import_speed(folder, Path(temporary), words)
        size = folder.database.stat().st_size
    if given.all:
        for group, kinds in clock.told.items():
            for name, taken in sorted(kinds.items(), key=lambda item: -item[1]):
                print(f"{group:>9}  {taken:8.1f} ms  {name}", file=sys.stderr)
    told = {group: clock.slowest(group) for group in clock.told}
    print(
        json.dumps(
            {
                "benchmark": "browse",
                "samples": given.samples,
                **{f"{group}_ms": round(taken, 1) for group, (_, taken) in told.items()},
                "slowest": {group: name for group, (name, _) in told.items()},
                "import_per_second": round(imported),
                "searchable_per_second": round(searchable),
                "facts_per_second": round(known),
                "gigabytes": round(size / 1e9, 2),
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
