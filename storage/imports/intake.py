"""Rows of other people's data into the database: each once, the broken ones told with their places."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import UserError
from storage.folder import DataFolder
from storage.images import ensure_image, ensure_image_file
from storage.imports.formats import FORMATS, Reader
from storage.imports.incoming import Broken, Incoming, Picture
from storage.imports.sources import read_rows
from storage.records import Image, Message, Part, now
from storage.samples import add_sample
from storage.users import ensure_user

Progress = Callable[[int], None]

_AT_ONCE = 200  # samples of one transaction
_TOLD = 20  # broken rows that are told one by one

Placed = tuple[str, Incoming | Broken]


@dataclass
class Report:
    """What an import did.

    Attributes:
        added: new samples.
        known: rows whose sample was there already, from an earlier import or an earlier row.
        candidates, pairs: that came with the new samples.
        broken: {place: why}, the first `_TOLD` of them.
        broken_number: all of them.
    """

    added: int = 0
    known: int = 0
    candidates: int = 0
    pairs: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    broken_number: int = 0

    def refuse(self, place: str, why: str) -> None:
        self.broken_number += 1
        if len(self.broken) < _TOLD:
            self.broken[place] = why

    def told(self) -> str:
        """In words, broken rows one a line."""
        more = [f"{self.candidates:,} candidates"] if self.candidates else []
        more += [f"{self.pairs:,} pairs"] if self.pairs else []
        lines = [
            f"{self.added:,} samples added{' with ' + ' and '.join(more) if more else ''}, {self.known:,} known"
        ]
        lines += [f"{place}: {why}" for place, why in self.broken.items()]
        if self.broken_number > len(self.broken):
            lines.append(f"… and {self.broken_number - len(self.broken):,} more rows that could not be read")
        return "\n".join(lines)


@dataclass(frozen=True)
class Import:
    """What is to be read.

    Attributes:
        kind: one of `FORMATS`.
        path: a file or folder; see `sources.read_rows`.
        images: the folder that image names begin in; None: the one beside the file, or `images/` in there.
        source: what the samples are filed under; "" for the kind and the file's name.
        split: of rows that name none themselves.
    """

    kind: str
    path: Path
    images: Path | None = None
    source: str = ""
    split: str = ""

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


def import_rows(
    db: Database,
    folder: DataFolder,
    what: Import,
    user: str,
    strict: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Import all rows; what is broken is told, and the rest goes in.

    Args:
        user: by whom preferences that come along are made pairs, accepted at once.
        strict: nothing goes in where one row is broken: all are looked through first.
        progress: is told how many rows have been read, a batch at a time.

    Raises:
        UserError: the kind is unknown, the file cannot be read at all, or `strict` and a row is broken.
    """
    what.check()
    if strict:
        _look_through(what)
    report = Report()
    with immediate(db):
        ensure_user(db, user)
    read = 0
    for batch in _batches(_incoming(what)):
        kept = _with_images(db, folder, batch, report)
        with immediate(db):
            for one, images in kept:
                _add(db, what.name, one, images, user, report)
        read += len(batch)
        if progress:
            progress(read)
    return report


def _look_through(what: Import) -> None:
    """Raise UserError where a row is broken; images are looked for and not opened."""
    report = Report()
    for place, one in _incoming(what):
        if isinstance(one, Broken):
            report.refuse(place, str(one))
            continue
        for picture in _pictures(one):
            if picture.file is not None and not picture.file.is_file():
                report.refuse(place, f"the image {picture.name} is missing")
    if report.broken_number:
        told = "\n".join(report.told().splitlines()[1:])
        raise UserError(f"Nothing was imported, since {report.broken_number:,} rows are broken.\n{told}")


def _incoming(what: Import) -> Iterator[Placed]:
    """The samples of all rows, with ids of their own."""
    reader, folder = what.reader, what.folder
    seen: Counter[str] = Counter()
    contents: dict[str, str] = {}
    for place, row in read_rows(what.path):
        try:
            if isinstance(row, Broken):
                raise row
            found = reader(row, folder)
        except Broken as error:
            yield place, error
            continue
        for one in found:
            content = one.content_id()
            name = one.id or content
            if contents.get(name, content) != content:  # another row of the same id
                seen[name] += 1
                name = f"{name}#{seen[name] + 1}"
            contents[name] = content
            yield place, replace(one, id=name, split=one.split or what.split or None)


def _batches(found: Iterable[Placed]) -> Iterator[list[Placed]]:
    batch: list[Placed] = []
    for one in found:
        batch.append(one)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _with_images(
    db: Database, folder: DataFolder, batch: Sequence[Placed], report: Report
) -> list[tuple[Incoming, dict[Picture, Image]]]:
    """The samples of a batch whose images could be kept, with these."""
    kept = []
    for place, one in batch:
        if isinstance(one, Broken):
            report.refuse(place, str(one))
            continue
        try:
            kept.append((one, {picture: _keep(db, folder, picture) for picture in _pictures(one)}))
        except UserError as error:
            report.refuse(place, str(error))
    return kept


def _pictures(one: Incoming) -> list[Picture]:
    return [piece for turn in one.turns for piece in turn.content if isinstance(piece, Picture)]


def _keep(db: Database, folder: DataFolder, picture: Picture) -> Image:
    if picture.data is not None:
        return ensure_image(db, folder, picture.data, picture.name)
    assert picture.file is not None
    return ensure_image_file(db, folder, picture.file)


def _add(
    db: Database, source: str, one: Incoming, images: dict[Picture, Image], user: str, report: Report
) -> None:
    messages: list[Message] = [
        {"role": turn.role, "content": [_part(piece, images) for piece in turn.content]} for turn in one.turns
    ]
    sample_id = add_sample(db, source, one.id, messages, one.reference, one.split)
    if sample_id is None:
        report.known += 1
        return
    report.added += 1
    ids = []
    for answer in one.answers:
        cursor = db.conn.execute(
            "INSERT INTO candidates (sample_id, text, model, settings, created_at) VALUES (?, ?, ?, ?, ?)",
            [sample_id, answer.text, answer.model or source, json.dumps({"imported": source}), now()],
        )
        ids.append(int(cursor.lastrowid or 0))
    for chosen, rejected in one.preferred:
        db.conn.execute(
            "INSERT INTO pairs (sample_id, chosen_id, rejected_id, origin, status, user, created_at, imported)"
            " VALUES (?, ?, ?, 'hand', 'accepted', ?, ?, ?)",
            [sample_id, ids[chosen], ids[rejected], user, now(), source],
        )
    report.candidates += len(ids)
    report.pairs += len(one.preferred)


def _part(piece: str | Picture, images: dict[Picture, Image]) -> Part:
    if isinstance(piece, Picture):
        return {"type": "image", "image": images[piece].sha256}
    return {"type": "text", "text": piece}
