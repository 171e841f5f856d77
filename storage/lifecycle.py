"""The states of a job and the steps between them (pure).

    queued ──► starting ──► running ──► done
      │           │            │  └────► failed
      ▼           ▼            ▼
    stopped     failed      stopping ──► stopped | done | failed

`starting`: a worker was spawned and has not spoken yet. `stopping`: it was asked to stop. `paused`: its worker
left because the disk is full; it is queued again by itself when there is room. It can be reached from all in which
a worker is at work. A job that failed or was stopped can be queued again where its kind goes on from what it has
done (`jobs.steering.resume`).
"""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


NEXT: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.STARTING, JobStatus.STOPPED, JobStatus.FAILED}),
    JobStatus.STARTING: frozenset(
        {
            JobStatus.RUNNING,
            JobStatus.STOPPING,
            JobStatus.PAUSED,
            JobStatus.DONE,
            JobStatus.FAILED,
            JobStatus.STOPPED,
        }
    ),
    JobStatus.RUNNING: frozenset(
        {JobStatus.STOPPING, JobStatus.PAUSED, JobStatus.DONE, JobStatus.FAILED, JobStatus.STOPPED}
    ),
    JobStatus.STOPPING: frozenset({JobStatus.PAUSED, JobStatus.STOPPED, JobStatus.DONE, JobStatus.FAILED}),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.STOPPED, JobStatus.FAILED}),
    JobStatus.DONE: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.STOPPED: frozenset({JobStatus.QUEUED}),
}

ACTIVE = frozenset({JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING})
ENDED = frozenset({JobStatus.DONE, JobStatus.FAILED, JobStatus.STOPPED})


def sources(target: JobStatus) -> tuple[JobStatus, ...]:
    """The states from which `target` may be reached, in the order of the enum."""
    return tuple(status for status in JobStatus if target in NEXT[status])
