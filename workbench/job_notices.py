"""Which jobs have ended lately: what the pages ask every few seconds, to tell a person who looks elsewhere."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from storage.endings import ended_since
from storage.errors import UserError
from storage.jobs import count_open
from storage.lifecycle import JobStatus
from storage.records import Job, now
from workbench.context import Context
from workbench.door import Door
from workbench.job_words import kind_name, summary

#: An end is stamped before it is committed: whoever asks looks back this far, and passes over what it has told.
OVERLAP = timedelta(seconds=15)

_ENDED = {JobStatus.DONE: "is done", JobStatus.FAILED: "has failed", JobStatus.STOPPED: "was stopped"}


def routes(context: Context, door: Door) -> APIRouter:
    router = APIRouter(prefix="/api/jobs")

    @router.get("/ended")
    def ended(request: Request, since: Annotated[str, Query(max_length=40)] = "") -> dict[str, Any]:
        return news(context, door.asker(request), since)

    return router


def news(context: Context, user: str, since: str) -> dict[str, Any]:
    """A user's jobs that have ended, how many jobs are open, and the moment to ask from the next time.

    Args:
        since: what the answer before gave as `since`; "" for the first time, when nothing is told.

    Raises:
        UserError: it is no moment.
    """
    moment = now()
    with context.database() as db:
        jobs = ended_since(db, user, _earlier(since)) if since else []
        return {"since": moment, "open": count_open(db), "ended": [_told(job) for job in jobs if _worth(job)]}


def _earlier(since: str) -> str:
    try:
        return (datetime.fromisoformat(since) - OVERLAP).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        raise UserError(f"since = {since!r}: give the moment that the last answer gave.") from None


def _worth(job: Job) -> bool:
    """A chat model that leaves because nobody talks to it is no news."""
    return job.kind != "serve" or job.status is JobStatus.FAILED


def _told(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "status": job.status,
        "ended": job.ended_at,
        "title": f"#{job.id} {kind_name(job)} {_ENDED[job.status]}",
        "text": job.reason.strip()[:300] if job.status is JobStatus.FAILED else summary(job),
    }
