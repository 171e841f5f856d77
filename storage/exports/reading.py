"""An exported data set back into a database: samples, candidates, pairs, and the frozen rows with their hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from storage.database import immediate
from storage.datasets import hash_rows
from storage.errors import Conflict, UserError
from storage.exports.manifest import Manifest, check_manifest
from storage.folder import DataFolder
from storage.images import ensure_image_file
from storage.records import Dataset, now
from storage.rows import one
from storage.samples import add_sample, images_of
from storage.users import ensure_user

Row = dict[str, Any]
_FROM_RULE = {"rule": "hand"}  # the rule's judgements did not come along: a pair without them is by hand


def import_dataset(db: Database, folder: DataFolder, source: Path, user: str) -> Dataset:
    """Import a folder of format "jsonl"; the data set has the hash that it was exported with.

    Raises:
        UserError: it is no such folder; a file was changed since the export; the rows do not make the hash that
            the manifest names; an image is missing.
        Conflict: another data set has its name. One with the same name and hash is returned as it is.
    """
    from storage.datasets import get_dataset

    manifest = check_manifest(source)
    if manifest.format != "jsonl":
        raise UserError(f"{source} is in the format {manifest.format!r}; data sets come back from 'jsonl' alone.")
    known = one(db, "SELECT hash FROM datasets WHERE name = ?", [manifest.name])
    if known and known["hash"] == manifest.hash:
        return get_dataset(db, manifest.name)
    if known:
        raise Conflict(
            f"There is a data set named {manifest.name!r} already, with the hash {known['hash'][:12]}… and not "
            f"{manifest.hash[:12]}…; import into another data folder."
        )
    with (source / "rows.jsonl").open(encoding="utf-8", newline="\n") as file:
        rows = [json.loads(line) for line in file]
    content = [_content(row) for row in rows]
    found = hash_rows([row["split"] for row in rows], content)
    if found != manifest.hash:
        raise UserError(
            f"{source}: the rows make the hash {found[:12]}…, the manifest says {manifest.hash[:12]}…."
        )
    _keep_images(db, folder, source, rows)
    with immediate(db):
        ensure_user(db, user)
        _store(db, manifest, rows, content, user)
    return get_dataset(db, manifest.name)


def _content(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in ("kind", "split", "sample", "files")}


def _keep_images(db: Database, folder: DataFolder, source: Path, rows: list[Row]) -> None:
    done: set[str] = set()
    for row in rows:
        for sha256 in images_of(row["messages"]):
            if sha256 in done:
                continue
            path = (source / str(row["files"][sha256])).resolve()
            if not path.is_relative_to(source.resolve()):
                raise UserError(f"{source}: the image {row['files'][sha256]!r} lies outside of the folder.")
            image = ensure_image_file(db, folder, path)
            if image.sha256 != sha256:
                raise UserError(f"{path} was changed since the export: its sha256 is {image.sha256[:12]}….")
            done.add(sha256)


def _store(db: Database, manifest: Manifest, rows: list[Row], content: list[Row], user: str) -> None:
    cursor = db.conn.execute(
        "INSERT INTO datasets (name, hash, rule, counts, user, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        [
            manifest.name,
            manifest.hash,
            json.dumps({**manifest.rule, "imported": True}, ensure_ascii=False),
            json.dumps(manifest.counts),
            user,
            now(),
        ],
    )
    dataset_id = int(cursor.lastrowid or 0)
    samples: dict[int, int] = {}
    candidates: dict[tuple[int, str], int] = {}
    source = f"data set {manifest.name}"

    def sample_of(row: Row) -> int:
        name = row["sample"]
        if name not in samples:
            made = add_sample(db, source, str(name), row["messages"], row.get("reference"))
            if made is None:
                found = one(db, "SELECT id FROM samples WHERE source = ? AND source_id = ?", [source, str(name)])
                assert found is not None  # else it would have been added
                made = int(found["id"])
            samples[name] = made
        return samples[name]

    def candidate_of(sample_id: int, text: str) -> int:
        if (sample_id, text) not in candidates:
            made = db.conn.execute(
                "INSERT INTO candidates (sample_id, text, model, settings, created_at) VALUES (?, ?, ?, ?, ?)",
                [sample_id, text, source, json.dumps({"imported": source}), now()],
            )
            candidates[sample_id, text] = int(made.lastrowid or 0)
        return candidates[sample_id, text]

    # Samples' rows know the references: they come first.
    for row in sorted(rows, key=lambda row: row["kind"] != "sample"):
        sample_of(row)
    for position, (row, kept) in enumerate(zip(rows, content, strict=True)):
        sample_id, pair_id = sample_of(row), None
        stored = {**kept, "sample_id": sample_id}
        if row["kind"] == "pair":
            ids = [candidate_of(sample_id, row[name]) for name in ("chosen", "rejected")]
            pair_id = _pair(db, sample_id, ids, row, user, manifest.name)
            stored["pair_id"] = pair_id
        else:
            answers = [{**one, "candidate_id": candidate_of(sample_id, one["text"])} for one in row["answers"]]
            stored["answers"] = answers
        db.conn.execute(
            "INSERT INTO dataset_rows (dataset_id, position, split, sample_id, pair_id, row, kind)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                dataset_id,
                position,
                row["split"],
                sample_id,
                pair_id,
                json.dumps(stored, ensure_ascii=False, sort_keys=True),
                row["kind"],
            ],
        )


def _pair(db: Database, sample_id: int, ids: list[int], row: Row, user: str, name: str) -> int:
    origin = row.get("origin", "hand")
    db.conn.execute(
        "INSERT OR IGNORE INTO pairs (sample_id, chosen_id, rejected_id, origin, chosen_quality, rejected_quality,"
        " status, user, created_at, imported) VALUES (?, ?, ?, ?, ?, ?, 'accepted', ?, ?, ?)",
        [
            sample_id,
            *ids,
            _FROM_RULE.get(origin, origin),
            row.get("chosen_quality"),
            row.get("rejected_quality"),
            user,
            now(),
            name,
        ],
    )
    found = one(
        db, "SELECT id FROM pairs WHERE sample_id = ? AND chosen_id = ? AND rejected_id = ?", [sample_id, *ids]
    )
    assert found is not None  # inserted just now, or before
    return int(found["id"])
