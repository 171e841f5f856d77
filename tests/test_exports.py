"""Data sets as files: what other tools read, and our own form there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from factories import USER, World, open_world, png
from jobs.freezing import freeze
from storage.__main__ import app
from storage.database import session
from storage.datasets import dataset_hash, dataset_rows
from storage.errors import Conflict, UserError
from storage.exports.manifest import MANIFEST, check_manifest
from storage.exports.reading import import_dataset
from storage.exports.writing import FORMATS, export_dataset
from storage.finding import SampleFilter, find_samples
from storage.folder import DataFolder
from storage.images import ensure_image
from storage.pairs import choose_by_hand, list_pairs
from storage.records import METRICS, Dataset, Message
from storage.samples import add_sample
from storage.scores import set_score

EVIL = '<b>שלום</b> 🙂 \u202e\n\t"quoted" \\ <image> ' + "long " * 2000


def sample_of(world: World, number: int, images: int, text: str, reference: str | None) -> int:
    content: list[Any] = [
        {"type": "image", "image": ensure_image(world.db, world.folder, png((number, image, 9)), "a").sha256}
        for image in range(images)
    ]
    messages: list[Message] = [
        {"role": "user", "content": "Before?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [*content, {"type": "text", "text": text}]},
    ]
    made = add_sample(world.db, "made", str(number), messages, reference)
    assert made is not None
    return made


def filled(root: Path, texts: list[str]) -> tuple[World, Dataset]:
    """A folder with a frozen data set: samples with 0, 1 and 2 images, pairs by hand, scored answers."""
    world = open_world(root)
    for number, text in enumerate(texts):
        sample = sample_of(world, number, number % 3, text, text[::-1].strip() or None)
        better, worse = world.candidates(sample, [f"{text} yes", f"no {number}"])
        choose_by_hand(world.db, USER, better.id, worse.id)
        for one in (better, worse)[: 1 + number % 2]:
            for place, metric in enumerate(METRICS):
                set_score(world.db, USER, one.id, metric, (number + place) % 5)
    return world, freeze(world.db, USER, "shapes", heldout_percent=25)


@settings(max_examples=8, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip),
        min_size=4,
        max_size=8,
    )
)
def test_there_and_back_the_data_set_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("round")
    world, dataset = filled(root / "one", [*texts, EVIL])
    target = root / "out"
    export_dataset(world.db, world.folder, "shapes", "jsonl", target)
    other = open_world(root / "two")
    back = import_dataset(other.db, other.folder, target, "bob")
    assert back.hash == dataset.hash == dataset_hash(other.db, back.id)
    assert back.counts == dataset.counts
    for kind in ("pair", "sample"):
        ours, theirs = (dataset_rows(db, one.id, kind=kind) for db, one in ((world.db, dataset), (other.db, back)))
        assert [(row.split, row.position) for row in ours] == [(row.split, row.position) for row in theirs]
    assert len(list_pairs(other.db, limit=100)) == len(list_pairs(world.db, limit=100))
    assert {view.pair.imported for view in list_pairs(other.db, limit=100)} == {"shapes"}
    # Frozen again from what came in, the pairs are those that were.
    again = export_dataset(other.db, other.folder, "shapes", "jsonl", root / "again")
    assert again.hash == dataset.hash
    assert import_dataset(other.db, other.folder, target, "bob") == back, "twice adds nothing"
    for one in (world, other):
        one.db.close()


@pytest.fixture
def exported(tmp_path: Path) -> tuple[World, Path]:
    world, _ = filled(tmp_path / "one", ["what?", "which colour?", "why?", "where?", EVIL])
    export_dataset(world.db, world.folder, "shapes", "jsonl", tmp_path / "out")
    return world, tmp_path / "out"


def test_what_was_changed_is_refused(exported: tuple[World, Path], tmp_path: Path) -> None:
    _, folder = exported
    other = open_world(tmp_path / "two")
    rows = folder / "rows.jsonl"
    whole = rows.read_text("utf-8")
    rows.write_text(whole.replace("which colour?", "which color?"), "utf-8")
    with pytest.raises(
        UserError, match=r"was changed since it was exported: its sha256 is \w+…, the manifest says"
    ):
        import_dataset(other.db, other.folder, folder, USER)
    manifest = json.loads((folder / MANIFEST).read_text())
    rows.write_text(whole, "utf-8")
    (folder / MANIFEST).write_text(json.dumps({**manifest, "hash": "0" * 64}))
    with pytest.raises(UserError, match="the rows make the hash"):
        import_dataset(other.db, other.folder, folder, USER)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "plumb": 99}))
    with pytest.raises(UserError, match="is of version 99"):
        check_manifest(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    picture = next((folder / "images").iterdir())
    picture.write_bytes(png((200, 1, 1)))
    with pytest.raises(UserError, match="was changed since the export"):
        import_dataset(other.db, other.folder, folder, USER)
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="has no manifest"):
        import_dataset(other.db, other.folder, folder, USER)
    assert find_samples(other.db, SampleFilter()) == []


def test_an_image_outside_of_the_folder_is_refused(exported: tuple[World, Path], tmp_path: Path) -> None:
    _, folder = exported
    from storage.exports.manifest import sha256_of

    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text("utf-8").replace('"images/', '"../images/'), "utf-8")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["rows.jsonl"] = sha256_of(rows)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    other = open_world(tmp_path / "two")
    with pytest.raises(UserError, match="outside of the folder"):
        import_dataset(other.db, other.folder, folder, USER)


def test_another_data_set_of_the_name_is_not_overwritten(exported: tuple[World, Path], tmp_path: Path) -> None:
    _, folder = exported
    other, _ = filled(tmp_path / "two", ["one", "two", "three", "four", "five"])
    with pytest.raises(Conflict, match="a data set named 'shapes' already, with the hash"):
        import_dataset(other.db, other.folder, folder, USER)


@pytest.mark.parametrize("kind", FORMATS)
def test_only_an_empty_folder_is_written_into(exported: tuple[World, Path], tmp_path: Path, kind: str) -> None:
    world, folder = exported
    with pytest.raises(UserError, match="is not an empty folder"):
        export_dataset(world.db, world.folder, "shapes", kind, folder)
    told: list[tuple[int, int]] = []
    made = export_dataset(
        world.db, world.folder, "shapes", kind, tmp_path / kind, lambda done, total: told.append((done, total))
    )
    assert told
    assert told[-1][0] == told[-1][1]
    assert set(made.files) <= {one.name for one in (tmp_path / kind).iterdir()}
    assert check_manifest(tmp_path / kind) == made
    with pytest.raises(UserError, match="format = 'xml'"):
        export_dataset(world.db, world.folder, "shapes", "xml", tmp_path / "xml")


def test_llava_has_a_mark_an_image_and_steerlm_a_row_an_answer(
    exported: tuple[World, Path], tmp_path: Path
) -> None:
    world, _ = exported
    export_dataset(world.db, world.folder, "shapes", "llava", tmp_path / "llava")
    rows = [
        row
        for file in (tmp_path / "llava").glob("*.json")
        if file.name != MANIFEST
        for row in json.loads(file.read_text())
    ]
    assert len(rows) == 5
    for row in rows:
        images = row.get("image", [])
        names = [images] if isinstance(images, str) else images
        text = "".join(turn["value"].replace(EVIL, "") for turn in row["conversations"])
        assert text.count("<image>") == len(names)
        assert all((tmp_path / "llava" / name).is_file() for name in names)
        assert row["conversations"][-1]["from"] == "gpt"
    export_dataset(world.db, world.folder, "shapes", "steerlm", tmp_path / "steerlm")
    lines = [
        json.loads(line)
        for file in (tmp_path / "steerlm").glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert len(lines) == 7, "answers that are scored on all five metrics"
    assert lines[0]["attribute_string"].startswith("helpfulness:")
    assert set(lines[0]["attributes"]) == set(METRICS)


def test_oumis_lines_hold_texts_and_the_names_of_images(exported: tuple[World, Path], tmp_path: Path) -> None:
    world, _ = exported
    export_dataset(world.db, world.folder, "shapes", "oumi", tmp_path / "oumi")
    lines = [
        json.loads(line)
        for file in (tmp_path / "oumi").glob("*.jsonl")
        for line in file.read_text("utf-8").split("\n")
        if line
    ]
    assert len(lines) == 5
    shown = next(line for line in lines if line["chosen"].startswith("why?"))
    assert [turn["content"] for turn in shown["prompt"]] == ["Before?", "Yes.", "why?"]
    assert len(shown["images"]) == 2
    assert all((tmp_path / "oumi" / name).is_file() for line in lines for name in line["images"])
    assert shown["rejected"] == "no 2"
    assert all(line.keys() == {"prompt", "images", "chosen", "rejected"} for line in lines)


def test_a_lone_question_is_a_text_for_oumi(tmp_path: Path) -> None:
    world = open_world(tmp_path / "one")
    for number in range(3):
        better, worse = world.candidates(world.sample(number), ["a circle", "a square"])
        choose_by_hand(world.db, USER, better.id, worse.id)
    freeze(world.db, USER, "shapes", heldout_percent=34)
    export_dataset(world.db, world.folder, "shapes", "oumi", tmp_path / "oumi")
    line = json.loads((tmp_path / "oumi" / "train.jsonl").read_text().splitlines()[0])
    assert line["prompt"] == "what shape is in the image?"
    world.db.close()


@pytest.mark.slow
def test_trls_form_is_loaded_by_datasets(exported: tuple[World, Path], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    world, _ = exported
    export_dataset(world.db, world.folder, "shapes", "trl", tmp_path / "trl")
    files = {name: str(tmp_path / "trl" / f"{name}.parquet") for name in ("train", "heldout")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    rows = [row for split in loaded.values() for row in split]
    assert len(rows) == 5
    assert sorted(len(row["images"]) for row in rows) == [0, 0, 1, 1, 2]
    shown = next(row for row in rows if row["images"])
    assert shown["images"][0].size == (64, 64), "decoded as pictures"
    marks = [part for turn in shown["prompt"] for part in turn["content"] if part["type"] == "image"]
    assert len(marks) == len(shown["images"])
    assert shown["chosen"][0]["role"] == "assistant"
    assert shown["chosen"][0]["content"][0]["text"].endswith(" yes")


def test_the_commands(exported: tuple[World, Path], tmp_path: Path) -> None:
    world, _ = exported
    runner = CliRunner()
    done = runner.invoke(app, ["export", "shapes", "jsonl", str(tmp_path / "x"), "--data", str(world.folder.root)])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["import", "dataset", str(tmp_path / "x"), "--data", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    assert "“shapes” is there" in done.output
    with session(DataFolder(tmp_path / "new")) as db:
        assert len(list_pairs(db)) == 5
