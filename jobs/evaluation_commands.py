"""The commands of `python -m jobs` about evaluations: the report, and grades out of official files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs.benchmarks.official import OFFICIAL, read_official
from jobs.benchmarks.registry import BENCHMARKS
from jobs.command_line import AsJson, Data, opened
from jobs.evaluation_reading import Asked
from jobs.evaluation_report import write_report
from jobs.settings import local_user
from storage.database import session
from storage.errors import UserError
from storage.evaluations import PURPOSES, import_grades

Purpose = Annotated[str, typer.Option("--purpose", help=" or ".join(PURPOSES))]


def add_to(app: typer.Typer) -> None:
    """Give an app these commands."""
    commands = typer.Typer()
    commands.command("report")(report)
    commands.command(
        "import-grades",
        help="Take grades out of an official file into the table; a second time they are replaced.",
        epilog=" ".join(f"{name}: {what}." for name, what in OFFICIAL.items()),
    )(take_in)
    app.add_typer(commands)


def report(
    folder: Annotated[Path, typer.Argument(help="is made where it isn't there")],
    purpose: Purpose = "reporting",
    base: Annotated[str, typer.Option("--base", help="adapter:NUMBER or model:NAME; empty: the usual")] = "",
    grader: Annotated[str, typer.Option("--grader", help="whose grades; empty: the newest")] = "",
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Write the table of evaluations as CSV, Markdown and LaTeX, and the report as HTML."""
    settings = opened(data)
    with session(settings.folder) as db:
        files = write_report(db, Asked(purpose, base, grader), folder)
    if as_json:
        print(json.dumps([str(file) for file in files]))
        return
    for file in files:
        print(file)


def take_in(
    benchmark: Annotated[str, typer.Argument(help=", ".join(OFFICIAL))],
    file: Annotated[Path, typer.Argument(help="of judgments, reviews, results or answers; see below")],
    model: Annotated[
        str, typer.Option("--model", help="as the table names it; of a file with several, the one to take")
    ] = "",
    questions: Annotated[
        Path | None, typer.Option("--questions", help="the benchmark's own file or folder, for its categories")
    ] = None,
    purpose: Purpose = "reporting",
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    if benchmark not in OFFICIAL:
        raise UserError(f"benchmark = {benchmark!r}: give {', '.join(OFFICIAL)}.")
    if purpose not in PURPOSES:
        raise UserError(f"purpose = {purpose!r}: give {' or '.join(PURPOSES)}.")
    settings = opened(data)
    found = read_official(benchmark, file, questions, model)
    told = []
    with session(settings.folder) as db:
        for name, grades in found.items():
            rows = [asdict(one) for one in grades]
            number = import_grades(db, local_user(), benchmark, name, file.name, rows, purpose)
            failures = sum(one.sums is None for one in grades)
            told.append({"evaluation": number, "model": name, "grades": len(grades), "failures": failures})
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
        return
    for one in told:
        without = f", {one['failures']} without a grade" if one["failures"] else ""
        print(
            f"evaluation {one['evaluation']}: {one['model']} on {BENCHMARKS[benchmark].title}, "
            f"{one['grades']} items{without}"
        )
