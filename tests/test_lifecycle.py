"""The states of a job: the table is the law, and SQL keeps it."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import World
from storage import jobs as store
from storage.errors import Conflict, NotFound
from storage.lifecycle import ACTIVE, ENDED, NEXT, JobStatus, sources


def test_the_table_is_whole() -> None:
    assert set(NEXT) == set(JobStatus)
    assert {JobStatus.DONE, JobStatus.FAILED, JobStatus.STOPPED} == ENDED
    assert not ACTIVE & ENDED
    for status in set(JobStatus) - ENDED:
        assert NEXT[status] & ENDED or any(NEXT[step] & ENDED for step in NEXT[status]), "a way out"


@given(st.sampled_from(list(JobStatus)))
def test_sources_are_the_table_read_backwards(target: JobStatus) -> None:
    assert set(sources(target)) == {status for status in JobStatus if target in NEXT[status]}


@pytest.mark.parametrize(("start", "target"), list(itertools.product(JobStatus, JobStatus)))
def test_sql_allows_what_the_table_allows(world: World, start: JobStatus, target: JobStatus) -> None:
    job = world.job()
    world.db.conn.execute("UPDATE jobs SET status = ? WHERE id = ?", [start, job.id])
    if target in NEXT[start]:
        store.move(world.db, job.id, target, "because")
        moved = store.get_job(world.db, job.id)
        assert (moved.status, moved.reason) == (target, "because")
        assert (moved.ended_at is not None) == (target in ENDED)
    else:
        with pytest.raises(Conflict, match=f"is {start}; it cannot become {target}"):
            store.move(world.db, job.id, target)
        assert store.get_job(world.db, job.id).status is start


def test_a_job_that_is_not_there(world: World) -> None:
    with pytest.raises(NotFound, match="no job 77"):
        store.move(world.db, 77, JobStatus.FAILED)


def test_each_slot_takes_the_oldest_that_fits(world: World) -> None:
    def add(slot_kind: Literal["device", "network"], device: str | None = None) -> int:
        return store.add_job(world.db, kind="x", config={}, user="ada", slot_kind=slot_kind, device=device).id

    far, near, network, anywhere = add("device", "cuda:1"), add("device", "cuda:0"), add("network"), add("device")
    assert store.queue_position(world.db, store.get_job(world.db, anywhere)) == 3
    claims = [
        store.claim_next(world.db, kind, slot)  # type: ignore[arg-type]
        for kind, slot in (("device", "cuda:0"), ("network", "network-0"), ("device", "cuda:0"), ("device", "cpu"))
    ]
    assert [claim.id if claim else None for claim in claims] == [near, network, anywhere, None]
    assert store.get_job(world.db, far).status is JobStatus.QUEUED
