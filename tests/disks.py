"""Files of a size, a disk with little room, jobs that it has stopped: for the tests of disk and room."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from factories import World
from jobs import disk, disk_guard
from storage import jobs as store
from storage.database import immediate
from storage.lifecycle import JobStatus
from storage.records import Job

Space = namedtuple("Space", "total used free")
GB = 1_000_000_000


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def taken(*paths: Path) -> int:
    """What the file system has set aside for these files, each by one of its names."""
    return sum(path.stat().st_blocks * 512 or path.stat().st_size for path in paths)


def set_free(monkeypatch: pytest.MonkeyPatch, free: float, total: float = 500 * GB) -> None:
    """From here on the disk has so many bytes free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(int(total), int(total - free), int(free)))


def paused(world: World, kind: str = "generate", folder: bool = True, **config: object) -> Job:
    """A job that a full disk has stopped, with its attempt."""
    job = world.job(kind, **config)
    with immediate(world.db):
        attempt = store.start_attempt(world.db, job.id)
        store.move(world.db, job.id, JobStatus.STARTING)
        store.move(world.db, job.id, JobStatus.PAUSED, "The disk is full. [No space left on device]")
        store.end_attempt(world.db, attempt.id, JobStatus.PAUSED, "The disk is full.", "disk")
    if folder:
        world.folder.run(job.id).mkdir(parents=True, exist_ok=True)
    return store.get_job(world.db, job.id)


def forget_all() -> None:
    """What earlier tests have measured counts for nothing."""
    for cache in (disk._walked, disk._runs, disk._frozen, disk_guard._told, disk_guard._reckonings):
        cache.clear()
