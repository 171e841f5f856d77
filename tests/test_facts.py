"""Facts of samples: what changes is behind until somebody catches up; nothing stays behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from factories import USER, World
from storage import facts, facts_keeper
from storage.database import immediate, session
from storage.finding import SampleFilter, find_ids, total
from storage.rows import one
from storage.scores import add_judgement, ensure_rater, set_score


def facts_of(world: World, sample_id: int) -> dict[str, Any]:
    found = one(world.db, "SELECT * FROM sample_facts WHERE sample_id = ?", [sample_id])
    assert found is not None
    return found


def test_every_change_of_a_sample_makes_its_facts_stale(world: World) -> None:
    sample = world.sample()
    assert facts.catch_up(world.db) == 1
    assert facts.catch_up(world.db) == 0
    first, second = world.candidates(sample, ["circle", "It is a square."])
    assert facts.stale(world.db) == 1
    facts.catch_up(world.db)
    assert facts_of(world, sample)["answers"] == 2
    assert facts_of(world, sample)["labels"] == 1
    set_score(world.db, USER, first.id, "correctness", 4)
    facts.catch_up(world.db)
    assert facts_of(world, sample)["labels"] == 3
    assert facts_of(world, sample)["correctness"] == 1 << 4
    set_score(world.db, USER, first.id, "correctness", 0)  # the same judgement, another value
    facts.catch_up(world.db)
    assert facts_of(world, sample)["correctness"] == 1
    for table in ("flags", "skips", "discards"):
        world.db.conn.execute(f"INSERT INTO {table} (sample_id, user, created_at) VALUES ({sample}, '{USER}', '')")
    world.db.conn.execute(
        "INSERT INTO pairs (sample_id, chosen_id, rejected_id, origin, status, user, created_at)"
        f" VALUES ({sample}, {first.id}, {second.id}, 'hand', 'accepted', '{USER}', '')"
    )
    facts.catch_up(world.db)
    known = facts_of(world, sample)
    assert [known[name] for name in ("flags", "skips", "discarded", "pairs", "images")] == [1] * 5
    for table in ("flags", "skips", "discards", "pairs"):
        world.db.conn.execute(f"DELETE FROM {table}")
    facts.catch_up(world.db)
    known = facts_of(world, sample)
    assert [known[name] for name in ("flags", "skips", "discarded", "pairs")] == [0] * 4


def test_judges_and_people_differ_by_the_mean_over_metrics(world: World) -> None:
    sample = world.sample()
    first, second = world.candidates(sample, ["circle", "square"])
    rater = ensure_rater(world.db, "judge", "gemini", "1")

    def judged(*values: int) -> None:
        names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
        scores = [
            {"candidate_id": candidate.id, **dict.fromkeys(names, value)}
            for candidate, value in zip((first, second), values, strict=True)
        ]
        world.db.conn.execute("UPDATE judgements SET job_id = NULL")
        add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state="ok", scores=scores)

    judged(4, 0)
    facts.catch_up(world.db)
    assert facts_of(world, sample)["gap"] is None
    set_score(world.db, USER, first.id, "helpfulness", 1)
    set_score(world.db, USER, first.id, "correctness", 4)
    set_score(world.db, USER, second.id, "helpfulness", 1)
    facts.catch_up(world.db)
    assert facts_of(world, sample)["gap"] == 6, "candidate 1: (3 + 0) / 2; candidate 2: 1"
    assert find_ids(world.db, SampleFilter(gap="1.5")) == [sample]
    assert find_ids(world.db, SampleFilter(gap="1.6")) == []
    judged(1, 1)  # asked again: its latest word counts
    facts.catch_up(world.db)
    assert facts_of(world, sample)["gap"] == 6
    assert facts_of(world, sample)["helpfulness"] == 1 << 1


def test_a_call_that_failed_counts_until_the_judge_has_answered(world: World) -> None:
    sample = world.sample()
    world.candidates(sample, ["circle"])
    one_, other = (ensure_rater(world.db, "judge", name) for name in ("gemini", "gpt"))
    for rater, state, problems in ((one_, "blocked", 1), (other, "failed", 9), (one_, "ok", 8), (other, "ok", 0)):
        add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state=state)  # type: ignore[arg-type]
        facts.catch_up(world.db)
        assert facts_of(world, sample)["problems"] == problems


def test_words_of_questions_references_answers_and_notes_are_found(world: World) -> None:
    plain, noted = world.sample(1), world.sample(2)
    world.candidates(plain, ["Une pièce de théâtre"])
    world.db.conn.execute(
        f"INSERT INTO notes (sample_id, user, text, created_at) VALUES ({noted}, '{USER}', 'see', '')"
    )

    def found(words: str) -> list[int]:
        return find_ids(world.db, SampleFilter(q=words))

    assert found("piece theatre") == [plain]
    assert found("see") == [noted]
    assert found("shape") == [plain, noted]
    assert found('see" OR "piece') == []
    assert found("NOT see") == []
    assert found("*") == []
    world.db.conn.execute("UPDATE notes SET text = 'read again'")
    assert found("see") == []
    assert found("read") == [noted]


def test_a_new_sample_is_listed_before_its_facts_are_known(world: World) -> None:
    ids = [world.sample(number) for number in range(1, 4)]
    with immediate(world.db):  # nobody catches up inside a transaction
        assert find_ids(world.db, SampleFilter()) == ids
        assert total(world.db, SampleFilter()).told == "3"


def test_a_deleted_sample_leaves_nothing_behind(world: World) -> None:
    sample = world.sample()
    facts.catch_up(world.db)
    world.db.conn.execute("DELETE FROM samples")
    facts.catch_up(world.db)
    for table in ("sample_facts", "words_fts", "stale_samples"):
        assert one(world.db, f"SELECT count(*) AS n FROM {table}") == {"n": 0}
    assert total(world.db, SampleFilter()).number == 0
    assert find_ids(world.db, SampleFilter(), after=sample) == []


def test_the_keeper_works_off_what_is_left(world: World, wait_for: Callable[..., None], monkeypatch: Any) -> None:
    monkeypatch.setattr(facts_keeper, "EVERY", 0.01)
    monkeypatch.setattr(facts_keeper, "STEP", 3)
    for number in range(1, 11):
        world.sample(number)
    end = threading.Event()
    thread = facts_keeper.keep_up(world.folder, end)
    try:
        with session(world.folder) as db:
            wait_for(lambda: facts.stale(db) == 0, "nothing is behind", seconds=20)
    finally:
        end.set()
        thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_database_that_is_busy_is_read_as_it_is(world: World) -> None:
    sample = world.sample()
    with session(world.folder) as other, immediate(other):
        assert find_ids(world.db, SampleFilter(source="easy-vqa")) == [sample]
    assert facts.stale(world.db) == 1


def test_forgotten_facts_come_back(world: World) -> None:
    world.candidates(world.sample(), ["circle"])
    facts.catch_up(world.db)
    before = world.db.conn.execute("SELECT * FROM sample_facts").fetchall()
    facts.forget(world.db)
    facts.catch_up(world.db)
    assert world.db.conn.execute("SELECT * FROM sample_facts").fetchall() == before
    assert find_ids(world.db, SampleFilter(q="circle")) != []
