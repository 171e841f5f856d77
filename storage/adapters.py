"""Adapters by content address, each with the job and the data set it came from."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.files import link_or_copy
from storage.folder import DataFolder
from storage.lifecycle import ENDED
from storage.records import Adapter, Job, now
from storage.rows import count, marks, one, rows


def keep_adapter(folder: DataFolder, source: Path) -> tuple[str, int]:
    """Put a worker's adapter folder under its content address; returns (sha256, bytes).

    The address covers file names and contents. Files are hard links where the file system allows.

    Raises:
        UserError: the folder has no safetensors file.
    """
    files = sorted(file for file in source.iterdir() if file.is_file()) if source.is_dir() else []
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"{source} holds no adapter: there is no .safetensors file in it.")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    sha256 = digest.hexdigest()
    for file in files:
        link_or_copy(file, folder.adapters / sha256 / file.name)
    return sha256, sum(file.stat().st_size for file in files)


def add_adapter(db: Database, job: Job, name: str, sha256: str, size: int, base_model: str, method: str) -> None:
    """Record a job's adapter; a second time is a no-op."""
    db.conn.execute(
        "INSERT OR IGNORE INTO adapters"
        " (name, sha256, base_model, method, bytes, job_id, dataset_id, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [name, sha256, base_model, method, size, job.id, job.dataset_id, now()],
    )


def get_adapter(db: Database, adapter_id: int) -> Adapter:
    """Raises NotFound."""
    found = one(db, "SELECT * FROM adapters WHERE id = ?", [adapter_id])
    if found is None:
        raise NotFound(f"There is no adapter {adapter_id}; train one on the Jobs page.")
    return Adapter(**found)


def list_adapters(db: Database, base_model: str | None = None) -> list[Adapter]:
    """Newest first; of one base or of all."""
    where, values = ("WHERE base_model = ?", [base_model]) if base_model else ("", [])
    return [Adapter(**row) for row in rows(db, f"SELECT * FROM adapters {where} ORDER BY id DESC", values)]


def rename_adapter(db: Database, adapter_id: int, name: str) -> Adapter:
    """Give an adapter another name: a label of the database, its files and their card stay as they are.

    Raises:
        NotFound: it is not there.
        UserError: the name is empty, too long, or has a line break in it.
    """
    name = name.strip()
    if not name or len(name) > 80 or not name.isprintable():
        raise UserError(f"name = {name[:90]!r}: give the adapter a name of 1 to 80 characters, in one line.")
    get_adapter(db, adapter_id)
    db.conn.execute("UPDATE adapters SET name = ? WHERE id = ?", [name, adapter_id])
    return get_adapter(db, adapter_id)


@dataclass(frozen=True)
class AdapterUses:
    """What stands on an adapter, and what shares its files.

    Attributes:
        jobs: not ended, and need it (or are about to leave it).
        adapters: trained further from it.
        candidates: answers drawn with it.
        turns: answers of the chat.
        twins: other adapters with the same files.
    """

    jobs: tuple[int, ...]
    adapters: tuple[int, ...]
    candidates: int
    turns: int
    twins: int

    @property
    def free(self) -> bool:
        """Whether it can go."""
        return not (self.jobs or self.adapters or self.candidates or self.turns)


def uses_of(db: Database, adapter: Adapter) -> AdapterUses:
    """What would lose its lineage if the adapter went."""
    ended = [str(status) for status in ENDED]
    jobs = rows(
        db,
        f"""SELECT id FROM jobs j WHERE status NOT IN ({marks(ended)}) AND (adapter_id = ? OR id = ? OR EXISTS (
                SELECT 1 FROM json_each(j.config, '$.adapters') WHERE value = ?)) ORDER BY id""",
        [*ended, adapter.id, adapter.job_id, adapter.id],
    )
    further = rows(
        db,
        "SELECT a.id FROM adapters a JOIN jobs j ON j.id = a.job_id WHERE j.adapter_id = ? ORDER BY a.id",
        [adapter.id],
    )
    return AdapterUses(
        jobs=tuple(row["id"] for row in jobs),
        adapters=tuple(row["id"] for row in further),
        candidates=count(db, "SELECT count(*) FROM candidates WHERE adapter_id = ?", [adapter.id]),
        turns=count(db, "SELECT count(*) FROM turns WHERE adapter_id = ?", [adapter.id]),
        twins=count(
            db, "SELECT count(*) FROM adapters WHERE sha256 = ? AND id <> ?", [adapter.sha256, adapter.id]
        ),
    )


def delete_adapter(db: Database, folder: DataFolder, adapter_id: int) -> bool:
    """Delete an adapter that nothing stands on; returns whether its files went, too.

    They stay where another adapter has the same ones. With them goes the copy that its training left in the run
    folder, a second name of the same bytes; log, curves and settings of the job stay. There is no undo.

    Raises:
        NotFound: it is not there.
        Conflict: something stands on it; nothing was deleted.
    """
    with immediate(db):
        adapter = get_adapter(db, adapter_id)
        uses = uses_of(db, adapter)
        refuse_used(adapter, uses)
        # Jobs that have ended and left nothing of it keep its number in their frozen settings.
        db.conn.execute("UPDATE jobs SET adapter_id = NULL WHERE adapter_id = ?", [adapter.id])
        db.conn.execute("DELETE FROM adapters WHERE id = ?", [adapter.id])
    if uses.twins:
        return False
    shutil.rmtree(folder.adapters / adapter.sha256, ignore_errors=True)
    shutil.rmtree(folder.run(adapter.job_id) / "adapter", ignore_errors=True)
    return True


def refuse_used(adapter: Adapter, uses: AdapterUses) -> None:
    """Raise Conflict where something stands on the adapter, and say what."""
    if not uses.free:
        raise Conflict(f"The adapter {adapter.id} ({adapter.name}) cannot be deleted: {_in_words(uses)}.")


def _in_words(uses: AdapterUses) -> str:
    def numbers(ids: tuple[int, ...]) -> str:
        return ", ".join(f"#{number}" for number in ids[:5]) + (" …" if len(ids) > 5 else "")

    told = []
    if uses.jobs:
        told.append(f"job {numbers(uses.jobs)} needs it and has not ended")
    if uses.adapters:
        told.append(f"adapter {numbers(uses.adapters)} was trained further from it")
    if uses.candidates:
        told.append(f"{uses.candidates:,} candidate{'s were' if uses.candidates > 1 else ' was'} drawn with it")
    if uses.turns:
        told.append(f"{uses.turns:,} answer{'s' if uses.turns > 1 else ''} of the chat came from it")
    return "; ".join(told)
