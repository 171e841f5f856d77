"""Events: whole lines once, whoever reads them, however they were cut."""

from __future__ import annotations

import itertools
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import World, open_world
from jobs import events as module
from jobs.event_file import read_batch, read_events, read_tail, read_torn
from jobs.events import drain
from jobs.reporter import Reporter
from jobs.runs import RunFolder
from storage import jobs as store
from storage.errors import Conflict
from storage.lifecycle import JobStatus
from storage.rows import rows


def start(world: World, **config: Any) -> tuple[RunFolder, int]:
    job = world.job(**config)
    world.db.conn.execute("UPDATE jobs SET status = 'starting' WHERE id = ?", [job.id])
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir(parents=True)
    return run, store.start_attempt(world.db, job.id).id


def test_what_a_reporter_writes_arrives(world: World) -> None:
    sample = world.sample()
    run, attempt = start(world)
    with Reporter(run, heartbeat_seconds=0.01) as reporter:
        reporter.phase("loading the model")
        reporter.progress(1, 4, "samples")
        reporter.metric(3, {"loss": 0.5, "reward_margin": float("nan")})
        reporter.event("candidate", sample_id=sample, number=0, text="ein Kreis ○", tokens=3, finish="stop")
        reporter.event("of a later version", what="ever")
        reporter.end("done")
    kinds = [event["kind"] for event in drain(world.db, world.folder, attempt)]
    job = store.get_job(world.db, store.get_attempt(world.db, attempt).job_id)
    assert (job.status, job.phase, job.done, job.total) == (JobStatus.RUNNING, "loading the model", 1, 4)
    assert store.metrics_of(world.db, job.id) == {"loss": [(3, 0.5)]}
    assert "note" in kinds, "a number that is none is said, not hidden"
    assert rows(world.db, "SELECT text, model FROM candidates") == [{"text": "ein Kreis ○", "model": "demo"}]
    assert drain(world.db, world.folder, attempt) == []


def test_a_torn_last_line_waits_for_its_rest(world: World) -> None:
    run, attempt = start(world)
    line = json.dumps({"kind": "phase", "text": "late", "time": 1.0}).encode()
    run.events.write_bytes(line[:20])
    assert drain(world.db, world.folder, attempt) == []
    with run.events.open("ab") as file:
        file.write(line[20:] + b"\n")
    assert [event["text"] for event in drain(world.db, world.folder, attempt)] == ["late"]


def test_a_new_worker_ends_the_line_that_the_last_one_tore(world: World) -> None:
    run, attempt = start(world)
    run.events.write_bytes(b'{"kind": "pha')
    with Reporter(run) as reporter:
        reporter.phase("whole")
    seen = drain(world.db, world.folder, attempt)
    assert [event["kind"] for event in seen] == ["started", "phase", "broken"]


def test_a_line_that_is_no_event_is_reported_and_passed_over(world: World) -> None:
    run, attempt = start(world)
    run.events.write_bytes(b'nonsense\n[1]\n{"no": "kind"}\n\n{"kind": "phase", "text": "on"}\n')
    assert [event["kind"] for event in drain(world.db, world.folder, attempt)] == ["phase", *["broken"] * 3]


def test_a_long_line_is_read_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = start(world)
    run.events.write_bytes(json.dumps({"kind": "note", "text": "x" * 5000}).encode() + b"\n")
    batch = read_batch(run.events, 0, limit=100)
    assert [len(event["text"]) for event in batch.events] == [5000]


def test_two_readers_store_each_event_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read the same bytes; the slower one's transaction is dropped whole."""
    run, attempt = start(world)
    sample = world.sample()
    event = {"kind": "judgement", "sample_id": sample, "state": "ok", "rater": {"name": "j"}, "scores": []}
    run.events.write_text(json.dumps(event) + "\n")
    stale = store.get_attempt(world.db, attempt)
    drain(world.db, world.folder, attempt)
    monkeypatch.setattr(store, "get_attempt", lambda db, attempt_id: stale)
    with pytest.raises(Conflict, match="another supervisor"):
        drain(world.db, world.folder, attempt)
    assert len(rows(world.db, "SELECT * FROM judgements")) == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
    crashes=st.sets(st.integers(0, 8)),
)
@pytest.mark.slow
def test_replay_counts_each_event_once(texts: list[str], cuts: list[int], crashes: set[int]) -> None:
    """The file grows in arbitrary pieces; some reads die before their commit. The end is always the same."""
    with tempfile.TemporaryDirectory() as root:
        world = open_world(Path(root))
        run, attempt = start(world)
        sample = world.sample()
        data = b"".join(
            json.dumps({"kind": "candidate", "sample_id": sample, "number": n, "text": text}).encode() + b"\n"
            for n, text in enumerate(texts)
        )
        edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        for turn, (begin, end) in enumerate(itertools.pairwise(edges)):
            with run.events.open("ab") as file:
                file.write(data[begin:end])
            if turn in crashes:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(module, "apply", _die)
                    try:
                        drain(world.db, world.folder, attempt)
                    except KeyboardInterrupt:
                        pass
            else:
                drain(world.db, world.folder, attempt)
        drain(world.db, world.folder, attempt)
        stored = [row["text"] for row in rows(world.db, "SELECT text FROM candidates ORDER BY number")]
        assert stored == texts
        assert [event["text"] for event in read_events(run.events)] == texts
        world.db.close()


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_disk_that_takes_half_an_event_is_told_and_tears_no_other(world: World) -> None:
    """A raw file writes what fits, and raises nothing."""
    run, _ = start(world)
    with Reporter(run, heartbeat_seconds=600) as reporter:
        real = reporter._file

        class Full:
            def write(self, data: bytes) -> int:
                return int(real.write(data[:20]))

            def close(self) -> None:
                real.close()

        reporter._file = Full()  # type: ignore[assignment]
        with pytest.raises(OSError, match="not written whole"):
            reporter.note("the first")
        reporter._file = real
        reporter.note("the second")
    assert [event["text"] for event in read_events(run.events) if event["kind"] == "note"] == ["the second"]


# long, broken and torn lines ----------------------------------------------------------------------------------


def test_a_line_of_ten_megabytes_is_stored(world: World) -> None:
    run, attempt = start(world)
    text = "ä" * 5_000_000
    with Reporter(run, heartbeat_seconds=600) as reporter:
        reporter.event("candidate", sample_id=world.sample(), number=0, text=text)
        reporter.end("done")
    kinds = [event["kind"] for event in drain(world.db, world.folder, attempt)]
    assert kinds == ["started", "candidate", "end"]
    assert rows(world.db, "SELECT length(text) AS n FROM candidates") == [{"n": 5_000_000}]
    assert [event["kind"] for event in read_tail(run.events)][-1] == "end"


def test_a_line_without_end_is_passed_over_and_not_held_in_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.event_file.LONGEST", 2_000_000)
    run, attempt = start(world)
    run.events.write_bytes(b"\0" * 30_000_000)
    tracemalloc.start()
    assert drain(world.db, world.folder, attempt) == [], "it may still come to an end"
    with run.events.open("ab") as file:
        file.write(b'\n{"kind": "phase", "text": "on"}\n')
    seen = drain(world.db, world.folder, attempt)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [event["kind"] for event in seen] == ["broken", "phase"]
    assert seen[0]["text"].startswith("a line of 30,000,000 bytes")
    assert most < 12_000_000
    assert [event["text"] for event in read_events(run.events)] == ["on"]


def test_a_tail_that_begins_in_a_long_line_holds_what_follows(world: World) -> None:
    run, _ = start(world)
    long = json.dumps({"kind": "note", "text": "x" * 3_000_000})
    run.events.write_text(f'{long}\n{{"kind": "end", "status": "done"}}\n')
    assert [event["kind"] for event in read_tail(run.events, size=1000)] == ["end"]
    assert [event["kind"] for event in read_tail(run.events, begin=len(long) + 1)] == ["end"]
    assert read_tail(run.events, begin=10**9) == []


def test_what_is_torn_is_told_from_what_is_whole(world: World) -> None:
    run, _ = start(world)
    assert read_torn(run.events, 0) == ("", 0), "no file"
    run.events.write_bytes(b'{"kind": "phase"}\n')
    assert read_torn(run.events, 18) == ("", 18)
    with run.events.open("ab") as file:
        file.write(b'{"kind": "can\xff\x1b' + b"x" * 500)
    text, end = read_torn(run.events, 18)
    assert end == run.events.stat().st_size
    assert text.startswith('{"kind": "can')
    assert text.isprintable()
    assert len(text) <= 200


def test_a_file_that_became_shorter_or_a_folder_holds_nothing_new(world: World) -> None:
    run, attempt = start(world)
    run.events.write_text('{"kind": "phase", "text": "on"}\n')
    drain(world.db, world.folder, attempt)
    run.events.write_text("")
    assert drain(world.db, world.folder, attempt) == []
    assert read_batch(run.events / "inside", 7).offset == 7


# coming further -----------------------------------------------------------------------------------------------


def next_attempt(world: World, run: RunFolder) -> int:
    """The one before has ended; another begins."""
    job_id = int(run.path.name)
    for attempt in store.attempts_of(world.db, job_id):
        if attempt.ended_at is None:
            store.end_attempt(world.db, attempt.id, "failed", "killed", "killed")
    return store.start_attempt(world.db, job_id).id


def advanced(world: World, run: RunFolder, attempt: int, *events: dict[str, Any]) -> bool:
    with run.events.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    drain(world.db, world.folder, attempt)
    return bool(store.get_attempt(world.db, attempt).advanced)


def test_only_what_no_earlier_attempt_brought_is_coming_further(world: World) -> None:
    run, attempt = start(world)
    candidate = {"kind": "candidate", "sample_id": world.sample(), "number": 0, "text": "a circle"}
    idle: list[dict[str, Any]] = [
        {"kind": "phase", "text": "loading"},
        {"kind": "heartbeat"},
        {"kind": "progress", "done": 5, "total": 9, "unit": "samples"},
    ]
    assert not advanced(world, run, attempt, *idle)
    assert advanced(world, run, attempt, candidate)
    attempt = next_attempt(world, run)
    assert store.fruitless_attempts(world.db, int(run.path.name)) == 0
    assert not advanced(world, run, attempt, candidate), "the same once more"
    next_attempt(world, run)
    assert store.fruitless_attempts(world.db, int(run.path.name)) == 1


def test_a_trainings_steps_count_beyond_those_of_earlier_attempts(world: World) -> None:
    run, attempt = start(world, kind="dpo")

    def loss(step: int) -> dict[str, Any]:
        return {"kind": "metric", "step": step, "values": {"loss": 0.5}}

    def answers(step: int) -> dict[str, Any]:
        return {
            "kind": "answers",
            "step": step,
            "answers": [{"number": 1, "prompt": "?", "text": "", "tokens": 0}],
        }

    assert advanced(world, run, attempt, loss(1), loss(7))
    attempt = next_attempt(world, run)
    assert not advanced(world, run, attempt, loss(6), loss(7))
    assert advanced(world, run, attempt, loss(8))
    attempt = next_attempt(world, run)
    assert not advanced(world, run, attempt, loss(8))
    assert advanced(world, run, attempt, answers(4))
    attempt = next_attempt(world, run)
    assert not advanced(world, run, attempt, answers(4), {**loss(3), "values": {"loss": 0.1}})
    assert advanced(world, run, attempt, {**loss(2), "values": {"heldout_reward_margin": 0.1}})


def test_a_judges_numbers_are_no_coming_further_but_a_paid_reply_is(world: World) -> None:
    run, attempt = start(world, kind="judge")
    assert not advanced(world, run, attempt, {"kind": "metric", "step": 9, "values": {"money": 0.1}})
    reply = {"kind": "reply", "sample_id": world.sample(), "key": "k", "part": 0, "text": "4 4 4 4 4"}
    assert advanced(world, run, attempt, reply)


def test_a_download_comes_further_with_bytes_that_it_never_had(world: World) -> None:
    run, attempt = start(world, kind="download")

    def have(done: float) -> dict[str, Any]:
        return {"kind": "progress", "done": done, "total": 900.0, "unit": "MB"}

    assert not advanced(world, run, attempt, have(300.0)), "there before it began"
    assert advanced(world, run, attempt, have(310.0), have(350.0))
    attempt = next_attempt(world, run)
    assert not advanced(world, run, attempt, have(350.0), have(0.0), have(349.0))
    assert advanced(world, run, attempt, have(350.5))


def test_an_old_workers_word_takes_no_process_away(world: World) -> None:
    """A database that was restored reads the events of a later time."""
    import os

    import psutil

    run, attempt = start(world)
    began = psutil.Process().create_time()
    store.identify(world.db, attempt, os.getpid(), began, os.getpid())
    run.events.write_text('{"kind": "started", "pid": 1, "pid_started": 1.0}\n')
    drain(world.db, world.folder, attempt)
    assert store.get_attempt(world.db, attempt).pid == os.getpid()
