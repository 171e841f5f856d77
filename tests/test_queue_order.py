"""The queue's order: whatever is moved, prioritised, claimed and queued again, each slot kind keeps one line."""

from __future__ import annotations

import sqlite3
from typing import Any, Literal

import pytest
from hypothesis import given, settings, strategies
from sqlite_utils import Database

from factories import USER, World
from jobs import steering
from storage import jobs as store
from storage.errors import Conflict, NotFound, UserError
from storage.lifecycle import JobStatus
from storage.migrations import migrations
from storage.queue_order import place_of
from storage.records import Job

SlotKind = Literal["device", "network"]
SLOT_KINDS: tuple[SlotKind, ...] = ("device", "network")
PLACES = ("first", "up", "down", "last")

number = strategies.integers(0, 30)
priorities = strategies.sampled_from([-1, 0, 1])
steps = strategies.one_of(
    strategies.tuples(strategies.just("new"), strategies.sampled_from(SLOT_KINDS), priorities),
    strategies.tuples(strategies.just("move"), number, strategies.sampled_from(PLACES)),
    strategies.tuples(strategies.just("prioritise"), number, priorities),
    strategies.tuples(strategies.just("claim"), strategies.sampled_from(SLOT_KINDS), strategies.none()),
    strategies.tuples(strategies.just("again"), number, strategies.none()),
)


def in_memory() -> Database:
    db = Database(sqlite3.connect(":memory:", isolation_level=None))
    migrations.apply(db)
    return db


def add(db: Database, slot_kind: SlotKind = "device", priority: int = 0) -> Job:
    return store.add_job(db, kind="judge", config={}, user=USER, slot_kind=slot_kind, priority=priority)


def line(db: Database, slot_kind: SlotKind) -> list[int]:
    return [job.id for job in store.queued_jobs(db, slot_kind)]


def group(db: Database, job: Job) -> list[int]:
    return [one.id for one in store.queued_jobs(db, job.slot_kind) if one.priority == job.priority]


def others(ids: list[int], job: Job) -> list[int]:
    return [one for one in ids if one != job.id]


def take(db: Database, step: tuple[str, Any, Any]) -> None:
    """Take a step and check what it did to the line, and that it did nothing to the other line."""
    name, what, how = step
    before = {slot_kind: line(db, slot_kind) for slot_kind in SLOT_KINDS}
    if name == "new":
        job = add(db, what, how)
        assert group(db, job)[-1] == job.id, "a new job is the last of its priority"
        assert others(line(db, what), job) == before[what]
        changed = what
    elif name == "claim":
        claimed = store.claim_next(db, what, "slot")
        assert ([claimed.id] if claimed else []) == before[what][:1]
        assert line(db, what) == before[what][1:]
        changed = what
    else:
        if name == "again":
            there = store.list_jobs(db, statuses=[JobStatus.STARTING, JobStatus.FAILED])
        else:
            there = store.queued_jobs(db)
        if not there:
            return
        job = there[what % len(there)]
        changed = job.slot_kind
        if name == "move":
            moved(db, job, how)
        elif name == "prioritise":
            assert steering.prioritise(db, job.id, how).priority == how
        else:
            if job.status is JobStatus.STARTING:
                store.move(db, job.id, JobStatus.FAILED)
            store.requeue(db, job.id)
        assert others(line(db, changed), job) == others(before[changed], job), "the rest stays in its order"
    for slot_kind in SLOT_KINDS:
        if slot_kind != changed:
            assert line(db, slot_kind) == before[slot_kind]


def moved(db: Database, job: Job, to: Any) -> None:
    wanted = group(db, job)
    index = wanted.index(job.id)
    target = {"first": 0, "up": index - 1, "down": index + 1, "last": len(wanted) - 1}[to]
    if target == index or not 0 <= target < len(wanted):
        with pytest.raises(Conflict, match=f"Job {job.id} is the (first|last) already"):
            steering.move(db, job.id, to)
    else:
        wanted.insert(target, wanted.pop(index))
        assert steering.move(db, job.id, to).id == job.id
    assert group(db, job) == wanted


@settings(max_examples=120, deadline=None)
@given(strategies.lists(steps, max_size=40))
@pytest.mark.slow
def test_any_sequence_of_steps_leaves_one_line(taken: list[tuple[str, Any, Any]]) -> None:
    db = in_memory()
    for priority in (0, 1, 0, -1):
        add(db, "device", priority)
    for step in taken:
        take(db, step)
        for slot_kind in SLOT_KINDS:
            jobs = store.queued_jobs(db, slot_kind)
            assert [store.queue_position(db, job) for job in jobs] == list(range(1, len(jobs) + 1))
            assert [job.priority for job in jobs] == sorted((job.priority for job in jobs), reverse=True)
    for slot_kind in SLOT_KINDS:
        expected = line(db, slot_kind)
        claimed = [store.claim_next(db, slot_kind, "slot") for _ in expected]
        assert [job.id for job in claimed if job] == expected
        assert store.claim_next(db, slot_kind, "slot") is None
    db.close()


def test_the_same_gap_can_be_halved_for_ever() -> None:
    """Floats run out after some fifty moves; then the places are numbered anew."""
    db = in_memory()
    first, second, third = (add(db).id for _ in range(3))
    for _ in range(150):
        last = line(db, "device")[-1]
        steering.move(db, last, "up")
        assert line(db, "device")[0] == first
        assert line(db, "device")[1] == last
    places = [place_of(job) for job in store.queued_jobs(db)]
    assert sorted(places) == places
    assert len(set(places)) == 3
    assert {second, third} == set(line(db, "device")[1:])


def test_a_move_changes_one_job_alone(world: World) -> None:
    jobs = [world.job() for _ in range(4)]
    steering.move(world.db, jobs[3].id, "up")
    places = [store.get_job(world.db, job.id).place for job in jobs]
    assert places[:3] == [None, None, None]
    assert places[3] == 2.5


def test_a_new_job_comes_behind_one_that_was_moved_to_the_end(world: World) -> None:
    jobs = [world.job() for _ in range(3)]
    for job in jobs[:2]:
        steering.move(world.db, job.id, "last")
    new = world.job()
    assert line(world.db, "device") == [jobs[2].id, jobs[0].id, jobs[1].id, new.id]


def test_at_the_edge_the_way_further_is_told(world: World) -> None:
    high, normal, low = (world.job() for _ in range(3))
    steering.prioritise(world.db, high.id, 1)
    steering.prioritise(world.db, low.id, -1)
    with pytest.raises(
        Conflict, match=r"first already of those of normal priority that wait for a device slot\. "
    ):
        steering.move(world.db, normal.id, "up")
    with pytest.raises(Conflict, match="Give it high priority to have it start before more"):
        steering.move(world.db, normal.id, "first")
    with pytest.raises(Conflict, match="Give it low priority to have it start behind more"):
        steering.move(world.db, normal.id, "last")
    with pytest.raises(Conflict, match=r"slot\.$"):
        steering.move(world.db, high.id, "up")
    with pytest.raises(Conflict, match=r"slot\.$"):
        steering.move(world.db, low.id, "down")


def test_what_cannot_be_moved_is_told(world: World) -> None:
    job = world.job()
    world.job()
    with pytest.raises(UserError, match="to = 'sideways': a job can be moved first, up, down or last"):
        steering.move(world.db, job.id, "sideways")  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="no job 99"):
        steering.move(world.db, 99, "up")
    store.claim_next(world.db, "device", "cpu")
    with pytest.raises(Conflict, match=f"Job {job.id} is starting; only a queued job can be moved"):
        steering.move(world.db, job.id, "last")


@pytest.mark.parametrize("priority", [2, -2, 0.5, True, "high", None])
def test_a_priority_that_is_none_is_refused(world: World, priority: Any) -> None:
    job = world.job()
    with pytest.raises(UserError, match=r"priority = .*: give -1 \(low\), 0 \(normal\) or 1 \(high\)"):
        steering.prioritise(world.db, job.id, priority)
    assert store.get_job(world.db, job.id).priority == 0


def test_a_job_at_work_can_be_prioritised_and_one_that_is_done_cannot(world: World) -> None:
    job = world.job()
    store.claim_next(world.db, "device", "cpu")
    assert steering.prioritise(world.db, job.id, 1).priority == 1
    store.move(world.db, job.id, JobStatus.DONE)
    with pytest.raises(Conflict, match="is done; the queue has nothing more to do with it"):
        steering.prioritise(world.db, job.id, 0)
    with pytest.raises(NotFound):
        steering.prioritise(world.db, 99, 0)
