"""The paper in miniature: what is run, once each, gone on with, and refused where it would mix things up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from filelock import FileLock

from factories import USER, World
from jobs import paper, paper_plan, queue, steering
from jobs.benchmarks.registry import BENCHMARKS
from jobs.configs import parse_config
from jobs.paper import Paper
from jobs.paper_plan import FULL, QUICK
from storage import jobs as store
from storage.adapters import add_adapter
from storage.errors import PlumbError, UserError
from storage.lifecycle import JobStatus
from storage.records import Job

SMALL = replace(QUICK, samples=12)


@pytest.fixture
def started(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Every job that is submitted is done at once; trainings leave an adapter."""
    told: list[tuple[str, dict[str, Any]]] = []

    def submit(db: Any, settings: Any, kind: str, values: dict[str, Any], user: str) -> Job:
        config = parse_config(kind, values)
        told.append((kind, values))
        job = store.add_job(db, kind=kind, config=config.model_dump(mode="json"), user=USER, slot_kind="device")
        db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [job.id])
        if kind in paper_plan.METHODS:
            add_adapter(db, job, values["name"], f"{job.id:064x}", 1, "demo", kind)
        if kind == "judge":  # as if candidates had been made and scored
            for number, scores in enumerate(([4, 0], [0, 4], [4, 1])):
                world.judged(world.sample(number), scores)
        return job

    monkeypatch.setattr(queue, "submit", submit)
    monkeypatch.setattr(paper, "import_easy_vqa", lambda *_, **__: 0)
    return told


def test_every_step_is_run_once_and_a_second_start_runs_none(
    world: World, started: list[tuple[str, dict[str, Any]]]
) -> None:
    lines: list[str] = []
    found = Paper(world.db, world.settings, SMALL, "", lines.append).run()
    kinds = [kind for kind, _ in started]
    assert kinds[:2] == ["generate", "judge"]
    assert kinds[2:8] == ["sft", "steerlm", "rejection", "dpo", "dpo", "dpo"]
    assert set(kinds[8:]) == {"evaluate"}
    assert len(found) == len(kinds[8:])
    asked = {
        (values["model"], values["adapter"], values["benchmark"]) for kind, values in started if kind == "evaluate"
    }
    assert len(asked) == len(found), "each model answers each benchmark once"
    assert ("demo-text", None, "text-tasks") in asked
    assert not any(model == "demo-text" and name.startswith("easy") for model, _, name in asked), "it sees nothing"
    number = len(started)
    again = Paper(world.db, world.settings, SMALL, "", lines.append).run()
    assert len(started) == number
    assert [job.id for _, job in again] == [job.id for _, job in found]


def test_what_was_interrupted_goes_on(
    world: World, started: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Paper(world.db, world.settings, SMALL, "", lambda text: None).run()
    state = json.loads((world.folder.root / paper.STATE).read_text())
    stopped = state["jobs"]["train dpo"]
    world.db.conn.execute("UPDATE jobs SET status = 'stopped' WHERE id = ?", [stopped])
    resumed: list[int] = []

    def resume(db: Any, settings: Any, job_id: int) -> Job:
        resumed.append(job_id)
        db.conn.execute(
            "UPDATE jobs SET status = ? WHERE id = ?", ["failed" if len(resumed) == 1 else "done", job_id]
        )
        return store.get_job(db, job_id)

    monkeypatch.setattr(steering, "resume", resume)
    with pytest.raises(PlumbError, match=f"train dpo: job {stopped} is failed"):
        Paper(world.db, world.settings, SMALL, "", lambda text: None).run()
    Paper(world.db, world.settings, SMALL, "", lambda text: None).run()
    assert resumed == [stopped, stopped]
    assert store.get_job(world.db, stopped).status is JobStatus.DONE


def test_another_size_and_other_work_are_refused(world: World, started: list[tuple[str, dict[str, Any]]]) -> None:
    Paper(world.db, world.settings, SMALL, "", lambda text: None).run()
    with pytest.raises(UserError, match="samples was 12 and is 13"):
        Paper(world.db, world.settings, replace(SMALL, samples=13), "", lambda text: None)
    with pytest.raises(UserError, match="ifeval was False and is True"):
        Paper(world.db, world.settings, SMALL, "input_data.jsonl", lambda text: None)
    (world.folder.root / paper.STATE).unlink()
    with pytest.raises(UserError, match="holds other work"):
        Paper(world.db, world.settings, SMALL, "", lambda text: None)


def test_two_do_not_work_in_one_folder(world: World) -> None:
    first = Paper(world.db, world.settings, SMALL, "", lambda text: None)
    with FileLock(world.folder.runtime / "paper.lock"), pytest.raises(UserError, match="another `jobs paper`"):
        first.run()
    assert world.db["samples"].count == 0


@pytest.mark.parametrize("scale", [QUICK, FULL])
def test_the_plan_fits_the_forms(scale: paper_plan.Scale) -> None:
    assert set(scale.limits) < set(BENCHMARKS)
    names = [one.name for one in paper_plan.trainings(scale)]
    assert len(set(names)) == len(names)
    for one in paper_plan.evaluations(scale, "input_data.jsonl"):
        parse_config("evaluate", {"model": one.model, "benchmark": one.benchmark, **one.settings})
