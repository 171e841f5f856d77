"""Rows of a file or a folder, one by one, with their places: JSON, JSON lines, parquet, a saved data set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.imports.incoming import Broken
from storage.units import in_words

Placed = tuple[str, Mapping[str, Any] | Broken]

#: JSON is read whole, which takes several times as much memory.
LARGEST_JSON = 1_500_000_000
LONGEST_LINE = 64_000_000  #: bytes of a row of JSON lines
_AT_ONCE = 256  # rows of a table that are read together

# What `datasets` writes beside the rows.
ABOUT = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
# Files of a folder whose names tell their rows' split, as hubs' data sets do: data/train-00000-of-00003.parquet.
_SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val|dev)(?:set)?(?=$|[-_.])", re.IGNORECASE)
_SPLITS = {"valid": "validation", "val": "validation", "dev": "validation"}


def read_rows(path: Path, files: Sequence[Path] = ()) -> Iterator[Placed]:
    """(place, row) for each row of a file or folder; a row that cannot be read is a `Broken` at its place.

    Takes `.json` (a list, or an object that holds one), `.jsonl`, `.parquet`, `.arrow`, and a folder: one that
    `Dataset.save_to_disk` wrote, or one of such files, in the order of their names. In a folder, rows that name no
    split have the one that their file's name tells.

    Args:
        files: of a folder these alone.

    Raises:
        UserError: there is no such file, it is of another kind, or cannot be read at all.
    """
    found = list(files) or row_files(path)
    for file in found:
        prefix = f"{file.name} " if len(found) > 1 else ""
        split = split_of(file) if path.is_dir() else ""
        for place, row in _READERS[file.suffix.lower()](file):
            if split and not isinstance(row, Broken):
                row = {"split": split, **row}
            yield f"{prefix}{place}", row


def row_files(path: Path) -> list[Path]:
    """The files of rows that a path stands for, in the order in which they are read.

    Raises:
        UserError: there are none.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.")
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise UserError(
                f"{path.name}: give a file that ends in {', '.join(_READERS)}, or a folder of such files."
            )
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _READERS and file.is_file())
    # What `datasets` wrote or cached beside the data is no part of it.
    found = [file for file in found if not file.name.startswith("cache-") and file.name not in ABOUT]
    tables = [file for file in found if file.suffix.lower() != ".json"]
    if not found:
        raise UserError(
            f"{path.name}: no rows in there; it should hold .jsonl, .json, .parquet or .arrow files. Add the file "
            "with the rows."
        )
    return tables or found  # beside tables, .json files describe them


def split_of(file: Path) -> str:
    """The split that a file's place tells; "" where it doesn't."""
    if file.suffix == ".arrow" and (file.parent.parent / "dataset_dict.json").exists():
        return file.parent.name
    found = _SPLIT.search(file.stem)
    name = found[1].lower() if found else ""
    return _SPLITS.get(name, name)


def _json(path: Path) -> Iterator[Placed]:
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise UserError(f"{path.name} has {in_words(size)}, and JSON is read whole. Make JSON lines of it.")
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
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
            number = 0
            while line := lines.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = lines.readline(LONGEST_LINE)
                    yield f"line {number}", Broken(f"it has more than {in_words(LONGEST_LINE)}")
                elif line.strip():
                    yield f"line {number}", _line(line)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}).") from error


def _line(line: bytes) -> Mapping[str, Any] | Broken:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Broken(f"it is not JSON ({error})")
    return row if isinstance(row, Mapping) else Broken("it is no object")


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow  # type: ignore[import-untyped]  # comes with datasets
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    try:
        batches = parquet.ParquetFile(path).iter_batches(_AT_ONCE)
        yield from _numbered(row for batch in batches for row in batch.to_pylist())
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path.name} cannot be read as parquet: {error}") from error


def _arrow(path: Path) -> Iterator[Placed]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            for_rows = pyarrow.ipc.open_stream(source)
            yield from _numbered(row for batch in for_rows for row in batch.to_pylist())
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path.name} cannot be read as an Arrow stream: {error}") from error


def _numbered(rows: Iterator[Mapping[str, Any]]) -> Iterator[Placed]:
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


_READERS = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet, ".arrow": _arrow}
