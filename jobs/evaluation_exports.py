"""The table of evaluations as CSV, Markdown and LaTeX (pure)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from jobs.benchmarks.measures import Figure
from jobs.evaluation_table import Cell, Column, Line, Table, digits_of, number, settings_words, signed, spread

#: What a spreadsheet would run as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "−": "$-$",
    "–": "--",
}
_FIELDS = (
    *("model", "benchmark", "measure", "value", "low", "high", "items", "failures", "mean_characters"),
    *("change", "change_low", "change_high", "change_items", "base", "purpose", "grader", "judge_dollars"),
    *("item_set", "other_items", "settings", "evaluation", "job"),
)


def csv_of(table: Table) -> str:
    """A line a cell, numbers unrounded; before what a spreadsheet takes for a formula stands an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_FIELDS)
    for line, column, cell in table.cells():
        writer.writerow([_harmless(value) for value in _csv_row(table, line, column, cell)])
    return out.getvalue()


def _csv_row(table: Table, line: Line, column: Column, cell: Cell) -> Sequence[object]:
    benchmark, figure, change, grading = column.benchmark, cell.figure, cell.change, cell.grading
    measured = (figure.value, figure.low, figure.high) if figure else (None,) * 3
    changed = (change.value, change.low, change.high, change.items) if change else (None,) * 4
    counts = (figure.items, figure.failures, figure.characters) if figure else (None,) * 3
    asked = next((asked for mark, _, asked in column.sets if mark == cell.mark), "") if grading else ""
    return (
        line.label,
        benchmark.name,
        benchmark.headline,
        *measured,
        *counts,
        *changed,
        table.base_label if change else "",
        table.purpose,
        grading.grader if grading else "",
        grading.cost if grading else None,
        asked,
        cell.mark,
        settings_words(cell.evaluation),
        cell.evaluation.id,
        cell.evaluation.job_id,
    )


def _harmless(value: object) -> object:
    """A text that no spreadsheet runs."""
    if isinstance(value, str):
        text = value.replace("\0", "")
        return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
    return "" if value is None else value


def caption(table: Table) -> str:
    """What the table is, in one sentence."""
    what = "Selection: for choosing settings, not for reporting" if table.purpose == "selection" else "Reporting"
    against = f"; changes are paired, against {table.base_label}" if table.base_label else ""
    return f"{what}. In brackets 95 % bootstrap intervals{against}; ▲ ▼: the change's interval excludes 0."


def footnotes(table: Table) -> list[str]:
    """What is not to be compared, and why."""
    found = []
    for column in table.columns:
        if column.mixed:
            sets = [
                f"{mark + ' ' if mark else ''}{items:,} {'item' if items == 1 else 'items'}"
                + (f" (set {asked})" if asked else "")
                for mark, items, asked in column.sets
            ]
            found.append(
                f"{column.benchmark.title} was asked with different items, not to be compared: {'; '.join(sets)}."
            )
        shown = dict.fromkeys(
            cell.grading.grader for _, each, cell in table.cells() if each == column and cell.grading is not None
        )
        if len(shown) > 1:
            found.append(f"{column.benchmark.title} was graded by {', '.join(shown)}.")
        elif shown:
            found.append(f"{column.benchmark.title}: {column.benchmark.headline}, graded by {next(iter(shown))}.")
    return found


def arrow(cell: Cell) -> str:
    """▲ or ▼ where the change is more than chance, else ""."""
    return {1: "▲", -1: "▼", 0: ""}[cell.sign]


def _parts(column: Column, cell: Cell) -> list[str]:
    """A cell's lines of text: the score, what it stands on, the change."""
    digits = digits_of(column.benchmark)
    if cell.figure is None:
        return [cell.state]
    figure = cell.figure
    parts = [f"{number(figure.value, digits)}{cell.mark}" + _between(figure, digits)]
    counts = [f"n {figure.items:,}"]
    counts += [f"{figure.failures:,} failed"] if figure.failures else []
    counts += [f"{figure.characters:,.0f} chars"] if figure.characters is not None else []
    parts.append(", ".join(counts))
    if cell.beside is not None:
        parts.append(f"{cell.beside[0]} {number(cell.beside[1].value, digits)}")
    if cell.change is not None:
        parts.append(f"{signed(cell.change.value, digits)}{_between(cell.change, digits)} {arrow(cell)}".strip())
    elif cell.other_grader:
        parts.append("another grader")
    return parts


def _between(figure: Figure, digits: int) -> str:
    return f" [{spread(figure, digits)}]" if figure.low is not None else ""


def markdown_of(table: Table) -> str:
    """A Markdown table with its footnotes."""
    if not table.lines:
        return f"No evaluations for {table.purpose} yet.\n"
    head = ["Model", *(column.benchmark.title for column in table.columns)]
    rows = [head, ["---"] * len(head)]
    for line in table.lines:
        cells = []
        for column in table.columns:
            cell = line.cells.get(column.benchmark.name)
            cells.append("" if cell is None else "<br>".join(_markdown(part) for part in _parts(column, cell)))
        rows.append([_markdown(line.label), *cells])
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "".join(f"- {_markdown(one)}\n" for one in footnotes(table))
    return f"{_markdown(caption(table))}\n\n{body}\n\n{notes}"


def _markdown(text: str) -> str:
    """Text in which nothing is markup, in one line."""
    plain = " ".join(text.split())
    escaped = re.sub(r"([\\`*_{}\[\]<>|~])", r"\\\1", plain)
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")


def latex_of(table: Table) -> str:
    """A booktabs table: \\usepackage{booktabs}. Marks of item sets and graders stand in comments below it."""
    if not table.lines:
        return f"% No evaluations for {table.purpose} yet.\n"
    titles = " & ".join(_latex(column.benchmark.title) for column in table.columns)
    rows = []
    for line in table.lines:
        upper, lower = [_latex(line.label)], [""]
        for column in table.columns:
            cell = line.cells.get(column.benchmark.name)
            above, below = _latex_cell(column, cell) if cell is not None else ("--", "")
            upper.append(above)
            lower.append(below)
        rows.append(f"{' & '.join(upper)} \\\\\n{' & '.join(lower)} \\\\\n")
    notes = "".join(f"% {' '.join(one.split())}\n" for one in [caption(table), *footnotes(table)])
    return (
        f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{l{'c' * len(table.columns)}}}\n\\toprule\n"
        f"Model & {titles} \\\\\n\\midrule\n{''.join(rows)}\\bottomrule\n\\end{{tabular}}\n{notes}"
    )


def _latex_cell(column: Column, cell: Cell) -> tuple[str, str]:
    """The score with its mark, and its interval in small print; bold where it is better than the base's."""
    digits = digits_of(column.benchmark)
    if cell.figure is None:
        return "--", ""
    value = _latex(number(cell.figure.value, digits))
    value = f"\\textbf{{{value}}}" if cell.sign > 0 else value
    between = spread(cell.figure, digits)
    return f"{value}{_latex(cell.mark)}", f"{{\\scriptsize [{_latex(between)}]}}" if between else ""


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
