"""Before the first step: which path runs, the rows as tensors, and what the reference thinks of the pairs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.configs import DpoConfig, SteerlmConfig, TrainConfig
from jobs.gpu.answering import end_tokens
from jobs.gpu.collate import PreparedCollator, StockCollator, as_dataset, check_rows
from jobs.gpu.loading import Loaded
from jobs.gpu.prepared import ROW_WISE, Prepared, check_lengths, prepare
from jobs.gpu.references import Found, ReferenceBook, answer_keys, context_of, digest, look_up
from jobs.gpu.shared_prefix import why_not
from jobs.places import models_folder, references_folder
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder
from storage.errors import UserError

#: A pair's two log-probabilities, of each place given: chosen, rejected.
Compute = Callable[[Sequence[int]], tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Material:
    """The rows that a run uses, read once; the lists hold places among `rows`.

    Attributes:
        training: pairs for dpo, rows with one answer for the other methods.
        held_out: of the same kind: their loss is taken along the run.
        pairs: held-out pairs, whose rewards are taken along the run; for dpo the same as `held_out`.
        report: pairs that are looked at once, at the end.
        seed: the data set's: what is drawn by it is the same for all runs on it, whatever their own seeds are.
    """

    rows: list[dict[str, Any]]
    training: list[int]
    held_out: list[int]
    pairs: list[int]
    report: list[int]
    prepared: Prepared
    seed: str = ""

    def dataset(self, places: Sequence[int]) -> Any:
        """These rows as the trainers take them."""
        return as_dataset(self.rows, places, self.prepared.entries)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [entry.length for entry in self.prepared.entries]


def read_rows(run: RunFolder, config: TrainConfig, reporter: Reporter) -> list[dict[str, Any]]:
    """The run's rows, checked before a model is loaded: those to train on first, cut to those that will be seen.

    Raises:
        UserError: there is nothing to train on, or a row misses something.
    """
    rows = list(run.rows())
    check_rows(run, rows)
    own = "pair" if isinstance(config, DpoConfig) else "answer"
    training = [row for row in rows if row["split"] == "train" and row.get("kind", "pair") == own]
    rest = [row for row in rows if row["split"] != "train"]
    if not training:
        raise UserError(
            f"The data set {config.dataset!r} has nothing to train on by {config.kind} "
            f"({len(rest)} held-out rows). Freeze one with a smaller held-out part, or by a rule that gives pairs."
        )
    if config.evaluations and not any(row.get("kind", "pair") == "pair" for row in rest):
        reporter.note("The data set has no held-out pairs: there will be no held-out metrics.")
    seen = config.max_steps * config.global_batch
    if 0 < seen < len(training):
        reporter.note(f"{config.max_steps} steps see {seen} of the {len(training)} rows, drawn by the seed.")
        whole = isinstance(config, SteerlmConfig) and config.shared_prefix
        training = draw_samples(training, seen, config.seed) if whole else draw_rows(training, seen, config.seed)
    return [*training, *rest]


def draw_rows(rows: list[dict[str, Any]], number: int, seed: int) -> list[dict[str, Any]]:
    """So many of the rows, any of them."""
    return random.Random(seed).sample(rows, number)


def draw_samples(rows: list[dict[str, Any]], number: int, seed: int) -> list[dict[str, Any]]:
    """So many of the rows, all those of one sample before those of the next: only these run as one sequence."""
    samples: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        samples.setdefault(row.get("sample_id"), []).append(row)
    drawn = list(samples.values())
    random.Random(seed).shuffle(drawn)
    return [row for sample in drawn for row in sample][:number]


def stock_reason(loaded: Loaded, config: TrainConfig, reporter: Reporter) -> str | None:
    """Why rows run the stock way, None where they run ours (shared_prefix.py); the log says so.

    Raises:
        UserError: pairs shall run as one sequence, and the model runs on flash attention.
    """
    wanted = not isinstance(config, DpoConfig) or config.shared_prefix
    try:
        reason = why_not(loaded.model) if wanted else "the settings ask for it"
    except UserError:
        if isinstance(config, DpoConfig):
            raise
        reason = f"{config.attention} takes no mask of several answers"
    if isinstance(config, DpoConfig):
        ours = "Each pair runs as one sequence: image and prompt are computed once for both answers."
        stock = "Each pair runs as two sequences, the stock way"
    elif isinstance(config, SteerlmConfig) and config.shared_prefix:
        ours = "A sample's answers in a batch run as one sequence: image and question are computed once for all."
        stock = "Each answer runs as a sequence of its own, the stock way"
    else:
        ours = "Each row is scored at its answer alone; its images are prepared once."
        stock = "Rows run the stock way"
    reporter.note(ours if reason is None else f"{stock}: {reason}.")
    return reason


def open_book(
    run: RunFolder, job: JobFile, loaded: Loaded, shared: bool, start: Path | None = None
) -> ReferenceBook:
    """What earlier runs of this data folder know of this reference.

    Args:
        start: the adapter that training starts from, which is the reference then.
    """
    models, folder = models_folder(run, job), references_folder(run, job)
    ends = end_tokens(loaded.model, loaded.processor.tokenizer)
    path = "shared prefix" if shared else "stock"
    return ReferenceBook(folder, context_of(loaded, ends, models, folder, start, path))


def read_material(
    run: RunFolder, loaded: Loaded, rows: list[dict[str, Any]], shared: bool, reporter: Reporter
) -> Material:
    """Tokens and tensors of the rows.

    Raises:
        UserError: a row is longer than the model's context.
        Stopped: asked to stop.
    """
    reporter.phase("preparing the rows")
    told = every_second(lambda done: reporter.progress(done, len(rows), "rows"))

    def tell(done: int) -> None:
        reporter.check_stop()
        told(done)

    ends = end_tokens(loaded.model, loaded.processor.tokenizer)
    prepared = prepare(run, loaded.processor, ends, rows, loaded.model.dtype, shared, tell)
    check_lengths(prepared.entries, rows, loaded.context)

    def places(split: str, pairs: bool) -> list[int]:
        found = [
            place
            for place, row in enumerate(rows)
            if row["split"] == split and (row.get("kind", "pair") == "pair") is pairs
        ]
        # The order of held-out rows is of no matter: like lengths pad less.
        return sorted(found, key=lambda place: prepared.entries[place].length) if split != "train" else found

    own = rows[0].get("kind", "pair") == "pair"
    return Material(
        rows=rows,
        training=places("train", own),
        held_out=places("heldout", own),
        pairs=places("heldout", True),
        report=places("report", True),
        prepared=prepared,
        seed=run.job().dataset_hash or "",
    )


def collator_for(run: RunFolder, loaded: Loaded, material: Material, shared: bool) -> Any:
    """Rows → batches: from prepared tensors, or the processor's way where the model is not known."""
    tokenizer = loaded.processor.tokenizer
    if shared:
        return PreparedCollator(
            material.prepared, tokenizer.pad_token_id, loaded.model.config.model_type in ROW_WISE
        )
    return StockCollator(run, loaded.processor, end_tokens(loaded.model, tokenizer))


def every_second(tell: Callable[[int], None]) -> Callable[[int], None]:
    """`tell`, but not more often than once a second."""
    last = -1.0

    def told(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 1.0:
            last = time.monotonic()
            tell(done)

    return told


def find_references(
    run: RunFolder,
    material: Material,
    book: ReferenceBook,
    compute: Compute,
    batch_size: int,
    reporter: Reporter,
    places: Sequence[int] | None = None,
    changed: str = "",
) -> tuple[dict[int, tuple[float, float]], Found]:
    """What the reference thinks of every pair, so that training runs no reference.

    Args:
        places: of the pairs that are asked about; all where it is None.
        changed: what `compute` changes in a pair before it asks ("image blanked"): such have keys of their own.

    Returns:
        of each pair's place the log-probabilities of its chosen and its rejected answer; and what it cost.

    Raises:
        Stopped: asked to stop; what was computed is kept.
        PlumbError: the reference gives something that is not a number.
    """
    if places is None:
        places = [place for place, row in enumerate(material.rows) if row.get("kind", "pair") == "pair"]
    keys = answer_keys(run, [material.rows[place] for place in places])
    if changed:
        keys = [(digest([changed, chosen]), digest([changed, rejected])) for chosen, rejected in keys]
    reporter.phase("computing the reference's log-probabilities")
    told = every_second(lambda done: reporter.progress(done, len(places), "pairs"))

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

    lengths = material.lengths
    values, found = look_up(
        book,
        keys,
        [lengths[place] for place in places],
        batch_size,
        lambda chosen: compute([places[number] for number in chosen]),
        tell,
        wait,
    )
    reporter.note(
        f"Reference{f' ({changed})' if changed else ''}: {found.known} of {found.known + found.computed} answers "
        f"were known from earlier runs, {found.computed} computed in {found.forwards} forward passes."
    )
    return dict(zip(places, values, strict=True)), found


def with_references(dataset: Any, values: dict[int, tuple[float, float]]) -> Any:
    """The data set with the two columns that TRL's loss reads."""
    for side, name in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
        dataset = dataset.add_column(name, [values[place][side] for place in dataset["place"]])
    return dataset
