"""Statistics, checks and backups of a data folder."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from storage.errors import UserError
from storage.folder import DataFolder
from storage.images import image_path, thumbnail_path
from storage.records import Image
from storage.rows import count, rows

COUNTED = (
    "samples",
    "images",
    "candidates",
    "raters",
    "checklists",
    "judgements",
    "scores",
    "pairs",
    "datasets",
    "jobs",
    "adapters",
    "conversations",
    "votes",
    "actions",
)


def stats(db: Database, folder: DataFolder) -> dict[str, int]:
    """Rows of each table, and the bytes of the database."""
    counted = {table: count(db, f"SELECT count(*) FROM {table}") for table in COUNTED}
    return {**counted, "database_bytes": folder.database.stat().st_size}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and where."""

    kind: str
    what: str


def check(db: Database, folder: DataFolder) -> list[Finding]:
    """What is wrong with the database and its files; an empty list when nothing is.

    Covers SQLite's own integrity, foreign keys, rows that belong to nothing, and files that are missing or of
    another size.
    """
    found = [
        Finding("integrity", row["integrity_check"])
        for row in rows(db, "PRAGMA integrity_check")
        if row["integrity_check"] != "ok"
    ]
    found += [
        Finding("foreign key", f"{row['table']} row {row['rowid']} names a missing row of {row['parent']}")
        for row in rows(db, "PRAGMA foreign_key_check")
    ]
    found += [Finding("orphan", text) for text in _orphans(db)]
    for row in rows(db, "SELECT sha256, extension, width, height, bytes FROM images"):
        image = Image(**row)
        path = image_path(folder, image)
        if not path.exists():
            found.append(Finding("missing file", f"image {image.name}"))
        elif path.stat().st_size != image.bytes:
            found.append(Finding("damaged file", f"image {image.name} has {path.stat().st_size} bytes"))
        if not thumbnail_path(folder, image.sha256).exists():
            found.append(Finding("missing file", f"thumbnail of {image.sha256}"))
    for row in rows(db, "SELECT id, name, sha256 FROM adapters"):
        if not (folder.adapters / row["sha256"]).is_dir():
            found.append(Finding("missing file", f"adapter {row['id']} ({row['name']})"))
    for row in rows(db, "SELECT id FROM jobs"):
        if not (folder.run(row["id"]) / "job.json").exists():
            found.append(Finding("missing file", f"run folder of job {row['id']}"))
    return found


def _orphans(db: Database) -> list[str]:
    scores = count(
        db,
        """SELECT count(*) FROM scores s JOIN judgements j ON j.id = s.judgement_id
           JOIN candidates c ON c.id = s.candidate_id WHERE c.sample_id <> j.sample_id""",
    )
    pairs = count(
        db,
        """SELECT count(*) FROM pairs p JOIN candidates a ON a.id = p.chosen_id
           JOIN candidates b ON b.id = p.rejected_id
           WHERE a.sample_id <> p.sample_id OR b.sample_id <> p.sample_id""",
    )
    empty = count(
        db,
        """SELECT count(*) FROM datasets d
           WHERE NOT EXISTS (SELECT 1 FROM dataset_rows r WHERE r.dataset_id = d.id)""",
    )
    named = {"scores of another sample": scores, "pairs across samples": pairs, "data sets without rows": empty}
    return [f"{number} {what}" for what, number in named.items() if number]


def backup(folder: DataFolder, target: Path) -> int:
    """Copy the database while others use it; returns the copy's bytes. Images and adapters are not in it.

    Raises:
        UserError: the target is there already, or cannot be written.
    """
    if target.exists():
        raise UserError(f"{target} is there already; name a file that is not.")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        source = sqlite3.connect(f"{folder.database.as_uri()}?mode=ro", uri=True)
        copy = sqlite3.connect(draft)
        try:
            source.backup(copy)
        finally:
            copy.close()
            source.close()
        with target.open("xb") as out, draft.open("rb") as whole:  # refuses what came in the meantime
            shutil.copyfileobj(whole, out)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"The backup {target} cannot be written ({error}).") from error
    finally:
        draft.unlink(missing_ok=True)
    return target.stat().st_size
