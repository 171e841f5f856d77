"""What people undo, hold or lose while jobs run takes nothing else with it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from factories import World
from jobs import housekeeping, pushed
from jobs.checkpoints import drop_torn
from jobs.download import is_inside
from jobs.events import apply
from jobs.runs import RunFolder
from storage import jobs as store
from storage import repair
from storage.lifecycle import JobStatus
from storage.records import METRICS, Job
from storage.scores import get_judgements
from storage.settings import put_setting


def test_an_answer_that_was_undone_does_not_lose_the_other_judgements(world: World) -> None:
    sample_id = world.sample()
    candidates = [one.id for one in world.candidates(sample_id, ("red", "blue"))]
    job = world.job("judge")
    attempt = store.start_attempt(world.db, job.id)
    world.db.conn.execute("DELETE FROM candidates WHERE id = ?", [candidates[0]])
    event = {
        "kind": "judgement",
        "sample_id": sample_id,
        "rater": {"name": "rules", "version": "1", "mode": ""},
        "state": "ok",
        "scores": [{"candidate_id": one, **dict.fromkeys(METRICS, 3)} for one in candidates],
    }
    apply(world.db, attempt, job, event)
    (judgement,) = get_judgements(world.db, [sample_id])[sample_id]
    assert [score.candidate_id for score in judgement.scores] == candidates[1:]
    assert "1 of its answers was undone meanwhile" in judgement.note


def test_a_held_queue_fails_no_follower(world: World) -> None:
    leader = world.job("judge")
    follower = store.add_job(
        world.db, kind="judge", config={}, user="ada", slot_kind="network", after_id=leader.id
    )
    store.move(world.db, leader.id, JobStatus.STARTING)
    store.move(world.db, leader.id, JobStatus.FAILED, "restored")
    keeping = housekeeping.Housekeeping(world.settings, housekeeping.Complaints())
    put_setting(world.db, store.HELD, {"user": "ada", "since": "2026-11-23"})
    keeping.tidy(world.db)
    assert store.get_job(world.db, follower.id).status is JobStatus.QUEUED
    put_setting(world.db, store.HELD, None)
    keeping.tidy(world.db)
    assert store.get_job(world.db, follower.id).status is JobStatus.FAILED


def test_a_job_that_cannot_start_keeps_no_device_from_others(world: World) -> None:
    wide, narrow = (
        store.add_job(world.db, kind="dpo", config={}, user="ada", slot_kind="device") for _ in range(2)
    )

    def wanted(job: Job) -> tuple[tuple[str, ...], int]:
        return ("cuda:1",), 2 if job.id == wide.id else 1  # cuda:0 is somebody else's

    claimed = store.claim_next(world.db, "device", "cuda:0", "cuda:1", wanted=wanted)
    assert claimed is not None
    assert claimed.id == narrow.id


def test_a_checkpoint_that_cannot_be_read_just_now_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")

    def failing(*_: object, **__: object) -> str:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", failing)
        drop_torn(tmp_path)
    assert checkpoint.exists()
    (checkpoint / "trainer_state.json").write_text('{"torn')
    drop_torn(tmp_path)
    assert not checkpoint.exists()


def test_a_disk_that_fails_is_no_damaged_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("storage.upkeep.damage", failing)
    monkeypatch.setattr(repair, "recover", lambda folder: pytest.fail("it was taken for damaged"))
    with pytest.raises(Exception, match="disk I/O error"):
        repair.repair(world.folder)


def test_a_stop_makes_no_folder_where_one_was_moved_away(tmp_path: Path) -> None:
    RunFolder(tmp_path / "gone").ask_to_stop()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("name", "inside"),
    [("model.safetensors", True), ("chat/x.json", True), ("../x", False), ("/etc/x", False), ("a//b", False)],
)
def test_a_hubs_names_stay_where_they_are_put(name: str, inside: bool) -> None:
    assert is_inside(name) is inside


def test_raters_in_an_unknown_form_are_not_pushed() -> None:
    card = pushed.without_people("| raters | ada lovelace, 3 pairs |\n")
    assert "ada" not in card
