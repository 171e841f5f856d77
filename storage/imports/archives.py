"""Zip files from strangers, unpacked into a private folder. Nothing that a header says is trusted.

Only files that an import reads are written: rows and pictures. A zip that tries to leave its folder, hides a link,
is encrypted, or grows beyond bounds is refused as a whole; files of other kinds in it are counted and left out.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from storage.errors import UserError
from storage.units import in_words

ROWS = (".json", ".jsonl", ".parquet", ".arrow")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")

MOST_ENTRIES = 300_000
MOST_BYTES = 20_000_000_000  #: of all that one upload unpacks to
#: Bytes that one byte of a zip may become. Text packs up to about 20 times, deflate at most 1,032 times.
MOST_RATIO = 200
_RATIO_FROM = 10_000_000  # bytes; what is smaller does no harm
_MOST_DIRECTORY = 100_000_000  # bytes of the table of contents, which zipfile reads whole
_LONGEST_NAME, _LONGEST_PATH = 255, 1000
_CHUNK = 1 << 20
#: Left free on the disk, since others write to it.
SPARE_BYTES = 200_000_000

_PASSED_IN_SILENCE = re.compile(r"(^|/)(__MACOSX/|\.|Thumbs\.db$|desktop\.ini$)")

#: Is told bytes done and in all; may raise to end the unpacking.
Tell = Callable[[int, int], None]


@dataclass
class Unpacked:
    """What came out.

    Attributes:
        files: paths in the folder, in the zip's order.
        passed: {ending: how many} of files that no import reads.
    """

    files: list[str] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)


@dataclass
class Allowance:
    """What may still be unpacked, over all zips of one upload."""

    entries: int = MOST_ENTRIES
    bytes: int = MOST_BYTES


def unpack(file: Path, into: Path, allowance: Allowance | None = None, tell: Tell | None = None) -> Unpacked:
    """Unpack what an import reads into a folder, in which other zips of the same upload may have been unpacked.

    Args:
        allowance: is used up.

    Raises:
        UserError: no zip, cut off, damaged, encrypted, or one that looks like an attack; what was written by then
            is the caller's to remove.
    """
    allowance = allowance or Allowance()
    name = file.name
    try:
        _refuse_long_directory(file)
        with zipfile.ZipFile(file) as opened:
            wanted, passed = _wanted(opened, name, into)
            allowance.entries -= len(opened.infolist())
            if allowance.entries < 0:
                raise UserError(
                    f"{name} holds more than {MOST_ENTRIES:,} files. Divide it, or import a folder on the server "
                    "with `python -m storage import`."
                )
            _check_sizes(name, wanted, allowance, into)
            total = sum(info.file_size for info, _ in wanted)
            done = 0
            for info, path in wanted:
                done = _write(opened, info, into / path, name, allowance, done, total, tell)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error) as error:
        raise UserError(f"{name} is no zip file, or it is cut off or damaged ({error}). Make it again.") from error
    except NotImplementedError as error:
        raise UserError(
            f"{name} is packed in a way that isn't read ({error}). Use deflate, as most do."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be unpacked ({error}).") from error
    return Unpacked([path for _, path in wanted], passed)


def only_folder_in(folder: Path) -> Path:
    """Where all lies in one top folder, as zips are often made, that one."""
    for _ in range(10):
        held = list(folder.iterdir())
        if len(held) != 1 or not held[0].is_dir():
            break
        folder = held[0]
    return folder


def check_room(folder: Path, needed: int) -> None:
    """Raise UserError where the folder's disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"This takes {in_words(needed)}, and {in_words(free)} are free where the data folder lies. Free some "
            "space (the Machine page shows what takes it), or bring fewer files."
        )


def safe_name(name: str, of: str) -> str:
    """An entry's name as a path below the folder.

    Raises:
        UserError: it leads elsewhere, or is no name that every system can write.
    """
    path = unicodedata.normalize("NFC", name.replace("\\", "/"))
    parts = path.split("/")
    leaves = path.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", path)
    if leaves:
        raise UserError(f"{of} holds {name[:100]!r}, which would lie outside of its folder. Nothing was taken.")
    odd = any(unicodedata.category(character) in ("Cc", "Cs") for character in path)
    if odd or "" in parts or "." in parts or len(path) > _LONGEST_PATH or len(parts) > 30:
        raise UserError(f"{of} holds a file whose name cannot be used: {name[:100]!r}. Name it otherwise.")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise UserError(f"{of} holds a file whose name is too long: {name[:60]!r}…")
    return path


def _wanted(
    opened: zipfile.ZipFile, name: str, into: Path
) -> tuple[list[tuple[zipfile.ZipInfo, str]], Counter[str]]:
    """(entry, path) of what is read, and how many of which ending are not."""
    wanted: list[tuple[zipfile.ZipInfo, str]] = []
    passed: Counter[str] = Counter()
    seen: dict[str, str] = {}
    for info in opened.infolist():
        if info.is_dir():
            safe_name(info.filename.rstrip("/\\") or "/", name)
            continue
        path = safe_name(info.filename, name)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise UserError(
                f"{name} holds {path[:100]!r}, which is a link or no plain file. Pack the files themselves."
            )
        if info.flag_bits & 0x1:
            raise UserError(f"{name} is encrypted. Pack it without a password.")
        if _PASSED_IN_SILENCE.search(path):
            continue
        suffix = PurePosixPath(path).suffix.lower()
        if suffix not in ROWS + PICTURES:
            passed[suffix or "no ending"] += 1
            continue
        key = path.casefold()  # on some systems names that differ in case are one file
        if key in seen or (into / path).exists():
            raise UserError(f"Two files are called {path[:100]!r} ({name}). Rename one of them.")
        seen[key] = path
        wanted.append((info, path))
    folders = {str(parent).casefold() for path in seen.values() for parent in PurePosixPath(path).parents}
    if clash := next((path for key, path in seen.items() if key in folders), None):
        raise UserError(
            f"{name} has a file and a folder that are both called {clash[:100]!r}. Rename one of them."
        )
    return wanted, passed


def _check_sizes(name: str, wanted: list[tuple[zipfile.ZipInfo, str]], allowance: Allowance, into: Path) -> None:
    """Refuse by what the headers say, before anything is written; `_write` counts what really comes."""
    for info, path in wanted:
        if info.file_size > _RATIO_FROM and info.file_size > MOST_RATIO * max(1, info.compress_size):
            raise _bomb(name, path)
    total = sum(info.file_size for info, _ in wanted)
    if total > allowance.bytes:
        raise UserError(f"{name} unpacks to {in_words(total)}; the limit of an upload is {in_words(MOST_BYTES)}.")
    check_room(into, total)


def _write(
    opened: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    target: Path,
    name: str,
    allowance: Allowance,
    done: int,
    total: int,
    tell: Tell | None,
) -> int:
    """Write one file, counting; returns the bytes of all up to now."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    # "x": never through what lies there already.
    with opened.open(info) as packed, target.open("xb") as out:
        while chunk := packed.read(_CHUNK):
            written += len(chunk)
            allowance.bytes -= len(chunk)
            if allowance.bytes < 0 or (
                written > _RATIO_FROM and written > MOST_RATIO * max(1, info.compress_size)
            ):
                raise _bomb(name, info.filename)
            out.write(chunk)
            if tell:
                tell(done + written, total)
    return done + written


def _bomb(name: str, path: str) -> UserError:
    return UserError(
        f"{name}: {path[:100]!r} unpacks to more than {MOST_RATIO} times its size, or beyond the limit of "
        f"{in_words(MOST_BYTES)}, as files do that are made to fill disks. Upload it unpacked if it is honest."
    )


def _refuse_long_directory(file: Path) -> None:
    """zipfile reads the table of contents whole: look first how long it says it is."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - (1 << 16) - 22 - 76))
        tail = opened.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("its table of contents is missing")
    lengths = [struct.unpack_from("<L", tail, end + 12)[0] % 0xFFFFFFFF]
    large = tail.rfind(b"PK\6\6", 0, end)
    if large >= 0 and len(tail) >= large + 48:
        lengths.append(struct.unpack_from("<Q", tail, large + 40)[0])
    if max(lengths) > _MOST_DIRECTORY:
        raise UserError(f"{file.name} holds more than {MOST_ENTRIES:,} files. Divide it.")
