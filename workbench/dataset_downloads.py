"""A frozen data set as one zip, in any of the formats that `python -m storage export` writes."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path as File
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from storage.datasets import list_datasets
from storage.errors import NotFound
from storage.exports.writing import export_dataset
from workbench.context import Context
from workbench.job_downloads import download, zipped


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/api/datasets")

    @router.get("/{dataset_id}/export.zip")
    def export(
        dataset_id: Annotated[int, Path(ge=1, lt=2**63)],
        form: Annotated[str, Query(alias="format", max_length=40)] = "jsonl",
    ) -> StreamingResponse:
        folder, name = write(context, dataset_id, form)
        return download(_then_gone(zipped(folder, name), folder), "application/zip", f"{name}.zip")

    return router


def write(context: Context, dataset_id: int, form: str) -> tuple[File, str]:
    """(a folder with the export, the download's name). Whoever has sent it removes the folder.

    Raises:
        NotFound: there is no such data set.
        UserError: there is no such format; the disk is full.
    """
    root = context.folder.runtime / "exports"
    root.mkdir(parents=True, exist_ok=True)
    with context.database() as db:
        found = next((one for one in list_datasets(db) if one.id == dataset_id), None)
        if found is None:
            raise NotFound(f"There is no data set {dataset_id}.")
        folder = File(tempfile.mkdtemp(dir=root))
        try:
            export_dataset(db, context.folder, found.name, form, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", found.name).strip("-.") or f"dataset-{dataset_id}"
    return folder, f"{safe}-{form}"


def _then_gone(parts: Iterator[bytes], folder: File) -> Iterator[bytes]:
    """The parts; the folder is removed after the last one, or when the reader leaves."""
    try:
        yield from parts
    finally:
        shutil.rmtree(folder, ignore_errors=True)
