"""The report: one HTML page that stands alone, with the table, charts, settings, items' fingerprints and lineage.

`python -m jobs report FOLDER` writes it beside the table as CSV, Markdown and LaTeX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from sqlite_utils import Database

from jobs.benchmarks.contract import Benchmark
from jobs.benchmarks.registry import BENCHMARKS
from jobs.evaluation_charts import MOST_SERIES, Bars, bars
from jobs.evaluation_curves import Run, charts, runs_of
from jobs.evaluation_exports import arrow, caption, csv_of, footnotes, latex_of, markdown_of
from jobs.evaluation_figures import Book, Figures
from jobs.evaluation_reading import Asked, read_table
from jobs.evaluation_table import (
    Cell,
    Column,
    Table,
    digits_of,
    number,
    settings_words,
    signed,
    spread,
)
from storage.errors import UserError
from storage.evaluations import fingerprints
from storage.files import write_atomically
from storage.records import now

FILES = {"csv": "table.csv", "md": "table.md", "tex": "table.tex", "html": "report.html"}

_STYLE = """
:root { color-scheme: light dark; --pb-ink: #17202b; --pb-dim: #5b6777; --pb-line: #dfe4ea; --paper: #fff;
  --good: #0f7a4d; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --pb-ink: #e6ebf2; --pb-dim: #9aa7b8; --pb-line: #2c3646; --paper: #161d29; --good: #4cc38a;
    --bad: #ff8a80; --ev-0: #2bb3a5; --ev-1: #b79bff; --ev-2: #f0a860; --ev-3: #7fb2ea; }
}
body { margin: 24px auto; max-width: 1200px; padding: 0 20px; background: var(--paper); color: var(--pb-ink);
  font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 28px 0 6px; }
p, li { color: var(--pb-dim); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--pb-line); }
thead th, small, .dim { color: var(--pb-dim); font-weight: 400; }
small { display: block; font-size: 12px; white-space: nowrap; }
td b { font-size: 15px; }
.good { color: var(--good); }
.bad { color: var(--bad); }
code { font-size: 12px; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); gap: 18px; }
figure { margin: 0; }
figcaption { font-weight: 600; }
figure svg { max-width: 100%; height: auto; }
.ev-legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; }
.ev-key { display: inline-flex; gap: 5px; align-items: center; }
"""


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        pictures: SVG figures.
        runs: the adapters' jobs, by the keys of lines.
        asked: fingerprints of item sets, by id.
    """

    table: Table
    pictures: Sequence[str]
    runs: Mapping[str, Run]
    asked: Mapping[int, str]
    made_at: str


def read_report(
    db: Database, asked: Asked, book: Book | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> Report:
    """Raises UserError for another purpose than there are."""
    book = book or Book()
    table = read_table(db, asked, book, benchmarks)
    figures, runs = Figures(db, book), runs_of(db)
    pictures = [*charts(table, runs), *category_charts(table, figures)]
    return Report(table, pictures, runs, fingerprints(db), now())


def category_charts(table: Table, figures: Figures) -> list[str]:
    """Bars of each benchmark that has categories, of the base and the first lines after it."""
    return [
        drawn
        for column in table.columns
        if (drawn := category_chart(table, column, figures, default_keys(table, column)))
    ]


def default_keys(table: Table, column: Column) -> list[str]:
    """The lines whose bars are drawn unless others are chosen: the base, and the best three on its items."""
    graded = [
        (line.key, cell.figure.value)
        for line in table.lines
        if (cell := line.cells.get(column.benchmark.name)) and cell.figure and cell.figure.value is not None
    ]
    best = sorted(graded, key=lambda one: -one[1])
    kept = [key for key, _ in best if key != table.base][: MOST_SERIES - 1]
    return [key for key, _ in graded if key == table.base or key in kept]


def category_chart(table: Table, column: Column, figures: Figures, keys: Sequence[str]) -> str:
    """Bars of a benchmark's categories for these lines; "" where it has none."""
    benchmark, found = column.benchmark, []
    for line in table.lines:
        cell = line.cells.get(benchmark.name)
        if line.key in keys and cell is not None and cell.grading is not None:
            found.append(Bars(line.label, figures.categories(cell.grading.id, benchmark, benchmark.headline)))
    title = f"{benchmark.title}, {benchmark.headline} by category"
    return bars(title, found, benchmark.most, digits_of(benchmark))


def html_of(report: Report) -> str:
    """The page; all that comes from data is escaped, and nothing in it is fetched from anywhere."""
    table = report.table
    title = "Evaluation" if table.purpose == "reporting" else "Evaluation for selection, not for reporting"
    if not table.lines:
        body = f"<p>No evaluations for {escape(table.purpose)} yet.</p>"
    else:
        notes = "".join(f"<li>{escape(one)}</li>" for one in footnotes(table))
        pictures = (
            f'<h2>Charts</h2><div class="charts">{"".join(report.pictures)}</div>' if report.pictures else ""
        )
        body = (
            f'<p>{escape(caption(table))}</p><div class="wide">{_table(table)}</div><ul>{notes}</ul>{pictures}'
            f"<h2>Where the figures come from</h2>{_sources(report)}<h2>Adapters</h2>{_adapters(report)}"
        )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>Made by Plumb at {escape(report.made_at)}.</p>"
        f"{body}</body></html>\n"
    )


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col">{escape(column.benchmark.title)}<small>{escape(column.benchmark.headline)}</small></th>'
        for column in table.columns
    )
    rows = []
    for line in table.lines:
        cells = "".join(
            f"<td>{_cell(column, cell)}</td>" if (cell := line.cells.get(column.benchmark.name)) else "<td></td>"
            for column in table.columns
        )
        base = "<small>the base</small>" if line.key == table.base else ""
        rows.append(f'<tr><th scope="row">{escape(line.label)}{base}</th>{cells}</tr>')
    return f"<table><thead><tr><th>Model</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(column: Column, cell: Cell) -> str:
    digits, figure = digits_of(column.benchmark), cell.figure
    if figure is None:
        return f'<span class="dim">{escape(cell.state)}</span>'
    counts = [f"n {figure.items:,}"]
    counts += [f"{figure.failures:,} failed"] if figure.failures else []
    counts += [f"{figure.characters:,.0f} characters"] if figure.characters is not None else []
    parts = [
        f"<b>{number(figure.value, digits)}</b>{cell.mark}",
        f"<small>{spread(figure, digits)}</small><small>{' · '.join(counts)}</small>",
    ]
    if cell.beside is not None:
        parts.append(f"<small>{escape(cell.beside[0])} {number(cell.beside[1].value, digits)}</small>")
    if cell.change is not None:
        kind = {1: "good", -1: "bad", 0: ""}[cell.sign]
        told = f"{signed(cell.change.value, digits)} ({spread(cell.change, digits)}) {arrow(cell)}"
        parts.append(f'<small class="{kind}">{told.strip()}</small>')
    elif cell.other_grader:
        parts.append("<small>another grader than the base's</small>")
    if cell.grading and cell.grading.cost:
        parts.append(f"<small>judge ${cell.grading.cost:,.2f}</small>")
    return "".join(parts)


def _sources(report: Report) -> str:
    rows = []
    for line, column, cell in report.table.cells():
        one = cell.evaluation
        run = f"job {one.job_id}, runs/{one.job_id}" if one.job_id is not None else "an official file"
        values = (
            line.label,
            column.benchmark.title,
            f"{one.id} of {one.created_at[:16]} by {one.user}",
            run,
            settings_words(one),
            cell.grading.grader if cell.grading else cell.state,
        )
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f"<tr>{cells}<td><code>{escape(report.asked.get(one.set_id or 0, ''))}</code></td></tr>")
    heads = ("Model", "Benchmark", "Evaluation", "Run folder", "Settings", "Graded by", "Fingerprint of the items")
    return _plain(heads, rows)


def _adapters(report: Report) -> str:
    rows = []
    for line in report.table.lines:
        if (run := report.runs.get(line.key)) is None:
            continue
        config = run.job.config
        told = [
            f"{name} {config[name]:g}" for name in ("fraction", "flip", "beta", "learning_rate") if name in config
        ]
        values = (
            line.label,
            run.label,
            run.adapter.base_model,
            f"job {run.job.id}, runs/{run.job.id}",
            ", ".join([*told, f"seed {config.get('seed', 0)}"]),
        )
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in values)
        rows.append(f"<tr>{cells}<td><code>{escape(run.adapter.sha256)}</code></td></tr>")
    heads = ("Model", "Method", "Base", "Trained by", "Settings", "sha256 of the adapter")
    return _plain(heads, rows) if rows else "<p>None of these models is an adapter of this data folder.</p>"


def _plain(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def write_report(
    db: Database, asked: Asked, folder: Path, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> list[Path]:
    """The table in all its forms, in a folder that is made where it isn't there.

    Raises:
        UserError: it cannot be written; or there is no such purpose.
    """
    report = read_report(db, asked, benchmarks=benchmarks)
    texts = {
        "csv": csv_of(report.table),
        "md": markdown_of(report.table),
        "tex": latex_of(report.table),
        "html": html_of(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form, text in texts.items():
            write_atomically(folder / FILES[form], text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder.") from error
    return [folder / name for name in FILES.values()]
