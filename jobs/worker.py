"""`python -m jobs.worker RUN_DIR`: run one job in its folder and say how it ended.

The only door to `jobs.gpu`, which is imported here inside a function. The worker never opens the database. A
training of several processes runs in those, which this one starts and watches (jobs/launch.py).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from jobs.configs import (
    ChecklistConfig,
    GenerateConfig,
    JudgeConfig,
    MergeConfig,
    PushConfig,
    ServeConfig,
    TrainConfig,
)
from jobs.launch import Ending, is_launched, is_lost_peer, launch
from jobs.out_of_memory import explain_memory, is_out_of_memory
from jobs.processes import DEVICE
from jobs.reporter import Reporter, Stopped
from jobs.runs import JobFile, RunFolder
from jobs.telemetry import switch_off
from storage.errors import PlumbError


def perform(run: RunFolder, job: JobFile, reporter: Reporter) -> None:
    """Do the job's work; returns when it is done.

    Raises:
        Stopped: it was asked to stop.
        PlumbError: it cannot be done, with the reason for the user.
    """
    config = job.parsed()
    match config:
        case JudgeConfig():
            from jobs.judges.run import judge

            judge(run, job, config, reporter)
        case ChecklistConfig():
            from jobs.judges.remote import write_checklists

            write_checklists(run, job, config, reporter)
        case GenerateConfig():
            from jobs.gpu.generate import generate

            generate(run, job, config, reporter)
        case TrainConfig():
            from jobs.gpu.training import train

            train(run, job, config, reporter)
        case MergeConfig():
            from jobs.gpu.merge import merge

            merge(run, job, config, reporter)
        case PushConfig():
            from jobs.push import push

            push(run, job, config, reporter)
        case ServeConfig():
            from jobs.gpu.serve import serve

            serve(run, job, config, reporter)
        case _:
            raise PlumbError(f"This worker has no code for the job kind {job.kind!r}.")


def work(path: Path) -> int:
    """Run the job in `path`; returns the exit code: 0 done or stopped, 1 failed, 2 not started."""
    run = RunFolder(path)
    if not (path / "job.json").exists():
        print(f"{path} is not a run folder: it has no job.json.", file=sys.stderr)
        return 2
    try:
        # A second worker in the same folder would write every result twice.
        with FileLock(path / "worker.lock", timeout=0), Reporter(run) as reporter:
            ending = conclude(run, lambda job: _supervise(run, job, reporter))
            reporter.end(ending.status, ending.reason)
            return ending.code
    except Timeout:
        print(f"Another worker is at work in {path}.", file=sys.stderr)
        return 2


def _supervise(run: RunFolder, job: JobFile, reporter: Reporter) -> None:
    config = job.parsed()
    if isinstance(config, TrainConfig) and is_launched(config):
        launch(run, job, config, reporter)
    else:
        perform(run, job, reporter)


def conclude(run: RunFolder, act: Callable[[JobFile], None]) -> Ending:
    """Do the run's job and say how it ended, whatever happens."""
    job: JobFile | None = None
    try:
        job = run.job()
        # The slot decides where it runs; job.json may leave it open.
        job = job.model_copy(update={"device": os.environ.get(DEVICE, job.device)})
        act(job)
    except Stopped as stop:
        return Ending("stopped", str(stop) or "stopped by request")
    except PlumbError as error:
        print(error, file=sys.stderr)
        return Ending("failed", str(error), "foreseen")
    except Exception as error:
        traceback.print_exc()
        return Ending("failed", explain(error, job), "peer" if is_lost_peer(error) else "unforeseen")
    return Ending("done")


def explain(error: Exception, job: JobFile | None = None) -> str:
    """One sentence for an error that nobody foresaw; the traceback is in the log."""
    if is_out_of_memory(error):
        return explain_memory(error, job.parsed() if job else None, job.device if job else "")
    return f"{type(error).__name__}: {error}"


def _terminate_softly(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the last word off
    raise Stopped(f"ended by {signal.Signals(number).name}")


def prepare_process() -> None:
    """The environment and the signal of a process that works on a job."""
    switch_off(os.environ)
    # OpenMP's threads spin while they wait; beside other busy processes a step took ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate_softly)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m jobs.worker RUN_DIR", file=sys.stderr)
        return 2
    prepare_process()
    return work(Path(arguments[0]).resolve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
