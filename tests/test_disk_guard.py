"""Whether the disk leaves room for jobs: floor, budget, reserve; who waits for room, and who is woken."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlite_utils import Database

from disks import GB, forget_all, paused, set_free, taken, write
from factories import USER, World, settings_for
from jobs import disk, disk_guard, queue
from jobs.preflight import disk_warnings
from jobs.supervisor import Supervisor
from storage import jobs as store
from storage.errors import UserError
from storage.folder import DataFolder
from storage.lifecycle import JobStatus
from storage.pauses import explain_pause
from storage.records import Job, now
from storage.units import in_words


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    forget_all()


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
