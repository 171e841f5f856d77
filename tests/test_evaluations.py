"""Evaluations in the database: kept once, graded again, read back as they were."""

from __future__ import annotations

from typing import Any

import pytest

from factories import USER, World
from storage import evaluations as store
from storage.errors import NotFound, UserError
from storage.records import Job


def item(name: str, **fields: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": f"What is {name}?"}]
    return {"id": name, "messages": [{"role": "user", "content": content}], "following": [], **fields}


def grade(name: str, sums: tuple[float, ...] | None = (1.0, 1.0), why: str = "") -> dict[str, Any]:
    return {"id": name, "sums": sums, "categories": ["open"], "characters": 7, "unit": "", "why": why}


def begun(world: World, items: list[dict[str, Any]], label: str = "demo") -> tuple[Job, int]:
    job = world.job()
    with world.db.conn:
        return job, store.begin_evaluation(world.db, job, "easy-vqa", items, "demo", None, label, {"limit": 2})


def test_items_are_kept_once_for_all_models(world: World) -> None:
    items = [item("a"), item("b")]
    _, first = begun(world, items)
    _, second = begun(world, items, "other")
    _, third = begun(world, items[:1])
    sets = [store.get_evaluation(world.db, one).set_id for one in (first, second, third)]
    assert sets[0] == sets[1] != sets[2]
    found = store.items_of(world.db, store.get_evaluation(world.db, first))
    assert found == [{"number": 1, **items[0]}, {"number": 2, **items[1]}]


def test_an_answer_told_twice_counts_once(world: World) -> None:
    job, number = begun(world, [item("a")])
    for text in ("red", "blue"):
        store.add_item_answer(world.db, job, number=1, turn=0, text=text, finish="stop", tokens=1)
    assert store.answers_of(world.db, number) == [store.ItemAnswer(1, 0, "red", "stop", 1)]
    assert store.get_evaluation(world.db, number).answers == 1
    found = store.evaluation_of_job(world.db, job.id)
    assert found is not None
    assert found.id == number


def test_answers_of_a_job_without_an_evaluation_are_passed_over(world: World) -> None:
    store.add_item_answer(world.db, world.job(), number=1, turn=0, text="red", finish=None, tokens=None)
    assert store.list_evaluations(world.db) == []


def test_a_grading_comes_back_as_it_was_and_may_be_done_again(world: World) -> None:
    _, number = begun(world, [item("a"), item("b")])
    grades = [grade("a", (0.5, 1.0)), grade("b", None, "the judge gave no grade")]
    replies = {"a/1": ("a", "I say 0.5")}
    first = store.add_grading(world.db, number, "gemini", grades, job_id=None, replies=replies, cost=0.25)
    other = store.add_grading(world.db, number, "rules", grades[:1])
    again = store.add_grading(world.db, number, "gemini", grades, replies=replies, cost=0.5)
    held = store.gradings_of(world.db, [number])
    assert [(one.id, one.grader, one.cost, one.grades, one.failures) for one in held] == [
        (again, "gemini", 0.5, 1, 1),
        (other, "rules", 0.0, 1, 0),
    ]
    assert first not in {one.id for one in held}
    kept = store.grades_of(world.db, again)
    assert [(one.id, one.sums, one.categories, one.why) for one in kept] == [
        ("a", (0.5, 1.0), ("open",), ""),
        ("b", None, ("open",), "the judge gave no grade"),
    ]
    assert store.replies_of(world.db, again) == replies
    with pytest.raises(NotFound, match="evaluation 99"):
        store.add_grading(world.db, 99, "rules", grades)


def test_an_official_file_is_imported_once(world: World) -> None:
    grades = [grade("81/1", (9.0, 1.0))]
    first = store.import_grades(world.db, USER, "mt-bench", "vicuna-13b", "gpt-4_single.jsonl", grades)
    again = store.import_grades(world.db, USER, "mt-bench", "vicuna-13b", "gpt-4_single.jsonl", grades)
    assert first == again
    assert len(store.gradings_of(world.db, [first])) == 1
    found = store.get_evaluation(world.db, first)
    assert (found.job_id, found.items, found.purpose) == (None, 0, "reporting")
    with pytest.raises(UserError, match="no grades"):
        store.import_grades(world.db, USER, "mt-bench", "x", "f.jsonl", [])


def test_a_deleted_evaluation_is_gone_from_the_table_and_can_come_back(world: World) -> None:
    _, number = begun(world, [item("a")])
    store.set_deleted(world.db, number, True)
    assert store.list_evaluations(world.db, "easy-vqa") == []
    with pytest.raises(NotFound):
        store.get_evaluation(world.db, number)
    store.set_deleted(world.db, number, False)
    assert [one.id for one in store.list_evaluations(world.db, "easy-vqa")] == [number]
    with pytest.raises(NotFound):
        store.set_deleted(world.db, 99, True)
