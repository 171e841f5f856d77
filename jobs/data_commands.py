"""`python -m jobs import-hub`: a hub's data set as samples. The other imports are in `python -m storage`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Annotated

import typer

from jobs import hub_data
from jobs.command_line import AsJson, Data, opened
from jobs.settings import local_user
from storage.database import session
from storage.errors import UserError
from storage.imports.formats import FORMATS
from storage.imports.intake import import_rows
from storage.imports.reading import Import
from storage.imports.staging import Room, guess, stage
from storage.units import in_words


def add_to(app: typer.Typer) -> None:
    """Give an app the command."""
    app.command("import-hub")(import_hub)


def import_hub(
    kind: Annotated[str, typer.Argument(help=", ".join(FORMATS))],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME[@REVISION]")],
    source: Annotated[str, typer.Option(help="what the samples are filed under [hub:OWNER/NAME]")] = "",
    split: Annotated[str, typer.Option(help="of rows that name none, in files whose names tell none")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="import nothing where a row is broken")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a hub's data set and add its samples; the token, if it needs one, is HF_TOKEN's."""
    address = hub_data.read_address(name)
    if kind not in FORMATS:
        raise UserError(f"kind = {kind!r}: choose {', '.join(FORMATS)}.")
    settings = opened(data)
    room = Room(settings.folder)
    room.clear_others()
    told = Line()
    try:
        files = hub_data.fetch(address, room.new_folder(), told)
        staged = stage(files, room.new_folder())
        found = guess(staged, kind)
        what = Import(
            kind, staged.folder, found.images, source or f"hub:{address.name}", split, tuple(found.files)
        )
        with session(settings.folder) as db:
            report = import_rows(db, settings.folder, what, local_user(), strict)
    finally:
        room.close()
    values = {"source": what.name, **dataclasses.asdict(report)}
    print(json.dumps(values, ensure_ascii=False) if as_json else report.told())


class Line:
    """How much has been fetched, on standard error now and then."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._told > 2.0:
            self._told = time.monotonic()
            print(f"{in_words(done)} of {in_words(total)} fetched", file=sys.stderr, flush=True)
