"""mDPO's image-conditional term and anchor (Wang et al. 2024, arXiv 2406.11839), added to TRL's loss.

DPO on images may learn from the text alone. mDPO compares the chosen answer under its image m_w with the same
answer under a scrap m_l of it, a random crop of at most 20 % (the paper's "crop 0–20 %"), and anchors it:

    L_image  = −log σ(β log π(y_w|m_w,q)/π_ref(y_w|m_w,q) − β log π(y_w|m_l,q)/π_ref(y_w|m_l,q))
    L_anchor = −log σ(β log π(y_w|m_w,q)/π_ref(y_w|m_w,q) − δ),  δ = 0

A scrap is drawn once for each image, from its bytes, and enlarged to the image's size, so that the tokens stay the
same; its tensors are made once, and the reference's log-probabilities under it are kept in the reference book
like any other (the key holds the scrap's bytes).
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import logsigmoid

from jobs.configs import DpoConfig
from jobs.gpu.answering import end_tokens
from jobs.gpu.collate import PreparedCollator, StockCollator, as_dataset
from jobs.gpu.material import Material, every_second
from jobs.gpu.policy import as_reference
from jobs.gpu.prepared import ROW_WISE, prepare
from jobs.gpu.prompts import image_names, open_image
from jobs.gpu.references import ReferenceBook, answer_keys, look_up
from jobs.gpu.scoring import NOT_FOR_THE_MODEL
from jobs.reporter import Reporter
from jobs.runs import RunFolder

#: The share of an image's area that a scrap shows; of nothing at all there would be nothing to enlarge.
SHARES = (0.01, 0.20)

#: Where a batch keeps its scraps.
SCRAPS = "scraps"


def scrap_of(picture: Image.Image, seed: int) -> Image.Image:
    """A crop of 1 to 20 % of the picture, at a random place, of its proportions and enlarged to its size."""
    chance = random.Random(seed)
    side = chance.uniform(*SHARES) ** 0.5
    width, height = (max(1, int(side * size)) for size in picture.size)
    left = chance.randint(0, picture.width - width)
    top = chance.randint(0, picture.height - height)
    crop = picture.crop((left, top, left + width, top + height))
    return crop.resize(picture.size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class ScrapFolder(RunFolder):
    """Looks like the run folder, but for its images: they are scraps, under their images' names."""

    @property
    def images(self) -> Path:
        return self.path


def make_scraps(run: RunFolder, folder: Path, names: Sequence[str]) -> ScrapFolder:
    """The scraps of these images in `folder`.

    Raises:
        UserError: an image can't be read.
    """
    for name in names:
        seed = int.from_bytes(hashlib.sha256(run.image(name).read_bytes()).digest()[:8], "big")
        # As JPEG whatever the name says: enlarged, they would take ten times as much as PNG.
        scrap_of(open_image(run.image(name)), seed).save(folder / name, format="JPEG", quality=95)
    return ScrapFolder(folder)


@dataclass
class Scraps:
    """Chosen answers under scraps of their images.

    Attributes:
        rows: a data set with one row for each pair that shows an image.
        numbers: {place of a pair in the material: number of its row}.
        collate: rows → a batch as the model takes it.
        references: of each row, the reference's log-probability of its answer.
        keep: the scraps' files, where batches open them.
    """

    rows: Any
    numbers: dict[int, int]
    collate: Any
    references: list[float]
    keep: Any = None

    def batch(self, places: Sequence[int]) -> dict[str, Any]:
        """The rows of those of these pairs that have one, with `shown`, which of them they are."""
        found = [(spot, self.numbers[place]) for spot, place in enumerate(places) if place in self.numbers]
        if not found:
            return {}
        return {
            **self.collate([self.rows[number] for _, number in found]),
            "shown": torch.tensor([spot for spot, _ in found]),
            "references": torch.tensor([self.references[number] for _, number in found]),
        }


@dataclass
class WithScraps:
    """A collator's batches of pairs, with the scraps of those that show an image under SCRAPS."""

    collate: Any
    scraps: Scraps

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(examples)
        scraps = self.scraps.batch([example["place"] for example in examples])
        return {**batch, SCRAPS: scraps} if scraps else batch


def add_image_term(
    run: RunFolder, config: DpoConfig, trainer: Any, material: Material, book: ReferenceBook, reporter: Reporter
) -> None:
    """Have the trainer's batches bring scraps with the reference's log-probabilities, unless the weight is 0.

    Raises:
        Stopped: asked to stop; what the reference gave so far is kept.
        PlumbError: the reference gives something that is not a number.
    """
    if config.image_weight == 0:
        return
    scraps, keys = read_scraps(run, trainer, material, reporter)
    pairs = sum("chosen" in row for row in material.rows)
    reporter.note(f"{len(scraps.numbers)} of {pairs} pairs show an image, and have the term that compares it.")
    if not scraps.numbers:
        return
    scraps.references = scrap_references(config, trainer, scraps, keys, book, reporter)
    trainer.data_collator = WithScraps(trainer.data_collator, scraps)


def read_scraps(run: RunFolder, trainer: Any, material: Material, reporter: Reporter) -> tuple[Scraps, list[str]]:
    """The chosen answers of all pairs that show an image as rows with one answer, under scraps; and their keys.

    Raises:
        Stopped: asked to stop.
    """
    places = [place for place, row in enumerate(material.rows) if "chosen" in row and image_names(row["messages"])]
    rows = [
        {"messages": material.rows[place]["messages"], "answer": material.rows[place]["chosen"]}
        for place in places
    ]
    reporter.phase("preparing scraps of the images")
    told = every_second(lambda done: reporter.progress(done, len(rows), "images"))

    def tell(done: int) -> None:
        reporter.check_stop()
        told(done)

    keep = tempfile.TemporaryDirectory(prefix="scraps-", dir=run.path)
    names = sorted({name for row in rows for name in image_names(row["messages"])})
    folder = make_scraps(run, Path(keep.name), names)
    processor, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model).get_base_model()
    ends = end_tokens(model, processor.tokenizer)
    shared = trainer.prefix is not None
    prepared = prepare(folder, processor, ends, rows, model.dtype, shared, tell)
    both = [{**row, "chosen": row["answer"], "rejected": row["answer"]} for row in rows]
    keys = [key for key, _ in answer_keys(folder, both)]
    collate: Any = StockCollator(folder, processor, ends)
    if shared:
        collate = PreparedCollator(prepared, processor.tokenizer.pad_token_id, model.config.model_type in ROW_WISE)
        keep.cleanup()
    numbers = {place: number for number, place in enumerate(places)}
    dataset = as_dataset(rows, range(len(rows)), prepared.entries)
    return Scraps(dataset, numbers, collate, [], keep), keys


def score_scraps(trainer: Any, model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The summed log-probabilities of a batch's answers under scraps, of shape (rows,).

    Args:
        model: the one to call; the trainer's own, or what wraps it.
    """
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    apart = NOT_FOR_THE_MODEL | {"shown", "references"}
    named = {name: value for name, value in batch.items() if name not in apart}
    if trainer.prefix is not None:
        named["alone"] = True
    found: torch.Tensor = model(**named, use_cache=False, labels=labels, fused_lm_head=True).log_probs
    return found.float().sum(dim=1)


def scrap_references(
    config: DpoConfig, trainer: Any, scraps: Scraps, keys: Sequence[str], book: ReferenceBook, reporter: Reporter
) -> list[float]:
    """The reference's log-probability of every row's answer under its scraps, from the book or computed now."""
    policy = trainer.accelerator.unwrap_model(trainer.model)

    def compute(numbers: Sequence[int]) -> tuple[list[float], list[float]]:
        batch = trainer._prepare_inputs(scraps.collate([scraps.rows[number] for number in numbers]))
        training = policy.training
        policy.eval()
        try:
            with torch.no_grad(), trainer.accelerator.autocast(), as_reference(policy):
                found = score_scraps(trainer, policy, batch).tolist()
        finally:
            policy.train(training)
        return found, found

    reporter.phase("computing the reference's log-probabilities under scraps")
    told = every_second(lambda done: reporter.progress(done, len(keys), "answers"))

    def tell(done: int, _: int) -> None:
        reporter.check_stop()
        told(done)

    lengths, pairs = scraps.rows["length"], [(key, key) for key in keys]
    values, found = look_up(book, pairs, lengths, config.batch_size, compute, tell, reporter.check_stop)
    reporter.note(
        f"Reference under scraps: {found.known} of {found.known + found.computed} answers were known from earlier "
        f"runs, {found.computed} computed in {found.forwards} forward passes."
    )
    return [value for value, _ in values]


class Heard:
    """Stands for the model in TRL's loss, and keeps the scores that its first call gave.

    Attributes:
        log_probs: of shape (2B, T − 1), chosen rows over rejected rows.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.log_probs: torch.Tensor | None = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        output = self._model(*given, **named)
        if self.log_probs is None:
            self.log_probs = output.log_probs
        return output

    @property
    def chosen(self) -> torch.Tensor:
        """The summed log-probabilities of the chosen answers, (B,)."""
        assert self.log_probs is not None
        return self.log_probs.float().chunk(2)[0].sum(dim=1)


def image_margins(chosen: torch.Tensor, scrap: torch.Tensor, beta: float) -> torch.Tensor:
    """How much likelier the image makes the chosen answer than a scrap of it, counted from the reference, times β.

    Args:
        chosen, scrap: log-ratios of policy to reference under the image and under its scrap, of shape (pairs,).
    """
    return beta * (chosen - scrap)


def image_loss(margins: torch.Tensor, pairs: int) -> torch.Tensor:
    """The image's term of a batch: a pair without an image has none, and counts with 0.

    So every pair weighs alike, however pairs are spread over batches, accumulation and processes; a mean over
    those that have an image would weigh a picture among texts more.

    Args:
        margins: of the pairs that show an image.
        pairs: how many pairs the batch has.
    """
    return -logsigmoid(margins).sum() / pairs


def anchor_loss(chosen: torch.Tensor, beta: float) -> torch.Tensor:
    """The anchor of a batch: rewards of chosen answers stay above δ = 0.

    Args:
        chosen: log-ratios of policy to reference, of shape (pairs,).
    """
    return -logsigmoid(beta * chosen).mean()
