"""What a reader of a format gives: samples that are not stored yet, or why a row is none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from storage.errors import UserError

Role = Literal["system", "user", "assistant"]

MARK = "<image>"


@dataclass(frozen=True)
class Picture:
    """An image of a row: a file below the folder of images, or the bytes themselves.

    Attributes:
        name: how the data names it, for messages.
    """

    name: str
    file: Path | None = None
    data: bytes | None = None


Piece = str | Picture


@dataclass(frozen=True)
class IncomingTurn:
    role: Role
    content: tuple[Piece, ...]


@dataclass(frozen=True)
class IncomingAnswer:
    """A candidate. `scores` are of whoever rated it (`Incoming.rater`), {metric: 0 to 4}; {} for none."""

    text: str
    model: str | None = None
    scores: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Incoming:
    """A sample to be, with its candidates.

    Attributes:
        id: the source's own; "" where there is none: then its content names it.
        turns: end with the user's.
        preferred: (chosen, rejected) as places in `answers`.
        rater: (name, version) of the judge whose scores the answers have.
        raw: what that judge said, where it came along.
    """

    id: str
    turns: tuple[IncomingTurn, ...]
    reference: str | None = None
    split: str | None = None
    answers: tuple[IncomingAnswer, ...] = ()
    preferred: tuple[tuple[int, int], ...] = ()
    rater: tuple[str, str] | None = None
    raw: str = ""

    def content_id(self) -> str:
        """A name made of the content: the same row has the same one, wherever it stands."""
        told: list[Any] = [
            [turn.role, [piece if isinstance(piece, str) else _named(piece) for piece in turn.content]]
            for turn in self.turns
        ]
        told.append([self.reference, [answer.text for answer in self.answers]])
        return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()[:24]


class Broken(UserError):
    """A row that cannot be a sample; the text says why, without its place."""


def _named(picture: Picture) -> list[str]:
    return ["image", picture.name if picture.data is None else hashlib.sha256(picture.data).hexdigest()]


def text_at(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that is there, as text.

    Raises:
        Broken: none is there, or it is no text, or empty.
    """
    for name in names:
        if name in row:
            value = row[name]
            if not isinstance(value, str) or not value.strip():
                raise Broken(f"{name} is {_short(value)}; it must be text that is not empty")
            return value
    raise Broken(f"it has no {' or '.join(names)}")


def with_pictures(text: str, pictures: Sequence[Picture]) -> tuple[tuple[Piece, ...], int]:
    """Text in which each `<image>` is the next picture; returns the content and how many were used.

    Raises:
        Broken: there are more marks than pictures.
    """
    pieces: list[Piece] = []
    parts = text.split(MARK)
    if len(parts) - 1 > len(pictures):
        raise Broken(f"it has {len(parts) - 1} {MARK} marks and {len(pictures)} images; name an image for each")
    for place, part in enumerate(parts):
        if place:
            pieces.append(pictures[place - 1])
        if part.strip():
            pieces.append(part.strip())
    return tuple(pieces), len(parts) - 1


def asked(text: str, pictures: Sequence[Picture]) -> tuple[Piece, ...]:
    """A question with its pictures, where its marks put them; those without a mark stand first."""
    content, used = with_pictures(text, pictures)
    return (*pictures[used:], *content)


def pictures_of(value: Any, folder: Path) -> list[Picture]:
    """The images that a field names: nothing, one, or a list of paths, bytes, or {"bytes", "path"}.

    Raises:
        Broken: it is something else, or names a file outside of the folder.
    """
    if value is None or value == "":
        return []
    return [_picture(one, folder) for one in (value if isinstance(value, list | tuple) else [value])]


def _picture(value: Any, folder: Path) -> Picture:
    if isinstance(value, bytes):
        return Picture("an image in the row", data=value)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return Picture(str(value.get("path") or "an image in the row"), data=value["bytes"])
    if isinstance(value, Mapping):
        value = value.get("path")
    if not isinstance(value, str) or not value or "\0" in value:
        raise Broken(f"image is {_short(value)}; it must name a file")
    try:
        file = (folder / value).resolve()
    except (OSError, ValueError) as error:  # a loop of links; a name that no system can write
        raise Broken(f"the image {_short(value)} cannot be looked for ({error})") from error
    if not file.is_relative_to(folder.resolve()):
        raise Broken(f"the image {value!r} lies outside of the folder of images; name it from there on")
    return Picture(value, file=file)


def lacking(picture: Picture) -> str:
    """Why the file of a picture cannot be had; "" where it is there. It is not opened."""
    if picture.file is None:
        return ""
    try:
        if picture.file.is_file():
            return "" if picture.file.suffix.lower() not in _UNREAD else _UNREAD_WORDS.format(picture.name)
    except OSError as error:
        return f"the image {picture.name[:100]!r} cannot be looked for ({error.strerror})"
    if picture.file.suffix.lower() in _UNREAD:
        return _UNREAD_WORDS.format(picture.name)
    return f"The image {picture.name} is missing: there is no file of that name among the images"


# Pictures that no model is shown as they are; an SVG can carry scripts.
_UNREAD = frozenset({".svg", ".svgz", ".tif", ".tiff", ".heic", ".heif", ".avif", ".pdf", ".dcm", ".eps", ".ico"})
_UNREAD_WORDS = "the image {} is of a kind that isn't read; save it as PNG, JPEG, WebP, GIF or BMP"


def _short(value: Any) -> str:
    told = json.dumps(value, ensure_ascii=False, default=str)
    return told if len(told) <= 60 else f"{told[:60]}…"
