"""What `nvidia-smi` says of GPUs and of their processes: it comes with the driver, so that no package is needed.

It may be missing, refuse, or hang in the driver for good; whoever asks gets an answer or `Trouble` in time.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass

PROGRAM = "nvidia-smi"
SECONDS = 5.0  # without persistence mode each call wakes the driver, a second or two with many GPUs

_MIB = 2**20
_UNITS = {"": _MIB, "b": 1, "kib": 2**10, "mib": _MIB, "gib": 2**30, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)\s*([a-z%°]*)$", re.IGNORECASE)

# What may hold a comma stands last.
_GPU = (
    "index",
    "uuid",
    "memory.total",
    "memory.used",
    "memory.free",
    "utilization.gpu",
    "temperature.gpu",
    "name",
)
_PROCESS = ("gpu_uuid", "pid", "used_memory", "process_name")


class Trouble(Exception):
    """Why nvidia-smi tells nothing.

    Attributes:
        missing: there is no such program: as a rule no GPU of this make either.
        hung: it gave no answer in time; a process of it may still be there.
    """

    def __init__(self, text: str, *, missing: bool = False, hung: bool = False) -> None:
        super().__init__(text)
        self.missing, self.hung = missing, hung


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes, load as a share of 1, temperature in °C; None where the driver doesn't say."""

    index: int
    uuid: str
    name: str
    total: int | None
    used: int | None
    free: int | None
    load: float | None
    temperature: float | None


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU; `bytes` None where the driver doesn't say."""

    uuid: str
    pid: int
    bytes: int | None
    name: str


def read_gpus(seconds: float = SECONDS) -> list[Gpu]:
    """All GPUs, whatever CUDA_VISIBLE_DEVICES says. Raises Trouble."""
    found = []
    for values in _query(f"--query-gpu={','.join(_GPU)}", len(_GPU), seconds):
        index, uuid, total, used, free, load, temperature, name = values
        number = _number(index)
        if number is None:
            continue  # a warning between the lines
        found.append(
            Gpu(
                index=int(number),
                uuid=uuid,
                name=name,
                total=_bytes(total),
                used=_bytes(used),
                free=_bytes(free),
                load=None if (share := _number(load)) is None else share / 100,
                temperature=_number(temperature),
            )
        )
    if not found:
        raise Trouble(f"{PROGRAM} lists no GPU.")
    return found


def read_processes(seconds: float = SECONDS) -> list[GpuProcess]:
    """Processes that compute on a GPU. Raises Trouble.

    In a container it may list none, or by the numbers that they have outside.
    """
    found = []
    for uuid, pid, used, name in _query(f"--query-compute-apps={','.join(_PROCESS)}", len(_PROCESS), seconds):
        if pid.isdecimal():
            found.append(GpuProcess(uuid, int(pid), _bytes(used), name))
    return found


@dataclass(frozen=True)
class Driver:
    """Versions: the driver's, and the newest CUDA that it runs, as (12, 4); None where it isn't told."""

    version: str
    cuda: tuple[int, int] | None


def read_driver(seconds: float = SECONDS) -> Driver:
    """Read from the head of nvidia-smi's table, whose words have changed over the years. Raises Trouble."""
    text = ask((), seconds)
    version = re.search(r"(?:Driver|KMD) Version\s*:\s*([\d.]+)", text)
    cuda = re.search(r"CUDA (?:UMD |Driver )?Version\s*:\s*(\d+)\.(\d+)", text)
    return Driver(version[1] if version else "", (int(cuda[1]), int(cuda[2])) if cuda else None)


def _query(what: str, fields: int, seconds: float) -> list[list[str]]:
    lines = ask((what, "--format=csv,noheader,nounits"), seconds).splitlines()
    rows = [[part.strip() for part in line.split(",", fields - 1)] for line in lines]
    return [row for row in rows if len(row) == fields]


def ask(arguments: tuple[str, ...], seconds: float = SECONDS) -> str:
    """What it prints.

    Raises:
        Trouble: it is missing, refuses, or says nothing within `seconds`. One that hangs in the driver cannot be
            ended: it is left behind.
    """
    try:
        process = subprocess.Popen(
            [PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except FileNotFoundError:
        raise Trouble(f"{PROGRAM} is not there: no NVIDIA driver is installed.", missing=True) from None
    except OSError as error:
        raise Trouble(f"{PROGRAM} cannot be started ({error.strerror}).") from error
    try:
        told = process.communicate(timeout=seconds)[0].decode("utf-8", errors="replace")
    except subprocess.TimeoutExpired:
        _leave(process)
        raise Trouble(
            f"{PROGRAM} gave no answer within {seconds:g} seconds: the driver hangs, or the machine is very busy.",
            hung=True,
        ) from None
    if process.returncode:
        said = " ".join(line.strip() for line in told.splitlines() if line.strip())[:300]
        raise Trouble(f"{PROGRAM} refuses: {said or f'exit code {process.returncode}'}")
    return told


def _leave(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        pass  # in a call to the driver; Popen looks after it when the next process is started
    if process.stdout:
        process.stdout.close()


def _number(text: str) -> float | None:
    """A number before its unit; None for `[N/A]`, `[Not Supported]`, `[Unknown Error]` and their like."""
    found = _NUMBER.match(text.strip())
    return float(found[1]) if found else None


def _bytes(text: str) -> int | None:
    """MiB unless another unit is named: some versions name one although asked not to."""
    found = _NUMBER.match(text.strip())
    factor = _UNITS.get(found[2].lower()) if found else None
    return int(float(found[1]) * factor) if found and factor is not None else None
