"""A step on the longest rows before the first one: how long it takes, and how much memory. It changes nothing."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import Any

import torch

from jobs.configs import DpoConfig, TrainConfig
from jobs.gpu.image_term import WithScraps, read_scraps
from jobs.gpu.material import Material
from jobs.gpu.trainers import undisturbed
from jobs.reporter import Reporter
from jobs.runs import RunFolder

ADAM_BYTES = 8  # a trainable parameter: two running means in float32


def try_step(run: RunFolder, config: TrainConfig, trainer: Any, material: Material, reporter: Reporter) -> None:
    """Run the longest rows forward and backward once, and tell time and memory.

    The gradients are thrown away, and noise, modes and TRL's means are put back: the run that follows is the same
    as without. The optimizer isn't run; its state is estimated, as two numbers in float32 a trainable parameter.

    Metrics at step 0: `trial_seconds`, of a whole optimizer step (a batch's time × accumulation), and
    `trial_memory_gb`, the peak with the optimizer's state, in 10⁹ bytes.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        reporter.note("No step was tried: the weights are spread over processes when training begins.")
        return
    reporter.phase("trying a step on the longest rows")
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = longest(run, config, trainer, material, reporter)
    with undisturbed(model):
        model.train()
        switch_checkpointing_on(trainer, model)
        tokens_told = trainer._total_train_tokens
        if model.device.type == "cuda":
            forward_and_backward(trainer, model, *batch)  # the first one compiles and measures
        seconds = forward_and_backward(trainer, model, *batch)
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = tokens_told
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state = trained * ADAM_BYTES / 1e9
    memory = memory_gb(model.device) + state
    step = seconds * config.accumulation
    reporter.metric(0, {"trial_seconds": step, "trial_memory_gb": memory})
    steps = steps_of(config, len(material.training))
    reporter.note(
        f"One step on the longest rows took {spelled(step)} and {memory:.1f} GB ({state:.2g} GB of it, for the "
        f"optimizer, estimated): {steps} steps take at most about {spelled(step * steps)}."
    )


def longest(run: RunFolder, config: TrainConfig, trainer: Any, material: Material, reporter: Reporter) -> Any:
    """The rows of the longest batch that there can be, and what makes a batch of them."""
    dataset = trainer.train_dataset
    sizes = list(dataset["length"])
    found = sorted(range(len(sizes)), key=lambda place: -sizes[place])[: config.batch_size]
    rows, collate = [dict(dataset[place]) for place in found], trainer.data_collator
    if isinstance(config, DpoConfig):
        # Any number will do for the reference's: neither time nor memory depend on them, and they may take hours.
        trainer.precompute_ref_logps = True
        rows = [{"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0, **row} for row in rows]
        if config.image_weight:
            collate = with_scraps(run, trainer, material, {row["place"] for row in rows}, reporter)
    return rows, collate


def with_scraps(run: RunFolder, trainer: Any, material: Material, places: set[int], reporter: Reporter) -> Any:
    """The collator whose batches bring the scraps of these pairs' images, as mDPO's term takes them."""
    alone = [row if place in places else {} for place, row in enumerate(material.rows)]
    scraps, keys = read_scraps(run, trainer, dataclasses.replace(material, rows=alone), reporter)
    scraps.references = [0.0] * len(keys)
    return WithScraps(trainer.data_collator, scraps)


def forward_and_backward(trainer: Any, model: Any, rows: list[dict[str, Any]], collate: Any) -> float:
    """Seconds that a batch takes, its making included."""
    wait_for(model.device)
    start = time.perf_counter()
    inputs = trainer._prepare_inputs(collate(rows))
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(model, inputs)
    loss.backward()
    wait_for(model.device)
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds


def switch_checkpointing_on(trainer: Any, model: Any) -> None:
    """As transformers' `train` will do, for the same settings."""
    if trainer.args.activation_checkpointing:
        settings = dict(trainer.args.activation_checkpointing_kwargs or {}) or None
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_gb(device: torch.device) -> float:
    """The most memory so far, in 10⁹ bytes: of the device, or of the process where it runs on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(getattr(psutil.Process().memory_info(), "peak_wset", 0)) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def steps_of(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of a run, as transformers counts them."""
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil(rows / (config.batch_size * config.processes))
    return math.ceil(config.epochs * max(1, math.ceil(batches / config.accumulation)))


def spelled(seconds: float) -> str:
    """A time for people: 4.1 s, 12 minutes, 3.5 hours."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
