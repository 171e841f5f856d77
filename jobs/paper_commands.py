"""`python -m jobs paper`: the paper in miniature; `make paper` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import Data, opened
from jobs.evaluation_exports import markdown_of
from jobs.evaluation_reading import Asked, read_table
from jobs.evaluation_report import write_report
from jobs.models import DEMO
from jobs.paper import Paper, default_folder
from jobs.paper_plan import SCALES
from storage.database import session
from storage.errors import UserError


def add_to(app: typer.Typer) -> None:
    """Give an app the command."""
    app.command()(paper)


def paper(
    size: Annotated[str, typer.Option(help="quick (minutes) or full (more than an hour on two cores)")] = "quick",
    ifeval: Annotated[
        Path | None, typer.Option(help="IFEval's input_data.jsonl; without it, it is left out")
    ] = None,
    data: Data = None,
) -> None:
    """Run the paper in miniature on the demo: tune, align four ways, evaluate; started again, it goes on."""
    if size not in SCALES:
        raise UserError(f"size = {size!r}: use {' or '.join(SCALES)}.")
    scale = SCALES[size]
    if ifeval is not None and not ifeval.is_file():
        raise UserError(
            f"ifeval = {ifeval}: there is no such file. Leave it out, or give IFEval's input_data.jsonl."
        )
    settings = opened(data or default_folder(scale))
    asked = Asked(base=f"model:{DEMO}")
    with session(settings.folder) as db:
        path = "" if ifeval is None else str(ifeval.resolve())
        Paper(db, settings, scale, path, lambda text: typer.echo(text)).run()
        written = write_report(db, asked, settings.folder.root / "report")
        typer.echo(markdown_of(read_table(db, asked)))
    typer.echo(f"Table, curves and hashes: {written[-1]}")
    typer.echo(f"On the page: python app.py --data {settings.folder.root}, then Evaluation")
