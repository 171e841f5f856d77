"""The doctor on Python, packages, torch and the driver. Torch is asked in a process of its own, never imported.

The trap that is looked for first: a torch that cannot use the GPU that is there, says nothing, and computes on the
CPU, a hundred times slower.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import nvidia
from jobs.checks import Check
from jobs.processes import PROJECT

OLDEST_PYTHON = (3, 11)
REQUIREMENTS, DEMO = "requirements.txt", "requirements-demo.txt"
TORCH_SECONDS, DRIVER_SECONDS = 7.0, 4.0

# Warnings are what torch says of a driver that is too old, or of a GPU that is too new for it.
_ASK_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import torch
    found = {"version": torch.__version__, "cuda": torch.version.cuda, "rocm": torch.version.hip}
    found["available"] = torch.cuda.is_available()
    found["count"] = torch.cuda.device_count() if found["available"] else 0
    found["mps"] = torch.backends.mps.is_available()
    if found["available"]:
        try:
            torch.cuda.init()
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
    found["warnings"] = [str(one.message) for one in told if "cuda" in str(one.message).lower()]
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True)
class Torch:
    """What torch says of itself.

    Attributes:
        cuda: the CUDA that it was built for, as "12.8"; "" for a build without.
        gpus: how many it can use.
        problem: why it cannot be used, or not on a GPU.
        told: its warnings about GPUs.
        slow: it gave no answer in time.
    """

    version: str = ""
    cuda: str = ""
    rocm: str = ""
    gpus: int = 0
    problem: str = ""
    told: tuple[str, ...] = ()
    slow: bool = False


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says: versions, or why it says nothing, and the GPUs' names."""

    version: str = ""
    cuda: tuple[int, int] | None = None
    gpus: tuple[str, ...] = ()
    trouble: nvidia.Trouble | None = None


def ask_torch(python: str = sys.executable, seconds: float = TORCH_SECONDS) -> Callable[[], Torch]:
    """Begin to ask; what is returned waits for the answer.

    Args:
        seconds: from now on, after which nobody waits any more.
    """
    deadline = time.monotonic() + seconds
    process = subprocess.Popen(
        [python, "-c", _ASK_TORCH],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def answer() -> Torch:
        try:
            out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Torch(problem=f"it was not imported within {seconds:g} seconds", slow=True)
        lines = out.decode(errors="replace").strip().splitlines()
        try:
            found: dict[str, Any] = json.loads(lines[-1])
        except (IndexError, ValueError):
            said = err.decode(errors="replace").strip().splitlines()
            return Torch(
                problem=f"it cannot be imported: {said[-1] if said else f'exit code {process.returncode}'}"
            )
        return Torch(
            version=found["version"],
            cuda=found["cuda"] or "",
            rocm=found["rocm"] or "",
            gpus=found["count"],
            problem=found.get("error", ""),
            told=tuple(found["warnings"]),
        )

    return answer


def ask_driver() -> Driver:
    """Ask nvidia-smi; takes as long as that does, at most eight seconds."""
    try:
        gpus = tuple(gpu.name for gpu in nvidia.read_gpus(DRIVER_SECONDS))
        found = nvidia.read_driver(DRIVER_SECONDS)
    except nvidia.Trouble as trouble:
        return Driver(trouble=trouble)
    return Driver(found.version, found.cuda, gpus)


def python() -> Iterator[Check]:
    text = f"{platform.python_version()} on {platform.system()} {platform.release()} ({platform.machine()})"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Check("Python", "wrong", f"{text}; Plumb needs {oldest}", f"install Python {oldest} or newer")
    else:
        yield Check("Python", "ok", text)


def packages(project: Path = PROJECT) -> Iterator[Check]:
    """The direct dependencies against the versions that Plumb was tested with."""
    pins = read_pins(project / REQUIREMENTS)
    if not pins:
        yield Check("Packages", "warning", f"{REQUIREMENTS} is not there, or pins nothing")
        return
    found = {name: version_of(name) for name in pins}
    missing = [name for name, version in found.items() if version is None]
    others = [
        f"{name} {there} (tested: {pins[name]})" for name, there in found.items() if _differs(there, pins[name])
    ]
    remedy = f"pip install -r {REQUIREMENTS}"
    if missing:
        yield Check("Packages", "wrong", f"not installed: {', '.join(missing)}", remedy)
    if others:
        yield Check("Packages", "warning", f"other versions than tested: {', '.join(others)}", remedy)
    if not missing and not others:
        yield Check("Packages", "ok", f"all {len(pins)} as in {REQUIREMENTS}")
    demo = [name for name in read_pins(project / DEMO) if version_of(name) is None]
    if demo:
        text = f"not installed: {', '.join(demo)}; the embedded demo needs them, nothing else does"
        yield Check("Demo", "warning", text, f"pip install --no-deps -r {DEMO}")


def read_pins(path: Path) -> dict[str, str]:
    """{package: version} of the lines `name==version`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found = (re.match(r"([\w.-]+)(?:\[[\w,-]*\])?==([^\s;#]+)", line.strip()) for line in lines)
    return {one[1]: one[2] for one in found if one}


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _differs(there: str | None, pinned: str) -> bool:
    """Builds of one version (2.13.0+cpu) are the same package."""
    return there is not None and there.partition("+")[0] != pinned.partition("+")[0]


def torch_and_driver(torch: Torch, driver: Driver) -> Iterator[Check]:
    """Whether torch can use the GPUs that the driver knows."""
    yield _driver(driver)
    if torch.slow:
        yield Check(
            "torch", "warning", f"nothing is known of it: {torch.problem}", "check again on a quieter machine"
        )
        return
    if not torch.version:
        yield Check("torch", "wrong", torch.problem, f"pip install -r {REQUIREMENTS}")
        return
    build = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.rocm}" if torch.rocm else "the CPU alone"
    text = f"{torch.version}, built for {build}"
    if torch.gpus and not torch.problem:
        text = f"{text}; it can use {torch.gpus} GPU{'' if torch.gpus == 1 else 's'}"
        if torch.told:
            remedy = "install the torch or the driver that it asks for"
            yield Check("torch", "warning", f"{text}; it says: {_short(torch.told)}", remedy)
        else:
            yield Check("torch", "ok", text)
    elif driver.gpus:
        yield _unused(torch, driver, text)
    else:
        yield Check("torch", "ok", f"{text}; there is no GPU that it could use")


def _driver(driver: Driver) -> Check:
    if driver.trouble is None:
        cuda = f"runs CUDA up to {_dotted(driver.cuda)}" if driver.cuda else "does not say which CUDA it runs"
        names = [f"{driver.gpus.count(name)} × {name}" for name in dict.fromkeys(driver.gpus)]
        return Check("NVIDIA driver", "ok", f"{driver.version or 'unknown'}, {cuda}; {', '.join(names)}")
    if driver.trouble.missing:
        return Check("NVIDIA driver", "ok", "none: jobs compute on the CPU")
    remedy = "see what `nvidia-smi` says on a terminal; after a driver update a restart of the machine is due"
    return Check("NVIDIA driver", "wrong", str(driver.trouble), remedy)


def _unused(torch: Torch, driver: Driver, text: str) -> Check:
    """Why torch computes on the CPU beside a GPU."""
    silent = f"{text}; jobs would compute on the CPU although there is a GPU"
    if not torch.cuda and not torch.rocm:
        pinned = read_pins(PROJECT / REQUIREMENTS).get("torch", torch.version.partition("+")[0])
        remedy = f"install torch's build for CUDA: pip install --force-reinstall torch=={pinned}"
        return Check("torch", "wrong", silent, remedy)
    needs = _version(torch.cuda)
    if driver.cuda and needs and driver.cuda[0] < needs[0]:
        told = f"the driver {driver.version} is too old for it: it runs CUDA up to {_dotted(driver.cuda)}"
        remedy = (
            f"update the NVIDIA driver to one for CUDA {needs[0]}.0 or newer, or install a torch for an older CUDA"
        )
        return Check("torch", "wrong", f"{silent}: {told}", remedy)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not any(part.strip() not in ("", "-1") for part in hidden.split(",")):
        return Check(
            "torch",
            "warning",
            f"{text}; CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU, so that jobs compute on the CPU",
            "unset CUDA_VISIBLE_DEVICES, or name the GPUs to use, and start Plumb again",
        )
    said = _short((torch.problem, *torch.told))
    remedy = "see what torch says; after an update of the driver, restart the machine"
    if driver.cuda and needs and driver.cuda < needs:
        remedy = (
            f"update the NVIDIA driver to one for CUDA {torch.cuda} or newer, or install a torch for an older one"
        )
    return Check("torch", "wrong", f"{silent}{f': {said}' if said else ''}", remedy)


def _short(texts: tuple[str, ...]) -> str:
    """What torch said, without its advice for programmers."""
    said = [" ".join(text.split()) for text in dict.fromkeys(texts) if text.strip()]
    return "; ".join(text if len(text) < 240 else f"{text[:240]}…" for text in said[:3])


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
