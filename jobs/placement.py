"""Which device slots a job takes, all at once: one, or as many as a training has processes.

On the CPU the processes of a training share the one slot `cpu`. On GPUs each has a slot of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jobs.runs import RunFolder
from storage.errors import UserError
from storage.records import Job

#: accelerate's configuration as it was when the job was submitted, below the run folder's data/.
ACCELERATE_FILE = "accelerate.yaml"


class Wanted(NamedTuple):
    """`number` of these slots."""

    slots: tuple[str, ...]
    number: int


@dataclass(frozen=True)
class AccelerateFile:
    """What Plumb must know of accelerate's configuration; accelerate reads the rest itself.

    Attributes:
        processes: over all machines; None where the file leaves it to the command line.
    """

    text: str
    processes: int | None
    machines: int


def read_accelerate(path: Path) -> AccelerateFile:
    """Read accelerate's configuration, YAML or JSON.

    Raises:
        UserError: the file isn't there, or isn't one that `accelerate config` writes.
    """
    try:
        return _parsed(path, path.expanduser().read_bytes())
    except OSError as error:
        raise UserError(
            f"accelerate_config = {str(path)!r} cannot be read ({error.strerror}). Give the whole path of the "
            "file that `accelerate config --config_file FILE` writes."
        ) from error


def _parsed(path: Path, raw: bytes) -> AccelerateFile:
    """Raises UserError: it isn't a file that `accelerate config` writes."""
    try:
        text = raw.decode("utf-8")
        values = yaml.safe_load(text)  # JSON is YAML, too
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"accelerate_config = {str(path)!r} is not YAML: {str(error).splitlines()[0]}. "
            "Write it with `accelerate config --config_file FILE`."
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"accelerate_config = {str(path)!r} must hold names and values. "
            "Write it with `accelerate config --config_file FILE`."
        )
    processes = _whole(path, values, "num_processes", -1)
    machines = _whole(path, values, "num_machines", 1)
    if machines < 1:
        raise UserError(f"accelerate_config = {str(path)!r} has num_machines {machines}; it is 1 at least.")
    return AccelerateFile(text, processes if processes > 0 else None, machines)


def _whole(path: Path, values: Mapping[str, Any], name: str, default: int) -> int:
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"accelerate_config = {str(path)!r} has {name} {value!r}; it must be a whole number.")
    return value


def check_accelerate(path: Path, processes: int) -> AccelerateFile:
    """The file, if it starts as many processes as the job asks for.

    Raises:
        UserError: it doesn't, or cannot be read.
    """
    file = read_accelerate(path)
    if file.processes not in (None, processes):
        raise UserError(
            f"accelerate_config = {str(path)!r} starts {file.processes} processes (num_processes), and processes "
            f"is {processes}. Set both to the same number."
        )
    if processes % file.machines:
        raise UserError(
            f"processes = {processes} cannot be shared evenly by the {file.machines} machines (num_machines) "
            f"of accelerate_config = {str(path)!r}. Choose a multiple of {file.machines}."
        )
    return file


def wanted(device: str | None, processes: int, devices: Sequence[str]) -> Wanted:
    """The slots that a job may take, of those that there are, and how many of them.

    Args:
        device: the one that the job names; None for any.
        processes: of the job, on this machine.
        devices: this Plumb's slots.

    Raises:
        UserError: there are not so many, or one is named for several processes.
    """
    if processes == 1:
        return Wanted((device,) if device else tuple(devices), 1)
    gpus = tuple(name for name in devices if name.startswith("cuda:"))
    if device == "cpu" or (device is None and "cpu" in devices and not gpus):
        return Wanted(("cpu",), 1)
    if device is not None:
        remedy = "leave device empty" if len(gpus) >= processes else "set processes to 1, or device to cpu"
        raise UserError(
            f"processes = {processes} on device = {device!r}: one device runs one process. To use it, {remedy}."
        )
    if len(gpus) < processes:
        shown = f"{len(gpus)} ({', '.join(gpus)})" if gpus else f"none ({', '.join(devices)})"
        remedy = f"Set processes to {len(gpus)} or fewer" if gpus else "Set processes to 1"
        raise UserError(
            f"processes = {processes} needs as many GPUs, and this Plumb has {shown} "
            f"(set by --devices or PLUMB_DEVICES). {remedy}."
        )
    return Wanted(gpus, processes)


def wanted_by(job: Job, run: RunFolder, devices: Sequence[str]) -> Wanted:
    """The slots that a queued job waits for.

    Raises:
        UserError: this Plumb doesn't have so many; or as `processes_here`.
        OSError: as `processes_here`.
    """
    return wanted(job.device, processes_here(job.config, run), devices)


def processes_here(config: Mapping[str, Any], run: RunFolder) -> int:
    """How many of a job's processes run on this machine.

    Raises:
        UserError: accelerate's configuration is missing from the run folder, or isn't one.
        OSError: it cannot be read just now: its disk is away, or fails. Another time it may.
    """
    processes = int(config.get("processes", 1))
    if processes == 1 or not config.get("accelerate_config"):
        return processes
    file = run.path / "data" / ACCELERATE_FILE
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        if not run.path.is_dir():
            raise  # the whole folder is away, and may come back
        raise UserError(
            f"{ACCELERATE_FILE} is missing from the data of the run folder {run.path}, in which it was frozen. "
            "Run the job again (`python -m jobs again`), which packs it anew."
        ) from None
    return max(1, processes // _parsed(file, raw).machines)
