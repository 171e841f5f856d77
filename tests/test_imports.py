"""Other people's data as samples: each format, broken rows, a second import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from factories import USER, World, png
from storage.candidates import candidates_of
from storage.errors import UserError
from storage.finding import SampleFilter, find_samples
from storage.imports.formats import FORMATS
from storage.imports.incoming import MARK, Broken, Incoming, Picture, asked
from storage.imports.intake import Report, import_rows
from storage.imports.reading import Import
from storage.pairs import list_pairs
from storage.records import Sample

BENCHMARKS = Path(__file__).resolve().parents[2] / "shared" / "benchmarks"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in" / "images"
    folder.mkdir(parents=True)
    for number, name in enumerate(("red.png", "blue.png", "green.png")):
        (folder / name).write_bytes(png((200 - 60 * number, 30, 40 * number)))
    return folder


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder.parent / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def brought(world: World, kind: str, path: Path, **more: Any) -> Report:
    return import_rows(world.db, world.folder, Import(kind, path, **more), USER)


def samples(world: World) -> list[Sample]:
    return find_samples(world.db, SampleFilter(), limit=1000)


def parts(sample: Sample, turn: int = -1) -> list[str]:
    """Texts as they are, images as their mark."""
    return [part.get("text", MARK) for part in sample.messages[turn]["content"]]


def test_llava_conversations(world: World, pictures: Path) -> None:
    rows = [
        {
            "id": "a",
            "image": "red.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A square."},
                {"from": "human", "value": "Which colour?"},
                {"from": "gpt", "value": "Red."},
            ],
        },
        {"id": "b", "conversations": [{"from": "human", "value": "Hello?"}]},
        {"id": "c", "image": ["red.png", "blue.png"], "conversations": [{"from": "human", "value": "Compare."}]},
        {
            "id": "d",
            "image": ["red.png", "blue.png"],
            "conversations": [
                {"from": "human", "value": "Is <image> like <image>?"},
                {"from": "gpt", "value": "No"},
            ],
        },
    ]
    path = pictures.parent / "llava.json"
    path.write_text(json.dumps(rows))
    assert brought(world, "llava", path, split="train") == Report(added=4)
    one, two, three, four = samples(world)
    assert [message["role"] for message in one.messages] == ["user", "assistant", "user"]
    assert (parts(one, 0), one.question, one.reference) == ([MARK, "What is it?"], "Which colour?", "Red.")
    assert (one.source, one.source_id, one.split) == ("llava:llava", "a", "train")
    assert (two.images, two.reference) == ((), None)
    assert parts(three) == [MARK, MARK, "Compare."]
    assert parts(four) == ["Is", MARK, "like", MARK, "?"]


def test_preferences_become_accepted_pairs(world: World, pictures: Path) -> None:
    told = {"question": "What colour?", "chosen": "It is red.", "rejected": "blue"}
    inside = {"idx": 1, "text": json.dumps(told), "image_path": "red.png"}
    plain = {**told, "idx": 2, "image_path": "blue.png"}
    messages = {
        "images": ["red.png"],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And now?"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Still red."}]}],
        "rejected": [{"role": "assistant", "content": "Green."}],
    }
    implicit = {
        "chosen": [{"role": "user", "content": "Text?"}, {"role": "assistant", "content": "Yes, text."}],
        "rejected": [{"role": "user", "content": "Text?"}, {"role": "assistant", "content": "No."}],
    }
    assert brought(world, "rlhf-v", written(pictures, [inside, plain])).pairs == 2
    report = brought(world, "trl", written(pictures, [messages, implicit], "trl.jsonl"))
    assert (report.added, report.candidates, report.pairs) == (2, 4, 2)
    pairs = list_pairs(world.db, ["accepted"])
    assert all(view.pair.imported for view in pairs)
    texts = {(pair.chosen, pair.rejected) for pair in pairs}
    assert texts == {("It is red.", "blue"), ("Still red.", "Green."), ("Yes, text.", "No.")}
    assert {pair.pair.user for pair in pairs} == {USER}
    assert parts(samples(world)[2]) == [MARK, "And now?"]


def test_answers_of_several_models_are_candidates(world: World, pictures: Path) -> None:
    said = [{"model": "one", "response": "Red."}, {"model": "two", "response": "Blue."}]
    as_lists = {"model": ["one", "two"], "response": ["Yes.", "No."]}
    rows = [
        {"id": "a", "prompt": "Colour?", "image": "red.png", "completions": said},
        {"id": "b", "prompt": "Square?", "image": "red.png", "completions": as_lists},
    ]
    report = brought(world, "vlfeedback", written(pictures, rows))
    assert (report.added, report.candidates) == (2, 4)
    found = candidates_of(world.db, [sample.id for sample in samples(world)])
    assert [[(one.model, one.text) for one in answers] for answers in found.values()] == [
        [("one", "Red."), ("two", "Blue.")],
        [("one", "Yes."), ("two", "No.")],
    ]


def test_our_own_rows(world: World, pictures: Path) -> None:
    rows = [
        {
            "id": 7,
            "images": ["red.png"],
            "prompt": "Colour?",
            "reference": "red",
            "split": "test",
            "candidates": ["Red.", {"text": "Blue.", "model": "m"}, "Green."],
            "chosen": 0,
            "rejected": 2,
        },
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]},
    ]
    assert brought(world, "jsonl", written(pictures, rows), source="mine") == Report(
        added=2, candidates=3, pairs=1
    )
    one, two = samples(world)
    assert (one.source, one.source_id, one.split, one.reference) == ("mine", "7", "test", "red")
    assert [message["role"] for message in two.messages] == ["system", "user"]
    assert two.question == "Hello?"


def test_a_second_import_adds_nothing_twice(world: World, pictures: Path) -> None:
    rows: list[Any] = [{"prompt": f"Question {number}?", "candidates": ["a", "b"]} for number in range(500)]
    rows += [{"id": "x", "prompt": "One?"}, {"id": "x", "prompt": "Another?"}, {"id": "x", "prompt": "One?"}]
    path = written(pictures, rows)
    first = brought(world, "jsonl", path)
    assert (first.added, first.known, first.candidates) == (502, 1, 1000)
    assert {sample.source_id for sample in samples(world)} >= {"x", "x#2"}
    second = brought(world, "jsonl", path)
    assert (second.added, second.known, second.candidates) == (0, 503, 0)


BAD: list[tuple[str, Any, str]] = [
    ("jsonl", "{not json", "line 2: it is not JSON"),
    ("jsonl", "[1, 2]", "line 2: it is no object"),
    ("jsonl", {"reference": "no prompt"}, "line 2: it has no prompt or messages"),
    ("jsonl", {"prompt": "  "}, "line 2: its prompt is empty"),
    ("jsonl", {"prompt": "A?", "images": ["gone.png"]}, "line 2: The image gone.png is missing"),
    (
        "jsonl",
        {"prompt": "A?", "images": ["../../secret.png"]},
        "line 2: the image '../../secret.png' lies outside",
    ),
    ("jsonl", {"prompt": "A?", "images": ["/etc/hostname"]}, "line 2: the image '/etc/hostname' lies outside"),
    ("jsonl", {"prompt": "A?", "images": [3]}, "line 2: image is 3; it must name a file"),
    (
        "jsonl",
        {"prompt": "A <image> <image>", "images": ["red.png"]},
        "it has 2 <image> marks and 1 images",
    ),
    (
        "jsonl",
        {"prompt": "A?", "candidates": ["a", "b"], "chosen": 0, "rejected": 2},
        "line 2: chosen and rejected",
    ),
    ("jsonl", {"prompt": "A?", "candidates": ["a", "b"], "chosen": 1, "rejected": 1}, "are the same candidate"),
    ("jsonl", {"prompt": "A?", "candidates": ["a", " "]}, "line 2: candidate is"),
    ("jsonl", {"messages": [{"role": "wizard", "content": "A?"}]}, "line 2: message 1 has no role that is known"),
    ("jsonl", {"messages": [{"role": "system", "content": "A?"}]}, "line 2: no turn of it is a person's"),
    ("llava", {"id": 1}, "line 2: it has no conversations"),
    (
        "llava",
        {"conversations": [{"from": "cat", "value": "Miaow"}]},
        "turn 1 is by neither human nor gpt",
    ),
    ("llava", {"conversations": [{"from": "gpt", "value": "Hi"}]}, "line 2: no turn of it is a person's"),
    ("vqa-rad", {"qid": 1, "image_name": "red.png", "question": "A?", "answer": " "}, "line 2: it has no answer"),
    ("rlhf-v", {"question": "A?", "chosen": "a", "rejected": "a "}, "line 2: chosen and rejected are the same"),
    ("rlhf-v", {"text": "{", "image_path": "red.png"}, "line 2: text is not JSON"),
    ("vlfeedback", {"prompt": "A?"}, "line 2: it has no completions"),
    ("trl", {"chosen": "a", "rejected": "b"}, "line 2: it has no prompt, and its answers are no messages"),
]
GOOD: dict[str, Any] = {
    "jsonl": {"prompt": "Good?"},
    "llava": {"conversations": [{"from": "human", "value": "Good?"}]},
    "vqa-rad": {"image_name": "red.png", "question": "Good?", "answer": "yes"},
    "rlhf-v": {"question": "Good?", "chosen": "a", "rejected": "b"},
    "vlfeedback": {"prompt": "Good?", "completions": [{"response": "a"}]},
    "trl": {"prompt": "Good?", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize(("kind", "row", "words"), BAD)
def test_a_broken_row_is_told_and_the_rest_goes_in(
    world: World, pictures: Path, kind: str, row: Any, words: str
) -> None:
    path = written(pictures, [GOOD[kind], row, {**GOOD[kind], "id": "last"}])
    report = brought(world, kind, path)
    assert (report.added, report.broken_number) == (2, 1)
    assert words in report.told()


@pytest.mark.parametrize(("kind", "row", "words"), BAD)
def test_strict_refuses_all(world: World, pictures: Path, kind: str, row: Any, words: str) -> None:
    path = written(pictures, [GOOD[kind], row])
    with pytest.raises(UserError, match="Nothing was imported, since 1 rows are broken"):
        import_rows(world.db, world.folder, Import(kind, path), USER, strict=True)
    assert samples(world) == []


def test_many_broken_rows_are_counted(world: World, pictures: Path) -> None:
    report = brought(world, "jsonl", written(pictures, ["{"] * 50))
    assert (len(report.broken), report.broken_number) == (20, 50)
    assert report.told().endswith("… and 30 more rows that could not be read")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", "a,b", "give a file that ends in .json, .jsonl, .parquet, .arrow"),
        ("rows.json", "{", "cannot be read as JSON"),
        ("rows.json", '"text"', "holds no list of rows"),
        ("rows.parquet", "PAR0", "cannot be read as parquet"),
    ],
)
def test_files_that_are_none(world: World, tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        brought(world, "jsonl", tmp_path / name)


def test_what_is_not_there(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        brought(world, "jsonl", tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="kind = 'word': this version imports easy-vqa, llava"):
        brought(world, "word", tmp_path)
    with pytest.raises(UserError, match="no rows in there"):
        brought(world, "jsonl", tmp_path / "in" if (tmp_path / "in").exists() else tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "A?"}')
    with pytest.raises(UserError, match="there is no such folder"):
        brought(world, "jsonl", tmp_path / "rows.jsonl", images=tmp_path / "pictures")


def test_parquet_and_a_saved_data_set_with_images_inside(world: World, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    row = {"images": [{"bytes": png(), "path": None}], "prompt": "Colour?", "chosen": "Red.", "rejected": "Blue."}
    table = pyarrow.Table.from_pylist([row])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert brought(world, "trl", tmp_path / "rows.parquet").pairs == 1
    DatasetDict({"test": Dataset(table)}).save_to_disk(tmp_path / "saved")
    assert brought(world, "trl", tmp_path / "saved").added == 1
    one, two = samples(world)
    assert parts(one) == parts(two) == [MARK, "Colour?"]
    assert one.images == two.images
    assert (one.split, two.split) == (None, "test")


words = some.text(some.characters(exclude_characters="<>", categories=("L", "N", "P", "Zs", "So")), max_size=8)


@settings(max_examples=60, deadline=None)
@given(some.lists(words, min_size=1, max_size=6), some.integers(0, 3))
def test_marks_are_pictures_in_their_order(texts: list[str], more: int) -> None:
    marks = len(texts) - 1
    given_ = [Picture(str(number), data=bytes([number])) for number in range(marks + more)]
    content = asked(MARK.join(texts), given_)
    shown = [piece for piece in content if isinstance(piece, Picture)]
    assert shown == [*given_[marks:], *given_[:marks]], "those without a mark come first"
    assert [piece for piece in content if isinstance(piece, str)] == [
        text.strip() for text in texts if text.strip()
    ]
    if marks:
        with pytest.raises(Broken, match="marks"):
            asked(MARK.join(texts), given_[: marks - 1])


def test_a_row_is_named_by_its_content() -> None:
    (one,) = FORMATS["jsonl"]({"prompt": "A?"}, Path())
    (two,) = FORMATS["jsonl"]({"prompt": "B?"}, Path())
    (again,) = FORMATS["jsonl"]({"prompt": "A?", "split": "test"}, Path())
    assert isinstance(one, Incoming)
    assert one.content_id() == again.content_id() != two.content_id()


@pytest.mark.slow
def test_vqa_rad_whole_and_twice(world: World) -> None:
    folder = BENCHMARKS / "vqa_rad"
    if not folder.is_dir():
        pytest.skip(f"NOT TESTED: VQA-RAD is not at {folder}")
    for split, number in (("train", 3064), ("test", 451)):
        path = folder / f"{split}set.json"
        assert brought(world, "vqa-rad", path, split=split) == Report(added=number)
        assert brought(world, "vqa-rad", path, split=split) == Report(known=number)
    found = find_samples(world.db, SampleFilter(split="test"), limit=10_000)
    assert len(found) == 451
    assert all(sample.reference and len(sample.images) == 1 for sample in found)
    assert world.db["images"].count == 315 - _never_asked(folder)


def _never_asked(folder: Path) -> int:
    rows = [row for split in ("train", "test") for row in json.loads((folder / f"{split}set.json").read_text())]
    named = {row["image_name"] for row in rows}
    return sum(file.name not in named for file in (folder / "images").iterdir())
