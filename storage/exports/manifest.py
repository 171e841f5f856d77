"""manifest.json beside an exported data set: what it is, and by which hashes it is known again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.records import Dataset

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    Attributes:
        format: one of `storage.exports.writing.FORMATS`.
        hash: the data set's, over all rows and splits.
        files: name → sha256 of each file but the images, which are named by theirs.
    """

    name: str
    format: str
    hash: str
    rule: dict[str, Any]
    counts: dict[str, Any]
    created_at: str
    files: dict[str, str]


def write_manifest(folder: Path, dataset: Dataset, kind: str, names: list[str]) -> Manifest:
    """Write manifest.json; called last: a folder without one is not whole."""
    files = {name: sha256_of(folder / name) for name in names}
    made = Manifest(dataset.name, kind, dataset.hash, dataset.rule, dataset.counts, dataset.created_at, files)
    told = {"plumb": VERSION, **made.__dict__}
    (folder / MANIFEST).write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return made


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError where there is none, or it is of another version."""
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_text("utf-8"))
        version = told.pop("plumb")
        if version != VERSION:
            raise UserError(f"{path} is of version {version}; this Plumb reads {VERSION}. Update Plumb.")
        return Manifest(**told)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST}: it is no data set that Plumb exported, or the export was cut off."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the data set again.") from None


def check_manifest(folder: Path) -> Manifest:
    """The manifest of a folder whose files are those that were exported.

    Raises:
        UserError: a file is missing or was changed since; the text names both hashes.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.resolve().parent != folder.resolve():
            raise UserError(f"{path} is missing; export the data set {manifest.name!r} again.")
        found = sha256_of(path)
        if found != expected:
            raise UserError(
                f"{path} was changed since it was exported: its sha256 is {found[:12]}…, the manifest says "
                f"{expected[:12]}…. Export the data set {manifest.name!r} again."
            )
    return manifest


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
