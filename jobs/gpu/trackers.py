"""Where a training's numbers go beside its events: a file of lines, TensorBoard's files, other trackers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.configs import TrainConfig
from jobs.runs import RunFolder
from storage.errors import UserError
from storage.files import write_atomically

TENSORBOARD = "tensorboard"

#: transformers' names of trackers whose package on PyPI is called otherwise.
PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit", "kubeflow": "kubeflow"}

#: Switches that jobs/telemetry.py throws for everybody, undone for the tracker that is asked for by name.
SWITCHES = {"wandb": "WANDB_DISABLED", "trackio": "TRACKIO_DISABLED"}


def others(config: TrainConfig) -> list[str]:
    """The trackers that transformers feeds; TensorBoard's files are written here, under our names."""
    return [name for name in config.trackers if name not in (TENSORBOARD, "none")]


def check_trackers(config: TrainConfig) -> None:
    """Called before anything is loaded.

    Raises:
        UserError: a tracker that transformers doesn't know, or whose package isn't installed.
    """
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in config.trackers:
        if name == "none":
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise UserError(f"report_to: {name!r} is no tracker that transformers knows; use {known}.")
        if name in SWITCHES:
            os.environ.pop(SWITCHES[name], None)
        there = name in get_available_reporting_integrations()
        if name == TENSORBOARD:  # transformers would be content with tensorboardX
            there = importlib.util.find_spec(TENSORBOARD) is not None
        if name == "flyte":  # not in transformers' list of what is there
            there = importlib.util.find_spec("flytekit") is not None
        if not there:
            raise UserError(
                f"report_to: {name!r} isn't installed, or isn't set up. "
                f"Run pip install {PACKAGES.get(name, name)}, or take it out of report_to."
            )


class Curves:
    """`metrics.jsonl` and `tensorboard/` in the run folder.

    A line is {"step": 4, "loss": 0.61, …}, under the names that the Jobs page shows. A run that goes on from a
    checkpoint drops what an earlier attempt wrote of later steps.

    Args:
        step: the one that the run goes on from; 0 for a fresh start.
    """

    def __init__(self, run: RunFolder, config: TrainConfig, step: int) -> None:
        self.file = run.path / "metrics.jsonl"
        self.last: dict[str, float] = {}  #: of each name the latest value
        kept = [line for line in read_lines(self.file) if line["step"] <= step] if step else []
        for line in kept:
            self._remember(line)
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        self._board: Any = None
        if TENSORBOARD in config.trackers:
            from torch.utils.tensorboard import SummaryWriter

            # Readers leave out what came before at this step and later.
            self._board = SummaryWriter(str(run.path / TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step; those that are not finite are left out, JSON has no word for them."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if not finite:
            return
        self._remember(finite)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        if self._board is not None:
            for name, value in finite.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _remember(self, values: Mapping[str, float]) -> None:
        self.last.update({name: value for name, value in values.items() if name != "step"})


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; one that a crash tore is left out."""
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found
