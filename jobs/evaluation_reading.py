"""What the table, its exports and the report read from the database, for one purpose at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlite_utils import Database

from jobs.benchmarks.contract import Benchmark
from jobs.benchmarks.registry import BENCHMARKS
from jobs.evaluation_figures import Book, Figures
from jobs.evaluation_table import Table, build
from storage.errors import UserError
from storage.evaluations import PURPOSES, Evaluation, fingerprints, gradings_of, list_evaluations
from storage.jobs import get_job
from storage.lifecycle import JobStatus


@dataclass(frozen=True)
class Asked:
    """Which table: its purpose, the key of its base ("": the usual), whose grades ("": the newest)."""

    purpose: str = "reporting"
    base: str = ""
    grader: str = ""

    def checked(self) -> Asked:
        """Itself. Raises UserError where there is no such purpose."""
        if self.purpose not in PURPOSES:
            raise UserError(f"purpose = {self.purpose!r}: give {' or '.join(PURPOSES)}.")
        return self


def read_table(
    db: Database, asked: Asked, book: Book | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> Table:
    """The table as the database has it now. Raises UserError for another purpose than there are."""
    evaluations = list_evaluations(db)
    gradings = gradings_of(db, [one.id for one in evaluations])
    graded = {one.evaluation_id for one in gradings}
    return build(
        evaluations,
        gradings,
        benchmarks,
        Figures(db, book),
        purpose=asked.checked().purpose,
        base=asked.base,
        grader=asked.grader,
        fingerprints=fingerprints(db),
        states=_states(db, [one for one in evaluations if one.id not in graded]),
    )


def _states(db: Database, ungraded: list[Evaluation]) -> dict[int, str]:
    """What those without grades are at, in words."""
    found = {}
    for one in ungraded:
        if one.job_id is None:
            continue
        job = get_job(db, one.job_id)
        if job.status is JobStatus.RUNNING and job.total:
            found[one.id] = f"{job.done:,.0f} of {job.total:,.0f} answered"
        elif job.status is not JobStatus.DONE:
            found[one.id] = f"{job.status}"
    return found
