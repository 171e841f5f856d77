"""Why an attempt ended: told from errors, however deep libraries wrapped them, and never left unsaid."""

from __future__ import annotations

import errno
import json
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import httpx
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import World, open_world
from jobs import causes, kernel, verdicts
from jobs.causes import TRANSIENT, Cause, cause_of
from jobs.configs import KINDS
from jobs.runs import RunFolder
from jobs.verdicts import Verdict, verdict
from storage import jobs as store
from storage.errors import PlumbError, UserError
from storage.lifecycle import ACTIVE, JobStatus
from storage.records import Attempt, Job


def wrapped(inner: BaseException, outer: Exception, hidden: bool = False) -> Exception:
    """`outer` as it is when it is raised over `inner`."""
    try:
        try:
            raise inner
        except BaseException as error:
            if hidden:
                raise outer from None
            raise outer from error
    except Exception as error:
        return error


class Unreachable(PlumbError):
    cause = "network"


FULL = OSError(errno.ENOSPC, "No space left on device")
RUST = type("SafetensorError", (Exception,), {})("I/O error: No space left on device (os error 28)")
OFFLINE = type("OfflineModeIsEnabled", (ConnectionError,), {})("offline")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FULL, Cause.DISK),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Cause.DISK),
        (RUST, Cause.DISK),
        (wrapped(FULL, RuntimeError("cannot save")), Cause.DISK),
        (wrapped(FULL, UserError("The adapter cannot be written."), hidden=True), Cause.DISK),
        (ExceptionGroup("several", [ValueError(), FULL]), Cause.DISK),
        (OSError(errno.EACCES, "Permission denied"), Cause.BUG),
        (MemoryError(), Cause.MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GB"), Cause.MEMORY),
        (wrapped(MemoryError(), ValueError("while collating")), Cause.MEMORY),
        (UserError("lora_r = 0: give 1 or more."), Cause.SETTING),
        (wrapped(ConnectionResetError(), UserError("No such model.")), Cause.SETTING),
        (Unreachable("The hub gave no answer."), Cause.NETWORK),
        (requests.exceptions.ConnectTimeout(), Cause.NETWORK),
        (httpx.ReadTimeout("slow"), Cause.NETWORK),
        (httpx.ConnectError("refused"), Cause.NETWORK),
        (wrapped(httpx.ConnectError("refused"), OSError("cannot load")), Cause.NETWORK),
        (ConnectionRefusedError(), Cause.NETWORK),
        (TimeoutError(), Cause.NETWORK),
        (OFFLINE, Cause.BUG),
        (wrapped(wrapped(ConnectionError(), OFFLINE), OSError("cannot load")), Cause.BUG),
        (filelock.Timeout("a file"), Cause.BUG),
        (BrokenPipeError(), Cause.BUG),
        (ValueError("x"), Cause.BUG),
    ],
    ids=repr,
)
def test_a_cause_is_told_from_the_error(error: Exception, cause: Cause) -> None:
    assert cause_of(error) is cause


@pytest.mark.parametrize(("status", "cause"), [(503, Cause.NETWORK), (429, Cause.NETWORK), (404, Cause.BUG)])
def test_a_hub_that_is_busy_is_told_from_one_that_has_no_such_model(status: int, cause: Cause) -> None:
    answer = httpx.Response(status, request=httpx.Request("GET", "http://hub.invalid"))
    assert cause_of(httpx.HTTPStatusError("no", request=answer.request, response=answer)) is cause


def test_a_circle_of_errors_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    assert cause_of(one) is Cause.BUG


def test_what_may_be_over_is_tried_again_and_nothing_else() -> None:
    assert frozenset({Cause.KERNEL, Cause.KILLED, Cause.GONE, Cause.NETWORK}) == TRANSIENT
    assert verdicts.Cause is Cause


def test_a_disk_is_full_by_what_it_says_and_by_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not causes.is_full(tmp_path)
    assert list(tmp_path.iterdir()) == [], "no probe is left"
    assert not causes.is_full(tmp_path / "gone")

    def quota(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("os.fsync", quota)
    assert causes.is_full(tmp_path)
    assert list(tmp_path.iterdir()) == []


# the kernel ---------------------------------------------------------------------------------------------------


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file system of cgroups, version 2, with a container inside; returns the container's counter."""
    groups = tmp_path / "cgroup"
    own = groups / "box" / "memory.events"
    own.parent.mkdir(parents=True)
    own.write_text("low 0\noom 3\noom_kill 2\n")
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 7\n")
    (tmp_path / "self").write_text("0::/box\n")
    monkeypatch.setattr(kernel, "_CGROUPS", groups)
    monkeypatch.setattr(kernel, "_WHOLE", tmp_path / "vmstat")
    monkeypatch.setattr(kernel, "_OWN", tmp_path / "self")
    return own


def test_the_kernels_counters_rise_and_fall(counters: Path) -> None:
    before = kernel.memory_kills()
    assert sorted(before.values()) == [2, 7]
    assert not kernel.has_risen(before)
    counters.write_text("low 0\noom 4\noom_kill 3\n")
    assert kernel.has_risen(before)
    counters.write_text("oom_kill 0\n")
    assert not kernel.has_risen(before), "the machine was restarted"
    counters.unlink()
    assert not kernel.has_risen(before)
    assert not kernel.has_risen({"/etc/passwd": 0, str(counters): "no number"})


def test_an_older_kernels_counter_is_found(counters: Path, tmp_path: Path) -> None:
    (tmp_path / "self").write_text("7:cpu,memory:/box\n3:cpuset:/\n")
    old = tmp_path / "cgroup" / "memory" / "box" / "memory.oom_control"
    old.parent.mkdir(parents=True)
    old.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert kernel.memory_kills()[str(old)] == 5


@pytest.fixture
def ended(world: World) -> tuple[RunFolder, Attempt, Job]:
    """An attempt at work, and its run folder."""
    job = world.job("generate", batch_size=8)
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir()
    attempt = store.start_attempt(world.db, job.id)
    return run, attempt, replace(job, status=JobStatus.RUNNING)


def test_a_kill_by_the_kernel_is_told_from_others_with_what_to_change(
    counters: Path, ended: tuple[RunFolder, Attempt, Job]
) -> None:
    run, attempt, job = ended
    run.events.write_text(json.dumps({"kind": "started", "memory_kills": kernel.memory_kills()}) + "\n")
    run.log.write_text("=== 2026-11-23 07:00:00 UTC: job 1\nloading\n")
    assert verdict(run, attempt, job, -9).cause is Cause.KILLED
    counters.write_text("oom_kill 3\n")
    found = verdict(run, attempt, job, -9)
    assert found.cause is Cause.KERNEL
    assert "out of memory" in found.reason
    assert "batch_size 8 → 4" in found.reason
    assert found.reason.endswith("Its log ends: loading"), "not the heading"
    assert verdict(run, attempt, job, -11).cause is Cause.KILLED, "a crash is no kill of the kernel's"


# the verdict --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "cause", "words"),
    [
        (-9, "failed", "killed", "SIGKILL"),
        (-11, "failed", "killed", "SIGSEGV"),
        (143, "failed", "killed", "SIGTERM"),
        (None, "failed", "gone", "no last word"),
        (1, "failed", "bug", "exit code 1"),
        (0, "failed", "bug", "exit code 0"),
        (2, "failed", "setting", "no job.json"),
        (causes.LOCKED, "failed", "gone", "Another worker"),
        (causes.CANNOT_WRITE, "failed", "setting", "read-only"),
        (causes.DISK_FULL, "paused", "disk", "disk is full"),
    ],
)
def test_how_a_process_ended_is_the_reason_where_it_left_no_word(
    ended: tuple[RunFolder, Attempt, Job], code: int | None, status: str, cause: str, words: str
) -> None:
    run, attempt, job = ended
    found = verdict(run, attempt, job, code)
    assert (found.status, found.cause, words in found.reason) == (status, cause, True), found


def test_a_worker_that_nobody_saw_end_on_a_full_disk_is_paused(
    ended: tuple[RunFolder, Attempt, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, attempt, job = ended
    monkeypatch.setattr(verdicts, "is_full", lambda folder: True)
    assert verdict(run, attempt, job, None).status is JobStatus.PAUSED
    assert verdict(run, attempt, job, 120).status is JobStatus.PAUSED
    assert verdict(run, attempt, job, -9).cause is Cause.KILLED
    stopping = verdict(run, attempt, replace(job, status=JobStatus.STOPPING), causes.DISK_FULL)
    assert (stopping.status, stopping.cause) == (JobStatus.STOPPED, Cause.STOP), (
        "it was asked to stop: it stays so"
    )
    assert verdict(run, attempt, replace(job, kind="serve"), None).status is JobStatus.FAILED


def test_a_full_disk_takes_no_stop_back(ended: tuple[RunFolder, Attempt, Job]) -> None:
    run, attempt, job = ended
    run.events.write_text(json.dumps({"kind": "end", "status": "paused", "reason": "The disk is full."}) + "\n")
    assert verdict(run, attempt, job, 75) == Verdict(JobStatus.PAUSED, "The disk is full.", Cause.DISK)
    found = verdict(run, attempt, replace(job, status=JobStatus.STOPPING), 75)
    assert found == Verdict(JobStatus.STOPPED, "It was asked to stop. The disk is full.", Cause.STOP)


def test_the_reason_shows_the_attempts_own_part_of_the_log(ended: tuple[RunFolder, Attempt, Job]) -> None:
    run, attempt, job = ended
    run.log.write_text("of an earlier attempt\n")
    second = replace(attempt, log_begin=run.log_size())
    assert "earlier" not in verdict(run, second, job, -9).reason
    with run.log.open("a") as file:
        file.write("Loading:  50%\rLoading: 100%\n\x1b[31mred\n" + "x" * 9000 + "\nlast words\n")
    reason = verdict(run, second, job, -9).reason
    assert reason.endswith("last words")
    assert len(reason) < 1000
    assert "\x1b" not in reason
    assert "last words" in verdict(run, replace(attempt, log_begin=10**9), job, -9).reason, "a log that was cut"


_WORD = st.fixed_dictionaries(
    {"kind": st.just("end")},
    optional={
        "status": st.sampled_from([*map(str, JobStatus), "of a later version", 3, None]),
        "reason": st.one_of(st.text(max_size=8), st.none(), st.integers(), st.lists(st.integers(), max_size=2)),
        "cause": st.one_of(st.sampled_from([*map(str, Cause)]), st.text(max_size=3), st.none(), st.just([1])),
        "time": st.one_of(st.floats(allow_nan=False), st.text(max_size=3)),
    },
)


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(st.one_of(_WORD, st.just({"kind": "started"}), st.just({"kind": "heartbeat"})), max_size=3),
    code=st.one_of(st.none(), st.integers(-40, 150)),
    status=st.sampled_from(sorted(ACTIVE)),
    kind=st.sampled_from(sorted(KINDS)),
    folder=st.booleans(),
    log=st.sampled_from(["", "\n\n", "=== began\n", "a line\n"]),
    full=st.booleans(),
)
def test_only_what_is_done_has_no_reason(
    words: list[dict[str, Any]],
    code: int | None,
    status: JobStatus,
    kind: str,
    folder: bool,
    log: str,
    full: bool,
) -> None:
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "is_full", lambda path: full)
        run = RunFolder(Path(root) / "000001")
        if folder:
            run.path.mkdir()
            run.log.write_text(log)
            run.events.write_text("".join(json.dumps(word) + "\n" for word in words))
        found = verdict(run, ATTEMPT, replace(JOB, status=status, kind=kind), code)
    assert found.status in (JobStatus.DONE, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.PAUSED)
    assert isinstance(found.cause, Cause)
    if found.status is not JobStatus.DONE:
        assert found.reason.strip()
    if status is JobStatus.STOPPING:
        assert found.status is not JobStatus.PAUSED


def _example() -> tuple[Attempt, Job]:
    with tempfile.TemporaryDirectory() as root:
        world = open_world(Path(root))
        job = world.job("judge")
        attempt = store.start_attempt(world.db, job.id)
        world.db.close()
        return attempt, job


ATTEMPT, JOB = _example()


def test_a_stop_without_a_word_is_a_stop(ended: tuple[RunFolder, Attempt, Job]) -> None:
    run, attempt, job = ended
    found = verdict(run, attempt, replace(job, status=JobStatus.STOPPING), -signal.SIGKILL)
    assert found == Verdict(JobStatus.STOPPED, "It did not stop by itself and was ended.", Cause.STOP)
