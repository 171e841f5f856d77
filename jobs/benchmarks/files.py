"""Reading benchmarks' files: every problem names the file, the line and what to do."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.errors import UserError

LARGEST_FILE = 2_000_000_000  # bytes; MMBench carries its images


class BadFile(UserError):
    """A file is not what the benchmark's protocol says."""


def read_lines(path: Path, *fields: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a JSON list of objects is read, too.

    Args:
        fields: that each must have.

    Raises:
        BadFile: the file is not there, is not such a file, or an object lacks a field.
    """
    text = _text(path)
    try:
        whole = json.loads(text) if text.lstrip().startswith("[") else None
    except json.JSONDecodeError as error:
        raise BadFile(f"{path}: line {error.lineno} is not JSON ({error.msg}).") from None
    found = [(f"row {number}", one) for number, one in enumerate(whole, 1)] if whole else [*_lines(path, text)]
    for place, one in found:
        if not isinstance(one, dict):
            raise BadFile(f"{path}: {place} is not a JSON object.")
        missing = [name for name in fields if name not in one]
        if missing:
            there = ", ".join(map(str, one)) or "nothing"
            raise BadFile(
                f"{path}: {place} has no {' and no '.join(missing)} (it has {there}); is this the "
                "benchmark's official file?"
            )
    if not found:
        raise BadFile(f"{path} is empty.")
    return [one for _, one in found]


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: answers may hold U+2028
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise BadFile(f"{path}: line {number} is not JSON ({error.msg}).") from None


def read_object(path: Path) -> dict[str, Any]:
    """A file that is one JSON object. Raises BadFile."""
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise BadFile(f"{path}: line {error.lineno} is not JSON ({error.msg}).") from None
    if not isinstance(found, dict):
        raise BadFile(f"{path} is not one JSON object.")
    return found


def read_table(path: Path, *fields: str) -> list[dict[str, str]]:
    """The rows of a TSV file with a header. Raises BadFile."""
    csv.field_size_limit(min(sys.maxsize, LARGEST_FILE))  # an image stands in one field
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter="\t")
    missing = [name for name in fields if name not in (rows.fieldnames or ())]
    if missing:
        raise BadFile(f"{path} has no column {' and no column '.join(missing)}; it has {rows.fieldnames}.")
    return [{name: value or "" for name, value in row.items() if name is not None} for row in rows]


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise BadFile(f"{path} has {path.stat().st_size:,} bytes; the most is {LARGEST_FILE:,}.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} is not UTF-8 text (byte {error.start}).") from None


def unique(path: Path, ids: Iterable[str]) -> None:
    """Raise BadFile where an id comes twice."""
    twice = [name for name, number in Counter(ids).items() if number > 1]
    if twice:
        raise BadFile(
            f"{path}: {len(twice)} ids come more than once (the first is {twice[0]!r}); each must be there once."
        )


def matched(path: Path, answers: Mapping[str, Any], ids: Sequence[str]) -> list[str]:
    """The ids that have no answer.

    Raises:
        BadFile: no id has one, or an answer belongs to no question: this is another benchmark's file, or another
            version of it.
    """
    known = set(ids)
    strange = [name for name in answers if name not in known]
    if strange:
        raise BadFile(
            f"{path}: {len(strange)} answers belong to no question of this benchmark (first {strange[0]!r}). "
            "Give the questions' file of the version that was answered."
        )
    missing = [name for name in ids if name not in answers]
    if len(missing) == len(ids):
        raise BadFile(f"{path} answers none of the {len(ids)} questions.")
    return missing
