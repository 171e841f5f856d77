"""What was uploaded or fetched, laid out in a private folder until it is imported; and what it seems to be.

Each process has a room of its own below the data folder's `runtime/uploads`, which it holds by a lock as long as
it lives. Rooms that nobody holds are of processes that have died: the next start clears them away.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from storage.errors import UserError
from storage.folder import DataFolder
from storage.imports.archives import (
    PICTURES,
    ROWS,
    Allowance,
    Tell,
    only_folder_in,
    safe_name,
    unpack,
)
from storage.imports.formats import FORMATS
from storage.imports.incoming import Broken
from storage.imports.reading import pictures_in
from storage.imports.sources import ABOUT, read_rows, row_files

_LOOKED_AT = 20  # rows of a file by which its kind is guessed
_MOST_FOLDERS = 500  # in which images are looked for
# A format whose rows others could read too comes before these.
_GUESSES = ("vlfeedback", "trl", "rlhf-v", "llava", "vqa-rad", "jsonl")


class Room:
    """A process's own folder for uploads, made when it is first needed."""

    def __init__(self, folder: DataFolder) -> None:
        self._all = folder.runtime / "uploads"
        self._lock: FileLock | None = None
        self._own: Path | None = None

    def clear_others(self) -> int:
        """Remove what processes left that are no more; returns how many rooms."""
        cleared = 0
        for place in sorted(self._all.glob("*.room")) if self._all.is_dir() else []:
            lock = FileLock(place.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            shutil.rmtree(place, ignore_errors=True)
            place.with_suffix(".lock").unlink(missing_ok=True)
            lock.release()
            cleared += 1
        return cleared

    def new_folder(self) -> Path:
        """An empty folder in it."""
        if self._own is None:
            self._all.mkdir(parents=True, exist_ok=True)
            own = self._all / f"{secrets.token_hex(8)}.room"
            self._lock = FileLock(own.with_suffix(".lock"))
            self._lock.acquire()  # before the folder is there: nobody shall find it unheld
            own.mkdir(mode=0o700)
            self._own = own
        made = self._own / secrets.token_hex(8)
        made.mkdir()
        return made

    def close(self) -> None:
        """Remove it, before the process ends."""
        if self._own is not None and self._lock is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
            self._own = self._lock = None


@dataclass
class Staged:
    """What lies ready.

    Attributes:
        folder: all of it; a lone top folder of a zip is left out.
        rows: the files of rows, those first that are read unless told otherwise.
        pictures: how many.
        passed: {ending: how many} of files that no import reads.
    """

    folder: Path
    rows: tuple[Path, ...]
    pictures: int = 0
    passed: Counter[str] = field(default_factory=Counter)


def stage(files: Sequence[tuple[str, Path]], into: Path, tell: Tell | None = None) -> Staged:
    """Lay files out: zips unpacked, others moved to their place.

    Args:
        files: (name, where it lies now); a name may have folders in it. What lies there is moved or removed.
        into: an empty folder, of which the caller disposes.

    Raises:
        UserError: nothing in it can be imported; see also `archives.unpack`.
    """
    allowance, passed = Allowance(), Counter[str]()
    for name, path in sorted(files, key=lambda file: file[0].lower().endswith(".zip")):
        name = safe_name(name, "The upload")
        suffix = Path(name).suffix.lower()
        if suffix == ".zip":
            held = path.with_name(Path(name).name)
            if held != path:
                os.replace(path, held)
            passed += unpack(held, into, allowance, tell).passed
            held.unlink()
        elif suffix in ROWS + PICTURES:
            target = into / name
            if target.exists():
                raise UserError(f"Two files are called {name!r}. Rename one of them.")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
        else:
            passed[suffix or "no ending"] += 1
    folder = only_folder_in(into)
    pictures = sum(Path(name).suffix.lower() in PICTURES for _, _, names in os.walk(folder) for name in names)
    if not pictures and not any(folder.rglob("*.*")):
        held_of = f" ({told_passed(passed)})" if passed else ""
        raise UserError(
            f"Nothing in there can be imported{held_of}. Upload rows as {', '.join(ROWS)}, with their images "
            "beside them, or a zip of both."
        )
    try:
        rows = row_files(folder)
    except UserError:
        raise UserError(
            f"There are {pictures:,} images and no rows. Add the file that tells what is asked about them: "
            f"{', '.join(ROWS)}."
        ) from None
    others = [file for file in folder.rglob("*.json") if file not in rows and file.name not in ABOUT]
    return Staged(folder, (*rows, *sorted(others)), pictures, passed)


def told_passed(passed: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} × {ending}" for ending, number in sorted(passed.items()))


@dataclass(frozen=True)
class Guess:
    """What staged files seem to be.

    Attributes:
        kind: "" where no format reads any of the first rows.
        files: those whose rows that kind reads.
        images: the folder from which images are named.
        problems: {file's name: why it cannot be read at all}.
    """

    kind: str
    files: tuple[Path, ...]
    images: Path
    problems: Mapping[str, str] = field(default_factory=dict)


def guess(staged: Staged, kind: str = "") -> Guess:
    """Look at the first rows of each file.

    Args:
        kind: it is known; only files and images are guessed.
    """
    held: dict[Path, list[Mapping[str, Any]]] = {}
    problems: dict[str, str] = {}
    for file in staged.rows:
        try:
            first = itertools.islice(read_rows(file), _LOOKED_AT)
            held[file] = [row for _, row in first if not isinstance(row, Broken)]
        except UserError as error:
            problems[file.name] = str(error)
    read = {one: {file: _readable(one, rows) for file, rows in held.items()} for one in _GUESSES}
    if not kind:
        best = max(_GUESSES, key=lambda one: sum(read[one].values()))
        kind = best if sum(read[best].values()) else ""
    files = tuple(file for file in held if kind and read[kind][file]) or tuple(held)[:1]
    rows = [row for file in files for row in held[file]]
    return Guess(kind, files, _images(staged.folder, kind, rows), problems)


def _readable(kind: str, rows: Sequence[Mapping[str, Any]]) -> int:
    found = 0
    for row in rows:
        try:
            FORMATS[kind](row, Path("/"))
            found += 1
        except Broken:
            continue
    return found


def _images(folder: Path, kind: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The folder in which most of the images lie that these rows name."""
    best, most = folder, 0
    for place in _folders(folder):
        hits = asked = 0
        for row in rows if kind else ():
            try:
                named = [picture for one in FORMATS[kind](row, place) for picture in pictures_in(one)]
            except Broken:
                continue
            files = [picture.file for picture in named if picture.file is not None]
            asked += len(files)
            hits += sum(map(_is_file, files))
        if hits > most:
            best, most = place, hits
        if hits and hits == asked:
            break
    return best


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _folders(folder: Path) -> Iterator[Path]:
    """The folder and those in it, the upper ones first."""
    found = [Path(place) for place, _, _ in itertools.islice(os.walk(folder), _MOST_FOLDERS)]
    return iter(sorted(found, key=lambda place: len(place.parts)))
