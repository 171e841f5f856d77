"""Reading events.jsonl: whole lines by byte offset. No database in here: workers read it too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]
CHUNK = 1_000_000  # bytes a transaction at the most, so that a writer beside us waits briefly


@dataclass(frozen=True)
class Batch:
    """Whole lines read from an offset.

    Attributes:
        events: those that are events; each is a dictionary with `kind`.
        broken: lines that are not, for the log.
        offset: where the next read starts: after the last newline.
    """

    events: list[Event]
    broken: list[str]
    offset: int


def read_batch(path: Path, offset: int, limit: int = CHUNK) -> Batch:
    """Read whole lines from `offset`; a torn last line waits for its rest."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit)
            while data and b"\n" not in data and (more := file.read(limit)):
                data += more
    except FileNotFoundError:
        return Batch([], [], offset)
    whole = data[: data.rfind(b"\n") + 1]
    events: list[Event] = []
    broken: list[str] = []
    for line in whole.splitlines():
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError:
            broken.append(line[:200].decode("utf-8", errors="replace"))
            continue
        if isinstance(event, dict) and isinstance(event.get("kind"), str):
            events.append(event)
        else:
            broken.append(line[:200].decode("utf-8", errors="replace"))
    return Batch(events, broken, offset + len(whole))


def read_tail(path: Path, size: int = 256_000) -> list[Event]:
    """The events in the last `size` bytes, without the line that begins before them."""
    try:
        length = path.stat().st_size
    except FileNotFoundError:
        return []
    offset = max(0, length - size)
    if offset:
        with path.open("rb") as file:
            file.seek(offset)
            offset += len(file.readline())
    return read_batch(path, offset, size).events


def read_events(path: Path) -> Iterator[Event]:
    """All events of a file, from its beginning."""
    offset = 0
    while True:
        batch = read_batch(path, offset)
        if batch.offset == offset:
            return
        yield from batch.events
        offset = batch.offset
