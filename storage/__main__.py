"""`python -m storage`: stats, check, backup, restore, import."""

from __future__ import annotations

import dataclasses
import getpass
import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from storage import backup as backups
from storage import repair, upkeep, user_commands
from storage import restore as restoring
from storage.database import migrate, session
from storage.easy_vqa import import_easy_vqa
from storage.errors import PlumbError, UserError
from storage.exports.manifest import check_manifest
from storage.exports.reading import import_dataset
from storage.exports.writing import FORMATS as EXPORTS
from storage.exports.writing import export_dataset
from storage.folder import DataFolder, default_folder
from storage.imports.formats import FORMATS
from storage.imports.intake import Report, import_rows
from storage.imports.reading import Import
from storage.manifest import CHECKPOINTS, LEFT_OUT
from storage.units import in_words
from storage.upkeep import Finding

app = typer.Typer(help="Look after Plumb's data folder.", no_args_is_help=True, add_completion=False)
app.add_typer(user_commands.app, name="users")

Data = Annotated[Path | None, typer.Option("--data", help="the data folder [PLUMB_DATA]")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def chosen(data: Path | None) -> DataFolder:
    return DataFolder(data.expanduser().resolve()) if data else default_folder()


def opened(data: Path | None) -> DataFolder:
    folder = chosen(data).create()
    migrate(folder)
    return folder


def local_user() -> str:
    """Who restores, as the operating system knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "user"


def answer(as_json: bool, values: dict[str, Any], text: str) -> None:
    print(json.dumps(values, ensure_ascii=False) if as_json else text)


@app.command()
def stats(data: Data = None, as_json: AsJson = False) -> None:
    """How many rows there are of everything."""
    folder = opened(data)
    with session(folder) as db:
        counted = upkeep.stats(db, folder)
    answer(as_json, counted, "\n".join(f"{name:>15}  {number}" for name, number in counted.items()))


@app.command()
def check(
    data: Data = None,
    as_json: AsJson = False,
    hashes: Annotated[bool, typer.Option("--hashes", help="read all files, and compare their content")] = False,
    mend: Annotated[bool, typer.Option("--repair", help="put right what can be; see lost+found/")] = False,
) -> None:
    """Integrity, orphans, missing and unnamed files; exit code 1 if anything is wrong."""
    folder = chosen(data)
    done: tuple[str, ...] = ()
    notes: Path | None = None
    if mend:
        repaired = repair.repair(folder.create(), hashes)
        done, findings, notes = repaired.done, list(repaired.left), repaired.notes
    else:
        findings = inspect(data, hashes)
    told = [
        *done,
        *([f"What was taken away is noted in {notes}."] if notes else []),
        *(f"{finding.kind}: {finding.what}" for finding in findings),
        *([] if findings else ["Nothing is wrong." if not done else "Nothing is wrong any more."]),
    ]
    values: dict[str, Any] = {"ok": not findings, "findings": [dataclasses.asdict(one) for one in findings]}
    if mend:
        values |= {"repaired": list(done), "notes": str(notes) if notes else None}
    answer(as_json, values, "\n".join(told))
    if findings:
        raise typer.Exit(1)


def inspect(data: Path | None, hashes: bool) -> list[Finding]:
    """What is wrong, also where so much is that the database cannot even be opened."""
    try:
        folder = opened(data)
        with session(folder) as db:
            return upkeep.check(db, folder, hashes)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return [Finding("integrity", str(error))]


@app.command()
def backup(
    target: Annotated[
        Path, typer.Argument(help="a file that is not there yet, as plumb.tar; plumb.db for the database alone")
    ],
    data: Data = None,
    as_json: AsJson = False,
    with_checkpoints: Annotated[
        bool, typer.Option("--with-checkpoints", help="also the checkpoints of trainings, which may be large")
    ] = False,
) -> None:
    """Keep database, images, adapters, judges' files and run folders, also while Plumb runs."""
    folder = chosen(data)
    if target.suffix == ".db":
        size = backups.backup_database(folder, target)
        answer(as_json, {"file": str(target), "bytes": size}, f"{target}: {size} bytes")
        return
    if target.suffix != ".tar":
        raise UserError(f"{target}: let the name end in .tar, or in .db for the database alone.")
    kept = backups.backup(folder, target, with_checkpoints, Progress("kept"))
    told = [
        f"{target}: {kept.files:,} files, {in_words(kept.bytes)}",
        *(f"Not in it: {name} (it is missing)" for name in kept.missing),
        *(f"In it, though damaged: {name}" for name in kept.damaged),
        f"Left out: {'; '.join((*LEFT_OUT, *(() if with_checkpoints else CHECKPOINTS)))}.",
    ]
    values = {"file": str(target), **dataclasses.asdict(kept), "target": str(target), "left_out": list(LEFT_OUT)}
    answer(as_json, values, "\n".join(told))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="a .tar file that `python -m storage backup` wrote")],
    data: Data = None,
    as_json: AsJson = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="move what is there aside, to a folder whose name ends in .before-<time>"),
    ] = False,
) -> None:
    """Make a data folder of a backup; it must be empty or not there yet."""
    done = restoring.restore(file, chosen(data), local_user(), replace, Progress("restored"))
    values = {
        **{name: value for name, value in dataclasses.asdict(done).items() if name not in ("folder", "moved")},
        "folder": str(done.folder.root),
        "moved": str(done.moved) if done.moved else None,
    }
    answer(as_json, values, "\n".join(restoring.describe(done)))


class Progress:
    """A line on standard error now and then; on a terminal always the same one."""

    def __init__(self, word: str) -> None:
        self._word, self._told = word, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        here = sys.stderr.isatty()
        if time.monotonic() - self._told < (0.5 if here else 10.0):
            return
        self._told = time.monotonic()
        line = f"{in_words(done)} of {in_words(total)} {self._word}"
        print(f"\r\x1b[K{line}" if here else line, end="" if here else "\n", file=sys.stderr, flush=True)


class Counted(Progress):
    """The same, of things that are counted."""

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{done:,} of {total:,} {self._word}", end="", file=sys.stderr, flush=True)


@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(help=f"easy-vqa, {', '.join(FORMATS)}, dataset")],
    path: Annotated[
        Path | None, typer.Argument(help="a file or folder: JSON, JSON lines, parquet, a saved data set")
    ] = None,
    number: Annotated[int, typer.Option(help="easy-vqa: how many samples")] = 400,
    split: Annotated[str, typer.Option(help="easy-vqa: train or test; else of rows that name none")] = "",
    seed: Annotated[int, typer.Option(help="easy-vqa: which ones")] = 0,
    images: Annotated[
        Path | None, typer.Option(help="the folder of the images [beside the file, or images/ in there]")
    ] = None,
    source: Annotated[
        str, typer.Option(help="what the samples are filed under [the kind and the file's name]")
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="import nothing where a row is broken")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Add samples; importing twice adds nothing twice. Broken rows are told, and the rest goes in."""
    if kind == "easy-vqa":
        _import_demo(number, split or "train", seed, data, as_json)
        return
    if kind == "dataset" and path is not None:
        _import_dataset(path, data, as_json)
        return
    if path is not None and str(path).startswith("hub:"):
        raise UserError(f"A hub's data set is imported by: python -m jobs import-hub {kind} {str(path)[4:]}")
    if path is None:
        raise UserError(f"Name the file or folder after the kind: python -m storage import {kind} FILE.")
    what = Import(kind, path, images, source, split)
    what.check()  # what cannot be imported makes no data folder
    folder = opened(data)
    told = Rows()
    with session(folder) as db:
        report = import_rows(db, folder, what, local_user(), strict, told)
    answer(as_json, {"source": what.name, **dataclasses.asdict(report)}, report.told())


def _import_dataset(path: Path, data: Path | None, as_json: bool) -> None:
    check_manifest(path)  # what cannot be imported makes no data folder
    folder = opened(data)
    with session(folder) as db:
        dataset = import_dataset(db, folder, path, local_user())
    told = {"name": dataset.name, "hash": dataset.hash, "counts": dataset.counts}
    answer(as_json, told, f"“{dataset.name}” is there, with the hash {dataset.hash}")


@app.command("export")
def export(
    name: Annotated[str, typer.Argument(help="the data set's")],
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help=", ".join(EXPORTS))],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="empty, or not there yet")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Write a frozen data set for another tool, or (jsonl) for another Plumb."""
    folder = chosen(data)
    with session(folder) as db:
        made = export_dataset(db, folder, name, kind, target, Counted("rows"))
    answer(as_json, made.__dict__, f"“{name}” is in {target}: {', '.join(made.files)}")


def _import_demo(number: int, split: str, seed: int, data: Path | None, as_json: bool) -> None:
    if split not in ("train", "test"):
        raise UserError(f"split = {split!r}: easy-VQA has 'train' and 'test'.")
    chosen: Literal["train", "test"] = "train" if split == "train" else "test"
    folder = opened(data)
    with session(folder) as db:
        added = import_easy_vqa(db, folder, number, chosen, seed)
    answer(as_json, {"added": added}, f"{added} samples added")


class Rows:
    """How many rows have been read, on standard error now and then."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, read: int, report: Report) -> None:
        if time.monotonic() - self._told > 2.0:
            self._told = time.monotonic()
            broken = f", {report.broken_number:,} broken" if report.broken_number else ""
            print(f"{read:,} rows read, {report.added:,} added{broken}", file=sys.stderr, flush=True)


def main() -> None:
    try:
        app()
    except PlumbError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
