"""Nothing is moved away, or repaired, under those who are at work in a data folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_folders import fill, kept, tables
from factories import World, open_world
from jobs.processes import PROJECT
from storage import occupants
from storage.database import connect, session
from storage.errors import Conflict, UserError
from storage.folder import RESTORING, DataFolder
from storage.occupants import WORKER_RUN, alone, enter
from storage.repair import repair
from storage.restore import restore


@pytest.fixture
def full(world: World) -> World:
    return fill(world)


@pytest.fixture
def elsewhere(tmp_path: Path) -> DataFolder:
    """A data folder in use, which somebody wants to replace."""
    other = open_world(tmp_path / "restored")
    other.sample(77)
    other.db.close()
    return other.folder


@contextmanager
def process(*words: str, **environment: str) -> Iterator[int]:
    """A process that says when it has begun, and then waits."""
    child = subprocess.Popen(
        [sys.executable, "-c", *words],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        child.stdout.readline()
        yield child.pid
    finally:
        child.kill()
        child.communicate()


WAITS = "print('here', flush=True); input()"
APP = (
    "import sys; from pathlib import Path; from storage import occupants; from storage.folder import DataFolder\n"
    f"occupants.enter(DataFolder(Path(sys.argv[1]))); {WAITS}"
)


def refused(folder: DataFolder, file: Path, words: str) -> None:
    """Both refuse, and nothing is changed."""
    before = tables(folder)
    with pytest.raises(Conflict, match=words):
        restore(file, folder, "bob", replace=True)
    with pytest.raises(Conflict, match=words):
        repair(folder)
    assert tables(folder) == before
    assert list(folder.root.parent.glob("*.before-*")) == []


def test_nothing_is_done_beside_an_app(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    with process(APP, str(elsewhere.root)):
        refused(elsewhere, file, "Plumb's app serves .*restored. End it")
        with process(APP, str(elsewhere.root)):
            refused(elsewhere, file, "Plumb's app serves")
    assert repair(elsewhere).left == (), "an app that was killed holds nothing"
    assert restore(file, elsewhere, "bob", replace=True).moved is not None


def test_an_app_does_not_begin_meanwhile(elsewhere: DataFolder) -> None:
    with alone(elsewhere), pytest.raises(Conflict, match="being repaired, or moved away"):
        enter(elsewhere)
    presence = enter(elsewhere)
    with pytest.raises(Conflict), alone(elsewhere):
        pass
    presence.leave()
    with alone(elsewhere):
        pass


def test_nothing_is_done_beside_workers_that_outlived_their_supervisor(full: World, elsewhere: DataFolder) -> None:
    file = kept(full)
    with process(WAITS, **{WORKER_RUN: str(elsewhere.run(12))}) as pid:
        assert occupants.workers(elsewhere) == [(pid, 12)]
        refused(elsewhere, file, rf"Workers of job 12 .*processes {pid}\).*jobs supervise")
        with process(WAITS, **{WORKER_RUN: str(elsewhere.run(3))}):
            refused(elsewhere, file, "Workers of jobs 3, 12 ")
    assert repair(elsewhere).left == ()


def test_workers_of_other_folders_stand_in_nobodys_way(full: World, elsewhere: DataFolder, tmp_path: Path) -> None:
    with process(WAITS, **{WORKER_RUN: str(full.folder.run(12))}):
        assert repair(elsewhere).left == ()
    link = tmp_path / "link"
    link.symlink_to(elsewhere.root)
    with process(WAITS, **{WORKER_RUN: str(link / "runs" / "000012")}) as pid:
        assert occupants.workers(elsewhere) == [(pid, 12)], "by another way to the same folder"


def test_a_folder_without_locks_is_looked_at_for_workers_all_the_same(full: World, tmp_path: Path) -> None:
    bare = DataFolder(tmp_path / "bare")
    bare.runs.mkdir(parents=True)
    with process(WAITS, **{WORKER_RUN: str(bare.run(1))}), pytest.raises(Conflict, match="Workers of job 1"):
        restore(kept(full), bare, "bob", replace=True)
    assert bare.runs.is_dir()


# folders that are not there any more --------------------------------------------------------------------------


def test_nobody_makes_an_empty_database_where_one_was_moved_away(world: World) -> None:
    world.db.close()
    world.folder.database.unlink()
    for tail in ("-wal", "-shm"):
        Path(f"{world.folder.database}{tail}").unlink(missing_ok=True)
    with (
        pytest.raises(UserError, match=r"plumb.db cannot be opened; check that it is there"),
        session(world.folder),
    ):
        pass
    assert not world.folder.database.exists()
    connect(world.folder, create=True).close()
    assert world.folder.database.exists()


def test_a_name_with_signs_of_an_address_is_a_name(tmp_path: Path) -> None:
    made = open_world(tmp_path / "a?mode=ro#b %41")
    made.sample()
    made.db.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a?mode=ro#b %41"]


# a restore that cannot be undone ------------------------------------------------------------------------------


def test_where_the_old_data_lies_if_it_cannot_be_put_back(
    full: World, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept(full)
    before = tables(elsewhere)
    real = Path.rename

    def once(self: Path, target: Path) -> Path:
        if ".before-" in self.name:
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    def tell(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(UserError, match=r"No space left on device\). What was there before lies in ") as told:
        restore(file, elsewhere, "bob", replace=True, tell=tell)
    (aside,) = elsewhere.root.parent.glob("restored.before-*")
    assert str(aside) in str(told.value)
    assert f"rename {aside.name} to restored" in str(told.value)
    assert "Nothing was changed" not in str(told.value)
    assert tables(DataFolder(aside)) == before


def test_an_interrupted_restore_says_so_too(
    full: World, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept(full)

    def tell(done: int, total: int) -> None:
        (elsewhere.root / "thesis.txt").write_text("somebody's")  # so that the folder cannot go
        raise KeyboardInterrupt

    with pytest.raises(UserError, match=r"was ended \(KeyboardInterrupt\)\. What was there before lies in"):
        restore(file, elsewhere, "bob", replace=True, tell=tell)
    assert (elsewhere.root / "thesis.txt").exists()


def test_the_mark_of_a_restore_knows_where_the_old_data_lies(
    full: World, elsewhere: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def tell(done: int, total: int) -> None:
        with pytest.raises(UserError, match=r"was not finished.*What was there before lies in .*before-") as told:
            elsewhere.create()
        seen.append(told)

    restore(kept(full), elsewhere, "bob", replace=True, tell=tell)
    assert seen


def test_a_plumb_that_begins_at_the_same_moment_keeps_what_it_has_made(
    full: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either it sees the mark, or the restore sees what it has made."""
    file, new = kept(full), DataFolder(tmp_path / "new")

    def while_it_marks(path: Path, text: str) -> None:
        open_world(new.root).db.close()
        path.write_text(text)

    monkeypatch.setattr("storage.restore.write_atomically", while_it_marks)
    with pytest.raises(Conflict, match="A Plumb has just begun"):
        restore(file, new, "bob")
    assert new.database.exists()
    assert not (new.root / RESTORING).exists()

    late = DataFolder(tmp_path / "late")
    real = Path.mkdir

    def marked_meanwhile(self: Path, *words: object, **named: object) -> None:
        real(self, *words, **named)  # type: ignore[arg-type]
        if self == late.runtime:
            (late.root / RESTORING).write_text("{}")

    monkeypatch.setattr(Path, "mkdir", marked_meanwhile)
    with pytest.raises(UserError, match="was not finished"):
        late.create()
