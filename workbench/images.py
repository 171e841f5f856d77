"""Images by content address: only what the database knows leaves the house."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from storage.errors import NotFound
from storage.images import find_image, image_path, thumbnail_path
from storage.jobs import get_job
from storage.records import Image
from workbench.context import Context

MEDIA_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "gif": "image/gif",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RUN, _SEEN = re.compile(r"[1-9]\d{0,14}"), re.compile(r"\d{1,4}\.png")
# The address is the content: what was fetched once never changes. Private: it was shown to a user.
_HEADERS = {
    "cache-control": "private, max-age=31536000, immutable",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'",
}


def routes(context: Context) -> APIRouter:
    router = APIRouter()

    @router.get("/images/{sha256}")
    def image(sha256: str, request: Request) -> Response:
        known = known_image(context, sha256)
        if known is None:
            return _missing()
        return _file(request, image_path(context.folder, known), MEDIA_TYPES[known.extension])

    @router.get("/thumbnails/{sha256}")
    def thumbnail(sha256: str, request: Request) -> Response:
        if known_image(context, sha256) is None:
            return _missing()
        return _file(request, thumbnail_path(context.folder, sha256), "image/webp")

    @router.get("/runs/{job}/seen/{name}")
    def seen(job: str, name: str, request: Request) -> Response:
        path = seen_picture(context, job, name)
        return _missing() if path is None else _changing(request, path)

    return router


def seen_picture(context: Context, job: str, name: str) -> Path | None:
    """A watched sample's picture as the model sees it, from the folder of a run that the database knows.

    None for what is not there, and for whatever could lead out of that folder.
    """
    if not (_RUN.fullmatch(job) and _SEEN.fullmatch(name)):
        return None
    with context.database() as db:
        try:
            get_job(db, int(job))
        except NotFound:
            return None
    folder = context.folder.run(int(job)) / "seen"
    path = folder / name
    own = path.resolve().parent == folder.resolve() and folder.resolve().is_relative_to(
        context.folder.root.resolve()
    )
    return path if own and path.is_file() else None


def known_image(context: Context, sha256: str) -> Image | None:
    """The record, if the database knows the image; anything that is not a sha256 is unknown."""
    if not _SHA256.fullmatch(sha256):
        return None
    with context.database() as db:
        return find_image(db, sha256)


def _file(request: Request, path: Path, media_type: str) -> Response:
    if not path.is_file():
        return _missing("The image's file is missing; run `python -m storage check`.")
    etag = f'"{path.stem}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={**_HEADERS, "etag": etag})
    return FileResponse(path, media_type=media_type, headers={**_HEADERS, "etag": etag})


def _changing(request: Request, path: Path) -> Response:
    """A file whose address isn't its content: the browser asks each time whether it is still the same."""
    found = path.stat()
    etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
    headers = {**_HEADERS, "cache-control": "private, no-cache", "etag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type=MEDIA_TYPES["png"], headers=headers)


def _missing(text: str = "There is no such image.") -> Response:
    return JSONResponse({"error": text}, 404, headers={"cache-control": "no-store"})
