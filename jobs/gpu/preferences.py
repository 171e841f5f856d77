"""Before the first step: which path runs, the pairs as tensors, and what the reference thinks of them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.configs import DpoConfig
from jobs.gpu.answering import end_tokens
from jobs.gpu.collate import as_dataset
from jobs.gpu.loading import Loaded
from jobs.gpu.prepared import PreparedPairs, check_lengths, prepare
from jobs.gpu.references import Found, ReferenceBook, answer_keys, context_of, look_up
from jobs.gpu.shared_prefix import why_not
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder


@dataclass(frozen=True)
class Pairs:
    """The pairs that a run uses, read once; places count among `rows`."""

    rows: list[dict[str, Any]]
    training: list[int]
    held_out: list[int]
    prepared: PreparedPairs


def stock_reason(loaded: Loaded, config: DpoConfig, reporter: Reporter) -> str | None:
    """Why pairs run as two sequences, None where they run as one; the log says so.

    Raises:
        UserError: the model runs on flash attention.
    """
    reason = why_not(loaded.model) if config.shared_prefix else "the settings ask for it"
    if reason is None:
        reporter.note("Each pair runs as one sequence: image and prompt are computed once for both answers.")
    else:
        reporter.note(f"Each pair runs as two sequences, the stock way: {reason}.")
    return reason


def open_book(job: JobFile, loaded: Loaded, shared: bool) -> ReferenceBook:
    """What earlier runs of this data folder know of this reference."""
    models, shared_folder = Path(job.models_dir), Path(job.references_dir or "-")
    # On another machine than the one that froze the run there is no such folder.
    folder = shared_folder if shared_folder.is_dir() else models.parent / "references"
    ends = end_tokens(loaded.model, loaded.processor.tokenizer)
    path = "shared prefix" if shared else "stock"
    return ReferenceBook(folder, context_of(loaded, ends, models, folder, None, path))


def read_pairs(
    run: RunFolder,
    config: DpoConfig,
    loaded: Loaded,
    training: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    shared: bool,
    reporter: Reporter,
) -> Pairs:
    """Tokens and tensors of the pairs that the run will see.

    Raises:
        UserError: a pair is longer than the model's context.
        Stopped: asked to stop.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    seen = config.max_steps * config.batch_size * config.accumulation * world
    if 0 < seen < len(training):
        reporter.note(f"{config.max_steps} steps see {seen} of the {len(training)} pairs, drawn by the seed.")
        training = random.Random(config.seed).sample(training, seen)
    rows = [*training, *held_out]
    reporter.phase("preparing the pairs")
    told = every_second(lambda done: reporter.progress(done, len(rows), "pairs"))

    def tell(done: int) -> None:
        reporter.check_stop()
        told(done)

    ends = end_tokens(loaded.model, loaded.processor.tokenizer)
    prepared = prepare(run, loaded.processor, ends, rows, loaded.model.dtype, shared, tell)
    check_lengths(prepared.pairs, rows, loaded.context)
    # The order of held-out pairs is of no matter: like lengths pad less.
    last = sorted(range(len(training), len(rows)), key=lambda place: prepared.pairs[place].length)
    return Pairs(rows, list(range(len(training))), last, prepared)


def every_second(tell: Callable[[int], None]) -> Callable[[int], None]:
    """`tell`, but not more often than once a second."""
    last = -1.0

    def told(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 1.0:
            last = time.monotonic()
            tell(done)

    return told


def add_references(
    run: RunFolder, config: DpoConfig, trainer: Any, pairs: Pairs, book: ReferenceBook, reporter: Reporter
) -> Found:
    """Give every pair its reference's log-probabilities, so that training runs no reference.

    TRL refuses `precompute_ref_log_probs` for images; its loss reads the columns all the same.

    Raises:
        Stopped: asked to stop; what was computed is kept.
        PlumbError: the reference gives something that is not a number.
    """
    reporter.phase("computing the reference's log-probabilities")
    everything = as_dataset(pairs.rows, range(len(pairs.rows)), pairs.prepared.pairs)

    def compute(places: Sequence[int]) -> tuple[list[float], list[float]]:
        batch = trainer.data_collator([everything[place] for place in places])
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, trainer._prepare_inputs(batch))
        return chosen.tolist(), rejected.tolist()

    told = every_second(lambda done: reporter.progress(done, len(pairs.rows), "pairs"))

    def tell(done: int, _: int) -> None:
        reporter.check_stop()
        told(done)

    waiting = False

    def wait() -> None:
        nonlocal waiting
        reporter.check_stop()
        if not waiting:
            reporter.phase("waiting for another run that computes the same reference")
        waiting = True

    training = trainer.model.training
    trainer.model.eval()
    values, found = look_up(
        book,
        answer_keys(run, pairs.rows),
        [pair.length for pair in pairs.prepared.pairs],
        config.batch_size,
        compute,
        tell,
        wait,
    )
    trainer.model.train(training)
    reporter.note(
        f"Reference: {found.known} of {found.known + found.computed} answers were known from earlier runs, "
        f"{found.computed} computed in {found.forwards} forward passes."
    )
    trainer.train_dataset = with_references(trainer.train_dataset, values)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = with_references(trainer.eval_dataset, values)
    trainer.precompute_ref_logps = True
    return found


def with_references(dataset: Any, values: Sequence[tuple[float, float]]) -> Any:
    """The data set with the two columns that TRL's loss reads."""
    for side, name in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
        dataset = dataset.add_column(name, [values[place][side] for place in dataset["pair"]])
    return dataset
