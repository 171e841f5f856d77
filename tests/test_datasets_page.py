"""The Data sets page: list, details, comparison, exports as zips, the push to a hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories import USER, World
from jobs.freezing import freeze
from jobs.push_dataset import push_dataset
from storage.dataset_compare import compare
from storage.errors import NotFound, UserError
from storage.exports.writing import FORMATS
from storage.pairs import choose_by_hand, list_pairs, set_status
from storage.records import Dataset
from test_push import REPOSITORY, SECRET, Hub
from workbench.context import Context
from workbench.dataset_downloads import _then_gone, write
from workbench.dataset_views import FORMAT_WORDS
from workbench.job_downloads import zipped
from workbench.pages.datasets import show

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def context(world: World) -> Context:
    return Context(world.settings)


def pairs(world: World, numbers: range, turned: bool = False) -> None:
    for number in numbers:
        one, other = world.candidates(world.sample(number), [f"yes {number} {EVIL}", f"no {number}"])
        better, worse = (other, one) if turned else (one, other)
        choose_by_hand(world.db, USER, better.id, worse.id)


def two(world: World) -> tuple[Dataset, Dataset]:
    """`first` has pairs 0 to 5; `second` has no pair 5, and 0 and 1 the other way round, and 6."""
    pairs(world, range(6))
    first = freeze(world.db, USER, f"first {EVIL}", heldout_percent=20)
    found = {view.chosen.split()[1]: view.pair for view in list_pairs(world.db, limit=100)}
    for name in ("0", "1", "5"):
        set_status(world.db, USER, [found[name].id], "rejected")
    for name in ("0", "1"):
        choose_by_hand(world.db, USER, found[name].rejected_id, found[name].chosen_id)
    pairs(world, range(6, 7))
    return first, freeze(world.db, USER, "second", heldout_percent=20, seed=1)


def test_two_are_compared_by_content(world: World) -> None:
    first, second = two(world)
    found = compare(world.db, first, second)
    assert (found.same, found.turned_number) == (3, 2)
    assert [row.row["chosen"].split()[1] for row in found.only_first] == ["5"]
    assert [row.row["chosen"].split()[1] for row in found.only_second] == ["6"]
    back = compare(world.db, second, first)
    assert (back.same, back.turned_number, back.only_first_number) == (3, 2, 1)
    assert compare(world.db, first, first).same == 6


def test_the_page_tells_lists_and_escapes(world: World, context: Context) -> None:
    assert "No data set yet" in show(context, {})
    first, second = two(world)
    shown = show(context, {"dataset": str(first.id)})
    assert first.hash in shown
    assert EVIL not in shown
    assert "&lt;img" in shown
    assert all(f"format={form}" in shown for form in FORMATS)
    against = show(context, {"dataset": str(first.id), "with": str(second.id)})
    assert "the other way round" in against
    assert EVIL not in against
    for strange in ("99", "x", EVIL):
        told = show(context, {"dataset": strange})
        assert "There is no data set" in told
        assert EVIL not in told
    assert FORMAT_WORDS.keys() == FORMATS.keys()


def test_an_export_is_a_whole_zip_and_leaves_nothing(world: World, context: Context) -> None:
    first, _ = two(world)
    for form in FORMATS:
        folder, name = write(context, first.id, form)
        data = b"".join(_then_gone(zipped(folder, name), folder))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            assert f"{name}/manifest.json" in names
            assert json.loads(archive.read(f"{name}/manifest.json"))["hash"] == first.hash
        assert not folder.exists()
    with pytest.raises(NotFound, match="no data set 99"):
        write(context, 99, "jsonl")
    with pytest.raises(UserError, match="format = 'xml'"):
        write(context, first.id, "xml")
    assert list((context.folder.runtime / "exports").iterdir()) == []


def test_whoever_leaves_in_mid_download_leaves_no_files(world: World, context: Context) -> None:
    first, _ = two(world)
    folder, name = write(context, first.id, "jsonl")
    parts = _then_gone(zipped(folder, name), folder)
    next(parts)
    assert folder.exists()
    parts.close()  # type: ignore[attr-defined]
    assert not folder.exists()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


def push(world: World, hub: Hub, *arguments: str) -> tuple[int, str]:
    """The command in a process of its own, since the hub's library reads the environment once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_TOKEN": SECRET, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "jobs", "push-dataset", "second", REPOSITORY, *arguments]
    done = subprocess.run(
        [*command, "--data", str(world.folder.root)],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_push_brings_files_and_card_without_names(world: World, hub: Hub) -> None:
    _, second = two(world)
    code, told = push(world, hub, "--format", "jsonl")
    assert code == 0, told
    assert "c" * 40 in told
    files = hub.repositories[REPOSITORY]["files"]
    assert {"README.md", "manifest.json", "rows.jsonl"} < set(files)
    assert any(name.startswith("images/") for name in files)
    card = files["README.md"].decode()
    assert card.startswith("---\n")
    assert second.hash in card
    assert f'"{USER}"' not in files["manifest.json"].decode()
    assert "a person: " in card
    assert SECRET not in card + told


def test_a_push_without_a_token_says_which_variable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="Set HF_TOKEN"):
        push_dataset(world.db, world.folder, "second", "ada/pairs", "trl", True, print)


@pytest.mark.slow
def test_a_public_repository_gets_nothing_private(world: World, hub: Hub) -> None:
    two(world)
    assert push(world, hub, "--public", "--format", "oumi")[0] == 0
    code, told = push(world, hub, "--format", "oumi")
    assert code == 1
    assert "is public, and a private one was asked for" in " ".join(told.split())
    assert hub.repositories[REPOSITORY]["commits"] == 1
