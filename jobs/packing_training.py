"""What a training's configuration names, resolved into rows, images and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlite_utils import Database

from jobs.configs import TrainConfig
from jobs.rows import Row, dpo_row
from storage.adapters import get_adapter
from storage.datasets import dataset_rows, get_dataset
from storage.errors import UserError
from storage.images import get_images
from storage.records import Adapter, Dataset, Image, Message
from storage.samples import images_of


@dataclass(frozen=True)
class Freight:
    """What goes into the run folder beside job.json."""

    rows: list[Row]
    images: dict[str, Image] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    dataset: Dataset | None = None
    files: dict[str, str] = field(default_factory=dict)  # name below data/ → text


def pack_training(db: Database, config: TrainConfig) -> Freight:
    """The frozen rows of a training's data set, as its method takes them.

    Raises:
        UserError: there is nothing to train on.
        NotFound: the data set or the adapter to start from is not there.
    """
    dataset = get_dataset(db, config.dataset)
    frozen = dataset_rows(db, dataset.id)
    if not any(row.split == "train" for row in frozen):
        raise UserError(
            f"The data set {dataset.name!r} has no pairs to train on; freeze one with pairs on the Pairs page."
        )
    adapters: tuple[Adapter, ...] = ()
    if config.start_adapter is not None:
        adapters = (adapter_of(db, config.start_adapter, config.model),)
    images = images_shown(db, [row.row["messages"] for row in frozen])
    return Freight([dpo_row(row, images) for row in frozen], images, adapters, dataset)


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
