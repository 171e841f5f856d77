"""Rows of other people's data into the database: each once, the broken ones told with their places."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import UserError
from storage.folder import DataFolder
from storage.images import ensure_image, ensure_image_file
from storage.imports.done import Done, note_import
from storage.imports.incoming import Broken, Incoming, Picture, lacking
from storage.imports.reading import TOLD, Import, Placed, in_batches, incoming, pictures_in
from storage.imports.survey import survey
from storage.records import METRICS, Image, Message, Part, now
from storage.samples import add_sample
from storage.scores import add_judgement, ensure_rater
from storage.users import ensure_user


class Halt(Exception):
    """Raised by who watches, between two batches: what is in stays, and the rest is not read."""


@dataclass
class Report:
    """What an import did.

    Attributes:
        added: new samples.
        known: rows whose sample was there already, from an earlier import or an earlier row.
        candidates, pairs, ratings: that came with the new samples; ratings are answers with a judge's scores.
        broken: {place: why}, the first `reading.TOLD` of them.
        broken_number: all of them.
        halted: it was ended before all rows were read.
    """

    added: int = 0
    known: int = 0
    candidates: int = 0
    pairs: int = 0
    ratings: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    broken_number: int = 0
    halted: bool = False

    def refuse(self, place: str, why: str) -> None:
        self.broken_number += 1
        if len(self.broken) < TOLD:
            self.broken[place] = why

    def told(self) -> str:
        """In words, broken rows one a line."""
        more = [f"{self.candidates:,} candidates"] if self.candidates else []
        more += [f"{self.pairs:,} pairs"] if self.pairs else []
        more += [f"a judge's ratings of {self.ratings:,}"] if self.ratings else []
        lines = [f"{self.added:,} samples added{' with ' + _listed(more) if more else ''}, {self.known:,} known"]
        lines += [f"{place}: {why}" for place, why in self.broken.items()]
        if self.broken_number > len(self.broken):
            lines.append(f"… and {self.broken_number - len(self.broken):,} more rows that could not be read")
        return "\n".join(lines)


Watch = Callable[[int, Report], None]


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def import_rows(
    db: Database,
    folder: DataFolder,
    what: Import,
    user: str,
    strict: bool = False,
    watch: Watch | None = None,
) -> Report:
    """Import all rows; what is broken is told, and the rest goes in.

    Args:
        user: by whom preferences that come along are made pairs, accepted at once.
        strict: nothing goes in where one row is broken: all are looked through first.
        watch: is told after each batch, outside of its transaction, how many rows have been read, and the report
            so far; it may raise `Halt`.

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
    try:
        for batch in in_batches(incoming(what)):
            kept = _with_images(db, folder, batch, report)
            with immediate(db):
                for one, images in kept:
                    _add(db, what.name, one, images, user, report)
            read += len(batch)
            if watch:
                watch(read, report)
    except Halt:
        report.halted = True
    note_import(db, Done(what.name, what.kind, user, now(), **_numbers(report)))
    return report


def _numbers(report: Report) -> dict[str, int]:
    return {"added": report.added, "known": report.known, "broken": report.broken_number}


def _look_through(what: Import) -> None:
    """Raise UserError where a row is broken; images are looked for and not opened."""
    found = survey(what)
    if found.broken_number:
        report = Report(broken=found.broken, broken_number=found.broken_number)
        told = "\n".join(report.told().splitlines()[1:])
        raise UserError(f"Nothing was imported, since {found.broken_number:,} rows are broken.\n{told}")


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
            kept.append((one, {picture: _keep(db, folder, picture) for picture in pictures_in(one)}))
        except UserError as error:
            report.refuse(place, str(error))
    return kept


def _keep(db: Database, folder: DataFolder, picture: Picture) -> Image:
    if picture.data is not None:
        return ensure_image(db, folder, picture.data, picture.name)
    assert picture.file is not None
    if why := lacking(picture):
        raise UserError(why)
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
    _add_ratings(db, sample_id, one, ids, report)
    report.candidates += len(ids)
    report.pairs += len(one.preferred)


def _add_ratings(db: Database, sample_id: int, one: Incoming, ids: Sequence[int], report: Report) -> None:
    """One judgement of the judge that came along, with the scores that it gave; the other metrics stay empty."""
    given = [
        (candidate, answer.scores) for candidate, answer in zip(ids, one.answers, strict=True) if answer.scores
    ]
    if one.rater is None or not given:
        return
    name, version = one.rater
    nothing: Mapping[str, int | None] = dict.fromkeys(METRICS)
    add_judgement(
        db,
        rater_id=ensure_rater(db, "judge", name, version),
        sample_id=sample_id,
        job_id=None,
        state="ok",
        raw=one.raw,
        scores=[{"candidate_id": candidate, **nothing, **scores} for candidate, scores in given],
        note="came with the data",
    )
    report.ratings += len(given)


def _part(piece: str | Picture, images: dict[Picture, Image]) -> Part:
    if isinstance(piece, Picture):
        return {"type": "image", "image": images[piece].sha256}
    return {"type": "text", "text": piece}
