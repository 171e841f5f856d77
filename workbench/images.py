"""Images by content address: only what the database knows leaves the house."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from storage.images import find_image, image_path, thumbnail_path
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

    return router


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


def _missing(text: str = "There is no such image.") -> Response:
    return JSONResponse({"error": text}, 404, headers={"cache-control": "no-store"})
