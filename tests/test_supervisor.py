"""Real processes: a detached supervisor, real workers, kill -9. The jobs are judge jobs: no torch needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from factories import USER, World, open_world
from gemini_server import GeminiServer
from jobs import queue, steering
from jobs.event_file import read_events
from jobs.processes import explain_exit, find_process, signal_group, worker_environment
from jobs.runs import RunFolder
from jobs.standby import ensure_supervisor, hand_over_note, lock_of
from jobs.supervisor import Supervisor
from jobs.verdicts import Verdict, verdict
from judging import KEY, ask, samples, terms
from storage import jobs as store
from storage.errors import Conflict, DatabaseBusy
from storage.lifecycle import ENDED, JobStatus
from storage.rows import count, rows
from supervised import Sleeper, Wait, attempt_of, started_by, status, submit_judge, supervisors


@pytest.mark.slow
def test_a_job_runs_without_the_one_who_asked(busy: World, wait_for: Wait) -> None:
    job = submit_judge(busy)
    wait_for(lambda: status(busy, job) in ENDED, "the job ends")
    assert status(busy, job) is JobStatus.DONE, store.get_job(busy.db, job.id).reason
    assert count(busy.db, "SELECT count(*) FROM judgements WHERE job_id = ?", [job.id]) == 300
    wait_for(lambda: not supervisors(busy), "a supervisor with nothing to do leaves")
    second = submit_judge(busy)
    wait_for(lambda: status(busy, second) is JobStatus.DONE, "a new supervisor comes when needed")


@pytest.mark.slow
def test_a_killed_supervisor_loses_nothing(busy: World, wait_for: Wait) -> None:
    job = submit_judge(busy)
    wait_for(lambda: any(one.pid for one in store.attempts_of(busy.db, job.id)), "a worker is started and noted")
    for process in supervisors(busy):
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    ensure_supervisor(busy.settings)
    wait_for(lambda: status(busy, job) in ENDED, "the next supervisor settles it")
    assert status(busy, job) is JobStatus.DONE, store.get_job(busy.db, job.id).reason
    judged = rows(busy.db, "SELECT sample_id FROM judgements WHERE job_id = ?", [job.id])
    assert len(judged) == len({row["sample_id"] for row in judged}) == 300
    assert len(store.attempts_of(busy.db, job.id)) == 1, "adopted, not started again"


@pytest.mark.slow
def test_only_one_supervisor_a_folder(busy: World, wait_for: Wait) -> None:
    lock = lock_of(busy.folder)
    with lock:
        assert ensure_supervisor(busy.settings) is False
    for _ in range(3):
        ensure_supervisor(busy.settings)
    job = submit_judge(busy)
    wait_for(lambda: status(busy, job) is JobStatus.DONE, "the job is done")
    assert len(store.attempts_of(busy.db, job.id)) == 1


def test_a_killed_worker_is_settled_with_its_reason_and_the_queue_goes_on(world: World, sleeper: Sleeper) -> None:
    job, child = sleeper(world)
    (world.folder.run(job.id) / "log.txt").write_text("loading\nlast words\n")
    supervisor = Supervisor(world.settings)
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.RUNNING, "adopted: it is our process"
    child.kill()
    child.wait()
    supervisor.step(world.db)
    ended = store.get_job(world.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert "it was killed" in ended.reason
    assert "last words" in ended.reason
    assert attempt_of(world, job).outcome == "failed"


def test_a_worker_that_does_not_stop_is_ended_as_a_group(
    world: World, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, child = sleeper(world)
    monkeypatch.setattr("jobs.supervisor.GRACE_SECONDS", {"": -1.0})
    monkeypatch.setattr("jobs.standby.ensure_supervisor", lambda settings: False)
    monkeypatch.setattr(queue, "ensure_supervisor", lambda settings: False)
    monkeypatch.setattr(steering, "ensure_supervisor", lambda settings: False)
    steering.stop(world.db, world.settings, job.id)
    supervisor = Supervisor(world.settings)
    supervisor.step(world.db)
    assert child.wait(10) == -signal.SIGTERM
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.STOPPED


def test_a_worker_whose_pid_nobody_noted_is_adopted_when_it_speaks(world: World, sleeper: Sleeper) -> None:
    """The supervisor died between the spawn and the note; the worker speaks while the next one looks."""
    job, child = sleeper(world)
    attempt = attempt_of(world, job)
    world.db.conn.execute("UPDATE attempts SET pid = NULL, pid_started = NULL, process_group = NULL")
    world.db.conn.execute("UPDATE jobs SET status = 'starting'")
    started = {"kind": "started", "pid": child.pid, "pid_started": attempt.pid_started}
    RunFolder(world.folder.run(job.id)).events.write_text(json.dumps(started) + "\n")
    supervisor = Supervisor(world.settings)
    for _ in range(3):
        supervisor.step(world.db)
        assert status(world, job) is JobStatus.RUNNING
    assert attempt_of(world, job).pid == child.pid


def test_a_worker_that_never_speaks_is_waited_for_and_then_given_up(
    world: World, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = sleeper(world)
    world.db.conn.execute("UPDATE attempts SET pid = NULL, pid_started = NULL, process_group = NULL")
    world.db.conn.execute("UPDATE jobs SET status = 'starting'")
    supervisor = Supervisor(world.settings)
    for moment in ("2026-01-01T00:00:00.000+00:00", "2036-01-01T00:00:00.000+00:00"):
        world.db.conn.execute("UPDATE attempts SET started_at = ?", [moment])
        supervisor.step(world.db)
        assert status(world, job) is JobStatus.STARTING, "whatever the clock says"
    monkeypatch.setattr("jobs.supervisor.SPEAK_SECONDS", 0.0)
    supervisor.step(world.db)
    ended = store.get_job(world.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.reason == "The supervisor died before it started the worker."


@pytest.mark.parametrize(
    "poison",
    [
        {"kind": "metric", "step": 1, "values": [1]},
        {"kind": "candidate", "sample_id": 999, "number": 0, "text": "x"},
        {"kind": "progress"},
        {"kind": "adapter", "path": "adapter", "name": "x", "base_model": "demo", "method": "dpo"},
    ],
)
def test_poison_fails_its_own_job_alone(world: World, sleeper: Sleeper, poison: dict[str, object]) -> None:
    job, child = sleeper(world)
    RunFolder(world.folder.run(job.id)).events.write_text(json.dumps(poison) + "\n")
    supervisor = Supervisor(world.settings)
    supervisor.step(world.db)
    assert status(world, job) is JobStatus.RUNNING
    child.kill()
    child.wait()
    supervisor.step(world.db)
    ended = store.get_job(world.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert "events cannot be stored" in ended.reason


def test_a_lock_that_passes_costs_nothing(world: World, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    job, child = sleeper(world)
    run = RunFolder(world.folder.run(job.id))
    run.events.write_text('{"kind": "phase", "text": "on"}\n{"kind": "end", "status": "done", "reason": ""}\n')
    child.kill()
    child.wait()
    supervisor = Supervisor(world.settings)
    with monkeypatch.context() as patch:
        patch.setattr("jobs.supervisor.read_on", _busy)
        supervisor.step(world.db)
    assert status(world, job) is JobStatus.RUNNING, "not settled with events unread"
    supervisor.step(world.db)
    assert store.get_job(world.db, job.id).phase == "on"
    assert status(world, job) is JobStatus.DONE


def _busy(*_: object) -> None:
    raise DatabaseBusy("held by another process")


def test_a_queued_job_whose_device_is_gone_fails_instead_of_waiting(world: World) -> None:
    job = store.add_job(world.db, kind="generate", config={}, user=USER, slot_kind="device", device="cuda:3")
    Supervisor(world.settings).step(world.db)
    assert status(world, job) is JobStatus.FAILED
    assert "device = 'cuda:3' is not there any more" in store.get_job(world.db, job.id).reason


def test_an_idle_chat_makes_room_and_a_busy_one_stays(
    world: World, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, _ = sleeper(world)
    world.db.conn.execute(
        "UPDATE jobs SET kind = 'serve', slot_kind = 'device', slot = 'cpu', port = 1 WHERE id = ?", [chat.id]
    )
    world.job("dpo")
    supervisor = Supervisor(world.settings)
    monkeypatch.setattr("jobs.making_room.is_serving", lambda folder, job: True)
    supervisor.step(world.db)
    assert status(world, chat) is JobStatus.RUNNING
    monkeypatch.setattr("jobs.making_room.is_serving", lambda folder, job: False)
    supervisor.step(world.db)
    assert status(world, chat) is JobStatus.STOPPING
    assert RunFolder(world.folder.run(chat.id)).stop_requested()


def test_a_reused_pid_is_never_signalled(world: World, sleeper: Sleeper) -> None:
    job, child = sleeper(world)
    world.db.conn.execute("UPDATE attempts SET pid_started = pid_started - 1000")
    attempt = attempt_of(world, job)
    assert find_process(attempt) is None
    assert signal_group(attempt, signal.SIGKILL) is False
    assert child.poll() is None
    Supervisor(world.settings).step(world.db)
    assert status(world, job) is JobStatus.FAILED
    child.kill()
    child.wait()


@pytest.mark.slow
def test_events_that_cannot_be_stored_fail_their_job_alone(busy: World, sleeper: Sleeper, wait_for: Wait) -> None:
    job, child = sleeper(busy)
    RunFolder(busy.folder.run(job.id)).events.write_text('{"kind": "candidate"}\n')
    child.kill()
    child.wait()
    supervisor = Supervisor(busy.settings)
    supervisor.step(busy.db)
    ended = store.get_job(busy.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert "events cannot be stored" in ended.reason
    other = submit_judge(busy)
    wait_for(lambda: status(busy, other) is JobStatus.DONE, "the next job is done")


def test_the_workers_last_word_counts_before_its_exit_code(world: World, sleeper: Sleeper) -> None:
    job, child = sleeper(world)
    child.kill()
    child.wait()
    run = RunFolder(world.folder.run(job.id))
    run.events.write_text(
        '{"kind": "started", "pid": 1, "pid_started": 1.0}\n{"kind": "end", "status": "done", "reason": ""}\n'
    )
    attempt = attempt_of(world, job)
    current = store.get_job(world.db, job.id)
    assert verdict(run, attempt, current, 1) == Verdict(JobStatus.DONE)
    with run.events.open("a") as file:
        file.write('{"kind": "started", "pid": 2, "pid_started": 2.0}\n')
    assert verdict(run, attempt, current, -9).status is JobStatus.FAILED, (
        "an earlier attempt's word is not this one's"
    )


def test_the_folder_alone_is_enough(busy: World, tmp_path: Path) -> None:
    """A run folder copied elsewhere runs there, without the data folder."""
    import shutil

    job = submit_judge(busy)
    target = tmp_path / "elsewhere"
    shutil.copytree(busy.folder.run(job.id), target, ignore=shutil.ignore_patterns("events.jsonl", "*.lock"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PLUMB")}
    command = [sys.executable, "-m", "jobs.worker", str(target)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kinds = [event["kind"] for event in read_events(RunFolder(target).events)]
    assert kinds.count("judgement") == 300
    assert kinds[-1] == "end"


def test_exits_are_explained() -> None:
    assert "SIGKILL" in explain_exit(-9)
    assert "memory" in explain_exit(-9)
    assert "exit code 3" in explain_exit(3)
    assert "no last word" in explain_exit(None)


def test_a_worker_sees_its_own_device_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PLUMB_SERVE_KEY", "left over")
    job = world.job()
    world.db.conn.execute("UPDATE jobs SET slot = 'cuda:1' WHERE id = ?", [job.id])
    environment = worker_environment(world.folder, store.get_job(world.db, job.id))
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["PLUMB_WORKER_DEVICE"]) == ("1", "cuda:0")
    assert "PLUMB_SERVE_KEY" not in environment, "only the chat's process needs it"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    environment = worker_environment(world.folder, store.get_job(world.db, job.id))
    assert environment["CUDA_VISIBLE_DEVICES"] == "6"


@pytest.mark.slow
def test_a_killed_judge_job_goes_on_where_it_ended(busy: World, sleeper: Sleeper, wait_for: Wait) -> None:
    """An earlier attempt's last word is not the next one's, and nothing is judged twice."""
    job = submit_judge(busy)
    wait_for(lambda: status(busy, job) in ENDED, "the first attempt ends")
    run = RunFolder(busy.folder.run(job.id))
    lines = run.events.read_text().splitlines()
    kept = [line for line in lines if '"judgement"' in line][:100]
    run.events.write_text("\n".join([lines[0], *kept]) + "\n")
    busy.db.conn.execute("DELETE FROM judgements WHERE job_id = ?", [job.id])
    busy.db.conn.execute("UPDATE attempts SET event_offset = ?", [run.events.stat().st_size])
    busy.db.conn.execute("UPDATE jobs SET status = 'failed', reason = 'killed' WHERE id = ?", [job.id])
    resumed = steering.resume(busy.db, busy.settings, job.id)
    assert (resumed.status, resumed.reason, resumed.ended_at) == (JobStatus.QUEUED, "", None)
    wait_for(lambda: status(busy, job) in ENDED, "the second attempt ends")
    assert status(busy, job) is JobStatus.DONE, store.get_job(busy.db, job.id).reason
    assert len(store.attempts_of(busy.db, job.id)) == 2
    judged = count(busy.db, "SELECT count(*) FROM judgements WHERE job_id = ?", [job.id])
    assert judged == 200, "the 100 that the folder held were not made again"


@pytest.mark.parametrize("moment", [1000.0, 9e9])
def test_a_second_attempt_that_dies_before_it_speaks_is_not_booked_by_the_first_ones_word(
    world: World, sleeper: Sleeper, moment: float
) -> None:
    """Told by where each attempt's events begin, whatever the clock said when they were written."""
    job, child = sleeper(world)
    run = RunFolder(world.folder.run(job.id))
    run.events.write_text(f'{{"kind": "end", "time": {moment}, "status": "stopped", "reason": "by request"}}\n')
    first = attempt_of(world, job)
    world.db.conn.execute("UPDATE attempts SET event_offset = ?", [run.events.stat().st_size])
    store.end_attempt(world.db, first.id, "stopped", "by request")
    second = store.start_attempt(world.db, job.id)
    assert first.pid is not None
    assert first.pid_started is not None
    store.identify(world.db, second.id, first.pid, first.pid_started, first.pid)
    child.kill()
    child.wait()
    Supervisor(world.settings).step(world.db)
    assert status(world, job) is JobStatus.FAILED
    assert "killed" in attempt_of(world, job).reason


def test_a_supervisor_hands_over_to_one_with_a_new_environment(
    world: World, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API key that is set at a restart of the app must reach the workers."""
    settings = world.settings.model_copy(update={"supervisor_idle_seconds": 60.0})
    try:
        assert ensure_supervisor(settings)
        told = world.folder.runtime / "supervisor.log"
        wait_for(lambda: "at work" in told.read_text(), "the first is at work")
        first = supervisors(world)[0].pid
        monkeypatch.setenv("GEMINI_API_KEY", "new-key-of-this-start")
        assert ensure_supervisor(settings, fresh=True)
        wait_for(lambda: [one.pid for one in supervisors(world)] not in ([], [first]), "another is at work")

        def key() -> str | None:
            try:
                return supervisors(world)[0].environ().get("GEMINI_API_KEY")
            except (psutil.Error, IndexError):
                return None

        wait_for(lambda: key() == "new-key-of-this-start", "it has the new environment")
    finally:
        for process in started_by(world):
            process.kill()


def test_only_judges_pause_and_only_at_work(world: World, sleeper: Sleeper) -> None:
    job, _ = sleeper(world)
    run = RunFolder(world.folder.run(job.id))
    steering.pause(world.db, world.settings, job.id)
    assert run.asked() == "pause"
    assert steering.is_paused(world.settings, job.id)
    steering.go_on(world.db, world.settings, job.id)
    assert not steering.is_paused(world.settings, job.id)
    store.move(world.db, job.id, JobStatus.STOPPING)
    run.ask_to_stop()
    with pytest.raises(Conflict, match="is stopping"):
        steering.pause(world.db, world.settings, job.id)
    with pytest.raises(Conflict, match="no pause to end"):
        steering.go_on(world.db, world.settings, job.id)
    assert run.asked() == "stop", "a stop is not taken back"
    training = world.job("dpo")
    with pytest.raises(Conflict, match="cannot pause"):
        steering.pause(world.db, world.settings, training.id)
    with pytest.raises(Conflict, match=r"run folder of job \d+ is gone; start it again"):
        steering.resume(world.db, world.settings, training.id)


def test_a_killed_worker_goes_on_by_itself_but_not_for_ever(
    world: World, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, child = sleeper(world)
    (world.folder.run(job.id) / "job.json").write_text("{}")
    child.kill()
    child.wait()
    supervisor = Supervisor(world.settings)
    monkeypatch.setattr("jobs.supervisor.spawn_worker", lambda folder, job: dying())
    monkeypatch.setattr("jobs.supervisor.SPEAK_SECONDS", 0.0)

    def dying() -> subprocess.Popen[bytes]:
        died = subprocess.Popen(
            [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], start_new_session=True
        )
        died.wait()
        return died

    monkeypatch.setattr("jobs.supervisor.BACKOFF_SECONDS", (0.0,))
    for _ in range(12):
        supervisor.step(world.db)
    ended = store.get_job(world.db, job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.reason
    assert len(store.attempts_of(world.db, job.id)) == 1 + job.retries


def test_a_worker_that_said_why_it_failed_is_not_started_again(world: World, sleeper: Sleeper) -> None:
    job, child = sleeper(world)
    run = RunFolder(world.folder.run(job.id))
    (run.path / "job.json").write_text("{}")
    began = datetime.fromisoformat(attempt_of(world, job).started_at).timestamp()
    words = {"kind": "end", "time": began + 1, "status": "failed", "reason": "a wrong key"}
    run.events.write_text("x" * 300_000 + "\n" + json.dumps(words) + "\n")
    child.kill()
    child.wait()
    Supervisor(world.settings).step(world.db)
    assert (status(world, job), len(store.attempts_of(world.db, job.id))) == (JobStatus.FAILED, 1)
    assert store.get_job(world.db, job.id).reason == "a wrong key"


@pytest.mark.slow
def test_a_judge_job_survives_kills_and_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Wait
) -> None:
    """Real processes and the real SDK: kill -9 twice, each sample judged once, the key in no file."""
    world = open_world(tmp_path / "data")
    ids = samples(world, 60, candidates=2)
    terms(world)
    try:
        with GeminiServer(key=KEY, latency=0.1) as server:
            monkeypatch.setenv("GEMINI_API_KEY", KEY)
            monkeypatch.setenv("PLUMB_GEMINI_URL", server.url)
            job = ask(world, concurrency=2)
            for number in (1, 2):
                wait_for(lambda n=number: len(store.attempts_of(world.db, job.id)) == n, "a worker starts")
                wait_for(lambda n=number: server.received >= 15 * n, "it asks")
                process = find_process(attempt_of(world, job))
                assert process is not None
                process.kill()
            wait_for(lambda: status(world, job) in ENDED, "the job ends")
            assert status(world, job) is JobStatus.DONE, store.get_job(world.db, job.id).reason
            assert len(store.attempts_of(world.db, job.id)) == 3
            judged = rows(world.db, "SELECT sample_id FROM judgements WHERE state = 'ok'")
            assert sorted(row["sample_id"] for row in judged) == ids
            assert server.billed <= 60 + 2 * 2, "no more than what was on its way"
        world.db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        files = [path for path in world.folder.root.rglob("*") if path.is_file()]
        assert {"log.txt", "events.jsonl", "supervisor.log", "ledger.json"} <= {path.name for path in files}
        assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    finally:
        for process in started_by(world):
            process.kill()
        world.db.close()


def test_a_note_that_was_left_behind_sends_no_supervisor_away(busy: World, wait_for: Wait) -> None:
    hand_over_note(busy.folder).touch()
    job = submit_judge(busy)
    wait_for(lambda: status(busy, job) in ENDED, "the job ends")
    assert status(busy, job) is JobStatus.DONE


def test_a_worker_is_known_when_the_clock_was_put(world: World, sleeper: Sleeper, wait_for: Wait) -> None:
    """Start times are told from the clock: after a jump they differ, the run folder in its words does not."""
    job, _ = sleeper(world)
    attempt = attempt_of(world, job)
    assert attempt.pid_started is not None
    jumped = replace(attempt, pid_started=attempt.pid_started - 3600.0)
    assert find_process(jumped) is None, "a PID alone may be somebody else's"
    words = [sys.executable, "-c", "import time; time.sleep(600)", "jobs.worker"]
    with subprocess.Popen([*words, str(world.folder.run(job.id))], start_new_session=True) as worker:
        try:
            # Until it has become the worker, the new process has its parent's words.
            wait_for(lambda: find_process(replace(jumped, pid=worker.pid)) is not None, "the worker is known")
            assert find_process(replace(jumped, pid=worker.pid, job_id=job.id + 1)) is None, "another job's"
        finally:
            worker.kill()
