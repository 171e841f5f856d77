"""What memory and processor time this process may use: the machine's, or what its container leaves of it.

In a container the machine's own figures mislead: one of 64 GB on a machine of 512 has its processes killed at 64.
Control groups of version 2 and of version 1 are read, those of this process and all above it: each binds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Memory:
    """In bytes.

    Attributes:
        free: what can still be taken before something must go.
        limited: a container's limit is what counts, not the machine's memory.
    """

    total: int
    used: int
    free: int
    limited: bool = False


def memory(cgroups: Path = CGROUPS, own: Path = OWN) -> Memory:
    """The memory that counts. A page cache that can be dropped is free, in a container as on the machine."""
    machine = psutil.virtual_memory()
    found = Memory(machine.total, machine.total - machine.available, machine.available)
    for limit, used in _memory_limits(cgroups, own):
        if limit < found.total:
            found = Memory(limit, used, max(0, min(limit - used, machine.available)), True)
    return found


def cpus(cgroups: Path = CGROUPS, own: Path = OWN) -> float:
    """How many processors may be kept busy; a container's share need not be a whole number."""
    try:
        there: float = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        there = os.cpu_count() or 1
    return min([there, *_cpu_limits(cgroups, own)])


def cpu_seconds(cgroups: Path = CGROUPS, own: Path = OWN) -> float:
    """Processor seconds spent so far by all that shares these processors: the container, else the machine."""
    if _cpu_limits(cgroups, own):
        for folder in _folders("cpuacct", cgroups, own):
            micro = _fields(folder / "cpu.stat").get("usage_usec")
            if micro is not None:
                return micro / 1e6
            nano = _number(folder / "cpuacct.usage")
            if nano is not None:
                return nano / 1e9
    times = psutil.cpu_times()
    # Linux has guests' time in the users' already.
    besides = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(times) - sum(getattr(times, name, 0.0) for name in besides))


def _memory_limits(cgroups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of each group that has a limit."""
    for folder in _folders("memory", cgroups, own):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None:
                yield most, max(0, now - _fields(folder / "memory.stat").get(cache, 0))


def _cpu_limits(cgroups: Path, own: Path) -> list[float]:
    found = []
    for folder in _folders("cpu", cgroups, own):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            found.append(quota / period)
    return found


def _folders(controller: str, cgroups: Path, own: Path) -> list[Path]:
    """This process's group of a controller and those above it, the innermost first.

    Within a container its own group may look like the root, or have a path that leads nowhere in there.
    """
    found: list[Path] = []
    for line in _text(own).splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        parts = [part for part in place.split("/") if part]
        if ".." not in parts:
            found += [root.joinpath(*parts[:depth]) for depth in range(len(parts), 0, -1)]
    return list(dict.fromkeys([*found, cgroups / controller, cgroups]))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    """A whole number; None where there is none: `max` says that there is no limit."""
    return _parsed(_text(path).strip())


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        number = _parsed(value.strip())
        if number is not None:
            found[name] = number
    return found


def _parsed(text: str) -> int | None:
    return int(text) if text.isdecimal() or (text[:1] == "-" and text[1:].isdecimal()) else None
