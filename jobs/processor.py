"""What this machine's processor is good at. Torch-free."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

#: What oneDNN's kernels for bfloat16 need on x86; without them torch multiplies element by element, 80 times
#: slower than in float32 (docs/log.md).
_NEEDED = frozenset({"avx512bw", "avx512vl", "avx512dq"})


@cache
def computes_bfloat16() -> bool:
    """Whether bfloat16 is worth computing in on the CPU; True where that can't be told."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return flags is None or set(flags) >= _NEEDED
