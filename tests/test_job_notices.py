"""Notices that a job has ended: whose, which, and none twice or lost."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from factories import USER, World
from job_pages import advance
from storage import jobs as store
from storage.errors import UserError
from storage.lifecycle import JobStatus
from storage.records import now
from workbench.context import Context
from workbench.door import Door
from workbench.job_notices import news
from workbench.ui import build_api


def ended(context: Context, since: str, user: str = USER) -> list[int]:
    return [end["job"] for end in news(context, user, since)["ended"]]


def test_the_first_look_tells_nothing_and_later_ones_what_has_ended(world: World, context: Context) -> None:
    advance(world, world.job(), JobStatus.STARTING, JobStatus.DONE)
    first = news(context, USER, "")
    assert (first["ended"], first["open"]) == ([], 0)
    done = advance(world, world.job(), JobStatus.STARTING, JobStatus.RUNNING, JobStatus.DONE)
    failed = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.FAILED, reason="No memory.")
    world.job()
    second = news(context, USER, first["since"])
    assert second["open"] == 1
    told = {end["job"]: end for end in second["ended"]}
    assert told[done.id]["title"] == f"#{done.id} Generate is done"
    assert told[failed.id] | {"ended": ""} == {
        "job": failed.id,
        "status": "failed",
        "ended": "",
        "title": f"#{failed.id} DPO has failed",
        "text": "No memory.",
    }


def test_an_end_that_was_committed_late_is_told_by_the_next_look(world: World, context: Context) -> None:
    late = advance(world, world.job(), JobStatus.STARTING, JobStatus.DONE)
    assert late.ended_at is not None
    since = (datetime.fromisoformat(late.ended_at) + timedelta(seconds=5)).isoformat()
    assert ended(context, since) == [late.id]
    assert ended(context, (datetime.fromisoformat(since) + timedelta(minutes=1)).isoformat()) == []


def test_only_ones_own_jobs_are_news_and_a_chat_model_that_leaves_is_none(world: World, context: Context) -> None:
    since = now()
    chat = advance(world, world.job("serve"), JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPED)
    own = advance(world, world.job(), JobStatus.STARTING, JobStatus.DONE)
    broken = advance(world, world.job("serve"), JobStatus.STARTING, JobStatus.FAILED)
    assert ended(context, since) == [own.id, broken.id]
    assert chat.id not in ended(context, since)
    assert ended(context, since, "bob") == []


def test_a_job_that_is_queued_again_is_no_news(world: World, context: Context) -> None:
    since = now()
    job = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.FAILED)
    store.requeue(world.db, job.id)
    assert ended(context, since) == []


def test_very_many_ends_are_told_in_part(world: World, context: Context) -> None:
    since = now()
    for _ in range(30):
        advance(world, world.job(), JobStatus.STARTING, JobStatus.DONE)
    assert len(ended(context, since)) == 20


@pytest.mark.parametrize("since", ["yesterday", "9999", "0001-01-01T00:00:00+00:00"])
def test_what_is_no_moment_is_refused(context: Context, since: str) -> None:
    with pytest.raises(UserError, match="since = "):
        news(context, USER, since)


def test_pages_ask_through_the_door(context: Context) -> None:
    client = TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")
    answer = client.get("/api/jobs/ended").json()
    assert answer["ended"] == []
    assert client.get("/api/jobs/ended", params={"since": answer["since"]}).json()["ended"] == []
    assert client.get("/api/jobs/ended?since=never").status_code == 400
