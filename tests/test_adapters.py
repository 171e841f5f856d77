"""Adapters by content address: deleting one beside others that have the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_folders import (
    begun,
    run_of,
    trained,
)
from factories import World
from jobs.events import drain
from storage import adapters, upkeep
from storage.adapters import delete_adapter, keep_adapter, list_adapters
from storage.errors import Conflict
from storage.folder import DataFolder


def test_deleting_an_adapter_takes_no_files_from_one_that_is_being_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are kept, its row is not there yet, and another adapter of the same files is deleted."""
    old = trained(world, "old")
    job = world.job("dpo")
    run = run_of(world, job, events=0)
    run.adapter.mkdir()
    for file in (world.folder.run(old.job_id) / "adapter").iterdir():
        (run.adapter / file.name).write_bytes(file.read_bytes())
    told = {"kind": "adapter", "path": "adapter", "name": "new", "base_model": "demo", "method": "dpo"}
    run.events.write_text(json.dumps(told) + "\n")
    attempt = begun(world, job)
    deleted: list[bool] = []

    def keep_and_lose(folder: DataFolder, source: Path) -> tuple[str, int]:
        found = keep_adapter(folder, source)
        if not deleted:
            deleted.append(delete_adapter(world.db, folder, old.id))
        return found

    monkeypatch.setattr("jobs.events.keep_adapter", keep_and_lose)
    with pytest.raises(Conflict, match="kept anew"):
        drain(world.db, world.folder, attempt.id)
    assert list_adapters(world.db) == []
    drain(world.db, world.folder, attempt.id)
    assert deleted == [True]
    assert [one.name for one in list_adapters(world.db)] == ["new"]
    assert [one for one in upkeep.check(world.db, world.folder, hashes=True) if "adapter" in one.what] == []


def test_the_row_that_came_first_keeps_the_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the deletion of a row and that of its files another adapter of the same files is added."""
    old = trained(world, "old")
    real = adapters._remove_files

    def later(*words: Any) -> bool:
        trained(world, "new")
        return real(*words)

    monkeypatch.setattr(adapters, "_remove_files", later)
    assert delete_adapter(world.db, world.folder, old.id) is False
    assert (world.folder.adapters / old.sha256).is_dir()
    assert upkeep.check(world.db, world.folder, hashes=True) == []
