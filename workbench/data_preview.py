"""The first samples of an import as they would arrive: their texts, small pictures, references, answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import UserError
from storage.images import MAX_BYTES, small_picture
from storage.imports.incoming import Incoming, Picture

_PICTURES = 4  # of a sample that are drawn


@dataclass(frozen=True)
class Thumbnail:
    """An image of a sample: `data` is WebP in base64, or "" with the reason why there is none."""

    name: str
    data: str = ""
    why: str = ""


@dataclass(frozen=True)
class Preview:
    """A sample to be.

    Attributes:
        place: of its row.
        question: the last turn's text; `turns` is how many there are.
        answers: texts of its candidates, each with "chosen" or "rejected" where the row says so.
    """

    place: str
    question: str
    turns: int
    split: str
    reference: str | None
    pictures: Sequence[Thumbnail]
    more_pictures: int
    answers: Sequence[tuple[str, str]]


def preview(place: str, one: Incoming) -> Preview:
    """What a person needs to see of it."""
    pictures = [piece for turn in one.turns for piece in turn.content if isinstance(piece, Picture)]
    question = " ".join(piece for piece in one.turns[-1].content if isinstance(piece, str))
    words: dict[int, str] = {}
    for chosen, rejected in one.preferred:
        words |= {chosen: "chosen", rejected: "rejected"}
    return Preview(
        place,
        question,
        len(one.turns),
        one.split or "",
        one.reference,
        [_thumbnail(picture) for picture in pictures[:_PICTURES]],
        max(0, len(pictures) - _PICTURES),
        [(words.get(number, ""), answer.text) for number, answer in enumerate(one.answers)],
    )


def _thumbnail(picture: Picture) -> Thumbnail:
    name = Path(picture.name).name or picture.name
    try:
        data = picture.data
        if data is None:
            assert picture.file is not None
            if picture.file.stat().st_size > MAX_BYTES:
                return Thumbnail(name, why="too large to be shown here")
            data = picture.file.read_bytes()
        return Thumbnail(name, base64.b64encode(small_picture(data, name)).decode())
    except UserError as error:
        return Thumbnail(name, why=str(error))
    except OSError as error:
        return Thumbnail(name, why=error.strerror or "cannot be read")
