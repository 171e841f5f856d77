"""The table of the Evaluation page as HTML: cells that are links, charts, downloads, what was hidden. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from jobs.evaluation_charts import MOST_SERIES
from jobs.evaluation_exports import arrow, footnotes
from jobs.evaluation_table import Cell, Column, Line, Table, digits_of, number, settings_words, signed, spread
from storage.evaluations import Evaluation
from workbench.evaluation_desk import Overview
from workbench.evaluation_place import Place
from workbench.views import empty, notice

FORMS = (("csv", "CSV"), ("md", "Markdown"), ("tex", "LaTeX"), ("html", "Report"))
_SKILLS = {"vision": "Vision", "text": "Text"}
_SIGNS = {1: ("good", "better by more than chance"), -1: ("bad", "worse by more than chance"), 0: ("", "")}


def page(found: Overview) -> str:
    """The whole of it."""
    place, table = found.place, found.table
    parts = [notice(found.problem, "bad"), _just_hidden(place, found.hidden), _head(place, table)]
    if not table.lines:
        parts.append(_empty(place))
    else:
        parts += [_warning(table), _table(place, table), _notes(table), _charts(found)]
    parts.append(_hidden(found.hidden))
    return f'<div class="ev-page">{"".join(parts)}</div>'


def _head(place: Place, table: Table) -> str:
    """Which purpose, against what, by whom graded; downloads."""
    tabs = "".join(
        f'<a class="pb-tab" href="{escape(Place(purpose).query(), quote=True)}" data-go'
        f"{' aria-current=page' if place.purpose == purpose else ''}>{title}</a>"
        for purpose, title in (("reporting", "Reporting"), ("selection", "Selection"))
    )
    if not table.lines:
        return f'<div class="ev-head"><div class="pb-tabs">{tabs}</div></div>'
    bases = [(line.key, line.label) for line in table.lines]
    graders = [("", "the newest grades"), *((one, one) for one in table.graders)]
    search = place.query(chart="", models=(), hidden=None)
    search = escape("" if search == "?" else search, quote=True)
    links = "".join(
        f'<a class="pb-button small" href="/api/evaluation/{form}{search}" download>{title}</a>'
        for form, title in FORMS
    )
    return (
        f'<div class="ev-head"><div class="pb-tabs" role="group" aria-label="Purpose">{tabs}</div>'
        f"{select('base', 'Against', bases, table.base)}"
        f"{select('grader', 'Graded by', graders, table.grader)}"
        f'<span class="pb-spacer"></span><div class="ev-forms" role="group" aria-label="Download">{links}</div>'
        "</div>"
    )


def select(name: str, label: str, options: Sequence[tuple[str, str]], value: str) -> str:
    """A choice that changes the address."""
    offered = "".join(
        f'<option value="{escape(key, quote=True)}"{" selected" if key == value else ""}>{escape(text)}</option>'
        for key, text in options
    )
    return f'<label class="ev-select">{label} <select data-query="{name}">{offered}</select></label>'


def _warning(table: Table) -> str:
    if table.purpose != "selection":
        return ""
    return (
        '<div class="pb-notice ev-selection" role="status"><b>Selection.</b> These figures are for choosing a '
        "setting. What was chosen by them looks better here than it is: report the other half.</div>"
    )


def _empty(place: Place) -> str:
    start = "<code>python -m jobs submit</code> or <code>make paper</code> does it too"
    if place.purpose == "selection":
        return empty(
            "No evaluations for selection.",
            "To choose between settings, evaluate on the half for selection (Items: selection); the other half "
            f"stays unseen for the report. On the Jobs page; {start}.",
            "/jobs?kind=evaluate",
            "Evaluate a model",
        )
    return empty(
        "No evaluations yet.",
        "Let a model answer a benchmark on the Jobs page: a base, an adapter or an endpoint's. easy-VQA and "
        f"easy-POPE need no files and no key; {start}. Official judgments come in by "
        "<code>python -m jobs import-grades</code>.",
        "/jobs?kind=evaluate",
        "Evaluate a model",
    )


def _table(place: Place, table: Table) -> str:
    groups = "".join(
        f'<th scope="colgroup" colspan="{len(list(columns))}">{_SKILLS[skill]}</th>'
        for skill, columns in groupby(table.columns, lambda column: column.benchmark.skill)
    )
    heads = "".join(
        f'<th scope="col">{escape(column.benchmark.title)}{" *" if column.mixed else ""}'
        f"<small>{escape(column.benchmark.headline)}</small></th>"
        for column in table.columns
    )
    rows = "".join(_line(place, table, line) for line in table.lines)
    return (
        '<div class="ev-frame" tabindex="0" role="group" aria-label="Models and benchmarks">'
        f'<table class="ev-table"><thead><tr><td></td>{groups}</tr><tr><th scope="col">Model</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody>"
        "</table></div>"
    )


def _line(place: Place, table: Table, line: Line) -> str:
    base = "<small>the others are compared with it</small>" if line.key == table.base else ""
    adapter = line.key.removeprefix("adapter:")
    name = escape(line.label)
    if line.key.startswith("adapter:"):
        name = f'<a href="/models?adapter={escape(adapter, quote=True)}" title="Open on Models">{name}</a>'
    cells = "".join(_td(place, line, column) for column in table.columns)
    return f'<tr><th scope="row">{name}{base}</th>{cells}</tr>'


def _td(place: Place, line: Line, column: Column) -> str:
    cell = line.cells.get(column.benchmark.name)
    if cell is None:
        return "<td></td>"
    href = escape(place.items(cell.evaluation.id).query(), quote=True)
    label = f"{line.label} on {column.benchmark.title}"
    title = _title(cell)
    return (
        f'<td><a href="{href}" data-go class="ev-cell" title="{escape(title, quote=True)}" '
        f'aria-label="{escape(label, quote=True)}: items">{_cell(column, cell)}</a></td>'
    )


def _title(cell: Cell) -> str:
    by = f"graded by {cell.grading.grader}" if cell.grading else "no grades"
    return f"Evaluation {cell.evaluation.id}, {by}; {settings_words(cell.evaluation)}"


def _cell(column: Column, cell: Cell) -> str:
    digits, figure = digits_of(column.benchmark), cell.figure
    if figure is None:
        return f'<span class="ev-state">{escape(cell.state)}</span>'
    mark = f"<sup>{cell.mark}</sup>" if cell.mark else ""
    counts = [f"n {figure.items:,}"]
    counts += [f'<span class="pb-warn">{figure.failures:,} failed</span>'] if figure.failures else []
    parts = [f"<b>{number(figure.value, digits)}</b>{mark} <span>{spread(figure, digits)}</span>"]
    if cell.change is not None:
        kind, told = _SIGNS[cell.sign]
        parts.append(
            f'<small class="ev-change {kind}" title="{told}">{signed(cell.change.value, digits)} '
            f"({spread(cell.change, digits)}) {arrow(cell)}</small>"
        )
    elif cell.other_grader:
        parts.append("<small>another grader</small>")
    parts.append(f"<small>{' · '.join(counts)}</small>")
    if figure.characters is not None:
        parts.append(f"<small>{figure.characters:,.0f} characters</small>")
    if cell.beside is not None:
        parts.append(f"<small>{escape(cell.beside[0])} {number(cell.beside[1].value, digits)}</small>")
    if cell.grading and cell.grading.cost:
        parts.append(f"<small>judge ${cell.grading.cost:,.2f}</small>")
    parts += [f"<small>{escape(text)}</small>" for text in (cell.settings, cell.state) if text]
    return "".join(parts)


def _notes(table: Table) -> str:
    legend = (
        "In small print the 95 % bootstrap interval; below it the change against "
        f"<b>{escape(table.base_label)}</b> on the items of both, drawn in pairs. ▲ ▼: its interval excludes 0. "
        "Lengths are means of the answers. A click on a cell opens its items."
    )
    notes = "".join(f"<li>{escape(one)}</li>" for one in footnotes(table))
    return (
        f'<p class="pb-hint ev-legend-text">{legend}</p><details class="ev-notes"{_open(table)}>'
        f"<summary>Graders and item sets</summary><ul>{notes}</ul></details>"
    )


def _open(table: Table) -> str:
    """What must not be compared stands open."""
    return " open" if any(column.mixed for column in table.columns) else ""


# charts ----------------------------------------------------------------------------------------------------------


def _charts(found: Overview) -> str:
    if found.column is None and not found.curves:
        return ""
    drawn = f'<div class="ev-charts">{"".join(found.curves)}</div>' if found.curves else ""
    curves = (
        f"<h2>Curves</h2>{drawn}"
        if drawn
        else '<h2>Curves</h2><p class="pb-hint">Two adapters that differ in the fraction of the data, or in the '
        "labels flipped, and in nothing else but the seed make a curve.</p>"
    )
    return f"{_categories(found)}<section>{curves}</section>"


def _categories(found: Overview) -> str:
    if found.column is None:
        return ""
    table, chosen = found.table, found.column.benchmark.name
    offered = [(column.benchmark.name, column.benchmark.title) for column in table.columns]
    boxes = []
    for line in table.lines:
        if (cell := line.cells.get(chosen)) is None or cell.grading is None:
            continue
        ticked = line.key in found.keys
        full = " disabled" if not ticked and len(found.keys) >= MOST_SERIES else ""
        boxes.append(
            f'<label><input type="checkbox" data-model value="{escape(line.key, quote=True)}"'
            f"{' checked' if ticked else ''}{full}> {escape(line.label)}</label>"
        )
    drawn = found.bars or '<p class="pb-hint">This benchmark has no categories, or nothing of it is graded.</p>'
    return (
        f'<section class="ev-categories"><div class="ev-head"><h2>By category</h2>'
        f"{select('chart', 'Benchmark', offered, chosen)}"
        f'<div class="ev-boxes" role="group" aria-label="Models, at most {MOST_SERIES}">{"".join(boxes)}</div>'
        f"</div>{drawn}</section>"
    )


# what was hidden -------------------------------------------------------------------------------------------------


def _just_hidden(place: Place, hidden: Sequence[Evaluation]) -> str:
    one = next((one for one in hidden if one.id == place.hidden), None)
    if one is None:
        return ""
    return (
        f'<div class="pb-notice ev-hidden-now" role="status">Evaluation {one.id} of {escape(one.label)} is out of '
        f"the table; nothing of it is lost. {back_button(one.id, 'Undo')}</div>"
    )


def back_button(evaluation: int, text: str = "Put back") -> str:
    return f'<button type="button" class="pb-button small" data-show-evaluation="{evaluation}">{text}</button>'


def _hidden(hidden: Sequence[Evaluation]) -> str:
    if not hidden:
        return ""
    rows = "".join(
        f"<li>{back_button(one.id)} evaluation {one.id}: {escape(one.label)} on {escape(one.benchmark)}, "
        f"{escape(one.purpose)}, {escape(one.created_at[:10])}</li>"
        for one in hidden
    )
    return (
        f'<details class="ev-notes ev-hidden"><summary>Hidden ({len(hidden)})</summary><ul>{rows}</ul></details>'
    )
