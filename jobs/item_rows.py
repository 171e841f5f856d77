"""A benchmark's item as it lies in run folders and in the database, and back (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.benchmarks.contract import Item

#: Below data/ of a grading's run folder: {benchmark, items, answers}.
EVALUATION = "evaluation.json"

FIELDS = ("id", "unit", "categories", "reference", "temperature", "extra")


def fields_of(item: Item) -> dict[str, Any]:
    """What an item has beside its messages."""
    return {
        "id": item.id,
        "unit": item.unit,
        "categories": list(item.categories),
        "reference": list(item.reference),
        "temperature": item.temperature,
        "extra": dict(item.extra),
    }


def stored(item: Item) -> dict[str, Any]:
    return {
        **fields_of(item),
        "messages": list(item.messages),
        "following": [list(parts) for parts in item.following],
    }


def item_of(row: Mapping[str, Any]) -> Item:
    """An item as a run folder, or the database, holds it."""
    return Item(
        row["id"],
        tuple(row["messages"]),
        tuple(tuple(parts) for parts in row["following"]),
        tuple(row["categories"]),
        tuple(row["reference"]),
        row["temperature"],
        row["unit"],
        row["extra"],
    )
