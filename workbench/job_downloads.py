"""A run's log and its whole folder as downloads, streamed: neither is ever whole in memory."""

from __future__ import annotations

import os
import stat
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path as File
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from jobs.runs import RunFolder
from storage.errors import NotFound
from storage.jobs import attempts_of, get_job
from workbench.context import Context

# SQLite's integers have 63 bits; a larger number can be no job's.
JobNumber = Annotated[int, Path(ge=1, lt=2**63)]

CHUNK = 1_000_000
#: What deflate makes no smaller: weights and pictures. Trying would cost minutes of a core for gigabytes.
PACKED = frozenset(
    {".safetensors", ".pt", ".pth", ".bin", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".gguf", ".npz"}
)

_HEADERS = {
    "cache-control": "private, no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'",
}


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/api/jobs")

    @router.get("/{job_id}/log")
    def log(job_id: JobNumber, attempt: Annotated[int | None, Query(ge=1, lt=2**31)] = None) -> StreamingResponse:
        path, begin, end = log_part(context, job_id, attempt)
        name = f"job-{job_id}-log.txt" if attempt is None else f"job-{job_id}-attempt-{attempt}-log.txt"
        return download(read_range(path, begin, end), "text/plain; charset=utf-8", name, end - begin)

    @router.get("/{job_id}/folder.zip")
    def folder(job_id: JobNumber) -> StreamingResponse:
        run = run_folder(context, job_id)
        return download(zipped(run.path, f"job-{job_id}"), "application/zip", f"job-{job_id}.zip")

    return router


def run_folder(context: Context, job_id: int) -> RunFolder:
    """A job's run folder. Raises NotFound where there is no such job, or its folder is gone."""
    with context.database() as db:
        get_job(db, job_id)
    run = RunFolder(context.folder.run(job_id))
    if run.path.is_symlink() or not run.path.is_dir():
        raise NotFound(f"The run folder of job {job_id} is gone: deleted, or moved away by hand.")
    return run


def log_part(context: Context, job_id: int, attempt: int | None) -> tuple[File, int, int]:
    """(file, first byte, end) of a job's log or of one attempt's part.

    Raises:
        NotFound: there is no such job or attempt, or nothing was written.
    """
    run = run_folder(context, job_id)
    if run.log.is_symlink() or not run.log.is_file():
        raise NotFound(f"Job {job_id} has no log yet.")
    size = run.log_size()
    if attempt is None:
        return run.log, 0, size
    with context.database() as db:
        found = next((one for one in attempts_of(db, job_id) if one.number == attempt), None)
    if found is None:
        raise NotFound(f"Job {job_id} has no attempt {attempt}.")
    end = size if found.log_end is None else min(found.log_end, size)
    return run.log, min(found.log_begin, end), end


def read_range(path: File, begin: int, end: int) -> Iterator[bytes]:
    """The bytes from `begin` to `end`, in chunks: a log that grows meanwhile stays as long as was announced."""
    with path.open("rb") as file:
        file.seek(begin)
        left = end - begin
        while left > 0 and (data := file.read(min(CHUNK, left))):
            left -= len(data)
            yield data


def zipped(folder: File, name: str) -> Iterator[bytes]:
    """The folder as a zip under `name`, made while it is sent.

    Links are left out, and never followed: they may point anywhere. So is what is no plain file. A file that goes
    while the zip is made (a checkpoint that a newer one replaces) is left out too.
    """
    out = _Outlet()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in _files(folder):
            try:
                file = _open(path)
            except OSError:
                continue
            with file:
                info = zipfile.ZipInfo(
                    f"{name}/{path.relative_to(folder).as_posix()}", _moment(os.fstat(file.fileno()).st_mtime)
                )
                info.compress_type = zipfile.ZIP_STORED if path.suffix in PACKED else zipfile.ZIP_DEFLATED
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                # Its size is not known beforehand: a log grows while it is read.
                with archive.open(info, "w", force_zip64=True) as entry:
                    while data := file.read(CHUNK):
                        entry.write(data)
                        yield out.taken()
            yield out.taken()
    yield out.taken()


def _files(folder: File) -> Iterator[File]:
    """Plain files below the folder, by name; what goes meanwhile is passed over."""
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = File(parent) / name
            if not path.is_symlink() and path.is_file():
                yield path


def _open(path: File) -> BinaryIO:
    """Open what is still a plain file. Raises OSError for a link that has taken its place."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")


def _moment(seconds: float) -> tuple[int, int, int, int, int, int]:
    """A file's time as zip knows it: from 1980 on, in UTC."""
    found = time.gmtime(max(seconds, 315_532_800))
    return found.tm_year, found.tm_mon, found.tm_mday, found.tm_hour, found.tm_min, found.tm_sec


class _Outlet:
    """A stream that can neither seek nor be read: zipfile writes to it, the response takes what is there."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def taken(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def download(body: Iterator[bytes], media_type: str, name: str, size: int | None = None) -> StreamingResponse:
    headers = {**_HEADERS, "content-disposition": f'attachment; filename="{name}"'}
    if size is not None:
        headers["content-length"] = str(size)
    return StreamingResponse((part for part in body if part), media_type=media_type, headers=headers)
