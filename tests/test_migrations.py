"""A database of any landed version opens. Append a case with each migration that lands."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database

from jobs.configs import TrainConfig, parse_config
from jobs.freezing import contents_of, freeze
from jobs.packing_training import pack_training
from storage import history, jobs, pairs
from storage.database import connect, migrate
from storage.datasets import dataset_rows, get_dataset, hash_rows
from storage.errors import UserError
from storage.folder import DataFolder
from storage.migrations import migrations
from storage.records import METRICS, Score
from storage.samples import add_sample
from storage.scores import add_judgement, ensure_rater, get_judgements, set_score
from storage.upkeep import check

LANDED = ["m001_create_tables", "m002_keep_judges_calls", "m003_keep_trainings", "m004_keep_the_queue"]
SCHEMAS = {
    "m001_create_tables": "fbcd94436629b250",
    "m002_keep_judges_calls": "462d3597a1be3c22",
    "m003_keep_trainings": "baf5ad91d97c2078",
    "m004_keep_the_queue": "bba9cfd7dee06aab",
}


def test_migrations_are_only_appended() -> None:
    names = [migration.name for migration in migrations.pending(Database(memory=True))]
    assert names[: len(LANDED)] == LANDED
    assert names == LANDED, "add the new migration to LANDED, and a test that fills a database of the one before"
    assert all(name.startswith(f"m{number:03}_") for number, name in enumerate(names, start=1))


def test_from_blank_and_again(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path).create()
    assert migrate(folder) == LANDED
    assert migrate(folder) == []
    db = connect(folder)
    assert db.conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert check(db, folder) == []
    db.close()


def open_at(folder: DataFolder, last: str) -> Database:
    """A database as the version left it whose latest migration is `last`."""
    db = connect(folder)
    following = LANDED[LANDED.index(last) + 1 :]
    migrations.apply(db, stop_before=following[0] if following else None)
    return db


def schema_at(tmp_path: Path, last: str) -> str:
    """A hash of the schema that the migrations up to `last` make."""
    db = open_at(DataFolder(tmp_path).create(), last)
    schema = [
        " ".join(row[0].split())
        for row in db.conn.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT GLOB '*_fts*'"
            " AND name NOT GLOB '_sqlite*' ORDER BY name"
        )
    ]
    db.close()
    return hashlib.sha256("\n".join(schema).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("last", "expected"), SCHEMAS.items())
def test_a_landed_schema_is_what_it_was(tmp_path: Path, last: str, expected: str) -> None:
    """If this fails, a landed migration was edited: databases in the field would differ from new ones."""
    assert schema_at(tmp_path, last) == expected


def test_labels_of_the_first_version_stay_and_can_still_be_undone(tmp_path: Path) -> None:
    """Later migrations add columns that the undo log of earlier actions does not know."""
    folder = DataFolder(tmp_path).create()
    db = open_at(folder, "m001_create_tables")
    messages = [{"role": "user", "content": "what shape is it?"}]
    sample_id = add_sample(db, "easy-vqa", "1", messages, "circle")
    assert sample_id is not None
    db.conn.execute("INSERT INTO users VALUES ('ada', '2026-11-22')")
    db.conn.execute(
        "INSERT INTO candidates (sample_id, text, author, created_at) VALUES (?, 'a circle', 'ada', '2026-11-22')",
        [sample_id],
    )
    for value in (1, 4):
        with contextlib.suppress(sqlite3.OperationalError):  # the answer reads tables that come later
            set_score(db, "ada", 1, "correctness", value)
    db.close()

    assert migrate(folder) == LANDED[1:]
    db = connect(folder)
    assert get_judgements(db, [sample_id])[sample_id][0].scores == (Score(1, correctness=4),)
    history.undo(db, "ada")
    assert get_judgements(db, [sample_id])[sample_id][0].scores == (Score(1, correctness=1),)
    history.undo(db, "ada")
    assert get_judgements(db, [sample_id])[sample_id] == []
    assert check(db, folder) == []
    db.close()


def freeze_as_before(db: Database, name: str) -> str:
    """What version 0.2 stored when accepted pairs were frozen: the pairs alone; returns the hash."""
    rows = [
        {
            "pair_id": view.pair.id,
            "sample_id": view.pair.sample_id,
            "messages": [{"role": "user", "content": view.question}],
            "chosen": view.chosen,
            "rejected": view.rejected,
            "origin": view.pair.origin,
            "chosen_quality": None,
            "rejected_quality": None,
            "images": [f"sample:{view.pair.sample_id}"],
        }
        for view in pairs.list_pairs(db)
    ]
    splits = ["train"] * (len(rows) - 1) + ["heldout"]
    counts: dict[str, float] = {"train": len(rows) - 1, "heldout": 1, "samples": len(rows)}
    counts |= {"chosen_characters": 9.0, "rejected_characters": 3.0}
    digest = hashlib.sha256()
    for split, row in zip(splits, rows, strict=True):
        content = {key: row[key] for key in ("messages", "chosen", "rejected")}
        digest.update(json.dumps([split, content], ensure_ascii=False, sort_keys=True).encode() + b"\n")
    rule = {"statuses": ["accepted"], "heldout_percent": 25.0, "seed": 0}
    db.conn.execute(
        "INSERT INTO datasets (name, hash, rule, counts, user, created_at) VALUES (?, ?, ?, ?, 'ada', '2026')",
        [name, digest.hexdigest(), json.dumps(rule), json.dumps(counts)],
    )
    db.conn.executemany(
        "INSERT INTO dataset_rows (dataset_id, position, split, sample_id, pair_id, row)"
        " VALUES (1, ?, ?, ?, ?, ?)",
        [
            (place, split, row["sample_id"], row["pair_id"], json.dumps(row))
            for place, (split, row) in enumerate(zip(splits, rows, strict=True))
        ],
    )
    return digest.hexdigest()


def training(kind: str, dataset: str) -> TrainConfig:
    config = parse_config(kind, {"dataset": dataset})
    assert isinstance(config, TrainConfig)
    return config


def test_a_data_set_of_the_second_version_trains_dpo_and_can_be_frozen_again(tmp_path: Path) -> None:
    """Its rows become pairs, its hash stays; what the other methods need wasn't kept yet, and they say so."""
    folder = DataFolder(tmp_path).create()
    db = open_at(folder, "m002_keep_judges_calls")
    db.conn.execute("INSERT INTO users VALUES ('ada', '2026-11-22')")
    rater = ensure_rater(db, "judge", "gemini", "plumb-1", "together")
    for number in range(1, 5):
        messages = [{"role": "user", "content": f"what shape is {number}?"}]
        sample_id = add_sample(db, "easy-vqa", str(number), messages, "circle")
        ids = []
        for text in (f"a circle {number}", "no"):
            cursor = db.conn.execute(
                "INSERT INTO candidates (sample_id, text, author, created_at) VALUES (?, ?, 'ada', '2026')",
                [sample_id, text],
            )
            ids.append(int(cursor.lastrowid or 0))
        pairs.choose_by_hand(db, "ada", *ids)
        assert sample_id is not None
        scores = [{"candidate_id": one, **dict.fromkeys(METRICS, place)} for place, one in enumerate(ids)]
        add_judgement(db, rater_id=rater, sample_id=sample_id, job_id=None, state="ok", scores=scores)
    digest = freeze_as_before(db, "old")
    db.close()

    assert migrate(folder) == ["m003_keep_trainings", "m004_keep_the_queue"]
    db = connect(folder)
    dataset = get_dataset(db, "old")
    rows = dataset_rows(db, dataset.id)
    assert [(row.kind, row.split) for row in rows] == [("pair", "train")] * 3 + [("pair", "heldout")]
    assert dataset_rows(db, dataset.id, kind="sample") == []
    assert dataset.hash == digest == hash_rows([row.split for row in rows], [row.row for row in rows])
    assert contents_of(dataset) is None
    freight = pack_training(db, training("dpo", "old"))
    assert [row["split"] for row in freight.rows] == ["train", "train", "train", "heldout"]
    assert json.loads(freight.files["lineage.json"])["raters"] == []
    for kind in ("steerlm", "rejection", "sft"):
        with pytest.raises(UserError, match=f"'old' was frozen before .* by {kind}. Freeze its pairs again"):
            pack_training(db, training(kind, "old"))

    again = freeze(db, "ada", "new", heldout_percent=25)
    assert str(contents_of(again)) == "4 pairs, 4 samples with 8 scored answers, 4 references"
    assert get_dataset(db, "old") == dataset
    counts = {kind: len(pack_training(db, training(kind, "new")).rows) for kind in ("steerlm", "rejection", "sft")}
    assert counts == {"steerlm": 8 + 1, "rejection": 4 + 1, "sft": 4 + 1}
    assert check(db, folder) == []
    db.close()


def test_jobs_of_the_third_version_keep_their_order_and_their_attempts(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path).create()
    db = open_at(folder, "m003_keep_trainings")
    db.conn.execute("INSERT INTO users VALUES ('ada', '2026-11-22')")
    for status in ("failed", "queued", "queued"):
        db.conn.execute(
            "INSERT INTO jobs (kind, status, config, slot_kind, user, created_at)"
            " VALUES ('judge', ?, '{}', 'network', 'ada', '2026-11-22')",
            [status],
        )
    db.conn.execute(
        "INSERT INTO attempts (job_id, number, event_offset, outcome, reason, started_at, ended_at)"
        " VALUES (1, 1, 99, 'failed', 'a wrong key', '2026-11-22', '2026-11-22')"
    )
    db.close()

    assert migrate(folder) == LANDED[3:]
    db = connect(folder)
    assert [job.id for job in jobs.queued_jobs(db)] == [2, 3]
    (attempt,) = jobs.attempts_of(db, 1)
    assert (attempt.reason, attempt.cause, attempt.log_begin, attempt.log_end) == ("a wrong key", "", 0, None)
    assert jobs.start_attempt(db, 1).event_offset == 99
    claimed = jobs.claim_next(db, "network", "network-0")
    assert claimed is not None
    assert claimed.id == 2
    db.close()
