"""Images as a judge gets them: a format that providers take, upright, not larger than they take."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps

from jobs.judges.calls import Picture

LONGEST = 3072  # pixels
LARGEST = 5_000_000  # bytes; a request with several pictures has to stay below 20 MB
QUALITY = 90

TILE = 768
TOKENS_A_TILE = 258

# What Gemini and OpenAI both take as it is. MPO is a JPEG with a second picture behind the first; phones make it.
_TAKEN = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp"}
_ORIENTATION = 0x0112  # the tag of EXIF; 1 and none: upright
_SMALLER = 0.8


def prepare(path: Path) -> tuple[Picture, str]:
    """A picture's file → as it is sent, and what the reader should know of that ("" where nothing was lost).

    PNG, JPEG and WebP within the limits go as they are; other formats go as PNG. A picture over `LONGEST` or
    `LARGEST` is made smaller: as JPEG, as PNG where it has transparency. A picture that lies on its side by its
    EXIF tag is turned, since providers may not look at the tag. The same file always gives the same bytes.

    Raises:
        OSError: the file cannot be read, or is no picture.
    """
    raw = path.read_bytes()
    try:
        with PIL.Image.open(io.BytesIO(raw)) as opened:
            taken = _TAKEN.get(opened.format or "")
            upright = opened.getexif().get(_ORIENTATION, 1) == 1
            if taken and upright and max(opened.size) <= LONGEST and len(raw) <= LARGEST:
                return Picture(raw, taken), ""
            return _converted(PIL.ImageOps.exif_transpose(opened), raw, taken if upright else None)
    except PIL.UnidentifiedImageError:
        raise OSError("it is no picture of a known format") from None
    except (PIL.Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise OSError(f"the picture is damaged, cut off or too large: {error}") from error


def picture_tokens(width: int, height: int) -> int:
    """Tokens that Gemini counts for a picture, an estimate for other providers.

    258 where both sides are at most 384 pixels, else 258 for each tile of 768 × 768
    (ai.google.dev/gemini-api/docs/tokens, "Multimodal tokens").
    """
    if max(width, height) <= TILE // 2:
        return TOKENS_A_TILE
    return math.ceil(width / TILE) * math.ceil(height / TILE) * TOKENS_A_TILE


def _converted(image: PIL.Image.Image, raw: bytes, taken: str | None) -> tuple[Picture, str]:
    """`taken`: the media type under which `raw` could go but for its size."""
    first = image.size
    image = _simple(image)
    if max(image.size) <= LONGEST:
        if taken is None:
            picture = _as_png(image)
            if len(picture.data) <= LARGEST:
                return picture, ""
        picture = _small_file(image)
        if len(picture.data) <= LARGEST:
            return picture, (
                f"image {first[0]} × {first[1]} ({len(raw) / 1e6:.1f} MB) was sent with "
                f"{len(picture.data) / 1e6:.1f} MB"
            )
    scale = min(1.0, LONGEST / max(image.size))
    while True:
        size = max(1, round(first[0] * scale)), max(1, round(first[1] * scale))
        smaller = image.resize(size, PIL.Image.Resampling.LANCZOS)
        picture = _small_file(smaller)
        if len(picture.data) <= LARGEST or max(size) <= 1:
            return picture, f"image {first[0]} × {first[1]} was sent as {size[0]} × {size[1]}"
        scale *= _SMALLER


def _simple(image: PIL.Image.Image) -> PIL.Image.Image:
    """In a mode that PNG and JPEG both have: RGB, RGBA where something shines through, or L."""
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode.startswith("I;16"):  # Pillow would cut these off at 255 instead of scaling them
        return image.point(lambda value: value / 256).convert("L")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _small_file(image: PIL.Image.Image) -> Picture:
    if image.mode == "RGBA":
        return _as_png(image)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, **_colours(image))
    return Picture(out.getvalue(), "image/jpeg")


def _as_png(image: PIL.Image.Image) -> Picture:
    out = io.BytesIO()
    image.save(out, "PNG", **_colours(image))
    return Picture(out.getvalue(), "image/png")


def _colours(image: PIL.Image.Image) -> dict[str, Any]:
    """The colour profile, where it is one for these channels (a CMYK picture's is not)."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or profile[16:20] != {"L": b"GRAY"}.get(image.mode, b"RGB "):
        profile = None
    return {"icc_profile": profile}
