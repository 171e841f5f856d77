"""A stand-in for nvidia-smi: a shell script on PATH that prints what a test gives it, refuses, or hangs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs import devices, nvidia

HEAD = """+-----------------------------------------------------------------------------+
| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: {cuda}     |
|-------------------------------+----------------------+----------------------+
"""
GPUS = """0, GPU-aaaa-1, 24564, 21100, 3464, 93, 71, NVIDIA GeForce RTX 4090
1, GPU-bbbb-2, 81559, 5, 81554, 0, 34, NVIDIA H100 80GB HBM3
"""


@dataclass
class Smi:
    """Change its attributes, then `write`; `calls` are the arguments of each call."""

    folder: Path
    gpus: str = GPUS
    processes: str = ""
    head: str = field(default=HEAD.format(cuda="12.2"))
    body: str = ""  # a script of its own, in place of the answers

    def write(self, **changes: str) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        for name in ("gpus", "processes", "head"):
            (self.folder / name).write_text(getattr(self, name))
        body = self.body or (
            'case "$*" in\n'
            f"  *--query-gpu=*) /bin/cat '{self.folder}/gpus' ;;\n"
            f"  *--query-compute-apps=*) /bin/cat '{self.folder}/processes' ;;\n"
            f"  -L) /bin/echo 'GPU 0: one' ;;\n"
            f"  *) /bin/cat '{self.folder}/head' ;;\n"
            "esac\n"
        )
        script = self.folder / nvidia.PROGRAM
        script.write_text(f"#!/bin/sh\n/bin/echo \"$*\" >> '{self.folder}/calls'\n{body}")
        script.chmod(0o755)
        devices.forget()

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Put it before all else on PATH."""
    folder.mkdir()
    made = Smi(folder)
    made.write()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made
