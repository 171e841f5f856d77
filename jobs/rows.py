"""Records → rows of a run folder (pure). Rows hold all that a worker needs; images stand as file names.

    generate   {sample_id, messages}
    judge      {sample_id, source, messages, reference, candidates: [{id, text}],
                checklist: {id, version, instructions, items: [{text, essential}]} where the judge gets one}
    checklist  {sample_id, messages, reference}
    dpo        {split: train | heldout, sample_id, pair_id, messages, chosen, rejected}

`messages` are a chat as transformers' templates take it: [{role, content: [{type: "text", text} |
{type: "image", image: "<sha256>.<ext>"}]}], the image named as it lies in the run folder's data/images.
The last message is the user's; the answer is not part of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from storage.records import Candidate, Checklist, DatasetRow, Image, Message, Sample

Row = dict[str, Any]


def with_file_names(messages: Sequence[Message], images: Mapping[str, Image]) -> list[Message]:
    """The messages with each image's sha256 replaced by its file name; a plain string becomes a text part."""
    return [{"role": message["role"], "content": _parts(message["content"], images)} for message in messages]


def _parts(content: str | list[dict[str, str]], images: Mapping[str, Image]) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [
        {"type": "image", "image": images[part["image"]].name} if part["type"] == "image" else dict(part)
        for part in content
    ]


def generate_row(sample: Sample, images: Mapping[str, Image]) -> Row:
    return {"sample_id": sample.id, "messages": with_file_names(sample.messages, images)}


def checklist_row(sample: Sample, images: Mapping[str, Image]) -> Row:
    return {
        "sample_id": sample.id,
        "messages": with_file_names(sample.messages, images),
        "reference": sample.reference,
    }


def judge_row(
    sample: Sample,
    candidates: Sequence[Candidate],
    images: Mapping[str, Image],
    checklist: Checklist | None = None,
) -> Row:
    row: Row = {
        "sample_id": sample.id,
        "source": sample.source,
        "messages": with_file_names(sample.messages, images),
        "reference": sample.reference,
        "candidates": [{"id": candidate.id, "text": candidate.text} for candidate in candidates],
    }
    if checklist is not None:
        row["checklist"] = {
            "id": checklist.id,
            "version": checklist.version,
            "instructions": checklist.instructions,
            "items": [{"text": item.text, "essential": item.essential} for item in checklist.items],
        }
    return row


def dpo_row(row: DatasetRow, images: Mapping[str, Image]) -> Row:
    return {
        "split": row.split,
        "sample_id": row.sample_id,
        "pair_id": row.pair_id,
        "messages": with_file_names(row.row["messages"], images),
        "chosen": row.row["chosen"],
        "rejected": row.row["rejected"],
    }
