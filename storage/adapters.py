"""Adapters by content address, each with the job and the data set it came from."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Mapping
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
    files = _files_of(source)
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"{source} holds no adapter: there is no .safetensors file in it.")
    sha256 = hash_adapter(source)
    for file in files:
        try:
            link_or_copy(file, folder.adapters / sha256 / file.name)
        except FileNotFoundError:  # the folder went just now, with another adapter of the same files
            link_or_copy(file, folder.adapters / sha256 / file.name)
    return sha256, sum(file.stat().st_size for file in files)


def is_kept(folder: DataFolder, source: Path, sha256: str) -> bool:
    """Whether all that `keep_adapter` put under this address is there still.

    Whoever adds the adapter's row asks in the same transaction: another adapter with the same files may have been
    deleted since they were kept.
    """
    there = {file.name: file.stat().st_size for file in _files_of(folder.adapters / sha256)}
    return all(there.get(file.name) == file.stat().st_size for file in _files_of(source))


def hash_adapter(source: Path) -> str:
    """The content address of an adapter's folder; that of nothing where it is not there."""
    hashes = {}
    for file in _files_of(source):
        with file.open("rb") as opened:
            hashes[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return address_of(hashes)


def address_of(hashes: Mapping[str, str]) -> str:
    """The content address of an adapter whose files have these sha256, by name (pure)."""
    digest = hashlib.sha256()
    for name, sha256 in sorted(hashes.items()):
        digest.update(f"{name}\0{sha256}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


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
                SELECT 1 FROM json_each(j.config, '$.adapters') WHERE value = ?) OR EXISTS (
                SELECT 1 FROM json_each(j.config, '$.columns') WHERE value = ?)) ORDER BY id""",
        [*ended, adapter.id, adapter.job_id, adapter.id, str(adapter.id)],
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
    if not _remove_files(db, folder, adapter.sha256):
        return False
    for run in (folder.run(adapter.job_id), folder.binned(adapter.job_id)):
        shutil.rmtree(run / "adapter", ignore_errors=True)
    return True


def _remove_files(db: Database, folder: DataFolder, sha256: str) -> bool:
    """Remove an adapter's files unless a row names them; whether they went.

    The rename stands in a write transaction, as does the look of `is_kept`: of a worker's new adapter with the
    same files either the row is there before it, and they stay, or they are missed and kept again. A crash in
    between leaves files that nothing names, never a row without files.
    """
    gone = folder.adapters / f".{sha256}.gone-{secrets.token_hex(4)}"
    with immediate(db):
        if count(db, "SELECT count(*) FROM adapters WHERE sha256 = ?", [sha256]):
            return False
        try:
            (folder.adapters / sha256).rename(gone)
        except OSError:  # gone already, or not ours to move: then nothing names it, and the check tells of it
            return True
    shutil.rmtree(gone, ignore_errors=True)
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
