"""Adapters by content address, each with the job and the data set it came from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlite_utils import Database

from storage.errors import NotFound, UserError
from storage.files import link_or_copy
from storage.folder import DataFolder
from storage.records import Adapter, Job, now
from storage.rows import one, rows


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
