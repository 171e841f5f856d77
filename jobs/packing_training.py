"""What a training's configuration names, resolved into rows, images and adapters.

A data set's held-out rows are divided once more: one part is looked at along the run, the other once, at its end.
So nothing is chosen by what is reported (paper.md, section 6). This division, the rows that a `fraction` takes and
the pairs that `flip` turns round are drawn by the data set's hash, not by the configuration's seed: the runs of a
sweep learn from the same rows and are measured on the same ones, whatever they vary. Fractions are nested: the
25 % lie within the 50 %. So are flips at one fraction; across fractions they can't be, if each share is exact.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlite_utils import Database

from jobs.configs import DpoConfig, TrainConfig
from jobs.rows import Row, answer_rows, flipped, pair_row
from jobs.runs import LINEAGE
from storage.adapters import get_adapter
from storage.datasets import connected, dataset_rows, draw_groups, get_dataset, list_datasets
from storage.errors import UserError
from storage.images import get_images
from storage.records import Adapter, Dataset, DatasetRow, Image, Message
from storage.samples import images_of


@dataclass(frozen=True)
class Freight:
    """What goes into the run folder beside job.json."""

    rows: list[Row]
    images: dict[str, Image] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    dataset: Dataset | None = None
    files: dict[str, str] = field(default_factory=dict)  # name below data/ → text


@dataclass(frozen=True)
class Learnt:
    """The rows that a training gets.

    Attributes:
        rows: those to train on first.
        whole: rows to train on before `fraction`.
        flipped: pairs turned round.
        empty: answers, pairs or references that were left out because there is nothing in them.
    """

    rows: list[Row]
    whole: int
    flipped: int
    empty: int


def pack_training(db: Database, config: TrainConfig) -> Freight:
    """The frozen rows of a training's data set, as its method takes them, and where they come from.

    Raises:
        UserError: there is nothing to train on by this method; the adapter to start from is another base's.
        NotFound: the data set or the adapter to start from is not there.
    """
    dataset = get_dataset(db, config.dataset)
    pairs = dataset_rows(db, dataset.id)
    # DPO reads no answers; but samples with several images may tie two images of held-out pairs together.
    samples = dataset_rows(db, dataset.id, kind="sample")
    adapters: tuple[Adapter, ...] = ()
    if config.start_adapter is not None:
        adapters = (adapter_of(db, config.start_adapter, config.model),)
    images = images_shown(db, [row.row["messages"] for row in (*pairs, *samples)])
    learnt = learn(dataset, pairs, samples, config, images)
    told = lineage(db, dataset, config, learnt, adapters)
    files = {LINEAGE: json.dumps(told, indent=2, ensure_ascii=False) + "\n"}
    return Freight(learnt.rows, shown_in(learnt.rows, images), adapters, dataset, files)


def learn(
    dataset: Dataset,
    pairs: Sequence[DatasetRow],
    samples: Sequence[DatasetRow],
    config: TrainConfig,
    images: dict[str, Image],
) -> Learnt:
    """A data set's rows → a training's (pure).

    Raises:
        UserError: none is left to train on; the text says why, and what to do.
    """
    method = config.kind
    if method != "dpo" and not samples:
        raise UserError(
            f"The data set {dataset.name!r} was frozen before answers and references were kept, so that there is "
            f"nothing to train on by {method}. Freeze its pairs again on the Pairs page, under another name."
        )
    splits = divide(dataset, pairs, samples, config.report_share)
    whole_pairs = [row for row in pairs if row.row["chosen"].strip() and row.row["rejected"].strip()]
    of_pairs = [pair_row(row, splits[row.position], images, config.asked_as) for row in whole_pairs]
    if isinstance(config, DpoConfig):
        train = [row for row in of_pairs if row["split"] == "train"]
        rest = [row for row in of_pairs if row["split"] != "train"]
        empty = len(pairs) - len(whole_pairs)
    else:
        made = [
            (row, answer_rows(row, splits[row.position], images, method, config.asked_as))
            for row in samples
            if splits[row.position] != "report"
        ]
        train = [answer for row, found in made if row.split == "train" for answer in found]
        rest = [answer for row, found in made if row.split != "train" for answer in found]
        rest += [row for row in of_pairs if row["split"] != "train"]
        empty = sum(wanted_of(row, method) - len(found) for row, found in made)
    if not train:
        raise UserError(nothing_left(dataset, method, pairs, samples))
    used, turned = chosen_rows(dataset, train, config.fraction, getattr(config, "flip", 0.0))
    return Learnt([*used, *rest], len(train), turned, empty)


def divide(
    dataset: Dataset, pairs: Sequence[DatasetRow], samples: Sequence[DatasetRow], report_share: float
) -> dict[int, str]:
    """Position → "train", "heldout" or "report".

    `report_share` of the held-out pairs are kept for the report, by groups of connected images: what is looked at
    along the run shares no image with them. A share never takes all pairs, and groups without pairs, of which
    nothing would be reported, stay held out.
    """
    splits: dict[int, str] = {row.position: row.split for row in (*pairs, *samples)}
    heldout = [row for row in (*pairs, *samples) if row.split == "heldout"]
    names = connected([row.row["images"] for row in heldout])
    sizes = Counter(name for row, name in zip(heldout, names, strict=True) if row.kind == "pair")
    drawn = set(draw_groups(sizes, 100 * report_share, int(dataset.hash[:16], 16)))
    splits |= {row.position: "report" for row, name in zip(heldout, names, strict=True) if name in drawn}
    return splits


def chosen_rows(dataset: Dataset, train: Sequence[Row], fraction: float, flip: float) -> tuple[list[Row], int]:
    """The rows that a fraction takes, in their order, a share of them turned round; and how many were.

    Both draws are the beginning of one order of all rows, seeded by the data set's hash: so a smaller fraction
    lies within a larger one, and the rows turned round at one fraction within those of a larger flip. At least one
    row is taken.
    """
    used = set(order_of(len(train), f"{dataset.hash}/fraction")[: max(1, round(len(train) * fraction))])
    among = [place for place in order_of(len(train), f"{dataset.hash}/flip") if place in used]
    turned = set(among[: round(len(used) * flip)])
    rows = [flipped(row) if place in turned else row for place, row in enumerate(train) if place in used]
    return rows, len(turned)


def order_of(count: int, seed: str) -> list[int]:
    """The numbers below `count` in a seeded order."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def wanted_of(row: DatasetRow, method: str) -> int:
    """How many rows a sample has for a method, before empty answers are left out."""
    answers = len(row.row["answers"])
    return {"steerlm": answers, "rejection": min(1, answers), "sft": int(row.row["reference"] is not None)}[method]


def nothing_left(dataset: Dataset, method: str, pairs: Sequence[DatasetRow], samples: Sequence[DatasetRow]) -> str:
    """Why a data set has no row to train on by a method, and what to do."""
    named = f"The data set {dataset.name!r} has nothing to train on by {method}"
    if method == "dpo":
        if any(row.split == "train" for row in pairs):
            return f"{named}: in every pair an answer is empty. Make pairs of other answers, and freeze again."
        return f"{named}: it has no pairs there. Freeze one with more pairs, or a smaller held-out part."
    training = [row for row in samples if row.split == "train"]
    if method == "sft":
        return (
            f"{named}: none of its {len(training):,} samples there has a reference answer. Import samples with "
            "references, and freeze again; or train by another method."
        )
    if any(row.row["answers"] for row in training):
        return f"{named}: all of its scored answers are empty. Generate and judge others, and freeze again."
    return (
        f"{named}: none of its {len(training):,} samples there has an answer that is scored on all five metrics. "
        "Judge or score the candidates, and freeze again."
    )


def lineage(
    db: Database, dataset: Dataset, config: TrainConfig, learnt: Learnt, adapters: Sequence[Adapter]
) -> dict[str, Any]:
    """Where a training's labels come from, for its model card (data/lineage.json).

    {dataset: {name, hash, rule, counts, user, created_at}, raters, rubrics, rows: {pair: {split: n}, answer:
    {split: n}}, training_rows, fraction, flipped, left_out, start_adapter}. The adapter is {id, name, sha256,
    method, job, dataset} or None; `training_rows` are those before `fraction`, `left_out` the empty ones.
    """
    rows: dict[str, Counter[str]] = {"pair": Counter(), "answer": Counter()}
    for row in learnt.rows:
        rows[row["kind"]][row["split"]] += 1
    return {
        "dataset": {
            "name": dataset.name,
            "hash": dataset.hash,
            "rule": dataset.rule,
            "counts": dataset.counts,
            "user": dataset.user,
            "created_at": dataset.created_at,
        },
        "raters": dataset.rule.get("raters", []),
        "rubrics": dataset.rule.get("rubrics", []),
        "rows": rows,
        "training_rows": learnt.whole,
        "fraction": config.fraction,
        "flipped": learnt.flipped,
        "left_out": learnt.empty,
        "start_adapter": _started(db, adapters[0]) if adapters else None,
    }


def _started(db: Database, adapter: Adapter) -> dict[str, Any]:
    names = {dataset.id: dataset.name for dataset in list_datasets(db)}
    return {
        "id": adapter.id,
        "name": adapter.name,
        "sha256": adapter.sha256,
        "method": adapter.method,
        "job": adapter.job_id,
        "dataset": names.get(adapter.dataset_id or 0),
    }


def adapter_of(db: Database, adapter_id: int, model: str) -> Adapter:
    """An adapter of this base.

    Raises:
        NotFound: it is not there.
        UserError: it is another base's.
    """
    adapter = get_adapter(db, adapter_id)
    if adapter.base_model != model:
        raise UserError(
            f"adapter {adapter.id} ({adapter.name}) was trained on {adapter.base_model!r}, not on {model!r}; "
            f"set the base model to {adapter.base_model!r}."
        )
    return adapter


def images_shown(db: Database, chats: Sequence[Sequence[Message]]) -> dict[str, Image]:
    """The images of these chats, by sha256."""
    return get_images(db, (sha256 for messages in chats for sha256 in images_of(messages)))


def shown_in(rows: Sequence[Row], images: dict[str, Image]) -> dict[str, Image]:
    """Those of the images that these rows show."""
    names = {
        part["image"]
        for row in rows
        for message in row["messages"]
        for part in message["content"]
        if part["type"] == "image"
    }
    return {sha256: image for sha256, image in images.items() if image.name in names}
