"""How often the kernel has ended a process for memory: counters that a worker notes when it begins.

A SIGKILL says nothing of who sent it. A counter that has risen since the attempt began does, nearly: another
process of the machine, or of the same container, may have been the one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_WHOLE = Path("/proc/vmstat")
_OWN = Path("/proc/self/cgroup")


def memory_kills() -> dict[str, int]:
    """{file: how often the kernel has ended a process for memory}, of those counters that are there.

    A container's root cgroup and this process's own, of version 2 (memory.events) or 1 (memory.oom_control), and
    the whole machine's.
    """
    found = {}
    for path in [*_own_counters(), _WHOLE]:
        number = _read(path)
        if number is not None:
            found[str(path)] = number
    return found


def has_risen(before: Mapping[str, object]) -> bool:
    """Whether one of these counters stands higher now. One that is gone, or began anew at a reboot, doesn't."""
    for name, number in before.items():
        now = _read(Path(name)) if isinstance(number, int) and _is_counter(name) else None
        if now is not None and isinstance(number, int) and now > number:
            return True
    return False


def _own_counters() -> list[Path]:
    paths = [_CGROUPS / "memory.events", _CGROUPS / "memory" / "memory.oom_control"]
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return paths
    for line in lines:
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        inside = place.strip("/")
        if not inside or ".." in inside.split("/"):
            continue
        if not controllers:
            paths.append(_CGROUPS / inside / "memory.events")
        elif "memory" in controllers.split(","):
            paths.append(_CGROUPS / "memory" / inside / "memory.oom_control")
    return paths


def _is_counter(name: str) -> bool:
    """A worker tells the names: nothing else is read for its sake."""
    return name == str(_WHOLE) or Path(name).name in ("memory.events", "memory.oom_control")


def _read(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.strip().isdigit():
            return int(number)
    return None
