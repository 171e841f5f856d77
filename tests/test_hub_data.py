"""A hub's data set as samples: from a hub on loopback, by the page's desk and by the command."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from typer.testing import CliRunner

from factories import USER, World, png
from hub_server import SECOND, FakeHub
from jobs import hub, hub_data
from jobs.__main__ import app
from storage.errors import UserError
from storage.imports import archives
from workbench.data_desk import Desk

NAME = "ada/questions"


def parquet(first: int, number: int) -> bytes:
    rows = [
        {"image": {"bytes": png((n, 0, 0)), "path": f"{n}.png"}, "question": f"Is it {n}?", "answer": "yes"}
        for n in range(first, first + number)
    ]
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.fixture
def shelf(fake_hub: FakeHub) -> FakeHub:
    """A hub with a data set of two files, whose names tell their splits, and what is no data."""
    files = {
        "README.md": b"# Questions",
        ".gitattributes": b"",
        "load.py": b"import os",
        "data/train-00000-of-00001.parquet": parquet(0, 3),
        "data/test-00000-of-00001.parquet": parquet(3, 2),
    }
    fake_hub.add(NAME, files)
    return fake_hub


def splits(world: World) -> dict[str, int]:
    return dict(world.db.execute("SELECT split, count(*) FROM samples GROUP BY split").fetchall())


def test_the_desk_fetches_and_imports(world: World, shelf: FakeHub, wait_for: Callable[..., None]) -> None:
    desk = Desk(world.folder)
    arrival = desk.fetch(USER, NAME)
    wait_for(lambda: not arrival.busy, "fetched and looked through")
    assert arrival.problem == ""
    assert arrival.choice is not None
    assert arrival.outlook is not None
    assert (arrival.choice.kind, arrival.choice.source, arrival.outlook.rows) == ("vqa-rad", f"hub:{NAME}", 5)
    assert not shelf.asked("load.py")
    assert not shelf.asked("README")
    desk.begin(USER, arrival.choice)
    wait_for(lambda: arrival.stage == "done", "imported")
    assert splits(world) == {"train": 3, "test": 2}
    assert not arrival.folder.exists()


def test_the_command(world: World, shelf: FakeHub) -> None:
    shelf.add(NAME, {"rows.jsonl": b'{"prompt": "A?"}', "pics.zip": zipped()}, SECOND, old=SECOND)
    arguments = ["import-hub", "jsonl", f"hub:{NAME}@old", "--data", str(world.folder.root), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["added"] == 1
    assert world.db.execute("SELECT source FROM samples").fetchall() == [(f"hub:{NAME}",)]
    assert list((world.folder.runtime / "uploads").iterdir()) == []


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("images/a.png", png())
    return out.getvalue()


def test_the_storage_command_says_where_hubs_are_asked(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "storage", "import", "trl", f"hub:{NAME}", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"python -m jobs import-hub trl {NAME}" in done.stderr


def fetched(address: str, into: Path) -> list[tuple[str, Path]]:
    into.mkdir(exist_ok=True)
    return hub_data.fetch(hub_data.read_address(address), into)


@pytest.mark.parametrize("name", ["", "x", "a/b/c", "../x/y", "a/b@", "a/..", "a/b@x y", "http://h/a/b", "a b/c"])
def test_names_that_are_none(name: str) -> None:
    if name == "a/b@":
        assert hub_data.read_address(name).revision == ""
        return
    with pytest.raises(UserError, match="give the name of a hub's data set as OWNER/NAME"):
        hub_data.read_address(name)


def test_what_a_hub_says_no_to(shelf: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="The hub has no data set 'ada/gone', or hides it"):
        fetched("ada/gone", tmp_path / "a")
    with pytest.raises(UserError, match="data set 'ada/questions' has no such commit, branch or tag"):
        fetched(f"{NAME}@nowhere", tmp_path / "a")
    shelf.add("ada/code", {"load.py": b"import os", "a.csv": b"a,b"})
    with pytest.raises(UserError, match=r"holds no rows that are read \(1 × .csv, 1 × .py\)"):
        fetched("ada/code", tmp_path / "a")
    monkeypatch.setattr(archives, "SPARE_BYTES", 1 << 60)
    with pytest.raises(UserError, match="are free where the data folder lies"):
        fetched(NAME, tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_gated_one(shelf: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.token, shelf.gated = "hf_secretOfTheTests456", True
    with pytest.raises(UserError, match="The data set 'ada/questions' is gated"):
        fetched(NAME, tmp_path / "a")
    monkeypatch.setenv("HF_TOKEN", shelf.token)
    assert len(fetched(NAME, tmp_path / "b")) == 2


@pytest.mark.usefixtures("no_network")
def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(
        hub.Unreachable, match=r"cannot be reached about 'ada/questions'.*or upload the files instead"
    ):
        fetched(NAME, tmp_path / "a")


def test_offline(shelf: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub.Unreachable, match="HF_HUB_OFFLINE is set: the hub is not asked"):
        fetched(NAME, tmp_path / "a")
    assert shelf.requests == []


def test_what_comes_damaged_or_short_is_not_taken(shelf: FakeHub, tmp_path: Path) -> None:
    shelf.damage = {"data/test-00000-of-00001.parquet"}
    with pytest.raises(hub.Unreachable, match="came damaged"):
        fetched(NAME, tmp_path / "a")


def test_fetching_is_called_off(world: World, shelf: FakeHub, wait_for: Callable[..., None]) -> None:
    shelf.add("ada/large", {"rows.zip": b"x", "big.bin": b"", "rows.jsonl": b"{}" * 100})
    desk = Desk(world.folder)
    arrival = desk.fetch(USER, "ada/large")
    desk.remove(USER)
    wait_for(lambda: not arrival.folder.exists(), "its files are gone")
    assert desk.of(USER) is None
