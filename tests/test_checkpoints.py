"""Checkpoints: when one counts as whole, which are kept, and what becomes of half-written ones. Torch-free."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from jobs import checkpoints as kept
from jobs.checkpoints import (
    WHOLE,
    cleared_up,
    is_whole,
    keep_newest,
    last_checkpoint,
    list_checkpoints,
    seal,
)
from jobs.reporter import Stopped
from jobs.runs import RunFolder


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    made = folder / f"checkpoint-{step}"
    (made / "optimizer_0").mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (made / "optimizer_0" / "shard.distcp").write_bytes(b"means" * 200)
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if sealed:
        seal(made)
    return made


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_a_sealed_checkpoint_is_whole(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 4)
    assert is_whole(made)
    assert json.loads((made / WHOLE).read_text())["files"] == {
        "adapter_model.safetensors": 700,
        "optimizer_0/shard.distcp": 1_000,
        "trainer_state.json": 18,
    }


@pytest.mark.parametrize("lost", ["adapter_model.safetensors", "optimizer_0/shard.distcp", "trainer_state.json"])
@pytest.mark.parametrize("how", ["gone", "shorter", "empty"])
@pytest.mark.parametrize("sealed", [True, False])
def test_one_that_lost_something_is_not(tmp_path: Path, lost: str, how: str, sealed: bool) -> None:
    """Files that are there and empty are what a power failure leaves."""
    made = checkpoint(tmp_path, 4, sealed)
    file = made / lost
    if how == "gone":
        file.unlink()
    else:
        os.truncate(file, 0 if how == "empty" else file.stat().st_size - 1)
    # Without a seal nobody knows how long a file was, or that it was there, but for the last one.
    unknown = not sealed and lost != "trainer_state.json" and how != "empty"
    assert is_whole(made) is unknown


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"names": {}}'])
def test_a_damaged_seal_is_none(tmp_path: Path, text: str) -> None:
    made = checkpoint(tmp_path, 4)
    (made / WHOLE).write_text(text)
    assert not is_whole(made)


def test_a_mark_of_a_missed_evaluation_changes_nothing(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 4)
    (made / "evaluation.pending").touch()
    assert is_whole(made)
    (made / "evaluation.pending").unlink()
    assert is_whole(made)
    unsealed = checkpoint(tmp_path, 6, sealed=False)
    (unsealed / "evaluation.pending").touch()
    assert is_whole(unsealed)


def test_files_are_on_the_disk_before_it_is_called_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's file system tells of a quota as late as this."""
    made = checkpoint(tmp_path, 4, sealed=False)
    flushed: list[bool] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append((made / WHOLE).exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    seal(made)
    assert flushed[:5] == [False] * 5  # three files, two folders
    (made / WHOLE).unlink()

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="quota"):
        seal(made)
    assert not (made / WHOLE).exists()


@pytest.mark.parametrize(("count", "left"), [(0, [10]), (1, [10]), (2, [10, 4]), (9, [10, 4, 2])])
def test_the_newest_are_kept(tmp_path: Path, count: int, left: list[int]) -> None:
    for step in (10, 2, 4):
        checkpoint(tmp_path, step)
    keep_newest(tmp_path, count)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_a_clock_that_was_put_back_deletes_nothing_new(tmp_path: Path) -> None:
    """transformers goes by times: it would keep step 2 here."""
    old, new = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    os.utime(new, (1_000_000, 1_000_000))
    keep_newest(tmp_path, 1)
    assert not old.exists()
    assert is_whole(new)


def test_the_newest_whole_one_stays_beside_a_torn_one(tmp_path: Path) -> None:
    whole, torn = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    (torn / "adapter_model.safetensors").unlink()
    keep_newest(tmp_path, 1)
    assert is_whole(whole)


def test_one_that_is_being_removed_is_torn_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)  # killed before
    keep_newest(tmp_path, 1)
    assert old.exists()
    assert not is_whole(old)


def test_all_torn_ones_go_at_the_next_start(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert last_checkpoint(run) is None
    for step in (1, 2, 3, 4):
        made = checkpoint(run.checkpoints, step)
        if step != 3:
            (made / "trainer_state.json").unlink()
    (run.checkpoints / "checkpoint-notes").mkdir()
    assert last_checkpoint(run) == run.checkpoints / "checkpoint-3"
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["checkpoint-3", "checkpoint-notes"]


def test_an_error_leaves_no_half_written_one(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    torn = checkpoint(tmp_path, 4)
    (torn / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="whatever"), cleared_up(tmp_path):
        raise ValueError("whatever")
    assert names(tmp_path) == ["checkpoint-2"]


def test_of_several_processes_one_removes(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(ValueError, match="whatever"), cleared_up(tmp_path, alone=False):
        raise ValueError("whatever")
    assert names(tmp_path) == ["checkpoint-4"]


def test_a_writer_that_does_not_say_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's: what it had half-written is gone by the time that anybody else looks for room."""
    looked: list[list[str]] = []

    def is_full(folder: Path) -> bool:
        looked.append(names(tmp_path))
        return True

    monkeypatch.setattr(kept, "is_full", is_full)
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(OSError, match="No space left on device") as caught, cleared_up(tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3")
    assert caught.value.errno == errno.ENOSPC
    assert looked == [["checkpoint-4"]]
    assert names(tmp_path) == []


def test_a_stop_is_a_stop_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "is_full", lambda folder: True)
    with pytest.raises(Stopped), cleared_up(tmp_path):
        raise Stopped("ended by SIGTERM")
