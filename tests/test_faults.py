"""kill -9 of app, supervisor and workers at random: every job is done, each item and each step there once."""

from __future__ import annotations

from pathlib import Path

import pytest

from killing import Size, raging
from tiny import tiny_llava


@pytest.mark.slow
def test_a_dozen_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    size = Size(samples=60, answers=2, steps=40)
    with raging(
        tmp_path / "data", tiny_llava(), kills=12, seed=5, size=size, pause=(1.0, 3.5), seconds=240
    ) as faults:
        found = faults.outcome
        log = (faults.world.folder.runtime / "supervisor.log").read_text()
        assert sum(found.kills.values()) == 12
        assert found.kills["worker"], "or nothing was tried"
        assert found.attempts > found.jobs
        assert (found.lost, found.duplicated, found.unexplained) == (0, 0, 0), [*found.told, log]
        assert (found.diverged, found.findings, found.left) == (0, 0, 0), [*found.told, log]
