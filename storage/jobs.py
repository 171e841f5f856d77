"""Jobs, attempts and metrics. Every change of state is guarded in SQL by the table in `lifecycle`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlite_utils import Database

from storage.errors import Conflict, NotFound
from storage.lifecycle import ACTIVE, ENDED, JobStatus, sources
from storage.records import Attempt, Job, now
from storage.rows import Row, count, marks, one, rows, with_json
from storage.settings import get_setting
from storage.users import ensure_user

#: The order of the queue.
ORDER = "priority DESC, coalesce(place, id), id"

#: The setting that holds the queue, while there is one: nothing is claimed (`jobs.steering.hold_queue`).
HELD = "queue_held"

#: No job is made to wait longer before a new try: one that would, waits by a clock that was set back meanwhile.
LONGEST_PAUSE = timedelta(minutes=15)

_LARGEST_ID = 2**63 - 1


def add_job(
    db: Database,
    *,
    kind: str,
    config: dict[str, Any],
    user: str,
    slot_kind: Literal["device", "network"],
    device: str | None = None,
    dataset_id: int | None = None,
    adapter_id: int | None = None,
    sweep: int | None = None,
    priority: int = 0,
    after_id: int | None = None,
    retries: int = 4,
) -> Job:
    """Queue a job, as the last of its priority."""
    ensure_user(db, user)
    cursor = db.conn.execute(
        "INSERT INTO jobs (kind, status, config, slot_kind, device, user, dataset_id, adapter_id, sweep,"
        " priority, after_id, retries, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            kind,
            JobStatus.QUEUED,
            json.dumps(config, ensure_ascii=False),
            slot_kind,
            device,
            user,
            dataset_id,
            adapter_id,
            sweep,
            priority,
            after_id,
            retries,
            now(),
        ],
    )
    job_id = int(cursor.lastrowid or 0)
    # A job without a place stands where its id says, which others may have been moved behind.
    db.conn.execute(
        "UPDATE jobs SET place = (SELECT max(place) + 1 FROM jobs)"
        " WHERE id = ? AND id <= (SELECT max(place) FROM jobs)",
        [job_id],
    )
    return get_job(db, job_id)


def get_job(db: Database, job_id: int) -> Job:
    """Raises NotFound."""
    found = one(db, "SELECT * FROM jobs WHERE id = ?", [job_id]) if 0 <= job_id <= _LARGEST_ID else None
    if found is None:
        raise NotFound(f"There is no job {job_id}; `python -m jobs list` shows those there are.")
    return _job(found)


def list_jobs(
    db: Database,
    kind: str | None = None,
    statuses: Sequence[JobStatus] = (),
    limit: int = 200,
    deleted: bool = False,
) -> list[Job]:
    """Newest first.

    Args:
        deleted: with those whose run was deleted.
    """
    conditions, values = ["1" if deleted else "deleted_at IS NULL"], []
    if kind:
        conditions.append("kind = ?")
        values.append(kind)
    if statuses:
        conditions.append(f"status IN ({marks(statuses)})")
        values += [str(status) for status in statuses]
    return [
        _job(row)
        for row in rows(
            db,
            f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?",
            [*values, limit],
        )
    ]


def active_jobs(db: Database) -> list[Job]:
    """Jobs that hold a slot, oldest first."""
    return list_jobs(db, statuses=sorted(ACTIVE))[::-1]


def count_open(db: Database) -> int:
    """How many jobs are queued, at work, or paused until there is room on the disk."""
    open_states = [str(status) for status in JobStatus if status not in ENDED]
    return count(db, f"SELECT count(*) FROM jobs WHERE status IN ({marks(open_states)})", open_states)


def queue_position(db: Database, job: Job) -> int:
    """1 for the next to start among the queued jobs of its kind of slot; 0 if it is not queued."""
    if job.status is not JobStatus.QUEUED:
        return 0
    return count(
        db,
        "SELECT count(*) FROM jobs WHERE status = ? AND slot_kind = ? AND (-priority, coalesce(place, id), id)"
        " <= (?, ?, ?)",
        [JobStatus.QUEUED, job.slot_kind, -job.priority, job.id if job.place is None else job.place, job.id],
    )


def begin_sweep(db: Database, job_id: int) -> Job:
    """Make a job the first of a grid, whose id is its own."""
    db.conn.execute("UPDATE jobs SET sweep = id WHERE id = ?", [job_id])
    return get_job(db, job_id)


def sweep_jobs(db: Database, sweep: int) -> list[Job]:
    """The jobs of a grid, oldest first; empty where there is none of that number."""
    found = rows(db, "SELECT * FROM jobs WHERE sweep = ? AND deleted_at IS NULL ORDER BY id", [sweep])
    return [_job(row) for row in found]


def sweep_states(db: Database, sweeps: Sequence[int]) -> dict[int, dict[JobStatus, int]]:
    """How many jobs of each of these grids are in which state."""
    found: dict[int, dict[JobStatus, int]] = {}
    for row in rows(
        db,
        f"SELECT sweep, status, count(*) AS n FROM jobs WHERE sweep IN ({marks(sweeps)}) AND deleted_at IS NULL"
        " GROUP BY sweep, status",
        list(sweeps),
    ):
        found.setdefault(row["sweep"], {})[JobStatus(row["status"])] = row["n"]
    return found


def queued_jobs(db: Database, slot_kind: Literal["device", "network"] | None = None) -> list[Job]:
    """Those that wait (for this kind of slot), in the queue's order."""
    fits = "AND slot_kind = ?" if slot_kind else ""
    values = [str(JobStatus.QUEUED), *([slot_kind] if slot_kind else [])]
    return [_job(row) for row in rows(db, f"SELECT * FROM jobs WHERE status = ? {fits} ORDER BY {ORDER}", values)]


def is_due(db: Database, job: Job, at: str | None = None) -> bool:
    """Whether nothing but a free slot keeps a queued job waiting.

    Neither a held queue, nor another job that it comes after, nor a pause before a new try.

    Args:
        at: the time, as `records.now` gives it; None for now.
    """
    if get_setting(db, HELD) is not None or resting_until(job, at) is not None:
        return False
    return job.after_id is None or get_job(db, job.after_id).status is JobStatus.DONE


def resting_until(job: Job, at: str | None = None) -> datetime | None:
    """When a queued job may be tried again; None where it may be at once.

    Args:
        at: as for `is_due`.
    """
    if job.not_before is None:
        return None
    until, clock = datetime.fromisoformat(job.not_before), datetime.fromisoformat(at or now())
    return until if clock < until <= clock + LONGEST_PAUSE else None


def claim_next(
    db: Database,
    slot_kind: Literal["device", "network"],
    *free: str,
    wanted: Callable[[Job], tuple[Sequence[str], int]] | None = None,
) -> Job | None:
    """Give the first queued job that can start the slots it wants: all of them at once, or none.

    A job that finds fewer free slots than it wants has those kept for it: later jobs don't overtake it there. So
    a job for many devices starts as soon as enough earlier ones have ended, whatever else is queued, and no two
    jobs can each hold what the other waits for. A job that is not due (`is_due`) keeps nothing for itself, and
    while the queue is held none is.

    Args:
        free: the slots that nobody holds. Whoever calls this looks them up in the same transaction.
        wanted: of a job, the slots that suit it and how many of them; without it one, of any that fits its device.
    """
    left = list(free)
    for job in queued_jobs(db, slot_kind):
        if not left:
            return None
        if not is_due(db, job):
            continue
        suits, count = wanted(job) if wanted else ([job.device] if job.device else left, 1)
        if slot_kind == "device" and len(suits) < count:
            continue  # it can't start, however many end: nothing is kept for it
        found = [slot for slot in left if slot in suits or slot_kind == "network"]
        if len(found) >= count:
            if claimed := _claim(db, job, found[:count]):
                return claimed
            continue  # somebody else has it: those behind it wait for us
        left = [slot for slot in left if slot not in found]
    return None


def _claim(db: Database, job: Job, slots: Sequence[str]) -> Job | None:
    """None where the job was stopped or claimed meanwhile."""
    found = rows(
        db,
        "UPDATE jobs SET status = ?, slot = ?, started_at = ?, phase = '' WHERE id = ? AND status = ? RETURNING *",
        [JobStatus.STARTING, ",".join(slots), now(), job.id, JobStatus.QUEUED],
    )
    return _job(found[0]) if found else None


def move(db: Database, job_id: int, target: JobStatus, reason: str = "") -> None:
    """Change a job's state.

    Raises:
        Conflict: `lifecycle` knows no step from its state to `target`.
        NotFound: there is no such job.
    """
    allowed = [str(status) for status in sources(target)]
    ended = ", ended_at = :now, port = NULL" if target in ENDED else ", ended_at = NULL"
    cursor = db.conn.execute(
        f"UPDATE jobs SET status = :target, reason = CASE WHEN :reason = '' THEN reason ELSE :reason END {ended}"
        f" WHERE id = :id AND status IN ({', '.join(f':s{i}' for i in range(len(allowed)))})",
        {
            "target": str(target),
            "reason": reason,
            "now": now(),
            "id": job_id,
            **{f"s{index}": status for index, status in enumerate(allowed)},
        },
    )
    if cursor.rowcount == 0:
        job = get_job(db, job_id)
        raise Conflict(f"Job {job_id} is {job.status}; it cannot become {target}.")


def requeue(db: Database, job_id: int, not_before: datetime | None = None) -> Job:
    """Queue an ended or paused job again: it keeps its place and what it has done, and loses its slot and reason.

    Args:
        not_before: it waits until then, at most `LONGEST_PAUSE` from now; None for not at all.

    Raises:
        Conflict: it is at work, or done.
        NotFound: there is no such job.
    """
    move(db, job_id, JobStatus.QUEUED)
    db.conn.execute(
        "UPDATE jobs SET slot = NULL, started_at = NULL, phase = '', reason = '', not_before = ? WHERE id = ?",
        [not_before.astimezone(UTC).isoformat(timespec="milliseconds") if not_before else None, job_id],
    )
    return get_job(db, job_id)


def set_progress(db: Database, job_id: int, **columns: Any) -> None:
    """Set phase, done, total, unit or port."""
    unknown = columns.keys() - {"phase", "done", "total", "unit", "port"}
    assert not unknown, unknown
    sets = ", ".join(f"{name} = :{name}" for name in columns)
    db.conn.execute(f"UPDATE jobs SET {sets} WHERE id = :id", {**columns, "id": job_id})


def start_attempt(db: Database, job_id: int, log_begin: int = 0) -> Attempt:
    """Note a new attempt; its events and its log begin where those of the one before ended."""
    cursor = db.conn.execute(
        "INSERT INTO attempts (job_id, number, event_offset, started_at, log_begin) VALUES (?,"
        " (SELECT count(*) + 1 FROM attempts WHERE job_id = ?),"
        " (SELECT coalesce(max(event_offset), 0) FROM attempts WHERE job_id = ?), ?, ?)",
        [job_id, job_id, job_id, now(), log_begin],
    )
    return get_attempt(db, int(cursor.lastrowid or 0))


def get_attempt(db: Database, attempt_id: int) -> Attempt:
    """Raises NotFound."""
    found = one(db, "SELECT * FROM attempts WHERE id = ?", [attempt_id])
    if found is None:
        raise NotFound(f"There is no attempt {attempt_id}.")
    return Attempt(**found)


def attempts_of(db: Database, job_id: int) -> list[Attempt]:
    return [
        Attempt(**row) for row in rows(db, "SELECT * FROM attempts WHERE job_id = ? ORDER BY number", [job_id])
    ]


def open_attempts(db: Database) -> list[Attempt]:
    """Attempts that no supervisor has settled yet."""
    return [Attempt(**row) for row in rows(db, "SELECT * FROM attempts WHERE ended_at IS NULL ORDER BY id")]


def identify(db: Database, attempt_id: int, pid: int, pid_started: float, process_group: int) -> None:
    """Note which process the attempt is."""
    db.conn.execute(
        "UPDATE attempts SET pid = ?, pid_started = ?, process_group = ? WHERE id = ?",
        [pid, pid_started, process_group, attempt_id],
    )


def advance(db: Database, attempt: Attempt, offset: int, heard_at: float) -> None:
    """Move the attempt's byte offset, in the transaction that stored what was read.

    Raises:
        Conflict: somebody else has read these bytes; the whole transaction must be dropped.
    """
    cursor = db.conn.execute(
        "UPDATE attempts SET event_offset = ?, heard_at = ? WHERE id = ? AND event_offset = ?",
        [offset, heard_at, attempt.id, attempt.event_offset],
    )
    if cursor.rowcount == 0:
        raise Conflict(f"The events of attempt {attempt.id} were read by another supervisor.")


def end_attempt(
    db: Database,
    attempt_id: int,
    outcome: str,
    reason: str,
    cause: str = "",
    *,
    exit_code: int | None = None,
    log_end: int | None = None,
) -> None:
    db.conn.execute(
        "UPDATE attempts SET outcome = ?, reason = ?, cause = ?, exit_code = ?, log_end = ?, ended_at = ?"
        " WHERE id = ?",
        [outcome, reason, cause, exit_code, log_end, now(), attempt_id],
    )


def mark_advanced(db: Database, attempt_id: int) -> None:
    """Note that the attempt did something that none before it had done."""
    db.conn.execute("UPDATE attempts SET advanced = 1 WHERE id = ?", [attempt_id])


def fruitless_attempts(db: Database, job_id: int) -> int:
    """How many attempts failed since one came further; those that were stopped or paused count for nothing."""
    return count(
        db,
        "SELECT count(*) FROM attempts WHERE job_id = ? AND outcome = ? AND number >"
        " (SELECT coalesce(max(number), 0) FROM attempts WHERE job_id = ? AND advanced = 1)",
        [job_id, JobStatus.FAILED, job_id],
    )


def add_metrics(db: Database, attempt_id: int, step: int, values: dict[str, float]) -> None:
    db.conn.executemany(
        "INSERT OR REPLACE INTO metrics (attempt_id, step, name, value) VALUES (?, ?, ?, ?)",
        [(attempt_id, step, name, value) for name, value in values.items()],
    )


def metrics_of(db: Database, job_id: int) -> dict[str, list[tuple[int, float]]]:
    """Each metric's curve: (step, value) by step, of the job's latest attempt that has it."""
    curves: dict[str, dict[int, float]] = {}
    for row in rows(
        db,
        "SELECT m.name, m.step, m.value FROM metrics m JOIN attempts a ON a.id = m.attempt_id"
        " WHERE a.job_id = ? ORDER BY a.number, m.step",
        [job_id],
    ):
        curves.setdefault(row["name"], {})[row["step"]] = row["value"]
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def _job(row: Row) -> Job:
    parsed = with_json(row, "config")
    return Job(**{**parsed, "status": JobStatus(row["status"])})
