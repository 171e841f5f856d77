"""Events: whole lines once, whoever reads them, however they were cut."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import World, open_world
from jobs import events as module
from jobs.event_file import read_batch, read_events
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
