"""Ratings that come with the data, and rows that are made to break a reader."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from factories import USER, World
from storage.imports import sources
from storage.imports.formats import FORMATS, VLFEEDBACK_RATER
from storage.imports.incoming import Broken
from storage.imports.intake import Report, import_rows
from storage.imports.reading import Import
from storage.records import Judgement
from storage.scores import get_judgements


def rated(helpful: Any, faithful: Any, ethical: Any = "5") -> dict[str, Any]:
    told = {"Helpfulness": helpful, "Visual Faithfulness": faithful, "Ethical Considerations": ethical}
    return {aspect: {"Rating": rating, "Rationale": f"since {aspect}"} for aspect, rating in told.items()}


def brought(world: World, tmp_path: Path, rows: list[Any], kind: str = "vlfeedback") -> Report:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return import_rows(world.db, world.folder, Import(kind, path), USER)


def judgements(world: World) -> list[Judgement]:
    ids = [row["id"] for row in world.db["samples"].rows]
    return [one for found in get_judgements(world.db, ids).values() for one in found]


ONE, TWO, THREE = rated("5", "3"), rated("1", "N/A"), rated("N/A", "N/A")
AS_RECORDS = [
    {"model": "one", "response": "Red.", "annotations": ONE},
    {"model": "two", "response": "Blue.", "annotations": TWO},
    {"model": "three", "response": "?", "annotations": THREE},
]
AS_LISTS = {
    "model": ["one", "two", "three"],
    "response": ["Red.", "Blue.", "?"],
    "annotations": [ONE, TWO, THREE],
}
DEEP = {
    "model": ["one", "two", "three"],
    "response": ["Red.", "Blue.", "?"],
    "annotations": {
        aspect: {part: [one[aspect][part] for one in (ONE, TWO, THREE)] for part in ("Rating", "Rationale")}
        for aspect in ONE
    },
}


@pytest.mark.parametrize("completions", [AS_RECORDS, AS_LISTS, DEEP])
def test_vlfeedbacks_ratings_are_a_judges_partial_scores(world: World, tmp_path: Path, completions: Any) -> None:
    report = brought(world, tmp_path, [{"id": "a", "prompt": "Colour?", "completions": completions}])
    assert (report.candidates, report.ratings) == (3, 2)
    assert "a judge's ratings of 2" in report.told()
    (judgement,) = judgements(world)
    assert (judgement.rater.kind, judgement.rater.name, judgement.rater.version) == ("judge", *VLFEEDBACK_RATER)
    given_ = [(score.helpfulness, score.correctness, score.coherence) for score in judgement.scores]
    assert given_ == [(4, 2, None), (0, None, None)]
    assert not any(score.complete for score in judgement.scores), "the paper's rule makes no pairs of them"
    assert "since Ethical Considerations" in judgement.raw
    again = brought(world, tmp_path, [{"id": "a", "prompt": "Colour?", "completions": completions}])
    assert (again.known, again.ratings) == (1, 0)
    assert len(judgements(world)) == 1


@pytest.mark.parametrize("rating", ["N/A", "0", "6", "4.5", None, [], 4.0, True, "four"])
def test_what_is_no_rating_is_none(world: World, tmp_path: Path, rating: Any) -> None:
    answers = [{"response": "Red.", "annotations": rated(rating, rating)}]
    assert brought(world, tmp_path, [{"prompt": "A?", "completions": answers}]).ratings == 0
    assert judgements(world) == []


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("vlfeedback", {"prompt": "A?", "completions": {"model": ["a"], "response": ["b", "c"]}}, "of one length"),
        ("vlfeedback", {"prompt": "A?", "completions": ["text"]}, "completions holds what is no object"),
        ("jsonl", '{"prompt": "A \\ud800?"}', "half a character"),
        ("jsonl", '{"prompt": "A?", "id": "\\ud800"}', "half a character"),
        ("jsonl", '{"prompt": "A?", "images": ["\\ud800.png"]}', "the image"),
        ("jsonl", '{"prompt": "A?", "images": ["' + "x" * 5000 + '.png"]}', "the image"),
        ("jsonl", {"prompt": "A?", "images": ["a.svg"]}, "of a kind that isn't read; save it as PNG"),
        ("jsonl", {"messages": [{"role": ["user"], "content": "A?"}]}, "no role that is known"),
        ("jsonl", {"messages": [{"role": "user", "content": {"text": "A?"}}]}, "neither text nor parts"),
        ("jsonl", "[" * 100_000, "it is not JSON"),
        ("jsonl", '{"prompt": ' + "[" * 100_000, "it is not JSON"),
    ],
)
def test_rows_made_to_break_a_reader(world: World, tmp_path: Path, kind: str, row: Any, words: str) -> None:
    good = {"prompt": "Good?", "completions": [{"response": "a"}]}
    report = brought(world, tmp_path, [good, row, {**good, "id": "last"}], kind)
    assert (report.added, report.broken_number) == (2, 1)
    assert words in report.told()


def test_an_svg_is_refused_by_its_name_and_by_its_content(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.svg").read_bytes())
    report = brought(world, tmp_path, [{"prompt": "A?", "images": [name]} for name in ("a.svg", "b.png")], "jsonl")
    assert report.broken == {
        "line 1": "the image a.svg is of a kind that isn't read; save it as PNG, JPEG, WebP, GIF or BMP",
        "line 2": "The file b.png is not an image that Plumb reads; use PNG, JPEG, WEBP, BMP, GIF.",
    }


def test_a_line_without_end(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_LINE", 50_000)
    report = brought(world, tmp_path, ['{"prompt": "One?"}', "x" * 300_000, '{"prompt": "Two?"}'], "jsonl")
    assert (report.added, list(report.broken)) == (2, ["line 2"])
    assert "it has more than 50 KB" in report.told()


values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(max_size=5) | some.just("<image>"),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = """id image images image_name prompt messages question answer text chosen rejected candidates completions
conversations reference split role content from value annotations response model"""
names = some.sampled_from(sorted(NAMES.split()))


@settings(max_examples=300, deadline=None)
@given(
    some.dictionaries(
        names, values | some.dictionaries(names, values) | some.lists(some.dictionaries(names, values))
    )
)
def test_no_row_breaks_a_reader(row: dict[str, Any]) -> None:
    """Whatever a row holds, it is samples or a sentence."""
    for reader in FORMATS.values():
        with contextlib.suppress(Broken):
            reader(row, Path("/nowhere"))


def test_files_of_a_folder_tell_splits(world: World, tmp_path: Path) -> None:
    for name in ("train-00000-of-00001.jsonl", "testset.jsonl", "val.jsonl", "rows.jsonl", "trained.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": f"In {name}?"}))
    import_rows(world.db, world.folder, Import("jsonl", tmp_path, split="mine"), USER)
    found = {row["question"]: row["split"] for row in world.db["samples"].rows}
    assert found == {
        "In train-00000-of-00001.jsonl?": "train",
        "In testset.jsonl?": "test",
        "In val.jsonl?": "validation",
        "In rows.jsonl?": "mine",
        "In trained.jsonl?": "mine",
    }
