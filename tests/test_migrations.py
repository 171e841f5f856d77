"""A database of any landed version opens. Append a case with each migration that lands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlite_utils import Database

from jobs.configs import TrainConfig, parse_config
from jobs.freezing import contents_of, freeze
from jobs.packing_training import pack_training
from storage import history, jobs, pairs
from storage.chats import get_conversation
from storage.database import connect, migrate
from storage.datasets import dataset_rows, get_dataset, hash_rows
from storage.errors import UserError
from storage.finding import SampleFilter, find_ids, total
from storage.folder import DataFolder
from storage.migrations import migrations
from storage.queues import Queue, next_in_queue
from storage.records import METRICS, Score
from storage.samples import add_sample
from storage.scores import add_judgement, ensure_rater, get_judgements
from storage.speakers import Speaker, speakers_of
from storage.upkeep import check
from storage.votes import votes_of

LANDED = [
    "m001_create_tables",
    "m002_keep_judges_calls",
    "m003_keep_trainings",
    "m004_keep_the_queue",
    "m005_keep_contests",
    "m006_keep_the_annotators_day",
    "m007_find_samples",
    "m008_evaluate",
]
SCHEMAS = {
    "m001_create_tables": "fbcd94436629b250",
    "m002_keep_judges_calls": "462d3597a1be3c22",
    "m003_keep_trainings": "baf5ad91d97c2078",
    "m004_keep_the_queue": "bba9cfd7dee06aab",
    "m005_keep_contests": "ba8e209edc4b5753",
    "m006_keep_the_annotators_day": "3d2b3fd2c0053160",
    "m007_find_samples": "8866782db25479c8",
    "m008_evaluate": "e5fbfb419b71de2f",
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
    db = connect(folder, create=True)
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


def score_as_before(db: Database, sample_id: int, values: Sequence[int]) -> None:
    """What version 0.1 stored when ada scored the correctness of candidate 1, again and again."""

    def row(table: str) -> dict[str, object]:
        cursor = db.conn.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description]
        return dict(zip(names, cursor.fetchone(), strict=True))

    db.conn.execute("INSERT INTO raters (kind, name) VALUES ('person', 'ada')")
    before: dict[str, object] | None = None
    for value in values:
        changes: list[tuple[str, dict[str, int], dict[str, object] | None, dict[str, object]]] = []
        if before is None:
            db.conn.execute(
                "INSERT INTO judgements (rater_id, sample_id, state, created_at) VALUES (1, ?, 'ok', '2026')",
                [sample_id],
            )
            changes.append(("judgements", {"id": 1}, None, row("judgements")))
            db.conn.execute(f"INSERT INTO scores (judgement_id, candidate_id, correctness) VALUES (1, 1, {value})")
        else:
            db.conn.execute(f"UPDATE scores SET correctness = {value}")
        changes.append(("scores", {"judgement_id": 1, "candidate_id": 1}, before, before := row("scores")))
        action = db.conn.execute(
            "INSERT INTO actions (user, label, sample_id, created_at) VALUES ('ada', 'correctness', ?, '2026')",
            [sample_id],
        ).lastrowid
        for position, (table, key, was, now) in enumerate(changes):
            db.conn.execute(
                "INSERT INTO changes (action_id, position, table_name, row_key, before, after)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [action, position, table, json.dumps(key), was and json.dumps(was), json.dumps(now)],
            )


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
    score_as_before(db, sample_id, (1, 4))
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
        db.conn.execute(
            "INSERT INTO pairs (sample_id, chosen_id, rejected_id, origin, status, user, created_at)"
            " VALUES (?, ?, ?, 'hand', 'accepted', 'ada', '2026')",
            [sample_id, *ids],
        )
        assert sample_id is not None
        scores = [{"candidate_id": one, **dict.fromkeys(METRICS, place)} for place, one in enumerate(ids)]
        add_judgement(db, rater_id=rater, sample_id=sample_id, job_id=None, state="ok", scores=scores)
    digest = freeze_as_before(db, "old")
    db.close()

    assert migrate(folder) == LANDED[2:]
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


def test_a_blind_conversation_of_the_fourth_version_keeps_its_speakers_and_its_vote(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path).create()
    db = open_at(folder, "m004_keep_the_queue")
    settings = json.dumps({"model": "demo", "adapters": [None, None], "blind": True, "system": "Be brief."})
    words = json.dumps([{"type": "text", "text": "What?"}])
    for statement in (
        "INSERT INTO users VALUES ('ada', '2026-11-23')",
        f"INSERT INTO conversations (user, settings, created_at) VALUES ('ada', '{settings}', '2026-11-23')",
    ):
        db.conn.execute(statement)
    for position, column, role in ((0, None, "user"), (1, 0, "assistant"), (1, 1, "assistant")):
        db.conn.execute(
            "INSERT INTO turns (conversation_id, position, column_number, role, content, model, finish,"
            " created_at) VALUES (1, ?, ?, ?, ?, 'demo', 'stop', '2026-11-23')",
            [position, column, role, words],
        )
    db.conn.execute(
        "INSERT INTO votes (left_turn_id, right_turn_id, verdict, user, created_at)"
        " VALUES (2, 3, 'tie', 'ada', '2026-11-23')"
    )
    db.close()

    assert migrate(folder) == LANDED[4:]
    db = connect(folder)
    found = get_conversation(db, 1, "ada")
    assert (found.contest_id, [turn.settings for turn in found.turns]) == (None, [{}, {}, {}])
    assert speakers_of(found) == (Speaker("demo"), Speaker("demo"))
    assert [vote.best for vote in votes_of(db, 1, "ada").values()] == ["tie"]
    assert check(db, folder) == []
    db.close()


@pytest.mark.parametrize("last", LANDED[:-1])
def test_samples_of_earlier_versions_are_found_by_what_was_known_of_them(tmp_path: Path, last: str) -> None:
    """Their facts are made from what is there; the search finds what the old one found, and answers too."""
    folder = DataFolder(tmp_path).create()
    db = open_at(folder, last)
    db.conn.execute("INSERT INTO users (name, created_at) VALUES ('ada', '2026')")
    db.conn.execute("INSERT INTO raters (kind, name) VALUES ('person', 'ada'), ('judge', 'gemini')")
    for number, split in enumerate(("train", "train", "test", None), start=1):
        messages = [{"role": "user", "content": f"what shape is number {number}?"}]
        assert add_sample(db, "easy-vqa", str(number), messages, "circle", split) == number
    for statement in (
        "INSERT INTO candidates (sample_id, text, author, created_at) VALUES (1, 'round', 'ada', '2026'),"
        " (1, 'no', 'ada', '2026'), (2, 'square', 'ada', '2026')",
        "INSERT INTO judgements (rater_id, sample_id, state, created_at) VALUES (1, 1, 'ok', '2026'),"
        " (2, 1, 'ok', '2026'), (2, 2, 'blocked', '2026')",
        "INSERT INTO scores (judgement_id, candidate_id, correctness) VALUES (1, 1, 4), (2, 1, 1), (2, 2, 0)",
        "INSERT INTO pairs (sample_id, chosen_id, rejected_id, origin, status, user, created_at)"
        " VALUES (1, 1, 2, 'hand', 'accepted', 'ada', '2026')",
    ):
        db.conn.execute(statement)
    if last == "m006_keep_the_annotators_day":
        db.conn.execute("INSERT INTO discards VALUES (4, 'ada', '2026')")
        db.conn.execute("INSERT INTO notes (sample_id, user, text, created_at) VALUES (3, 'ada', 'odd', '2026')")
    db.close()

    assert migrate(folder) == LANDED[LANDED.index(last) + 1 :]
    db = connect(folder)
    rest = [3] if last == "m006_keep_the_annotators_day" else [3, 4]
    for where, expected in (
        (SampleFilter(), [1, 2, *rest]),
        (SampleFilter(split="train"), [1, 2]),
        (SampleFilter(q="number shape"), [1, 2, *rest]),
        (SampleFilter(q="roun"), [1]),
        (SampleFilter(q="odd"), [3] if rest == [3] else []),
        (SampleFilter(state="scored by people"), [1]),
        (SampleFilter(state="blocked"), [2]),
        (SampleFilter(state="no candidates"), rest),
        (SampleFilter(state="discarded"), [4] if rest == [3] else []),
        (SampleFilter(state="paired", rater="gemini", metric="correctness", low="4", gap="3"), [1]),
        (SampleFilter(order="longest answer"), [2, 1]),
    ):
        assert find_ids(db, where) == expected, where
        assert total(db, where).number == len(expected)
    found = next_in_queue(db, "ada", Queue("unscored"))
    assert found is not None
    assert found.id == 2
    assert check(db, folder) == []
    db.close()
