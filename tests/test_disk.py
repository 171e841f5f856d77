"""What the data folder takes, and whether it leaves room for jobs."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlite_utils import Database
from typer.testing import CliRunner

from factories import USER, World, settings_for
from jobs import disk, disk_guard, queue
from jobs.__main__ import app
from jobs.preflight import disk_warnings
from jobs.runs import RunFolder
from jobs.settings import Settings
from jobs.supervisor import Supervisor
from storage import jobs as store
from storage.database import immediate
from storage.errors import UserError
from storage.folder import DataFolder
from storage.lifecycle import JobStatus
from storage.pauses import explain_pause
from storage.records import Job, now
from storage.settings import put_setting
from storage.units import in_words

Space = namedtuple("Space", "total used free")
GB = 1_000_000_000


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    for cache in (disk._walked, disk._runs, disk._frozen, disk_guard._told, disk_guard._reckonings):
        cache.clear()


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def taken(*paths: Path) -> int:
    """What the file system has set aside for these files, each by one of its names."""
    return sum(path.stat().st_blocks * 512 or path.stat().st_size for path in paths)


def set_free(monkeypatch: pytest.MonkeyPatch, free: float, total: float = 500 * GB) -> None:
    """From here on the disk has so many bytes free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(int(total), int(total - free), int(free)))


def paused(world: World, kind: str = "generate", folder: bool = True, **config: object) -> Job:
    """A job that a full disk has stopped, with its attempt."""
    job = world.job(kind, **config)
    with immediate(world.db):
        attempt = store.start_attempt(world.db, job.id)
        store.move(world.db, job.id, JobStatus.STARTING)
        store.move(world.db, job.id, JobStatus.PAUSED, "The disk is full. [No space left on device]")
        store.end_attempt(world.db, attempt.id, JobStatus.PAUSED, "The disk is full.", "disk")
    if folder:
        world.folder.run(job.id).mkdir(parents=True, exist_ok=True)
    return store.get_job(world.db, job.id)


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


# room -------------------------------------------------------------------------------------------------------


def test_there_is_room_as_a_rule(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 50 * GB)
    assert disk_guard.has_room(world.db, world.settings) == ""


def test_without_a_budget_nothing_is_walked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor asks at every pass."""
    set_free(monkeypatch, 50 * GB)
    monkeypatch.setattr(disk, "measure", lambda folder: pytest.fail("walked"))
    assert disk_guard.has_room(world.db, world.settings) == ""


def test_below_the_floor_nothing_starts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 0.4 * GB)
    told = disk_guard.has_room(world.db, world.settings)
    assert "has 0.4 GB free" in told
    assert "below 1.0 GB" in told
    assert "Free 0.6 GB or more: delete runs" in told
    write(world.folder.binned(3) / "a.bin", 3_000_000)
    disk.forget(world.folder)
    assert "empty the bin, which holds 3.0 MB" in disk_guard.has_room(world.db, world.settings)
    set_free(monkeypatch, 1.0 * GB)
    assert disk_guard.has_room(world.db, world.settings) == ""


def test_the_floor_of_a_small_disk_is_a_share_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 0.3 * GB, total=10 * GB)
    assert disk_guard.get_floor(world.db, world.settings) == 0.2 * GB
    assert disk_guard.has_room(world.db, world.settings) == ""
    disk_guard.set_floor(world.db, 5 * GB, USER)
    assert "below 5.0 GB" in disk_guard.has_room(world.db, world.settings)
    disk_guard.set_floor(world.db, None, USER)
    assert disk_guard.has_room(world.db, world.settings) == ""
    with pytest.raises(UserError, match="disk_floor = -1"):
        disk_guard.set_floor(world.db, -1, USER)


def test_over_budget_nothing_starts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 50 * GB)
    disk.set_budget(world.db, 40_000_000, USER)
    assert disk_guard.has_room(world.db, world.settings) == ""
    write(world.folder.run(1) / "a.bin", 40_000_000)
    disk.forget(world.folder)
    told = disk_guard.has_room(world.db, world.settings)
    used = in_words(disk.measured(world.folder).total)
    assert told.startswith(f"The data folder takes {used} of its budget of 40 MB. Set a larger one")
    assert told == disk_guard.over_budget(world.db, world.settings)


def test_a_data_folder_that_is_gone_is_for_others_to_tell(world: World, tmp_path: Path) -> None:
    gone = settings_for(tmp_path / "gone")
    assert disk_guard.has_room(world.db, gone) == ""
    assert disk_guard.wake(world.db, gone) == []


def test_the_supervisor_starts_nothing_without_room(
    world: World, no_supervisor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sample()
    job = queue.submit(world.db, world.settings, "generate", {"candidates": 1}, USER)
    begun: list[int] = []

    class Child:
        pid = 4_000_000

        def poll(self) -> None:
            return None

    def spawn(folder: DataFolder, job: Job) -> Child:
        begun.append(job.id)
        return Child()

    monkeypatch.setattr("jobs.supervisor.spawn_worker", spawn)
    set_free(monkeypatch, 0.1 * GB)
    supervisor = Supervisor(world.settings)
    supervisor.step(world.db)
    assert store.get_job(world.db, job.id).status is JobStatus.QUEUED
    set_free(monkeypatch, 50 * GB)
    supervisor.step(world.db)
    assert begun == [job.id]


def test_the_supervisor_keeps_a_reserve_and_gives_it_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database on a full disk can note nothing, not even that a job is paused."""
    reserve = world.folder.runtime / disk_guard.RESERVE
    set_free(monkeypatch, 0.5 * GB)
    disk_guard.wake(world.db, world.settings)
    assert not reserve.exists(), "there is no room for it"
    set_free(monkeypatch, 50 * GB)
    disk_guard.wake(world.db, world.settings)
    assert taken(reserve) >= disk_guard.RESERVE_BYTES, "real bytes, no hole"
    set_free(monkeypatch, 0.5 * GB)
    assert not disk_guard.spend_reserve(world.settings)
    assert reserve.exists()
    set_free(monkeypatch, 10_000)
    disk_guard.wake(world.db, world.settings)
    assert not reserve.exists()
    assert disk_guard.spend_reserve(world.settings)


def test_a_supervisor_that_cannot_open_the_database_gives_it_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = write(world.folder.runtime / disk_guard.RESERVE, 1_000)
    set_free(monkeypatch, 0)
    seen: list[bool] = []

    def step(self: Supervisor, db: Database) -> None:
        seen.append(reserve.exists())
        if len(seen) == 1:
            raise OSError("disk I/O error")

    monkeypatch.setattr(Supervisor, "step", step)
    Supervisor(settings_for(world.folder.root, supervisor_idle_seconds=0.0)).run_until_idle()
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("free", "budget", "takes", "told"),
    [
        (50 * GB, None, 10 * GB, []),
        (50 * GB, None, None, []),
        (5 * GB, None, 10 * GB, ["disk has 5.0 GB free: it would pause on its way"]),
        (50 * GB, 2 * GB, 10 * GB, ["2.0 GB left of its budget of 2.0 GB: no other job would start after it"]),
        (50 * GB, 20 * GB, 10 * GB, []),
        (50 * GB, 25_000_000, 10_000_000, ["left of its budget of 0.025 GB: no other job would start after it"]),
        (0.5 * GB, None, 10 * GB, ["It would wait for room. The disk has 0.5 GB free"]),
        (
            50 * GB,
            20_000_000,
            None,
            ["It would wait for room. The data folder takes 21 MB of its budget of 20 MB"],
        ),
    ],
)
def test_a_training_is_told_of_disk_and_budget_before(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    budget: int | None,
    takes: int | None,
    told: list[str],
) -> None:
    write(world.folder.run(1) / "a.bin", 20_500_000 if budget in (20_000_000, 25_000_000) else 10)
    set_free(monkeypatch, free)
    disk.set_budget(world.db, budget, USER)
    found = disk_warnings(world.db, world.settings, takes, free)
    assert len(found) == len(told)
    assert all(words in warning for words, warning in zip(told, found, strict=True)), found


# going on ---------------------------------------------------------------------------------------------------


def test_a_paused_job_is_told_how_much_it_waits_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 0.4 * GB)
    job = paused(world)
    assert disk_guard.wake(world.db, world.settings) == []
    words = "the disk is full; goes on by itself when 1.2 GB are free (0.4 GB now)"
    assert store.get_job(world.db, job.id).reason == words
    assert disk_guard.pause_words(world.db, world.settings, job) == words
    set_free(monkeypatch, 1.3 * GB)
    assert disk_guard.wake(world.db, world.settings) == [job.id]
    woken = store.get_job(world.db, job.id)
    assert woken.status is JobStatus.QUEUED
    assert woken.reason == ""
    assert woken.not_before is None
    assert disk_guard.pause_words(world.db, world.settings, woken) == ""


def test_a_little_room_wakes_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """New jobs start from the floor on; who met a full disk waits for more, so as not to come and go."""
    set_free(monkeypatch, 1.1 * GB)
    paused(world)
    assert disk_guard.has_room(world.db, world.settings) == ""
    assert disk_guard.wake(world.db, world.settings) == []


def test_a_training_waits_for_its_next_checkpoint(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = paused(world, "dpo", dataset="pairs", model="gone/away")
    folder = world.folder.run(job.id) / "checkpoints" / "checkpoint-4"
    write(folder / "model.safetensors", 3_000_000)
    disk_guard.set_floor(world.db, 1_000_000, USER)
    set_free(monkeypatch, 4_200_000)
    assert disk_guard.wake(world.db, world.settings) == []
    assert "when 4.3 MB are free (4.2 MB now)" in store.get_job(world.db, job.id).reason
    set_free(monkeypatch, 4_400_000)
    assert disk_guard.wake(world.db, world.settings) == [job.id]


def test_room_for_one_wakes_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (paused(world) for _ in range(3))
    world.db.conn.execute("UPDATE jobs SET priority = 1 WHERE id = ?", [third.id])
    disk_guard.set_floor(world.db, 1_000_000, USER)
    set_free(monkeypatch, 1_600_000)  # each needs a quarter of the floor above it
    assert disk_guard.wake(world.db, world.settings) == [third.id, first.id]
    assert store.get_job(world.db, second.id).status is JobStatus.PAUSED


def test_over_budget_nobody_is_woken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 50 * GB)
    job = paused(world)
    disk.set_budget(world.db, disk.SMALLEST_BUDGET, USER)
    write(world.folder.run(9) / "a.bin", disk.SMALLEST_BUDGET)
    assert disk_guard.wake(world.db, world.settings) == []
    assert "its budget of 10 MB" in store.get_job(world.db, job.id).reason
    disk.set_budget(world.db, None, USER)
    assert disk_guard.wake(world.db, world.settings) == [job.id]


def test_one_that_comes_and_goes_rests_ever_longer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another disk than the data folder's may be the full one; a job that came further rests not."""
    set_free(monkeypatch, 50 * GB)
    job = paused(world)
    rests: list[str | None] = []
    for _ in range(3):
        assert disk_guard.wake(world.db, world.settings) == [job.id]
        rests.append(store.get_job(world.db, job.id).not_before)
        attempt = store.start_attempt(world.db, job.id)
        store.move(world.db, job.id, JobStatus.STARTING)
        store.move(world.db, job.id, JobStatus.PAUSED, "full")
        store.end_attempt(world.db, attempt.id, JobStatus.PAUSED, "full", "disk")
    assert rests[0] is None
    assert rests[1] is not None
    assert rests[2] is not None
    assert now() < rests[1] < rests[2]
    store.mark_advanced(world.db, attempt.id)
    assert disk_guard.wake(world.db, world.settings) == [job.id]
    assert store.get_job(world.db, job.id).not_before is None


def test_one_that_was_stopped_meanwhile_stays_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 50 * GB)
    job = paused(world)
    real = disk_guard.needed

    def needed(*arguments: object) -> int:
        store.move(world.db, job.id, JobStatus.STOPPED, "stopped while it was paused")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(disk_guard, "needed", needed)
    assert disk_guard.wake(world.db, world.settings) == []
    assert store.get_job(world.db, job.id).status is JobStatus.STOPPED


def test_words_are_not_written_at_every_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = paused(world)
    written: list[str] = []

    def explain(db: Database, job_id: int, words: str) -> None:
        written.append(words)
        explain_pause(db, job_id, words)

    monkeypatch.setattr("jobs.disk_guard.explain_pause", explain)
    for free in range(40):
        set_free(monkeypatch, free * 20_000_000)
        disk_guard.wake(world.db, world.settings)
    assert len(written) == 1
    assert store.get_job(world.db, job.id).reason == written[0]


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
