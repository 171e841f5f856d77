"""A training's processes (ranks), as they know each other once they run."""

from __future__ import annotations

import os
from typing import Any

import torch

from jobs.configs import DpoConfig, TrainConfig
from jobs.reporter import Reporter
from storage.errors import UserError


def first_here() -> bool:
    """Whether this process is the first of the job's on this machine; the only one is, too."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def check_processes(trainer: Any, config: TrainConfig, reporter: Reporter) -> None:
    """See that a step has as many rows as the settings say, with the processes that there really are, and tell it.

    Raises:
        UserError: another number of processes takes part.
    """
    spread = torch.distributed
    there = spread.get_world_size() if spread.is_available() and spread.is_initialized() else 1
    world, batch, batches = trainer.args.world_size, trainer.args.train_batch_size, config.accumulation
    if {there, world, trainer.accelerator.num_processes} != {config.processes} or batch != config.batch_size:
        raise UserError(
            f"processes is {config.processes}, batch_size {config.batch_size}: torch has {there} processes, "
            f"accelerate {world}, each with a batch of {batch}. Set num_processes of accelerate's file and "
            "processes to the same number, or leave accelerate_config empty."
        )
    rows = "pairs" if isinstance(config, DpoConfig) else "rows"
    shown = f"{world} processes, each a batch of {batch}" if world > 1 else f"1 process, a batch of {batch}"
    reporter.note(f"{shown}, accumulation {batches}: {world * batch * batches} {rows} a step.")
