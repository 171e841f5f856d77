"""A whole data folder on a small file system that is filled on purpose: database, supervisor, workers, and all.

Jobs are paused with their reason, nothing that was complete is lost, and once there is room they go on by
themselves to the same end.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factories import USER, World, open_world
from jobs import bin as recycling
from jobs import disk_guard, queue
from jobs.checkpoints import is_whole, list_checkpoints
from jobs.disk import folder_bytes
from jobs.event_file import read_events
from jobs.freezing import freeze
from jobs.runs import RunFolder
from storage import jobs as store
from storage import pairs
from storage.adapters import list_adapters
from storage.database import session
from storage.lifecycle import ENDED, JobStatus
from storage.records import Attempt, Job
from storage.rows import rows
from storage.upkeep import check
from supervised import started_by
from tiny import tiny_llava

pytestmark = pytest.mark.slow

STEPS = 40
# Far more answers than fit into what the disk leaves, however late it is filled on a busy machine.
SAMPLES, CANDIDATES = 80, 8
Wait = Callable[..., None]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    """A data folder on a file system of 16 MB, whose database nobody has open but the supervisor."""
    root = tmp_path / "data"
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(root)]
    try:
        refused = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        mounted = os.path.ismount(root)
    except OSError as error:
        refused, mounted = str(error), False
    if not mounted:
        pytest.skip(f"THE FULL DISK IS NOT TESTED: no file system can be mounted here ({refused.strip()})")
    world = open_world(root)
    try:
        yield world
    finally:
        world.db.close()
        for process in started_by(world):
            with contextlib.suppress(Exception):
                process.kill()
                process.wait(30)
        subprocess.run(["umount", "-l", str(root)], check=True)


def fill(world: World, leave: int = 0) -> Path:
    """Take all of the disk but so many bytes; returns what takes it."""
    filler = world.folder.root / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    os.truncate(filler, max(0, filler.stat().st_size - leave))
    return filler


def now(world: World, job: Job) -> tuple[Job, list[Attempt]]:
    """The job and its attempts; on a full disk the database may not even be opened at once."""
    for _ in range(200):
        with contextlib.suppress(Exception), session(world.folder) as db:
            return store.get_job(db, job.id), store.attempts_of(db, job.id)
        time.sleep(0.05)
    pytest.fail("the database cannot be opened")


def events(world: World, job: Job, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(world.folder.run(job.id) / "events.jsonl") if event["kind"] == kind]


def log_of(world: World) -> str:
    return (world.folder.runtime / "supervisor.log").read_text()


def whole(world: World) -> list[object]:
    """What is wrong with the data folder."""
    with session(world.folder) as db:
        return list(check(db, world.folder))


def pause(world: World, job: Job, wait_for: Wait) -> Job:
    """Wait until the job is paused with its words."""

    def paused() -> bool:
        found, _ = now(world, job)
        assert found.status not in ENDED, f"{found.status}: {found.reason}\n{log_of(world)}"
        return found.status is JobStatus.PAUSED and "goes on by itself when" in found.reason

    wait_for(paused, "the job is paused, and says for how much it waits", seconds=120)
    return now(world, job)[0]


def finish(world: World, job: Job, wait_for: Wait) -> list[Attempt]:
    wait_for(lambda: now(world, job)[0].status in ENDED, "the job ends", seconds=240)
    ended, attempts = now(world, job)
    assert ended.status is JobStatus.DONE, f"{ended.reason}\n{log_of(world)}"
    return attempts


@pytest.mark.parametrize("leave", [0, 20_000])
def test_a_generation_on_a_full_disk(small: World, wait_for: Wait, leave: int) -> None:
    """Each answer is there once, whether the disk leaves a few words to the worker or none."""
    for number in range(1, SAMPLES + 1):
        small.sample(number, colour=1)
    values = {
        "model": str(tiny_llava()),
        "dtype": "float32",
        "candidates": CANDIDATES,
        "max_new_tokens": 16,
        "batch_size": 2,
    }
    job = queue.submit(small.db, small.settings, "generate", values, USER)
    small.db.close()
    wait_for(lambda: len(events(small, job, "candidate")) > 5, "there are answers", seconds=120)
    filler = fill(small, leave)
    paused = pause(small, job, wait_for)
    # The floor of so small a disk is 0.34 MB; who met a full one waits for a quarter more.
    assert paused.reason.startswith("the disk is full; goes on by itself when 419 KB are free ("), paused.reason
    written = Counter((event["sample_id"], event["number"]) for event in events(small, job, "candidate"))
    assert 5 < len(written) < SAMPLES * CANDIDATES
    assert whole(small) == []
    filler.unlink()
    attempts = finish(small, job, wait_for)
    assert [attempt.outcome for attempt in attempts] == ["paused", "done"]
    assert attempts[0].cause == "disk"
    found = Counter((event["sample_id"], event["number"]) for event in events(small, job, "candidate"))
    assert set(written) <= set(found)
    assert len(found) == SAMPLES * CANDIDATES
    assert set(found.values()) == {1}, "nothing twice"
    with session(small.folder) as db:
        kept = rows(db, "SELECT sample_id, number FROM candidates WHERE job_id = ?", [job.id])
    assert sorted((row["sample_id"], row["number"]) for row in kept) == sorted(found)
    assert whole(small) == []


def submit_training(world: World) -> Job:
    """A tiny one that writes many checkpoints."""
    values = {
        "dataset": "shapes",
        "model": str(tiny_llava()),
        "dtype": "float32",
        "max_steps": STEPS,
        "epochs": 100,
        "batch_size": 2,
        "global_batch": 2,
        "lora_r": 64,
        "lora_dropout": 0.2,
        "evaluations": STEPS // 2,
        "watched_samples": 0,
        "watched_prompts": "",
    }
    return queue.submit(world.db, world.settings, "dpo", values, USER)


def prepare_pairs(world: World) -> None:
    made = world.job()
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    for number in range(1, 9):
        one, two = world.candidates(world.sample(number), ["It is a circle.", "circle"], made)
        pairs.choose_by_hand(world.db, USER, one.id, two.id)
    freeze(world.db, USER, "shapes", heldout_percent=25)
    # It belongs to no run folder, which the check would miss.
    world.folder.run(made.id).mkdir()
    (world.folder.run(made.id) / "job.json").write_text("{}")


def test_a_training_on_a_full_disk(small: World, wait_for: Wait) -> None:
    """Twice: once nothing can be written at all, and once not all of a checkpoint."""
    prepare_pairs(small)
    plain, hindered = submit_training(small), submit_training(small)
    small.db.close()
    finish(small, plain, wait_for)
    run = RunFolder(small.folder.run(hindered.id))
    outcomes = []
    for leave, step in ((0, 6), (150_000, 20)):
        wait_for(
            lambda step=step: any(one["step"] >= step for one in events(small, hindered, "metric")),
            f"step {step}",
            seconds=120,
        )
        filler = fill(small, leave)
        pause(small, hindered, wait_for)
        outcomes.append("paused")
        found = list_checkpoints(run.checkpoints)
        assert found != [], "the newest whole one stays until the next is whole"
        assert all(is_whole(one) for one in found), "no half-written one stays"
        assert folder_bytes(found[0]) > leave, "or another would have had room"
        assert whole(small) == []
        filler.unlink()
        # Else the second round may find it paused still, and take that for its own doing.
        wait_for(lambda: now(small, hindered)[0].status is not JobStatus.PAUSED, "it goes on", seconds=120)
    attempts = finish(small, hindered, wait_for)
    assert [attempt.outcome for attempt in attempts] == [*outcomes, "done"]
    assert [attempt.cause for attempt in attempts] == ["disk", "disk", ""]
    with session(small.folder) as db:
        curves = [store.metrics_of(db, job.id) for job in (plain, hindered)]
        adapters = {adapter.job_id: adapter.sha256 for adapter in list_adapters(db)}
    assert [step for step, _ in curves[1]["loss"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in curves[1]["heldout_loss"]] == [step for step, _ in curves[0]["heldout_loss"]]
    weights = [
        load_file(small.folder.adapters / adapters[job.id] / "adapter_model.safetensors")
        for job in (plain, hindered)
    ]
    assert max(float(torch.max(torch.abs(weights[0][name] - weights[1][name]))) for name in weights[0]) < 1e-6
    assert not run.checkpoints.exists()
    assert whole(small) == []


def test_the_bin_makes_room_on_a_full_disk(small: World, wait_for: Wait) -> None:
    """Where not a byte is left, deleting says what to do, and emptying the bin does it."""
    small.sample()
    old = [small.job() for _ in range(2)]
    small.db.conn.execute("UPDATE jobs SET status = 'failed'")
    for job in old:
        small.folder.run(job.id).mkdir()
        (small.folder.run(job.id) / "log.txt").write_bytes(os.urandom(3_000_000))
    recycling.delete_run(small.db, small.settings, old[0].id, USER)
    fill(small)
    assert disk_guard.has_room(small.db, small.settings).startswith("The disk has 0 bytes free")
    assert recycling.purge(small.db, small.settings).jobs == (old[0].id,)
    assert disk_guard.has_room(small.db, small.settings) == ""
    recycling.delete_run(small.db, small.settings, old[1].id, USER)
    assert recycling.purge_old(small.db, small.settings).jobs == ()
    assert [job.id for job in recycling.deleted_runs(small.db)] == [old[1].id]
