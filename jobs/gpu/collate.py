"""Rows → batches as TRL's losses take them: pairs for DPO, single answers for supervised fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.gpu.frames import answer_frame, answer_ids
from jobs.gpu.prepared import Entry, Prepared, Tensors, answer_names, label
from jobs.gpu.prompts import check_messages, encode, from_run, image_names, lengths
from jobs.runs import RunFolder
from storage.errors import UserError


def check_rows(run: RunFolder, rows: Sequence[dict[str, Any]]) -> None:
    """Refuse rows that can't be trained on, before the model is loaded.

    Raises:
        UserError: a field is missing or empty, or an image isn't there; the text names row and field.
    """
    for place, row in enumerate(rows):
        known = {"pair_id", "sample_id"} & row.keys()
        where = label(row).capitalize() if known else f"Row {place}"
        missing = [field for field in ("split", "messages", *answer_names(row)) if field not in row]
        if missing:
            raise UserError(f"{where} has no {', '.join(missing)}; freeze the data set again.")
        check_messages(row["messages"], where)
        for field in answer_names(row):
            if not isinstance(row[field], str) or not row[field].strip():
                raise UserError(f"{where} has an empty answer ({field}); leave it out and freeze again.")
        for name in image_names(row["messages"]):
            if not run.image(name).is_file():
                raise UserError(f"{where}: the image {name} is missing from the run folder; submit it again.")


def as_dataset(rows: Sequence[dict[str, Any]], places: Sequence[int], entries: Sequence[Entry]) -> Any:
    """The rows at `places` as a `datasets.Dataset`; `place` is theirs, batches are grouped by `length`.

    All of them are pairs, or all have one answer.

    Messages are JSON, since Arrow fills every missing key of a part with None. TRL recognises a vision data set by
    its column `images`.
    """
    from datasets import Dataset, Features, List, Value

    chosen = [rows[place] for place in places]
    answers = answer_names(chosen[0]) if chosen else ()
    columns: dict[str, tuple[Any, list[Any]]] = {
        "images": (List(Value("string")), [image_names(row["messages"]) for row in chosen]),
        "messages": (
            Value("string"),
            [json.dumps(row["messages"], ensure_ascii=False) for row in chosen],
        ),
        **{name: (Value("string"), [row[name] for row in chosen]) for name in answers},
        "place": (Value("int64"), list(places)),
        "length": (Value("int64"), [entries[place].length for place in places]),
    }
    return Dataset.from_dict(
        {name: values for name, (_, values) in columns.items()},
        features=Features({name: kind for name, (kind, _) in columns.items()}),
    )


@dataclass
class PreparedCollator:
    """B prepared pairs → 2B right-padded rows, chosen over rejected, with the images once a pair.

    B rows with one answer each → B rows. Examples carry `place`, theirs among the prepared entries, and maybe the
    reference's log-probabilities.

    Attributes:
        kin: for every entry a number, the same for those with one answer that begin alike (`kindred`); empty: no
            two do. Where a batch holds kin, its images come once a group, and `groups` says which row is in which.
    """

    prepared: Prepared
    pad: int
    row_wise: bool
    kin: Sequence[int] = ()

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns input_ids, attention_mask, completion_mask of shape (2B, longest) and the images' tensors.

        `groups`, where there are any, is a list with an entry a row: numbers from 0, in their order.
        """
        entries = [self.prepared.entries[example["place"]] for example in examples]
        sides = len(entries[0].answers)
        rows = [entry.prompt + entry.answers[side] for side in range(sides) for entry in entries]
        starts = [len(entry.prompt) for entry in entries] * sides
        batch: dict[str, Any] = dict(pad_rows(rows, starts, self.pad))
        for name in sorted({name for entry in entries for name in entry.kinds}):
            whole = torch.zeros_like(batch["input_ids"])
            for place, entry in enumerate(entries * sides):
                kinds = entry.kinds.get(name, [])
                whole[place, : len(kinds)] = torch.tensor(kinds, dtype=torch.long)
            batch[name] = whole
        shelf, shown = self.prepared.shelf, entries
        if self.kin and sides == 1:
            numbers = [self.kin[example["place"]] for example in examples]
            firsts = [numbers.index(number) for number in dict.fromkeys(numbers)]
            if len(firsts) < len(entries):
                shown = [entries[first] for first in firsts]
                batch["groups"] = [firsts.index(numbers.index(number)) for number in numbers]
        batch.update(
            batch_images([shelf.get(entry.images) if entry.images else {} for entry in shown], self.row_wise)
        )
        batch.update(references_of(examples))
        return batch


@dataclass
class StockCollator:
    """The stock path's: B pairs → 2B right-padded rows, chosen over rejected, with the images for both halves.

    B rows with one answer each → B rows.

    Other than TRL's own collator, images are opened here, one batch at a time, and processed once for both
    halves; text-only rows may stand beside rows with images; what users write never becomes a control token;
    an answer always ends with the end token; nothing is cut.
    """

    run: RunFolder
    processor: Any
    ends: frozenset[int]

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns as `PreparedCollator`, with the images for each answer."""
        sides = answer_names(examples[0])
        conversations = [from_run(self.run, json.loads(example["messages"])) for example in examples]
        batch = encode(self.processor, conversations)
        sizes = lengths(batch)
        prompts = [ids[-size:].tolist() for ids, size in zip(batch["input_ids"], sizes, strict=True)]
        frames = [answer_frame(self.processor, messages, self.ends) for messages in conversations]
        answers = [
            answer_ids(self.processor, example[side], frame)
            for side in sides
            for example, frame in zip(examples, frames, strict=True)
        ]
        rows = [prompt + answer for prompt, answer in zip(prompts * len(sides), answers, strict=True)]
        starts = [len(prompt) for prompt in prompts * len(sides)]
        collated: dict[str, Any] = dict(pad_rows(rows, starts, self.processor.tokenizer.pad_token_id))
        longest = collated["input_ids"].shape[1]
        for name, value in batch.items():
            if name not in collated:
                collated[name] = self._repeated(name, value, batch, longest, len(sides))
        collated.update(references_of(examples))
        return collated

    def _repeated(self, name: str, value: Any, batch: dict[str, Any], longest: int, times: int) -> Any:
        """Images' tensors once for each answer; what has one entry a token is moved along with the tokens."""
        if not isinstance(value, torch.Tensor):
            return list(value) * times
        if value.shape != batch["input_ids"].shape:
            return torch.cat([value] * times)
        moved = value.new_zeros(times * len(value), longest)  # token types: 0 is text, as answers are
        for place, size in enumerate(lengths(batch) * times):
            moved[place, :size] = value[place % len(value), -size:]
        return moved


def batch_images(rows: Sequence[Tensors], row_wise: bool) -> Tensors:
    """The images' tensors of several rows as one batch, filled up with zeros where sizes differ.

    Args:
        rows: of each row, in order; empty for a row without images.
        row_wise: the tensors have an entry a row, which rows without images need, too.
    """
    names = next((list(row) for row in rows if row), [])
    batch: Tensors = {}
    for name in names:
        parts = [row[name] for row in rows if row]
        largest = torch.Size(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
        if row_wise:
            blank = parts[0].new_zeros(1, *largest)
            parts = [row[name] if row else blank for row in rows]
        batch[name] = torch.cat([filled(part, largest) for part in parts])
    return batch


def filled(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """With zeros after it in every dimension but the first, up to `shape`."""
    if tensor.shape[1:] == shape:
        return tensor
    whole = tensor.new_zeros(len(tensor), *shape)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def pad_rows(rows: Sequence[list[int]], starts: Sequence[int], pad: int) -> Tensors:
    """Rows of ids as (rows, longest), padded on the right; the completion is what follows `starts`."""
    shape = (len(rows), max(map(len, rows)))
    ids = torch.full(shape, pad, dtype=torch.long)
    mask, completion = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        completion[place, start : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}


def kindred(rows: Sequence[Mapping[str, Any]], entries: Sequence[Entry], image_token: int) -> list[int]:
    """A number for every row, the same for rows of one sample that begin alike up to the last of their images.

    Args:
        image_token: the id that stands for a piece of an image.
    """
    numbers: dict[Any, int] = {}
    found = []
    for row, entry in zip(rows, entries, strict=True):
        backwards = entry.prompt[::-1]
        end = len(entry.prompt) - backwards.index(image_token) if image_token in backwards else 0
        beginning = (len(entry.answers), row.get("sample_id"), entry.images, tuple(entry.prompt[:end]))
        found.append(numbers.setdefault(beginning, len(numbers)))
    return found


def references_of(examples: Sequence[dict[str, Any]]) -> Tensors:
    """The columns that TRL's loss reads in place of a reference forward; empty where there are none yet."""
    return {
        name: torch.tensor([example[name] for example in examples], dtype=torch.float32)
        for name in ("ref_chosen_logps", "ref_rejected_logps")
        if name in examples[0]
    }
