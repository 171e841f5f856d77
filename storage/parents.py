"""Rows that others name and that are gone, made again from what is known of them elsewhere."""

from __future__ import annotations

import json
from typing import Any

from sqlite_utils import Database

from storage.errors import PlumbError
from storage.folder import DataFolder
from storage.images import ensure_image
from storage.inspection import hash_file
from storage.lifecycle import JobStatus
from storage.records import now
from storage.rows import count, one
from storage.samples import question_of
from storage.users import ensure_user


def put_back(db: Database, folder: DataFolder, table: str, value: Any) -> str:
    """Make the row of `table` again whose key is `value`; how, in words, or "" where too little is known.

    Labels are worth more than the name of who gave them: a rater who is gone is replaced by a nameless one.
    """
    match table:
        case "users":
            ensure_user(db, str(value))
            return "named again"
        case "raters":
            db.conn.execute(
                "INSERT INTO raters (id, kind, name, version) VALUES (?, 'judge', ?, 'lost')",
                [value, f"rater {value}"],
            )
            return "replaced by a rater without a name"
        case "images":
            return _image(db, folder, str(value))
        case "samples":
            return _sample(db, int(value))
        case "jobs":
            return _job(db, folder, int(value))
    return ""


def _image(db: Database, folder: DataFolder, sha256: str) -> str:
    for path in sorted((folder.images / sha256[:2]).glob(f"{sha256}.*")):
        try:
            if hash_file(path) == sha256:
                ensure_image(db, folder, path.read_bytes(), path.name)
                return "noted again: its file is there"
        except (PlumbError, OSError):
            continue
    return ""


def _sample(db: Database, sample_id: int) -> str:
    """From a frozen data set, which has kept its messages."""
    found = one(
        db,
        "SELECT row FROM dataset_rows WHERE sample_id = ? ORDER BY kind DESC, dataset_id DESC LIMIT 1",
        [sample_id],
    )
    if found is None:
        return ""
    row = json.loads(found["row"])
    messages = row["messages"]
    db.conn.execute(
        "INSERT INTO samples (id, source, source_id, messages, question, reference, created_at)"
        " VALUES (?, 'recovered', ?, ?, ?, ?, ?)",
        [
            sample_id,
            str(sample_id),
            json.dumps(messages, ensure_ascii=False),
            question_of(messages),
            row.get("reference"),
            now(),
        ],
    )
    return "made again from a frozen data set"


def _job(db: Database, folder: DataFolder, job_id: int) -> str:
    """From the job.json of its run folder."""
    for place in (folder.run(job_id), folder.binned(job_id)):
        try:
            found = json.loads((place / "job.json").read_text(encoding="utf-8"))
            values = [found["kind"], json.dumps(found["config"]), found["user"], found["created_at"]]
            network = found["device"] == "network"
        except (OSError, ValueError, KeyError, TypeError):
            continue
        made = count(db, "SELECT count(*) FROM adapters WHERE job_id = ?", [job_id])
        ensure_user(db, found["user"])
        db.conn.execute(
            "INSERT INTO jobs (id, kind, config, user, created_at, slot_kind, status, reason, ended_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                job_id,
                *values,
                "network" if network else "device",
                JobStatus.DONE if made else JobStatus.FAILED,
                "Its row was lost and made again from its run folder.",
                now(),
            ],
        )
        return "made again from its run folder"
    return ""
