"""Statistics of a data folder, and what is wrong with it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass

from sqlite_utils import Database

from storage import inspection
from storage.database import snapshot
from storage.folder import DataFolder
from storage.inspection import CROSSED, GRACE_SECONDS
from storage.rows import count, rows
from storage.units import in_words

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
    "contests",
    "conversations",
    "votes",
    "evaluations",
    "item_answers",
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


def check(db: Database, folder: DataFolder, hashes: bool = False, grace: float = GRACE_SECONDS) -> list[Finding]:
    """What is wrong with the database and its files; an empty list when nothing is.

    Covers SQLite's own integrity, foreign keys, rows that belong to nothing or to two samples, the search index,
    jobs that nobody would settle, files that are missing or of another size, and files that nothing names.

    Args:
        hashes: read every file and every frozen row, too, and compare them with their hashes.
        grace: files that nothing names are told if they are this many seconds old.
    """
    try:
        if damaged := damage(db):
            return damaged  # what else there is can only be told once it was mended
        with snapshot(db):  # others may be at work: rows of two moments would not fit together
            return [*_of_rows(db, hashes), *_of_files(db, folder, hashes, grace)]
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        return [Finding("integrity", str(error))]


def damage(db: Database) -> list[Finding]:
    """What SQLite finds wrong with the database file itself."""
    try:
        return [
            Finding("integrity", row["integrity_check"])
            for row in rows(db, "PRAGMA integrity_check")
            if row["integrity_check"] != "ok"
        ]
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return [Finding("integrity", str(error))]


def _of_rows(db: Database, hashes: bool) -> list[Finding]:
    found = [
        Finding(
            "foreign key",
            f"{_rows(one.rows)} of {one.table}: {one.column} names a missing row of {one.parent} "
            f"({_some(one.values)})",
        )
        for one in inspection.broken_links(db)
    ]
    for what, table, condition in CROSSED:
        if number := count(db, f"SELECT count(*) FROM {table} WHERE {condition}"):
            found.append(Finding("orphan", f"{number} {what}"))
    if empty := inspection.empty_datasets(db):
        found.append(Finding("orphan", f"{len(empty)} data sets without rows"))
    if unlinked := inspection.unlinked_images(db):
        samples = Counter(sample for sample, _, _ in unlinked)
        found.append(
            Finding("orphan", f"images of {len(samples)} samples are not linked ({_some(tuple(samples))})")
        )
    if inspection.index_is_behind(db):
        found.append(Finding("search index", "it does not cover the samples"))
    found += [
        Finding("job", f"job {job} is at work by its state, and no attempt is")
        for job in inspection.stuck_jobs(db)
    ]
    if hashes:
        found += [
            Finding("data set", f"{name}: its rows are not those that were frozen")
            for name in inspection.changed_datasets(db)
        ]
    return found


def _of_files(db: Database, folder: DataFolder, hashes: bool, grace: float) -> list[Finding]:
    faults = [inspection.fault_of_image(folder, image, hashes) for image in inspection.list_images(db)]
    faults += [("missing", f"thumbnail of {one.sha256}") for one in inspection.lost_thumbnails(db, folder)]
    faults += [
        inspection.fault_of_adapter(folder, adapter, hashes) for adapter in inspection.list_adapters_by_id(db)
    ]
    found = [Finding(f"{fault[0]} file", fault[1]) for fault in faults if fault is not None]
    found += _of_runs(db, folder)
    return [
        *found,
        *(
            Finding("unnamed file", f"{one.path.relative_to(folder.root)} ({in_words(one.bytes)})")
            for one in inspection.unnamed_files(db, folder, grace)
        ),
    ]


def _of_runs(db: Database, folder: DataFolder) -> list[Finding]:
    lost = inspection.lost_runs(db, folder)
    if lost and not inspection.runs_are_there(folder):
        many = "1 job has its run folder" if len(lost) == 1 else f"{len(lost):,} jobs have their run folders"
        return [Finding("missing file", f"runs/ is empty, though {many} in it: is its disk mounted?")]
    back = inspection.found_runs(db, folder)
    return [
        *(Finding("missing file", f"run folder of job {job}") for job in lost),
        *(Finding("job", f"the run folder of job {job} is there, though it was noted as gone") for job in back),
    ]


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def _some(values: tuple[int | str, ...]) -> str:
    return ", ".join(map(str, values[:3])) + (" …" if len(values) > 3 else "")
