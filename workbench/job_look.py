"""A look at the jobs: what the Jobs page shows at one moment. Plain functions above Gradio."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import psutil
from sqlite_utils import Database

from jobs import bin as recycling
from jobs import steering
from jobs.disk import RunSizes, run_sizes
from jobs.disk_guard import has_room
from jobs.judges import rules
from jobs.processes import find_process
from jobs.runs import RunFolder
from storage.checkpoints import checkpoint_answers
from storage.datasets import list_datasets
from storage.errors import NotFound
from storage.jobs import (
    attempts_of,
    count_open,
    fruitless_attempts,
    get_job,
    list_jobs,
    metrics_of,
    queue_position,
    queued_jobs,
    sweep_jobs,
    sweep_states,
)
from storage.lifecycle import ACTIVE, ENDED, JobStatus
from storage.records import Attempt, Job
from storage.results import JobResults, results_of
from storage.runs import final_metrics
from storage.units import in_words
from workbench import job_history, job_launch, job_list_views, job_logs, job_views, run_views
from workbench.context import Context
from workbench.job_logs import Found, Place
from workbench.job_words import kind_name, summary
from workbench.progress import Told, Watch
from workbench.training_form import TRAINED

PAGE = 40
NOTES = 40
NOTE_BLOCK = 4_000_000  # bytes of events read at a time

Offered = tuple[tuple[str, int], ...]
NOTHING: Offered = (("none", 0),)


@dataclass(frozen=True)
class Look:
    """What the page shows of the list and of the opened job; each part is one component's value.

    Attributes:
        held: somebody holds the queue.
        stoppable … restorable: whether there is a button for that.
        waiting: it can be moved, given a priority, made to wait for another job.
        follows: the job it comes after (0: none) and what is offered, as (label, id).
        retries: None where it isn't tried again anyway.
    """

    jobs: str = ""
    bin: str = ""
    queue: str = ""
    held: bool = False
    head: str = ""
    figures: str = ""
    charts: str = ""
    more: str = ""
    results: str = ""
    settings: str = ""
    log: str = ""
    downloads: str = ""
    attempts: str = ""
    attempt_count: int = 0
    stoppable: bool = False
    repeatable: bool = False
    clonable: bool = False
    pausable: bool = False
    paused: bool = False
    resumable: bool = False
    deletable: bool = False
    restorable: bool = False
    swept: bool = False
    queued: bool = False
    waiting: bool = False
    priority: int = 0
    follows: tuple[int, Offered] = (0, NOTHING)
    retries: int | None = None
    ends: str = ""
    answers: str = ""
    checkpoints: tuple[int, ...] = ()
    training: bool = False


@dataclass(frozen=True)
class Drawing:
    """What a job has told so far: its curves, where each stands, what it answered along the run."""

    charts: str
    more: str
    latest: Mapping[str, float]
    ends: Mapping[str, float]
    checkpoints: run_views.Checkpoints


def look(
    context: Context,
    watch: Watch,
    selected: int | None,
    limit: int = PAGE,
    checkpoint: int | None = None,
    part: int | None = None,
) -> Look:
    """Read the database and the end of the opened job's log once.

    Args:
        checkpoint: which of a training's checkpoints to show, as a place; None for the newest.
        part: the number of the attempt whose log to show; None for the log's end, whoever wrote it.
    """
    now = datetime.now(UTC)
    with context.database() as db:
        listed = _list(context, db, watch, selected, limit, now)
        if selected is None:
            return Look(**listed)
        try:
            job = get_job(db, selected)
        except NotFound as error:
            return Look(**listed, head=job_views.error(str(error)))
        return Look(**listed, **_opened(context, db, watch, job, now, checkpoint, part))


def _list(
    context: Context, db: Database, watch: Watch, selected: int | None, limit: int, now: datetime
) -> dict[str, Any]:
    """The list and the queue's line."""
    jobs = list_jobs(db, limit=limit + 1)
    shown = jobs[:limit]
    queued = [job for job in shown if job.status is JobStatus.QUEUED]
    held = steering.held_by(db)
    listed = job_list_views.job_list(
        shown,
        {job.id: queue_position(db, job) for job in queued},
        {job.id: seconds for job in shown if (seconds := watch.clock.left(job, now)) is not None},
        selected,
        now,
        len(jobs) > limit,
        count_open(db),
        sweep_states(db, sorted({job.sweep for job in shown if job.sweep is not None})),
        {job.id: _waits(db, job, held) for job in queued},
    )
    deleted = job_list_views.deleted_runs(recycling.deleted_runs(db), selected)
    waiting = len(queued_jobs(db))
    no_room = has_room(db, context.settings) if waiting else ""
    line = job_list_views.queue_line(waiting, held, no_room, now)
    return {"jobs": listed, "bin": deleted, "queue": line, "held": held is not None}


def _waits(db: Database, job: Job, held: steering.Held | None) -> str:
    """What a queued job waits for; that the queue is held stands above the list already, once for all."""
    told = steering.waits_for(db, job)
    if held is None:
        return told
    return "; ".join(part for part in told.split("; ") if not part.startswith("the queue is held")) or "held"


def _opened(
    context: Context,
    db: Database,
    watch: Watch,
    job: Job,
    now: datetime,
    checkpoint: int | None,
    part: int | None,
) -> dict[str, Any]:
    """The opened job's parts."""
    run = run_of(context, job)
    attempts = attempts_of(db, job.id)
    drawing = watch.drawn.get(job.id, sum(one.event_offset for one in attempts), lambda: _draw(db, job))
    far = watch.past.get(
        job.id, tuple(one.event_offset for one in attempts), lambda: job_history.reached(run, attempts)
    )
    made = results_of(db, job.id)
    dataset = next((item.name for item in list_datasets(db) if item.id == job.dataset_id), None)
    attempt = next((one for one in attempts if one.number == part), None)
    piece = job_logs.tail(run.log, attempt.log_begin, attempt.log_end) if attempt else job_logs.tail(run.log)
    number = attempt.number if attempt else None
    there = job.deleted_at is None and run.path.is_dir()
    size = run_sizes(run) if there else RunSizes()
    tries = job_history.tries(job, attempts, fruitless_attempts(db, job.id))
    training = job.kind in TRAINED
    head = job_views.headline(
        job,
        queue_position(db, job),
        watch.clock.left(job, now),
        now,
        steering.waits_for(db, job),
        tries,
        _takes(job, attempts, size.own),
    )
    return {
        "head": head,
        "figures": _figures(job, made, drawing.latest),
        "charts": drawing.charts,
        "more": drawing.more,
        "results": job_views.results(job, made, dataset),
        "settings": job_views.settings(job),
        "log": job_history.log_view(piece, job.status, _notes(watch, job, run), number),
        "downloads": job_history.downloads(job, size.whole, there and run.log_size() > 0, number),
        "attempts": job_history.attempts_table(attempts, far, number, now),
        "attempt_count": len(attempts),
        "ends": run_views.at_the_end(job, drawing.ends) if training else "",
        "answers": run_views.checkpoint_view(job, drawing.checkpoints, checkpoint) if training else "",
        "checkpoints": drawing.checkpoints.steps,
        "training": training,
        **_acts(context, db, job, attempts),
    }


def run_of(context: Context, job: Job) -> RunFolder:
    """Where a job's run lies: in the bin, while it can still be restored."""
    return RunFolder(context.folder.run(job.id) if job.deleted_at is None else context.folder.binned(job.id))


def search_log(context: Context, job_id: int, wanted: str, start: Place | None) -> Found:
    """The lines of a job's log that hold `wanted`, also while its run lies in the bin.

    Raises:
        NotFound: there is no such job.
    """
    with context.database() as db:
        run = run_of(context, get_job(db, job_id))
    return job_logs.search(run.log, wanted, start)


def _acts(context: Context, db: Database, job: Job, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """What can be done with the job, by the names of `Look`."""
    at_work = job.status in (JobStatus.STARTING, JobStatus.RUNNING)
    ended = job.status in ENDED
    there = job.deleted_at is None
    pausable = at_work and job.kind in steering.PAUSABLE and job.config.get("judge") != rules.NAME
    paused = pausable and steering.is_paused(context.settings, job.id)
    before_its_time = job.status in (JobStatus.STOPPED, JobStatus.FAILED, JobStatus.PAUSED)
    waiting = job.status in (JobStatus.QUEUED, JobStatus.PAUSED)
    # One that never started has nothing yet that it could begin anew; a chat model is started by the Chat page.
    goes_on = job.kind in steering.RESUMABLE or (not attempts and job.kind != "serve")
    return {
        "stoppable": not ended and job.status is not JobStatus.STOPPING,
        "repeatable": ended and job.kind != "serve",
        "clonable": job.kind in job_launch.LAUNCHED,
        "pausable": pausable and not paused,
        "paused": paused,
        "resumable": before_its_time and there and goes_on,
        "deletable": ended and there,
        "restorable": job.deleted_at is not None and job.purged_at is None,
        "swept": job.sweep is not None
        and any(one.status not in ENDED and one.id != job.id for one in sweep_jobs(db, job.sweep)),
        "queued": job.status is JobStatus.QUEUED,
        "waiting": waiting,
        "priority": job.priority,
        "follows": _follows(db, job) if waiting else (0, NOTHING),
        "retries": job.retries if not ended and job.kind in steering.RESUMABLE else None,
    }


def _follows(db: Database, job: Job) -> tuple[int, Offered]:
    """The job that this one comes after, and the open jobs after which it could."""
    open_jobs = list_jobs(db, statuses=[status for status in JobStatus if status not in ENDED])
    others = [one for one in reversed(open_jobs) if one.id != job.id and one.kind != "serve"]
    if job.after_id is not None and all(one.id != job.after_id for one in others):
        others.insert(0, get_job(db, job.after_id))
    offered = tuple((f"#{one.id} {kind_name(one)} ({one.status}): {summary(one)[:40]}", one.id) for one in others)
    return job.after_id or 0, (*NOTHING, *offered)


def _takes(job: Job, attempts: Sequence[Attempt], size: int) -> str:
    """What the run takes at this moment, in words: on the disk, and its processes in memory."""
    told = [f"{in_words(size)} on disk"] if size else []
    if job.status in ACTIVE and attempts and (memory := _memory(attempts[-1])):
        told.append(f"{in_words(memory)} of memory")
    return " · ".join(told)


def _memory(attempt: Attempt) -> int:
    """Bytes that the worker and its children hold in memory; 0 where it is gone, or not ours to look at."""
    try:
        process = find_process(attempt)
        if process is None:
            return 0
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _draw(db: Database, job: Job) -> Drawing:
    curves = metrics_of(db, job.id)
    latest = {name: curve[-1][1] for name, curve in curves.items()}
    draw = run_views.charts if job.kind in TRAINED else job_views.charts
    answers = run_views.Checkpoints.of(checkpoint_answers(db, job.id) if job.kind in TRAINED else ())
    ends = final_metrics(db, [job]).get(job.id, {})
    return Drawing(draw(curves), draw(curves, more=True), latest, ends, answers)


def _notes(watch: Watch, job: Job, run: RunFolder) -> tuple[str, ...]:
    return watch.notes.get(job.id, lambda known: read_notes(run, known))


def read_notes(run: RunFolder, known: Told) -> Told:
    """What the worker noted by now: `known` and what its events have brought since, the last `NOTES` of them.

    Whole lines alone count: one that is being written is read at the next look. Other events are passed over
    unread: a long run has many thousand lines of metrics.
    """
    found, offset = dict.fromkeys(known.notes), known.offset
    try:
        with run.events.open("rb") as file:
            if file.seek(0, 2) < offset:  # another run's by now: a restored folder, say
                found, offset = {}, 0
            file.seek(offset)
            while data := file.read(NOTE_BLOCK):
                whole = data.rfind(b"\n") + 1
                if not whole and len(data) == NOTE_BLOCK:
                    whole = len(data)  # within a huge line: no note is as long
                offset += whole
                for line in data[:whole].split(b"\n"):
                    if b'"note"' in line[:40] and (text := _note(line)) is not None:
                        found[text] = None
                if not whole:
                    break
                file.seek(offset)
    except OSError:
        pass
    return Told(tuple(found)[-NOTES:], offset)


def _note(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["text"])
    except (ValueError, KeyError, TypeError):
        return None


def _figures(job: Job, made: JobResults, latest: Mapping[str, float]) -> str:
    if job.kind in TRAINED:
        return job_views.figure_row(run_views.tried(latest))
    return job_views.figures(job, made, latest)


def changed(new: Look, seen: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, int]]:
    """The parts that differ from those the browser has, and the new digests: what is the same isn't sent."""
    digests = {field.name: hash(getattr(new, field.name)) for field in fields(new)}
    return {name: getattr(new, name) for name in digests if seen.get(name) != digests[name]}, digests
