"""Queues: who gets which sample, for how long, and how far everybody is."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import find_reference as slow
from factories import World, open_world
from storage import discarding, facts, queues, remarks, selecting
from storage.database import session
from storage.finding import Count, SampleFilter
from storage.queues import (
    QUEUES,
    Queue,
    holders,
    next_in_queue,
    progress,
    read_queue,
    release,
    renew,
    wants_overlap,
)
from storage.records import METRICS
from storage.scores import set_score


@pytest.fixture
def answered(world: World) -> World:
    """Six samples with an answer each."""
    for number in range(1, 7):
        assert world.sample(number) == number
        world.candidates(number, ["circle"])
    return world


def answer_of(world: World, sample: int) -> int:
    found = world.db.conn.execute("SELECT min(id) FROM candidates WHERE sample_id = ?", [sample]).fetchone()
    return int(found[0])


def score(world: World, user: str, sample: int, value: int = 3) -> None:
    set_score(world.db, user, answer_of(world, sample), METRICS[0], value)


def got(world: World, user: str, queue: Queue, after: int | None = None) -> int | None:
    found = next_in_queue(world.db, user, queue, after=after)
    return None if found is None else found.id


# --- which sample ---


def wanted(one: slow.Known, user: str, queue: Queue) -> bool:
    """Whether a sample is in a queue for a person, in plain Python."""
    if not one.selected(queue.where) or user in one.skips or one.discarded:
        return False
    if queue.kind == "disagree":
        return one.gap is not None and one.gap >= queue.gap
    if queue.kind == "flagged":
        return bool(one.flags)
    if not one.answers:
        return False
    if queue.kind == "unscored":
        return not one.people
    picked = queue.kind == "fewer" or wants_overlap(one.id, queue.percent, queue.seed)
    return picked and len(one.people) < queue.people and user not in one.people


@pytest.mark.parametrize("kind", QUEUES)
def test_each_queue_gives_what_plain_python_does(tmp_path: Path, kind: str) -> None:
    world = open_world(tmp_path)
    slow.fill(world, seed=11)
    everything = slow.read_all(world.db)
    wheres = [SampleFilter(), SampleFilter(source="only one"), SampleFilter(q="re"), SampleFilter(rater="gpt")]
    wheres += [
        SampleFilter(state="paired", order="gap"),
        SampleFilter(state="discarded"),
        SampleFilter(split="no"),
    ]
    some = 0
    for where in wheres:
        for people, gap, percent in ((1, 0.5, 100), (2, 1, 60), (3, 2.25, 0)):
            queue = Queue(kind, people=people, gap=gap, percent=percent, seed=people, where=where)
            for user in (*slow.PEOPLE, "new"):
                right = [one.id for one in everything if wanted(one, user, queue)]
                found: list[int] = []
                while (sample := got(world, user, queue, found[-1] if found else 0)) is not None:
                    if sample in found:
                        break
                    found.append(sample)
                assert found == right, (queue, user)
                assert progress(world.db, user, queue).left == Count(len(right))
                some += len(right)
                release(world.db, user)
    assert some > 50
    world.db.close()


def test_next_goes_on_and_begins_anew_and_a_reload_keeps_the_sample(answered: World) -> None:
    queue = Queue("unscored")
    assert got(answered, "ada", queue) == 1
    assert got(answered, "ada", queue) == 1, "a reload"
    assert got(answered, "ada", queue, after=1) == 2
    assert got(answered, "ada", queue) == 2
    assert got(answered, "ada", queue, after=6) == 1
    for sample in (1, 2, 3, 5, 6):
        score(answered, "bob", sample)
    assert got(answered, "ada", queue) == 4, "what was held has left the queue"
    assert got(answered, "ada", queue, after=4) is None, "never the same one again"
    assert holders(answered.db, 4) == []
    score(answered, "ada", 4)
    assert got(answered, "ada", queue) is None


def test_what_one_skips_others_still_get(answered: World) -> None:
    queue = Queue("unscored")
    remarks.set_skip(answered.db, "ada", 1, True)
    assert got(answered, "ada", queue) == 2
    assert got(answered, "bob", queue) == 1
    remarks.set_skip(answered.db, "ada", 1, False)
    release(answered.db, "bob")
    assert got(answered, "ada", queue, after=6) == 1


def test_a_discarded_sample_is_in_no_queue(answered: World) -> None:
    discarding.discard(answered.db, "bob", 1)
    remarks.set_flag(answered.db, "bob", 1, True)
    assert got(answered, "ada", Queue("unscored")) == 2
    assert got(answered, "ada", Queue("flagged")) is None


def test_a_queue_follows_scores_that_no_reader_has_caught_up_with(
    answered: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is behind: what is given out is looked at just before."""
    facts.catch_up(answered.db)
    monkeypatch.setattr(queues, "freshen", lambda db: None)
    for sample in range(1, 6):
        score(answered, "bob", sample)
    monkeypatch.setattr(queues, "_LOOKED_AT", 2)
    assert facts.stale(answered.db) == 5
    assert got(answered, "ada", Queue("unscored")) == 6
    answered.candidates(answered.sample(7), ["square"])
    assert got(answered, "ada", Queue("unscored"), after=6) == 7, "nothing was known of it"


# --- leases ---


def test_two_people_get_two_samples(answered: World) -> None:
    queue = Queue("unscored")
    assert [got(answered, name, queue) for name in ("ada", "bob", "eve")] == [1, 2, 3]
    assert holders(answered.db, 2) == ["bob"]
    assert got(answered, "ada", queue, after=1) == 4
    assert holders(answered.db, 1) == [], "her other leases end"
    assert got(answered, "bob", queue, after=6) == 1


def test_a_lease_ends_with_its_time(answered: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    queue = Queue("unscored")
    assert got(answered, "ada", queue) == 1
    now += 60 * queues.MINUTES - 1
    assert got(answered, "bob", queue) == 2
    assert renew(answered.db, "ada", 1)
    now += 60 * queues.MINUTES - 1
    assert holders(answered.db, 1) == ["ada"]
    now += 2
    assert holders(answered.db, 1) == []
    assert got(answered, "eve", queue) == 1
    assert not renew(answered.db, "ada", 1), "it is Eve's by now"
    assert got(answered, "ada", queue) == 2, "Bob's has run out"
    assert not renew(answered.db, "ada", 99)
    assert holders(answered.db, 2) == ["ada"], "a refusal changes nothing"
    assert renew(answered.db, "ada", 5), "opened from a list"
    assert (holders(answered.db, 5), holders(answered.db, 2)) == (["ada"], [])


def test_renewing_and_releasing_write_only_what_changes(answered: World) -> None:
    assert got(answered, "ada", Queue("unscored")) == 1
    before = answered.db.conn.total_changes
    assert renew(answered.db, "ada", 1)
    release(answered.db, "bob")
    assert answered.db.conn.total_changes == before
    release(answered.db, "ada")
    assert holders(answered.db, 1) == []


@pytest.mark.parametrize("kind", ["unscored", "fewer", "overlap"])
def test_people_who_ask_at_once_share_no_sample(answered: World, kind: str) -> None:
    """Ten people in ten threads with connections of their own; overlap gives a sample to as many as it wants."""
    for number in range(7, 31):
        answered.candidates(answered.sample(number), ["circle"])
    queue = Queue(kind, people=3, percent=50)
    start = threading.Barrier(10)
    taken: dict[str, list[int]] = {}
    clashes: list[tuple[int, list[str]]] = []

    def ask(name: str) -> None:
        mine: list[int] = []
        start.wait(timeout=20)
        for _ in range(8):
            with session(answered.folder) as db:
                found = next_in_queue(db, name, queue, after=mine[-1] if mine else 0)
                if found is None:
                    break
                held = holders(db, found.id)
                if len(held) > (3 if kind == "overlap" else 1):
                    clashes.append((found.id, held))
            mine.append(found.id)
        taken[name] = mine

    threads = [threading.Thread(target=ask, args=(f"person {number}",)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(taken) == 10
    assert clashes == []
    leases = Counter(
        row[0] for row in answered.db.conn.execute("SELECT sample_id FROM leases WHERE until > 0").fetchall()
    )
    most = 3 if kind == "overlap" else 1
    assert max(leases.values()) <= most
    if kind == "overlap":
        assert any(count > 1 for count in leases.values())
        assert all(wants_overlap(sample, 50) for mine in taken.values() for sample in mine)


def test_overlap_gives_a_sample_to_as_many_people_as_it_wants(answered: World) -> None:
    queue = Queue("overlap", people=2, percent=100)
    assert [got(answered, name, queue) for name in ("ada", "bob", "eve")] == [1, 1, 2]
    score(answered, "ada", 1)
    assert got(answered, "ada", queue) == 2, "her own score is one of the two"
    assert got(answered, "zoe", queue) == 3, "Bob is at 1, Ada and Eve are at 2"
    score(answered, "bob", 1)
    assert got(answered, "bob", queue) == 3
    score(answered, "bob", 3)
    score(answered, "bob", 3, 1)
    assert got(answered, "ada", queue, after=2) == 4, "Bob has scored 3; with Zoe it has its two"
    release(answered.db, "zoe")
    assert holders(answered.db, 3) == ["bob"]
    assert got(answered, "ada", queue, after=2) == 3, "Bob, who still holds it, is one of two"


def test_the_samples_of_an_overlap_are_fixed_by_seed_and_come_to_their_part(world: World) -> None:
    every = range(1, 20_001)
    for seed in (0, 1, 2**31 - 1):
        for percent in (0, 0.5, 10, 50, 100):
            picked = [number for number in every if wants_overlap(number, percent, seed)]
            assert len(picked) == pytest.approx(len(every) * percent / 100, abs=150)
    few, more = ({n for n in every if wants_overlap(n, percent, 5)} for percent in (10, 20))
    assert few < more, "who asks for more keeps those that are there"
    other = {n for n in every if wants_overlap(n, 10, 6)}
    assert len(few & other) == pytest.approx(200, abs=60), "another seed, other samples"
    runs = Counter(sum(wants_overlap(10 * block + n, 10, 0) for n in range(10)) for block in range(2_000))
    assert runs[0] == pytest.approx(2_000 * 0.9**10, rel=0.2), "no pattern in the ids"


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_sql_picks_the_same_samples_as_python(world: World, seed: int) -> None:
    generator = random.Random(seed)
    ids = [*range(1, 200), *(generator.randrange(2**40) for _ in range(200))]
    sql, values = queues._picked(Queue("overlap", percent=30, seed=seed))
    for number in ids:
        found = world.db.conn.execute(
            f"SELECT {sql} FROM (SELECT {number} AS sample_id, 0 AS discarded) f", values
        ).fetchone()[0]
        assert bool(found) == wants_overlap(number, 30, seed), number


# --- how far ---


def test_progress_says_what_is_mine_done_and_left(answered: World) -> None:
    for sample in (1, 2):
        score(answered, "ada", sample)
    score(answered, "bob", 2)
    remarks.set_skip(answered.db, "ada", 3, True)
    answered.sample(7)  # without answers: nothing to score
    for kind, done, left in (("unscored", 2, 3), ("fewer", 1, 3), ("flagged", 0, 0), ("disagree", 0, 0)):
        found = progress(answered.db, "ada", Queue(kind))
        assert found == queues.Progress(Count(2), Count(done), Count(left), Count(1)), kind
    found = progress(answered.db, "bob", Queue("fewer", people=3))
    assert found == queues.Progress(Count(1), Count(0), Count(5), Count(0))
    assert progress(answered.db, "new", Queue("unscored")).mine == Count(0)
    where = SampleFilter(source="nothing")
    assert progress(answered.db, "ada", Queue("unscored", where=where)) == queues.Progress(*[Count(0)] * 4)


def test_disagreement_is_done_where_the_judges_agree_with_people(world: World) -> None:
    for sample, value in ((1, 4), (2, 0)):
        world.sample(sample)
        (answer,) = world.judged(sample, [12])
        set_score(world.db, "ada", answer.id, METRICS[0], value)
    queue = Queue("disagree", gap=1)
    assert got(world, "bob", queue) == 2
    assert progress(world.db, "bob", queue).done == Count(1)
    assert progress(world.db, "bob", queue).left == Count(1)


def test_progress_of_many_is_an_estimate(answered: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selecting, "_STEPS", 0)
    monkeypatch.setattr(selecting, "_STEP", 1)
    found = progress(answered.db, "ada", Queue("unscored"))
    assert found.left == Count(6, "about")


# --- addresses ---


@pytest.mark.parametrize("kind", QUEUES)
def test_an_address_names_a_queue(kind: str) -> None:
    where = SampleFilter(q="a & b", source="x", gap="0.5", order="newest")
    queue = Queue(kind, where=where)
    if kind in ("fewer", "overlap"):
        queue = replace(queue, people=4)
    if kind == "disagree":
        queue = replace(queue, gap=2.5)
    if kind == "overlap":
        queue = replace(queue, percent=2.5, seed=99)
    assert read_queue(queue.as_query()) == queue
    assert read_queue({"queue": kind}) == Queue(kind)


def test_an_address_that_means_nothing_is_passed_over() -> None:
    for kind in ("", "odd", "UNSCORED", "\0"):
        assert read_queue({"queue": kind}) is None
    assert read_queue({}) is None
    for value in ("", "x", "nan", "inf", "-1", "1e999", "99999999999", "0x2", "٣"):
        told = {"queue": "overlap", "people": value, "apart": value, "percent": value, "seed": value}
        found = read_queue(told)
        assert found is not None
        assert 1 <= found.people <= 9
        assert 0 <= found.gap <= 4
        assert 0 <= found.percent <= 100
        assert 0 <= found.seed < 2**31
