"""Backups of a data folder, made while jobs run and people write.

First the database is copied, at one moment, by SQLite's own backup; then the files that the copy names. Images and
adapters lie under their content's address and never change; what workers append to their run folders meanwhile is
more than the copied database has read, and is read on when a job is resumed. A file that was deleted meanwhile is
reported. See `storage.manifest` for what such a file looks like.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import sqlite3
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sqlite_utils import Database

from storage.adapters import address_of
from storage.database import refuse_newer
from storage.errors import NotFound, PlumbError, UserError
from storage.folder import DataFolder
from storage.lifecycle import ENDED, JobStatus
from storage.manifest import DATABASE, HEADER, MANIFEST, Entry, Header, Manifest, version, written
from storage.migrations import migrations
from storage.records import Image, now
from storage.rows import rows
from storage.units import in_words

#: Told now and then: bytes done, bytes in all.
Tell = Callable[[int, int], None]

#: Bytes of a log that are kept: its end.
LOG_TAIL = 1_000_000

_MEMBER = 1024  # bytes that tar adds to a file: its head, and up to a block at its end
_SPARE = 16_000_000  # bytes: run folders grow while they are copied
_CHUNK = 1 << 20
# Of a run folder, what can be made again, and what only its worker needs.
_AGAIN = ("shared/models", "shared/references")
_ADDRESS = re.compile(r"(?:images|thumbnails)/../([0-9a-f]{64})\.")


@dataclass(frozen=True)
class Kept:
    """A backup that was made.

    Attributes:
        bytes: of the file that was written.
        files: how many it holds, hard links counted each.
    """

    target: Path
    bytes: int
    files: int
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A file to be kept, and the path in the data folder under which it is."""

    path: Path
    name: str
    bytes: int


@dataclass
class _Plan:
    sources: list[Source] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    without_checkpoints: list[int] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(source.bytes + _MEMBER for source in self.sources)


def backup_database(folder: DataFolder, target: Path) -> int:
    """Copy the database alone while others use it; returns the copy's bytes.

    Raises:
        NotFound: there is no database.
        UserError: the target is there already, or cannot be written.
    """
    _refuse_to_begin(folder, target)
    with _draft_of(target) as draft, _translated(target):
        _copy_database(folder, draft)
        _publish(draft, target)
    return target.stat().st_size


def backup(
    folder: DataFolder, target: Path, with_checkpoints: bool = False, tell: Tell = lambda done, total: None
) -> Kept:
    """Keep database, images, adapters, judges' files and the small parts of the run folders in one tar file.

    Nobody waits for it, neither people nor jobs. The file appears under its name when it is whole.

    Args:
        with_checkpoints: also those of trainings, which may be gigabytes each.

    Raises:
        NotFound: there is no database.
        DatabaseTooNew: a newer Plumb wrote it; this one may not know all of its files.
        UserError: the target is there already, lies in the data folder, or cannot be written; the disk is full.
    """
    _refuse_to_begin(folder, target)
    if target.resolve().is_relative_to(folder.root.resolve()):
        raise UserError(
            f"The backup {target} would lie in the data folder {folder.root}, and be lost with it. Name a file "
            "elsewhere, best on another disk."
        )
    with _draft_of(target) as draft, _draft_of(target, ".db") as copy, _translated(target):
        _need_room(target, folder.database.stat().st_size)
        _copy_database(folder, copy)
        applied, plan = _plan(folder, copy, with_checkpoints)
        _need_room(target, plan.bytes)
        header = Header(version(), applied, now(), plan.bytes, with_checkpoints)
        with draft.open("wb") as out:
            writing = _Writing(out, plan, header, tell)
            writing.write()
        _publish(draft, target)
    manifest = writing.manifest()
    return Kept(target, target.stat().st_size, len(manifest.files), manifest.missing, manifest.damaged)


# what is kept -------------------------------------------------------------------------------------------------


def _plan(folder: DataFolder, copy: Path, with_checkpoints: bool) -> tuple[tuple[str, ...], _Plan]:
    """(the copied database's migrations, the files that it names, itself first)."""
    connection = sqlite3.connect(copy)
    try:
        db = Database(connection)
        refuse_newer(db, folder)
        applied = tuple(migration.name for migration in migrations.applied(db))
        if not applied:
            raise UserError(f"{folder.database} is no database of Plumb's; see what else --data could name.")
        plan = _Plan()
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


def _add(plan: _Plan, folder: DataFolder, name: str, needed: bool = True) -> None:
    try:
        plan.sources.append(Source(folder.root / name, name, (folder.root / name).stat().st_size))
    except OSError:
        if needed:
            plan.missing.append(name)


def _add_all(
    plan: _Plan,
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


def _add_run(plan: _Plan, folder: DataFolder, job: dict[str, Any], made: set[int], with_checkpoints: bool) -> None:
    if job.get("purged_at") is not None:
        return
    # Where it belongs by its row; where it lies may be the other place by now.
    places = [folder.run(job["id"]), folder.binned(job["id"])]
    home = places[0] if job.get("deleted_at") is None else places[1]
    place = next((place for place in places if (place / "job.json").exists()), None)
    name = home.relative_to(folder.root).as_posix()
    if place is None:
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


# writing ------------------------------------------------------------------------------------------------------


class _Writing:
    """One tar file in the making."""

    def __init__(self, out: BinaryIO, plan: _Plan, header: Header, tell: Tell) -> None:
        self._tar = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (in `write`)
        self._plan, self._header, self._tell = plan, header, tell
        self._files: list[Entry] = []
        self._missing = list(plan.missing)
        self._damaged = list(plan.damaged)
        self._void: list[str] = []
        self._cut_logs: dict[int, int] = {}
        self._stored: dict[tuple[int, int], Entry] = {}  # by device and inode
        self._adapters: dict[str, dict[str, str]] = {}  # address → file name → sha256

    def write(self) -> None:
        done = 0
        with self._tar:
            self._add_bytes(HEADER, written(self._header))
            for source in self._plan.sources:
                self._keep(source)
                done += source.bytes + _MEMBER
                self._tell(done, self._header.bytes)
            self._check_adapters()
            self._add_bytes(MANIFEST, written(self.manifest()))

    def manifest(self) -> Manifest:
        return Manifest(
            header=self._header,
            files=tuple(self._files),
            missing=tuple(self._missing),
            damaged=tuple(self._damaged),
            void=tuple(self._void),
            without_checkpoints=tuple(self._plan.without_checkpoints),
            cut_logs=self._cut_logs,
        )

    def _add_bytes(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def _keep(self, source: Source) -> None:
        try:
            file = source.path.open("rb")
        except FileNotFoundError:
            self._missing.append(source.name)
            return
        except PermissionError as error:
            self._missing.append(f"{source.name} ({error.strerror})")
            return
        with file:
            found = os.fstat(file.fileno())
            known = self._stored.get((found.st_dev, found.st_ino)) if found.st_nlink > 1 else None
            if known is not None:
                self._note(Entry(source.name, known.sha256, known.bytes, known.same_as or known.path))
                return
            begin = _begin_of_log(file, found.st_size) if _is_log(source.name) else 0
            if begin:
                self._cut_logs[int(source.name.split("/")[-2])] = begin
            entry = self._add_file(source.name, file, begin, found)
            if entry is None:
                return
            self._note(entry)
            if found.st_nlink > 1:
                self._stored[found.st_dev, found.st_ino] = entry

    def _add_file(self, name: str, file: BinaryIO, begin: int, found: os.stat_result) -> Entry | None:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = found.st_size - begin, int(found.st_mtime), 0o644
        file.seek(begin)
        reader = _Hashing(file)
        self._tar.addfile(info, reader)  # type: ignore[arg-type]  # it reads, and nothing else
        if reader.short:  # the member is there, as long as its head says
            self._void.append(name)
            self._missing.append(name)
            return None
        return Entry(name, reader.sha256, info.size)

    def _note(self, entry: Entry) -> None:
        self._files.append(entry)
        address = _ADDRESS.match(entry.path)
        if address and entry.path.startswith("images/") and entry.sha256 != address[1]:
            self._damaged.append(entry.path)
        if entry.path.startswith("adapters/"):
            _, sha256, name = entry.path.split("/", 2)
            self._adapters.setdefault(sha256, {})[name] = entry.sha256

    def _check_adapters(self) -> None:
        self._damaged += [f"adapters/{sha}" for sha, files in self._adapters.items() if address_of(files) != sha]


class _Hashing:
    """A file that is hashed while it is read. Where it ends too early, zeros follow and `short` is set."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.short = file, hashlib.sha256(), False

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            self.short = True
            data += bytes(size - len(data))
        self._digest.update(data)
        return data

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _is_log(name: str) -> bool:
    return name.startswith("runs/") and name.endswith("/log.txt") and name.split("/")[-2].isdigit()


def _begin_of_log(file: BinaryIO, size: int) -> int:
    """Where the kept end of a log begins: at a line, if one begins soon."""
    if size <= LOG_TAIL:
        return 0
    file.seek(size - LOG_TAIL)
    return size - LOG_TAIL + file.read(LOG_TAIL // 10).find(b"\n") + 1


# the target ---------------------------------------------------------------------------------------------------


def _refuse_to_begin(folder: DataFolder, target: Path) -> None:
    if not folder.database.exists():
        raise NotFound(f"There is no database in {folder.root}; name Plumb's data folder with --data.")
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} is there already; name a file that is not.")
    if not target.parent.is_dir():
        raise UserError(f"The folder {target.parent} for the backup is not there; make it first.")


def _copy_database(folder: DataFolder, copy: Path) -> None:
    """The database as it is at one moment, in a single file."""
    source = sqlite3.connect(f"{folder.database.as_uri()}?mode=ro", uri=True)
    target = sqlite3.connect(copy)
    try:
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
    finally:
        target.close()
        source.close()


def _need_room(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < size + _SPARE:
        raise UserError(
            f"The backup needs about {in_words(size + _SPARE)}, and {in_words(free)} are free where {target} is "
            "to be. Free some disk, or name a file on another one."
        )


@contextlib.contextmanager
def _draft_of(target: Path, ending: str = "") -> Iterator[Path]:
    """A path beside the target; whatever lies there in the end is removed."""
    draft = target.with_name(f".{target.name}.{os.getpid()}{ending}")
    try:
        yield draft
    finally:
        for path in (draft, *(draft.with_name(f"{draft.name}{tail}") for tail in ("-journal", "-wal", "-shm"))):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except PlumbError:
        raise
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise UserError(f"The backup {target} cannot be written ({error}).") from error


def _publish(draft: Path, target: Path) -> None:
    """Give the whole file its name, which must be free still."""
    _sync(draft)
    try:
        os.link(draft, target)  # a rename would replace what came in the meantime
    except FileExistsError:
        raise UserError(f"{target} is there already; name a file that is not.") from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise UserError(f"{target} is there already; name a file that is not.") from None
        draft.rename(target)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
