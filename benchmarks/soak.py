"""A page left open: `python benchmarks/soak.py [--minutes 10] [--every 30]`.

The app on a data folder of its own, a Chromium tab on /jobs with a training opened that never ends, and jobs that
end beside it. What a worker would write, this script writes: progress, metrics, notes and a growing log, twice a
second, so that every tick of the page has something new to draw. Every `every` seconds it measures the tab's
JavaScript heap and DOM nodes, after a garbage collection, and the app's resident memory.

Prints one JSON line. `*_first` and `*_last` are the medians of the first and the last three samples after a minute
to warm up; `*_per_hour` are slopes of a least-squares line over those samples. Curves, notes and the list of jobs
are as long as they get by then, so that what still grows is a leak.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import browsing, processes_of, start_app  # noqa: E402
from factories import World, open_world  # noqa: E402
from jobs.runs import RunFolder  # noqa: E402
from jobs.settings import local_user  # noqa: E402
from storage import jobs as store  # noqa: E402
from storage.database import immediate, session  # noqa: E402
from storage.folder import DataFolder  # noqa: E402
from storage.lifecycle import JobStatus  # noqa: E402
from storage.records import Job  # noqa: E402
from workbench.job_look import PAGE  # noqa: E402

STEPS = 120  # of the curves; told again and again, so that they are drawn anew and do not grow
WARM_UP = 60.0  # seconds
MEASURES = ("heap_mb", "nodes", "app_mb")


def begin_training(world: World, worker: subprocess.Popen[bytes]) -> Job:
    """A running training whose worker is a process that sleeps: the supervisor adopts it by PID and start time."""
    job = world.job("dpo", dataset="soak", max_steps=STEPS)
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir(parents=True)
    attempt = store.start_attempt(world.db, job.id)
    store.identify(world.db, attempt.id, worker.pid, psutil.Process(worker.pid).create_time(), worker.pid)
    for status in (JobStatus.STARTING, JobStatus.RUNNING):
        store.move(world.db, job.id, status)
    return job


class Worker(threading.Thread):
    """Writes what a training's worker would, until it is told to leave."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(daemon=True)
        self._run, self.leave = run, threading.Event()

    def run(self) -> None:
        number = 0
        with self._run.events.open("a", buffering=1) as events, self._run.log.open("a", buffering=1) as log:
            while not self.leave.wait(0.5):
                step = number % STEPS + 1
                values = {"loss": math.sin(number / 9), "reward_margin": math.cos(number / 9)}
                told: list[dict[str, Any]] = [
                    {"kind": "progress", "done": step, "total": STEPS, "unit": "steps"},
                    {"kind": "metric", "step": step, "values": values},
                ]
                if number % 2 == 0:
                    told.append({"kind": "note", "text": f"note {number}"})
                events.writelines(json.dumps({"time": time.time(), **event}) + "\n" for event in told)
                log.write(f"step {number}: {values}\n" * 5)
                number += 1


def end_one(folder: DataFolder) -> None:
    """A job that ends beside the training: the list changes, a notice comes and goes."""
    with session(folder) as db, immediate(db):
        job = store.add_job(
            db, kind="judge", config={"judge": "easy-vqa-rules"}, user=local_user(), slot_kind="network"
        )
        for status in (JobStatus.STARTING, JobStatus.DONE):
            store.move(db, job.id, status)


def measure(page: Any, devtools: Any, app: psutil.Process) -> dict[str, float]:
    devtools.send("HeapProfiler.collectGarbage")
    found = {entry["name"]: entry["value"] for entry in devtools.send("Performance.getMetrics")["metrics"]}
    return {
        "heap_mb": found["JSHeapUsedSize"] / 1e6,
        "nodes": found["Nodes"],
        "app_mb": app.memory_info().rss / 1e6,
    }


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the least-squares line, per hour."""
    return statistics.linear_regression(times, values).slope * 3600 if len(times) > 1 else 0.0


def soak(minutes: float, every: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        world = open_world(data)
        for _ in range(PAGE):
            end_one(world.folder)
        sleeper = subprocess.Popen(["sleep", str(int(minutes * 60 + 600))], start_new_session=True)
        job = begin_training(world, sleeper)
        worker = Worker(RunFolder(world.folder.run(job.id)))
        world.db.close()
        worker.start()
        app = None
        try:
            app, address = start_app(data)
            return watch(app, address, world.folder, job, minutes, every)
        finally:
            worker.leave.set()
            worker.join()
            for process in (app, sleeper):
                if process is not None:
                    process.kill()
                    process.wait()
            for left in processes_of(data):
                left.kill()


def watch(
    app: subprocess.Popen[bytes], address: str, folder: DataFolder, job: Job, minutes: float, every: float
) -> dict[str, Any]:
    process = psutil.Process(app.pid)
    times: list[float] = []
    samples: list[dict[str, float]] = []
    with browsing() as page:
        page.goto(f"{address}/jobs?job={job.id}")
        page.locator("#job-charts svg").first.wait_for()
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        began = time.monotonic()
        ended = 0
        while (passed := time.monotonic() - began) < minutes * 60:
            page.wait_for_timeout(1000 * min(every, max(1.0, minutes * 60 - passed)))
            end_one(folder)
            ended += 1
            passed = time.monotonic() - began
            found = measure(page, devtools, process)
            shown = {name: round(value, 1) for name, value in found.items()}
            print(json.dumps({"seconds": round(passed), **shown}), file=sys.stderr, flush=True)
            if passed >= min(WARM_UP, minutes * 30):
                times.append(passed)
                samples.append(found)
        words = page.locator("#job-head").inner_text()
        problems = list(page.problems)
    with session(folder) as db:
        read = store.attempts_of(db, job.id)[-1].event_offset
    assert f"of {STEPS} steps" in words, f"the page does not show the training any more: {words}"
    figures: dict[str, Any] = {}
    for name in MEASURES:
        values = [sample[name] for sample in samples]
        figures[f"{name}_first"] = round(statistics.median(values[:3]), 2)
        figures[f"{name}_last"] = round(statistics.median(values[-3:]), 2)
        figures[f"{name}_per_hour"] = round(slope(times, values), 2)
    return {
        "benchmark": "soak",
        "minutes": minutes,
        "samples": len(samples),
        **figures,
        "jobs_ended": ended,
        "events_read_kb": round(read / 1000),
        "problems": len(problems),
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the page stays open")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two samples")
    given = parser.parse_args()
    print(json.dumps(soak(given.minutes, given.every)))


if __name__ == "__main__":
    main()
