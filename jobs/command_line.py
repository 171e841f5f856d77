"""What the commands of `python -m jobs` share."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.queue import PRIORITIES
from jobs.settings import Settings, load_settings
from storage.database import migrate
from storage.errors import UserError
from storage.records import Job

Data = Annotated[Path | None, typer.Option("--data", help="the data folder [PLUMB_DATA]")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
PriorityOption = Annotated[str, typer.Option("--priority", help=f"{', '.join(PRIORITIES.values())}")]
AfterOption = Annotated[
    int | None, typer.Option("--after", help="the number of a job that must be done before this one starts")
]
RetriesOption = Annotated[
    int, typer.Option("--retries", help="new tries after a worker died without having come further")
]


def opened(data: Path | None) -> Settings:
    """The settings, with a data folder that is there and of this version."""
    settings = load_settings(data=data)
    settings.folder.create()
    migrate(settings.folder)
    return settings


def echo(job: Job, as_json: bool, text: str) -> None:
    print(json.dumps(dataclasses.asdict(job), ensure_ascii=False) if as_json else text)


def read_priority(text: str) -> int:
    """A priority by its word or its number. Raises UserError where it is neither."""
    for number, word in PRIORITIES.items():
        if text.strip().lower() in (word, str(number)):
            return number
    raise UserError(f"priority = {text!r}: give {' or '.join(PRIORITIES.values())}.")
