"""Frozen data sets: the rule, the rows, the hash. Training reads these, never the live tables."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections.abc import Sequence
from statistics import mean
from typing import Any, Literal

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.records import Dataset, DatasetRow, PairStatus, Split, now
from storage.rows import one, rows, with_json
from storage.users import ensure_user


def freeze_pairs(
    db: Database,
    user: str,
    name: str,
    statuses: Sequence[PairStatus] = ("accepted",),
    heldout_percent: float = 10.0,
    seed: int = 0,
) -> Dataset:
    """Freeze the pairs of these statuses under a name, with a held-out part split by image.

    All pairs that share an image (or, without images, a sample) fall on the same side, so that nothing of the
    held-out part was seen in training.

    Raises:
        UserError: the name is empty or too long; the percentage is out of range; there are no such pairs.
        Conflict: the name is taken.
    """
    name = name.strip()
    if not name or len(name) > 80:
        raise UserError(f"name = {name!r}: give the data set a name of 1 to 80 characters.")
    if not 0 <= heldout_percent <= 90:
        raise UserError(f"held-out = {heldout_percent} %: give a number from 0 to 90.")
    with immediate(db):
        ensure_user(db, user)
        if one(db, "SELECT 1 AS found FROM datasets WHERE name = ?", [name]):
            raise Conflict(f"There is a data set named {name!r} already; choose another name.")
        frozen = _pair_rows(db, statuses)
        if not frozen:
            raise UserError(
                f"There are no pairs that are {' or '.join(statuses)}: the data set {name!r} would be empty. "
                "Make pairs by rule or by hand on the Pairs page, and accept them."
            )
        heldout = split_by_image([row["images"] for row in frozen], heldout_percent, seed)
        splits: list[Split] = ["heldout" if out else "train" for out in heldout]
        if "heldout" not in splits and round(len(frozen) * heldout_percent / 100):
            raise UserError(
                f"held-out = {heldout_percent} %: all {len(frozen)} pairs share their images, so that none can "
                "be held out. Give 0, or add pairs of other images."
            )
        rule = {"statuses": list(statuses), "heldout_percent": heldout_percent, "seed": seed}
        digest = hash_rows(splits, frozen)
        try:
            cursor = db.conn.execute(
                "INSERT INTO datasets (name, hash, rule, counts, user, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                [name, digest, json.dumps(rule), json.dumps(_counts(splits, frozen)), user, now()],
            )
        except sqlite3.IntegrityError as error:
            raise Conflict(f"The data set {name!r} cannot be stored: {error}.") from error
        dataset_id = int(cursor.lastrowid or 0)
        db.conn.executemany(
            "INSERT INTO dataset_rows (dataset_id, position, split, sample_id, pair_id, row)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    dataset_id,
                    position,
                    split,
                    row["sample_id"],
                    row["pair_id"],
                    json.dumps(row, ensure_ascii=False, sort_keys=True),
                )
                for position, (split, row) in enumerate(zip(splits, frozen, strict=True))
            ],
        )
    return get_dataset(db, name)


def split_by_image(groups: Sequence[Sequence[str]], percent: float, seed: int) -> list[bool]:
    """Which rows are held out (pure): rows that share an image, directly or through others, stay together.

    Groups are drawn in a seeded order until at least `percent` of the rows are held out, as long as rows for
    training remain.

    Args:
        groups: the images of each row; rows without images must carry some key of their own.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for keys in groups:
        for key in keys[1:]:
            parent[root(key)] = root(keys[0])
    members: dict[str, list[int]] = {}
    for index, keys in enumerate(groups):
        members.setdefault(root(keys[0]), []).append(index)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    wanted, out = round(len(groups) * percent / 100), [False] * len(groups)
    for key in order:
        held = sum(out)
        if held >= wanted:
            break
        if held + len(members[key]) < len(groups):
            for index in members[key]:
                out[index] = True
    return out


def hash_rows(splits: Sequence[str], frozen: Sequence[dict[str, Any]]) -> str:
    """sha256 over every row and its split; ids of this database are left out, so equal content hashes equal."""
    digest = hashlib.sha256()
    for split, row in zip(splits, frozen, strict=True):
        content = {key: row[key] for key in ("messages", "chosen", "rejected")}
        digest.update(json.dumps([split, content], ensure_ascii=False, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def get_dataset(db: Database, name: str) -> Dataset:
    """Raises NotFound."""
    found = one(db, "SELECT * FROM datasets WHERE name = ?", [name])
    if found is None:
        names = ", ".join(dataset.name for dataset in list_datasets(db)) or "none yet"
        raise NotFound(f"There is no data set named {name!r} (there are: {names}); freeze one on the Pairs page.")
    return Dataset(**with_json(found, "rule", "counts"))


def list_datasets(db: Database) -> list[Dataset]:
    return [
        Dataset(**with_json(row, "rule", "counts")) for row in rows(db, "SELECT * FROM datasets ORDER BY id DESC")
    ]


def dataset_rows(
    db: Database, dataset_id: int, split: Split | None = None, kind: Literal["pair", "sample"] = "pair"
) -> list[DatasetRow]:
    """The frozen rows of one kind, in order, of both splits or one."""
    return [
        DatasetRow(**with_json(row, "row"))
        for row in rows(
            db,
            "SELECT position, split, sample_id, pair_id, row, kind FROM dataset_rows"
            f" WHERE dataset_id = ? AND kind = ? {'AND split = ?' if split else ''} ORDER BY position",
            [dataset_id, kind, *([split] if split else [])],
        )
    ]


def _pair_rows(db: Database, statuses: Sequence[PairStatus]) -> list[dict[str, Any]]:
    from storage.samples import images_of

    found = rows(
        db,
        f"""SELECT p.id AS pair_id, p.sample_id, s.messages, c.text AS chosen, r.text AS rejected,
                   p.origin, p.chosen_quality, p.rejected_quality
            FROM pairs p JOIN samples s ON s.id = p.sample_id
            JOIN candidates c ON c.id = p.chosen_id JOIN candidates r ON r.id = p.rejected_id
            WHERE p.status IN ({", ".join("?" * len(statuses))}) ORDER BY p.id""",
        list(statuses),
    )
    for row in found:
        row["messages"] = json.loads(row["messages"])
        row["images"] = images_of(row["messages"]) or [f"sample:{row['sample_id']}"]
    return found


def _counts(splits: Sequence[str], frozen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "train": splits.count("train"),
        "heldout": splits.count("heldout"),
        "samples": len({row["sample_id"] for row in frozen}),
        "chosen_characters": round(mean(len(row["chosen"]) for row in frozen), 1),
        "rejected_characters": round(mean(len(row["rejected"]) for row in frozen), 1),
    }
