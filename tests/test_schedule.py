"""The learning rate along a run, for each schedule that the form offers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.gpu.trainers import common_settings
from jobs.runs import RunFolder
from starting import config_of


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_every_schedule_warms_up(tmp_path: Path, schedule: str) -> None:
    from transformers import get_scheduler

    config = config_of(schedule=schedule, warmup_ratio=0.5, learning_rate=1.0)
    loaded: Any = SimpleNamespace(model=SimpleNamespace(dtype=torch.float32), device=torch.device("cpu"))
    settings = common_settings(RunFolder(tmp_path), config, loaded)
    assert settings["warmup_steps"] == 0.5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = get_scheduler(settings["lr_scheduler_type"], optimizer, num_warmup_steps=4, num_training_steps=8)
    told = []
    for _ in range(8):
        told.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
    assert told[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (told[5:] == [1.0] * 3) is (schedule == "constant")
