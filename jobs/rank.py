"""`python -m jobs.rank RUN_DIR`: one process of a training that runs in several; torchrun or accelerate starts it.

On this machine the launcher (jobs/launch.py) has it started. Of a training on several machines, the ranks of the
others are started there by hand, with `accelerate launch --config_file FILE -m jobs.rank RUN_DIR` on a copy of the
run folder.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from jobs.configs import TrainConfig
from jobs.launch import LAUNCHER, Ending, note_rank
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder
from jobs.worker import conclude, perform, prepare_process
from storage.errors import UserError

LOOK_SECONDS = 0.5


class RankReporter(Reporter):
    """Appends the first rank's events, but not that the job started, lives and ended; the others are silent."""

    def __init__(self, run: RunFolder, speaks: bool) -> None:
        super().__init__(run)
        self._speaks = speaks

    def __enter__(self) -> RankReporter:
        return self  # the launcher has told that the job started, and its heart beats

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def event(self, kind: str, **fields: Any) -> None:
        if self._speaks:
            super().event(kind, **fields)


def check_world(job: JobFile, world: int) -> None:
    """See that as many processes were started as the job asks for, before a model is loaded.

    Raises:
        UserError: another number was.
    """
    config = job.parsed()
    if isinstance(config, TrainConfig) and world != config.processes:
        by = f"accelerate_config {config.accelerate_config!r}" if config.accelerate_config else "the launcher"
        raise UserError(
            f"processes is {config.processes}, and {by} started {world}. Set num_processes in the file to "
            f"{config.processes}, and distributed_type to one that starts several (MULTI_GPU, FSDP, DEEPSPEED)."
        )


def watch(launcher: int | None) -> None:
    """End this process once the one that started it, or the job's launcher, is gone.

    Nobody else would: it would train on, and hold its device, beside the job's next attempt.
    """
    parent = os.getppid()
    try:
        known = psutil.Process(launcher) if launcher is not None else None
    except psutil.NoSuchProcess:
        _leave()

    def look() -> None:
        while os.getppid() == parent and (known is None or _lives(known)):
            time.sleep(LOOK_SECONDS)
        _leave()

    threading.Thread(target=look, name="watch", daemon=True).start()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _leave() -> None:
    print("The job's launcher is gone: leaving.", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)  # whatever the main thread does, in whatever library


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m jobs.rank RUN_DIR", file=sys.stderr)
        return 2
    launcher = os.environ.get(LAUNCHER)
    watch(int(launcher) if launcher else None)
    run = RunFolder(Path(arguments[0]).resolve())
    number, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    note_rank(run, number)
    prepare_process()

    def act(job: JobFile) -> None:
        check_world(job, world)
        with RankReporter(run, speaks=number == 0) as reporter:
            perform(run, job, reporter)

    ending = conclude(run, act)
    note_rank(run, number, ending)
    _finish(ending)
    return ending.code


def _finish(ending: Ending) -> None:
    """Leave at once where the job has failed: the interpreter's end may wait for ranks that wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if ending.code:
        os._exit(ending.code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
