"""Real processes that claim from one queue at once: each job goes to one of them, and none is left."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import pytest

from factories import USER, World
from jobs.processes import PROJECT
from storage import jobs as store
from storage.lifecycle import JobStatus

PROCESSES, JOBS = 6, 90

# Says that it is ready, waits for the word, then claims until nothing is queued.
SCRIPT = """
import contextlib, sys
from pathlib import Path
from storage.database import immediate, session
from storage.folder import DataFolder
from storage.jobs import claim_next, queued_jobs

root, slot, guarded = sys.argv[1:]
with session(DataFolder(Path(root))) as db:
    print("ready", flush=True)
    sys.stdin.readline()
    while queued_jobs(db):
        with immediate(db) if guarded == "yes" else contextlib.nullcontext():
            job = claim_next(db, "network", slot)
        if job:
            print(job.id, job.slot, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("guarded", ["yes", "no"])
def test_no_job_is_claimed_twice_and_all_are_claimed(world: World, guarded: str) -> None:
    """`guarded`: within a transaction, as the supervisor does; without one the claim itself must hold."""
    for number in range(JOBS):
        store.add_job(world.db, kind="judge", config={}, user=USER, slot_kind="network", priority=number % 3 - 1)
    with ExitStack() as stack:
        claimers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SCRIPT, str(world.folder.root), f"slot-{number}", guarded],
                    cwd=PROJECT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(PROCESSES)
        ]
        for claimer in claimers:
            assert claimer.stdout is not None
            assert claimer.stdout.readline() == "ready\n"
        for claimer in claimers:  # all of them at once: they were slow to start
            assert claimer.stdin is not None
            claimer.stdin.write("go\n")
            claimer.stdin.flush()
        told = [claimer.communicate(timeout=60)[0].split("\n")[:-1] for claimer in claimers]
        assert [claimer.returncode for claimer in claimers] == [0] * PROCESSES
    claimed = [tuple(text.split()) for lines in told for text in lines]
    assert len(claimed) == JOBS
    assert len({job_id for job_id, _ in claimed}) == JOBS, "one was claimed twice"
    jobs = store.list_jobs(world.db)
    assert {(str(job.id), str(job.slot)) for job in jobs} == set(claimed), "each has the slot of who claimed it"
    assert {job.status for job in jobs} == {JobStatus.STARTING}
