"""Which files belong into a backup, by what a copied database names."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from storage.database import refuse_newer
from storage.errors import UserError
from storage.folder import DataFolder
from storage.lifecycle import ENDED, JobStatus
from storage.manifest import DATABASE
from storage.migrations import migrations
from storage.records import Image
from storage.rows import rows

MEMBER = 1024  # bytes that tar adds to a file: its head, and up to a block at its end

# Of a run folder, what can be made again.
_AGAIN = ("shared/models", "shared/references")


@dataclass(frozen=True)
class Source:
    """A file to be kept, and the path in the data folder under which it is."""

    path: Path
    name: str
    bytes: int


@dataclass
class Plan:
    sources: list[Source] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    without_checkpoints: list[int] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(source.bytes + MEMBER for source in self.sources)


def plan_of(folder: DataFolder, copy: Path, with_checkpoints: bool) -> tuple[tuple[str, ...], Plan]:
    """(the copied database's migrations, the files that it names, itself first)."""
    connection = sqlite3.connect(copy)
    try:
        db = Database(connection)
        refuse_newer(db, folder)
        applied = tuple(migration.name for migration in migrations.applied(db))
        if not applied:
            raise UserError(f"{folder.database} is no database of Plumb's; see what else --data could name.")
        plan = Plan()
        found = rows(db, "PRAGMA quick_check(1)")
        if found[0]["quick_check"] != "ok":
            # Kept all the same: a backup of what can still be read is better than none.
            plan.damaged.append(f"{DATABASE} ({found[0]['quick_check']})")
        plan.sources.append(Source(copy, DATABASE, copy.stat().st_size))
        for row in rows(db, "SELECT sha256, extension, width, height, bytes FROM images ORDER BY sha256"):
            image = Image(**row)
            _add(plan, folder, f"images/{image.sha256[:2]}/{image.name}")
            _add(plan, folder, f"thumbnails/{image.sha256[:2]}/{image.sha256}.webp", needed=False)
        for row in rows(db, "SELECT DISTINCT sha256 FROM adapters ORDER BY sha256"):
            if not _add_all(plan, folder.adapters / row["sha256"], f"adapters/{row['sha256']}"):
                plan.missing.append(f"adapters/{row['sha256']}")
        _add_all(plan, folder.judges, "judges", passed_over=_is_passing)
        made = {row["job_id"] for row in rows(db, "SELECT job_id FROM adapters")}
        for row in rows(db, "SELECT * FROM jobs ORDER BY id"):  # * also of a database of an earlier version
            _add_run(plan, folder, row, made, with_checkpoints)
        return applied, plan
    finally:
        connection.close()


def _add(plan: Plan, folder: DataFolder, name: str, needed: bool = True) -> None:
    try:
        plan.sources.append(Source(folder.root / name, name, (folder.root / name).stat().st_size))
    except OSError:
        if needed:
            plan.missing.append(name)


def _add_all(
    plan: Plan,
    place: Path,
    name: str,
    passed_over: Callable[[str], bool] = lambda name: False,
) -> bool:
    """The files below a folder; whether there are any. Links are not followed, nor kept.

    Args:
        passed_over: by the path below the folder, what is left out.
    """
    before = len(plan.sources)

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            plan.missing.append(f"{name} ({error.strerror}: {error.filename})")

    for root, folders, files in os.walk(place, onerror=unreadable):
        below = Path(root).relative_to(place)
        folders[:] = sorted(one for one in folders if not passed_over((below / one).as_posix()))
        for one in sorted(files):
            path, relative = Path(root, one), (below / one).as_posix()
            if passed_over(relative):
                continue
            with contextlib.suppress(FileNotFoundError):  # a draft, say, that has its real name by now
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    plan.sources.append(Source(path, f"{name}/{relative}", found.st_size))
    return len(plan.sources) > before


def _is_passing(name: str) -> bool:
    """Locks, and drafts that get another name when they are whole."""
    own = name.rsplit("/", 1)[-1]
    return own.startswith(".") or own.endswith(".lock")


def _add_run(plan: Plan, folder: DataFolder, job: dict[str, Any], made: set[int], with_checkpoints: bool) -> None:
    # Where it belongs by its row; where it lies may be the other place by now.
    places = [folder.run(job["id"]), folder.binned(job["id"])]
    home = places[0] if job.get("deleted_at") is None else places[1]
    place = next((place for place in places if (place / "job.json").exists()), None)
    name = home.relative_to(folder.root).as_posix()
    if place is None:
        if job.get("purged_at") is None:
            plan.missing.append(name)
        return
    left_out = set(_AGAIN)
    if not with_checkpoints and (place / "checkpoints").is_dir():
        left_out.add("checkpoints")
        if job["status"] != JobStatus.DONE:
            plan.without_checkpoints.append(job["id"])
    if job["id"] in made and JobStatus(job["status"]) in ENDED and not _is_linked(place / "adapter"):
        left_out.add("adapter")  # a copy of what is kept under its content's address
    _add_all(plan, place, name, lambda relative: relative in left_out or _is_passing(relative))


def _is_linked(place: Path) -> bool:
    """Whether the files of a folder have other names, under which they are kept at no cost."""
    try:
        return all(file.stat().st_nlink > 1 for file in place.iterdir())
    except OSError:
        return False
