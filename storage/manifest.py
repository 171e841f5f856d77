"""What a backup says of itself: the format that `storage.backup` writes and `storage.restore` reads.

A backup is a plain tar file. Its first member is the header, so that one of a newer Plumb is refused before
anything is unpacked; then come the files under their paths in the data folder; its last member is the manifest,
which names each file with its sha256. A backup that was cut off has none. Files with several names (an image of a
run folder is a hard link to the image) are in it once, and the manifest says what else they are called.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import UserError

FORMAT = 1
HEADER, MANIFEST, DATABASE = "plumb-backup.json", "manifest.json", "plumb.db"

#: The parts of a data folder that can be in a backup; anything else in one is refused.
PARTS = ("images", "thumbnails", "adapters", "judges", "runs")

#: What is not in a backup, and why, for whoever makes one.
LEFT_OUT = (
    "references/ and models/ (assembled and merged weights), which can be made again",
    "runtime/ (locks and the key of this data folder): everybody logs in again",
)

CHECKPOINTS = ("checkpoints of trainings (--with-checkpoints keeps them)",)

_LONGEST_NAME = 255  # bytes, of most file systems


@dataclass(frozen=True)
class Header:
    """What is known before the first file is read.

    Attributes:
        plumb: the version that wrote it.
        migrations: of its database, in order.
        bytes: about how much is in it; files may grow while it is made.
        with_checkpoints: whether the checkpoints of trainings are in it.
    """

    plumb: str
    migrations: tuple[str, ...]
    created_at: str
    bytes: int
    with_checkpoints: bool = False
    format: int = FORMAT


@dataclass(frozen=True)
class Entry:
    """A file by its path in the data folder. `same_as` is the path under which its bytes are in the tar file."""

    path: str
    sha256: str
    bytes: int
    same_as: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a whole backup holds.

    Attributes:
        missing: what the database names and was not there, or vanished while the backup was made.
        damaged: files that are in it as they are, though their content is not what their name says.
        void: members of the tar file that count for nothing: they became shorter while they were read.
        without_checkpoints: jobs whose checkpoints were left out.
        cut_logs: job → bytes that are missing from the beginning of its log.txt.
    """

    header: Header
    files: tuple[Entry, ...]
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    void: tuple[str, ...] = ()
    without_checkpoints: tuple[int, ...] = ()
    cut_logs: dict[int, int] = field(default_factory=dict)


def written(what: Header | Manifest) -> bytes:
    """As a member of the tar file. Only ASCII: a file's name may hold bytes that are no text."""
    return (json.dumps(dataclasses.asdict(what), indent=1) + "\n").encode()


def read_header(data: bytes) -> Header:
    """Raises UserError where it is none, or of a format that this version does not know."""
    values = _object(data)
    if values.get("format") != FORMAT:
        raise UserError(
            f"The backup has format {values.get('format')!r}; this Plumb reads {FORMAT}. "
            "Restore it with the version that wrote it."
        )
    return _header(values)


def read_manifest(data: bytes) -> Manifest:
    """Raises UserError where it is none."""
    values = _object(data)
    try:
        return Manifest(
            header=_header(values["header"]),
            files=tuple(
                Entry(str(one["path"]), str(one["sha256"]), int(one["bytes"]), str(one["same_as"]))
                for one in values["files"]
            ),
            missing=tuple(map(str, values["missing"])),
            damaged=tuple(map(str, values["damaged"])),
            void=tuple(map(str, values["void"])),
            without_checkpoints=tuple(map(int, values["without_checkpoints"])),
            cut_logs={int(job): int(cut) for job, cut in values["cut_logs"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(error) from error


def _header(values: Any) -> Header:
    try:
        return Header(
            plumb=str(values["plumb"]),
            migrations=tuple(map(str, values["migrations"])),
            created_at=str(values["created_at"]),
            bytes=int(values["bytes"]),
            with_checkpoints=bool(values["with_checkpoints"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(error) from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _broken(error) from error
    if not isinstance(values, dict):
        raise _broken(TypeError("no object"))
    return values


def _broken(error: Exception) -> UserError:
    return UserError(
        f"The backup's own description is damaged ({type(error).__name__}: {error}); use another backup."
    )


def check_name(name: str) -> str:
    """The path of a file in a backup, as it is.

    Raises:
        UserError: it leaves the data folder, names nothing that a backup holds, or no file system takes it.
    """
    parts = name.split("/")
    unsafe = "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts)
    if unsafe or (name != DATABASE and (parts[0] not in PARTS or len(parts) < 2)):
        raise UserError(
            f"The backup holds {name!r}, which is no file of a data folder: Plumb did not write this backup, or "
            "somebody changed it. Nothing was restored."
        )
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise UserError(f"The backup holds a file whose name is too long: {name[:80]!r} …. Nothing was restored.")
    return name


def version() -> str:
    """This Plumb's version, from the file beside its code; `unknown` where that was not copied along."""
    try:
        text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
        return str(tomllib.loads(text)["project"]["version"])
    except (OSError, ValueError, KeyError):
        return "unknown"
