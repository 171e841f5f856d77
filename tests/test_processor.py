"""Where bfloat16 is worth computing in: told by the processor's flags, and by "auto"."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from jobs import processor
from jobs.gpu import devices


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx2 fma", False),
        ("x86_64", "fpu avx2 avx512f avx512bw avx512vl avx512dq", True),
        ("x86_64", None, True),
        ("aarch64", "asimd", True),
    ],
)
def test_the_flags_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, expected: bool
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("vendor_id\t: x\n" + (f"flags\t\t: {flags}\n" if flags else ""))
    monkeypatch.setattr(processor, "CPUINFO", file)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    processor.computes_bfloat16.cache_clear()
    try:
        assert processor.computes_bfloat16() is expected
        monkeypatch.setattr(processor, "CPUINFO", tmp_path / "gone")
        processor.computes_bfloat16.cache_clear()
        assert processor.computes_bfloat16()
    finally:
        processor.computes_bfloat16.cache_clear()


@pytest.mark.parametrize("can", [True, False])
def test_auto_is_float32_on_a_processor_without_bfloat16(monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    monkeypatch.setattr(devices, "computes_bfloat16", lambda: can)
    expected = "auto" if can else torch.float32
    assert devices.check_dtype("auto", torch.device("cpu")) == expected
    assert devices.check_dtype("auto", torch.device("cuda", 0)) == "auto"
    assert devices.check_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
