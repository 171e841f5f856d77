"""Images by sha256, as files with thumbnails; what cannot be used is refused with its reason."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import PIL.Image
from sqlite_utils import Database

from storage.errors import NotFound, UserError
from storage.folder import DataFolder
from storage.records import Image, now
from storage.rows import marks, one, rows
from storage.units import in_words

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
MAX_PIXELS = 50_000_000
MAX_BYTES = 64_000_000  #: of a file
THUMBNAIL = 256  # pixels, the longer side


def ensure_image(db: Database, folder: DataFolder, data: bytes, name: str = "image") -> Image:
    """Store an image's bytes once, with its thumbnail; the same bytes give the same record.

    Args:
        data: the file's bytes, as they are; never re-encoded.
        name: how the user knows the file, for messages.

    Raises:
        UserError: empty, not an image, truncated, animated, or larger than `MAX_PIXELS`.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    known = find_image(db, sha256)
    if known and image_path(folder, known).exists() and thumbnail_path(folder, sha256).exists():
        return known
    image = _inspect(data, name, sha256)
    _write(image_path(folder, image), data)
    _write(thumbnail_path(folder, sha256), _thumbnail(data))
    db.conn.execute(
        "INSERT OR IGNORE INTO images (sha256, extension, width, height, bytes, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [sha256, image.extension, image.width, image.height, image.bytes, now()],
    )
    return image


def make_thumbnail(folder: DataFolder, image: Image) -> None:
    """Write the thumbnail of a stored image anew.

    Raises:
        OSError, ValueError, SyntaxError: the image cannot be read.
    """
    _write(thumbnail_path(folder, image.sha256), _thumbnail(image_path(folder, image).read_bytes()))


def ensure_image_file(db: Database, folder: DataFolder, path: Path) -> Image:
    """`ensure_image` for a file.

    Raises:
        UserError: the file is missing or cannot be read, or its content is refused.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:  # before it is read: uploads may be zips of gigabytes
            raise UserError(f"The image {path.name} has {in_words(size)}; the limit is {in_words(MAX_BYTES)}.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"The image {path.name} is missing: there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"The image {path.name} cannot be read ({error.strerror}).") from error
    return ensure_image(db, folder, data, path.name)


def small_picture(data: bytes, name: str = "image") -> bytes:
    """A thumbnail (WebP) of an image that is not stored.

    Raises:
        UserError: as `ensure_image`.
    """
    _inspect(data, name, "")
    return _thumbnail(data)


def find_image(db: Database, sha256: str) -> Image | None:
    found = one(db, "SELECT sha256, extension, width, height, bytes FROM images WHERE sha256 = ?", [sha256])
    return Image(**found) if found else None


def get_images(db: Database, sha256s: Iterable[str]) -> dict[str, Image]:
    """The records of these images, by sha256.

    Raises:
        NotFound: the database does not know one of them.
    """
    wanted = sorted(set(sha256s))
    images: dict[str, Image] = {}
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        for row in rows(
            db,
            f"SELECT sha256, extension, width, height, bytes FROM images WHERE sha256 IN ({marks(part)})",
            part,
        ):
            images[row["sha256"]] = Image(**row)
    missing = [sha256 for sha256 in wanted if sha256 not in images]
    if missing:
        raise NotFound(f"The database does not know the image {missing[0]}; run `python -m storage check`.")
    return images


def image_path(folder: DataFolder, image: Image) -> Path:
    return folder.images / image.sha256[:2] / image.name


def thumbnail_path(folder: DataFolder, sha256: str) -> Path:
    return folder.thumbnails / sha256[:2] / f"{sha256}.webp"


def _inspect(data: bytes, name: str, sha256: str) -> Image:
    if not data:
        raise UserError(f"The image {name} is empty (0 bytes); save it again.")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=list(EXTENSIONS)) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:  # known from the header: nothing has been decoded yet
                raise UserError(
                    f"The image {name} has {width} × {height} = {width * height / 1e6:.0f} megapixels; "
                    f"the limit is {MAX_PIXELS // 1_000_000}. Scale it down."
                )
            if getattr(opened, "n_frames", 1) > 1:
                raise UserError(f"The image {name} is animated; save one frame of it as PNG.")
            opened.load()
            extension = EXTENSIONS[opened.format or "PNG"]
    except PIL.Image.DecompressionBombError as error:
        raise UserError(f"The image {name} is too large ({error}). Scale it down.") from error
    except PIL.UnidentifiedImageError:
        raise UserError(
            f"The file {name} is not an image that Plumb reads; use {', '.join(EXTENSIONS)}."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"The image {name} is damaged or cut off ({error}); save it again.") from error
    return Image(sha256, extension, width, height, len(data))


def _thumbnail(data: bytes) -> bytes:
    with PIL.Image.open(io.BytesIO(data)) as opened:
        small = opened.convert("RGBA" if opened.mode in ("RGBA", "LA", "P") else "RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        out = io.BytesIO()
        small.save(out, "WEBP", quality=85)
    return out.getvalue()


def _write(path: Path, data: bytes) -> None:
    if path.exists() and path.stat().st_size == len(data):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.chmod(draft, 0o644)
    os.replace(draft, path)
