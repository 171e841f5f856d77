"""Out of memory: recognised in every spelling, and each remedy is one that the job's settings take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from jobs.configs import KINDS, DpoConfig, JobConfig, TrainConfig, parse_config
from jobs.out_of_memory import explain_memory, is_out_of_memory, remedies, smaller_batch
from jobs.runs import RunFolder
from jobs.worker import work
from storage.errors import PlumbError

PAPER = {"dataset": "x", "batch_size": 8, "global_batch": 128}
CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


class OutOfMemoryError(RuntimeError):
    """As torch's, by name."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError(CPU), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (ValueError("CUDA out of memory"), False),
        (KeyError("memory"), False),
    ],
)
def test_every_spelling_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_torchs_own_allocator_is_recognised() -> None:
    import torch

    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value), caught.value


def ended(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, **config: Any) -> str:
    """The reason of a job whose work raises this."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("jobs.worker.perform", fail)
    run: RunFolder = tiny.frozen_run(folder, kind, config)
    assert work(run.path) == 1
    end = tiny.events(run, "end")
    assert [event["status"] for event in end] == ["failed"]
    reason: str = end[0]["reason"]
    return reason


def test_a_training_is_told_its_own_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = ended(tmp_path / "run", monkeypatch, RuntimeError(CPU), "dpo", **PAPER)
    assert reason == (
        "This machine is out of memory. Set batch_size 8 → 4 (global_batch 128 stays: accumulation rises from "
        "16 to 32); or set gradient_checkpointing to true; or set lora_r 128 → 64; or use a smaller model or more "
        f"memory. [{CPU}]"
    )


def test_what_is_done_already_is_not_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"batch_size": 1, "gradient_checkpointing": True, "lora_r": 8}
    reason = ended(tmp_path / "run", monkeypatch, MemoryError(), "sft", **{**PAPER, **used})
    assert reason == "This machine is out of memory. Use a smaller model or more memory."


def test_on_a_gpu_four_bits_are_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLUMB_WORKER_DEVICE", "cuda:0")
    error = OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nsecond line")
    reason = ended(tmp_path / "run", monkeypatch, error, "dpo", **PAPER)
    assert reason.startswith("The device cuda:0 is out of memory. Set batch_size 8 → 4 ")
    assert "; or set quantization none → 4bit; or use a smaller model" in reason
    assert reason.endswith("[CUDA out of memory. Tried to allocate 2.00 GiB.]")
    assert "4bit" not in " ".join(remedies(DpoConfig.model_validate({**PAPER, "quantization": "4bit"}), "cuda:0"))


def test_a_generation_asks_for_a_smaller_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = ended(tmp_path / "run", monkeypatch, RuntimeError(CPU), "generate", batch_size=8)
    assert "Set batch_size 8 → 4; or use a smaller model" in reason
    alone = parse_config("generate", {"batch_size": 1, "candidates": 4, "max_new_tokens": 1024})
    assert list(remedies(alone, "cpu"))[:2] == [
        "set candidates 4 → 2 and run the job again for more",
        "set max_new_tokens 1024 → 512",
    ]


def test_a_contest_asks_for_a_smaller_batch() -> None:
    config = parse_config("contest", {"columns": ["base", "1"], "batch_size": 8, "max_new_tokens": 256})
    assert list(remedies(config, "cpu"))[:2] == ["set batch_size 8 → 4", "set max_new_tokens 256 → 128"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "push"])
def test_every_kind_has_a_remedy(kind: str) -> None:
    config = parse_config(kind, {"dataset": "x"} if issubclass(KINDS[kind], TrainConfig) else values_of(kind))
    assert explain_memory(MemoryError(), config, "cpu").endswith("more memory.")


def values_of(kind: str) -> dict[str, Any]:
    lacking: dict[str, dict[str, Any]] = {
        "merge": {"adapter": 1},
        "download": {"model": "owner/model"},
        "contest": {"columns": ("base", "1")},
        "grade": {"evaluation": 1},
    }
    return lacking.get(kind, {})


def test_a_job_file_that_cannot_be_read_has_a_remedy_too() -> None:
    assert explain_memory(MemoryError("no room"), None, "") == (
        "This machine is out of memory. Use a smaller model or more memory. [no room]"
    )


def test_an_error_that_was_foreseen_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = ended(tmp_path / "run", monkeypatch, PlumbError("CUDA out of memory, says a note"), "dpo", **PAPER)
    assert reason == "CUDA out of memory, says a note"


@given(size=st.integers(1, 64), batches=st.integers(1, 64), processes=st.integers(1, 8))
def test_the_smaller_batch_is_always_valid_and_the_steps_stay(size: int, batches: int, processes: int) -> None:
    values = {
        "dataset": "x",
        "batch_size": size,
        "processes": processes,
        "global_batch": size * batches * processes,
    }
    config = DpoConfig.model_validate(values)
    smaller = smaller_batch(config)
    assert (smaller is None) == (size == 1)
    if smaller is None:
        return
    assert smaller <= size / 2
    again = DpoConfig.model_validate({**values, "batch_size": smaller})  # raises where it doesn't divide
    assert again.global_batch == config.global_batch
    told: JobConfig = config
    rise = re.search(r"accumulation rises from (\d+) to (\d+)", " ".join(remedies(told, "cpu")))
    assert rise is not None
    assert (int(rise[1]), int(rise[2])) == (config.accumulation, again.accumulation)
