"""The Data page's desk and views: what arrives, in which turn, what survives what; and a save beside an import."""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factories import USER, World, png
from storage.candidates import candidates_of
from storage.database import session
from storage.errors import Conflict, UserError
from storage.imports.done import last_imports, list_sources
from storage.imports.staging import Room, guess, stage
from storage.scores import set_score
from workbench import data_views
from workbench.context import Context
from workbench.data_desk import Arrival, Choice, Desk
from workbench.pages import data as page

Wait = Callable[..., None]
ROW = '{"prompt": "A?"}'


@pytest.fixture
def desk(world: World) -> Desk:
    return Desk(world.folder)


def file(tmp_path: Path, name: str, content: str | bytes) -> tuple[str, Path]:
    """An upload, as Gradio leaves it."""
    path = tmp_path / "gradio" / str(len(list(tmp_path.rglob("*")))) / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name, path


def lines(number: int, **more: Any) -> str:
    return "\n".join(json.dumps({"prompt": f"Question {n}?", **more}) for n in range(number))


def arrived(desk: Desk, wait_for: Wait, *files: tuple[str, Path], user: str = USER) -> Arrival:
    arrival = desk.receive(user, files)
    wait_for(lambda: not arrival.busy, "looked through")
    return arrival


def test_files_are_looked_through_and_imported(world: World, desk: Desk, tmp_path: Path, wait_for: Wait) -> None:
    rows = lines(8, images=["a.png"]) + '\n{"prompt": "B?", "images": ["gone.png"]}'
    arrival = arrived(desk, wait_for, file(tmp_path, "rows.jsonl", rows), file(tmp_path, "a.png", png()))
    assert world.db["samples"].count == 0
    found, choice = arrival.outlook, arrival.choice
    assert found is not None
    assert choice is not None
    assert (found.rows, found.known, found.broken_number, found.images) == (9, 0, 1, 8)
    assert list(found.broken) == ["line 9"]
    html = data_views.outlook(arrival)
    assert html.count("data:image/webp;base64,") == 5
    assert "gone.png is missing" in html
    desk.begin(USER, choice)
    wait_for(lambda: arrival.stage == "done", "imported")
    assert arrival.report is not None
    assert (arrival.report.added, arrival.report.broken_number) == (8, 1)
    assert not arrival.folder.exists(), "uploads are removed"
    assert "source=jsonl%3Arows" in data_views.status(arrival, [])
    (done,) = last_imports(world.db)
    assert (done.source, done.user, done.added, done.broken) == ("jsonl:rows", USER, 8, 1)
    assert [(one.name, one.samples) for one in desk.sources()] == [("jsonl:rows", 8)]
    again = arrived(desk, wait_for, file(tmp_path, "rows.jsonl", rows), file(tmp_path, "a.png", png()))
    assert again.outlook is not None
    assert again.outlook.known == 8


GUESSED: list[tuple[str, dict[str, Any]]] = [
    ("llava", {"conversations": [{"from": "human", "value": "A?"}]}),
    ("vqa-rad", {"image_name": "a.png", "question": "A?", "answer": "yes"}),
    ("jsonl", {"prompt": "A?", "candidates": ["a", "b"], "chosen": 0, "rejected": 1}),
    ("rlhf-v", {"question": "A?", "chosen": "a", "rejected": "b"}),
    ("vlfeedback", {"prompt": "A?", "completions": [{"response": "a"}]}),
    ("trl", {"prompt": "A?", "chosen": "a", "rejected": "b"}),
]


@pytest.mark.parametrize(("kind", "row"), GUESSED)
def test_kinds_are_guessed(tmp_path: Path, kind: str, row: dict[str, Any]) -> None:
    into = tmp_path / "in"
    into.mkdir()
    staged = stage([file(tmp_path, "rows.jsonl", json.dumps(row))], into)
    assert guess(staged).kind == kind


def test_files_that_hold_no_rows_are_not_read(desk: Desk, tmp_path: Path, wait_for: Wait) -> None:
    """VQA-RAD's list of answers lies beside its rows; its images in a folder with a name of its own."""
    rows = json.dumps([{"image_name": "a.jpg", "question": "A?", "answer": "yes"}])
    with zipfile.ZipFile(tmp_path / "osf.zip", "w") as made:
        made.writestr("VQA/answers.json", '["yes", "no"]')
        made.writestr("VQA/trainset.json", rows)
        made.writestr("VQA/Image Folder/a.jpg", png())
    arrival = arrived(desk, wait_for, ("osf.zip", tmp_path / "osf.zip"))
    assert arrival.choice is not None
    assert arrival.outlook is not None
    assert (arrival.choice.kind, arrival.choice.files) == ("vqa-rad", ("trainset.json",))
    assert arrival.outlook.broken == {}
    assert arrival.previews[0].split == "train"
    assert arrival.previews[0].pictures[0].data


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.zip", b"PK no zip", "a.zip is no zip file"),
        ("a.txt", b"words", r"Nothing in there can be imported \(1 × .txt\). Upload rows as .json"),
        ("a.png", png(), "There are 1 images and no rows. Add the file"),
    ],
)
def test_uploads_that_are_none(
    desk: Desk, tmp_path: Path, wait_for: Wait, name: str, content: bytes, words: str
) -> None:
    arrival = arrived(desk, wait_for, file(tmp_path, name, content))
    assert arrival.stage == "failed"
    assert re.search(words, arrival.problem)
    assert "pb-notice bad" in data_views.status(arrival, [])
    with pytest.raises(Conflict, match="Wait until the files"):
        desk.begin(USER, Choice("jsonl", ("a",), "mine"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "{", "a.json cannot be read as JSON"),
        ("a.parquet", "PAR1", "a.parquet cannot be read as parquet"),
    ],
)
def test_a_file_of_rows_that_cannot_be_read(
    desk: Desk, tmp_path: Path, wait_for: Wait, name: str, content: str, words: str
) -> None:
    arrival = arrived(desk, wait_for, file(tmp_path, name, content))
    assert words in arrival.problem
    assert arrival.outlook is None


def test_the_wrong_kind_breaks_all_rows_and_another_one_is_chosen(
    desk: Desk, tmp_path: Path, wait_for: Wait
) -> None:
    arrival = arrived(desk, wait_for, file(tmp_path, "rows.jsonl", lines(3)))
    assert arrival.choice is not None
    wrong = Choice("llava", arrival.choice.files, arrival.choice.source)
    desk.look(USER, wrong)
    wait_for(lambda: not arrival.busy, "looked through")
    assert arrival.outlook is not None
    assert arrival.outlook.broken_number == 3
    assert "No row can be read" in data_views.outlook(arrival)
    assert arrival.choice.source == "llava:rows", "the suggestion follows the kind"
    with pytest.raises(UserError, match="Nothing was imported, since 3 rows are broken"):
        desk.begin(USER, Choice("llava", wrong.files, "mine", strict=True))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice("word", ("rows.jsonl",), "mine"), "Kind = 'word': choose llava"),
        (Choice("jsonl", (), "mine"), "Files of rows = none"),
        (Choice("jsonl", ("../../etc/passwd",), "mine"), "Files of rows = none"),
        (Choice("jsonl", ("rows.jsonl",), ""), "Source = empty"),
        (Choice("jsonl", ("rows.jsonl",), "x" * 300), "Source = 'xxxx"),
        (Choice("jsonl", ("rows.jsonl",), "mine", "a\nb"), "Split = 'a"),
    ],
)
def test_fields_that_cannot_be_used(
    desk: Desk, tmp_path: Path, wait_for: Wait, choice: Choice, words: str
) -> None:
    arrived(desk, wait_for, file(tmp_path, "rows.jsonl", ROW))
    with pytest.raises(UserError, match=words):
        desk.begin(USER, choice)


def test_cancelling_keeps_what_is_in_and_importing_again_adds_the_rest(
    world: World, desk: Desk, tmp_path: Path, wait_for: Wait
) -> None:
    arrival = arrived(desk, wait_for, file(tmp_path, "rows.jsonl", lines(4000)))
    assert arrival.choice is not None
    desk.begin(USER, arrival.choice)
    wait_for(lambda: arrival.report is not None and arrival.report.added, "a batch is in")
    with pytest.raises(Conflict, match="is at work"):
        desk.receive(USER, [file(tmp_path, "b.jsonl", ROW)])
    with pytest.raises(Conflict, match="Cancel it first"):
        desk.remove(USER)
    desk.cancel(USER)
    wait_for(lambda: not arrival.busy, "ended")
    there = world.db["samples"].count
    assert 0 < there < 4000
    assert there % 200 == 0, "whole batches"
    assert "Cancelled after" in data_views.status(arrival, [])
    desk.begin(USER, arrival.choice)
    wait_for(lambda: arrival.stage == "done", "imported")
    assert arrival.report is not None
    assert (arrival.report.added, arrival.report.known) == (4000 - there, there)
    assert world.db["samples"].count == 4000


def test_imports_take_turns(world: World, desk: Desk, tmp_path: Path, wait_for: Wait) -> None:
    one = arrived(desk, wait_for, file(tmp_path, "one.jsonl", lines(2000)))
    two = arrived(desk, wait_for, file(tmp_path, "two.jsonl", lines(10)), user="bob")
    assert one.choice is not None
    assert two.choice is not None
    with desk._importing:
        desk.begin(USER, one.choice)
        desk.begin("bob", two.choice)
        assert (one.stage, two.stage) == ("waiting", "waiting")
        assert "bob imports two.jsonl, waiting" in data_views.status(one, desk.others(USER))
        desk.cancel("bob")
        wait_for(lambda: two.stage == "ready", "bob's has ended")
        assert "cancelled before it began" in two.problem
    wait_for(lambda: one.stage == "done", "one")
    desk.begin("bob", two.choice)
    wait_for(lambda: two.stage == "done", "two")
    assert {source.name: source.samples for source in list_sources(world.db)} == {
        "jsonl:one": 2000,
        "jsonl:two": 10,
    }


def test_what_a_dead_process_left_is_cleared_and_a_living_ones_is_not(
    world: World, desk: Desk, tmp_path: Path, wait_for: Wait
) -> None:
    living = arrived(desk, wait_for, file(tmp_path, "rows.jsonl", ROW))
    dead = world.folder.runtime / "uploads" / "0123.room"
    (dead / "x").mkdir(parents=True)
    (dead / "x" / "rows.jsonl").write_text(ROW)
    assert Room(world.folder).clear_others() == 1
    assert not dead.exists()
    assert living.folder.is_dir()


def test_uploads_do_not_stay_where_gradio_put_them(desk: Desk, tmp_path: Path, wait_for: Wait) -> None:
    upload = file(tmp_path, "rows.jsonl", ROW)
    arrival = arrived(desk, wait_for, upload)
    assert not upload[1].exists()
    newer = arrived(desk, wait_for, file(tmp_path, "more.jsonl", ROW))
    assert not arrival.folder.exists(), "a new upload takes the old one's place"
    desk.remove(USER)
    assert not newer.folder.exists()
    with pytest.raises(Conflict, match="The files are gone"):
        desk.cancel(USER)


def test_nothing_of_a_row_is_markup(context: Context, desk: Desk, tmp_path: Path, wait_for: Wait) -> None:
    evil = "<script>alert(1)</script>"
    row = {"prompt": evil, "reference": evil, "split": evil, "candidates": [evil], "id": evil, "images": [evil]}
    rows = json.dumps({**row, "images": []}) + "\n" + json.dumps(row)
    arrival = arrived(desk, wait_for, file(tmp_path, f"{'<b>'}.jsonl", rows))
    assert arrival.choice is not None
    shown = [data_views.outlook(arrival), data_views.title(arrival.name), data_views.status(arrival, [arrival])]
    desk.begin(USER, Choice("jsonl", arrival.choice.files, evil))
    wait_for(lambda: arrival.stage == "done", "imported")
    _, parts = page.look(context, desk, USER)
    for html in [*shown, *parts.values()]:
        assert "<script>" not in html
        assert "<b>.jsonl" not in html


@pytest.mark.slow
def test_saves_go_on_beside_an_import(world: World, desk: Desk, tmp_path: Path, wait_for: Wait) -> None:
    """100,000 rows: a person's score is saved within half a second (95 %), and none waits for the whole import."""
    sample = world.sample()
    candidate = world.candidates(sample, ["a circle"])[0].id
    arrival = arrived(desk, wait_for, file(tmp_path, "many.jsonl", lines(100_000, candidates=["a", "b"])))
    assert arrival.choice is not None
    desk.begin(USER, arrival.choice)
    wait_for(lambda: arrival.report is not None and arrival.report.added, "a batch is in")
    took: list[float] = []

    def save() -> None:
        number = 0
        while arrival.busy:
            began = time.monotonic()
            with session(world.folder) as db:
                set_score(db, "bob", candidate, "helpfulness", number % 5)
            took.append(time.monotonic() - began)
            number += 1
            time.sleep(0.05)

    saver = threading.Thread(target=save)
    saver.start()
    wait_for(lambda: arrival.stage == "done", "imported", 240)
    saver.join()
    assert arrival.report is not None
    assert arrival.report.added == 100_000
    p95 = statistics.quantiles(took, n=20)[-1]
    rate = 100_000 / arrival.seconds
    print(f"{rate:,.0f} rows/s; {len(took)} saves, p95 {p95 * 1000:.0f} ms, max {max(took) * 1000:.0f} ms")
    assert p95 < 0.5
    assert max(took) < 3.0
    assert candidates_of(world.db, [sample])[sample]
