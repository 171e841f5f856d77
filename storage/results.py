"""What a job has brought: counts and records that name the job."""

from __future__ import annotations

from dataclasses import dataclass

from sqlite_utils import Database

from storage.records import Adapter
from storage.rows import count, rows


@dataclass(frozen=True)
class JobResults:
    candidates: int
    judgements: int
    adapters: tuple[Adapter, ...]


def results_of(db: Database, job_id: int) -> JobResults:
    """The candidates, judgements and adapters that the job has made so far."""
    return JobResults(
        candidates=count(db, "SELECT count(*) FROM candidates WHERE job_id = ?", [job_id]),
        judgements=count(db, "SELECT count(*) FROM judgements WHERE job_id = ?", [job_id]),
        adapters=tuple(
            Adapter(**row) for row in rows(db, "SELECT * FROM adapters WHERE job_id = ? ORDER BY id", [job_id])
        ),
    )
