"""Two frozen data sets against each other, by what their rows say: ids mean something in one database alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, median

from sqlite_utils import Database

from storage.datasets import dataset_rows
from storage.records import Dataset, DatasetRow

SHOWN = 20  # pairs of each kind that are told one by one


@dataclass(frozen=True)
class Lengths:
    """Characters of the answers of one side of the pairs."""

    mean: float
    median: float
    longest: int


@dataclass(frozen=True)
class Comparison:
    """What the pairs of two data sets share.

    Attributes:
        same: pairs that both have, with the same label; the first few one by one.
        moved: of these, in how many one trains on what the other holds out.
        turned: pairs whose label is the other way round; `first`'s rows.
        only_first, only_second: pairs that the other has in no direction.
    """

    same: int
    moved: int
    turned: tuple[DatasetRow, ...]
    only_first: tuple[DatasetRow, ...]
    only_second: tuple[DatasetRow, ...]
    turned_number: int
    only_first_number: int
    only_second_number: int


def compare(db: Database, first: Dataset, second: Dataset) -> Comparison:
    """The pairs of both by content; a pair that a data set has twice counts once."""
    left, right = ({_key(row): row for row in dataset_rows(db, one.id)} for one in (first, second))
    turned = [row for key, row in left.items() if key not in right and _turned(key) in right]
    same = left.keys() & right.keys()
    only_first = [row for key, row in left.items() if key not in right and _turned(key) not in right]
    only_second = [row for key, row in right.items() if key not in left and _turned(key) not in left]
    return Comparison(
        same=len(same),
        moved=sum(left[key].split != right[key].split for key in same),
        turned=tuple(turned[:SHOWN]),
        only_first=tuple(only_first[:SHOWN]),
        only_second=tuple(only_second[:SHOWN]),
        turned_number=len(turned),
        only_first_number=len(only_first),
        only_second_number=len(only_second),
    )


def lengths(texts: Iterable[str]) -> Lengths:
    found = [len(text) for text in texts] or [0]
    return Lengths(round(mean(found), 1), median(found), max(found))


Key = tuple[str, str, str]


def _key(row: DatasetRow) -> Key:
    """(prompt, chosen, rejected), each by its content."""
    prompt = json.dumps(row.row["messages"], sort_keys=True, ensure_ascii=False)
    return _digest(prompt), _digest(row.row["chosen"]), _digest(row.row["rejected"])


def _turned(key: Key) -> Key:
    return key[0], key[2], key[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
