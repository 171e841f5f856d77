"""A data set's pairs as tokens and tensors, made once: training then opens no image and reads no template.

TRL's collator opens, scales and normalises every image again in each epoch, and twice a pair. What the processor
made of a row's images is kept here instead, in memory up to a bound and beyond it in an unnamed file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from jobs.gpu.frames import answer_frame, answer_ids
from jobs.gpu.prompts import encode, from_run, image_names
from jobs.runs import RunFolder
from storage.errors import UserError

#: Bytes of image tensors that are kept in memory; 1,500 images of 336 × 336 in float32.
IN_MEMORY = 2 << 30

#: Architectures whose processors give each row one entry for all of its images, filled up with black ones.
ROW_WISE = frozenset({"smolvlm", "idefics2", "idefics3"})

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Entry:
    """One prompt and its answers, as ids, each with what the template puts around it.

    A pair has its chosen and its rejected answer, in this order; a row of supervised fine-tuning has one.
    """

    prompt: list[int]
    answers: tuple[list[int], ...]
    kinds: dict[str, list[int]]  #: more that the processor gives for each token of the prompt; 0 for answers
    images: tuple[str, ...]  #: the names of its images, a key of the shelf

    @property
    def length(self) -> int:
        """Tokens of the entry as one packed row."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def longest(self) -> int:
        """Tokens of the longest of its sequences: what the model's context must hold."""
        return len(self.prompt) + max(map(len, self.answers))


class Shelf:
    """Image tensors by key; what goes over the bound lies in a file in `folder` that ends with the process."""

    def __init__(self, folder: Path, dtype: torch.dtype, bound: int = IN_MEMORY) -> None:
        self._folder = folder
        self._dtype = dtype
        self._bound = bound
        self._held: dict[tuple[str, ...], Tensors] = {}
        self._filed: dict[tuple[str, ...], list[tuple[str, torch.dtype, torch.Size, int]]] = {}
        self._file: IO[bytes] | None = None
        self.bytes = 0

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._held or key in self._filed

    def put(self, key: tuple[str, ...], tensors: Tensors) -> None:
        """Keep them, pixels in the model's dtype: it would take them to it anyway."""
        kept = {
            name: (value.to(self._dtype) if value.is_floating_point() else value).contiguous()
            for name, value in tensors.items()
        }
        size = sum(value.nbytes for value in kept.values())
        if self.bytes + size <= self._bound:
            self._held[key] = {name: value.clone() for name, value in kept.items()}
        else:
            self._filed[key] = [self._write(name, value) for name, value in kept.items()]
        self.bytes += size

    def _write(self, name: str, value: torch.Tensor) -> tuple[str, torch.dtype, torch.Size, int]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, prefix="images-")  # noqa: SIM115
        self._file.seek(0, os.SEEK_END)
        start = self._file.tell()
        self._file.write(value.flatten().view(torch.uint8).numpy().tobytes())
        return name, value.dtype, value.shape, start

    def get(self, key: tuple[str, ...]) -> Tensors:
        """The tensors of a row's images; not to be changed."""
        if key in self._held:
            return self._held[key]
        return {name: self._read(dtype, shape, start) for name, dtype, shape, start in self._filed[key]}

    def _read(self, dtype: torch.dtype, shape: torch.Size, start: int) -> torch.Tensor:
        assert self._file is not None
        self._file.seek(start)
        raw = bytearray(self._file.read(shape.numel() * dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype).view(shape)


@dataclass(frozen=True)
class Prepared:
    """The rows' entries in their order, and their images."""

    entries: list[Entry]
    shelf: Shelf


def prepare(
    run: RunFolder,
    processor: Any,
    ends: frozenset[int],
    rows: Sequence[dict[str, Any]],
    dtype: torch.dtype,
    keep_images: bool,
    tell: Callable[[int], None],
) -> Prepared:
    """Read every row once, as generation would read its prompt.

    Args:
        ends: ids that end an answer.
        keep_images: keep the image tensors; without it tokens and lengths alone.
        tell: called with the rows done so far; may raise to stop.

    Raises:
        UserError: an image can't be read.
    """
    shelf = Shelf(run.path, dtype)
    entries: list[Entry] = []
    for place, row in enumerate(rows):
        tell(place)
        messages = from_run(run, row["messages"])
        encoded = encode(processor, [messages])
        ids = encoded.pop("input_ids")
        encoded.pop("attention_mask")
        frame = answer_frame(processor, messages, ends)
        kinds = {name: encoded.pop(name)[0].tolist() for name in list(encoded) if is_tokenwise(encoded[name], ids)}
        images = tuple(image_names(row["messages"]))
        if keep_images and images and images not in shelf:
            shelf.put(images, {name: value for name, value in encoded.items() if isinstance(value, torch.Tensor)})
        answers = tuple(answer_ids(processor, row[name], frame) for name in answer_names(row))
        entries.append(Entry(ids[0].tolist(), answers, kinds, images))
    return Prepared(entries, shelf)


def answer_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a row that hold its answers."""
    return ("answer",) if "answer" in row else ("chosen", "rejected")


def is_tokenwise(value: Any, ids: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == ids.shape


def check_lengths(entries: Sequence[Entry], rows: Sequence[dict[str, Any]], context: int | None) -> None:
    """Refuse rows that the model can't hold: cutting one could take image tokens away.

    Raises:
        UserError: names them, each with the address of its sample's page.
    """
    if context is None:
        return
    long = [(entry, row) for entry, row in zip(entries, rows, strict=True) if entry.longest > context]
    if not long:
        return
    named = "; ".join(
        f"{label(row)} (/?sample={row.get('sample_id', '?')}) has {entry.longest}" for entry, row in long[:5]
    )
    more = f" and {len(long) - 5} more" if len(long) > 5 else ""
    raise UserError(
        f"{len(long)} rows don't fit into the model's {context} tokens, and nothing is cut: {named}{more}. "
        "Reject their pairs and freeze the data set again, use smaller images, or a model with a longer context."
    )


def label(row: Mapping[str, Any]) -> str:
    """A row as people know it: pair 12, sample 7."""
    if row.get("pair_id") is not None:
        return f"pair {row['pair_id']}"
    return f"sample {row.get('sample_id', '?')}"
