"""A training, from the run folder's rows to an adapter with its card: what the four methods have in common.

Precision: the base stays in the dtype it was loaded in; the adapter's weights are float32 (PEFT's
`autocast_adapter_dtype`), since steps of 1e-4 times a small gradient vanish in bfloat16's 8 bits. Where the base
is in 16 bits the forward runs under autocast, so that the products are in 16 bits, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.configs import DpoConfig, TrainConfig
from jobs.gpu.callbacks import Telling
from jobs.gpu.cards import training_card
from jobs.gpu.devices import claim_device
from jobs.gpu.dpo import answers_alone, make_dpo
from jobs.gpu.loading import Loaded, load_for
from jobs.gpu.material import (
    Material,
    collator_for,
    find_references,
    open_book,
    read_material,
    read_rows,
    stock_reason,
    with_references,
)
from jobs.gpu.policy import as_reference, make_policy, start_folder
from jobs.gpu.scoring import PairScorer
from jobs.gpu.sft import make_sft
from jobs.gpu.trainers import last_checkpoint, save_adapter, step_of
from jobs.reporter import Reporter, Stopped
from jobs.runs import JobFile, RunFolder


def train(run: RunFolder, job: JobFile, config: TrainConfig, reporter: Reporter) -> None:
    """Train an adapter on the run folder's rows and leave it, with its card, in `adapter/`.

    A run that was interrupted goes on from its newest whole checkpoint.

    Raises:
        Stopped: asked to stop; a checkpoint of the last whole step is in `checkpoints/`.
        UserError: nothing to train on, or rows that miss something or don't fit.
        PlumbError: the loss is no longer a number.
    """
    rows = read_rows(run, config, reporter)
    reporter.check_stop()
    start = start_folder(run, config)
    loaded = load_for(config, claim_device(job.device), Path(job.models_dir), reporter)
    reporter.check_stop()
    shared = stock_reason(loaded, config, reporter) is None
    book = open_book(job, loaded, shared, start)
    material = read_material(run, loaded, rows, shared, reporter)
    telling = Telling(reporter, config, len(material.held_out))
    with answers_alone():
        trainer = make_trainer(run, config, loaded, material, telling, shared, start)
        scorer = PairScorer(trainer, material, trainer.collate_pairs)
        references(run, config, trainer, material, book, scorer, reporter)
        resume = last_checkpoint(run)
        if resume is not None:
            reporter.note(f"Going on from the checkpoint of step {step_of(resume)}.")
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if telling.stopped:
            step = trainer.state.global_step
            raise Stopped(f"stopped after step {step} of {trainer.state.max_steps}; checkpoints/ holds that step")
    reporter.phase("saving the adapter")
    save(run, job, config, trainer, telling, reporter)


def make_trainer(
    run: RunFolder,
    config: TrainConfig,
    loaded: Loaded,
    material: Material,
    telling: Telling,
    shared: bool,
    start: Path | None = None,
) -> Any:
    """The method's trainer; the model in `loaded` gets the adapter."""
    from transformers import PrinterCallback

    policy = make_policy(config, loaded, start)
    collator = collator_for(run, loaded, material, shared)
    make: Any = make_dpo if isinstance(config, DpoConfig) else make_sft
    trainer = make(run, config, loaded, policy, material, collator, [telling], shared)
    trainer.remove_callback(PrinterCallback)
    trainer.collate_pairs = collator
    return trainer


def references(
    run: RunFolder,
    config: TrainConfig,
    trainer: Any,
    material: Material,
    book: Any,
    scorer: PairScorer,
    reporter: Reporter,
) -> dict[int, tuple[float, float]]:
    """The reference's log-probabilities of all pairs, by place; DPO's data sets get them as columns.

    TRL refuses `precompute_ref_log_probs` for images; its loss reads the columns all the same.
    """

    def compute(places: Any) -> Any:
        with as_reference(trainer.accelerator.unwrap_model(trainer.model)):
            return scorer(places)

    values, _ = find_references(run, material, book, compute, config.batch_size, reporter)
    if isinstance(config, DpoConfig):
        trainer.train_dataset = with_references(trainer.train_dataset, values)
        if trainer.eval_dataset is not None:
            trainer.eval_dataset = with_references(trainer.eval_dataset, values)
        trainer.precompute_ref_logps = True
    return values


def save(
    run: RunFolder, job: JobFile, config: TrainConfig, trainer: Any, telling: Telling, reporter: Reporter
) -> None:
    """The adapter as safetensors, its card, and the event that tells of it."""
    if not trainer.is_world_process_zero():
        return
    name = config.name or f"{config.dataset}-{config.kind}-{job.job_id}"
    save_adapter(trainer.accelerator.unwrap_model(trainer.model), run.adapter)
    card = training_card(run, job, config, name, telling.last)
    (run.adapter / "README.md").write_text(card, encoding="utf-8")
    reporter.event(
        "adapter",
        path=run.adapter.name,
        name=name,
        base_model=config.model,
        method=config.kind,
        settings=config.model_dump(mode="json"),
    )
