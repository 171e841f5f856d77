"""Frozen data sets: the rule, the rows, the hash. Training reads these, never the live tables.

Rows of kind "pair" come first, those of kind "sample" after them; see `storage.records.DatasetRow`.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.records import METRICS, Dataset, DatasetRow, Message, PairStatus, Rater, Split, now
from storage.rows import BLANKS, Row, marks, one, rows, with_json
from storage.samples import images_of
from storage.scores import list_raters
from storage.users import ensure_user

RowKind = Literal["pair", "sample"]

# A discarded sample is in no data set, whatever has been decided of its pairs.
_KEPT = "NOT EXISTS (SELECT 1 FROM discards d WHERE d.sample_id = p.sample_id)"


@dataclass(frozen=True)
class PairSources:
    """Who and what stands behind the pairs of some statuses.

    Attributes:
        judgements: by id, with their raters: those that pairs made by rule stand on.
        by_hand: (user, origin) → pairs that a person made: "hand" or "vote".
        rules: each rule that made some of them, with how many.
    """

    judgements: dict[int, Rater]
    by_hand: dict[tuple[str, str], int]
    rules: list[tuple[dict[str, Any], int]]


def pairs_to_freeze(db: Database, statuses: Sequence[PairStatus]) -> list[Row]:
    """The pairs of these statuses as rows {pair_id, sample_id, messages, chosen, rejected, images, …}, by id.

    `images` is what the split goes by: the images' sha256, or that of the messages of a sample that has none.
    """
    found = rows(
        db,
        f"""SELECT p.id AS pair_id, p.sample_id, s.messages, c.text AS chosen, r.text AS rejected,
                   p.origin, p.chosen_quality, p.rejected_quality
            FROM pairs p JOIN samples s ON s.id = p.sample_id
            JOIN candidates c ON c.id = p.chosen_id JOIN candidates r ON r.id = p.rejected_id
            WHERE p.status IN ({marks(statuses)}) AND {_KEPT} ORDER BY p.id""",
        list(statuses),
    )
    return [_with_images(row) for row in found]


def samples_to_freeze(db: Database, sample_ids: Collection[int]) -> list[Row]:
    """These samples as rows {sample_id, messages, reference, images}, by id; one query for all of them."""
    found = rows(db, "SELECT id AS sample_id, messages, reference FROM samples ORDER BY id")
    return [_with_images(row) for row in found if row["sample_id"] in sample_ids]


def samples_of_pairs(db: Database, statuses: Sequence[PairStatus]) -> list[int]:
    """The sample of each pair of these statuses."""
    found = rows(
        db, f"SELECT p.sample_id FROM pairs p WHERE p.status IN ({marks(statuses)}) AND {_KEPT}", list(statuses)
    )
    return [row["sample_id"] for row in found]


def samples_with_reference(db: Database) -> set[int]:
    """The samples that have a reference answer which is not blank."""
    found = rows(db, "SELECT id FROM samples WHERE trim(coalesce(reference, ''), ?) <> ''", [BLANKS])
    return {row["id"] for row in found}


def _with_images(row: Row) -> Row:
    row["messages"] = json.loads(row["messages"])
    row["images"] = images_of(row["messages"]) or [_key_of(row["messages"])]
    return row


def _key_of(messages: Sequence[Message]) -> str:
    """What a sample without images is split by: its text, so that no id of this database decides.

    Sets frozen by earlier versions have `sample:<id>` there.
    """
    text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    return f"messages:{hashlib.sha256(text.encode()).hexdigest()}"


def sources_of_pairs(db: Database, statuses: Sequence[PairStatus]) -> PairSources:
    """Where the pairs of these statuses come from."""
    among = f"p.status IN ({marks(statuses)}) AND {_KEPT}"
    raters = {rater.id: rater for rater in list_raters(db)}
    judgements = rows(
        db,
        f"""SELECT DISTINCT j.id, j.rater_id FROM pair_judgements k JOIN pairs p ON p.id = k.pair_id
            JOIN judgements j ON j.id = k.judgement_id WHERE {among}""",
        list(statuses),
    )
    by_hand = rows(
        db,
        f"""SELECT p.user, p.origin, count(*) AS n FROM pairs p WHERE {among} AND p.origin <> 'rule'
            GROUP BY p.user, p.origin ORDER BY n DESC, p.user, p.origin""",
        list(statuses),
    )
    rules = rows(
        db,
        f"""SELECT p.rule, count(*) AS n FROM pairs p WHERE {among} AND p.origin = 'rule' AND p.rule IS NOT NULL
            GROUP BY p.rule ORDER BY n DESC, p.rule""",
        list(statuses),
    )
    return PairSources(
        judgements={row["id"]: raters[row["rater_id"]] for row in judgements},
        by_hand={(row["user"], row["origin"]): row["n"] for row in by_hand},
        rules=[(json.loads(row["rule"]), row["n"]) for row in rules],
    )


def check_freeze(db: Database, name: str, statuses: Sequence[PairStatus], heldout_percent: float) -> str:
    """The data set's name, stripped; asked before anything is read.

    Raises:
        UserError: the name is empty or too long; the percentage is out of range; there are no such pairs.
        Conflict: the name is taken.
    """
    name = name.strip()
    if not name or len(name) > 80:
        raise UserError(f"name = {name!r}: give the data set a name of 1 to 80 characters.")
    if not 0 <= heldout_percent <= 90:
        raise UserError(f"held-out = {heldout_percent} %: give a number from 0 to 90.")
    _refuse_taken(db, name)
    if not one(
        db, f"SELECT 1 FROM pairs p WHERE p.status IN ({marks(statuses)}) AND {_KEPT} LIMIT 1", list(statuses)
    ):
        raise UserError(
            f"There are no pairs that are {' or '.join(statuses)}: the data set {name!r} would be empty. "
            "Make pairs by rule or by hand on the Pairs page, and accept them."
        )
    return name


def freeze_pairs(
    db: Database,
    user: str,
    name: str,
    pairs: Sequence[Row],
    samples: Sequence[Row],
    rule: dict[str, Any],
    heldout_percent: float = 10.0,
    seed: int = 0,
) -> Dataset:
    """Store pairs and the samples behind them under a name, with a held-out part split by image.

    All rows that share an image (or, without images, a sample) fall on the same side, so that nothing of the
    held-out part was seen in training. Which rows those are is found by `jobs.freezing.freeze`.

    Args:
        pairs: as `pairs_to_freeze` gives them.
        samples: as `samples_to_freeze` gives them, each with `answers` and `rater` (storage.records.DatasetRow).
        rule: how the rows were found; told to people, no part of the hash.

    Raises:
        UserError: there are pairs to hold out, and none can be.
        Conflict: the name is taken, or what is to be frozen was deleted meanwhile.
    """
    frozen = [*pairs, *samples]
    heldout = split_by_image([row["images"] for row in frozen], heldout_percent, seed, len(pairs))
    splits: list[Split] = ["heldout" if out else "train" for out in heldout]
    if "heldout" not in splits[: len(pairs)] and round(len(pairs) * heldout_percent / 100):
        raise UserError(
            f"held-out = {heldout_percent} %: all {len(pairs)} pairs share their images, so that none can "
            "be held out. Give 0, or add pairs of other images."
        )
    digest = hash_rows(splits, frozen)
    counts = count_rows(splits, pairs, samples)
    values = [
        (position, split, row["sample_id"], row.get("pair_id"), _packed(row), _kind(row))
        for position, (split, row) in enumerate(zip(splits, frozen, strict=True))
    ]
    with immediate(db):
        ensure_user(db, user)
        _refuse_taken(db, name)
        try:
            cursor = db.conn.execute(
                "INSERT INTO datasets (name, hash, rule, counts, user, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                [name, digest, json.dumps(rule, ensure_ascii=False), json.dumps(counts), user, now()],
            )
            dataset_id = int(cursor.lastrowid or 0)
            db.conn.executemany(
                "INSERT INTO dataset_rows (dataset_id, position, split, sample_id, pair_id, row, kind)"
                f" VALUES ({dataset_id}, ?, ?, ?, ?, ?, ?)",
                values,
            )
        except sqlite3.IntegrityError as error:
            raise Conflict(
                f"The data set {name!r} cannot be stored: {error}. Something in it was deleted; freeze again."
            ) from error
    return get_dataset(db, name)


def _refuse_taken(db: Database, name: str) -> None:
    if one(db, "SELECT 1 AS found FROM datasets WHERE name = ?", [name]):
        raise Conflict(f"There is a data set named {name!r} already; choose another name.")


def _packed(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True)


def _kind(row: Row) -> RowKind:
    return "pair" if "chosen" in row else "sample"


def split_by_image(
    groups: Sequence[Sequence[str]], percent: float, seed: int, counted: int | None = None
) -> list[bool]:
    """Which rows are held out (pure): rows that share an image, directly or through others, stay together.

    Groups are drawn in a seeded order until at least `percent` of the rows are held out, as long as rows for
    training remain.

    Args:
        groups: the images of each row; rows without images must carry some key of their own.
        counted: the percentage is of this many rows, the first; groups that hold none of them are drawn apart,
            by the same percentage of their own rows. None: of all rows.
    """
    names = connected(groups)
    sizes = Counter(names[:counted])
    others = Counter(name for name in names if name not in sizes)
    drawn = {*draw_groups(sizes, percent, seed), *draw_groups(others, percent, seed)}
    return [name in drawn for name in names]


def connected(groups: Sequence[Sequence[str]]) -> list[str]:
    """A name for each row, the same for rows that share a key, directly or through other rows (pure)."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for keys in groups:
        for key in keys[1:]:
            parent[root(key)] = root(keys[0])
    return [root(keys[0]) for keys in groups]


def draw_groups(sizes: Mapping[str, int], percent: float, seed: int) -> list[str]:
    """Groups in a seeded order until they hold `percent` of all rows, never all of them (pure).

    Args:
        sizes: group → its number of rows.
    """
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    total, held = sum(sizes.values()), 0
    wanted = round(total * percent / 100)
    drawn = []
    for key in order:
        if held >= wanted:
            break
        if held + sizes[key] < total:
            drawn.append(key)
            held += sizes[key]
    return drawn


def hash_rows(splits: Sequence[str], frozen: Sequence[Row]) -> str:
    """sha256 over all that a training can see of the rows, and their splits.

    Ids of this database are left out, and so are raters: equal content hashes equal, whoever judged it.
    """
    digest = hashlib.sha256()
    for split, row in zip(splits, frozen, strict=True):
        digest.update(json.dumps([split, _content(row)], ensure_ascii=False, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def dataset_hash(db: Database, dataset_id: int) -> str:
    """The hash of a data set's rows as they are stored now: that which it was frozen with."""
    found = rows(db, "SELECT split, row FROM dataset_rows WHERE dataset_id = ? ORDER BY position", [dataset_id])
    return hash_rows([row["split"] for row in found], [json.loads(row["row"]) for row in found])


def _content(row: Row) -> Row:
    if _kind(row) == "pair":
        return {key: row[key] for key in ("messages", "chosen", "rejected")}
    answers = [{key: answer[key] for key in ("text", *METRICS)} for answer in row["answers"]]
    return {"messages": row["messages"], "reference": row["reference"], "answers": answers}


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
    db: Database, dataset_id: int, split: Split | None = None, kind: RowKind = "pair"
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


def count_rows(splits: Sequence[str], pairs: Sequence[Row], samples: Sequence[Row]) -> dict[str, Any]:
    """What a data set holds, in numbers: train and heldout are pairs, samples those that have one.

    Empty answers stay in their rows and count for nothing: no method learns from them.
    """
    of_pairs = splits[: len(pairs)]
    answers = [sum(bool(answer["text"].strip()) for answer in row["answers"]) for row in samples]
    return {
        "train": of_pairs.count("train"),
        "heldout": of_pairs.count("heldout"),
        "samples": len({row["sample_id"] for row in pairs}),
        "chosen_characters": round(mean(len(row["chosen"]) for row in pairs), 1),
        "rejected_characters": round(mean(len(row["rejected"]) for row in pairs), 1),
        "scored_samples": sum(map(bool, answers)),
        "scored_answers": sum(answers),
        "references": sum(has_reference(row) for row in samples),
    }


def has_reference(row: Row) -> bool:
    """Whether a sample's row has a reference answer that is not blank."""
    return bool((row["reference"] or "").strip())
