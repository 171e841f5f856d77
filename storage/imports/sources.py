"""Rows of a file or a folder, one by one, with their places: JSON, JSON lines, parquet, a saved data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.imports.incoming import Broken

Placed = tuple[str, Mapping[str, Any] | Broken]

_AT_ONCE = 256  # rows of a table that are read together


def read_rows(path: Path) -> Iterator[Placed]:
    """(place, row) for each row of a file or folder; a row that cannot be read is a `Broken` at its place.

    Takes `.json` (a list, or an object that holds one), `.jsonl`, `.parquet`, `.arrow`, and a folder: one that
    `Dataset.save_to_disk` wrote, or one of such files, in the order of their names.

    Raises:
        UserError: there is no such file, it is of another kind, or cannot be read at all.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.")
    files = _files(path)
    for file in files:
        prefix = f"{file.name} " if len(files) > 1 else ""
        split = (
            file.parent.name
            if file.suffix == ".arrow" and (file.parent.parent / "dataset_dict.json").exists()
            else ""
        )
        for place, row in _READERS[file.suffix](file):
            if split and not isinstance(row, Broken):
                row = {"split": split, **row}
            yield f"{prefix}{place}", row


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in _READERS:
            raise UserError(
                f"{path.name}: give a file that ends in {', '.join(_READERS)}, or a folder of such files."
            )
        return [path]
    found = sorted(
        file for file in path.rglob("*") if file.suffix in (".parquet", ".arrow", ".jsonl") and file.is_file()
    )
    # What `datasets` cached beside the data is no part of it.
    found = [file for file in found if not file.name.startswith("cache-")]
    if not found:
        raise UserError(f"{path}: nothing to read in there; it should hold .parquet, .arrow or .jsonl files.")
    return found


def _json(path: Path) -> Iterator[Placed]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path.name} cannot be read as JSON: {error}. Is it JSON lines? Name it .jsonl then."
        ) from error
    if isinstance(held, Mapping):
        lists = [value for value in held.values() if isinstance(value, list)]
        held = lists[0] if len(lists) == 1 else held
    if not isinstance(held, list):
        raise UserError(f"{path.name} holds no list of rows.")
    for number, row in enumerate(held, start=1):
        yield f"row {number}", row if isinstance(row, Mapping) else Broken("it is no object")


def _jsonl(path: Path) -> Iterator[Placed]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"line {number}", _line(line)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}).") from error


def _line(line: bytes) -> Mapping[str, Any] | Broken:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        return Broken(f"it is not JSON ({error})")
    return row if isinstance(row, Mapping) else Broken("it is no object")


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]  # comes with datasets

    try:
        batches = parquet.ParquetFile(path).iter_batches(_AT_ONCE)
        yield from _numbered(row for batch in batches for row in batch.to_pylist())
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read as parquet: {error}") from error


def _arrow(path: Path) -> Iterator[Placed]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            for_rows = pyarrow.ipc.open_stream(source)
            yield from _numbered(row for batch in for_rows for row in batch.to_pylist())
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read as an Arrow stream: {error}") from error


def _numbered(rows: Iterator[Mapping[str, Any]]) -> Iterator[Placed]:
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


_READERS = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet, ".arrow": _arrow}
