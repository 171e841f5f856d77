"""A training in several processes (ranks): started by torchrun or accelerate, watched, and ended together.

The worker that the supervisor knows stays the one that holds the run folder; it becomes the launcher:

    jobs.worker (lock, started, heartbeat, end)
      └─ torch.distributed.run, or `accelerate launch` where the job brings a configuration file
           ├─ jobs.rank 0   appends its events to events.jsonl
           └─ jobs.rank 1   … silent

Each rank leaves how it ended in ranks/<number>.json, and `verdict` makes the job's ending of them. A rank looks
whether its launcher lives, and ends itself where it doesn't (jobs/rank.py): torchrun gives ranks a session of
their own, so that no signal to the worker's process group reaches them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from jobs import causes
from jobs.configs import TrainConfig
from jobs.kernel import has_risen, memory_kills
from jobs.placement import ACCELERATE_FILE, AccelerateFile, check_accelerate
from jobs.processes import DEVICE, PROJECT
from jobs.reporter import Reporter, Stopped
from jobs.runs import JobFile, RunFolder
from storage.errors import PlumbError
from storage.files import write_atomically

LAUNCHER = "PLUMB_LAUNCHER"  #: the launcher's PID, for its ranks

POLL_SECONDS = 0.25
FAILED_GRACE = 10.0  # seconds that the others have to end once one has failed
STOPPED_GRACE = 180.0  # once one has stopped: another may write a checkpoint
TERM_GRACE = 20.0  # from SIGTERM to SIGKILL

Status = Literal["done", "stopped", "failed", "paused"]
Cause = Literal["", "foreseen", "unforeseen", "peer"]


@dataclass(frozen=True)
class Ending:
    """How a job, or one process of it, ended.

    Attributes:
        cause: of a failure: an error on purpose, any other, or that another process of the job was lost.
        why: what the job's attempt is booked under, and the failure policy goes by.
    """

    status: Status
    reason: str = ""
    cause: Cause = ""
    why: causes.Cause = causes.Cause.NONE

    @property
    def code(self) -> int:
        """The exit code of a process that ended so."""
        return causes.DISK_FULL if self.status == "paused" else int(self.status == "failed")


class RanksEnded(PlumbError):
    """The processes of a training ended otherwise than done; the text is the reason."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


@dataclass(frozen=True)
class Rank:
    """What ranks/<number>.json says."""

    number: int
    pid: int
    host: str
    time: float
    ending: Ending | None  #: None: it has not ended, or died without a word

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()


def is_launched(config: TrainConfig) -> bool:
    """Whether a training runs in processes of its own."""
    return config.processes > 1 or bool(config.accelerate_config)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process of the job went away."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text
        for words in ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL")
    )


# what ranks leave ---------------------------------------------------------------------------------------------


def ranks_folder(run: RunFolder) -> Path:
    return run.path / "ranks"


def note_rank(run: RunFolder, number: int, ending: Ending | None = None) -> None:
    """Leave a word of this process as rank `number`."""
    said: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
    if ending is not None:
        said |= {
            "status": ending.status,
            "reason": ending.reason,
            "cause": ending.cause,
            "why": str(ending.why),
        }
    folder = ranks_folder(run)
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{number}.json", json.dumps(said, ensure_ascii=False) + "\n")


def read_ranks(run: RunFolder) -> list[Rank]:
    """The words of all ranks so far, by number."""
    found = []
    for path in ranks_folder(run).glob("*.json"):
        said = json.loads(path.read_text(encoding="utf-8"))
        why = causes.Cause(said.get("why", ""))
        ending = Ending(said["status"], said["reason"], said["cause"], why) if "status" in said else None
        found.append(Rank(int(path.stem), said["pid"], said["host"], said["time"], ending))
    return sorted(found, key=lambda rank: rank.number)


def is_rank(process: psutil.Process, run: RunFolder) -> bool:
    """Whether a process is a rank of this run, by its words: a PID alone may be somebody else's."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "jobs.rank" in words and words[-1] == str(run.path)


def rank_processes(run: RunFolder) -> list[psutil.Process]:
    """The ranks on this machine that still run."""
    found = []
    for rank in read_ranks(run):
        try:
            process = psutil.Process(rank.pid)
        except psutil.NoSuchProcess:
            continue
        if rank.here and is_rank(process, run):
            found.append(process)
    return found


# the launcher -------------------------------------------------------------------------------------------------


def launch(run: RunFolder, job: JobFile, config: TrainConfig, reporter: Reporter) -> None:
    """Run a training in its processes; returns when it is done.

    Raises:
        Stopped: it was asked to stop, or this process was.
        RanksEnded: one of them failed, or met a full disk.
    """
    file = accelerate_file(run, config)
    kill(rank_processes(run))  # of a launcher that was killed: two must not write the same checkpoint
    shutil.rmtree(ranks_folder(run), ignore_errors=True)
    reporter.phase(f"starting {_many(config.processes)}")
    log_start, kills = run.log_size(), memory_kills()
    agent = subprocess.Popen(
        command(run, config, file),
        cwd=PROJECT,
        env=environment(job, config, file),
        stdin=subprocess.DEVNULL,
    )
    family: set[psutil.Process] = set()
    try:
        code = _watch(run, agent, family)
    except Stopped as stop:
        _end_softly(run, agent, family)
        said = [rank.ending.reason for rank in read_ranks(run) if rank.ending and rank.ending.status == "stopped"]
        raise Stopped(said[0] if said else str(stop)) from None
    finally:
        kill(family | set(rank_processes(run)))
        if agent.poll() is None:
            agent.kill()
            agent.wait()
    ending = verdict(read_ranks(run), config.processes, code, run.stop_requested(), _log_since(run, log_start))
    if ending.status == "stopped":
        raise Stopped(ending.reason)
    if ending.why is causes.Cause.KILLED and has_risen(kills):
        ending = replace(ending, why=causes.Cause.KERNEL)
    if ending.status != "done":
        raise RanksEnded(ending)


def accelerate_file(run: RunFolder, config: TrainConfig) -> AccelerateFile | None:
    """The job's accelerate configuration, kept in the run folder.

    Raises:
        UserError: it cannot be read, or starts another number of processes than the job asks for.
    """
    if not config.accelerate_config:
        return None
    kept = run.path / "data" / ACCELERATE_FILE
    if not kept.is_file():  # a run folder made by hand
        file = check_accelerate(Path(config.accelerate_config), config.processes)
        write_atomically(kept, file.text)
    return check_accelerate(kept, config.processes)


def command(run: RunFolder, config: TrainConfig, file: AccelerateFile | None) -> list[str]:
    """The words that start the ranks."""
    rank = ["-m", "jobs.rank", str(run.path)]
    if file is None:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(config.processes)]
        return [sys.executable, "-m", *torchrun, *rank]
    # The slots decide which GPUs are used, whatever the file says.
    words = ["--config_file", str(run.path / "data" / ACCELERATE_FILE), "--gpu_ids", "all"]
    if file.processes is None:
        words += ["--num_processes", str(config.processes)]
    if file.machines == 1:
        words += ["--main_process_port", "0"]  # any that is free: two jobs may run at once
    return [sys.executable, "-m", "accelerate.commands.launch", *words, *rank]


def environment(job: JobFile, config: TrainConfig, file: AccelerateFile | None) -> dict[str, str]:
    """Of the ranks: who their launcher is, their devices, and their share of the processor's cores."""
    here = config.processes // (file.machines if file else 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = {**os.environ, LAUNCHER: str(os.getpid()), DEVICE: job.device}
    made.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(1, here))))
    return made


def _watch(run: RunFolder, agent: subprocess.Popen[bytes], family: set[psutil.Process]) -> int:
    """Wait until all ranks have ended; returns the exit code of who started them.

    One rank that has ended leaves the others waiting for it at their next exchange; after a while they are ended.
    """
    ended_at: float | None = None
    while True:
        try:
            return agent.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        try:
            family.update(psutil.Process(agent.pid).children(recursive=True))
        except psutil.Error:
            continue
        endings = {rank.ending.status for rank in read_ranks(run) if rank.ending}
        if not endings & {"failed", "stopped"}:
            continue
        ended_at = ended_at or time.monotonic()
        grace = FAILED_GRACE if "failed" in endings else STOPPED_GRACE
        if time.monotonic() - ended_at > grace:
            kill(rank_processes(run))


def _end_softly(run: RunFolder, agent: subprocess.Popen[bytes], family: set[psutil.Process]) -> None:
    """SIGTERM to the ranks, and time to say their last word."""
    for process in rank_processes(run):
        _signal(process, signal.SIGTERM)
    if not rank_processes(run):  # none has spoken yet
        agent.terminate()
    try:
        agent.wait(TERM_GRACE)
    except subprocess.TimeoutExpired:
        family.update(psutil.Process(agent.pid).children(recursive=True))


def kill(processes: Sequence[psutil.Process] | set[psutil.Process]) -> None:
    """End them hard, and wait until they are gone."""
    for process in processes:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(list(processes), timeout=10)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil sends none to a process that has taken over the PID
    except psutil.Error:
        pass


def _log_since(run: RunFolder, start: int) -> str:
    try:
        with run.log.open("rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:  # a worker that was started by hand writes to the terminal
        return ""


# the verdict --------------------------------------------------------------------------------------------------


def verdict(ranks: Sequence[Rank], processes: int, code: int, stop_asked: bool, log: str) -> Ending:
    """The job's ending, of its ranks' endings.

    A failure with a reason counts most, then a failure nobody foresaw, then one who died without a word; that a
    peer was lost is never the cause itself.

    Args:
        code: the exit code of who started the ranks.
        stop_asked: whether the job was asked to stop.
        log: what all of them wrote.
    """
    ended = [(rank, rank.ending) for rank in ranks if rank.ending is not None]
    paused = [ending for _, ending in ended if ending.status == "paused"]
    if paused:  # the disk is full: the others have lost their peer
        return paused[0]
    for cause in ("foreseen", "unforeseen"):
        failed = [(rank.time, ending) for rank, ending in ended if ending.cause == cause]
        if failed:
            return min(failed, key=lambda pair: pair[0])[1]
    stopped = [ending for _, ending in ended if ending.status == "stopped"]
    if stop_asked and stopped:
        return stopped[0]
    silent = [rank for rank in ranks if rank.ending is None]
    if code == 0 and not silent and ended and all(ending.status == "done" for _, ending in ended):
        return Ending("done")
    exits = _exits(log)
    lost = next((rank for rank in silent if exits.get(rank.number, 0) < 0), silent[0] if silent else None)
    if lost is not None:
        said = _how(exits.get(lost.number))
        exit_code = exits.get(lost.number)  # torchrun tells it of the first that it sees fail, often the peer
        why = (
            causes.Cause.GONE if exit_code is None else causes.Cause.KILLED if exit_code < 0 else causes.Cause.BUG
        )
        return Ending("failed", f"Process {lost.number + 1} of {processes} {said}{_tail(log)}", "unforeseen", why)
    peers = [ending for _, ending in ended if ending.cause == "peer"]
    if peers:
        return peers[0]
    if stopped:
        reason = f"A process ended by itself ({stopped[0].reason}), unasked.{_tail(log)}"
    elif ended:
        reason = f"All processes are done, but who started them ended with exit code {code}.{_tail(log)}"
    else:
        reason = f"The {_many(processes)} did not start (exit code {code} of the launcher).{_tail(log)}"
    return Ending("failed", reason, "unforeseen", causes.Cause.BUG)


def _exits(log: str) -> dict[int, int]:
    """Exit codes by rank, as torchrun tells them: "failed (exitcode: -9) local_rank: 1 (pid: 321)"."""
    found = re.findall(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)", log)
    return {int(number): int(code) for code, number in found}


def _how(code: int | None) -> str:
    if code is None:
        return "ended without a word."
    if code < 0:
        name = signal.Signals(-code).name if -code in {one.value for one in signal.Signals} else str(-code)
        hint = " The kernel may have ended it for memory." if -code == signal.SIGKILL else ""
        return f"was ended by {name}.{hint}"
    return f"ended with exit code {code} and without a word."


def _tail(log: str) -> str:
    # torchrun's own report is long, and says nothing of the cause.
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    own = [line for line in lines if not re.match(r"[WEI]\d{4} |={5,}|-{5,}|time +:|host +:|rank +:", line)]
    shown = " ".join(own[-3:])
    return f" Its log ends: {shown[-400:]}" if shown else ""


def _many(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"
