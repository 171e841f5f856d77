"""Many people at work at once: is each of their scores saved once, and how soon?

    python benchmarks/annotators.py [--people 50] [--seconds 60] [--every 2] [--samples 20000] [--judges 20]

A really started app that listens as it does for a team, with a session for each person, on a data folder of its
own. Jobs of the rules judge run beside them, one after the other and each as fast as it can: it asks nobody
outside, so it writes far more than a judge that is paid for. Each person saves a score every `every` seconds
through the HTTP API, under a key as the page makes it, and asks now and then who else changed the sample. Every
twentieth change is sent twice at once, as a browser does that has got no answer. Afterwards the database is read
and compared with what the people were told. Prints one JSON line last.

    lost          scores that somebody was told are saved, and that are not there as the last one told
    duplicated    changes that were made more often than once, and judgements that a person has twice
    errors        answers other than 200, and requests without an answer
    p95_ms        of a save, from sending to the whole answer, as the person's browser sees it
    stamp_p95_ms  of the question who else changed the sample
    judged        judgements that the judge jobs stored meanwhile
    judge_share   of the looks at the queue, once a second, those at which a judge job ran
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import psutil
import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import processes_of, start_app  # noqa: E402
from factories import World, open_world, settings_for  # noqa: E402
from jobs import queue  # noqa: E402
from storage import jobs as store  # noqa: E402
from storage.database import immediate, session  # noqa: E402
from storage.records import METRICS  # noqa: E402
from storage.rows import count, rows  # noqa: E402
from storage.users import ensure_user  # noqa: E402
from workbench.door import Door  # noqa: E402

AWAY = "0.0.0.0"
TEXTS = ("The shape in the image is a circle.", "circle", "The shape in the image is a triangle.", "red")
JUDGE = {"judge": "easy-vqa-rules", "samples": {"only_missing": False}}  # each job judges all of them anew
RESENT = 20  # every so many changes one is sent twice
LOOKS = 3  # every so many changes the stamp is asked for


@dataclass
class Told:
    """What the people were told."""

    saved: dict[tuple[str, int, str], int] = field(default_factory=dict)
    changes: int = 0
    resent: int = 0
    milliseconds: list[float] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


def fill(world: World, samples: int) -> list[int]:
    """Samples of easy-VQA's kind with four answers each, which the rules judge can score; their answers' ids."""
    with immediate(world.db):
        job = world.job()
        for number in range(1, samples + 1):
            world.candidates(world.sample(number, colour=number % 50), TEXTS, job)
        world.db.conn.execute("UPDATE jobs SET status = 'done'")
    return [row["id"] for row in rows(world.db, "SELECT id FROM candidates ORDER BY id")]


def sessions(world: World, names: list[str]) -> tuple[str, dict[str, str]]:
    """The cookie's name, and a session for each person, signed with the data folder's key as the door signs it."""
    for name in names:
        ensure_user(world.db, name)
    door = Door(settings_for(world.folder.root, host=AWAY))
    return door.cookie, {name: door.session_for(name) for name in names}


@contextmanager
def app_for(folder: Path) -> Iterator[str]:
    """The app of a team; yields its address."""
    process, told = start_app(folder, PLUMB_HOST=AWAY, PLUMB_NETWORK_SLOTS="1")
    try:
        yield f"http://127.0.0.1:{urlsplit(told).port}"
    finally:
        others = processes_of(folder)
        process.terminate()
        process.wait(20)
        for other in others:
            if other.is_running():
                other.terminate()
        psutil.wait_procs(others, timeout=20)


async def person(
    web: httpx.AsyncClient, name: str, answers: list[int], every: float, until: float, seed: int, told: Told
) -> None:
    """Score one answer after another until the time is over."""
    draw = random.Random(seed)
    mine = draw.sample(answers, min(len(answers), 400))
    stamps: dict[int, str] = {}
    begin = time.monotonic() + draw.random() * every
    number = 0
    while (moment := begin + number * every) < until:
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        candidate = mine[number // len(METRICS) % len(mine)]
        metric, value = METRICS[number % len(METRICS)], draw.randint(0, 4)
        body = {"candidate": candidate, "metric": metric, "value": value}
        headers = {"X-Plumb-Key": str(uuid.UUID(int=draw.getrandbits(128)))}
        number += 1
        told.changes += 1
        again = told.changes % RESENT == 0
        told.resent += again
        sent = await asyncio.gather(*(save(web, body, headers, told) for _ in range(1 + again)))
        answer = next((one for one in sent if one is not None), None)
        if answer is None:
            continue
        told.saved[name, candidate, metric] = value
        if any(one is not None and one != answer for one in sent):
            told.errors["two answers to one key"] += 1
        sample = answer["sample"]
        if number % LOOKS == 0:
            await look(web, f"/api/sample/{sample}/stamp", stamps.get(sample, answer["stamp"]), told)
        stamps[sample] = answer["stamp"]


async def save(
    web: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str], told: Told
) -> dict[str, Any] | None:
    begun = time.perf_counter()
    try:
        answer = await web.post("/api/scores", json=body, headers=headers)
    except httpx.HTTPError as error:
        told.errors[type(error).__name__] += 1
        return None
    told.milliseconds.append((time.perf_counter() - begun) * 1000)
    if answer.status_code != 200:
        told.errors[f"{answer.status_code}: {answer.text[:200]}"] += 1
        return None
    found: dict[str, Any] = answer.json()
    return found


async def look(web: httpx.AsyncClient, path: str, since: str, told: Told) -> None:
    begun = time.perf_counter()
    try:
        answer = await web.get(path, params={"since": since})
    except httpx.HTTPError as error:
        told.errors[type(error).__name__] += 1
        return
    told.stamps.append((time.perf_counter() - begun) * 1000)
    if answer.status_code != 200:
        told.errors[f"{answer.status_code}: {answer.text[:200]}"] += 1


async def keep_judging(world: World, looks: list[bool]) -> None:
    """Look once a second whether a judge job runs."""
    while True:
        with session(world.folder) as db:
            looks.append(count(db, "SELECT count(*) FROM jobs WHERE kind = 'judge' AND status = 'running'") > 0)
        await asyncio.sleep(1.0)


async def work(
    address: str,
    world: World,
    cookie: str,
    cookies: dict[str, str],
    answers: list[int],
    every: float,
    seconds: float,
) -> tuple[Told, list[bool]]:
    """Everybody at work until the time is over."""
    told = Told()
    looks: list[bool] = []
    watching = asyncio.create_task(keep_judging(world, looks))
    clients = {
        name: httpx.AsyncClient(base_url=address, cookies={cookie: value}, timeout=30.0)
        for name, value in cookies.items()
    }
    until = time.monotonic() + seconds
    await asyncio.gather(
        *(person(web, name, answers, every, until, seed, told) for seed, (name, web) in enumerate(clients.items()))
    )
    watching.cancel()
    for web in clients.values():
        await web.aclose()
    return told, looks


def compare(world: World, told: Told) -> dict[str, Any]:
    """What the database holds beside what the people were told."""
    stored = {
        (row["name"], row["candidate_id"], metric): row[metric]
        for row in rows(
            world.db,
            "SELECT r.name, s.* FROM scores s JOIN judgements j ON j.id = s.judgement_id"
            " JOIN raters r ON r.id = j.rater_id WHERE r.kind = 'person'",
        )
        for metric in METRICS
    }
    twice = count(
        world.db,
        "SELECT count(*) FROM (SELECT 1 FROM judgements j JOIN raters r ON r.id = j.rater_id"
        " WHERE r.kind = 'person' GROUP BY j.rater_id, j.sample_id HAVING count(*) > 1)",
    )
    made = count(world.db, "SELECT count(*) FROM actions")
    return {
        "lost": sum(stored.get(key) != value for key, value in told.saved.items()),
        "duplicated": twice + max(0, made - told.changes),
        "errors": sum(told.errors.values()),
    }


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1) if ordered else 0.0


def main(
    people: Annotated[int, typer.Option(min=1, help="simulated annotators")] = 50,
    seconds: Annotated[float, typer.Option(min=1, help="how long they work")] = 60.0,
    every: Annotated[float, typer.Option(min=0.01, help="seconds from one save to the next, of each")] = 2.0,
    samples: Annotated[int, typer.Option(min=10, help="samples with four answers; as many a judge job")] = 20_000,
    judges: Annotated[int, typer.Option(min=0, help="judge jobs, one after the other")] = 20,
) -> None:
    """Save scores as a team does, beside a running judge job."""
    with tempfile.TemporaryDirectory() as root:
        world = open_world(Path(root))
        answers = fill(world, samples)
        cookie, cookies = sessions(world, [f"person {number}" for number in range(1, people + 1)])
        print(f"  {samples} samples, {len(answers)} answers", flush=True)
        with app_for(Path(root)) as address:
            settings = settings_for(world.folder.root, network_slots=1)
            for _ in range(judges):
                queue.submit(world.db, settings, "judge", JUDGE, "person 1")
            wait_for_judge(world, judges)
            told, looks = asyncio.run(work(address, world, cookie, cookies, answers, every, seconds))
            judged = count(
                world.db,
                "SELECT count(*) FROM judgements j JOIN raters r ON r.id = j.rater_id WHERE r.kind = 'judge'",
            )
            found = compare(world, told)
        for text, number in told.errors.most_common(5):
            print(f"  {number} × {text}", flush=True)
        world.db.close()
    saves = told.milliseconds
    line = {
        "benchmark": "annotators",
        "people": people,
        "seconds": seconds,
        "saves": told.changes,
        "resent": told.resent,
        **found,
        "p50_ms": round(statistics.median(saves), 1) if saves else 0.0,
        "p95_ms": percentile(saves, 0.95),
        "max_ms": percentile(saves, 1.0),
        "stamp_p95_ms": percentile(told.stamps, 0.95),
        "judged": judged,
        "judge_share": round(sum(looks) / len(looks), 2) if looks else 0.0,
    }
    print(json.dumps(line))
    raise typer.Exit(int(bool(found["lost"] or found["duplicated"] or found["errors"])))


def wait_for_judge(world: World, judges: int) -> None:
    deadline = time.monotonic() + 120
    while judges and not count(world.db, "SELECT count(*) FROM judgements"):
        if time.monotonic() > deadline:
            raise SystemExit(f"no judge job began: {store.list_jobs(world.db)[:1]}")
        time.sleep(0.2)


if __name__ == "__main__":
    typer.run(main)
