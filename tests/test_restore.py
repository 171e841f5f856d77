"""Backups that are no good, and folders that must not be restored into: nothing is changed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from data_folders import (
    Member,
    before_manifest,
    files,
    fill,
    kept,
    member,
    nothing_restored,
    rewritten,
    tables,
)
from factories import World, open_world
from jobs.processes import PROJECT
from storage import upkeep
from storage.backup import backup, backup_database
from storage.database import session
from storage.errors import Conflict, NotFound, UserError
from storage.folder import RESTORING, DataFolder
from storage.manifest import HEADER, MANIFEST
from storage.restore import describe, restore


@pytest.fixture
def full(world: World) -> World:
    return fill(world)


@pytest.fixture
def elsewhere(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "restored")


# bad input ----------------------------------------------------------------------------------------------------


def test_targets_that_are_refused(full: World, tmp_path: Path) -> None:
    (tmp_path / "there.tar").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        backup(full.folder, tmp_path / "there.tar")
    assert (tmp_path / "there.tar").read_text() == "mine"
    with pytest.raises(UserError, match="would lie in the data folder"):
        backup(full.folder, full.folder.images / "b.tar")
    with pytest.raises(UserError, match=r"The folder .*nowhere for the backup is not there"):
        backup(full.folder, tmp_path / "nowhere" / "b.tar")
    with pytest.raises(NotFound, match="no database in"):
        backup(DataFolder(tmp_path / "empty"), tmp_path / "b.tar")
    assert not (tmp_path / "empty").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(
    full: World, tmp_path: Path, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept(full)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs about .* MB, and 1.0 KB are free"):
        backup(full.folder, tmp_path / "b.tar")
    with pytest.raises(UserError, match=r"needs about .* MB, and there are 1.0 KB free"):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plumb.tar"]


@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_disk_that_fills_up_meanwhile_leaves_no_half_file(
    full: World, tmp_path: Path, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    file = kept(full)
    left = [after]

    def tell(done: int, total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"b.tar cannot be written \(.*No space left"):
        backup(full.folder, tmp_path / "b.tar", tell=tell)
    left[0] = after
    with pytest.raises(UserError, match=r"cannot be restored .*No space left.* Nothing was changed"):
        restore(file, elsewhere, "bob", tell=tell)
    nothing_restored(elsewhere)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plumb.tar"]


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_folder_that_must_not_be_written(full: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kept(full)

    def refuse(self: Path, *words: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot be restored into .* \(Permission denied\)"):
        restore(file, DataFolder(tmp_path / "closed" / "data"), "bob")


def cut(size: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * size)]


@pytest.mark.parametrize("size", [0.02, 0.3, 0.6, 0.9])
def test_a_backup_that_was_cut_off(full: World, elsewhere: DataFolder, size: float) -> None:
    file = kept(full)
    file.write_bytes(cut(size)(file.read_bytes()))
    with pytest.raises(UserError, match=r"cut off|more than is left of it"):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)


def test_files_that_are_no_backup(full: World, tmp_path: Path, elsewhere: DataFolder) -> None:
    text, empty, foreign = (tmp_path / name for name in ("text.tar", "empty.tar", "foreign.tar"))
    text.write_text("hello" * 500)
    empty.touch()
    with tarfile.open(foreign, "w") as tar:
        tar.addfile(*(lambda made: (made[0], io.BytesIO(made[1])))(member("hello.txt")))
    for file, words in (
        (text, "no backup of Plumb's"),
        (empty, "no backup of Plumb's"),
        (foreign, f"does not begin with {HEADER}"),
        (tmp_path / "absent.tar", "cannot be read"),
        (full.folder.root.parent, "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            restore(file, elsewhere, "bob")
    backup_database(full.folder, tmp_path / "alone.db")
    with pytest.raises(UserError, match="a database alone"):
        restore(tmp_path / "alone.db", elsewhere, "bob")
    compressed = tmp_path / "small.tar.gz"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.add(kept(full), arcname="x")
    with pytest.raises(UserError, match="no backup of Plumb's"):
        restore(compressed, elsewhere, "bob")
    nothing_restored(elsewhere)


def edited(found: list[Member]) -> list[Member]:
    """One byte of an image is another."""
    return [
        (info, data[:-1] + bytes([data[-1] ^ 1]) if info.name.startswith("images/") else data)
        for info, data in found
    ]


def test_an_edited_member_is_found_by_its_hash(full: World, elsewhere: DataFolder) -> None:
    with pytest.raises(UserError, match=r"images/.* is not what it was .*sha256 differs"):
        restore(rewritten(kept(full), edited), elsewhere, "bob")
    nothing_restored(elsewhere)


def without(beginning: str) -> Callable[[list[Member]], list[Member]]:
    return lambda found: [one for one in found if not one[0].name.startswith(beginning)]


def twice(found: list[Member]) -> list[Member]:
    return [*found[:-1], found[1], found[-1]]


def with_manifest(**values: Any) -> Callable[[list[Member]], list[Member]]:
    def change(found: list[Member]) -> list[Member]:
        told = json.loads(found[-1][1])
        told |= {key: value(told[key]) if callable(value) else value for key, value in values.items()}
        return [*found[:-1], (found[-1][0], json.dumps(told).encode())]

    return change


def renamed_link(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    linked = next(one for one in files if one["same_as"])
    return [{**one, "path": "runs/../../../evil"} if one is linked else one for one in files]


def link_to_what_is_there(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first, second = [one for one in files if one["path"].startswith("images/")][:2]
    values = {"same_as": first["path"], "sha256": first["sha256"], "bytes": first["bytes"]}
    return [{**one, **values} if one is second else one for one in files]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (before_manifest(member("../evil")), r"'\.\./evil'.* no file of a data folder"),
        (before_manifest(member("images/../../evil")), "no file of a data folder"),
        (before_manifest(member("/tmp/evil")), "no file of a data folder"),
        (before_manifest(member("runtime/key")), "no file of a data folder"),
        (before_manifest(member("images")), "no file of a data folder"),
        (before_manifest(member("runs\\x")), "no file of a data folder"),
        (before_manifest(member("runs/" + "x" * 300)), "name is too long"),
        (before_manifest(member("runs/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "no plain file"),
        (before_manifest(member("runs/link", b"", type=tarfile.LNKTYPE, linkname="plumb.db")), "no plain file"),
        (before_manifest(member("runs/null", b"", type=tarfile.CHRTYPE)), "no plain file"),
        (before_manifest(member("runs/pipe", b"", type=tarfile.FIFOTYPE)), "no plain file"),
        (before_manifest(member("runs/folder", b"", type=tarfile.DIRTYPE)), "no plain file"),
        (before_manifest(member("runs/000001/new.txt")), "its manifest does not name"),
        (twice, "twice"),
        (without("plumb.db"), "lacks plumb.db"),
        (without("thumbnails/"), "lacks thumbnails/"),
        (without(MANIFEST), "cut off"),
        (without(HEADER), "does not begin with"),
        (lambda found: [*found, member("runs/000001/late.txt")], "goes on after its manifest"),
        (with_manifest(files=[]), "manifest of .* is damaged"),
        (with_manifest(files=7), "own description is damaged"),
        (with_manifest(files=renamed_link), "no file of a data folder"),
        (with_manifest(files=link_to_what_is_there), "two contents"),
        (with_manifest(header=lambda header: {**header, "created_at": "1999"}), "not that of its manifest"),
        (lambda found: [*found[:-1], (found[-1][0], b"[1")], "own description is damaged"),
    ],
)
def test_backups_that_somebody_changed(
    full: World, elsewhere: DataFolder, change: Callable[[list[Member]], list[Member]], words: str
) -> None:
    file = rewritten(kept(full), change)
    with pytest.raises(UserError, match=words):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)
    assert not (elsewhere.root.parent / "evil").exists()


def test_a_member_of_absurd_size_is_refused(full: World, elsewhere: DataFolder) -> None:
    """Its head promises a terabyte; there is no compression that it could hide behind."""
    file = kept(full)
    huge, _ = member("runs/000001/huge.bin")
    huge.size = 10**12
    data = file.read_bytes()
    with tarfile.open(file) as tar:
        begin = tar.getmembers()[1].offset
    file.write_bytes(data[:begin] + huge.tobuf() + data[begin:])
    with pytest.raises(UserError, match=r"with 1\.0 TB, more than is left of it"):
        restore(file, elsewhere, "bob")
    nothing_restored(elsewhere)


# where it goes ------------------------------------------------------------------------------------------------


def test_only_into_an_empty_folder(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    elsewhere.root.mkdir()
    (elsewhere.root / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis.txt\).*--replace"):
        restore(file, elsewhere, "bob")
    assert [path.name for path in elsewhere.root.iterdir()] == ["thesis.txt"]
    (elsewhere.root / "thesis.txt").unlink()
    (elsewhere.root / "lost+found").mkdir()  # a file system's own
    restore(file, elsewhere, "bob")
    a_file = DataFolder(file)
    with pytest.raises(UserError, match=r"is a file; name a folder|lies in the folder"):
        restore(file, a_file, "bob")
    with pytest.raises(UserError, match="lies in the folder that is to be restored"):
        restore(file, DataFolder(file.parent), "bob", replace=True)


def test_replacing_moves_the_old_folder_aside(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    other = open_world(elsewhere.root)
    other.sample(77)
    other.db.close()
    done = restore(file, elsewhere, "bob", replace=True)
    assert done.moved is not None
    assert done.moved.name.startswith("restored.before-20")
    with session(DataFolder(done.moved)) as db:
        assert upkeep.stats(db, DataFolder(done.moved))["samples"] == 1
    assert tables(elsewhere) == tables(full)
    assert f"What was there before lies in {done.moved}." in describe(done)
    assert restore(file, DataFolder(elsewhere.root / "deeper"), "bob", replace=True).moved is None


def test_a_replacement_that_fails_puts_the_old_folder_back(full: World, elsewhere: DataFolder) -> None:
    other = open_world(elsewhere.root)
    other.sample(77)
    other.db.close()
    before = tables(elsewhere)
    with pytest.raises(UserError, match="sha256 differs"):
        restore(rewritten(kept(full), edited), elsewhere, "bob", replace=True)
    assert tables(elsewhere) == before
    assert [path.name for path in elsewhere.root.parent.glob("restored*")] == ["restored"]


def test_a_folder_with_a_supervisor_is_not_moved(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    open_world(elsewhere.root).db.close()
    with (
        FileLock(elsewhere.runtime / "supervisor.lock"),
        pytest.raises(Conflict, match="supervisor is at work"),
    ):
        restore(file, elsewhere, "bob", replace=True)
    assert elsewhere.database.exists()


SLOW = """
import sys, time
from pathlib import Path
from storage.folder import DataFolder
from storage.restore import restore

def tell(done, total):
    print("at it", flush=True)
    time.sleep(60)

restore(Path(sys.argv[1]), DataFolder(Path(sys.argv[2])), "bob", tell=tell)
"""


def test_a_killed_restore_says_so_and_the_next_begins_anew(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(file), str(elsewhere.root)], cwd=PROJECT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(Conflict, match="Another restore is at work"):
        restore(file, elsewhere, "bob")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert (elsewhere.root / RESTORING).exists()
    assert not elsewhere.database.exists(), "no program takes it for a data folder"
    with pytest.raises(UserError, match=r"was not finished. Run `python -m storage restore` once more"):
        elsewhere.create()
    restore(file, elsewhere, "bob")
    assert tables(elsewhere) == tables(full)
    assert files(elsewhere) == files(full.folder)
