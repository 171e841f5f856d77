"""`python -m jobs.worker RUN_DIR`: run one job in its folder and say how it ended.

The only door to `jobs.gpu`, which is imported here inside a function. The worker never opens the database. A
training of several processes runs in those, which this one starts and watches (jobs/launch.py).

Exit codes: 0 done or stopped, 1 failed, 2 no run folder, 73 to 75 as in jobs/causes.py, 143 ended by SIGTERM
before or after its work.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from jobs.causes import CANNOT_WRITE, DISK_FULL, LOCKED, Cause, cause_of, chain, is_disk_full, is_full
from jobs.configs import (
    ChecklistConfig,
    ContestConfig,
    DownloadConfig,
    EvaluateConfig,
    GenerateConfig,
    GradeConfig,
    JudgeConfig,
    MergeConfig,
    PushConfig,
    ServeConfig,
    TrainConfig,
)
from jobs.launch import Ending, RanksEnded, is_launched, is_lost_peer, launch
from jobs.out_of_memory import explain_memory, is_out_of_memory
from jobs.processes import DEVICE
from jobs.reporter import HEADING, Reporter, Stopped, Terminated, say, versions
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
        case GenerateConfig() if config.outside:
            from jobs.outside_generate import generate_outside

            generate_outside(run, job, config, reporter)
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
        case DownloadConfig():
            from jobs.download import download

            download(run, job, config, reporter)
        case ContestConfig():
            from jobs.gpu.contest import contest

            contest(run, job, config, reporter)
        case EvaluateConfig():
            from jobs.gpu.evaluate import evaluate

            evaluate(run, job, config, reporter)
        case GradeConfig():
            from jobs.grading import grade

            grade(run, job, config, reporter)
        case ServeConfig():
            from jobs.gpu.serve import serve

            serve(run, job, config, reporter)
        case _:
            raise PlumbError(f"This worker has no code for the job kind {job.kind!r}.")


def work(path: Path) -> int:
    """Run the job in `path`; returns the exit code."""
    run = RunFolder(path)
    begin_log(run)
    if not (path / "job.json").exists():
        say(f"{path} is not a run folder: it has no job.json.")
        return 2
    try:
        # A second worker in the same folder would write every result twice.
        with FileLock(path / "worker.lock", timeout=0), Reporter(run) as reporter:
            ending = conclude(run, lambda job: _supervise(run, job, reporter))
            reporter.end(ending.status, ending.reason, ending.why)
            return ending.code
    except Timeout:
        say(f"Another worker is at work in {path}.")
        return LOCKED
    except Terminated as end:
        say(str(end))
        return 128 + signal.SIGTERM
    except OSError as error:  # of the lock, the events or the last word: the job's own errors end in `conclude`
        say(f"The run folder cannot be written: {error}")
        return DISK_FULL if is_disk_full(error) or is_full(run.path) else CANNOT_WRITE


def begin_log(run: RunFolder) -> None:
    """The first line of an attempt, before anything heavy is imported: what, where, when, with which versions."""
    try:
        job = run.job()
        what = f"job {job.job_id} ({job.kind}) on {os.environ.get(DEVICE, job.device)}"
    except (PlumbError, OSError):
        what = "a job that cannot be read"
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    say(f"{HEADING}{moment}: {what}, process {os.getpid()}; {packages}")


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
        unasked = any(isinstance(one, Terminated) for one in chain(stop)) and not run.stop_requested()
        return Ending("stopped", str(stop) or "stopped by request", why=Cause.KILLED if unasked else Cause.STOP)
    except Exception as error:
        return _ending_of(error, run, job)
    return Ending("done")


def _ending_of(error: Exception, run: RunFolder, job: JobFile | None) -> Ending:
    """How a job ended that raised an error: a full disk pauses it, whoever met it, and in whatever words."""
    ended = error.ending if isinstance(error, RanksEnded) else None
    why = ended.why if ended else cause_of(error)
    if isinstance(error, PlumbError):
        say(str(error))
    else:
        say(traceback.format_exc().rstrip())
    # Some of torch's writers don't say why they failed.
    if why is Cause.DISK or (why is Cause.BUG and is_full(run.path)):
        told = ended.reason if ended else explain_disk(error)
        return Ending("paused", told, why=Cause.DISK)
    if ended is not None:
        return ended
    if isinstance(error, PlumbError):
        return Ending("failed", str(error), "foreseen", why)
    return Ending("failed", explain(error, job), "peer" if is_lost_peer(error) else "unforeseen", why)


def explain_disk(error: Exception) -> str:
    """What a person reads of a job that met a full disk."""
    said = next((str(one) for one in chain(error) if is_disk_full(one)), str(error))
    kept = "What was complete is kept, and the job goes on by itself when there is room."
    return f"The disk is full. {kept} [{said}]"


def explain(error: Exception, job: JobFile | None = None) -> str:
    """One sentence for an error that nobody foresaw; the traceback is in the log."""
    memory = next((one for one in chain(error) if is_out_of_memory(one)), None)
    if memory is not None:
        return explain_memory(memory, job.parsed() if job else None, job.device if job else "")
    return f"{type(error).__name__}: {error}"


def _terminate_softly(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the last word off
    raise Terminated(f"ended by {signal.Signals(number).name}")


def prepare_process() -> None:
    """The environment and the signal of a process that works on a job."""
    switch_off(os.environ)
    # OpenMP's threads spin while they wait; beside other busy processes a step took ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A crash in a library's own code leaves Python's stack in the log.
    faulthandler.enable()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate_softly)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m jobs.worker RUN_DIR", file=sys.stderr)
        return 2
    prepare_process()
    code = work(Path(arguments[0]).resolve())
    if code in (DISK_FULL, CANNOT_WRITE):
        os._exit(code)  # the interpreter's own end may fail on the same disk, and change the code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
