"""Reading events.jsonl: whole lines by byte offset. No database in here: workers read it too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

Event = dict[str, Any]
CHUNK = 100_000  # bytes a transaction at the most, so that a writer beside us waits briefly
LONGEST = 64_000_000  # bytes of one line; a longer one is no event of ours, and is not held in memory
SHOWN = 200  # bytes of a broken line that are shown


@dataclass(frozen=True)
class Batch:
    """Whole lines read from an offset.

    Attributes:
        events: those that are events; each is a dictionary with `kind`.
        broken: lines that are not, each by its beginning, for the log.
        offset: where the next read starts: after the last newline.
    """

    events: list[Event]
    broken: list[str]
    offset: int


def read_batch(path: Path, offset: int, limit: int = CHUNK) -> Batch:
    """Read whole lines from `offset`; a torn last line waits for its rest.

    At most `limit` bytes, but at least one line, if it is no longer than `LONGEST`. A file that is gone, or
    shorter than `offset`, holds nothing new.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit)
            if data and b"\n" not in data:
                return _one_long_line(file, offset, data, limit)
    except (FileNotFoundError, NotADirectoryError):
        return Batch([], [], offset)
    whole = data[: data.rfind(b"\n") + 1]
    events: list[Event] = []
    broken: list[str] = []
    for line in whole.split(b"\n"):  # not splitlines: a carriage return ends no line of ours
        _sort(line, events, broken)
    return Batch(events, broken, offset + len(whole))


def _one_long_line(file: BinaryIO, offset: int, begun: bytes, limit: int) -> Batch:
    parts, length = [begun], len(begun)
    while more := file.read(limit):
        head, newline, _ = more.partition(b"\n")
        length += len(head)
        if length <= LONGEST:
            parts.append(head)
        if newline:
            break
    else:
        return Batch([], [], offset)
    events: list[Event] = []
    broken: list[str] = []
    if length > LONGEST:
        broken.append(f"a line of {length:,} bytes: {shown(begun)}")
    else:
        _sort(b"".join(parts), events, broken)
    return Batch(events, broken, offset + length + 1)


def _sort(line: bytes, events: list[Event], broken: list[str]) -> None:
    if not line.strip():
        return
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and isinstance(event.get("kind"), str):
        events.append(event)
    else:
        broken.append(shown(line))


def shown(line: bytes) -> str:
    """The beginning of a line that is no event, as it can be printed."""
    text = line[:SHOWN].decode("utf-8", errors="replace")
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def read_torn(path: Path, offset: int) -> tuple[str, int]:
    """(the beginning of what follows the last newline, where the file ends), to be asked once its writer is gone.

    Args:
        offset: up to where whole lines were read; nothing follows but a torn line.

    Returns:
        ("", offset) where there is none.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            begun = file.read(SHOWN)
            end = file.seek(0, 2)
    except OSError:
        return "", offset
    return (shown(begun), end) if begun else ("", offset)


def read_tail(path: Path, begin: int = 0, size: int = 256_000) -> list[Event]:
    """The events in the last `size` bytes, without the line that begins before them.

    Args:
        begin: nothing before this byte counts.
    """
    try:
        length = path.stat().st_size
    except OSError:
        return []
    offset = max(begin, length - size)
    if offset > begin:
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.readline(CHUNK):
                offset += len(chunk)
                if chunk.endswith(b"\n"):
                    break
    return read_batch(path, offset, max(size, length - offset)).events


def read_events(path: Path) -> Iterator[Event]:
    """All events of a file, from its beginning."""
    offset = 0
    while True:
        batch = read_batch(path, offset)
        if batch.offset == offset:
            return
        yield from batch.events
        offset = batch.offset
