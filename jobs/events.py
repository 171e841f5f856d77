"""What each event of a worker does to the database."""

from __future__ import annotations

from sqlite_utils import Database

from jobs.event_file import Event, read_batch
from jobs.runs import RunFolder
from storage import jobs as store
from storage.adapters import add_adapter, keep_adapter
from storage.candidates import add_generated
from storage.checklists import add_checklist, checklist_exists
from storage.checkpoints import add_checkpoint_answers
from storage.database import immediate
from storage.folder import DataFolder
from storage.lifecycle import JobStatus
from storage.records import Attempt, Job
from storage.scores import add_judgement, ensure_rater

_CALL = ("state", "raw", "reason", "tokens_in", "tokens_out", "cost")
_JUDGEMENT = (*_CALL, "scores", "points", "checklist_id", "key", "note")
_CHECKLIST = (*_CALL, "model", "instructions", "items")


def drain(db: Database, folder: DataFolder, attempt_id: int) -> list[Event]:
    """Store everything new in the attempt's events.jsonl; returns what was read.

    The offset moves in the transaction that stores what was read, so each event counts exactly once, whoever
    dies when.
    """
    seen: list[Event] = []
    while True:
        attempt = store.get_attempt(db, attempt_id)
        run = RunFolder(folder.run(attempt.job_id))
        batch = read_batch(run.events, attempt.event_offset)
        if batch.offset == attempt.event_offset:
            return seen
        kept = _keep_adapters(folder, run, batch.events)
        with immediate(db):
            heard_at = max((event["time"] for event in batch.events if "time" in event), default=None)
            store.advance(db, attempt, batch.offset, heard_at or attempt.heard_at or 0.0)
            for event in batch.events:
                apply(db, attempt, store.get_job(db, attempt.job_id), event, kept)
        seen += batch.events + [{"kind": "broken", "text": text} for text in batch.broken]


def apply(
    db: Database, attempt: Attempt, job: Job, event: Event, kept: dict[str, tuple[str, int]] | None = None
) -> None:
    """What one event does to the database. Kinds that this version does not know are passed over."""
    match event["kind"]:
        case "started":
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
                model=job.config["model"],
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
        case "adapter":
            sha256, size = (kept or {})[event["path"]]
            add_adapter(db, job, event["name"], sha256, size, event["base_model"], event["method"])


def _add_judgement(db: Database, job: Job, event: Event) -> None:
    """A checklist that was undone since the job was frozen takes nothing with it that was paid for."""
    fields = {name: event[name] for name in _JUDGEMENT if name in event}
    checklist_id = fields.get("checklist_id")
    if checklist_id is not None and not checklist_exists(db, checklist_id):
        told = f"its checklist (#{checklist_id}) was undone meanwhile"
        fields |= {"checklist_id": None, "note": "; ".join(filter(None, (fields.get("note", ""), told)))}
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
