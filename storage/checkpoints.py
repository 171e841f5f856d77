"""What a run answered to its watched samples and prompts, at each of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlite_utils import Database

from storage.records import CheckpointAnswer
from storage.rows import rows


def add_checkpoint_answers(db: Database, job_id: int, step: int, answers: Iterable[Mapping[str, Any]]) -> None:
    """Keep the answers of one step; a run that goes on from a checkpoint writes a step a second time over it.

    Args:
        answers: number, prompt, text, tokens; sample_id and image where there are such.
    """
    db.conn.executemany(
        "INSERT OR REPLACE INTO checkpoint_answers (job_id, step, number, sample_id, prompt, image, text, tokens)"
        " VALUES (?, ?, ?, (SELECT id FROM samples WHERE id = ?), ?, ?, ?, ?)",
        [
            (
                job_id,
                step,
                answer["number"],
                answer.get("sample_id"),
                answer["prompt"],
                answer.get("image"),
                answer["text"],
                answer["tokens"],
            )
            for answer in answers
        ],
    )


def checkpoint_answers(db: Database, job_id: int) -> list[CheckpointAnswer]:
    """By step, then by number."""
    found = rows(db, "SELECT * FROM checkpoint_answers WHERE job_id = ? ORDER BY step, number", [job_id])
    return [CheckpointAnswer(**row) for row in found]
