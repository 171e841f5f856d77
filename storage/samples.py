"""Samples: adding and reading them. `storage.finding` finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlite_utils import Database

from storage.errors import NotFound, UserError
from storage.records import Message, Sample, now
from storage.rows import Row, marks, one, rows


def question_of(messages: Sequence[Message]) -> str:
    """The text of the last user turn: what lists show and search finds."""
    for message in reversed(messages):
        if message["role"] == "user":
            parts = message["content"]
            if isinstance(parts, str):
                return parts
            return " ".join(part["text"] for part in parts if part["type"] == "text").strip()
    return ""


def images_of(messages: Sequence[Message]) -> list[str]:
    """The sha256 of every image, in reading order."""
    return [
        part["image"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]


def add_sample(
    db: Database,
    source: str,
    source_id: str,
    messages: list[Message],
    reference: str | None = None,
    split: str | None = None,
) -> int | None:
    """Insert a sample; None if this source's id is there already (importing twice adds nothing).

    Raises:
        UserError: the messages do not end with the user's turn.
    """
    if not messages or messages[-1]["role"] != "user":
        raise UserError(f"Sample {source_id!r} of {source!r}: its messages must end with the user's turn.")
    cursor = db.conn.execute(
        "INSERT OR IGNORE INTO samples (source, source_id, split, messages, question, reference, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            source,
            source_id,
            split,
            json.dumps(messages, ensure_ascii=False),
            question_of(messages),
            reference,
            now(),
        ],
    )
    if cursor.rowcount == 0:
        return None
    sample_id = int(cursor.lastrowid or 0)
    db.conn.executemany(
        "INSERT INTO sample_images (sample_id, position, sha256) VALUES (?, ?, ?)",
        [(sample_id, position, sha256) for position, sha256 in enumerate(images_of(messages))],
    )
    return sample_id


def get_sample(db: Database, sample_id: int) -> Sample:
    """Raises NotFound."""
    found = one(db, "SELECT * FROM samples WHERE id = ?", [sample_id])
    if found is None:
        raise NotFound(f"There is no sample {sample_id}; choose one from the list.")
    return _sample(found)


def get_samples(db: Database, ids: Sequence[int]) -> list[Sample]:
    """Those samples, by id; ids that are not there are left out."""
    found: list[Sample] = []
    for start in range(0, len(ids), 500):
        part = list(ids[start : start + 500])
        found += map(_sample, rows(db, f"SELECT * FROM samples WHERE id IN ({marks(part)})", part))
    return sorted(found, key=lambda sample: sample.id)


def _sample(row: Row) -> Sample:
    messages = json.loads(row["messages"])
    return Sample(
        id=row["id"],
        source=row["source"],
        source_id=row["source_id"],
        split=row["split"],
        messages=messages,
        question=row["question"],
        reference=row["reference"],
        images=tuple(images_of(messages)),
    )
