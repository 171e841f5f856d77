"""What the data folder takes, and the command that tells it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from typer.testing import CliRunner

from disks import GB, forget_all, taken, write
from factories import USER, World
from jobs import disk
from jobs.__main__ import app
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage.errors import UserError
from storage.folder import DataFolder
from storage.settings import put_setting
from storage.units import in_words


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    forget_all()


# usage ------------------------------------------------------------------------------------------------------


def test_each_part_has_its_bytes(world: World) -> None:
    files = {
        "images": [
            write(world.folder.images / "ab" / "1.png", 9_000),
            write(world.folder.thumbnails / "1", 5_000),
        ],
        "adapters": [write(world.folder.adapters / "sha" / "a.safetensors", 40_000)],
        "models": [write(world.folder.models / "demo" / "m.safetensors", 70_000)],
        "references": [write(world.folder.references / "r.jsonl", 3_000)],
        "judges": [write(world.folder.judges / "ledger.db", 20_000)],
        "runtime": [write(world.folder.runtime / "supervisor.log", 100)],
        "other": [write(world.folder.root / "backups" / "plumb.tar", 12_000)],
        "runs": [write(world.folder.run(1) / "events.jsonl", 6_000)],
        "bin": [write(world.folder.binned(2) / "events.jsonl", 8_000)],
    }
    found = disk.usage(world.folder)
    for part, paths in files.items():
        assert found.used_by_parts[part] == taken(*paths), part
    assert found.used_by_parts["database"] >= world.folder.database.stat().st_size
    assert tuple(found.used_by_parts) != ()
    assert set(found.used_by_parts) == set(disk.PARTS)
    assert found.used == sum(found.used_by_parts.values())
    assert 0 < found.free <= found.total
    assert found.budget is None


def test_a_file_with_several_names_counts_once(world: World) -> None:
    image = write(world.folder.images / "ab" / "1.png", 50_000)
    adapter = write(world.folder.run(1) / "adapter" / "a.safetensors", 80_000)
    for number in (1, 2, 3):
        (world.folder.run(number) / "data" / "images").mkdir(parents=True)
        os.link(image, world.folder.run(number) / "data" / "images" / "1.png")
    (world.folder.adapters / "sha").mkdir()
    os.link(adapter, world.folder.adapters / "sha" / "a.safetensors")
    own = write(world.folder.run(2) / "log.txt", 10_000)
    parts = disk.usage(world.folder).used_by_parts
    assert parts["images"] == taken(image)
    assert parts["adapters"] == taken(adapter)
    assert parts["runs"] == taken(own)


def test_a_backup_beside_the_data_counts_what_it_alone_has(world: World) -> None:
    """Images and adapters are linked into it."""
    image = write(world.folder.images / "ab" / "1.png", 50_000)
    backup = world.folder.root / "backups"
    own = write(backup / "plumb.db", 20_000)
    os.link(image, backup / "1.png")
    parts = disk.usage(world.folder).used_by_parts
    assert parts["images"] == taken(image)
    assert parts["other"] == taken(own)


def test_what_two_runs_share_and_nobody_else_has_counts_once(world: World) -> None:
    """An image that was deleted from the images, and that old runs still hold."""
    first = write(world.folder.run(1) / "data" / "images" / "1.png", 50_000)
    for other in (world.folder.run(2), world.folder.binned(3)):
        other.mkdir(parents=True)
        os.link(first, other / "1.png")
    found = disk.measure(world.folder)
    assert found.parts["runs"] == taken(first)
    assert found.parts["bin"] == 0
    assert found.runs == {1: 0, 2: 0}
    assert found.binned == {3: 0}


def test_what_a_run_alone_holds(world: World) -> None:
    run = RunFolder(world.folder.run(7))
    image = write(world.folder.images / "ab" / "1.png", 50_000)
    (run.path / "data" / "images").mkdir(parents=True)
    os.link(image, run.path / "data" / "images" / "1.png")
    twice = write(run.path / "checkpoints" / "checkpoint-2" / "a.bin", 20_000)
    os.link(twice, run.path / "best.bin")  # both names are the run's own
    rows = write(run.path / "data" / "rows.jsonl", 5_000)
    assert disk.run_bytes(run) == taken(twice, rows)
    assert disk.measure(world.folder).runs == {7: taken(twice, rows)}
    assert disk.largest_runs(world.folder) == [(7, taken(twice, rows))]


def test_links_out_of_the_folder_are_not_followed(world: World, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "large.bin", 3_000_000)
    world.folder.run(1).mkdir()
    (world.folder.run(1) / "link").symlink_to(tmp_path / "elsewhere")
    (world.folder.run(1) / "file").symlink_to(tmp_path / "elsewhere" / "large.bin")
    (world.folder.run(1) / "loop").symlink_to(world.folder.run(1))
    assert disk.measure(world.folder).total < 2_000_000


def test_a_folder_that_vanishes_on_the_way_is_passed_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = write(world.folder.run(1) / "log.txt", 6_000)
    write(world.folder.run(2) / "checkpoints" / "a.bin", 6_000)
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("checkpoints"):
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert disk.measure(world.folder).parts["runs"] == taken(kept)


def test_the_largest_runs_come_first(world: World) -> None:
    for number, size in ((1, 10_000), (2, 90_000), (3, 40_000)):
        write(world.folder.run(number) / "log.txt", size)
    write(world.folder.runs / "000004.old-abcd" / "log.txt", 900_000)  # of no job
    assert [job for job, _ in disk.largest_runs(world.folder, 2)] == [2, 3]


def test_a_walk_is_not_made_at_each_question(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    real = disk.measure

    def measure(folder: DataFolder) -> disk.Measured:
        walks.append(1)
        return real(folder)

    monkeypatch.setattr(disk, "measure", measure)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    before = disk.usage(world.folder).used
    write(world.folder.run(1) / "log.txt", 50_000)
    for _ in range(20):
        assert disk.usage(world.folder).used == before
    assert len(walks) == 1
    clock[0] += disk.KEEP_SECONDS + 1
    assert disk.usage(world.folder).used > before
    assert len(walks) == 2


def test_a_walk_that_takes_long_is_made_seldom(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, walks = [1000.0], []

    def slow(folder: DataFolder) -> disk.Measured:
        clock[0] += 4.0
        walks.append(1)
        return disk.Measured(dict.fromkeys(disk.PARTS, 0))

    monkeypatch.setattr(disk, "measure", slow)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for _ in range(120):
        disk.measured(world.folder)
        clock[0] += 1.0
    assert len(walks) == 1


def test_of_several_who_ask_one_walks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def measure(folder: DataFolder) -> disk.Measured:
        walks.append(1)
        begun.set()
        assert go.wait(30)
        return disk.Measured({"runs": len(walks)})

    monkeypatch.setattr(disk, "measure", measure)
    disk._walked[world.folder.root] = (0.0, disk.Measured({"runs": 77}))  # too old
    found: list[int] = []
    walker = threading.Thread(target=lambda: found.append(disk.measured(world.folder).parts["runs"]))
    walker.start()
    assert begun.wait(30)
    assert disk.measured(world.folder).parts["runs"] == 77  # at once: nobody waits for the walk
    go.set()
    walker.join(30)
    assert found == [1]
    assert len(walks) == 1


def test_the_size_of_a_run_is_kept_some_seconds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run = RunFolder(world.folder.run(1))
    write(run.path / "data" / "rows.jsonl", 5_000)
    write(run.path / "job.json", 10)
    first = disk.run_bytes(run)
    write(run.path / "log.txt", 40_000)
    assert disk.run_bytes(run) == first
    clock[0] += disk.RUN_SECONDS + 1
    assert disk.run_bytes(run) == first + taken(run.log)
    assert disk.run_bytes(RunFolder(world.folder.run(2))) == 0


def test_the_frozen_part_of_a_run_is_walked_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand linked images are not looked at every three seconds; a folder being frozen is."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run = RunFolder(world.folder.run(1))
    write(run.path / "data" / "rows.jsonl", 5_000)
    first = disk.run_bytes(run)
    clock[0] += 10
    more = write(run.path / "data" / "later.jsonl", 20_000)
    assert disk.run_bytes(run) == first + taken(more)  # there is no job.json yet
    job = write(run.path / "job.json", 10)
    clock[0] += 10
    assert disk.run_bytes(run) == first + taken(more, job)
    write(run.path / "data" / "latest.jsonl", 20_000)
    clock[0] += 10
    assert disk.run_bytes(run) == first + taken(more, job)


def test_the_budget_is_set_and_taken_away(world: World) -> None:
    assert disk.get_budget(world.db) is None
    disk.set_budget(world.db, 20 * GB, USER)
    assert disk.usage(world.folder).budget == disk.get_budget(world.db) == 20 * GB
    disk.set_budget(world.db, None, USER)
    assert disk.get_budget(world.db) is None


@pytest.mark.parametrize("budget", [0, -1, 5_000, True])
def test_a_budget_for_nothing_is_refused(world: World, budget: int) -> None:
    with pytest.raises(UserError, match=r"disk_budget = .*at least 10,000,000 bytes"):
        disk.set_budget(world.db, budget, USER)


@given(some.integers(0, 10**15))
def test_sizes_in_words_are_near(size: int) -> None:
    number, unit = in_words(size).replace(",", "").split()
    factor = {"bytes": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(number) * factor == pytest.approx(size, rel=0.051, abs=0.051 * factor)
    assert len(number) <= 4 or unit in ("bytes", "TB")


# commands ---------------------------------------------------------------------------------------------------


def run(settings: Settings, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--data", str(settings.folder.root)])
    if isinstance(result.exception, UserError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_tells_parts_and_largest_runs(world: World) -> None:
    job = world.job("generate")
    write(world.folder.run(job.id) / "log.txt", 4_000_000)
    told = run(world.settings, "disk")
    assert "runs  4.0 MB" in told
    assert f"{job.id}  4.0 MB     generate, queued" in told
    told = run(world.settings, "disk", "--budget", "12 MB", "--floor", "1kB")
    assert "of its budget of 12 MB" in told
    assert "jobs start above 1.0 KB" in told
    found = json.loads(run(world.settings, "disk", "--budget", "none", "--floor", "default", "--json"))
    assert found["budget"] is None
    assert found["largest_runs"] == {str(job.id): taken(world.folder.run(job.id) / "log.txt")}
    assert "budget = 'much': give a size as 200GB" in run(world.settings, "disk", "--budget", "much")


def test_the_command_says_why_nothing_starts(world: World) -> None:
    put_setting(world.db, disk.BUDGET, 1_000)
    assert "Nothing new starts. The data folder takes" in run(world.settings, "disk")


def test_a_sample_with_an_image_is_counted_with_its_thumbnail(world: World) -> None:
    world.sample(images=2)
    files = [
        path for path in (*world.folder.images.rglob("*"), *world.folder.thumbnails.rglob("*")) if path.is_file()
    ]
    assert len(files) == 4
    assert disk.usage(world.folder).used_by_parts["images"] == taken(*files)
