"""Preference rows → batches as TRL's DPO loss takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.gpu.prompts import check_messages, encode, from_run, image_names, lengths
from jobs.runs import RunFolder
from storage.errors import UserError

_MARK = "\u241e"  # the symbol for a record separator: stands for the answer while a template is read


@dataclass(frozen=True)
class Frame:
    """What the chat template puts around an answer, as ids: before it (after the prompt) and after it."""

    before: str
    after: list[int]


def answer_frame(processor: Any, messages: Any, ends: frozenset[int]) -> Frame:
    """Read from the template what stands around an answer.

    The prompt is what generation sees. Where the template writes a past answer differently (a space after
    "ASSISTANT:"), that lead belongs to the answer. After the answer everything up to the first end token
    counts; a template that writes none gets one, or the model would never learn where to stop.
    """
    plain = [{**message, "content": without_images(message["content"])} for message in messages]
    answer = {"role": "assistant", "content": [{"type": "text", "text": _MARK}]}
    prompt = processor.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template([*plain, answer], tokenize=False)
    head, _, tail = whole.rpartition(_MARK)
    before = head[len(prompt) :] if head.startswith(prompt) else ""
    after = processor.tokenizer(tail, add_special_tokens=False)["input_ids"]
    for place, token in enumerate(after):
        if token in ends:
            return Frame(before, after[: place + 1])
    eos = processor.tokenizer.eos_token_id
    return Frame(before, [eos if eos is not None else min(ends)])


def without_images(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if part["type"] == "text"] or [{"type": "text", "text": ""}]


def check_pairs(run: RunFolder, rows: Sequence[dict[str, Any]]) -> None:
    """Refuse rows that can't be trained on, before the model is loaded.

    Raises:
        UserError: a field is missing or empty, or an image isn't there; the text names pair and field.
    """
    for place, row in enumerate(rows):
        where = f"Pair {row.get('pair_id', f'in row {place}')}"
        missing = [field for field in ("split", "messages", "chosen", "rejected") if field not in row]
        if missing:
            raise UserError(f"{where} has no {', '.join(missing)}; freeze the data set again.")
        check_messages(row["messages"], where)
        for field in ("chosen", "rejected"):
            if not isinstance(row[field], str) or not row[field].strip():
                raise UserError(f"{where} has an empty {field} answer; leave it out and freeze again.")
        for name in image_names(row["messages"]):
            if not run.image(name).is_file():
                raise UserError(f"{where}: the image {name} is missing from the run folder; submit it again.")


def as_dataset(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows as a `datasets.Dataset`; messages as JSON, since Arrow fills every missing key of a part with None.

    TRL recognises a vision data set by its column `images`.
    """
    from datasets import Dataset, Features, List, Value

    return Dataset.from_list(
        [
            {
                "images": image_names(row["messages"]),
                "messages": json.dumps(row["messages"], ensure_ascii=False),
                "chosen": row["chosen"],
                "rejected": row["rejected"],
            }
            for row in rows
        ],
        features=Features(
            images=List(Value("string")),
            messages=Value("string"),
            chosen=Value("string"),
            rejected=Value("string"),
        ),
    )


@dataclass
class PreferenceCollator:
    """B pairs → 2B right-padded rows, chosen over rejected, as TRL's loss takes them.

    Other than TRL's own collator, images are opened here, one batch at a time, and processed once for both
    halves; text-only rows may stand beside rows with images; what users write never becomes a control token;
    an answer always ends with the end token; nothing is cut.
    """

    run: RunFolder
    processor: Any
    ends: frozenset[int]

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns input_ids, attention_mask, completion_mask of shape (2B, longest) and the images' tensors."""
        conversations = [from_run(self.run, json.loads(example["messages"])) for example in examples]
        batch = encode(self.processor, conversations)
        sizes = lengths(batch)
        prompts = [ids[-size:].tolist() for ids, size in zip(batch["input_ids"], sizes, strict=True)]
        frames = [answer_frame(self.processor, messages, self.ends) for messages in conversations]
        answers = [
            self._answer(example[side], frame)
            for side in ("chosen", "rejected")
            for example, frame in zip(examples, frames, strict=True)
        ]
        rows = [prompt + answer for prompt, answer in zip(prompts * 2, answers, strict=True)]
        starts = [len(prompt) for prompt in prompts * 2]
        collated = self._padded(rows, starts)
        for name, value in batch.items():
            if name not in collated:
                collated[name] = self._twice(name, value, batch, rows)
        return collated

    def _answer(self, text: str, frame: Frame) -> list[int]:
        ids: list[int] = self.processor.tokenizer(
            frame.before + text.strip(), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids + frame.after

    def _padded(self, rows: list[list[int]], starts: list[int]) -> dict[str, Any]:
        longest = max(len(row) for row in rows)
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.full((len(rows), longest), pad, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        completion = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
            completion[place, start : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}

    def _twice(self, name: str, value: Any, batch: dict[str, Any], rows: list[list[int]]) -> Any:
        """Images' tensors once for each half; what has one entry a token is moved along with the tokens."""
        if not isinstance(value, torch.Tensor):
            return list(value) * 2
        if value.shape != batch["input_ids"].shape:
            return torch.cat([value, value])
        longest = max(len(row) for row in rows)
        moved = value.new_zeros(len(rows), longest)  # token types: 0 is text, as answers are
        for place, size in enumerate(lengths(batch) * 2):
            moved[place, :size] = value[place % len(value), -size:]
        return moved
