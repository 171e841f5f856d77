"""What a job has brought: counts and records that name the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlite_utils import Database

from storage.contests import Contest, contest_of_job
from storage.evaluations import Evaluation, evaluation_of_job
from storage.records import Adapter, JudgementState
from storage.rows import count, one, rows

# In the order in which they are told: what went well first.
CALL_STATES: tuple[JudgementState, ...] = ("ok", "blocked", "truncated", "unparseable", "failed")


@dataclass(frozen=True)
class Calls:
    """A job's judgements or checklists: how many in each state that occurs, and what they took together.

    Attributes:
        cost: dollars, of calls that brought no scores too.
        tokens_in, tokens_out: as the provider counted them.
    """

    states: Mapping[JudgementState, int]
    cost: float
    tokens_in: int
    tokens_out: int

    @property
    def number(self) -> int:
        return sum(self.states.values())

    @property
    def bad(self) -> int:
        """How many brought nothing that can be used."""
        return self.number - self.states.get("ok", 0)


@dataclass(frozen=True)
class JobResults:
    """`scored`: candidates with scores by this job; a candidate counts once.

    `contest`, `evaluation`: that it is for, if any.
    """

    candidates: int
    judgements: Calls
    scored: int
    checklists: Calls
    adapters: tuple[Adapter, ...]
    contest: Contest | None = None
    evaluation: Evaluation | None = None


def results_of(db: Database, job_id: int) -> JobResults:
    """All that the job has made so far."""
    return JobResults(
        candidates=count(db, "SELECT count(*) FROM candidates WHERE job_id = ?", [job_id]),
        judgements=_calls(db, "judgements", job_id),
        scored=count(
            db,
            "SELECT count(DISTINCT s.candidate_id) FROM scores s JOIN judgements j ON j.id = s.judgement_id"
            " WHERE j.job_id = ?",
            [job_id],
        ),
        checklists=_calls(db, "checklists", job_id),
        adapters=tuple(
            Adapter(**row) for row in rows(db, "SELECT * FROM adapters WHERE job_id = ? ORDER BY id", [job_id])
        ),
        contest=contest_of_job(db, job_id),
        evaluation=evaluation_of_job(db, job_id),
    )


def samples_without_result(db: Database, job_id: int) -> dict[int, JudgementState]:
    """The samples whose judgement or checklist by this job is not ok, with its state, in their order."""
    return {
        row["sample_id"]: row["state"]
        for row in rows(
            db,
            "SELECT sample_id, state FROM judgements WHERE job_id = :job AND state <> 'ok'"
            " UNION SELECT sample_id, state FROM checklists WHERE job_id = :job AND state <> 'ok'"
            " ORDER BY sample_id",
            {"job": job_id},
        )
    }


def _calls(db: Database, table: Literal["judgements", "checklists"], job_id: int) -> Calls:
    found = {
        row["state"]: row["n"]
        for row in rows(db, f"SELECT state, count(*) AS n FROM {table} WHERE job_id = ? GROUP BY state", [job_id])
    }
    taken = one(
        db,
        "SELECT coalesce(sum(cost), 0.0) AS cost, coalesce(sum(tokens_in), 0) AS tokens_in,"
        f" coalesce(sum(tokens_out), 0) AS tokens_out FROM {table} WHERE job_id = ?",
        [job_id],
    )
    assert taken is not None  # an aggregate always has a row
    states = {state: found[state] for state in CALL_STATES if state in found}
    return Calls(states, **taken)
