"""The model's process dies in mid-stream: told, started anew, asked again; nothing that was said is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

import tiny
from chat_server import (
    USER,
    ChatServer,
    Dies,
    Script,
    again,
    ask,
    everything,
    says,
    serving,
    set_running,
    stored,
    texts,
)
from factories import World, open_world
from jobs.keys import serve_key
from storage import jobs as store
from storage.lifecycle import ENDED, JobStatus
from supervised import started_by
from workbench import chat_client, chat_own
from workbench.chat_client import Ended, Ready, Waiting, look_at
from workbench.chat_desk import Cast, Decoding, View
from workbench.chat_round import Stops, send
from workbench.context import Context

HALF: Script = [{"column": "left", "delta": "A red"}, {"column": "right", "delta": "It"}]


def said(world: World) -> list[tuple[str, str | None]]:
    return [(turn.content[0]["text"], turn.finish) for turn in stored(world).turns[1:]]


@pytest.mark.usefixtures("no_supervisor")
def test_a_process_that_dies_is_asked_again_once(world: World, context: Context) -> None:
    with serving(context, [*HALF, 0.3, Dies()], says("A red circle.", "It is round.")) as server:
        views = ask(context, temperature=0.8, seed=3)
    assert any("died in mid-sentence" in view.status for view in views)
    lost = [texts(view, 0)[-1] for view in views if "asked again)" in texts(view, 0)[-1]]
    assert lost, "what was said goes out of sight"
    assert "A red" in lost[0]
    assert texts(views[-1], 0)[-1] == "A red circle."
    assert said(world) == [("A red circle.", "stop"), ("It is round.", "stop")]
    first, second = server.requests
    assert first["request"] != second["request"]
    assert {name: first[name] for name in ("columns", "seed")} == {
        name: second[name] for name in ("columns", "seed")
    }


@pytest.mark.usefixtures("no_supervisor")
def test_a_second_death_keeps_what_was_said_and_can_be_tried_again(world: World, context: Context) -> None:
    third = [event for event in says("Red.", "x") if event["column"] == "left"]
    with serving(context, [*HALF, Dies()], [{"column": "right", "delta": "Late"}, Dies()], third) as server:
        last = ask(context)[-1]
        assert "died twice" in last.status
        assert not last.running
        assert said(world) == [("A red", "failed"), ("Late", "failed")]
        assert len(server.requests) == 2
        assert (last.answered, last.cut) == ((True, True), (True, True))
        assert last.conversation is not None
        again(context, last.conversation, 0)
    assert said(world)[0] == ("Red.", "stop")


@pytest.mark.usefixtures("no_supervisor")
def test_a_column_that_had_its_end_is_not_asked_again(world: World, context: Context) -> None:
    script: Script = [*HALF, {"column": "left", "done": "stop", "tokens": 2}, Dies()]
    second = [event for event in says("x", "It is round.") if event["column"] == "right"]
    with serving(context, script, second) as server:
        ask(context)
    assert [column["id"] for column in server.requests[1]["columns"]] == ["right"]
    assert said(world) == [("A red", "stop"), ("It is round.", "stop")]


@pytest.mark.usefixtures("no_supervisor")
def test_an_answer_that_ends_without_an_end_counts_as_a_death(world: World, context: Context) -> None:
    with serving(context, HALF, says("Red.", "Round.")):
        ask(context)
    assert said(world) == [("Red.", "stop"), ("Round.", "stop")]


@pytest.mark.usefixtures("no_supervisor")
def test_nobody_waits_for_ever_for_a_process_that_is_not_there(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_own, "GONE_SECONDS", 1.0)
    with serving(context) as server:
        port = server.port
    assert port
    last = ask(context)[-1]
    assert "does not answer" in last.status
    assert last.unanswered


@pytest.mark.usefixtures("no_supervisor")
def test_the_end_of_a_process_that_spoke_is_no_reason_to_give_up(world: World, context: Context) -> None:
    """Between the look for a job and the look at it the supervisor may find that it has died."""

    async def play() -> list[View]:
        views = []
        source = send(context, Stops(), "s", USER, None, "What?", (), Cast(), Decoding().model_dump())
        async with aclosing(source) as open_views:
            async for view in open_views:
                views.append(view)
                jobs = store.list_jobs(world.db, kind="serve")
                if "died in mid-sentence" in view.status and jobs[-1].status is JobStatus.RUNNING:
                    store.move(world.db, jobs[-1].id, JobStatus.FAILED, "killed")
                if len(jobs) == 2 and jobs[0].status is JobStatus.QUEUED:
                    other.key = serve_key(context.folder, jobs[0].id)
                    set_running(context, jobs[0].id, other.port)
        return views

    with serving(context, [*HALF, Dies()]), ChatServer() as other:
        other.scripts.append(says("Red.", "Round."))
        last = asyncio.run(play())[-1]
    assert texts(last, 1)[-1] == "Round."


@pytest.mark.usefixtures("no_supervisor")
def test_an_end_that_is_noticed_between_two_looks_is_passed_over(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def look(context: Context, job_id: int) -> Waiting | Ready:
        looks.append(job_id)
        if len(looks) == 2:
            raise Ended(f"The model's process (job {job_id}) is not there.", job_id)
        return look_at(context, job_id)

    monkeypatch.setattr(chat_client, "look_at", look)
    with serving(context, [*HALF, Dies()], says("Red.", "Round.")):
        assert texts(ask(context)[-1], 0)[-1] == "Red."
    assert len(looks) == 3


@pytest.mark.usefixtures("no_supervisor")
def test_a_process_that_cannot_start_again_is_told_and_not_started_for_ever(
    world: World, context: Context
) -> None:
    async def play() -> list[View]:
        views = []
        source = send(context, Stops(), "s", USER, None, "What?", (), Cast(), Decoding().model_dump())
        async with aclosing(source) as open_views:
            async for view in open_views:
                views.append(view)
                for job in store.list_jobs(world.db, kind="serve"):
                    if "died in mid-sentence" in view.status and job.status is JobStatus.RUNNING:
                        store.move(world.db, job.id, JobStatus.FAILED, "killed")
                    elif job.status is JobStatus.QUEUED:
                        store.move(world.db, job.id, JobStatus.STARTING)
                        store.move(world.db, job.id, JobStatus.FAILED, "No memory.")
        return views

    with serving(context, [*HALF, Dies()]):
        last = asyncio.run(play())[-1]
    assert "No memory." in last.status
    assert len(store.list_jobs(world.db, kind="serve")) == 2
    assert said(world) == [("A red", "failed"), ("It", "failed")]


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world whose jobs really run; whatever it started is ended with it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = open_world(tmp_path / "data")
    yield made
    for process in started_by(made):
        process.kill()
    made.db.close()


@pytest.mark.slow
def test_a_real_process_is_killed_in_mid_stream(real: World, wait_for: Callable[..., None]) -> None:
    context = Context(real.settings)
    model = str(tiny.tiny_llava())
    cast = Cast.of(model, None, None)
    values = Decoding(temperature=1.5, seed=3, max_new_tokens=200).model_dump()
    killed: list[int] = []

    def worker() -> int | None:
        running = [job for job in store.list_jobs(real.db, kind="serve") if job.status is JobStatus.RUNNING]
        return store.attempts_of(real.db, running[0].id)[-1].pid if running else None

    async def play() -> list[View]:
        views = []
        source = send(context, Stops(), "s", USER, None, "what is it?", (), cast, values)
        async with aclosing(source) as open_views:
            async for view in open_views:
                views.append(view)
                spoken = len(texts(view, 0)) == 2 and len(texts(view, 0)[1]) > 3
                if not killed and view.running and spoken and (pid := worker()):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
        return views

    views = asyncio.run(play())
    last = views[-1]
    assert killed, "the answer was over before the process could be killed"
    assert any("died in mid-sentence" in view.status for view in views)
    jobs = store.list_jobs(real.db, kind="serve")
    assert len(jobs) == 2
    assert jobs[-1].status is JobStatus.FAILED
    assert "SIGKILL" in jobs[-1].reason
    assert not last.unanswered
    assert last.conversation is not None
    whole = said(real)
    assert all(text for text, _ in whole)
    asked = send(context, Stops(), "s", USER, None, "what is it?", (), cast, values)
    asyncio.run(everything(asked))
    assert said(real) == whole, "the second try said what the first would have said"
    jobs = store.list_jobs(real.db, kind="serve")
    assert len(jobs) == 2, "the new process is used again"
    real.folder.run(jobs[0].id).joinpath("control").write_text("stop")
    wait_for(lambda: store.get_job(real.db, jobs[0].id).status in ENDED, "the process leaves")
