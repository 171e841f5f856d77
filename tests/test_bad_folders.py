"""Run folders that somebody cut, edited, moved or deleted: a clear reason, and the queue goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factories import USER, World
from jobs import queue
from jobs.event_file import read_events
from jobs.processes import PROJECT
from jobs.runs import JOB_FORMAT, RunFolder
from jobs.supervisor import Supervisor
from storage import jobs as store
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from supervised import Sleeper, Wait, attempt_of, status, submit_judge

pytestmark = pytest.mark.usefixtures("no_supervisor")


def settle(world: World, wait_for: Wait, *jobs: Job) -> None:
    """Have a supervisor work until these jobs have ended."""
    supervisor = Supervisor(world.settings)

    def ended() -> bool:
        supervisor.step(world.db)
        return all(status(world, job) in ENDED for job in jobs)

    wait_for(ended, "they end")


def cut(run: Path) -> None:
    file = run / "job.json"
    os.truncate(file, file.stat().st_size // 2)


def edit(run: Path) -> None:
    change(run, config={"judge": "easy-vqa-rules", "samples": {}, "no such setting": 1})


def newer(run: Path) -> None:
    change(run, format=JOB_FORMAT + 1)


def strange(run: Path) -> None:
    (run / "job.json").write_bytes(b"\xff\xfe\x00 no text")


def take_away(run: Path) -> None:
    (run / "job.json").unlink()


def delete(run: Path) -> None:
    shutil.rmtree(run)


def replace_by_a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("no folder")


def change(run: Path, **values: object) -> None:
    file = run / "job.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "is not whole JSON"),
        (edit, "no such setting"),
        (newer, f"has format {JOB_FORMAT + 1}; this Plumb reads {JOB_FORMAT}"),
        (strange, "is not whole JSON"),
        (take_away, "no job.json"),
        (delete, "cannot be started"),
        (replace_by_a_file, "cannot be started"),
    ],
)
def test_a_spoiled_folder_fails_its_own_job_and_says_why(
    busy: World, wait_for: Wait, spoil: Callable[[Path], None], words: str
) -> None:
    spoiled, whole = submit_judge(busy), submit_judge(busy)
    spoil(busy.folder.run(spoiled.id))
    settle(busy, wait_for, spoiled, whole)
    ended = store.get_job(busy.db, spoiled.id)
    assert ended.status is JobStatus.FAILED
    assert words in ended.reason
    assert attempt_of(busy, spoiled).cause == "setting"
    assert len(store.attempts_of(busy.db, spoiled.id)) == 1, "it is not tried again"
    assert status(busy, whole) is JobStatus.DONE


def test_a_folder_that_is_deleted_while_its_worker_runs_ends_both(
    world: World, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, child = sleeper(world)
    run = world.folder.run(job.id)
    supervisor = Supervisor(world.settings)
    shutil.move(run, run.with_name("elsewhere"))
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.RUNNING, "it may come back"
    assert "run folder is gone" in capsys.readouterr().out
    shutil.move(run.with_name("elsewhere"), run)
    supervisor.step(world.db)
    assert supervisor._lost == {}
    shutil.rmtree(run)
    monkeypatch.setattr("jobs.supervisor.FOLDER_SECONDS", -1.0)
    supervisor.step(world.db)
    child.wait(10)
    supervisor.step(world.db)
    ended = store.get_job(world.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert "moved or deleted while the job ran" in ended.reason
    assert attempt_of(world, job).reason == ended.reason


def test_what_is_torn_when_the_worker_is_gone_is_passed_over_and_told(
    world: World, sleeper: Sleeper, capsys: pytest.CaptureFixture[str]
) -> None:
    job, child = sleeper(world)
    run = RunFolder(world.folder.run(job.id))
    run.events.write_text('nonsense\n{"kind": "phase", "text": "on"}\n{"kind": "candi')
    supervisor = Supervisor(world.settings)
    supervisor.step(world.db)
    assert "candi" not in capsys.readouterr().out, "its rest may come"
    child.kill()
    child.wait()
    supervisor.step(world.db)
    told = capsys.readouterr().out
    assert 'a line of its events is none and was passed over: {"kind": "candi' in told
    attempt = attempt_of(world, job)
    assert "Passed over 2 lines in its events.jsonl" in attempt.reason
    assert attempt.event_offset == run.events.stat().st_size


def test_an_attempt_after_a_torn_line_begins_behind_it(busy: World, wait_for: Wait) -> None:
    job = submit_judge(busy)
    run = RunFolder(busy.folder.run(job.id))
    settle(busy, wait_for, job)
    lines = run.events.read_bytes().splitlines(keepends=True)
    kept = b"".join(lines[:100])
    run.events.write_bytes(kept + b'{"kind": "judgement", "sample_id')
    busy.db.conn.execute("DELETE FROM judgements WHERE job_id = ? AND id % 3 = 0", [job.id])
    busy.db.conn.execute("UPDATE jobs SET status = 'running' WHERE id = ?", [job.id])
    busy.db.conn.execute(
        "UPDATE attempts SET ended_at = NULL, outcome = NULL, event_offset = 0, pid = 99999999 WHERE job_id = ?",
        [job.id],
    )
    settle(busy, wait_for, job)
    assert status(busy, job) is JobStatus.DONE, store.get_job(busy.db, job.id).reason
    judged = [event["sample_id"] for event in read_events(run.events) if event["kind"] == "judgement"]
    assert len(judged) == len(set(judged)) == 300
    first, second = store.attempts_of(busy.db, job.id)
    assert (first.cause, first.outcome, second.outcome) == ("gone", "failed", "done")
    assert 'cut off or no event: {"kind": "judgement", "sample_id' in first.reason
    assert second.reason == ""


def test_the_log_begins_with_what_runs_where_and_with_which_versions(busy: World, wait_for: Wait) -> None:
    job = submit_judge(busy)
    settle(busy, wait_for, job)
    run = RunFolder(busy.folder.run(job.id))
    first = run.log.read_text().splitlines()[0]
    assert first.startswith("=== 20")
    assert f"job {job.id} (judge) on network, process" in first
    assert "python 3." in first
    attempt = attempt_of(busy, job)
    assert (attempt.log_begin, attempt.log_end) == (0, run.log_size())
    assert (attempt.outcome, attempt.exit_code, attempt.cause) == ("done", 0, "")


def test_the_first_line_comes_before_anything_heavy() -> None:
    code = "import sys, jobs.worker; print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(("kind", "expected"), [("judge", JobStatus.QUEUED), ("serve", JobStatus.STOPPED)])
def test_a_worker_that_is_told_to_end_goes_on_later_unless_it_was_asked_to_stop(
    world: World, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch, kind: str, expected: JobStatus
) -> None:
    """A machine that is shut down tells every process to end: nobody asked for the job's stop."""
    job, child = sleeper(world)
    world.db.conn.execute("UPDATE jobs SET kind = ? WHERE id = ?", [kind, job.id])
    run = RunFolder(world.folder.run(job.id))
    (run.path / "job.json").write_text("{}")
    words = {"kind": "end", "status": "stopped", "reason": "ended by SIGTERM", "cause": "killed"}
    run.events.write_text(json.dumps(words) + "\n")
    child.kill()
    child.wait()
    supervisor = Supervisor(world.settings)
    monkeypatch.setattr(supervisor, "_start_next", lambda db, slot_kind: False)
    supervisor.step(world.db)
    assert status(world, job) is expected
    assert attempt_of(world, job).reason == "ended by SIGTERM"


@pytest.mark.slow
def test_a_base_model_that_was_deleted_meanwhile_is_named(busy: World, wait_for: Wait, tmp_path: Path) -> None:
    from tiny import tiny_llava

    base = tmp_path / "base"
    shutil.copytree(tiny_llava(), base)
    values = {"model": str(base), "samples": {"limit": 2}, "candidates": 1}
    job = queue.submit(busy.db, busy.settings, "generate", values, USER)
    other = submit_judge(busy)
    shutil.rmtree(base)
    settle(busy, wait_for, job, other)
    ended = store.get_job(busy.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert "base" in ended.reason
    assert attempt_of(busy, job).cause == "setting"
    assert status(busy, other) is JobStatus.DONE
