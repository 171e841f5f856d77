"""`python -m storage`: stats, check, backup, import."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from storage import upkeep
from storage.database import migrate, session
from storage.easy_vqa import import_easy_vqa
from storage.errors import PlumbError, UserError
from storage.folder import DataFolder, default_folder

app = typer.Typer(help="Look after Plumb's data folder.", no_args_is_help=True, add_completion=False)

Data = Annotated[Path | None, typer.Option("--data", help="the data folder [PLUMB_DATA]")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def opened(data: Path | None) -> DataFolder:
    folder = (DataFolder(data.expanduser().resolve()) if data else default_folder()).create()
    migrate(folder)
    return folder


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
def check(data: Data = None, as_json: AsJson = False) -> None:
    """Integrity, orphans, missing files; exit code 1 if anything is wrong."""
    folder = opened(data)
    with session(folder) as db:
        findings = upkeep.check(db, folder)
    answer(
        as_json,
        {"ok": not findings, "findings": [dataclasses.asdict(finding) for finding in findings]},
        "\n".join(f"{finding.kind}: {finding.what}" for finding in findings) or "Nothing is wrong.",
    )
    if findings:
        raise typer.Exit(1)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="a file that is not there yet")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Copy the database, also while Plumb runs. Images and adapters are not in it."""
    size = upkeep.backup(opened(data), file)
    answer(as_json, {"file": str(file), "bytes": size}, f"{file}: {size} bytes")


@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(help="easy-vqa")],
    number: Annotated[int, typer.Option(help="how many samples")] = 400,
    split: Annotated[str, typer.Option(help="train or test")] = "train",
    seed: Annotated[int, typer.Option(help="which ones")] = 0,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Add samples; importing twice adds nothing twice."""
    if kind != "easy-vqa":
        raise UserError(f"Unknown kind {kind!r}; this version imports easy-vqa.")
    if split not in ("train", "test"):
        raise UserError(f"split = {split!r}: easy-VQA has 'train' and 'test'.")
    chosen: Literal["train", "test"] = "train" if split == "train" else "test"
    folder = opened(data)
    with session(folder) as db:
        added = import_easy_vqa(db, folder, number, chosen, seed)
    answer(as_json, {"added": added}, f"{added} samples added")


def main() -> None:
    try:
        app()
    except PlumbError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
