"""What each event of a worker does to the database."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from jobs.configs import TRAININGS
from jobs.event_file import Batch, Event, read_batch
from jobs.processes import find_process
from jobs.runs import RunFolder
from storage import jobs as store
from storage.adapters import add_adapter, is_kept, keep_adapter
from storage.attempts import has_answers, has_metric_from
from storage.candidates import add_generated, known_candidates
from storage.checklists import add_checklist, checklist_exists
from storage.checkpoints import add_checkpoint_answers
from storage.contests import add_contest_answer
from storage.database import immediate
from storage.errors import Conflict, NotFound
from storage.evaluations import add_grading, add_item_answer, evaluation_of_job
from storage.folder import DataFolder
from storage.lifecycle import JobStatus
from storage.records import Attempt, Job
from storage.scores import add_judgement, ensure_rater
from storage.settings import get_setting, put_setting

# Between two batches: SQLite gives its write lock to whoever asks at the right moment, so people whose scores are
# waiting would hardly ever get it from somebody who takes it again at once.
BREATH = 0.005  # seconds

Grades = dict[str, dict[str, Any]]

_TRAININGS = frozenset(config.kind for config in TRAININGS)
# What adds a row, and is told once: the worker skips what its run folder holds.
_RESULTS = frozenset(
    {"candidate", "judgement", "checklist", "adapter", "contest_answer", "item_answer", "grading"}
)
_CALL = ("state", "raw", "reason", "tokens_in", "tokens_out", "cost")
_JUDGEMENT = (*_CALL, "scores", "points", "checklist_id", "key", "note")
_CHECKLIST = (*_CALL, "model", "instructions", "items")
_ITEM_ANSWER = ("number", "turn", "text", "finish", "tokens")
_CONTEST_ANSWER = ("number", "turn", "column", "text", "finish", "prompt", "question")


def drain(db: Database, folder: DataFolder, attempt_id: int) -> list[Event]:
    """Store everything new in the attempt's events.jsonl; returns what was read, broken lines as kind `broken`."""
    seen: list[Event] = []
    for batch in read_on(db, folder, attempt_id):
        seen += batch.events + [{"kind": "broken", "text": text} for text in batch.broken]
    return seen


def read_on(db: Database, folder: DataFolder, attempt_id: int) -> Iterator[Batch]:
    """Store what is new in the attempt's events.jsonl, batch by batch; yields each once it is stored.

    The offset moves in the transaction that stores what was read, so each event counts exactly once, whoever
    dies when. No more than a batch is held in memory.

    Raises:
        Conflict: another supervisor has read the same bytes, or the files of an adapter were deleted meanwhile,
            being another's too; nothing was stored, and the next call tries anew.
    """
    while True:
        attempt = store.get_attempt(db, attempt_id)
        run = RunFolder(folder.run(attempt.job_id))
        batch = read_batch(run.events, attempt.event_offset)
        if batch.offset == attempt.event_offset:
            return
        kept = _keep_adapters(folder, run, batch.events)
        grades = _read_grades(run, batch.events)
        with immediate(db):
            times = [event["time"] for event in batch.events if isinstance(event.get("time"), int | float)]
            store.advance(db, attempt, batch.offset, max(times, default=attempt.heard_at or 0.0))
            for event in batch.events:
                if not attempt.advanced:
                    attempt = store.get_attempt(db, attempt_id)
                apply(db, attempt, store.get_job(db, attempt.job_id), event, kept, grades)
            for path, (sha256, _) in kept.items():
                if not is_kept(folder, run.path / path, sha256):
                    raise Conflict(f"The files of {path} were deleted with another adapter's: they are kept anew.")
        yield batch
        time.sleep(BREATH)


def furthest(job_id: int) -> str:
    """The name of the setting that holds how far a download has come, while it isn't done."""
    return f"furthest_{job_id}"


def apply(
    db: Database,
    attempt: Attempt,
    job: Job,
    event: Event,
    kept: dict[str, tuple[str, int]] | None = None,
    grades: Grades | None = None,
) -> None:
    """What one event does to the database. Kinds that this version does not know are passed over.

    An attempt in which something comes that no earlier one brought has advanced: its death is not fruitless.
    """
    before = db.conn.total_changes
    further = not attempt.advanced and _tells_further(db, attempt, job, event)
    _apply(db, attempt, job, event, kept, grades or {})
    if job.kind == "download" and event["kind"] == "progress":
        further = _has_fetched_more(db, job, event["done"])
    added = event["kind"] in _RESULTS and db.conn.total_changes > before
    if (further or added) and not attempt.advanced:
        store.mark_advanced(db, attempt.id)


def _tells_further(db: Database, attempt: Attempt, job: Job, event: Event) -> bool:
    """Whether an event tells of something new that no row of its own would show."""
    match event["kind"]:
        case "metric":
            # A judge's numbers are told at each start anew.
            return job.kind in _TRAININGS and not has_metric_from(db, attempt, event["values"], event["step"])
        case "answers":
            return not has_answers(db, job.id, event["step"])
        case "reply":
            return True  # paid for and kept: it is never asked for again
    return False


def _has_fetched_more(db: Database, job: Job, done: float) -> bool:
    """Whether a download has more than it ever had. The first word tells what was there before it began."""
    before = get_setting(db, furthest(job.id))
    if before is None or done > before:
        put_setting(db, furthest(job.id), done)
    return before is not None and done > before


def _apply(
    db: Database,
    attempt: Attempt,
    job: Job,
    event: Event,
    kept: dict[str, tuple[str, int]] | None,
    grades: Grades,
) -> None:
    match event["kind"]:
        case "started":
            # An old worker's word, in a run folder that is newer than the database, takes no process away.
            if attempt.pid in (None, event["pid"]) or find_process(attempt) is None:
                store.identify(db, attempt.id, event["pid"], event["pid_started"], event["pid"])
            if job.status is JobStatus.STARTING:
                store.move(db, job.id, JobStatus.RUNNING)
        case "phase":
            store.set_progress(db, job.id, phase=event["text"])
        case "progress":
            store.set_progress(db, job.id, done=event["done"], total=event["total"], unit=event["unit"])
        case "metric":
            store.add_metrics(db, attempt.id, event["step"], event["values"])
        case "endpoint":
            store.set_progress(db, job.id, port=event["port"])
        case "candidate":
            add_generated(
                db,
                job_id=job.id,
                sample_id=event["sample_id"],
                number=event["number"],
                text=event["text"],
                model=job.config.get("outside") or job.config["model"],
                adapter_id=job.adapter_id,
                settings=event.get("settings"),
                tokens=event.get("tokens"),
                finish=event.get("finish"),
            )
        case "judgement":
            _add_judgement(db, job, event)
        case "checklist":
            add_checklist(
                db,
                sample_id=event["sample_id"],
                job_id=job.id,
                **{name: event[name] for name in _CHECKLIST if name in event},
            )
        case "answers":
            add_checkpoint_answers(db, job.id, event["step"], event["answers"])
        case "contest_answer":
            add_contest_answer(db, job, **{name: event[name] for name in _CONTEST_ANSWER if name in event})
        case "item_answer":
            add_item_answer(db, job, **{name: event[name] for name in _ITEM_ANSWER})
        case "grading":
            _add_grading(db, job, event, grades.get(event["file"]))
        case "adapter":
            sha256, size = (kept or {})[event["path"]]
            add_adapter(db, job, event["name"], sha256, size, event["base_model"], event["method"])


def _add_grading(db: Database, job: Job, event: Event, told: dict[str, Any] | None) -> None:
    """Grades of a file of the run folder; without that file, or the evaluation, there is nothing to keep."""
    if job.kind == "evaluate":
        found = evaluation_of_job(db, job.id)
        evaluation_id = None if found is None else found.id
    else:
        evaluation_id = job.config["evaluation"]
    if told is None or evaluation_id is None:
        return
    replies = {name: (item, reply) for name, (item, reply) in told["replies"].items()}
    with suppress(NotFound):
        add_grading(
            db,
            evaluation_id,
            event["grader"],
            told["grades"],
            job_id=job.id,
            replies=replies,
            cost=event.get("cost", 0.0),
        )


def _add_judgement(db: Database, job: Job, event: Event) -> None:
    """What was undone since the job was frozen, a checklist or an answer, takes nothing else with it."""
    fields = {name: event[name] for name in _JUDGEMENT if name in event}
    checklist_id = fields.get("checklist_id")
    if checklist_id is not None and not checklist_exists(db, checklist_id):
        told = f"its checklist (#{checklist_id}) was undone meanwhile"
        fields |= {"checklist_id": None, "note": "; ".join(filter(None, (fields.get("note", ""), told)))}
    judged = {one["candidate_id"] for name in ("scores", "points") for one in fields.get(name, ())}
    if gone := judged - known_candidates(db, judged):
        told = f"{len(gone)} of its answers {'was' if len(gone) == 1 else 'were'} undone meanwhile"
        fields["note"] = "; ".join(filter(None, (fields.get("note", ""), told)))
        for name in ("scores", "points"):
            if name in fields:
                fields[name] = [one for one in fields[name] if one["candidate_id"] not in gone]
    add_judgement(
        db,
        rater_id=ensure_rater(db, "judge", **event["rater"]),
        sample_id=event["sample_id"],
        job_id=job.id,
        **fields,
    )


def _keep_adapters(folder: DataFolder, run: RunFolder, events: list[Event]) -> dict[str, tuple[str, int]]:
    """Hash and keep adapters before the transaction: gigabytes are not read under the write lock."""
    return {
        event["path"]: keep_adapter(folder, run.path / event["path"])
        for event in events
        if event["kind"] == "adapter"
    }


def _read_grades(run: RunFolder, events: list[Event]) -> Grades:
    """The grades that these events tell of, by their file; read before the transaction, too."""
    found: Grades = {}
    for event in events:
        if event["kind"] == "grading":
            with suppress(OSError, ValueError):
                found[event["file"]] = json.loads(
                    (run.path / Path(event["file"]).name).read_text(encoding="utf-8")
                )
    return found
