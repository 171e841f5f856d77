"""The devices of this Plumb as they are now: memory, load, and who is on them. Torch-free, and never raises.

A GPU's figures are nvidia-smi's; the CPU's are those of the container where there is one. Each process is told
apart as a job of this data folder or somebody else's: a worker and all that it starts carry their run folder in
their environment.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from jobs import limits, nvidia
from jobs.processes import RUN
from jobs.settings import Settings, visible_devices
from storage.folder import DataFolder
from storage.units import in_words

#: For how long a look holds; of a driver that hangs, for how long it is left in peace.
FRESH_SECONDS, HANGING_SECONDS = 2.0, 60.0
#: Over how many seconds at least the CPU's load is taken, and at most.
_LOAD_SECONDS = (0.2, 60.0)

#: Other people's processes on the CPU are told from this share of memory or of a processor on, the largest few.
OTHERS_SHARE, OTHERS_BUSY, MOST_OTHERS = 0.03, 0.5, 6

#: A GPU of whose memory others hold this share is as good as theirs.
CROWDED_SHARE = 0.9
#: What a GPU that nobody uses may hold: the driver's own, a screen.
IDLE_BYTES = 800_000_000


@dataclass(frozen=True)
class DeviceProcess:
    """A process on a device.

    Attributes:
        user: "" where it cannot be told.
        bytes: of the device's memory; None where it isn't told.
        job: the job of this data folder that it belongs to; None for anybody else's.
        seen: it can be looked at from here. In a container nvidia-smi may give the numbers that processes have
            outside: then nobody knows whose they are.
    """

    pid: int
    name: str
    user: str = ""
    bytes: int | None = None
    job: int | None = None
    seen: bool = True


@dataclass(frozen=True)
class Device:
    """A device slot: memory in bytes, load as a share of 1, temperature in °C; None where it isn't told.

    Attributes:
        problem: why figures are missing; "" where they are not.
        note: what the figures are of, where that isn't plain.
    """

    slot: str
    name: str = ""
    total: int | None = None
    used: int | None = None
    free: int | None = None
    load: float | None = None
    temperature: float | None = None
    processes: tuple[DeviceProcess, ...] = ()
    problem: str = ""
    note: str = ""

    @property
    def foreign(self) -> tuple[DeviceProcess, ...]:
        """Processes of which it is known that they are none of this data folder's jobs."""
        return tuple(one for one in self.processes if one.seen and one.job is None)

    @property
    def foreign_bytes(self) -> int:
        """Memory that those hold, as far as the driver tells."""
        return sum(one.bytes or 0 for one in self.foreign)


# looking ----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_looked: dict[tuple[Path, tuple[str, ...]], tuple[float, tuple[Device, ...]]] = {}
_hangs = (0.0, "")  # until when the driver is not asked, and why
_spent: tuple[float, float] | None = None  # (moment, processor seconds) of the last look


def look(settings: Settings, max_age: float = FRESH_SECONDS) -> tuple[Device, ...]:
    """Every slot of `settings.devices`, from a look at most `max_age` seconds ago.

    Takes as long as nvidia-smi, at most about ten seconds; a driver that hangs isn't asked again for a minute. Of
    several who ask at once, one looks.
    """
    key = (settings.folder.root, settings.devices)
    kept = _looked.get(key)
    if kept is not None and time.monotonic() - kept[0] < max_age:
        return kept[1]
    # Whoever has something to go by need not wait for the one who looks.
    if not _lock.acquire(blocking=kept is None):
        assert kept is not None
        return kept[1]
    try:
        kept = _looked.get(key)
        if kept is None or time.monotonic() - kept[0] >= max_age:
            kept = (time.monotonic(), _look(settings.folder, settings.devices))
            _looked[key] = kept
        return kept[1]
    finally:
        _lock.release()


def forget() -> None:
    """Look again at the next question, at a driver that hung as well."""
    global _hangs
    _looked.clear()
    _hangs = (0.0, "")


def _look(folder: DataFolder, slots: Sequence[str]) -> tuple[Device, ...]:
    found: dict[str, Device] = {}
    readers: tuple[Callable[[DataFolder, Sequence[str]], Iterator[Device]], ...] = (_gpus, _machine)
    for read in readers:
        try:
            found |= {device.slot: device for device in read(folder, slots)}
        except Exception as error:  # a page that shows half is worth more than none
            told = f"It cannot be looked at ({type(error).__name__}: {error})."
            missing = [slot for slot in slots if slot not in found and _reads(read, slot)]
            found |= {slot: Device(slot, problem=told) for slot in missing}
    return tuple(found.get(slot, Device(slot, problem="Nothing is known of it.")) for slot in slots)


def _reads(read: object, slot: str) -> bool:
    return slot.startswith("cuda:") == (read is _gpus)


# GPUs -------------------------------------------------------------------------------------------------------


def _gpus(folder: DataFolder, slots: Sequence[str]) -> Iterator[Device]:
    global _hangs
    wanted = [slot for slot in slots if slot.startswith("cuda:")]
    if not wanted:
        return
    until, why = _hangs
    try:
        if time.monotonic() < until:
            raise nvidia.Trouble(why)
        gpus = nvidia.read_gpus(nvidia.SECONDS)
    except nvidia.Trouble as trouble:
        if trouble.hung:
            _hangs = (time.monotonic() + HANGING_SECONDS, str(trouble))
        yield from (Device(slot, problem=str(trouble)) for slot in wanted)
        return
    try:
        running, note = nvidia.read_processes(nvidia.SECONDS), ""
    except nvidia.Trouble as trouble:
        running, note = [], f"Its processes are not known. {trouble}"
    for slot in wanted:
        gpu, problem = gpu_of(slot, gpus)
        if gpu is None:
            yield Device(slot, problem=problem)
            continue
        there = [process for process in running if process.uuid == gpu.uuid]
        yield Device(
            slot=slot,
            name=gpu.name,
            total=gpu.total,
            used=gpu.used,
            free=gpu.free if gpu.free is not None else _less(gpu.total, gpu.used),
            load=gpu.load,
            temperature=gpu.temperature,
            processes=tuple(sorted((_on_gpu(folder, one) for one in there), key=_by_size)),
            note=note,
        )


def gpu_of(slot: str, gpus: Sequence[nvidia.Gpu]) -> tuple[nvidia.Gpu | None, str]:
    """(the GPU that a slot stands for, else why there is none).

    CUDA_VISIBLE_DEVICES is obeyed as `jobs.settings.detect_devices` and the workers do: it may name numbers, UUIDs
    or beginnings of UUIDs. Numbers are counted by bus, as nvidia-smi does and workers are told to.
    """
    place = int(slot.removeprefix("cuda:"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = str(place)
    if visible is not None:
        names = visible_devices(visible)
        if place >= len(names):
            return None, f"CUDA_VISIBLE_DEVICES={visible} names {len(names)} GPUs: there is no {slot}."
        name = names[place]
    if name.startswith("MIG-"):
        return None, "It is a part of a GPU (MIG), of which nvidia-smi gives no figures in a list."
    found = [gpu for gpu in gpus if (name.isdecimal() and gpu.index == int(name)) or gpu.uuid == name]
    found = found or [gpu for gpu in gpus if name.startswith("GPU-") and gpu.uuid.startswith(name)]
    if len(found) != 1:
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)
        return None, f"There is no GPU {name} for {slot}; nvidia-smi lists {there}."
    return found[0], ""


def _on_gpu(folder: DataFolder, told: nvidia.GpuProcess) -> DeviceProcess:
    short = Path(told.name.split()[0]).name if told.name.strip() and not told.name.startswith("[") else "a process"
    found = DeviceProcess(told.pid, short, bytes=told.bytes, seen=False)
    try:
        process = psutil.Process(told.pid)
        with process.oneshot():
            job = _job_of(folder, process)
            if job is None and not _is_same(process, told.name):
                return found  # the number of a process outside of this container, which another bears in here
            return replace(found, name=process.name() or short, user=_user(process), job=job, seen=True)
    except psutil.Error:
        return found


def _is_same(process: psutil.Process, name: str) -> bool:
    """Whether the driver's name for a process, a path or its words, fits it. One that isn't told fits any."""
    if not name.strip() or name.startswith("["):
        return True
    told = Path(name.split()[0]).name
    try:
        words = process.cmdline()
    except psutil.Error:
        words = []
    known = {process.name(), *(Path(word).name for word in words[:1])}
    return any(one and (told.startswith(one) or one.startswith(told)) for one in known)


# the machine ------------------------------------------------------------------------------------------------


def _machine(folder: DataFolder, slots: Sequence[str]) -> Iterator[Device]:
    wanted = [slot for slot in slots if not slot.startswith("cuda:")]
    if not wanted:
        return
    there, cpus = limits.memory(), limits.cpus()
    processors = f"{cpus:g} processor{'' if cpus == 1 else 's'}"
    note = "Memory as the container's limit allows, not the machine's." if there.limited else ""
    running = tuple(_on_cpu(folder, there.total))
    for slot in wanted:
        yield Device(
            slot=slot,
            name=f"Apple GPU, {processors}" if slot == "mps" else processors,
            total=there.total,
            used=there.used,
            free=there.free,
            load=_cpu_load(cpus) if slot == "cpu" else None,
            processes=running,
            note="It shares the machine's memory." if slot == "mps" else note,
        )


def _cpu_load(cpus: float) -> float:
    """The busy share of the processors since the last look; the first one waits an instant for a second figure."""
    global _spent
    shortest, longest = _LOAD_SECONDS
    before = _spent
    if before is None or not shortest <= time.monotonic() - before[0] <= longest:
        before = (time.monotonic(), limits.cpu_seconds())
        time.sleep(shortest)
    _spent = (time.monotonic(), limits.cpu_seconds())
    return min(1.0, max(0.0, (_spent[1] - before[1]) / (_spent[0] - before[0]) / cpus))


def _on_cpu(folder: DataFolder, total: int) -> Iterator[DeviceProcess]:
    """Jobs' processes, and the largest and busiest of others."""
    own, others = [], []
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                job, size = _job_of(folder, process), process.memory_info().rss
                if job is not None:
                    own.append(DeviceProcess(process.pid, process.name(), _user(process), size, job))
                    continue
                busy = process.cpu_percent()  # of one processor in %, since the last look
                large = size >= OTHERS_SHARE * total or busy >= 100 * OTHERS_BUSY
                if large and not _is_plumb(process):
                    others.append(DeviceProcess(process.pid, process.name(), _user(process), size))
        except psutil.Error:
            continue
    yield from sorted(own, key=_by_size)
    yield from sorted(others, key=_by_size)[:MOST_OTHERS]


def _is_plumb(process: psutil.Process) -> bool:
    """The process that asks, or a supervisor."""
    return process.pid == os.getpid() or process.cmdline()[1:4] == ["-m", "jobs", "supervise"]


# processes --------------------------------------------------------------------------------------------------


def _job_of(folder: DataFolder, process: psutil.Process) -> int | None:
    """The job of this data folder that a process belongs to; other users' environments cannot be read."""
    try:
        run = process.environ().get(RUN)
    except (psutil.Error, OSError, ValueError):
        return None
    path = Path(run) if run else None
    return int(path.name) if path is not None and path.parent == folder.runs and path.name.isdecimal() else None


def _user(process: psutil.Process) -> str:
    try:
        return process.username()
    except (psutil.Error, KeyError):
        return ""


def _by_size(process: DeviceProcess) -> tuple[int, int]:
    return -(process.bytes or 0), process.pid


def _less(total: int | None, used: int | None) -> int | None:
    return None if total is None or used is None else max(0, total - used)


# what follows from it ---------------------------------------------------------------------------------------


def crowded(found: Sequence[Device]) -> dict[str, str]:
    """The GPUs that other people's processes fill, by slot, each with words for how far.

    Only processes that are surely somebody else's count: what cannot be looked at from a container may be our own.
    """
    full = {}
    for device in found:
        if not device.slot.startswith("cuda:") or not device.total:
            continue
        share = device.foreign_bytes / device.total
        if share >= CROWDED_SHARE:
            full[device.slot] = f"{min(share, 1.0):.0%} of its memory"
    return full


def leftover(settings: Settings, slot: str, job_id: int | None = None) -> str:
    """What a job that has ended has left on its GPU, in words for a log; "" for nothing, or where it isn't known.

    Args:
        job_id: the job; None for whichever of this data folder's.
    """
    if not slot.startswith("cuda:"):
        return ""
    device = next((one for one in look(settings, max_age=0.0) if one.slot == slot), None)
    if device is None or device.used is None:
        return ""
    own = [one for one in device.processes if one.job is not None and job_id in (None, one.job)]
    if own:
        told = ", ".join(f"process {one.pid} of job {one.job} ({_size(one)})" for one in own)
        return f"{slot} is not free yet: {told}"
    unexplained = device.used - sum(one.bytes or 0 for one in device.processes)
    if unexplained > IDLE_BYTES and all(one.bytes is not None for one in device.processes):
        return f"{slot} holds {in_words(unexplained)} that no process which can be seen accounts for"
    return ""


def _size(process: DeviceProcess) -> str:
    return in_words(process.bytes) if process.bytes is not None else "of unknown size"
