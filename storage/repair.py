"""Putting right what `storage.upkeep.check` finds, as far as that can be done without guessing.

Nothing is lost by it: rows that must go are written to `runtime/repaired-<time>.jsonl` first, files that nothing
names move to `lost+found/`, and a damaged database stays beside the recovered one. What has no remedy is left, and
the check goes on telling of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from storage import facts, inspection, upkeep
from storage import jobs as store
from storage.adapters import hash_adapter
from storage.database import connect, immediate, migrate, session
from storage.errors import UserError
from storage.files import link_or_copy
from storage.folder import DataFolder
from storage.images import image_path, make_thumbnail
from storage.inspection import CROSSED, GRACE_SECONDS, Broken
from storage.lifecycle import ENDED, JobStatus
from storage.occupants import alone
from storage.parents import put_back
from storage.records import Adapter, Image, now
from storage.recovery import finish, recover
from storage.recycling import mark_found
from storage.rows import Row, count, marks, rows
from storage.units import in_words
from storage.upkeep import Finding

LOST = "lost+found"

_ROUNDS = 20  # a removed row may leave others behind that named it
_BATCH = 500


@dataclass(frozen=True)
class Repaired:
    """What was done.

    Attributes:
        done: in words, a line each.
        left: what is wrong still.
        notes: the file with all rows and moves, where there are such.
    """

    done: tuple[str, ...]
    left: tuple[Finding, ...]
    notes: Path | None


class Notes:
    """The file that keeps what a repair takes away; there is none as long as nothing is."""

    def __init__(self, folder: DataFolder) -> None:
        moment = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        self.path = folder.runtime / f"repaired-{moment}-{secrets.token_hex(2)}.jsonl"
        self.done: list[str] = []

    def keep(self, **values: Any) -> None:
        """One line, on the disk before anything is done."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False, default=repr) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_rows(self, table: str, why: str, found: list[Row]) -> None:
        """Rows as they were, before they go or lose a value."""
        with self.path.open("a", encoding="utf-8") as file:
            for row in found:
                file.write(json.dumps({"table": table, "why": why, "row": row}, default=repr) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def say(self, text: str) -> None:
        self.done.append(text)


def repair(folder: DataFolder, hashes: bool = False, grace: float = GRACE_SECONDS) -> Repaired:
    """Put right what can be, with nobody else at work in the folder.

    Args:
        hashes, grace: as for `storage.upkeep.check`.

    Raises:
        Conflict: a supervisor, an app or a worker is at work.
        UserError: nothing can be read of a damaged database; a file cannot be moved; the disk of the run folders
            is not mounted.
    """
    notes = Notes(folder)
    with alone(folder):
        _mend_database(folder, notes)
        migrate(folder)
        with _without_foreign_keys(folder) as db:
            if inspection.lost_runs(db, folder):
                inspection.refuse_without_runs(folder)
            with immediate(db):
                _mend_rows(db, folder, notes)
            _mend_files(db, folder, notes, hashes, grace)
        with session(folder) as db:
            left = upkeep.check(db, folder, hashes, grace)
    return Repaired(tuple(notes.done), tuple(left), notes.path if notes.path.exists() else None)


@contextlib.contextmanager
def _without_foreign_keys(folder: DataFolder) -> Iterator[Database]:
    """Rows can go whatever names them: those are seen to next, each with its own note."""
    db = connect(folder)
    try:
        db.conn.execute("PRAGMA foreign_keys = OFF")
        yield db
    finally:
        db.close()


def _mend_database(folder: DataFolder, notes: Notes) -> None:
    if finish(folder):
        notes.say("database: the log is back that a recovery had moved away when it was killed")
    try:
        with session(folder) as db:
            damaged = upkeep.damage(db)
    except sqlite3.OperationalError:
        raise  # a disk that fails or is full just now says nothing about the file: it stays as it is
    except sqlite3.DatabaseError as error:
        damaged = [Finding("integrity", str(error))]
    if not damaged:
        return
    saved = recover(folder)
    notes.keep(what="database recovered", damaged=str(saved.kept.name), rows=saved.rows, broken=saved.broken)
    lost = f"; not all could be read of {', '.join(saved.broken)}" if saved.broken else ""
    notes.say(
        f"database: {sum(saved.rows.values()):,} rows were read and written anew{lost}; the damaged file is "
        f"{saved.kept.name}"
    )


# rows ---------------------------------------------------------------------------------------------------------


def _mend_rows(db: Database, folder: DataFolder, notes: Notes) -> None:
    for what, table, condition in CROSSED:
        _remove(db, notes, table, condition, [], what)
    for _ in range(_ROUNDS):
        broken = inspection.broken_links(db)
        if not broken:
            break
        for one in broken:
            _mend_link(db, folder, notes, one)
    _link_images(db, notes)
    _remove_empty_datasets(db, notes)
    if inspection.index_is_behind(db):
        facts.forget(db)
        facts.catch_up(db)
        notes.say("search index: built anew")
    for job_id in inspection.stuck_jobs(db):
        reason = (
            "It was at work by its state, and no attempt was: settled by a repair. Resume it, or run it again."
        )
        store.move(db, job_id, JobStatus.FAILED, reason)
        notes.say(f"job {job_id}: settled as failed")


def _mend_link(db: Database, folder: DataFolder, notes: Notes, broken: Broken) -> None:
    """Put the missing row back where enough is known of it; else forget it where that can be, else remove."""
    left = []
    for value in broken.values:
        if count(db, f"SELECT count(*) FROM {broken.parent} WHERE {broken.parent_column} = ?", [value]):
            continue  # it was made again for another table's sake
        made = put_back(db, folder, broken.parent, value)
        if made:
            notes.say(f"{broken.parent} {value}: {made}")
        else:
            left.append(value)
    for start in range(0, len(left), _BATCH):
        part = left[start : start + _BATCH]
        condition = f"{broken.column} IN ({marks(part)})"
        why = f"{broken.column} names a missing row of {broken.parent}"
        if not broken.optional:
            _remove(db, notes, broken.table, condition, part, why)
            continue
        found = rows(db, f"SELECT * FROM {broken.table} WHERE {condition}", part)
        if found:
            notes.keep_rows(broken.table, f"emptied: {why}", found)
            db.conn.execute(f"UPDATE {broken.table} SET {broken.column} = NULL WHERE {condition}", part)
            notes.say(f"{broken.table}: {broken.column} emptied in {len(found):,} ({why})")


def _remove(db: Database, notes: Notes, table: str, condition: str, values: list[Any], why: str) -> None:
    found = rows(db, f"SELECT * FROM {table} WHERE {condition}", values)
    if found:
        notes.keep_rows(table, f"removed: {why}", found)
        db.conn.execute(f"DELETE FROM {table} WHERE {condition}", values)
        notes.say(f"{table}: {len(found):,} removed ({why})")


def _link_images(db: Database, notes: Notes) -> None:
    linked = 0
    for sample_id, position, sha256 in inspection.unlinked_images(db):
        if count(db, "SELECT count(*) FROM images WHERE sha256 = ?", [sha256]):
            linked += db.conn.execute(
                "INSERT OR IGNORE INTO sample_images (sample_id, position, sha256) VALUES (?, ?, ?)",
                [sample_id, position, sha256],
            ).rowcount
    if linked:
        notes.say(f"samples: {linked:,} images linked again")


def _remove_empty_datasets(db: Database, notes: Notes) -> None:
    for dataset_id in inspection.empty_datasets(db):
        used = sum(
            count(db, f"SELECT count(*) FROM {table} WHERE dataset_id = ?", [dataset_id])
            for table in ("jobs", "adapters")
        )
        if not used:  # else the lineage of a model leads through it
            _remove(db, notes, "datasets", "id = ?", [dataset_id], "it has no rows")


# files --------------------------------------------------------------------------------------------------------


def _mend_files(db: Database, folder: DataFolder, notes: Notes, hashes: bool, grace: float) -> None:
    for image in inspection.list_images(db):
        if fault := inspection.fault_of_image(folder, image, hashes):
            _mend_image(folder, notes, image, fault[0] == "damaged")
    for image in inspection.lost_thumbnails(db, folder):
        with contextlib.suppress(OSError, ValueError, SyntaxError):  # the image is missing, too, or damaged
            make_thumbnail(folder, image)
            notes.say(f"thumbnail of {image.sha256}: made again")
    for adapter in inspection.list_adapters_by_id(db):
        if fault := inspection.fault_of_adapter(folder, adapter, hashes):
            _mend_adapter(folder, notes, adapter, fault[0] == "damaged")
    for job_id in inspection.lost_runs(db, folder):
        if inspection.is_gone(folder, job_id):  # else something is left of it, for a person to look at
            _give_up_run(db, notes, job_id)
    for job_id in inspection.found_runs(db, folder):
        mark_found(db, job_id)
        notes.say(f"run folder of job {job_id}: it is there again")
    for one in inspection.unnamed_files(db, folder, grace):
        moved = _lose(folder, notes, one.path)
        notes.say(f"{one.path.relative_to(folder.root)} ({in_words(one.bytes)}): moved to {moved}")


def _mend_image(folder: DataFolder, notes: Notes, image: Image, damaged: bool) -> None:
    """From a run folder that was frozen with it, where that has a copy of its own."""
    path = image_path(folder, image)
    copies = folder.runs.glob(f"*/data/images/{image.name}"), folder.bin.glob(f"*/data/images/{image.name}")
    for copy in (one for found in copies for one in found):
        if copy.is_file() and inspection.hash_file(copy) == image.sha256:
            if damaged:
                _lose(folder, notes, path)
            link_or_copy(copy, path)
            notes.say(f"image {image.name}: put back from {copy.relative_to(folder.root)}")
            return


def _mend_adapter(folder: DataFolder, notes: Notes, adapter: Adapter, damaged: bool) -> None:
    """From the run folder that made it, or from one that was frozen with it."""
    place = folder.adapters / adapter.sha256
    homes = folder.run(adapter.job_id), folder.binned(adapter.job_id)
    copies = [
        *(home / "adapter" for home in homes),
        *folder.runs.glob(f"*/data/adapters/{adapter.sha256}"),
        *folder.bin.glob(f"*/data/adapters/{adapter.sha256}"),
    ]
    for copy in copies:
        if copy.is_dir() and hash_adapter(copy) == adapter.sha256:
            if damaged:
                _lose(folder, notes, place)
            for file in sorted(copy.iterdir()):
                if file.is_file():
                    link_or_copy(file, place / file.name)
            notes.say(f"adapter {adapter.id} ({adapter.name}): put back from {copy.relative_to(folder.root)}")
            return


def _give_up_run(db: Database, notes: Notes, job_id: int) -> None:
    """The job's row stays, and what it made; it is known to have no run folder any more."""
    with immediate(db):
        job = store.get_job(db, job_id)
        for attempt in store.attempts_of(db, job_id):
            if attempt.ended_at is None:
                store.end_attempt(db, attempt.id, JobStatus.FAILED, "Its run folder is gone.", "gone")
        if job.status not in ENDED:
            target = JobStatus.STOPPED if job.status is JobStatus.STOPPING else JobStatus.FAILED
            store.move(db, job_id, target, "Its run folder is gone; run the job again.")
        db.conn.execute("UPDATE jobs SET purged_at = ? WHERE id = ?", [now(), job_id])
    notes.say(f"run folder of job {job_id}: noted as gone")


def _lose(folder: DataFolder, notes: Notes, path: Path) -> Path:
    """Move a file or folder to lost+found, under the path that it had; where it lies now, from the data folder."""
    target = folder.root / LOST / path.relative_to(folder.root)
    if target.exists():
        target = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    notes.keep(what="moved", path=str(path.relative_to(folder.root)), to=str(target.relative_to(folder.root)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    except OSError as error:
        raise UserError(f"{path} cannot be moved to {target} ({error.strerror}); see to its rights.") from error
    return target.relative_to(folder.root)
