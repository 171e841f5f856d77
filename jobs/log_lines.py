"""Reading an attempt's part of a run's log, line by line: a log of 1 GB takes no more memory than a short one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from storage.errors import NotFound
from storage.records import Attempt

#: Bytes after which a line is cut: a progress bar that ends no line, say, is one line of an hour's length.
LONGEST_LINE = 1_000_000


def log_lines(path: Path, begin: int = 0, end: int | None = None) -> Iterator[str]:
    """The lines between two bytes, as they would stand on a screen; none where there is no log.

    Args:
        begin, end: an attempt's part; `end` is None for the end of the file as it is when that is reached.
    """
    try:
        with path.open("rb") as file:
            file.seek(begin)
            left = None if end is None else end - begin
            while left is None or left > 0:
                most = LONGEST_LINE if left is None else min(LONGEST_LINE, left)
                line = file.readline(most)
                if not line:
                    return
                if left is not None:
                    left -= len(line)
                # A progress bar rewrites its line with \r: only what would be on screen counts.
                yield line.decode("utf-8", errors="replace").rstrip("\r\n").rsplit("\r", 1)[-1]
    except (FileNotFoundError, NotADirectoryError):
        return


def attempt_numbered(attempts: list[Attempt], number: int | None) -> Attempt:
    """The attempt of this number; the latest where that is None.

    Raises:
        NotFound: there is none such, or none at all.
    """
    if not attempts:
        raise NotFound("The job has not started yet: there is no log.")
    if number is None:
        return attempts[-1]
    found = next((attempt for attempt in attempts if attempt.number == number), None)
    if found is None:
        count = f"{len(attempts)} attempt{'' if len(attempts) == 1 else 's'}"
        raise NotFound(f"attempt = {number}: the job has {count}; give a number from 1 to {len(attempts)}.")
    return found
