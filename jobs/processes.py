"""Worker processes: spawned in a session of their own, recognised by PID and start time, ended as a group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from jobs.keys import SERVE_KEY, serve_key
from jobs.runs import RunFolder
from jobs.telemetry import switch_off
from storage.folder import DataFolder
from storage.occupants import WORKER_RUN
from storage.records import Attempt, Job

PROJECT = Path(__file__).resolve().parent.parent
DEVICE = "PLUMB_WORKER_DEVICE"
RUN = WORKER_RUN  #: the run folder of a worker, in its environment and in that of all that it starts
# Boot time is read anew by each process and may differ by a clock correction; PIDs are not reused so fast.
START_TOLERANCE = 2.0  # seconds


def spawn_worker(folder: DataFolder, job: Job) -> subprocess.Popen[bytes]:
    """Start `python -m jobs.worker` for a job: its own process group, its output straight to the log file.

    A pipe instead of the file would stall the worker once nobody reads it.
    """
    run = RunFolder(folder.run(job.id))
    with run.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.worker", str(run.path)],
            cwd=PROJECT,
            env=worker_environment(folder, job),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def worker_environment(folder: DataFolder, job: Job) -> dict[str, str]:
    """The environment of a worker: it sees its own devices as `cuda:0`, `cuda:1` …, or none."""
    environment = dict(os.environ)
    switch_off(environment)
    environment["PYTHONUNBUFFERED"] = "1"
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment[RUN] = str(folder.run(job.id))
    environment.pop(SERVE_KEY, None)
    if job.kind == "serve":
        environment[SERVE_KEY] = serve_key(folder, job.id)
    if job.slot_kind == "device":
        slots = job.slots or ("cpu",)
        if all(slot.startswith("cuda:") for slot in slots):
            visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
            numbers = [int(slot.removeprefix("cuda:")) for slot in slots]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(
                visible[number] if visible != [""] else str(number) for number in numbers
            )
            # nvidia-smi counts by bus, CUDA by speed unless told otherwise.
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            environment[DEVICE] = ",".join(f"cuda:{place}" for place in range(len(slots)))
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ""
            environment[DEVICE] = slots[0]
    return environment


def start_time(pid: int) -> float | None:
    """When the process began, or None if it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def find_worker(folder: DataFolder, job_id: int) -> psutil.Process | None:
    """A job's worker by its words alone, for a supervisor whose forerunner died before it noted the PID."""
    words = ["-m", "jobs.worker", str(folder.run(job_id))]
    for process in psutil.process_iter():
        try:
            if process.cmdline()[-3:] == words and process.environ().get(RUN) == words[-1]:
                return process
        except psutil.Error:
            continue
    return None


def leftovers(folder: DataFolder, attempt: Attempt) -> list[psutil.Process]:
    """Processes that a worker started and that have outlived it: they may hold its device's memory.

    They are known by the run folder in their environment; where a process has overwritten that, by the worker's
    session, in which there is no worker any more. A session that begins with somebody else's process is theirs.
    """
    run = str(folder.run(attempt.job_id))
    own = {os.getpid(), os.getppid()}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid in own or process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
            if environment.get(RUN) == run or (not environment and _is_orphan_of(process, attempt)):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _is_orphan_of(process: psutil.Process, attempt: Attempt) -> bool:
    session = attempt.process_group
    if session is None or attempt.pid_started is None or os.getsid(process.pid) != session:
        return False
    # The system gives a number that names a session to no new process; a leader is thus ours, or another's.
    return not psutil.pid_exists(session) and process.create_time() > attempt.pid_started - START_TOLERANCE


def end_all(processes: Sequence[psutil.Process], seconds: float = 5.0) -> list[psutil.Process]:
    """End them hard and wait; returns those that live on, in the middle of a call to the system, say."""
    for process in processes:
        try:
            process.kill()  # psutil sends nothing to a process that has taken over the PID
        except psutil.Error:
            pass
    _, alive = psutil.wait_procs(list(processes), timeout=seconds)
    return list(alive)


def find_process(attempt: Attempt) -> psutil.Process | None:
    """The attempt's process, if it still runs and is the same one: a reused PID is somebody else."""
    if attempt.pid is None or attempt.pid_started is None:
        return None
    try:
        process = psutil.Process(attempt.pid)
        same = abs(process.create_time() - attempt.pid_started) <= START_TOLERANCE or _works_on(process, attempt)
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _works_on(process: psutil.Process, attempt: Attempt) -> bool:
    """Whether it is a worker in this job's run folder: when the clock is put, start times move with it."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "jobs.worker" in words and Path(words[-1]).name == f"{attempt.job_id:06d}"


def signal_group(attempt: Attempt, number: signal.Signals) -> bool:
    """Signal the worker and its children; False (and nothing sent) if it is not our process any more."""
    if attempt.process_group is None or find_process(attempt) is None:
        return False
    try:
        os.killpg(attempt.process_group, number)
    except ProcessLookupError:
        return False
    return True


def explain_exit(code: int | None) -> str:
    """How a process ended, in words. `None`: nobody saw it end."""
    if code is None:
        return "The worker is gone and left no last word: it was killed, or the machine was restarted."
    if code == 128 + signal.SIGTERM:
        code = -signal.SIGTERM  # it heard the signal before or after its work
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
        hint = " The kernel may have ended it for memory." if -code == signal.SIGKILL else ""
        return f"The worker was ended by {name}.{hint}"
    return f"The worker ended with exit code {code} and no last word."
