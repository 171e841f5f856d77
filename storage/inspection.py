"""What can be wrong with a data folder, part by part: what the check tells and the repair begins with.

Every function reads, and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlite_utils import Database

from storage.adapters import hash_adapter
from storage.datasets import dataset_hash, list_datasets
from storage.errors import UserError
from storage.folder import DataFolder
from storage.images import image_path, thumbnail_path
from storage.lifecycle import ACTIVE
from storage.records import Adapter, Image
from storage.rows import count, marks, rows
from storage.samples import images_of

#: Seconds for which a file that nothing names is left alone: its row may be about to be written.
GRACE_SECONDS = 600.0

Fault = Literal["missing", "damaged"]

#: Rows that belong to two samples at once: what they are, their table, and which.
CROSSED = (
    (
        "scores of another sample",
        "scores",
        """(judgement_id, candidate_id) IN (
             SELECT s.judgement_id, s.candidate_id FROM scores s JOIN judgements j ON j.id = s.judgement_id
             JOIN candidates c ON c.id = s.candidate_id WHERE c.sample_id <> j.sample_id)""",
    ),
    (
        "pairs across samples",
        "pairs",
        """id IN (SELECT p.id FROM pairs p JOIN candidates a ON a.id = p.chosen_id
             JOIN candidates b ON b.id = p.rejected_id
             WHERE a.sample_id <> p.sample_id OR b.sample_id <> p.sample_id)""",
    ),
)


@dataclass(frozen=True)
class Broken:
    """Rows that name a row of another table which is not there.

    Attributes:
        optional: whether the column may be empty.
        values: what they name, each once.
    """

    table: str
    column: str
    parent: str
    parent_column: str
    optional: bool
    values: tuple[int | str, ...]
    rows: int


@dataclass(frozen=True)
class Unnamed:
    """A file, or a folder of an adapter or a run, that no row names. Bytes of all that is in it."""

    path: Path
    bytes: int


def broken_links(db: Database) -> list[Broken]:
    """Foreign keys that lead nowhere, by table and column."""
    found = []
    for table in [row["name"] for row in rows(db, "SELECT name FROM sqlite_master WHERE type = 'table'")]:
        columns = {row["name"]: row for row in rows(db, f"SELECT * FROM pragma_table_info('{table}')")}
        for key in rows(db, f"SELECT * FROM pragma_foreign_key_list('{table}')"):
            parent, column, named = key["table"], key["from"], key["to"]
            lost = rows(
                db,
                f"""SELECT t.{column} AS value, count(*) AS n FROM {table} t
                    LEFT JOIN {parent} p ON p.{named} = t.{column}
                    WHERE t.{column} IS NOT NULL AND p.{named} IS NULL GROUP BY t.{column}""",
            )
            if lost:
                optional = not columns[column]["notnull"] and not columns[column]["pk"]
                values = tuple(row["value"] for row in lost)
                total = sum(row["n"] for row in lost)
                found.append(Broken(table, column, parent, named, optional, values, total))
    return found


def empty_datasets(db: Database) -> list[int]:
    """Data sets without a row."""
    found = rows(
        db,
        """SELECT d.id FROM datasets d
           WHERE NOT EXISTS (SELECT 1 FROM dataset_rows r WHERE r.dataset_id = d.id) ORDER BY d.id""",
    )
    return [row["id"] for row in found]


def changed_datasets(db: Database) -> list[str]:
    """Data sets whose rows are not those that their hash was made of, by name; reads every row."""
    empty = set(empty_datasets(db))
    return [one.name for one in list_datasets(db) if one.id not in empty and dataset_hash(db, one.id) != one.hash]


def index_is_behind(db: Database) -> bool:
    """Whether some sample's words or facts are missing, or of a sample that is gone, and wait for nobody."""
    lost = count(
        db,
        """SELECT EXISTS (SELECT 1 FROM samples s WHERE NOT EXISTS
                (SELECT 1 FROM sample_facts f WHERE f.sample_id = s.id)
                OR NOT EXISTS (SELECT 1 FROM stale_samples t WHERE t.sample_id = s.id)
                AND NOT EXISTS (SELECT 1 FROM words_fts_docsize w WHERE w.id = s.id))
            OR EXISTS (SELECT 1 FROM words_fts_docsize w WHERE w.id NOT IN (SELECT id FROM samples)
                AND w.id NOT IN (SELECT sample_id FROM stale_samples))""",
    )
    tallied = count(db, "SELECT number FROM tallies WHERE name = 'samples'")
    return bool(lost) or tallied != count(db, "SELECT count(*) FROM samples")


def unlinked_images(db: Database) -> list[tuple[int, int, str]]:
    """(sample, position, sha256) of images that a sample's messages show and its links do not know."""
    known: dict[int, set[str]] = {}
    for row in rows(db, "SELECT sample_id, sha256 FROM sample_images"):
        known.setdefault(row["sample_id"], set()).add(row["sha256"])
    return [
        (sample_id, position, sha256)
        for sample_id, messages in db.conn.execute("SELECT id, messages FROM samples ORDER BY id")
        for position, sha256 in enumerate(images_of(json.loads(messages)))
        if sha256 not in known.get(sample_id, set())
    ]


def stuck_jobs(db: Database) -> list[int]:
    """Jobs that are at work by their state, without an attempt that is: no supervisor would settle them."""
    found = rows(
        db,
        f"""SELECT j.id FROM jobs j WHERE j.status IN ({marks(sorted(ACTIVE))}) AND NOT EXISTS (
              SELECT 1 FROM attempts a WHERE a.job_id = j.id AND a.ended_at IS NULL) ORDER BY j.id""",
        sorted(ACTIVE),
    )
    return [row["id"] for row in found]


# files --------------------------------------------------------------------------------------------------------


def list_images(db: Database) -> list[Image]:
    """All images, by address."""
    found = rows(db, "SELECT sha256, extension, width, height, bytes FROM images ORDER BY sha256")
    return [Image(**row) for row in found]


def fault_of_image(folder: DataFolder, image: Image, hashes: bool = False) -> tuple[Fault, str] | None:
    """What is wrong with an image's file, and in words; None for nothing.

    Args:
        hashes: read it, and compare its content with its name.
    """
    path = image_path(folder, image)
    try:
        size = path.stat().st_size
        if size != image.bytes:
            return "damaged", f"image {image.name} has {size} bytes instead of {image.bytes}"
        if hashes and hash_file(path) != image.sha256:
            return "damaged", f"image {image.name} holds something else than its name says"
    except FileNotFoundError:
        return "missing", f"image {image.name}"
    except OSError as error:
        return "damaged", f"image {image.name} cannot be read ({error.strerror})"
    return None


def hash_file(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lost_thumbnails(db: Database, folder: DataFolder) -> list[Image]:
    """Images that have no thumbnail."""
    return [image for image in list_images(db) if not thumbnail_path(folder, image.sha256).exists()]


def list_adapters_by_id(db: Database) -> list[Adapter]:
    """All adapters, oldest first."""
    return [Adapter(**row) for row in rows(db, "SELECT * FROM adapters ORDER BY id")]


def fault_of_adapter(folder: DataFolder, adapter: Adapter, hashes: bool = False) -> tuple[Fault, str] | None:
    """As `fault_of_image`."""
    named = f"adapter {adapter.id} ({adapter.name})"
    try:
        sizes = [file.stat().st_size for file in (folder.adapters / adapter.sha256).iterdir()]
        if not sizes:
            return "missing", named
        if sum(sizes) != adapter.bytes:
            return "damaged", f"{named} has {sum(sizes)} bytes instead of {adapter.bytes}"
        if hashes and hash_adapter(folder.adapters / adapter.sha256) != adapter.sha256:
            return "damaged", f"{named} holds something else than its address says"
    except FileNotFoundError:
        return "missing", named
    except OSError as error:
        return "damaged", f"{named} cannot be read ({error.strerror})"
    return None


def lost_runs(db: Database, folder: DataFolder) -> list[int]:
    """Jobs whose run folder is neither in its place nor in the bin, or not whole, though it was not purged."""
    return [
        row["id"]
        for row in rows(db, "SELECT id FROM jobs WHERE purged_at IS NULL ORDER BY id")
        if not any((place / "job.json").exists() for place in (folder.run(row["id"]), folder.binned(row["id"])))
    ]


def found_runs(db: Database, folder: DataFolder) -> list[int]:
    """Jobs whose run folder is there, though it was noted as gone: its disk was not mounted then, say."""
    return [
        row["id"]
        for row in rows(db, "SELECT id FROM jobs WHERE purged_at IS NOT NULL ORDER BY id")
        if any((place / "job.json").exists() for place in (folder.run(row["id"]), folder.binned(row["id"])))
    ]


def runs_are_there(folder: DataFolder) -> bool:
    """Whether runs/ holds anything: where its disk is not mounted there is an empty folder, or none."""
    return next(_children(folder.runs), None) is not None


def is_gone(folder: DataFolder, job_id: int) -> bool:
    """Whether a job's run folder is in neither of its places. Says nothing where runs/ is not there at all."""
    return not (folder.run(job_id).is_dir() or folder.binned(job_id).is_dir())


def refuse_without_runs(folder: DataFolder) -> None:
    """Have nobody take run folders for gone whose disk is not mounted.

    Raises:
        UserError: runs/ is empty, or not there.
    """
    if not runs_are_there(folder):
        raise UserError(
            f"{folder.runs} is empty or not there, though jobs have their run folders in it: is its disk mounted? "
            "Nothing is noted as gone. If all of them are, put any file into it, then try again."
        )


def unnamed_files(db: Database, folder: DataFolder, grace: float = GRACE_SECONDS) -> list[Unnamed]:
    """Images, thumbnails, adapters and run folders that no row names, and that are older than `grace` seconds."""
    images = list_images(db)
    adapters = {row["sha256"] for row in rows(db, "SELECT sha256 FROM adapters")}
    runs = {folder.run(row["id"]).name for row in rows(db, "SELECT id FROM jobs")}
    places = [
        *_strangers(_below(folder.images), {image_path(folder, image) for image in images}),
        *_strangers(_below(folder.thumbnails), {thumbnail_path(folder, image.sha256) for image in images}),
        *_strangers(_children(folder.adapters), {folder.adapters / sha256 for sha256 in adapters}),
        *_strangers(_children(folder.runs), {folder.bin, *(folder.runs / name for name in runs)}),
        *_strangers(_children(folder.bin), {folder.bin / name for name in runs}),
    ]
    latest = time.time() - grace
    found = []
    for path in places:
        if path.parent == folder.bin and path.suffix == ".gone":
            continue  # the supervisor is removing it (jobs/bin.py)
        size, changed = _measured(path)
        if changed <= latest:
            found.append(Unnamed(path, size))
    return found


def _strangers(paths: Iterator[Path], named: set[Path]) -> Iterator[Path]:
    return (path for path in paths if path not in named)


def _children(place: Path) -> Iterator[Path]:
    try:
        yield from sorted(place.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return


def _below(place: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(place):
        folders.sort()
        yield from (Path(root, name) for name in sorted(files))


def _measured(path: Path) -> tuple[int, float]:
    """(bytes of all files at and below a path, when the latest of them changed). Links are not followed."""
    size, changed = 0, 0.0
    inside = [Path(root, name) for root, folders, files in os.walk(path) for name in (*folders, *files)]
    for one in (path, *inside):
        try:
            found = one.lstat()
        except FileNotFoundError:
            continue
        size += 0 if one.is_dir() else found.st_size
        changed = max(changed, found.st_ctime)  # a hard link is made now, whenever its content was
    return size, changed
