"""Data folders with something of everything in them, and what they hold, for tests of backup and repair."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factories import USER, World
from jobs.freezing import freeze
from jobs.runs import JobFile, RunFolder
from storage import jobs as store
from storage import pairs, recycling
from storage.adapters import add_adapter, keep_adapter
from storage.backup import backup
from storage.database import session
from storage.folder import DataFolder
from storage.images import image_path
from storage.inspection import list_images
from storage.lifecycle import JobStatus
from storage.records import Adapter, Attempt, Job
from storage.rows import Row, rows

Tables = dict[str, list[Row]]
Member = tuple[tarfile.TarInfo, bytes]


def run_of(world: World, job: Job, events: int = 3, log: str = "begun\n") -> RunFolder:
    """A run folder as submitting makes it, and as a worker fills it."""
    run = RunFolder(world.folder.run(job.id))
    images = list_images(world.db)[:2]
    file = JobFile(
        job_id=job.id,
        kind=job.kind,
        config=job.config,
        user=job.user,
        device="auto",
        models_dir=str(world.folder.models),
        created_at=job.created_at,
    )
    run.freeze(file, [{"sample_id": 1}], [(image.name, image_path(world.folder, image)) for image in images])
    run.events.write_text("".join(json.dumps({"kind": "progress", "n": n}) + "\n" for n in range(events)))
    run.log.write_text(log)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    return run


def begun(world: World, job: Job, status: JobStatus = JobStatus.RUNNING) -> Attempt:
    """Its attempt at work, by the database alone."""
    attempt = store.start_attempt(world.db, job.id)
    store.identify(world.db, attempt.id, os.getpid(), 1.0, os.getpid())
    world.db.conn.execute("UPDATE jobs SET status = ? WHERE id = ?", [status, job.id])
    return attempt


def ended(world: World, job: Job) -> None:
    """Done, with its attempt."""
    attempt = begun(world, job)
    store.end_attempt(world.db, attempt.id, "done", "", exit_code=0)
    store.move(world.db, job.id, JobStatus.DONE)


def trained(world: World, name: str = "mine", content: bytes = b"weights", size: int = 0) -> Adapter:
    """A done training with its adapter and a checkpoint."""
    job = world.job("dpo")
    run = run_of(world, job)
    ended(world, job)
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(content + bytes(size))
    (run.adapter / "adapter_config.json").write_text("{}")
    (run.checkpoints / "checkpoint-1").mkdir(parents=True)
    (run.checkpoints / "checkpoint-1" / "optimizer.pt").write_bytes(bytes(5000))
    sha256, total = keep_adapter(world.folder, run.adapter)
    add_adapter(world.db, job, name, sha256, total, "demo", "dpo")
    return Adapter(**rows(world.db, "SELECT * FROM adapters ORDER BY id DESC LIMIT 1")[0])


def fill(world: World, samples: int = 4) -> World:
    """Samples, scores, pairs, a frozen data set, an adapter, a deleted run, a judge's files."""
    for number in range(1, samples + 1):
        one, two = world.judged(world.sample(number, images=1 + number % 2), [12, 3])
        pairs.choose_by_hand(world.db, USER, one.id, two.id)
    for job in store.list_jobs(world.db):
        run_of(world, job)
        ended(world, job)
    freeze(world.db, USER, "first", heldout_percent=20)
    trained(world)
    gone = world.job("dpo")
    run_of(world, gone)
    ended(world, gone)
    recycling.mark_deleted(world.db, gone.id, USER)
    world.folder.bin.mkdir(exist_ok=True)
    world.folder.run(gone.id).rename(world.folder.binned(gone.id))
    (world.folder.judges / "rubrics").mkdir(parents=True)
    (world.folder.judges / "rubrics" / "mine.yaml").write_text("version: mine\n")
    (world.folder.judges / "ledger.json").write_text("{}\n")
    (world.folder.judges / "ledger.lock").touch()
    (world.folder.models / "demo").mkdir()
    (world.folder.models / "demo" / "model.safetensors").write_bytes(bytes(9000))
    (world.folder.references / "cache.bin").write_bytes(bytes(9000))
    world.folder.key()
    return world


def tables(world_or_folder: World | DataFolder) -> Tables:
    """Every row of every table, but for when which migration ran."""
    folder = world_or_folder.folder if isinstance(world_or_folder, World) else world_or_folder
    with session(folder) as db:
        names = [
            row["name"]
            for row in rows(db, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            if "_fts" not in row["name"] and not row["name"].startswith("_sqlite")
        ]
        return {name: sorted(rows(db, f"SELECT * FROM {name}"), key=repr) for name in names}


def files(folder: DataFolder) -> dict[str, str]:
    """sha256 of every file that belongs into a backup, by path; the database's aside."""
    found = {}
    for part in ("images", "thumbnails", "adapters", "judges", "runs"):
        for path in sorted((folder.root / part).rglob("*")):
            name = path.relative_to(folder.root).as_posix()
            if path.is_file() and "/checkpoints/" not in name and not name.endswith(".lock"):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# backups as files ---------------------------------------------------------------------------------------------


def kept(world: World, name: str = "plumb.tar", **options: Any) -> Path:
    target = world.folder.root.parent / name
    backup(world.folder, target, **options)
    return target


def members(file: Path) -> list[Member]:
    with tarfile.open(file, "r:") as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def rewritten(file: Path, change: Callable[[list[Member]], list[Member]]) -> Path:
    """The backup with other members, as somebody might make it."""
    target = file.with_name("changed.tar")
    with tarfile.open(target, "w") as tar:
        for member, data in change(members(file)):
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return target


def member(name: str, data: bytes = b"x", **values: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def before_manifest(*added: Member) -> Callable[[list[Member]], list[Member]]:
    return lambda found: [*found[:-1], *added, found[-1]]


def nothing_restored(folder: DataFolder) -> None:
    assert not folder.root.exists(), "as it was before"
