"""Writing a frozen data set in a format that a tool reads; train and held-out rows in files of their own.

jsonl    Plumb's own and whole form: rows.jsonl and images/; `storage.exports.reading` takes it back
trl      TRL's vision preference format: parquet, images inside; loads with `datasets`
llava    LLaVA conversations: the chosen answers, images as <image>
steerlm  one row a scored answer, with its five values and their attribute string
oumi     vision-DPO lines as Oumi's VisionLanguageDpoDataset takes them (oumi-ai/oumi, core/datasets)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from storage.datasets import dataset_rows, get_dataset
from storage.errors import UserError
from storage.exports.manifest import Manifest, write_manifest
from storage.folder import DataFolder
from storage.images import get_images, image_path
from storage.records import METRICS, Dataset, DatasetRow, Image, Message, Split
from storage.samples import images_of

Progress = Callable[[int, int], None]
Row = dict[str, Any]
SPLITS: tuple[Split, ...] = ("train", "heldout")
_PARQUET_ROWS = 100  # of one group: images are inside


class _Work:
    """One export: where it reads and where it writes."""

    def __init__(
        self, db: Database, folder: DataFolder, dataset: Dataset, target: Path, progress: Progress
    ) -> None:
        self.target = target
        self._db, self._folder, self._dataset, self._progress = db, folder, dataset, progress
        self._images: dict[str, Image] = {}
        self._copied: set[str] = set()

    def rows(self, kind: str, split: Split | None = None) -> list[DatasetRow]:
        found = dataset_rows(self._db, self._dataset.id, split, "pair" if kind == "pair" else "sample")
        self._images |= get_images(self._db, [one for row in found for one in images_of(row.row["messages"])])
        return found

    def told(self, rows: Sequence[DatasetRow]) -> Iterator[DatasetRow]:
        for number, row in enumerate(rows, 1):
            yield row
            if number % 100 == 0 or number == len(rows):
                self._progress(number, len(rows))

    def copied(self, sha256: str) -> str:
        """The image's name below the target; each is written once."""
        image = self._images[sha256]
        name = f"images/{image.name}"
        if sha256 not in self._copied:
            (self.target / "images").mkdir(exist_ok=True)
            shutil.copyfile(image_path(self._folder, image), self.target / name)
            self._copied.add(sha256)
        return name

    def data_of(self, sha256: str) -> dict[str, Any]:
        image = self._images[sha256]
        return {"bytes": image_path(self._folder, image).read_bytes(), "path": image.name}


def export_dataset(
    db: Database, folder: DataFolder, name: str, kind: str, target: Path, progress: Progress | None = None
) -> Manifest:
    """Write a data set into an empty folder, or one that is not there yet.

    Raises:
        UserError: the format is unknown; the folder holds something; an image is missing; the disk is full.
        NotFound: there is no data set of this name.
    """
    if kind not in FORMATS:
        raise UserError(f"format = {kind!r}: use one of {', '.join(FORMATS)}.")
    dataset = get_dataset(db, name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not an empty folder; name another one, so that nothing is overwritten.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        work = _Work(db, folder, dataset, target, progress or (lambda done, total: None))
        names = FORMATS[kind](work)
        return write_manifest(target, dataset, kind, names)
    except OSError as error:
        raise UserError(f"{error.filename or target} cannot be written or read ({error.strerror}).") from error


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- the formats ---


def _jsonl(work: _Work) -> list[str]:
    def lines() -> Iterator[Row]:
        for kind in ("pair", "sample"):
            for one in work.told(work.rows(kind)):
                for sha256 in images_of(one.row["messages"]):
                    work.copied(sha256)
                row = {name: value for name, value in one.row.items() if not name.endswith("_id")}
                if kind == "sample":
                    answers = [
                        {k: v for k, v in answer.items() if k != "candidate_id"} for answer in row["answers"]
                    ]
                    row["answers"] = answers
                files = {sha256: work.copied(sha256) for sha256 in images_of(one.row["messages"])}
                yield {"kind": kind, "split": one.split, "sample": one.sample_id, **row, "files": files}

    _write_lines(work.target / "rows.jsonl", lines())
    return ["rows.jsonl"]


def _trl(work: _Work) -> list[str]:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text = {"dtype": "string", "_type": "Value"}
    said = [{"role": text, "content": [{"type": text, "text": text}]}]
    features: Row = {"images": {"feature": {"_type": "Image"}, "_type": "Sequence"}}
    features |= dict.fromkeys(("prompt", "chosen", "rejected"), said)
    schema = pa.schema(
        [("images", pa.list_(picture)), ("prompt", messages), ("chosen", messages), ("rejected", messages)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    names = []
    for split in SPLITS:
        rows = work.rows("pair", split)
        if not rows:
            continue
        name = f"{split}.parquet"
        with parquet.ParquetWriter(work.target / name, schema) as writer:
            group: list[Row] = []
            for one in work.told(rows):
                group.append(_preference(work, one))
                if len(group) == _PARQUET_ROWS:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema))
        names.append(name)
    return names


def _preference(work: _Work, one: DatasetRow) -> Row:
    row = one.row

    def answer(text: str) -> list[Row]:
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    return {
        "images": [work.data_of(sha256) for sha256 in images_of(row["messages"])],
        "prompt": [{"role": turn["role"], "content": _parts(turn)} for turn in row["messages"]],
        "chosen": answer(row["chosen"]),
        "rejected": answer(row["rejected"]),
    }


def _parts(turn: Message) -> list[Row]:
    content = turn["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": part["type"], "text": part["text"] if part["type"] == "text" else None} for part in content]


def _llava(work: _Work) -> list[str]:
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    names = []
    for split in SPLITS:
        found = []
        for number, one in enumerate(work.told(work.rows("pair", split))):
            images = [work.copied(sha256) for sha256 in images_of(one.row["messages"])]
            said = [{"from": speakers[turn["role"]], "value": _marked(turn)} for turn in one.row["messages"]]
            row: Row = {
                "id": f"{split}-{number}",
                "conversations": [*said, {"from": "gpt", "value": one.row["chosen"]}],
            }
            if images:
                row["image"] = images[0] if len(images) == 1 else images
            found.append(row)
        if found:
            name = f"{split}.json"
            (work.target / name).write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", "utf-8")
            names.append(name)
    return names


def _marked(turn: Message) -> str:
    """A turn as LLaVA writes it: each image is a line of its own, marked."""
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "\n".join("<image>" if part["type"] == "image" else part["text"] for part in content)


def _steerlm(work: _Work) -> list[str]:
    names = []
    for split in SPLITS:
        rows = [one for one in work.rows("sample", split) if one.row["answers"]]
        if not rows:
            continue

        def lines(rows: list[DatasetRow] = rows) -> Iterator[Row]:
            for one in work.told(rows):
                images = [work.copied(sha256) for sha256 in images_of(one.row["messages"])]
                prompt = [{"role": turn["role"], "content": _parts(turn)} for turn in one.row["messages"]]
                for answer in one.row["answers"]:
                    values = {name: answer[name] for name in METRICS}
                    told = ",".join(f"{name}:{value}" for name, value in values.items())
                    yield {
                        "images": images,
                        "messages": [*prompt, {"role": "assistant", "content": _parts_of(answer["text"])}],
                        "attributes": values,
                        "attribute_string": told,
                    }

        name = f"{split}.jsonl"
        _write_lines(work.target / name, lines())
        names.append(name)
    return names


def _oumi(work: _Work) -> list[str]:
    names = []
    for split in SPLITS:
        rows = work.rows("pair", split)
        if not rows:
            continue

        def lines(rows: list[DatasetRow] = rows) -> Iterator[Row]:
            for one in work.told(rows):
                turns = [{"role": turn["role"], "content": _words(turn)} for turn in one.row["messages"]]
                yield {
                    # Of a lone question Oumi makes a turn itself. It shows all images after the texts, whatever
                    # stood where: marks of its own would be taken for words.
                    "prompt": turns[0]["content"] if len(turns) == 1 else turns,
                    "images": [work.copied(sha256) for sha256 in images_of(one.row["messages"])],
                    "chosen": one.row["chosen"],
                    "rejected": one.row["rejected"],
                }

        name = f"{split}.jsonl"
        _write_lines(work.target / name, lines())
        names.append(name)
    return names


def _words(turn: Message) -> str:
    """A turn's texts, one below the other."""
    content = turn["content"]
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")


def _parts_of(text: str) -> list[Row]:
    return [{"type": "text", "text": text}]


#: {format: what writes it}
FORMATS: dict[str, Callable[[_Work], list[str]]] = {
    "jsonl": _jsonl,
    "trl": _trl,
    "llava": _llava,
    "steerlm": _steerlm,
    "oumi": _oumi,
}
