"""What a browser says of the list that it shows, so that a step within it draws nothing anew but the sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from storage.finding import Count, SampleFilter

MOST = 1000  # more lines than any page of ours has


@dataclass(frozen=True)
class Drawn:
    """The list that a browser shows, as `list_views.sample_list` wrote it down, and the sample it had pinned."""

    where: SampleFilter
    ids: tuple[int, ...]
    start: Count
    total: Count
    pinned: int | None = None


def read_drawn(text: str) -> Drawn | None:
    """What the browser says it shows; None for what is not of ours. It decides on nothing but what is drawn."""
    try:
        told: Any = json.loads(text)
        ids = tuple(int(one) for one in told["ids"])
        drawn = Drawn(
            SampleFilter.from_query({str(name): str(value) for name, value in told["filter"].items()}),
            ids,
            Count(int(told["start"]), told["start_kind"]),
            Count(int(told["total"]), told["total_kind"]),
            int(told["pinned"]) if told.get("pinned") else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None
    if not {drawn.start.kind, drawn.total.kind} <= {"exact", "about", "over"}:
        return None
    return drawn if 0 < len(ids) <= MOST and all(0 < one < 2**63 for one in ids) else None
