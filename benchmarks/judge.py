"""Remote judging under a limit: is the limit used, is each sample judged once, what is paid for nothing?

    python benchmarks/judge.py [--samples 500] [--limit 600] [--latency 0.3] [--faults 0.05] [--kill]

A job of the real queue, supervisor, worker and SDK against the Gemini-compatible server of the tests, which
enforces the limit itself and mixes faults in: 429, 500, timeouts, resets, blocked, truncated, malformed. With
--kill the worker is killed by `kill -9` three times at random, and the supervisor starts another. Prints one JSON
line last.

    of_limit           requests a minute that the server saw, from the first to the last, over the limit
    of_limit_wall      the same over the whole time from submitting to the end, starts of workers included
    duplicates         samples with more than one judgement, missing: with none
    billed_per_sample  requests that the server would have billed, over samples
    refused            requests that the server's own limit refused
    in_flight          (--kill) billed requests whose reply nobody lived to see
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from sqlite_utils import Database

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from factories import World, open_world  # noqa: E402
from jobs import queue  # noqa: E402
from jobs.event_file import read_events  # noqa: E402
from jobs.judges.terms import ModelTerms, Terms, write_terms  # noqa: E402
from jobs.processes import find_process  # noqa: E402
from jobs.runs import RunFolder  # noqa: E402
from storage import jobs as store  # noqa: E402
from storage.lifecycle import ENDED  # noqa: E402
from storage.records import Job  # noqa: E402
from storage.scores import get_judgements  # noqa: E402

FAULTS = ("minute", "500", "503", "timeout", "reset", "blocked", "truncated", "malformed")
MODEL, KEY = "gemini-test", "benchmark-key-1234567890"


@contextmanager
def server(latency: float, faults: float, limit: int, seed: int) -> Iterator[str]:
    """The test server as a process of its own; yields its address."""
    arguments = ["--port", 0, "--key", KEY, "--seed", seed]
    arguments += ["--latency", latency, "--faults", faults, "--limit", limit]
    command = [sys.executable, ROOT / "tests" / "gemini_server.py", *arguments, "--kinds", ",".join(FAULTS)]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the test server printed no address"
        yield found.group()
    finally:
        process.kill()
        process.wait()


def fill(world: World, samples: int, candidates: int) -> None:
    job = world.job()
    for number in range(1, samples + 1):
        texts = [f"Answer {index} to question {number}: it shows a circle." for index in range(candidates)]
        world.candidates(world.sample(number, f"What does picture {number} show?"), texts, job)
    world.db.conn.execute("UPDATE jobs SET status = 'done'")


def watch(world: World, job: Job, kills: list[int]) -> int:
    """Wait for the end; kill the worker each time so many samples are done. Returns how often it was killed."""
    killed, told = 0, -1.0
    while True:
        now = store.get_job(world.db, job.id)
        if now.done - told >= 50:
            print(f"  {now.done:.0f} of {now.total:.0f}: {now.phase}", flush=True)
            told = now.done
        if now.status in ENDED:
            print(f"  {now.status} {now.reason}", flush=True)
            return killed
        if killed < len(kills) and now.done >= kills[killed]:
            process = find_process(store.attempts_of(world.db, job.id)[-1])
            if process is not None:
                process.kill()
                killed += 1
                print(f"  killed worker {process.pid} at {now.done:.0f} samples", flush=True)
        time.sleep(0.05)


def figures(db: Database, run: RunFolder, samples: int, stats: dict[str, Any], limit: int) -> dict[str, Any]:
    judged = get_judgements(db, range(1, samples + 1))
    states = Counter(one.state for found in judged.values() for one in found)
    replies = sum(1 for event in read_events(run.events) if event["kind"] == "reply")
    times = sorted(stats["times"])
    span = times[-1] - times[0]
    return {
        "of_limit": round((len(times) - 1) / span * 60 / limit, 3),
        "duplicates": sum(len(found) > 1 for found in judged.values()),
        "missing": sum(not found for found in judged.values()),
        "billed_per_sample": round(stats["billed"] / samples, 3),
        "states": dict(states),
        "requests": stats["received"],
        "billed": stats["billed"],
        "replies_kept": replies,
        "refused": stats["by_kind"].get("limit", 0),
    }


def main(
    samples: Annotated[int, typer.Option(min=10)] = 500,
    candidates: Annotated[int, typer.Option(min=1, max=26)] = 4,
    limit: Annotated[int, typer.Option(help="requests a minute")] = 600,
    latency: Annotated[float, typer.Option(help="seconds")] = 0.3,
    faults: Annotated[float, typer.Option(help="share of requests")] = 0.05,
    kill: Annotated[bool, typer.Option(help="kill the worker three times at random")] = False,
    client: Annotated[str, typer.Option(help="google-generativeai or google-genai")] = "google-generativeai",
    seed: int = 0,
) -> None:
    world = open_world(Path(tempfile.mkdtemp(prefix="plumb-judge-")) / "data")
    fill(world, samples, candidates)
    terms = ModelTerms(
        model=MODEL,
        input_price=0.3,
        output_price=2.5,
        requests_a_minute=limit,
        tokens_a_minute=10**9,
        requests_a_day=10**6,
    )
    write_terms(world.folder.judges, Terms(models=(terms,), money_a_day=1000.0))
    kills = sorted(random.Random(seed).sample(range(samples // 10, samples * 9 // 10), 3)) if kill else []
    with server(latency, faults, limit, seed) as address:
        os.environ |= {"GEMINI_API_KEY": KEY, "PLUMB_GEMINI_URL": address, "PLUMB_GEMINI_CLIENT": client}
        config = {"judge": "gemini", "model": MODEL, "budget": 100.0, "timeout": 5.0}
        begin = time.monotonic()
        job = queue.submit(world.db, world.settings, "judge", config, "benchmark")
        killed = watch(world, job, kills)
        seconds = time.monotonic() - begin
        stats = httpx.get(f"{address}/stats").json()
    run = RunFolder(world.folder.run(job.id))
    found = figures(world.db, run, samples, stats, limit)
    result = {
        **found,
        "of_limit_wall": round(found["requests"] / seconds * 60 / limit, 3),
        "in_flight": found["billed"] - found["replies_kept"],
        "kills": killed,
        "samples": samples,
        "seconds": round(seconds, 1),
        "client": client,
        "status": str(store.get_job(world.db, job.id).status),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
