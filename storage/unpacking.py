"""Taking a backup apart. Nothing in it is trusted.

Only plain files with paths inside a data folder are unpacked, none of them twice, and none larger than the backup
itself, which is not compressed. What was unpacked counts once each sha256 is that of the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from sqlite_utils import Database

from storage.backup import Tell
from storage.errors import DatabaseTooNew, UserError
from storage.files import link_or_copy
from storage.folder import DataFolder
from storage.manifest import (
    DATABASE,
    HEADER,
    MANIFEST,
    Header,
    Manifest,
    check_name,
    read_header,
    read_manifest,
)
from storage.migrations import migrations
from storage.units import in_words

#: The database's name until all else is there: no program shall take it for one before.
DRAFT = f"{DATABASE}.restoring"

_LARGEST_TEXT = 1_000_000_000  # bytes of the manifest: about four million files
_CHUNK = 1 << 20


@contextlib.contextmanager
def opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with file.open("rb") as opened:
            if opened.read(16) == b"SQLite format 3\0":
                raise UserError(
                    f"{file} is a database alone, without images and adapters. Put a copy of it into a new folder "
                    f"as {DATABASE}, and name that folder with --data."
                )
        tar = tarfile.open(file, "r:")  # noqa: SIM115  # never a compressed one: its size would tell nothing
    except OSError as error:
        raise UserError(f"The backup {file} cannot be read ({error.strerror}).") from error
    except tarfile.TarError as error:
        raise UserError(
            f"{file} is no backup of Plumb's ({error}); name a .tar file that `python -m storage backup` wrote."
        ) from error
    with tar:
        yield tar


def first_of(tar: tarfile.TarFile, file: Path) -> Header:
    try:
        member = tar.next()
        if member is not None and member.name == HEADER and member.isreg():
            return read_header(_text(tar, member))
    except tarfile.TarError as error:
        raise cut_off(file) from error
    raise UserError(
        f"{file} is no backup of Plumb's: it does not begin with {HEADER}. Name a file that "
        "`python -m storage backup` wrote."
    )


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _LARGEST_TEXT:
        raise UserError(f"The backup's {member.name} has {in_words(member.size)}, which is absurd; use another.")
    opened = tar.extractfile(member)
    assert opened is not None  # a plain file
    return opened.read()


def refuse_newer(header: Header, file: Path) -> None:
    ours = {migration.name for migration in migrations.pending(Database(memory=True))}
    foreign = [name for name in header.migrations if name not in ours]
    if foreign:
        raise DatabaseTooNew(
            f"{file} was made by a newer Plumb ({header.plumb}; its database has {', '.join(foreign)}, unknown "
            "here). Update Plumb, then restore it."
        )


def cut_off(file: Path) -> UserError:
    return UserError(f"{file} was cut off: its end is missing. Copy it anew, or use another backup.")


def unpack(tar: tarfile.TarFile, folder: DataFolder, header: Header, tell: Tell) -> Manifest:
    """Every file of the backup, compared with the manifest. The database gets its name last."""
    file = Path(str(tar.name))
    size = file.stat().st_size
    unpacked: dict[str, tuple[str, int]] = {}  # path → (sha256, bytes)
    manifest: Manifest | None = None
    while (member := tar.next()) is not None:
        if manifest is not None:
            raise UserError(f"{file} goes on after its manifest: somebody changed it. Nothing was restored.")
        _refuse_strange(member, folder, size)
        if member.name == MANIFEST:
            manifest = read_manifest(_text(tar, member))
            continue
        if check_name(member.name) in unpacked:
            raise UserError(f"{file} holds {member.name} twice: somebody changed it. Nothing was restored.")
        unpacked[member.name] = _unpack_file(tar, member, _place(folder, member.name))
        tell(member.offset_data + member.size, size)
    if manifest is None:
        raise cut_off(file)
    if manifest.header != header:
        raise UserError(f"The header of {file} is not that of its manifest: somebody changed it.")
    _compare(manifest, unpacked, file)
    for name in manifest.void:
        if name in unpacked:
            _place(folder, name).unlink()
    for entry in manifest.files:
        if entry.same_as:
            link_or_copy(folder.root / entry.same_as, folder.root / entry.path)
    return manifest


def _place(folder: DataFolder, name: str) -> Path:
    """Where a file is unpacked: no program shall take the database for one before all is there."""
    return folder.root / (DRAFT if name == DATABASE else name)


def _refuse_strange(member: tarfile.TarInfo, folder: DataFolder, size: int) -> None:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise UserError(
            f"The backup holds {member.name!r}, which is no plain file: Plumb did not write this backup, or "
            "somebody changed it. Nothing was restored."
        )
    if member.size < 0 or member.offset_data + member.size > size:
        raise UserError(
            f"The backup holds {member.name!r} with {in_words(member.size)}, more than is left of it: it was cut "
            "off or changed. Nothing was restored."
        )
    if member.name != MANIFEST:
        check_name(member.name)
    try:
        if hasattr(tarfile, "data_filter"):  # since Python 3.11.4
            tarfile.data_filter(member, str(folder.root))
    except tarfile.FilterError as error:
        raise UserError(f"The backup holds a file that is refused ({error}). Nothing was restored.") from error


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> tuple[str, int]:
    target.parent.mkdir(parents=True, exist_ok=True)
    opened = tar.extractfile(member)
    assert opened is not None  # a plain file
    digest = hashlib.sha256()
    with opened, target.open("xb") as out:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
    if member.mtime > 0:
        with contextlib.suppress(OSError, OverflowError):
            os.utime(target, (member.mtime, member.mtime))
    return digest.hexdigest(), member.size


def _compare(manifest: Manifest, unpacked: dict[str, tuple[str, int]], file: Path) -> None:
    """Raise UserError unless the files are those of the manifest, each with its sha256."""
    named = {entry.path: entry for entry in manifest.files}
    if len(named) != len(manifest.files) or DATABASE not in named:
        raise UserError(f"The manifest of {file} is damaged; use another backup.")
    for path in unpacked.keys() - named.keys():
        if path not in manifest.void:
            raise UserError(f"{file} holds {path}, which its manifest does not name: somebody changed it.")
    for entry in manifest.files:
        check_name(entry.path)
        if entry.same_as and (entry.path in unpacked or DATABASE in (entry.path, entry.same_as)):
            raise UserError(f"{file} gives {entry.path} two contents: somebody changed it.")
        found = unpacked.get(entry.same_as or entry.path)
        if found is None:
            raise UserError(f"{file} lacks {entry.path}, which its manifest names; use another backup.")
        if found != (entry.sha256, entry.bytes):
            raise UserError(
                f"{entry.path} is not what it was when {file} was made (its sha256 differs): the file is damaged, "
                "or somebody changed it. Use another backup."
            )
