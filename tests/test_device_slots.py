"""Jobs of several devices: claimed all at once, starved by nobody; what can never run fails; chats make room."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from factories import USER, World
from jobs import placement, steering
from jobs.processes import worker_environment
from jobs.runs import RunFolder
from jobs.settings import Settings
from jobs.supervisor import Supervisor
from storage import jobs as store
from storage.errors import Conflict
from storage.folder import DataFolder
from storage.lifecycle import JobStatus
from storage.records import Job

GPUS = ("cuda:0", "cuda:1", "cuda:2")


class Sleepers:
    """A supervisor with three GPUs, whose workers are sleeping processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.supervisor = Supervisor(world.settings.model_copy(update={"devices": GPUS}))
        self.children: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, folder: object, job: Job) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        self.children[job.id] = child
        return child

    def step(self) -> None:
        self.supervisor.step(self.world.db)

    def chat(self) -> Job:
        """A chat model at work."""
        job = add(self.world, kind="serve")
        self.world.folder.run(job.id).mkdir(parents=True)
        self.step()
        store.move(self.world.db, job.id, JobStatus.RUNNING)
        store.set_progress(self.world.db, job.id, port=1)
        return job

    def end(self, job: Job) -> None:
        """Its worker is over, and has said so."""
        store.move(self.world.db, job.id, JobStatus.DONE)
        for attempt in store.attempts_of(self.world.db, job.id):
            store.end_attempt(self.world.db, attempt.id, JobStatus.DONE, "")

    def kill(self, job: Job) -> None:
        self.children[job.id].kill()
        self.children[job.id].wait()


@pytest.fixture
def sleepers(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sleepers]:
    made = Sleepers(world)
    monkeypatch.setattr("jobs.supervisor.spawn_worker", made.spawn)
    monkeypatch.setattr("jobs.supervisor.SPEAK_SECONDS", 0.0)
    monkeypatch.setattr("jobs.supervisor.BACKOFF_SECONDS", (0.0,))
    yield made
    for child in made.children.values():
        child.kill()
        child.wait()


def add(world: World, processes: int = 1, device: str | None = None, kind: str = "dpo") -> Job:
    config = {"model": "demo", "processes": processes} if kind == "dpo" else {"model": "demo"}
    return store.add_job(world.db, kind=kind, config=config, user=USER, slot_kind="device", device=device)


def slots(world: World, *jobs: Job) -> list[str | None]:
    return [store.get_job(world.db, job.id).slot for job in jobs]


def leaving(folder: DataFolder, job: Job) -> bool:
    """In the place of asking a chat model, which is idle unless it leaves already."""
    return job.status is not JobStatus.RUNNING


def statuses(world: World, *jobs: Job) -> list[JobStatus]:
    return [store.get_job(world.db, job.id).status for job in jobs]


def test_a_job_takes_its_devices_at_once_and_younger_ones_do_not_overtake_it_there(
    world: World, sleepers: Sleepers
) -> None:
    first, second = add(world), add(world)
    sleepers.step()
    assert slots(world, first, second) == ["cuda:0", "cuda:1"]
    wide, young, network = add(world, 2), add(world), world.job("judge")
    world.db.conn.execute("UPDATE jobs SET slot_kind = 'network' WHERE id = ?", [network.id])
    sleepers.step()
    assert slots(world, wide, young, network) == [None, None, "network-0"], "cuda:2 is kept for the wide one"
    sleepers.end(first)
    sleepers.step()
    assert slots(world, wide, young) == ["cuda:0,cuda:2", None]
    sleepers.end(second)
    sleepers.step()
    assert slots(world, young) == ["cuda:1"]
    wider, late = add(world, 3), add(world, 1, "cuda:1")
    sleepers.end(young)
    sleepers.step()
    assert slots(world, wider, late) == [None, None]
    sleepers.end(wide)
    sleepers.step()
    assert slots(world, wider, late) == ["cuda:0,cuda:1,cuda:2", None]


@given(data=strategies.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_job_gets_its_devices_in_the_end(world: World, data: strategies.DataObject) -> None:
    """No slot is held twice, no job has a part of what it wants, and nobody takes what an older one waits for."""
    world.db.conn.execute("DELETE FROM jobs")
    wish = strategies.one_of(
        strategies.tuples(strategies.integers(1, 3), strategies.none()),
        strategies.tuples(strategies.just(1), strategies.sampled_from(GPUS)),
    )
    waiting = [add(world, count, device) for count, device in data.draw(strategies.lists(wish, min_size=1))]
    wanted = {job.id: placement.wanted(job.device, job.config["processes"], GPUS) for job in waiting}
    running: list[Job] = []
    while waiting or running:
        held = {slot for job in running for slot in job.slots}
        free = [slot for slot in GPUS if slot not in held]
        claimed = store.claim_next(world.db, "device", *free, wanted=lambda job: wanted[job.id])
        if claimed is not None:
            assert held.isdisjoint(claimed.slots)
            assert len(claimed.slots) == wanted[claimed.id].number
            assert set(claimed.slots) <= set(wanted[claimed.id].slots)
            waiting = [job for job in waiting if job.id != claimed.id]
            older = [wanted[job.id].slots for job in waiting if job.id < claimed.id]
            assert all(set(claimed.slots).isdisjoint(theirs) for theirs in older)
            running.append(claimed)
        else:
            assert running, "with every device free the oldest starts"
            ended = running.pop(data.draw(strategies.integers(0, len(running) - 1)))
            world.db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [ended.id])


def test_idle_chats_make_room_for_a_job_of_several_devices_where_that_is_enough(
    world: World, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [sleepers.chat(), sleepers.chat()]
    training = add(world)
    sleepers.step()
    assert slots(world, *chats, training) == list(GPUS)
    wide = add(world, 2)
    monkeypatch.setattr("jobs.making_room.is_serving", lambda folder, job: job.id == chats[1].id)
    sleepers.step()
    assert statuses(world, *chats) == [JobStatus.RUNNING] * 2, "one is busy: it would have left for nothing"
    monkeypatch.setattr("jobs.making_room.is_serving", leaving)
    sleepers.step()
    assert statuses(world, *chats) == [JobStatus.STOPPING] * 2
    assert all(RunFolder(world.folder.run(chat.id)).stop_requested() for chat in chats)
    assert statuses(world, wide) == [JobStatus.QUEUED]


def test_a_device_that_is_free_counts_and_one_chat_leaves_for_one_job(
    world: World, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [sleepers.chat(), sleepers.chat()]
    monkeypatch.setattr("jobs.making_room.is_serving", leaving)
    add(world, 2)  # cuda:2 is free
    for _ in range(3):
        sleepers.step()
    assert sorted(statuses(world, *chats)) == [JobStatus.RUNNING, JobStatus.STOPPING]


def test_what_comes_free_for_one_job_is_not_counted_for_the_next(
    world: World, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [sleepers.chat(), sleepers.chat()]
    monkeypatch.setattr("jobs.making_room.is_serving", leaving)
    add(world, 2)
    sleepers.step()
    assert JobStatus.RUNNING in statuses(world, *chats), "the first to leave, and cuda:2, are for the wide one"
    add(world)
    sleepers.step()
    assert statuses(world, *chats) == [JobStatus.STOPPING] * 2


def test_a_job_for_more_devices_than_there_are_fails_instead_of_waiting(world: World, sleepers: Sleepers) -> None:
    """It was submitted to a Plumb with more."""
    job = add(world, 4)
    sleepers.step()
    ended = store.get_job(world.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.reason.startswith(
        "processes = 4 needs as many GPUs, and this Plumb has 3 (cuda:0, cuda:1, cuda:2)"
    )


def test_on_the_cpu_all_processes_share_its_slot(world: World) -> None:
    assert placement.wanted(None, 4, ["cpu"]) == (("cpu",), 1)
    assert placement.wanted("cpu", 4, ["cpu", *GPUS]) == (("cpu",), 1)
    assert placement.wanted(None, 2, ["cpu", *GPUS]) == (GPUS, 2)
    assert placement.wanted(None, 1, ["cpu", *GPUS]) == (("cpu", *GPUS), 1)


def test_a_worker_of_several_devices_sees_all_of_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    job = world.job("dpo")
    world.db.conn.execute("UPDATE jobs SET slot = 'cuda:0,cuda:2' WHERE id = ?", [job.id])
    job = store.get_job(world.db, job.id)
    environment = worker_environment(world.folder, job)
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["PLUMB_WORKER_DEVICE"]) == ("0,2", "cuda:0,cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    assert worker_environment(world.folder, job)["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-c"


@pytest.mark.parametrize("kind", ["dpo", "steerlm", "rejection", "sft"])
def test_a_killed_training_goes_on_by_itself(world: World, sleepers: Sleepers, kind: str) -> None:
    job = add(world, kind=kind)
    RunFolder(world.folder.run(job.id)).path.mkdir()
    (world.folder.run(job.id) / "job.json").write_text("{}")
    sleepers.step()
    for number in range(1, 1 + job.retries):
        assert len(store.attempts_of(world.db, job.id)) == number
        sleepers.kill(job)
        sleepers.step()
    assert statuses(world, job) == [JobStatus.STARTING]
    sleepers.kill(job)
    sleepers.step()
    assert statuses(world, job) == [JobStatus.FAILED], "one that dies again and again has a reason"


def test_a_stopped_training_can_be_resumed(world: World, no_supervisor: None) -> None:
    job = world.job("dpo")
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir()
    (run.path / "job.json").write_text("{}")
    run.ask_to_stop()
    world.db.conn.execute("UPDATE jobs SET status = 'stopped', reason = 'by request' WHERE id = ?", [job.id])
    resumed = steering.resume(world.db, world.settings, job.id)
    assert (resumed.status, resumed.reason) == (JobStatus.QUEUED, "")
    assert not run.stop_requested()
    chat = world.job("serve")
    store.start_attempt(world.db, chat.id)
    with pytest.raises(Conflict, match="cannot go on where it ended; start it again"):
        steering.resume(world.db, world.settings, chat.id)


def test_memory_that_a_job_leaves_on_its_device_is_logged(
    world: World, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def holding(settings: Settings, slot: str, job_id: int) -> str:
        asked.append((slot, job_id))
        return f"{slot} holds 22 GB"

    monkeypatch.setattr("jobs.supervisor.leftover", holding)
    job = add(world, 2, kind="dpo")
    world.folder.run(job.id).mkdir(parents=True)
    sleepers.step()
    sleepers.kill(job)
    sleepers.step()
    assert asked == [("cuda:0", job.id), ("cuda:1", job.id)]
    assert f"job {job.id}: cuda:1 holds 22 GB" in capsys.readouterr().out


def with_file(sleepers: Sleepers) -> tuple[Job, Path]:
    """A job of two processes whose run folder holds accelerate's file."""
    config = {"model": "demo", "processes": 2, "accelerate_config": "/somewhere/accelerate.yaml"}
    job = store.add_job(sleepers.world.db, kind="dpo", config=config, user=USER, slot_kind="device")
    file = sleepers.world.folder.run(job.id) / "data" / placement.ACCELERATE_FILE
    file.parent.mkdir(parents=True)
    file.write_text("num_processes: 2\n")
    return job, file


def states(sleepers: Sleepers, *jobs: Job) -> list[str]:
    return [str(store.get_job(sleepers.world.db, job.id).status) for job in jobs]


def test_a_file_that_cannot_be_read_just_now_has_its_job_wait_and_no_other(
    sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, file), other = with_file(sleepers), add(sleepers.world)
    real = Path.read_bytes

    def stale(self: Path) -> bytes:
        if self == file:
            raise OSError(116, "Stale file handle", str(self))
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stale)
        sleepers.step()
        assert states(sleepers, job, other) == ["queued", "starting"]
        told = steering.waits_for(sleepers.world.db, store.get_job(sleepers.world.db, job.id))
        assert told == "its run folder cannot be read just now (Stale file handle)"
    sleepers.step()
    assert states(sleepers, job) == ["starting"]
    assert steering.waits_for(sleepers.world.db, job) == "", "the words go with the reason"


def test_a_run_folder_that_is_away_is_waited_for(sleepers: Sleepers) -> None:
    job, _ = with_file(sleepers)
    folder = sleepers.world.folder.run(job.id)
    folder.rename(folder.with_name("elsewhere"))
    sleepers.step()
    assert states(sleepers, job) == ["queued"]
    folder.with_name("elsewhere").rename(folder)
    sleepers.step()
    assert states(sleepers, job) == ["starting"]


def test_a_file_that_is_missing_fails_its_job_with_the_remedy(sleepers: Sleepers) -> None:
    job, file = with_file(sleepers)
    file.unlink()
    sleepers.step()
    found = store.get_job(sleepers.world.db, job.id)
    assert found.status is JobStatus.FAILED
    assert "accelerate.yaml is missing" in found.reason
    assert "jobs again" in found.reason
