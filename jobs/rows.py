"""Records → rows of a run folder (pure). Rows hold all that a worker needs; images stand as file names.

    generate   {sample_id, messages}
    judge      {sample_id, source, messages, reference, candidates: [{id, text}],
                checklist: {id, version, instructions, items: [{text, essential}]} where the judge gets one}
    checklist  {sample_id, messages, reference}
    contest    as jobs/packing_contest.py says
    dpo, steerlm, rejection, sft:
      pair     {kind: "pair", split, sample_id, pair_id, messages, chosen, rejected, flipped: true where it was}
      answer   {kind: "answer", split, sample_id, messages, answer}

`split` is "train", "heldout" (looked at along the run) or "report" (looked at once, at the end). DPO has pairs in
all three; the other methods have answers to train on and held out, and pairs held out and for the report.

`messages` are a chat as transformers' templates take it: [{role, content: [{type: "text", text} |
{type: "image", image: "<sha256>.<ext>"}]}], the image named as it lies in the run folder's data/images.
The last message is the user's; the answer is not part of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.pairing import QUALITY
from jobs.steerlm import asked_of, with_attributes
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


def with_addresses(content: str | Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A content of a row with each image's file name replaced by its sha256 again, as the database has it."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [
        {"type": "image", "image": part["image"].partition(".")[0]} if part["type"] == "image" else dict(part)
        for part in parts
    ]


def generate_row(sample: Sample, images: Mapping[str, Image], method: str = "") -> Row:
    """Args: method: of the adapter that answers; SteerLM's are asked with their attribute string."""
    return {"sample_id": sample.id, "messages": asked_of(method, with_file_names(sample.messages, images))}


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


def pair_row(row: DatasetRow, split: str, images: Mapping[str, Image], method: str = "dpo") -> Row:
    """A pair, asked as adapters of this method are; SteerLM's with all five values at 4."""
    return {
        "kind": "pair",
        "split": split,
        "sample_id": row.sample_id,
        "pair_id": row.pair_id,
        "messages": asked_of(method, with_file_names(row.row["messages"], images)),
        "chosen": row.row["chosen"],
        "rejected": row.row["rejected"],
    }


def flipped(row: Row) -> Row:
    """A pair with chosen and rejected swapped: a wrong label."""
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"], "flipped": True}


def answer_rows(
    row: DatasetRow, split: str, images: Mapping[str, Image], method: str, asked_as: str = ""
) -> list[Row]:
    """What a method learns from a sample (paper.md, section 4); empty answers are never learnt.

    steerlm: every scored answer, after its own values. rejection: the best one (`best_answer`). sft: the
    reference.

    Args:
        asked_as: the method as which the adapter will be asked, where that is another: what goes on from SteerLM
            learns its answers after all five values at 4.
    """
    messages = with_file_names(row.row["messages"], images)
    made = {"kind": "answer", "split": split, "sample_id": row.sample_id}
    if method == "steerlm":
        return [
            {**made, "messages": with_attributes(messages, answer), "answer": answer["text"]}
            for answer in row.row["answers"]
            if answer["text"].strip()
        ]
    text = row.row["reference"] if method == "sft" else best_answer(row.row["answers"])
    asked = asked_of(asked_as or method, messages)
    return [{**made, "messages": asked, "answer": text}] if text and text.strip() else []


def best_answer(answers: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of the highest quality (helpfulness + correctness + coherence), the first on ties.

    None where all are empty, or there are none.
    """
    spoken = [answer for answer in answers if answer["text"].strip()]
    if not spoken:
        return None
    best: str = max(spoken, key=lambda answer: sum(answer[metric] for metric in QUALITY))["text"]
    return best
