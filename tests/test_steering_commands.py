"""`python -m jobs`: the queue from a shell, with its exit codes, and reading a log."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factories import USER, World
from jobs import __main__ as command
from jobs import steering, steering_commands
from jobs.configs import KINDS
from jobs.log_lines import LONGEST_LINE, log_lines
from jobs.runs import RunFolder
from jobs.settings import local_user
from storage import jobs as store
from storage.database import session
from storage.errors import PlumbError
from storage.lifecycle import JobStatus
from storage.records import Job

pytestmark = pytest.mark.usefixtures("no_supervisor")

Shell = Callable[..., str]


@pytest.fixture(autouse=True)
def queued_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jobs.steering_commands", "jobs.sweeps"):
        monkeypatch.setattr(f"{module}.ensure_supervisor", lambda settings: False)


@pytest.fixture
def shell(world: World) -> Shell:
    """Run a command on the world's data folder; returns what it printed, or the error's text."""

    def run(*words: str, code: int = 0, given: str | None = None) -> str:
        result = CliRunner().invoke(command.app, [*words, "--data", str(world.folder.root)], input=given)
        if isinstance(result.exception, PlumbError):
            assert code == 1
            return str(result.exception)
        assert result.exit_code == code, result.output
        return result.output

    return run


def now(world: World, job: Job) -> Job:
    return store.get_job(world.db, job.id)


def test_the_order_is_changed_from_a_shell(world: World, shell: Shell) -> None:
    jobs = [world.job() for _ in range(3)]
    assert shell("move", str(jobs[2].id), "first") == f"job {jobs[2].id} (generate) is queued, number 1\n"
    assert "number 1" in shell("priority", str(jobs[1].id), "high")
    assert json.loads(shell("priority", str(jobs[0].id), "-1", "--json"))["priority"] == -1
    assert [job.id for job in store.queued_jobs(world.db)] == [jobs[1].id, jobs[2].id, jobs[0].id]
    told = shell("after", str(jobs[1].id), str(jobs[0].id))
    assert told == f"job {jobs[1].id} (generate) is queued, number 1: after job {jobs[0].id}\n"
    assert f"number 1: after job {jobs[0].id}" in shell("list")
    assert f"waits_for: after job {jobs[0].id}" in shell("show", str(jobs[1].id))
    shell("after", str(jobs[1].id), "--none")
    assert now(world, jobs[1]).after_id is None
    assert "is tried again 7 times" in shell("retries", str(jobs[0].id), "7")


def test_the_queue_is_held_from_a_shell(world: World, shell: Shell) -> None:
    world.job()
    assert f"the queue is held by {local_user()} since" in shell("hold")
    assert "`python -m jobs release` lets it go on" in shell("list")
    assert store.claim_next(world.db, "device", "cpu") is None
    assert shell("release") == "the queue goes on\n"
    assert store.claim_next(world.db, "device", "cpu") is not None


def test_a_job_is_submitted_with_its_order(world: World, shell: Shell) -> None:
    world.sample()
    leader = world.job()
    text = json.dumps({"kind": "generate", "config": {}})
    options = ("--priority", "high", "--after", str(leader.id), "--retries", "0")
    told = shell("submit", "-", *options, given=text)
    job = store.list_jobs(world.db)[0]
    assert told == f"job {job.id} (generate) is queued, number 1: after job {leader.id}\n"
    assert (job.priority, job.after_id, job.retries) == (1, leader.id, 0)
    assert "retries = -3" in shell("submit", "-", "--retries", "-3", code=1, given=text)
    assert len(store.list_jobs(world.db)) == 2


def test_stop_resume_and_again_from_a_shell(world: World, shell: Shell) -> None:
    world.sample()
    shell("submit", "-", given=json.dumps({"kind": "generate", "config": {}}))
    assert shell("stop", "1") == "job 1 is stopped\n"
    assert shell("resume", "1") == "job 1 (generate) is queued, number 1\n"
    assert shell("again", "1") == "job 2 (generate) is queued, number 2\n"


def test_a_judge_is_paused_from_a_shell(world: World, shell: Shell) -> None:
    job = world.job("judge")
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir()
    store.claim_next(world.db, "device", "cpu")
    assert "asks nothing more until `python -m jobs go-on 1`" in shell("pause", "1")
    assert run.asked() == "pause"
    assert shell("go-on", "1") == "job 1 goes on\n"
    assert run.asked() == ""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("stop", "9"), "There is no job 9"),
        (("resume", "9"), "There is no job 9"),
        (("pause", "9"), "There is no job 9"),
        (("go-on", "9"), "There is no job 9"),
        (("move", "9", "up"), "There is no job 9"),
        (("move", "1", "left"), "to = 'left': a job can be moved"),
        (("move", "1", "up"), "is the first already"),
        (("priority", "1", "urgent"), "priority = 'urgent': give low or normal or high"),
        (("priority", "1", "-4"), "priority = '-4'"),
        (("after", "1"), "leader: give the number of the job"),
        (("after", "1", "1"), "cannot come after itself"),
        (("after", "1", "1", "--none"), "leader: give the number of the job"),
        (("after", "1", "9"), "There is no job 9"),
        (("again", "9"), "There is no job 9"),
        (("retries", "1", "-2"), "retries = -2"),
        (("retries", "1", "1000"), "retries = 1000"),
        (("logs", "9"), "There is no job 9"),
        (("logs", "1"), "has not started yet"),
        (("wait", "1", "9"), "There is no job 9"),
        (("stop", "9" * 30), "There is no job 999"),
    ],
)
def test_bad_input_is_told(world: World, shell: Shell, words: tuple[str, ...], text: str) -> None:
    job = world.job()
    assert text in shell(*words, code=1)
    assert now(world, job) == job


def test_a_submission_of_another_shape_is_told_all_kinds(shell: Shell) -> None:
    told = shell("submit", "-", code=1, given="[]")
    assert all(kind in told for kind in KINDS)


# waiting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(JobStatus.DONE, 0), (JobStatus.FAILED, 1), (JobStatus.STOPPED, 1)])
def test_waiting_tells_by_its_exit_code_how_a_job_ended(
    world: World, shell: Shell, status: JobStatus, code: int
) -> None:
    done, job = world.job(), world.job()
    world.db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [done.id])
    world.db.conn.execute("UPDATE jobs SET status = ?, reason = 'why' WHERE id = ?", [status, job.id])
    told = shell("wait", str(done.id), str(job.id), code=code)
    assert told == f"job {done.id} (generate) is done\njob {job.id} (generate) is {status}: why\n"


def test_waiting_lasts_until_the_end_and_tells_each_state_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.job()
    steering.hold_queue(world.db, USER)
    seen = threading.Event()
    told: list[str] = []
    supervised: list[Any] = []
    monkeypatch.setattr(steering_commands, "ensure_supervisor", supervised.append)

    def tell(text: str) -> None:
        told.append(text)
        seen.set()

    ended: list[Job] = []
    waiting = threading.Thread(
        target=lambda: ended.extend(steering_commands.await_jobs(world.settings, [job.id], tell, look=0.01)),
        daemon=True,
    )
    waiting.start()
    assert seen.wait(30)
    assert waiting.is_alive()
    with session(world.folder) as db:
        store.move(db, job.id, JobStatus.FAILED, "why")
    waiting.join(30)
    assert [one.status for one in ended] == [JobStatus.FAILED]
    assert told == [
        f"job {job.id} (generate) is queued, number 1: the queue is held by {USER}",
        f"job {job.id} (generate) is failed: why",
    ]
    assert supervised == [world.settings], "it might wait for ever for what nobody starts"


# logs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def logged(world: World) -> Job:
    """A job with two attempts that have ended and one at work."""
    job = world.job()
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir()
    for text in ("first\nCUDA error\n", "second\n  1%\r 50%\r100%\r\nerrors: none\n", "third"):
        begin = run.log_size()
        attempt = store.start_attempt(world.db, job.id, begin)
        with run.log.open("a", newline="") as file:
            file.write(text)
        if text != "third":
            store.end_attempt(world.db, attempt.id, "failed", "", log_end=run.log_size())
    return job


def test_each_attempt_has_its_log(logged: Job, shell: Shell) -> None:
    assert shell("logs", str(logged.id)) == "third\n"
    assert shell("logs", str(logged.id), "--attempt", "1") == "first\nCUDA error\n"
    assert shell("logs", str(logged.id), "--attempt", "2") == "second\n100%\nerrors: none\n"
    assert shell("logs", str(logged.id), "--attempt", "2", "--lines", "1") == "errors: none\n"
    assert shell("logs", str(logged.id), "--attempt", "1", "--grep", "cuda ERR") == "CUDA error\n"
    assert shell("logs", str(logged.id), "--attempt", "1", "--grep", "none") == ""
    told = shell("logs", str(logged.id), "--attempt", "4", code=1)
    assert told == "attempt = 4: the job has 3 attempts; give a number from 1 to 3."


def test_a_log_without_line_ends_is_read_in_pieces(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"x" * (2 * LONGEST_LINE + 5))
    assert [len(line) for line in log_lines(log)] == [LONGEST_LINE, LONGEST_LINE, 5]
    assert [len(line) for line in log_lines(log, 3, LONGEST_LINE + 4)] == [LONGEST_LINE, 1]


def test_a_log_that_is_gone_or_cut_is_empty(tmp_path: Path) -> None:
    assert list(log_lines(tmp_path / "log.txt")) == []
    (tmp_path / "log.txt").write_bytes(b"one\n\xff\xfe\n")
    assert list(log_lines(tmp_path / "log.txt", 100, 200)) == []
    assert list(log_lines(tmp_path / "log.txt", 4)) == ["\ufffd\ufffd"]
