"""kill -9 of the app in mid-training: the job goes on, and a restart shows it with no step missing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from browser import processes_of, start_app
from factories import USER, open_world
from jobs import queue
from jobs.freezing import freeze
from storage import jobs as store
from storage import pairs
from storage.lifecycle import ENDED, JobStatus
from storage.rows import rows
from tiny import tiny_llava

STEPS = 60


@pytest.mark.slow
def test_a_training_outlives_the_app(tmp_path: Path, wait_for: Callable[..., None]) -> None:
    world = open_world(tmp_path / "data")
    made = world.job()
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    for number in range(1, 9):
        one, two = world.candidates(world.sample(number), ["It is a circle.", "circle"], made)
        pairs.choose_by_hand(world.db, USER, one.id, two.id)
    freeze(world.db, USER, "shapes", heldout_percent=25)
    app, _ = start_app(world.folder.root)
    again = None
    try:
        values = {"dataset": "shapes", "model": str(tiny_llava()), "max_steps": STEPS, "batch_size": 2}
        values |= {"accumulation": 1, "lora_r": 4, "evaluations": 2, "epochs": 100}
        job = queue.submit(world.db, world.settings, "dpo", values, USER)
        wait_for(lambda: store.metrics_of(world.db, job.id).get("loss"), "the training has begun")
        app.send_signal(signal.SIGKILL)
        app.wait()
        assert store.get_job(world.db, job.id).status is JobStatus.RUNNING
        again, address = start_app(world.folder.root)
        assert httpx.get(f"{address}/jobs?job={job.id}", timeout=30).status_code == 200
        wait_for(lambda: store.get_job(world.db, job.id).status in ENDED, "the job ends", seconds=180)
        ended = store.get_job(world.db, job.id)
        assert ended.status is JobStatus.DONE, ended.reason
        steps = [step for step, _ in store.metrics_of(world.db, job.id)["loss"]]
        assert steps == list(range(1, STEPS + 1))
        assert [attempt.number for attempt in store.attempts_of(world.db, job.id)] == [1]
        assert len(rows(world.db, "SELECT * FROM adapters WHERE job_id = ?", [job.id])) == 1
    finally:
        for process in [app, again]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        for left in processes_of(world.folder.root):
            left.kill()
        world.db.close()
