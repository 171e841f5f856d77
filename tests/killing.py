"""Real jobs under kill -9: the app, the supervisor and workers die at random, and everything is there in the end.

What the fault test and benchmarks/faults.py share. The jobs are packed and queued without a supervisor's being
started: whoever brings it back is the app, which is killed, too.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from factories import USER, World, open_world
from gemini_server import GeminiServer
from jobs import queue
from jobs.configs import parse_config
from jobs.event_file import read_events
from jobs.freezing import freeze
from jobs.judges.terms import ModelTerms, Terms, write_terms
from jobs.processes import PROJECT
from jobs.queue import Order
from jobs.runs import RunFolder
from storage import easy_vqa, pairs
from storage import jobs as store
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from storage.rows import rows
from storage.upkeep import check

MODEL, KEY = "gemini-test", "sk-key-of-the-fault-test-0123456789"
TARGETS = ("app", "supervisor", "worker")
COMING_SECONDS = 15.0  # else the app, which takes longest to come back, would be killed again and again


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Attributes:
        samples: that are answered and judged.
        steps: of each training.
        pairs: it is trained on.
    """

    samples: int = 120
    answers: int = 3
    tokens: int = 24
    steps: int = 120
    pairs: int = 12


@dataclass
class Outcome:
    """What the kills came to: all but `kills`, `jobs`, `attempts` and `steps_again` shall be 0.

    Attributes:
        lost: items or steps that are missing, jobs that are not done, adapters that are not there.
        duplicated: items that were made twice, adapters that were booked twice.
        unexplained: ends of attempts or jobs without a reason or a cause.
        diverged: steps that were done again after a checkpoint and came to another loss.
        findings: of `python -m storage check`.
        left: workers that still run.
        steps_again: steps since the last checkpoint before a kill, which are done once more.
    """

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TARGETS, 0))
    jobs: int = 0
    attempts: int = 0
    lost: int = 0
    duplicated: int = 0
    unexplained: int = 0
    diverged: int = 0
    findings: int = 0
    left: int = 0
    steps_again: int = 0
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)

    def blame(self, what: str, number: int, text: str) -> None:
        """Count what should not be, and say it."""
        if number:
            setattr(self, what, getattr(self, what) + number)
            self.told.append(f"{what} {number}: {text}")


class Faults:
    """A data folder with the demo's data, an app that is started again whenever it dies, and a killer.

    Args:
        seed: of who is killed when.
        base: the model folder that answers and is trained.
    """

    def __init__(self, root: Path, base: Path, server: GeminiServer, seed: int, size: Size) -> None:
        self.world: World = open_world(root)
        self._base, self._server, self._size = base, server, size
        self._random = random.Random(seed)
        self._app: subprocess.Popen[bytes] | None = None
        self._jobs: list[Job] = []
        self.outcome = Outcome()
        self._prepare()

    def _prepare(self) -> None:
        world, size = self.world, self._size
        easy_vqa.import_easy_vqa(world.db, world.folder, size.samples)
        ids = [row["id"] for row in rows(world.db, "SELECT id FROM samples ORDER BY id")]
        made = world.job()
        world.db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [made.id])
        world.folder.run(made.id).mkdir(parents=True)
        (world.folder.run(made.id) / "job.json").write_text("{}")  # for the check
        for place, sample in enumerate(ids):
            one, two = world.candidates(sample, ["It is a circle.", "circle"], made)
            if place < size.pairs:
                pairs.choose_by_hand(world.db, USER, one.id, two.id)
        freeze(world.db, USER, "shapes", heldout_percent=25)
        row = {"input_price": 1.0, "output_price": 10.0, "requests_a_minute": 1_000_000}
        row |= {"tokens_a_minute": 10**12, "requests_a_day": 10**6}
        write_terms(world.folder.judges, Terms(models=(ModelTerms(model=MODEL, **row),), money_a_day=10_000.0))

    # the jobs ---------------------------------------------------------------------------------------------

    def submit(self, kind: str) -> None:
        """Queue one more job of a kind, which does all there is to do."""
        size, model = self._size, {"model": str(self._base), "dtype": "float32"}
        everything = {"only_missing": False}
        values: dict[str, dict[str, Any]] = {
            "generate": {
                **model,
                "samples": everything,
                "candidates": size.answers,
                "max_new_tokens": size.tokens,
                "batch_size": 2,
                "seed": len(self._jobs),
            },
            "judge": {
                "samples": everything,
                "judge": "gemini",
                "model": MODEL,
                "budget": 1000.0,
                "concurrency": 2,
            },
            "dpo": {
                **model,
                "dataset": "shapes",
                "name": f"policy-{len(self._jobs)}",
                "max_steps": size.steps,
                "epochs": 100.0,
                "batch_size": 2,
                "accumulation": 1,
                "lora_r": 4,
                "evaluations": max(1, size.steps // 10),
                "watched_tokens": 4,
                "keep_checkpoints": 2,
            },
        }
        prepared = queue.prepare(self.world.db, self.world.settings, parse_config(kind, values[kind]))
        order = Order(retries=50)  # kills may come faster than a model is loaded
        self._jobs.append(queue.enqueue(self.world.db, self.world.settings, prepared, USER, order))

    def _open(self, kind: str | None = None) -> list[Job]:
        found = [store.get_job(self.world.db, job.id) for job in self._jobs]
        return [job for job in found if job.status not in ENDED and kind in (None, job.kind)]

    # the processes ----------------------------------------------------------------------------------------

    def start_app(self) -> None:
        """Start app.py without waiting for it, as whoever looks after it would."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PLUMB_")}
        environment |= {"PLUMB_DATA": str(self.world.folder.root), "PLUMB_DEVICES": "cpu"}
        environment |= {"PLUMB_GEMINI_URL": self._server.url, "GEMINI_API_KEY": KEY}
        environment |= {"OMP_NUM_THREADS": "1", "PLUMB_SUPERVISOR_IDLE_SECONDS": "2"}
        with (self.world.folder.runtime / "app.log").open("ab") as log:
            self._app = subprocess.Popen(
                [sys.executable, "app.py", "--port", "0"],
                cwd=PROJECT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _app_lives(self) -> None:
        """One that has ended by itself brings no supervisor back, and nothing would ever be there to be killed."""
        if self._app is not None and (code := self._app.poll()) is not None:
            told = (self.world.folder.runtime / "app.log").read_text(errors="replace")[-2000:]
            raise AssertionError(f"the app has ended by itself with exit code {code}:\n{told}")

    def processes(self, target: str) -> list[psutil.Process]:
        """Those of this data folder that can be killed now."""
        if target == "app":
            return [psutil.Process(self._app.pid)] if self._app is not None and self._app.poll() is None else []
        word = {"supervisor": "supervise", "worker": "jobs.worker"}[target]
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("PLUMB_DATA") == str(self.world.folder.root)
                if ours and word in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill_one(self) -> bool:
        """Kill a process of a random kind, waiting a while for one to be there; False where none is."""
        targets = list(TARGETS)
        self._random.shuffle(targets)
        draw = self._random.random()
        deadline = time.monotonic() + COMING_SECONDS
        while not (there := self.processes(targets[0])) and time.monotonic() < deadline:
            time.sleep(0.2)
        for target in targets:
            there = there or self.processes(target)
            if not there:
                continue
            process = there[int(draw * len(there))]
            try:
                process.kill()
            except psutil.Error:
                return False
            self.outcome.kills[target] += 1
            if target == "app" and self._app is not None:
                self._app.wait()
                self.start_app()
            return True
        return False

    def rage(self, kills: int, pause: tuple[float, float], tell: Callable[[str], None]) -> None:
        """Kill so many processes, one every few seconds; there is always a job of each kind to be interrupted."""
        self.start_app()
        while sum(self.outcome.kills.values()) < kills:
            for kind in ("generate", "judge", "dpo"):
                if not self._open(kind):
                    self.submit(kind)
            time.sleep(self._random.uniform(*pause))
            self._app_lives()
            if self.kill_one():
                states = ", ".join(f"{job.id} {job.kind} {job.status} {job.done:g}" for job in self._open())
                tell(f"{sum(self.outcome.kills.values())} kills; {states}")

    def wait(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Until no job is open; what is still open after so many seconds is lost."""
        deadline = time.monotonic() + seconds
        shown = ""
        while (left := self._open()) and time.monotonic() < deadline:
            states = ", ".join(f"{job.id} {job.kind} {job.status}" for job in left)
            if states != shown:
                tell(f"left: {states}")
                shown = states
            time.sleep(0.5)

    def end(self) -> None:
        """End whatever runs, and close the database."""
        if self._app is not None and self._app.poll() is None:
            self._app.kill()
            self._app.wait()
        for target in ("supervisor", "worker"):
            for process in self.processes(target):
                process.kill()
        self.world.db.close()

    # the count --------------------------------------------------------------------------------------------

    def count(self) -> Outcome:
        """What is there, held against what should be."""
        world, outcome = self.world, self.outcome
        outcome.jobs = len(self._jobs)
        outcome.blame("left", len(self.processes("worker")), "workers still run")
        for job in (store.get_job(world.db, one.id) for one in self._jobs):
            name = f"job {job.id} ({job.kind})"
            outcome.blame("lost", int(job.status is not JobStatus.DONE), f"{name} is {job.status}: {job.reason}")
            unsaid = job.status is not JobStatus.DONE and not job.reason
            outcome.blame("unexplained", int(unsaid), f"{name} is {job.status} for no reason")
            attempts = store.attempts_of(world.db, job.id)
            outcome.attempts += len(attempts)
            dumb = [one.number for one in attempts if one.outcome != "done" and not (one.reason and one.cause)]
            outcome.blame("unexplained", len(dumb), f"attempts {dumb} of {name}")
            {"generate": self._count_answers, "judge": self._count_judgements, "dpo": self._count_steps}[job.kind](
                job
            )
        findings = check(world.db, world.folder)
        outcome.blame("findings", len(findings), "; ".join(f"{one.kind}: {one.what}" for one in findings[:5]))
        return outcome

    def _events(self, job: Job, kind: str) -> Iterator[dict[str, Any]]:
        run = RunFolder(self.world.folder.run(job.id))
        return (event for event in read_events(run.events) if event["kind"] == kind)

    def _items(self, job: Job, what: str, wanted: set[Any], told: Counter[Any], kept: list[Any]) -> None:
        twice = {key: number for key, number in told.items() if number > 1}
        self.outcome.blame(
            "duplicated", sum(twice.values()) - len(twice), f"{what} of job {job.id} were made twice"
        )
        self.outcome.blame("duplicated", len(kept) - len(set(kept)), f"{what} of job {job.id} are kept twice")
        self.outcome.blame("lost", len(wanted - set(told)), f"{what} of job {job.id} were never told")
        self.outcome.blame("lost", len(wanted - set(kept)), f"{what} of job {job.id} are not kept")

    def _sample_ids(self) -> list[int]:
        return [row["id"] for row in rows(self.world.db, "SELECT id FROM samples")]

    def _count_answers(self, job: Job) -> None:
        wanted = {(sample, number) for sample in self._sample_ids() for number in range(self._size.answers)}
        told = Counter((one["sample_id"], one["number"]) for one in self._events(job, "candidate"))
        sql = "SELECT sample_id, number FROM candidates WHERE job_id = ?"
        kept = [(row["sample_id"], row["number"]) for row in rows(self.world.db, sql, [job.id])]
        self._items(job, "answers", wanted, told, kept)

    def _count_judgements(self, job: Job) -> None:
        told = Counter(one["sample_id"] for one in self._events(job, "judgement"))
        # Of whatever state: after seven generate jobs a sample has more answers than a judge has letters.
        sql = "SELECT sample_id FROM judgements WHERE job_id = ?"
        kept = [row["sample_id"] for row in rows(self.world.db, sql, [job.id])]
        self._items(job, "judgements", set(self._sample_ids()), told, kept)

    def _count_steps(self, job: Job) -> None:
        losses: dict[int, list[float]] = {}
        for event in self._events(job, "metric"):
            if "loss" in event["values"]:
                losses.setdefault(event["step"], []).append(event["values"]["loss"])
        curve = [step for step, _ in store.metrics_of(self.world.db, job.id).get("loss", [])]
        told = Counter(dict.fromkeys(losses, 1))
        self._items(job, "steps", set(range(1, self._size.steps + 1)), told, curve)
        self.outcome.steps_again += sum(len(values) - 1 for values in losses.values())
        strayed = [step for step, values in losses.items() if max(values) - min(values) > 1e-4]
        self.outcome.blame("diverged", len(strayed), f"steps {strayed[:5]} of job {job.id} came to another loss")
        adapters = rows(self.world.db, "SELECT id FROM adapters WHERE job_id = ?", [job.id])
        self.outcome.blame("lost", int(not adapters), f"the adapter of job {job.id}")
        self.outcome.blame("duplicated", max(0, len(adapters) - 1), f"adapters of job {job.id}")


@contextmanager
def raging(
    root: Path,
    base: Path,
    *,
    kills: int,
    seed: int,
    size: Size,
    pause: tuple[float, float],
    seconds: float,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[Faults]:
    """Kill, wait for the end, and count; whatever was started is ended afterwards.

    Args:
        pause: seconds between two kills, from and to.
        seconds: that the jobs have to end after the last kill.
    """
    began = time.monotonic()
    with GeminiServer(key=KEY, latency=0.25) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMINI_API_KEY", KEY)  # without one no judge job can be queued
        faults = Faults(root, base, server, seed, size)
        try:
            faults.rage(kills, pause, tell)
            faults.wait(seconds, tell)
            faults.outcome.seconds = round(time.monotonic() - began, 1)
            faults.count()
            yield faults
        finally:
            faults.end()
