"""The list of jobs, and the line about the queue above it, as HTML. Pure: records in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from jobs.steering import Held
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from workbench.job_words import bar, chip, kind_name, left_words, state_words, summary, when


def job_list(
    jobs: Sequence[Job],
    positions: Mapping[int, int],
    left: Mapping[int, float],
    selected: int | None,
    now: datetime,
    more: bool = False,
    open_jobs: int = 0,
    sweeps: Mapping[int, Mapping[JobStatus, int]] | None = None,
    waits: Mapping[int, str] | None = None,
) -> str:
    """The list as links that carry their job, marked with the address of the selected one.

    Args:
        positions: in the queue, of queued jobs.
        left: seconds, of running jobs where they can be told.
        more: there are older jobs than these.
        open_jobs: queued or at work; the page's header shows the number.
        sweeps: how many jobs of a sweep are in which state, by its number.
        waits: what queued jobs wait for besides a free slot, by id.
    """
    address = f' data-url="?job={selected}"' if selected is not None else ""
    mark = f'<span data-open="{open_jobs}"{address}></span>'
    if not jobs:
        return (
            f'{mark}<div class="plumb-empty"><b>No jobs yet.</b><p>Choose what to do on the right, and press '
            f"Start. A job goes on when you close this page.</p></div>"
        )
    entries, shown = "", None
    for job in jobs:
        if job.sweep is not None and job.sweep != shown:
            entries += _sweep(job.sweep, (sweeps or {}).get(job.sweep, {}))
        shown = job.sweep
        entries += _entry(
            job, positions.get(job.id, 0), (waits or {}).get(job.id, ""), left.get(job.id), job.id == selected, now
        )
    rest = '<a class="plumb-more" href="/jobs" data-more="1">Show older jobs</a>' if more else ""
    return f'{mark}<nav class="plumb-jobs" aria-label="Jobs">{entries}</nav>{rest}'


def _entry(job: Job, position: int, waits: str, left: float | None, selected: bool, now: datetime) -> str:
    state = state_words(job, position, waits)
    told = f'<span class="plumb-job-state" title="{escape(state)}">{escape(state)}{left_words(left)}</span>'
    return (
        f'<a class="plumb-job plumb-is-{job.status}{" plumb-selected" if selected else ""}'
        f'{" plumb-swept" if job.sweep is not None else ""}" '
        f'href="/jobs?job={job.id}" '
        f'data-job="{job.id}"{" aria-current=true" if selected else ""}>'
        f'<span class="plumb-job-top"><b>#{job.id} {escape(kind_name(job))}</b>{chip(job)}</span>'
        f'<span class="plumb-job-what">{escape(summary(job))}</span>'
        f"{bar(job) if job.status not in ENDED else ''}"
        f"{told if state else ''}"
        f'<span class="plumb-job-who">{escape(job.user)} · {when(job.created_at, now)}</span></a>'
    )


def _sweep(sweep: int, states: Mapping[JobStatus, int]) -> str:
    """The line above the jobs of a sweep."""
    told = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    return (
        f'<p class="plumb-sweep"><a href="/models?sweep={sweep}">Compare</a><b>Sweep #{sweep}</b> · '
        f"{sum(states.values())} jobs<br>{told}</p>"
    )


def deleted_runs(jobs: Sequence[Job], selected: int | None) -> str:
    """The runs in the bin, folded away; each can be opened and restored.

    It says when each was deleted and not how long ago: what changes by itself would be drawn anew, and folded,
    under the eyes of whoever reads it.
    """
    if not jobs:
        return ""
    entries = ""
    for job in jobs:
        by = f" by {escape(job.deleted_by)}" if job.deleted_by else ""
        here = " aria-current=true" if job.id == selected else ""
        entries += (
            f'<li><a href="/jobs?job={job.id}" data-job="{job.id}"{here}>'
            f"#{job.id} {escape(kind_name(job))}</a> {_on(job.deleted_at or job.created_at)}{by}</li>"
        )
    opened = " open" if any(job.id == selected for job in jobs) else ""
    many = f"{len(jobs)} deleted run{'' if len(jobs) == 1 else 's'}"
    return f'<details class="plumb-bin"{opened}><summary>{many}</summary><ul>{entries}</ul></details>'


def _on(stamp: str) -> str:
    return f'<time datetime="{escape(stamp, quote=True)}">{escape(stamp[:16].replace("T", " "))} UTC</time>'


def queue_line(queued: int, held: Held | None, no_room: str, now: datetime) -> str:
    """What stands above the list: how many wait, and what keeps them all; "" where none waits and nothing keeps.

    Args:
        held: who holds the queue.
        no_room: why nothing may start for the disk's sake.
    """
    told = ""
    if held is not None:
        told = (
            f'<p class="plumb-held" role="status"><b>The queue is held</b> by {escape(held.user)}, '
            f"{when(held.since, now)}. Nothing new starts; what runs goes on.</p>"
        )
    if no_room:
        told += f'<p class="plumb-held" role="status"><b>Nothing new starts.</b> {escape(no_room)}</p>'
    return told or (f'<p class="plumb-note">{queued} in the queue</p>' if queued else "")
