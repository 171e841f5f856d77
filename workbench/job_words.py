"""Words about jobs that several pages share: kinds, states, times, what a job works on. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from pathlib import Path

from jobs.judges import rules
from jobs.judges.identity import MODES
from storage.lifecycle import JobStatus
from storage.records import Job
from workbench import training_form
from workbench.training_form import TRAINED

KIND_NAMES = {
    "generate": "Generate",
    "judge": "Judge",
    "checklist": "Checklists",
    **training_form.NAMES,
    "contest": "Contest",
    "evaluate": "Evaluate",
    "grade": "Grade",
    "serve": "Chat model",
    "merge": "Merge",
    "push": "Push",
    "download": "Download",
}

PRIORITY_NAMES = {1: "high", 0: "normal", -1: "low"}

DISK_FULL = "the disk is full; it goes on by itself when there is room"


def summary(job: Job) -> str:
    """What the job works on, in a few words."""
    config = job.config
    match job.kind:
        case "generate":
            number = config.get("candidates")
            what = "1 candidate" if number == 1 else f"{number} candidates"
            return f"{what} a sample from {model_name(config.get('outside') or config.get('model'))}"
        case "judge":
            if config.get("judge") == rules.NAME:
                return rules.NAME
            mode = MODES.get(config.get("mode", ""), "")
            with_lists = "with checklists" if config.get("checklists") else ""
            words = (config.get("model"), config.get("rubric"), mode, with_lists)
            return ", ".join(str(word) for word in words if word)
        case "checklist":
            return f"at most {config.get('items')} items a sample, by {config.get('model')}"
        case "contest":
            return _contest_summary(job)
        case "evaluate":
            who = config.get("outside") or model_name(config.get("model"))
            adapter = f" with adapter #{config['adapter']}" if config.get("adapter") else ""
            return f"{who}{adapter} on {config.get('benchmark')}"
        case "grade":
            judge = config.get("judge")
            return (
                f"evaluation #{config.get('evaluation')} by {judge if judge == 'rules' else config.get('model')}"
            )
        case kind if kind in TRAINED:
            return _training_summary(job)
        case "merge":
            return f"adapter #{config.get('adapter')} into {model_name(config.get('model'))}"
        case "push":
            what = f"adapter #{config['adapter']}" if config.get("adapter") else f"{config.get('merged')} (merged)"
            return f"{what} to {config.get('repository')}"
        case "download":
            revision = str(config.get("revision") or "")
            return f"{config.get('model')}" + (f" at {revision[:12]}" if revision else "")
        case "serve":
            count = len(config.get("adapters") or ())
            return f"{model_name(config.get('model'))} with {count} adapter{'' if count == 1 else 's'}"
    return ""


def _contest_summary(job: Job) -> str:
    """The list alone: the notice of its end reaches people who still vote blind."""
    config = job.config
    asked = config.get("name") or Path(str(config.get("prompts") or "samples")).name
    return f"{asked}, {len(config.get('columns') or ())} speakers"


def _training_summary(job: Job) -> str:
    """The base and the data set; of a sweep's job its name, which tells in what it differs."""
    config = job.config
    words = f"{model_name(config.get('model'))} on {config.get('dataset')}"
    if job.sweep is not None and config.get("name"):
        words = str(config["name"])
    if config.get("start_adapter") is not None:
        words += f", from adapter #{config['start_adapter']}"
    return f"{words}, a trial step" if config.get("only_trial") else words


def model_name(model: object) -> str:
    """A base as it is shown: of a folder its name."""
    text = str(model)
    return Path(text).name if text.startswith("/") else text


def duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def kind_name(job: Job) -> str:
    return KIND_NAMES.get(job.kind, job.kind)


def chip(job: Job) -> str:
    return f'<span class="plumb-chip plumb-chip-{job.status}">{job.status}</span>'


def state_words(job: Job, position: int, waits: str = "") -> str:
    """Where a job stands, in words: waiting, starting, loading its model and working are told apart.

    Args:
        position: in the queue; 0 for none.
        waits: what a queued job waits for besides a free slot, "" for nothing.
    """
    match job.status:
        case JobStatus.QUEUED:
            words = f"number {position} in the queue" if position else "in the queue"
            return f"{words}: {waits}" if waits else words
        case JobStatus.STARTING:
            return "the worker is starting"
        case JobStatus.PAUSED:
            return f"paused: {job.reason or DISK_FULL}"
        case JobStatus.RUNNING | JobStatus.STOPPING:
            words = job.phase or ("answering" if job.kind == "serve" and job.port else "the worker has started")
            if job.total > 0:
                words += f": {counted(job.done)} of {counted(job.total)} {job.unit}".rstrip()
            return f"stopping ({words})" if job.status is JobStatus.STOPPING else words
    return job.reason


def bar(job: Job) -> str:
    if job.total <= 0 or job.status is JobStatus.QUEUED:
        return ""
    percent = min(100.0, 100.0 * job.done / job.total)
    return (
        f'<span class="plumb-bar" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}"><span style="width:{percent:.1f}%"></span></span>'
    )


def left_words(left: float | None) -> str:
    return f" · about {duration(left)} left" if left is not None else ""


def counted(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def when(stamp: str, now: datetime) -> str:
    ago = (now - moment(stamp)).total_seconds()
    if ago < 60:
        words = "just now"
    elif ago < 86_400:
        words = f"{duration(ago // 60 * 60)} ago"
    else:
        words = stamp[:16].replace("T", " ") + " UTC"
    return f'<span title="{escape(stamp[:19].replace("T", " "))} UTC">{words}</span>'


def moment(stamp: str) -> datetime:
    moment = datetime.fromisoformat(stamp)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def seconds_between(start: str, end: str) -> float:
    return (moment(end) - moment(start)).total_seconds()
