"""A world with a judge to ask: what tests of jobs, estimates and the desk share. A plugin that conftest loads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from factories import USER, World
from gemini_server import GeminiServer
from jobs import queue
from jobs.event_file import read_events
from jobs.events import drain
from jobs.judges.terms import ModelTerms, Terms, write_terms
from jobs.runs import RunFolder
from jobs.worker import work
from storage import jobs as store
from storage.records import Job, Judgement
from storage.scores import get_judgements

MODEL, KEY = "gemini-test", "sk-secret-of-the-test-0123456789"


@pytest.fixture(params=["google-generativeai", "google-genai"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PLUMB_GEMINI_CLIENT", request.param)
    return str(request.param)


@pytest.fixture
def server(world: World, monkeypatch: pytest.MonkeyPatch, no_supervisor: None) -> Iterator[GeminiServer]:
    terms(world)
    with GeminiServer(key=KEY) as fake:
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        monkeypatch.setenv("PLUMB_GEMINI_URL", fake.url)
        yield fake


def terms(world: World, money_a_day: float = 1000.0, **values: Any) -> None:
    """Prices and limits that are in nobody's way, but for `values`."""
    row: dict[str, Any] = {"input_price": 1.0, "output_price": 10.0, "requests_a_minute": 1_000_000}
    row |= {"tokens_a_minute": 10**12, "requests_a_day": 10**6, **values}
    write_terms(world.folder.judges, Terms(models=(ModelTerms(model=MODEL, **row),), money_a_day=money_a_day))


def ask(world: World, kind: str = "judge", **values: Any) -> Job:
    config = {"judge": "gemini", "model": MODEL, "budget": 100.0, "timeout": 2.0, "concurrency": 4}
    return queue.submit(world.db, world.settings, kind, {**config, **values}, USER)


def perform(world: World, job: Job) -> int:
    """One attempt of the job in this process; its events end in the database. Returns the exit code."""
    world.db.conn.execute("UPDATE jobs SET status = 'queued' WHERE id = ?", [job.id])
    claimed = store.claim_next(world.db, "network", "network-0")
    assert claimed is not None
    assert claimed.id == job.id
    attempt = store.start_attempt(world.db, job.id)
    code = work(world.folder.run(job.id))
    drain(world.db, world.folder, attempt.id)
    end = events(world, job, "end")[-1]
    store.end_attempt(world.db, attempt.id, end["status"], end["reason"])
    world.db.conn.execute(
        "UPDATE jobs SET status = ?, reason = ? WHERE id = ?", [end["status"], end["reason"], job.id]
    )
    return code


def events(world: World, job: Job, kind: str) -> list[dict[str, Any]]:
    return [one for one in read_events(RunFolder(world.folder.run(job.id)).events) if one["kind"] == kind]


def judgements(world: World, *ids: int) -> list[Judgement]:
    return [one for found in get_judgements(world.db, ids).values() for one in found]


def samples(world: World, number: int, candidates: int = 4) -> list[int]:
    job = world.job()
    ids = []
    for index in range(1, number + 1):
        ids.append(world.sample(index, f"What does picture {index} show?"))
        world.candidates(ids[-1], [f"Answer {n} about picture {index}." for n in range(candidates)], job)
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    return ids
