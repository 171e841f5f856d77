"""What an import reads: the samples of all rows of a file or folder, each with an id of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from storage.errors import UserError
from storage.imports.formats import FORMATS, Reader
from storage.imports.incoming import Broken, Incoming, Picture
from storage.imports.sources import read_rows

AT_ONCE = 200  #: samples of one batch, which is one transaction
TOLD = 20  #: broken rows that are told one by one

Placed = tuple[str, Incoming | Broken]


@dataclass(frozen=True)
class Import:
    """What is to be read.

    Attributes:
        kind: one of `FORMATS`.
        path: a file or folder; see `sources.read_rows`.
        images: the folder that image names begin in; None: the one beside the file, or `images/` in there.
        source: what the samples are filed under; "" for the kind and the file's name.
        split: of rows that name none themselves.
        files: of a folder these alone; () for all that `sources.row_files` finds.
    """

    kind: str
    path: Path
    images: Path | None = None
    source: str = ""
    split: str = ""
    files: tuple[Path, ...] = ()

    @property
    def reader(self) -> Reader:
        return FORMATS[self.kind]

    def check(self) -> None:
        """Raise UserError where nothing can be read: an unknown kind, no such file, no such folder of images."""
        if self.kind not in FORMATS:
            raise UserError(f"kind = {self.kind!r}: this version imports easy-vqa, {', '.join(FORMATS)}.")
        if not self.path.exists():
            raise UserError(f"{self.path}: there is no such file or folder.")
        if self.images is not None and not self.images.is_dir():
            raise UserError(f"images = {self.images}: there is no such folder.")

    @property
    def name(self) -> str:
        if self.source:
            return self.source
        return self.kind if self.kind == "vqa-rad" else f"{self.kind}:{self.path.stem}"

    @property
    def folder(self) -> Path:
        if self.images is not None:
            return self.images
        beside = self.path if self.path.is_dir() else self.path.parent
        return beside / "images" if (beside / "images").is_dir() else beside


def incoming(what: Import) -> Iterator[Placed]:
    """The samples of all rows, with ids of their own."""
    reader, folder = what.reader, what.folder
    seen: Counter[str] = Counter()
    contents: dict[str, str] = {}
    for place, row in read_rows(what.path, what.files):
        try:
            if isinstance(row, Broken):
                raise row
            found = [(one, _checked_id(one)) for one in reader(row, folder)]
        except Broken as error:
            yield place, error
            continue
        for one, content in found:
            name = one.id or content
            if contents.get(name, content) != content:  # another row of the same id
                seen[name] += 1
                name = f"{name}#{seen[name] + 1}"
            contents[name] = content
            yield place, replace(one, id=name, split=one.split or what.split or None)


def _checked_id(one: Incoming) -> str:
    """Its `content_id`.

    Raises:
        Broken: a text of it cannot be written: JSON can hold halves of characters, and databases can't.
    """
    try:
        for text in (one.id, one.split or "", one.raw, *(answer.model or "" for answer in one.answers)):
            text.encode()
        return one.content_id()
    except UnicodeEncodeError as error:
        raise Broken(f"it holds half a character ({error.object[error.start]!a}); write it as UTF-8") from error


def in_batches(found: Iterable[Placed]) -> Iterator[list[Placed]]:
    batch: list[Placed] = []
    for one in found:
        batch.append(one)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def pictures_in(one: Incoming) -> list[Picture]:
    return [piece for turn in one.turns for piece in turn.content if isinstance(piece, Picture)]
