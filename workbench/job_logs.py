"""Reading a run's log: its end, or that of one attempt's part, and a search. Neither holds a large log whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

TAIL_LINES = 60
TAIL_BYTES = 64_000
BLOCK = 4_000_000  # bytes searched at a time
LONGEST = 300  # characters of a line that are shown
AROUND = 2  # lines before and after one that is found
_NEAR = 2_000  # bytes on either side of it in which these are looked for


@dataclass(frozen=True)
class Part:
    """The end of a log, or of an attempt's part of it.

    Attributes:
        text: whole lines, as they would stand on a screen.
        size: bytes of the part, shown or not.
        cut: there is more of it before the text.
    """

    text: str
    size: int
    cut: bool


@dataclass(frozen=True)
class Match:
    """A line with what was looked for. `line` counts from 1; `before` and `after` are its neighbours."""

    line: int
    before: tuple[str, ...]
    text: str
    after: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a search stands: a byte, and how many lines end before it."""

    offset: int = 0
    lines: int = 0


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        size: bytes of the log.
        rest: where it stopped at its bounds and could go on; None where it has seen all.
    """

    matches: tuple[Match, ...]
    size: int
    rest: Place | None


def tail(path: Path, begin: int = 0, end: int | None = None, lines: int = TAIL_LINES) -> Part:
    """The last lines between two bytes, read from the end: a log of 1 GB costs no more than a short one.

    Args:
        begin, end: an attempt's part; `end` is None for the end of the file.
    """
    try:
        with path.open("rb") as file:
            last = file.seek(0, 2) if end is None else min(end, file.seek(0, 2))
            begin = min(begin, last)
            first = max(begin, last - TAIL_BYTES)
            file.seek(first)
            data = file.read(last - first)
    except OSError:  # not written yet, or the folder has gone meanwhile
        return Part("", 0, False)
    if first > begin and (newline := data.find(b"\n")) >= 0:
        data = data[newline + 1 :]  # the line that begins before it is not whole
    kept = _lines(data)
    return Part("\n".join(kept[-lines:]), last - begin, first > begin or len(kept) > lines)


def search(
    path: Path,
    wanted: str,
    start: Place | None = None,
    *,
    most: int = 50,
    seconds: float = 3.0,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Lines that hold `wanted`, in their order, at most one match a line; A to Z stand for a to z too.

    Reads in blocks, and stops after `most` matches or `seconds`: then `rest` says where to go on.
    """
    start = start or Place()
    needle = wanted.encode("utf-8", errors="replace").lower()
    matches: list[Match] = []
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not needle:
                return Found((), size, None)
            begun = clock()
            for block, offset, line in _blocks(file, start, len(needle)):
                lowered, place = block.lower(), 0
                while (hit := lowered.find(needle, place)) >= 0:
                    line += block.count(b"\n", place, hit)
                    matches.append(_match(path, offset + hit, len(needle), line + 1))
                    newline = block.find(b"\n", hit)
                    place = len(block) if newline < 0 else newline + 1
                    line += newline >= 0
                    if len(matches) >= most and offset + place < size:
                        return Found(tuple(matches), size, Place(offset + place, line))
                line += block.count(b"\n", place)
                seen = offset + len(block)
                if clock() - begun > seconds and seen < size:
                    return Found(tuple(matches), size, Place(seen, line))
    except OSError:
        return Found(tuple(matches), 0, None)
    return Found(tuple(matches), size, None)


def _blocks(file: BinaryIO, start: Place, length: int) -> Iterator[tuple[bytes, int, int]]:
    """(bytes, their offset, lines that end before them), each block ending with a line where that can be.

    A line longer than a block is cut so that what is looked for (`length` bytes) lies whole in one of its pieces.
    """
    offset, line, most = start.offset, start.lines, BLOCK + length - 1
    while True:
        file.seek(offset)
        data = file.read(most)
        if not data:
            return
        moved = len(data)
        if moved == most:
            moved = data.rfind(b"\n") + 1
            data = data[:moved] if moved else data
        yield data, offset, line
        line += data.count(b"\n")
        offset += moved or BLOCK


def _match(path: Path, offset: int, length: int, line: int) -> Match:
    """The line around a byte, with its neighbours, as far as they lie near."""
    with path.open("rb") as file:
        first = max(0, offset - _NEAR)
        file.seek(first)
        data = file.read(offset - first + length + _NEAR)
    hit = offset - first
    begin = data.rfind(b"\n", 0, hit) + 1
    end = data.find(b"\n", hit)
    end = len(data) if end < 0 else end
    # A progress bar rewrites its line with \r: the piece that was found is what stood on the screen then.
    begin = max(begin, data.rfind(b"\r", begin, hit) + 1)
    stop = data.find(b"\r", hit, end)
    before = _lines(data[: data.rfind(b"\n", 0, hit) + 1])
    if first > 0 and before:
        before = before[1:]  # cut off at its beginning
    after = _lines(data[end + 1 :])[:AROUND]
    text = data[begin : end if stop < 0 else stop].decode("utf-8", errors="replace")
    place = len(data[begin:hit].decode("utf-8", errors="replace"))
    if place > LONGEST // 2:
        text = "…" + text[place - LONGEST // 2 :]
    return Match(line, tuple(map(_short, before[-AROUND:])), _short(text), tuple(map(_short, after)))


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8", errors="replace")
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
