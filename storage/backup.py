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
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from storage.adapters import address_of
from storage.backup_plan import MEMBER, Plan, Source, plan_of
from storage.errors import NotFound, PlumbError, UserError
from storage.folder import DataFolder
from storage.manifest import HEADER, MANIFEST, Entry, Header, Manifest, version, written
from storage.records import now
from storage.units import in_words

#: Told now and then: bytes done, bytes in all.
Tell = Callable[[int, int], None]

#: Bytes of a log that are kept: its end.
LOG_TAIL = 1_000_000

_SPARE = 16_000_000  # bytes: run folders grow while they are copied
_ADDRESS = re.compile(r"images/../([0-9a-f]{64})\.")


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
        applied, plan = plan_of(folder, copy, with_checkpoints)
        _need_room(target, plan.bytes)
        header = Header(version(), applied, now(), plan.bytes, with_checkpoints)
        with draft.open("wb") as out:
            writing = _Writing(out, plan, header, tell)
            writing.write()
        _publish(draft, target)
    manifest = writing.manifest()
    return Kept(target, target.stat().st_size, len(manifest.files), manifest.missing, manifest.damaged)


# writing ------------------------------------------------------------------------------------------------------


class _Writing:
    """One tar file in the making."""

    def __init__(self, out: BinaryIO, plan: Plan, header: Header, tell: Tell) -> None:
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
                done += source.bytes + MEMBER
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
        if address and entry.sha256 != address[1]:
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
