"""Checklists: versions by models and by people, beside the sample, their points under the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from factories import USER, World, metrics_of
from jobs.settings import local_user
from storage import history
from storage.candidates import candidates_of
from storage.checklists import (
    MOST_CHARACTERS,
    MOST_ITEMS,
    add_checklist,
    checklists_of,
    edit_checklist,
    latest_checklists,
)
from storage.errors import Conflict, NotFound, UserError
from storage.records import ChecklistItem
from storage.scores import add_judgement, ensure_rater
from test_samples_page import EVIL, Shape
from workbench.context import Context
from workbench.door import Door
from workbench.pages import samples as page
from workbench.ui import build_api

ITEMS = [ChecklistItem("Names the shape.", True), ChecklistItem("Is a whole sentence.", False)]


@pytest.fixture
def web(context: Context) -> TestClient:
    return TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")


def written(world: World, sample: int, state: str = "ok", **values: Any) -> None:
    """A checklist by a model, from a job of its own."""
    items = [{"text": item.text, "essential": item.essential} for item in ITEMS] if state == "ok" else []
    defaults: dict[str, Any] = {"job_id": world.job("checklist").id, "model": "the-model", "instructions": "3"}
    add_checklist(world.db, sample_id=sample, state=state, items=items, **{**defaults, **values})  # type: ignore[arg-type]


def judged(world: World, sample: int, met: dict[int, bool], checklist_id: int | None) -> None:
    """A judge's scores for the sample's candidates, with the same points for each."""
    found = candidates_of(world.db, [sample])[sample]
    add_judgement(
        world.db,
        rater_id=ensure_rater(world.db, "judge", "the-judge", "plumb-1", "all answers together, with checklist"),
        sample_id=sample,
        job_id=None,
        state="ok",
        scores=[{"candidate_id": one.id, **metrics_of(7)} for one in found],
        checklist_id=checklist_id,
        points=[{"candidate_id": one.id, "number": n, "met": yes} for one in found for n, yes in met.items()],
    )


# --- versions ---


def test_an_edit_is_a_new_version_and_can_be_undone(world: World) -> None:
    sample = world.sample()
    written(world, sample)
    edited = edit_checklist(world.db, USER, sample, [ChecklistItem("  Names\n the   shape. ", False)])
    assert (edited.version, edited.author, edited.model, edited.job_id) == (2, USER, None, None)
    assert edited.items == (ChecklistItem("Names the shape.", False),)
    assert edited.instructions == "3", "of the text that the first version was asked for with"
    assert [one.version for one in checklists_of(world.db, sample)] == [1, 2]
    assert history.undo(world.db, USER).label == f"checklist of sample {sample}"
    assert latest_checklists(world.db, [sample])[sample].model == "the-model"


def test_the_same_items_again_make_no_version(world: World) -> None:
    sample = world.sample()
    first = edit_checklist(world.db, USER, sample, ITEMS)
    spaced = [ChecklistItem(f" {item.text}", item.essential) for item in ITEMS]
    assert edit_checklist(world.db, "bob", sample, spaced) == first
    other = edit_checklist(world.db, "bob", sample, [ChecklistItem(item.text, True) for item in ITEMS])
    assert other.version == 2
    with pytest.raises(NotFound, match="nothing to undo"):
        history.undo(world.db, "carl")


def test_a_failed_version_never_holds(world: World) -> None:
    sample = world.sample()
    edit_checklist(world.db, USER, sample, ITEMS)
    written(world, sample, "blocked", reason="safety")
    assert latest_checklists(world.db, [sample])[sample].version == 1
    assert edit_checklist(world.db, USER, sample, ITEMS[:1]).version == 3


def test_all_items_can_be_taken_away(world: World) -> None:
    sample = world.sample()
    with pytest.raises(UserError, match="has no items; write at least one"):
        edit_checklist(world.db, USER, sample, [])
    edit_checklist(world.db, USER, sample, ITEMS)
    assert edit_checklist(world.db, USER, sample, []).items == ()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a", " \n\t "], "Item 2 of the checklist is empty"),
        (["a"] * (MOST_ITEMS + 1), f"has {MOST_ITEMS + 1} items; {MOST_ITEMS} are the most"),
        (["b" * (MOST_CHARACTERS + 1)], "Item 1 of the checklist has 2,001 characters; 2,000 are the most"),
    ],
)
def test_what_a_judge_could_not_use_is_refused(world: World, web: TestClient, texts: list[str], said: str) -> None:
    sample = world.sample()
    with pytest.raises(UserError, match=said):
        edit_checklist(world.db, USER, sample, [ChecklistItem(text, True) for text in texts])
    body = {"sample": sample, "items": [{"text": text, "essential": True} for text in texts]}
    answer = web.post("/api/checklist", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert checklists_of(world.db, sample) == []


def test_the_most_that_is_allowed_is_kept(world: World) -> None:
    long = "é" * (MOST_CHARACTERS - 3)
    items = [ChecklistItem(f"{number} {long}", False) for number in range(10, 10 + MOST_ITEMS)]
    assert edit_checklist(world.db, USER, world.sample(), items).items == tuple(items)


def test_an_edit_that_a_judge_has_used_is_not_undone(world: World, web: TestClient) -> None:
    sample = world.sample()
    world.candidates(sample, ["a", "b"])
    told = web.post("/api/checklist", json={"sample": sample, "items": [{"text": "a", "essential": True}]}).json()
    judged(world, sample, {1: True}, told["checklist"])
    answer = web.post("/api/undo")
    assert answer.status_code == 409
    assert f"“checklist of sample {sample}” cannot be undone: something was built on it" in answer.json()["error"]
    assert latest_checklists(world.db, [sample])[sample].id == told["checklist"]
    with pytest.raises((Conflict, NotFound)):
        history.undo(world.db, local_user())


# --- the endpoint ---


def test_a_checklist_is_saved_and_undone_by_its_user(world: World, web: TestClient) -> None:
    sample = world.sample()
    body = {"sample": sample, "items": [{"text": EVIL, "essential": True}, {"text": "b", "essential": False}]}
    told = web.post("/api/checklist", json=body).json()
    stored = latest_checklists(world.db, [sample])[sample]
    assert told["before"] != told["stamp"] == history.stamp(world.db, sample)
    assert told.items() >= {"sample": sample, "checklist": stored.id, "version": 1}.items()
    assert stored.author == local_user()
    assert [(item.text, item.essential) for item in stored.items] == [(EVIL, True), ("b", False)]
    again = web.post("/api/checklist", json=body).json()
    assert again == {**told, "before": told["stamp"]}, "sent twice, kept once"
    assert web.post("/api/undo").json()["sample"] == sample
    assert checklists_of(world.db, sample) == []


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"sample": 99, "items": [{"text": "a", "essential": True}]}, 404, "no sample 99"),
        ({"sample": 1, "items": [{"text": "a"}]}, 422, "items.0.essential"),
        ({"sample": 1, "items": [{"text": "a", "essential": "yes"}]}, 422, "items.0.essential"),
        ({"sample": 1, "items": [{"text": 3, "essential": True}]}, 422, "items.0.text"),
        ({"sample": 1, "items": [{"text": "a", "essential": True, "id": 3}]}, 422, "items.0.id"),
        ({"sample": 1, "items": "a"}, 422, "items"),
        ({"sample": 1}, 422, "items"),
        ({"sample": "1", "items": []}, 422, "sample"),
        ({"sample": 1, "items": [], "user": "eve"}, 422, "user"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(
    world: World, web: TestClient, body: Any, status: int, said: str
) -> None:
    sample = world.sample()
    answer = web.post("/api/checklist", json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert checklists_of(world.db, sample) == []


def test_half_a_character_is_refused(world: World, web: TestClient) -> None:
    """A lone surrogate is JSON, but no text that can be stored."""
    sample = world.sample()
    raw = '{"sample": %d, "items": [{"text": "\\ud800", "essential": true}]}' % sample  # noqa: UP031
    answer = web.post("/api/checklist", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "Item 1 of the checklist holds half a character" in answer.json()["error"]


# --- beside the sample ---


def section(context: Context, sample: int) -> Shape:
    detail = page.show(context, USER, f"?sample={sample}").detail
    return Shape(detail[detail.index('<section class="pb-checklist"') : detail.index('<section class="pb-right"')])


def test_a_sample_without_one_offers_both_ways(world: World, context: Context) -> None:
    shape = section(context, world.sample())
    assert "No checklist" in shape.text
    assert "Add a checklist" in shape.text
    assert len(shape.all(href="/jobs?kind=checklist")) == 1
    assert shape.all(data_version="0", data_items="[]")


def test_essential_and_additional_items_stand_apart(world: World, context: Context) -> None:
    sample = world.sample()
    written(world, sample, cost=0.0004)
    shape = section(context, sample)
    assert "version 1 · written by the-model (job 1) · $0.0004" in shape.text
    assert "EssentialNames the shape.AdditionalIs a whole sentence." in shape.text
    assert [attributes["value"] for tag, attributes in shape.tags if tag == "li"] == ["1", "2"]
    edit_checklist(world.db, "bob", sample, [ITEMS[1], ITEMS[0]])
    shape = section(context, sample)
    assert "version 2 · edited by bob" in shape.text
    assert "EssentialNames the shape." in shape.text
    assert [attributes["value"] for tag, attributes in shape.tags if tag == "li"] == ["2", "1"], (
        "a judge's numbers"
    )
    edit_checklist(world.db, "bob", sample, [])
    assert "It has no items" in section(context, sample).text


def test_a_call_for_a_checklist_that_failed_is_seen(world: World, context: Context) -> None:
    sample = world.sample()
    written(world, sample, "unparseable", reason="no <JSON>", raw="Sure! <b>")
    shape = section(context, sample)
    assert "No checklist" in shape.text
    assert "the-model was asked for a checklist" in shape.text
    assert "unparseable no <JSON>" in shape.text
    assert "Sure! <b>" in shape.text
    assert len(shape.all(href="/jobs?kind=checklist")) == 2
    written(world, sample)
    shape = section(context, sample)
    assert "1 earlier attempt: unparseable" in shape.text
    assert "was asked for" not in shape.text
    written(world, sample, "blocked", reason="safety")
    shape = section(context, sample)
    assert "version 2" in shape.text
    assert "blocked safety" in shape.text


def test_points_stand_under_the_answer(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a", "b"])
    written(world, sample)
    judged(world, sample, {1: True, 2: False}, latest_checklists(world.db, [sample])[sample].id)
    edit_checklist(world.db, USER, sample, [ChecklistItem("Something else.", True)])
    shape = Shape(page.show(context, USER, "").detail)
    assert shape.text.count("Checklist 1 of 2 met") == 2
    assert shape.text.count("✓ metNames the shape. essential") == 2, "as in the version that was judged by"
    assert shape.text.count("✗ not metIs a whole sentence.") == 2
    assert "as the-judge reads it, version 1" in shape.text


def test_points_beyond_what_is_known_keep_their_number(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    judged(world, sample, {1: True, 2: True, 3: False}, None)
    shape = Shape(page.show(context, USER, "").detail)
    assert "Checklist 2 of 3 met" in shape.text
    assert "not metItem 3" in shape.text


def test_texts_of_a_checklist_are_escaped(world: World, context: Context) -> None:
    sample = world.sample()
    world.candidates(sample, ["a"])
    written(world, sample, "failed", reason=EVIL, raw=EVIL, model=EVIL)
    edit_checklist(world.db, EVIL, sample, [ChecklistItem(EVIL, True), ChecklistItem(EVIL + "2", False)])
    judged(world, sample, {1: True, 2: False}, latest_checklists(world.db, [sample])[sample].id)
    written(world, sample, "failed", reason=EVIL, raw=EVIL, model=EVIL)
    shape = Shape(page.show(context, USER, "").detail)
    assert "script" not in {tag for tag, _ in shape.tags}
    assert all(name[:2] != "on" for _, attributes in shape.tags for name in attributes)
    folded = " ".join(EVIL.split())
    assert shape.text.count(folded) >= 8
    held = next(attributes for _, attributes in shape.tags if "data-items" in attributes)
    assert [item["text"] for item in json.loads(held["data-items"] or "")] == [folded, folded + "2"]
