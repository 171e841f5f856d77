"""A training, from the run folder's rows to an adapter with its card: what the four methods have in common.

Precision: the base stays in the dtype it was loaded in; the adapter's weights are float32 (PEFT's
`autocast_adapter_dtype`), since steps of 1e-4 times a small gradient vanish in bfloat16's 8 bits. Where the base
is in 16 bits the forward runs under autocast, so that the products are in 16 bits, too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import set_seed

from jobs.checkpoints import last_checkpoint, step_of
from jobs.configs import DpoConfig, TrainConfig
from jobs.gpu.answers import Answers
from jobs.gpu.best import ACCURACY, MARGIN, Best
from jobs.gpu.callbacks import Enough, Telling
from jobs.gpu.cards import training_card
from jobs.gpu.devices import claim_device
from jobs.gpu.dpo import answers_alone, make_dpo
from jobs.gpu.earlier import told_before
from jobs.gpu.image_term import add_image_term
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
from jobs.gpu.ranks import check_processes
from jobs.gpu.scoring import PairScorer, References
from jobs.gpu.sft import make_sft
from jobs.gpu.trackers import Curves, check_trackers
from jobs.gpu.trainers import save_adapter, whole_weights
from jobs.gpu.trial import try_step
from jobs.gpu.watching import Watcher
from jobs.places import models_folder
from jobs.reporter import Reporter, Stopped
from jobs.runs import JobFile, RunFolder


def train(run: RunFolder, job: JobFile, config: TrainConfig, reporter: Reporter) -> None:
    """Train an adapter on the run folder's rows and leave it, with its card, in `adapter/`.

    A run that was interrupted goes on from its newest whole checkpoint. With `only_trial` it ends after one step
    on the longest rows, and leaves no adapter.

    Raises:
        Stopped: asked to stop; a checkpoint of the last whole step is in `checkpoints/`, if any are kept.
        UserError: nothing to train on, rows that miss something or don't fit, a tracker that isn't there.
        PlumbError: the loss is no longer a number.
    """
    check_trackers(config)
    done, resume = told_before(run), last_checkpoint(run)
    if done.adapter:
        return  # ended between the adapter's event and its last word
    rows = read_rows(run, config, reporter)
    reporter.check_stop()
    start = start_folder(run, config, reporter.note)
    loaded = load_for(config, claim_device(job.device), models_folder(run, job), reporter)
    reporter.check_stop()
    shared = stock_reason(loaded, config, reporter) is None
    book = open_book(run, job, loaded, shared, start)
    material = read_material(run, loaded, rows, shared, reporter)
    telling = Telling(reporter, config, len(material.held_out))
    with answers_alone():
        trainer = make_trainer(run, config, loaded, material, telling, shared, start)
        check_processes(trainer, config, reporter)
        if not done.trial:
            try_step(run, config, trainer, material, reporter)
        if config.only_trial:
            reporter.note("Only a step was asked for: nothing was trained, and there is no adapter.")
            return
        scorer = PairScorer(trainer, material, trainer.collate_pairs)
        values = references(run, config, trainer, material, book, scorer, reporter)
        watcher = Watcher(config, trainer, material, scorer, values, reporter, telling.check_stop)
        watcher.prepare(run, book)
        answers = Answers(run, config, loaded, trainer.model, material, reporter, telling.check_stop_alone)
        best, curves = keepers(run, config, trainer, material, resume, reporter)
        if resume is not None:
            reporter.note(f"Going on from the checkpoint of step {step_of(resume)}.")
        elif done.training:
            reporter.note("There is no checkpoint to go on from: the training starts anew.")
        telling.watch(trainer, material, watcher, answers, best, curves, resume, 0 in done.answers)
        run_steps(config, trainer, telling, resume)
        report(trainer, telling, watcher, best, reporter)
    reporter.phase("saving the adapter")
    save(run, job, config, loaded, trainer, telling, reporter)


def keepers(
    run: RunFolder, config: TrainConfig, trainer: Any, material: Material, resume: Path | None, reporter: Reporter
) -> tuple[Best | None, Curves | None]:
    """What keeps the best weights, where patience asks for it, and the curves, where this process writes them."""
    step, first = step_of(resume) if resume is not None else 0, trainer.is_world_process_zero()
    best = None
    if config.patience and config.evaluations:
        if material.pairs:
            best = Best(run.path / "best", config.patience, step, first)
        else:
            reporter.note(
                f"patience {config.patience} does nothing: there are no held-out pairs to be accurate on."
            )
    return best, Curves(run, config, step) if first else None


def run_steps(config: TrainConfig, trainer: Any, telling: Telling, resume: Path | None) -> None:
    """The training itself.

    Raises:
        Stopped: with a checkpoint of the last whole step left behind, if any are kept.
    """
    set_seed(config.seed)  # what came before draws from the same noise
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if telling.stopped:
            raise Stopped("stopped by request")
    except Enough:
        pass  # the checkpoint is of the last step
    except Stopped as stop:
        raise left(trainer, telling, stop) from None


def left(trainer: Any, telling: Telling, stop: Stopped) -> Stopped:
    """Leave a checkpoint behind; returns the last word."""
    heard = "by request" in str(stop)  # by all processes, at the same place; a signal comes to each somewhere else
    kept = telling.leave() if heard or trainer.accelerator.num_processes == 1 else None
    where = "checkpoints/ holds that step" if kept else "no checkpoint holds it"
    asked = "stopped" if heard else str(stop)
    return Stopped(f"{asked} after step {trainer.state.global_step} of {trainer.state.max_steps}; {where}")


def report(trainer: Any, telling: Telling, watcher: Watcher, best: Best | None, reporter: Reporter) -> None:
    """Take the best weights where they were kept, and look at the pairs kept for the report, once.

    Raises:
        Stopped: asked to stop; there is a checkpoint of the last step, if any are kept.
    """
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if best is not None and best.step is not None:
        accuracy, margin = (best.values[name] for name in (ACCURACY, MARGIN))
        early = f"stopped after step {step} of {steps}" if step < steps else f"{steps} steps"
        reporter.note(
            f"Best held-out accuracy at step {best.step} ({accuracy:.3f}, margin {margin:.3f}); {early}. "
            "The adapter has the weights of that step."
        )
    try:
        if best is not None and best.step not in (None, step):
            trainer.accelerator.wait_for_everyone()
            trainer._load_from_checkpoint(str(best.folder))
            step = best.step
            telling.last.update(best.values)
        reporter.phase("looking at the pairs kept for the report")
        telling.tell(step, watcher.report())
    except Stopped as stop:
        raise left(trainer, telling, stop) from None
    if best is not None and best.step is not None:
        telling.last["best_step"] = float(best.step)
    telling.close()


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
) -> References:
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
        add_image_term(run, config, trainer, material, book, reporter)
    return values


def save(
    run: RunFolder,
    job: JobFile,
    config: TrainConfig,
    loaded: Loaded,
    trainer: Any,
    telling: Telling,
    reporter: Reporter,
) -> None:
    """The adapter as safetensors, its card, and the event that tells of it. Every process calls it."""
    weights = whole_weights(trainer)
    if not trainer.is_world_process_zero():
        return
    name = config.name or f"{config.dataset}-{config.kind}-{job.job_id}"
    save_adapter(trainer.accelerator.unwrap_model(trainer.model), run.adapter, weights)
    card = training_card(run, job, config, name, telling.last, loaded.revision, loaded.profile)
    (run.adapter / "README.md").write_text(card, encoding="utf-8")
    reporter.event(
        "adapter",
        path=run.adapter.name,
        name=name,
        base_model=config.model,
        method=config.kind,
        settings=config.model_dump(mode="json"),
    )
    # A run that is done can't go on; with the optimizer's state a checkpoint is three times the adapter.
    for folder in (run.checkpoints, run.path / "best"):
        shutil.rmtree(folder, ignore_errors=True)
