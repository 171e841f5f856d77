"""The device of a job, and what it can compute in."""

from __future__ import annotations

import os

import torch

from jobs.processor import computes_bfloat16
from storage.errors import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def claim_device(name: str) -> torch.device:
    """The device that job.json names, made the only one of its kind that this process sees.

    TRL's trainer takes every visible GPU; hiding the others, before CUDA wakes up, keeps a job to its slot.
    "auto" (a run folder that was moved to another machine) takes the first GPU, else the CPU. In a training of
    several processes each takes its own, by its number on this machine (LOCAL_RANK); accelerate counts among the
    visible ones, so that none is hidden.

    Raises:
        UserError: torch doesn't see it.
    """
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and (name == "auto" or name.startswith("cuda")):
        return _of_rank(name, int(rank))
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        raise UserError("The device 'mps' isn't there: torch sees no Apple GPU. Use cpu.")
    family, _, number = name.partition(":")
    if family != "cuda" or not (number or "0").isdecimal():
        raise UserError(f"Unknown device {name!r}; use cpu, cuda:0, cuda:1 … or mps.")
    index = int(number or "0")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= seen:
        raise UserError(
            f"The device {name!r} isn't there: torch {torch.__version__} sees {seen} CUDA devices. "
            "Use cpu, or install a CUDA build of torch and check the driver with nvidia-smi."
        )
    if torch.cuda.is_initialized():
        return torch.device("cuda", index)
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(os.environ.get("CUDA_VISIBLE_DEVICES"), index)
    return torch.device("cuda", 0)


def _of_rank(name: str, rank: int) -> torch.device:
    """The device of the process that is number `rank` on this machine, in a training of several.

    Args:
        name: the job's devices, as "cuda:0,cuda:1"; "auto" for all that there are.
    """
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not seen:
        return torch.device("cpu")
    given = name.count(",") + 1 if name != "auto" else seen
    if rank >= min(given, seen):
        raise UserError(
            f"Process {rank + 1} on this machine finds no device: the job has {given} ({name}), torch "
            f"{torch.__version__} sees {seen}. Set processes to {max(1, min(given, seen))}, or check the driver "
            "with nvidia-smi."
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def visible_device(visible: str | None, index: int) -> str:
    """What CUDA_VISIBLE_DEVICES must be for the device that is `index` among the `visible` ones."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    return names[index] if index < len(names) else str(index)


def check_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The dtype as torch's, or "auto" for what the weights were saved in: float32 on a CPU that has no bfloat16.

    Raises:
        UserError: the device can't compute in it.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" and not computes_bfloat16() else dtype
    if dtype not in DTYPES:
        raise UserError(f"Unknown precision {dtype!r}; use auto, {', '.join(DTYPES)}.")
    if dtype == "float16" and device.type == "cpu":
        raise UserError("dtype 'float16' is not for the CPU: it overflows and is slow. Use bfloat16 or float32.")
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("dtype 'bfloat16' is not supported by this GPU. Use float16 or float32.")
    return DTYPES[dtype]
