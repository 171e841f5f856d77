"""What the data folder takes of its disk, by part and by run; and the budget that it may be given.

A file is counted once, however many names it has: images and adapters are hard-linked into run folders, so that a
walk that added names up would tell many times what there is. Bytes are those that the file system has set aside
(`st_blocks`), as `du` counts them: forty thousand events files of a line each take a block each.

A walk costs about 10 µs a file, so that what it found is kept for a while, the longer the more it cost: pages and
the supervisor may ask at every tick.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sqlite_utils import Database

from jobs.runs import RunFolder
from storage.database import session
from storage.errors import UserError
from storage.folder import DataFolder
from storage.settings import get_setting, put_setting
from storage.units import in_words

#: The setting with the bytes that the data folder may take.
BUDGET = "disk_budget"
SMALLEST_BUDGET = 10_000_000

#: For how long a walk's result holds: at least so long, and so many times the seconds that it took.
KEEP_SECONDS, KEEP_TIMES = 10.0, 30.0
RUN_SECONDS = 3.0
FROZEN_SECONDS = 600.0  # what lies in a run folder's data/ was frozen with it
_MOST_RUNS = 2_000  # of which a size is remembered

#: Parts in the order in which they take up a file with several names: the run folders come last.
PARTS = (
    "database",
    "images",
    "adapters",
    "models",
    "references",
    "judges",
    "runtime",
    "other",
    "runs",
    "bin",
)


@dataclass(frozen=True)
class Usage:
    """The disk under the data folder, and what of it the data folder takes. All in bytes.

    Attributes:
        total, free: of the file system; free is what this user may still write.
        used_by_parts: of each of `PARTS`; "images" has thumbnails with it, "bin" is deleted runs.
        budget: what the data folder may take; None where nobody has set one.
    """

    total: int
    free: int
    used_by_parts: Mapping[str, int]
    budget: int | None = None

    @property
    def used(self) -> int:
        """What the data folder takes in all."""
        return sum(self.used_by_parts.values())


@dataclass(frozen=True)
class Measured:
    """What a walk through a data folder found, in bytes.

    Attributes:
        runs: by job, what its run folder alone holds: deleting it frees that.
        binned: the same of the runs in the bin.
    """

    parts: Mapping[str, int]
    runs: Mapping[int, int] = field(default_factory=dict)
    binned: Mapping[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """What the whole data folder takes."""
        return sum(self.parts.values())


class RunSizes(NamedTuple):
    """Bytes of a run folder.

    Attributes:
        own: what it alone holds: deleting it frees that. Images and adapters that it shares with the data folder
            by hard links are not in it.
        whole: the lengths of all its files, shared or not: what its download takes, unpacked.
    """

    own: int = 0
    whole: int = 0


def usage(folder: DataFolder) -> Usage:
    """What the data folder takes, from a walk that may be some seconds old; free bytes are of now.

    Raises:
        OSError: the data folder is gone.
    """
    with session(folder) as db:
        budget = get_budget(db)
    there = shutil.disk_usage(folder.root)
    return Usage(there.total, there.free, dict(measured(folder).parts), budget)


def largest_runs(folder: DataFolder, most: int = 10) -> list[tuple[int, int]]:
    """(job, bytes that only its run folder holds) of the runs that take most, those in the bin left out."""
    found = measured(folder).runs.items()
    return sorted(found, key=lambda one: (-one[1], one[0]))[:most]


def get_budget(db: Database) -> int | None:
    """Bytes that the data folder may take; None for as many as there are."""
    found = get_setting(db, BUDGET)
    return None if found is None else int(found)


def set_budget(db: Database, budget: int | None, user: str) -> None:
    """Set the bytes that the data folder may take, or, with None, take the limit away.

    While it is used up nothing new starts; what runs goes on (jobs/disk_guard.py).

    Raises:
        UserError: it is too small for anything.
    """
    if budget is not None and (isinstance(budget, bool) or budget < SMALLEST_BUDGET):
        raise UserError(
            f"disk_budget = {budget}: give at least {SMALLEST_BUDGET:,} bytes ({in_words(SMALLEST_BUDGET)}), or "
            "none for no limit."
        )
    put_setting(db, BUDGET, budget, user)


# walking ----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_walked: dict[Path, tuple[float, Measured]] = {}  # root → (until when it holds, what was found)
_runs: dict[Path, tuple[float, RunSizes]] = {}
_frozen: dict[Path, tuple[float, RunSizes]] = {}


def measured(folder: DataFolder) -> Measured:
    """What the latest walk found; a new one where that is too old. Of several who ask at once, one walks."""
    kept = _walked.get(folder.root)
    if kept is not None and time.monotonic() < kept[0]:
        return kept[1]
    # Whoever has something to go by need not wait for the one who walks.
    if not _lock.acquire(blocking=kept is None):
        assert kept is not None
        return kept[1]
    try:
        kept = _walked.get(folder.root)
        if kept is None or time.monotonic() >= kept[0]:
            began = time.monotonic()
            found = measure(folder)
            took = time.monotonic() - began
            kept = (began + took + max(KEEP_SECONDS, KEEP_TIMES * took), found)
            _walked[folder.root] = kept
        return kept[1]
    finally:
        _lock.release()


def forget(folder: DataFolder) -> None:
    """Walk again at the next question: for whoever has just freed something."""
    _walked.pop(folder.root, None)
    for cache in (_runs, _frozen):
        for path in [path for path in list(cache) if path.is_relative_to(folder.root)]:
            cache.pop(path, None)


def measure(folder: DataFolder) -> Measured:
    """Walk through the whole data folder. What disappears on the way is not counted."""
    known = {
        "database": [folder.database.with_name(folder.database.name + end) for end in ("", "-wal", "-shm")],
        "images": [folder.images, folder.thumbnails],
        "adapters": [folder.adapters],
        "models": [folder.models],
        "references": [folder.references],
        "judges": [folder.judges],
        "runtime": [folder.runtime],
    }
    named = {path for paths in known.values() for path in paths} | {folder.runs}
    known["other"] = [path for path in _children(folder.root) if path not in named]
    seen: set[tuple[int, int]] = set()
    parts = {part: _add(known[part], seen) for part in PARTS if part in known}
    runs: dict[int, int] = {}
    binned: dict[int, int] = {}
    parts["runs"] = _add_runs((path for path in _children(folder.runs) if path != folder.bin), seen, runs)
    parts["bin"] = _add_runs(_children(folder.bin), seen, binned)
    return Measured(parts, runs, binned)


def run_bytes(run: RunFolder) -> int:
    """What a run folder alone holds, as `RunSizes.own`."""
    return run_sizes(run).own


def run_sizes(run: RunFolder) -> RunSizes:
    """What a run folder takes, from some seconds ago. 0 where it is gone."""
    now = time.monotonic()
    until, found = _runs.get(run.path, (0.0, RunSizes()))
    if now < until:
        return found
    data = run.path / "data"
    frozen_until, frozen = _frozen.get(run.path, (0.0, RunSizes()))
    if now >= frozen_until:
        frozen = _sizes([data])
        if (run.path / "job.json").exists():  # the last file of the freezing
            _keep(_frozen, run.path, (now + FROZEN_SECONDS, frozen))
    rest = _sizes(path for path in _children(run.path) if path != data)
    found = RunSizes(frozen.own + rest.own, frozen.whole + rest.whole)
    took = time.monotonic() - now
    _keep(_runs, run.path, (now + max(RUN_SECONDS, KEEP_TIMES * took), found))
    return found


def folder_bytes(path: Path) -> int:
    """What the files below a folder take, each counted once; not remembered. 0 where it is gone."""
    return _add([path], set())


def own_bytes(path: Path) -> int:
    """What removing this folder frees: files with other names elsewhere are not in it. Not remembered."""
    return _sizes([path]).own


def _keep(cache: dict[Path, tuple[float, RunSizes]], path: Path, value: tuple[float, RunSizes]) -> None:
    if len(cache) >= _MOST_RUNS:
        cache.clear()
    cache[path] = value


def _add(paths: Iterable[Path], seen: set[tuple[int, int]]) -> int:
    """Bytes of the files that nobody has counted yet."""
    total = 0
    for found in _files(paths):
        if found.st_nlink > 1:
            key = (found.st_dev, found.st_ino)
            if key in seen:
                continue
            seen.add(key)
        total += _taken(found)
    return total


def _add_runs(paths: Iterable[Path], seen: set[tuple[int, int]], runs: dict[int, int]) -> int:
    """As `_add`, of run folders; what each alone holds goes into `runs`, where a job's number is its name."""
    total = 0
    for path in paths:
        own, shared = _split(_files([path]))
        if path.name.isdigit():
            runs[int(path.name)] = own
        total += own
        for key, size in shared.items():
            if key not in seen:
                seen.add(key)
                total += size
    return total


def _sizes(paths: Iterable[Path]) -> RunSizes:
    found = list(_files(paths))
    return RunSizes(_split(found)[0], sum(one.st_size for one in found if stat.S_ISREG(one.st_mode)))


def _split(found: Iterable[os.stat_result]) -> tuple[int, dict[tuple[int, int], int]]:
    """(bytes of files all of whose names are among these, bytes of each other file by its inode)."""
    own = 0
    several: dict[tuple[int, int], tuple[int, int, int]] = {}  # inode → (names found, names it has, bytes)
    for one in found:
        if one.st_nlink <= 1:
            own += _taken(one)
        else:
            key = (one.st_dev, one.st_ino)
            several[key] = (several.get(key, (0, 0, 0))[0] + 1, one.st_nlink, _taken(one))
    own += sum(size for names, links, size in several.values() if names >= links)
    return own, {key: size for key, (names, links, size) in several.items() if names < links}


def _files(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """The files at and below these paths. Links are not followed; what cannot be read is passed over."""
    waiting: list[str] = []
    for path in paths:
        try:
            found = os.lstat(path)
        except OSError:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            waiting.append(str(path))
        else:
            yield found
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        else:
                            yield entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
        except OSError:
            continue


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _taken(found: os.stat_result) -> int:
    """Where a file system keeps a small file beside its name, or tells no blocks, its length counts."""
    return getattr(found, "st_blocks", 0) * 512 or found.st_size
