"""What tests of the Jobs page share."""

from __future__ import annotations

from typing import Any

from factories import World
from storage import jobs as store
from storage.lifecycle import JobStatus
from storage.records import Job
from workbench import job_launch
from workbench.forms import shown


def advance(world: World, job: Job, *states: JobStatus, reason: str = "") -> Job:
    for state in states:
        store.move(world.db, job.id, state, reason if state is states[-1] else "")
    return store.get_job(world.db, job.id)


def raw_of(kind: str, **values: Any) -> list[Any]:
    """What the form's widgets hold, defaults but for these (by path)."""
    return [
        values[control.path] if control.path in values else shown(control, control.default)
        for control in job_launch.controls(kind)
    ]
