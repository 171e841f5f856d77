"""What the Evaluation page shows and does: the table, one evaluation's items, hiding. No Gradio in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from sqlite_utils import Database

from jobs.benchmarks.contract import Benchmark
from jobs.benchmarks.measures import Figure
from jobs.benchmarks.registry import BENCHMARKS
from jobs.evaluation_curves import charts, runs_of
from jobs.evaluation_figures import Book, Figures, Kept
from jobs.evaluation_reading import Asked, read_table
from jobs.evaluation_report import category_chart, default_keys
from jobs.evaluation_table import Column, Table, comparable
from storage.errors import NotFound
from storage.evaluations import (
    Evaluation,
    Grading,
    ItemAnswer,
    answers_of,
    answers_to,
    get_evaluation,
    gradings_of,
    hidden_evaluations,
    items_of,
    replies_to,
    set_deleted,
)
from storage.folder import DataFolder
from workbench.context import Context
from workbench.evaluation_items import Case, Item, Items, Show, cases_of, chosen, counts, questions_of
from workbench.evaluation_place import MOST_MODELS, NOBODY, Place

PAGE = 40  # items of a list at once
MOST_SETS = 4  # item sets that are kept parsed


@dataclass(frozen=True)
class Shelf:
    """What one data folder's pages keep: figures, and items by the set's id."""

    book: Book
    items: Kept


@lru_cache(maxsize=4)
def shelf_of(folder: DataFolder) -> Shelf:
    """One shelf a data folder, for the page and its downloads alike."""
    return Shelf(Book(), Kept(MOST_SETS))


@dataclass(frozen=True)
class Overview:
    """The table and what stands below it.

    Attributes:
        column: whose categories are drawn; None without any.
        keys: the lines in that picture.
        bars, curves: SVG figures.
        hidden: evaluations that were taken out of the table.
        problem: why what was asked for isn't shown.
    """

    place: Place
    table: Table
    column: Column | None
    keys: tuple[str, ...]
    bars: str
    curves: tuple[str, ...]
    hidden: tuple[Evaluation, ...]
    problem: str = ""


@dataclass(frozen=True)
class Said:
    """One model's part in an opened case.

    Attributes:
        case: its grade; None where it has none.
        answers: by the item's name, in turns.
        replies: the judge's words, by request.
    """

    label: str
    evaluation: Evaluation
    grader: str
    case: Case | None
    answers: Mapping[str, Sequence[ItemAnswer]]
    replies: Mapping[str, str]


@dataclass(frozen=True)
class Opened:
    """The case that is shown, with the one before and after it in the list."""

    case: Case
    items: tuple[Item, ...]
    said: tuple[Said, ...]
    before: str
    after: str
    number: int


@dataclass(frozen=True)
class Listing:
    """One evaluation's items.

    Attributes:
        measured: its figures, by measure, the headline first.
        others: (key, label) of lines that it can be set against.
        against: the label of the one that it is.
        total: how many pass the filters; `cases` are those of this page.
        titles: a line for each of them.
    """

    place: Place
    evaluation: Evaluation
    benchmark: Benchmark
    grading: Grading | None
    gradings: tuple[Grading, ...]
    measured: Mapping[str, Figure]
    others: tuple[tuple[str, str], ...]
    against: str
    categories: tuple[str, ...]
    counts: Mapping[Show, int]
    total: int
    pages: int
    cases: tuple[Case, ...]
    titles: Mapping[str, str]
    opened: Opened | None


def look(context: Context, place: Place, benchmarks: Mapping[str, Benchmark] = BENCHMARKS) -> Overview | Listing:
    """What belongs to a place. One that names what is not there is answered with the table, and says so."""
    shelf = shelf_of(context.folder)
    with context.database() as db:
        if place.evaluation is not None:
            try:
                return _listing(db, shelf, place, benchmarks)
            except NotFound as error:
                return _overview(db, shelf, place.table(), benchmarks, str(error))
        return _overview(db, shelf, place, benchmarks)


def hide(context: Context, evaluation_id: int, hidden: bool) -> Evaluation:
    """Take an evaluation out of the table, or put it back; nothing of it is lost. Raises NotFound."""
    with context.database() as db:
        set_deleted(db, evaluation_id, hidden)
        known = [*hidden_evaluations(db)] if hidden else [get_evaluation(db, evaluation_id)]
        return next(one for one in known if one.id == evaluation_id)


# the table -------------------------------------------------------------------------------------------------------


def _overview(
    db: Database, shelf: Shelf, place: Place, benchmarks: Mapping[str, Benchmark], problem: str = ""
) -> Overview:
    table = read_table(db, Asked(place.purpose, place.base, place.grader), shelf.book, benchmarks)
    figures = Figures(db, shelf.book)
    column = _drawn(table, place, figures)
    keys: tuple[str, ...] = ()
    if column is not None:
        there = {line.key for line in table.lines if column.benchmark.name in line.cells}
        asked = tuple(key for key in place.models if key in there)[:MOST_MODELS]
        keys = asked or tuple(default_keys(table, column))
    return Overview(
        place,
        table,
        column,
        keys,
        category_chart(table, column, figures, keys) if column is not None else "",
        tuple(charts(table, runs_of(db))),
        tuple(hidden_evaluations(db)),
        problem,
    )


def _drawn(table: Table, place: Place, figures: Figures) -> Column | None:
    """The benchmark that is asked for, else the first that has categories."""
    for column in table.columns:
        if column.benchmark.name == place.chart:
            return column
    for _, column, cell in table.cells():
        if cell.grading is not None and any(one.categories for one in figures.grades(cell.grading.id)):
            return column
    return None


# one evaluation --------------------------------------------------------------------------------------------------


def _listing(db: Database, shelf: Shelf, place: Place, benchmarks: Mapping[str, Benchmark]) -> Listing:
    assert place.evaluation is not None
    evaluation = get_evaluation(db, place.evaluation)
    if (benchmark := benchmarks.get(evaluation.benchmark)) is None:
        raise NotFound(
            f"This version knows no benchmark {evaluation.benchmark!r}; evaluation {evaluation.id} is of it."
        )
    figures = Figures(db, shelf.book)
    gradings = tuple(gradings_of(db, [evaluation.id]))
    grading = next((one for one in gradings if one.grader == place.grader), gradings[0] if gradings else None)
    table = read_table(db, Asked(evaluation.purpose, place.base, place.grader), shelf.book, benchmarks)
    beside = _beside(table, evaluation)
    # Grades of two graders are not set against each other; the answers stand side by side all the same.
    graded = {key: (label, one) for key, (label, _, one) in beside.items() if one and _alike(grading, one)}
    against = _against(place, table, graded)
    items = shelf.items.get(evaluation.set_id, lambda: Items.of(items_of(db, evaluation)))
    ours = figures.grades(grading.id) if grading else ()
    theirs = figures.grades(graded[against][1].id) if against else None
    cases = cases_of(benchmark, ours, theirs)
    texts = _texts(db, evaluation, items, cases) if place.q.strip() else {}
    found = chosen(cases, place.show, place.category, place.q, texts)
    pages = max(1, -(-len(found) // PAGE))
    at = _place_of(found, place.item)
    page = at // PAGE + 1 if at is not None else min(place.page, pages)
    shown = found[(page - 1) * PAGE : page * PAGE]
    opened = _opened(db, benchmark, figures, items, found, shown, place, (evaluation, grading), beside)
    if opened is None and place.item:
        opened = _outside_of_list(db, benchmark, figures, items, cases, place, (evaluation, grading), beside)
    measures = dict.fromkeys((benchmark.headline, *benchmark.measures))
    return Listing(
        replace(place, purpose=evaluation.purpose, page=page),
        evaluation,
        benchmark,
        grading,
        gradings,
        {name: figures.figure(grading.id, benchmark, name) for name in measures} if grading else {},
        tuple((key, label) for key, (label, _) in graded.items()),
        beside[against][0] if against else "",
        tuple(dict.fromkeys(name for one in ours for name in one.categories)),
        counts(cases),
        len(found),
        pages,
        tuple(shown),
        {case.graded.id: _title(items, case) for case in shown},
        opened,
    )


Beside = Mapping[str, tuple[str, Evaluation, Grading | None]]


def _beside(table: Table, evaluation: Evaluation) -> Beside:
    """The other lines of the table that were evaluated on this benchmark."""
    return {
        line.key: (line.label, cell.evaluation, cell.grading)
        for line, column, cell in table.cells()
        if column.benchmark.name == evaluation.benchmark and cell.evaluation.id != evaluation.id
    }


def _alike(ours: Grading | None, other: Grading) -> bool:
    return ours is not None and comparable(ours.grader, other.grader)


def _against(place: Place, table: Table, beside: Mapping[str, object]) -> str:
    """The key of what it is compared with: what is asked for, else the table's base; "" for nothing."""
    if place.against == NOBODY:
        return ""
    return next((key for key in (place.against, table.base) if key in beside), "")


def _place_of(found: Sequence[Case], item: str) -> int | None:
    return next((number for number, case in enumerate(found) if case.graded.id == item), None) if item else None


def _texts(db: Database, evaluation: Evaluation, items: Items, cases: Sequence[Case]) -> dict[str, str]:
    """What a search looks through: question, reference, this model's answer, why it failed."""
    answers: dict[int, list[str]] = {}
    for one in answers_of(db, evaluation.id):
        answers.setdefault(one.number, []).append(one.text)
    found = {}
    for case in cases:
        parts = [case.graded.why]
        for item in items.of_case(case.graded):
            parts += [*questions_of(item), *item["reference"], *answers.get(item["number"], ())]
        found[case.graded.id] = "\n".join(parts)
    return found


def _title(items: Items, case: Case) -> str:
    """The question in a line; of a file's grade its name alone."""
    asked = items.of_case(case.graded)
    return " ".join(questions_of(asked[0])[0].replace("[image]", " ").split())[:200] if asked else ""


Shown = tuple[Evaluation, Grading | None]


def _opened(
    db: Database,
    benchmark: Benchmark,
    figures: Figures,
    items: Items,
    found: Sequence[Case],
    shown: Sequence[Case],
    place: Place,
    own: Shown,
    beside: Beside,
) -> Opened | None:
    """The case that is asked for, else the first of the page."""
    at = _place_of(found, place.item)
    if at is None:
        if place.item or not shown:
            return None
        at = found.index(shown[0])
    before = found[at - 1].graded.id if at else ""
    after = found[at + 1].graded.id if at + 1 < len(found) else ""
    asked, said = _said(db, benchmark, figures, items, found[at], own, beside)
    return Opened(found[at], asked, said, before, after, at + 1)


def _outside_of_list(
    db: Database,
    benchmark: Benchmark,
    figures: Figures,
    items: Items,
    cases: Sequence[Case],
    place: Place,
    own: Shown,
    beside: Beside,
) -> Opened | None:
    """A case that a link names and the filters leave out."""
    at = _place_of(cases, place.item)
    if at is None:
        return None
    asked, said = _said(db, benchmark, figures, items, cases[at], own, beside)
    return Opened(cases[at], asked, said, "", "", 0)


def _said(
    db: Database, benchmark: Benchmark, figures: Figures, items: Items, case: Case, own: Shown, beside: Beside
) -> tuple[tuple[Item, ...], tuple[Said, ...]]:
    """What is asked, and each model's answers, grade and judge's words; the opened one's first."""
    asked = tuple(items.of_case(case.graded))
    names = [item["id"] for item in asked]
    evaluation, grading = own
    everybody = [(evaluation.label, evaluation, grading), *beside.values()]
    told = answers_to(db, [one.id for _, one, _ in everybody], names)
    found = []
    for label, one, graded in everybody:
        grade = _case_in(benchmark, figures, graded, case) if one.id != evaluation.id else case
        answers = told.get(one.id, {})
        if one.id != evaluation.id and grade is None and not any(answers.values()):
            continue  # it was not asked this
        replies = replies_to(db, graded.id, names or [case.graded.unit or case.graded.id]) if graded else {}
        found.append(Said(label, one, graded.grader if graded else "", grade, answers, replies))
    return asked, tuple(found)


def _case_in(benchmark: Benchmark, figures: Figures, grading: Grading | None, case: Case) -> Case | None:
    if grading is None:
        return None
    same = next((one for one in figures.grades(grading.id) if one.id == case.graded.id), None)
    return cases_of(benchmark, [same])[0] if same is not None else None
