"""The Evaluation page: addresses, filters, an item with everybody's answers, escaping, downloads, hiding."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

import pytest
from fastapi.testclient import TestClient

from evaluation_rows import evaluated, grade, item
from factories import World
from jobs.benchmarks.measures import Graded
from jobs.benchmarks.registry import BENCHMARKS
from storage.errors import NotFound
from storage.evaluations import add_grading, import_grades, list_evaluations
from storage.lifecycle import JobStatus
from workbench import evaluation_desk as desk
from workbench.context import Context
from workbench.door import Door
from workbench.evaluation_items import Case, Items, cases_of, chosen, counts, values_of
from workbench.evaluation_place import Place, read_place
from workbench.navigation import PAGES, header
from workbench.pages.evaluation import show
from workbench.ui import build_api

VET = BENCHMARKS["mm-vet"]  # sums (value, 1), headline 100 × the mean
EVIL = "<script>document.title = 'run'</script><img src=x onerror=alert(1)>\"'&"


def vet(world: World, label: str, values: Any, **more: Any) -> Any:
    return evaluated(world, label, values, benchmark="mm-vet", **more)


def listing(context: Context, search: str) -> desk.Listing:
    found = desk.look(context, read_place(search))
    assert isinstance(found, desk.Listing)
    return found


def overview(context: Context, search: str = "") -> desk.Overview:
    found = desk.look(context, read_place(search))
    assert isinstance(found, desk.Overview)
    return found


def names(found: desk.Listing) -> list[str]:
    return [case.graded.id for case in found.cases]


# --- addresses ---


def test_an_address_is_read_and_written_again() -> None:
    place = Place(
        "selection",
        "model:/a b&c",
        "judge 1",
        "pope",
        ("adapter:1", "model:x"),
        17,
        "-",
        "gains",
        "a/b",
        "x y",
        3,
        "é",
    )
    assert read_place(place.query()) == place
    assert Place().query() == "?"
    assert read_place("") == Place()


@pytest.mark.parametrize(
    "search",
    [
        "?evaluation=x",
        "?evaluation=99999999999999999999",
        "?evaluation=-1",
        "?page=0&show=everything&purpose=both",
        "?page=abc",
        "?" + "&".join(f"model={n}" for n in range(500)),
        "?q=%00%ff&base=" + "x" * 5000,
        "?;;;&&&===",
    ],
)
def test_bad_addresses_show_the_page_all_the_same(world: World, context: Context, search: str) -> None:
    vet(world, "demo", [1, 0])
    text = show(context, search)
    assert "ev-table" in text
    assert "demo" in text


def test_an_evaluation_that_is_not_there_is_told_above_the_table(world: World, context: Context) -> None:
    vet(world, "demo", [1, 0])
    text = show(context, "?evaluation=999&show=gains")
    assert "There is no evaluation 999." in text
    assert "ev-table" in text


def test_an_item_that_is_not_there_is_told(world: World, context: Context) -> None:
    made = vet(world, "demo", [1, 0])
    text = show(context, f"?evaluation={made.evaluation}&item=<b>nowhere")
    assert "There is no such item here." in text
    assert "&lt;b&gt;nowhere" in text
    assert "<b>nowhere" not in text


# --- the table ---


def test_with_nothing_the_page_says_what_to_do(context: Context) -> None:
    text = show(context, "")
    assert "No evaluations yet." in text
    assert 'href="/jobs?kind=evaluate"' in text
    assert "make paper" in text
    assert "import-grades" in text


def test_selection_is_a_view_of_its_own_and_marked(world: World, context: Context) -> None:
    vet(world, "chosen by", [1, 1], purpose="selection")
    assert "chosen by" not in show(context, "")
    text = show(context, "?purpose=selection")
    assert "chosen by" in text
    assert "<b>Selection.</b>" in text
    assert "purpose=selection" in text.split('href="/api/evaluation/csv')[1][:60]


def test_a_cell_tells_value_interval_failures_lengths_change_and_leads_to_its_items(
    world: World, context: Context
) -> None:
    vet(world, "demo", [0.0, 0.5] * 10)
    made = vet(world, "dpo (adapter 4)", [*[0.25, 0.75] * 10, None], adapter=4, characters=120)
    text = show(context, "")
    (cell,) = re.findall(rf'<td><a href="\?evaluation={made.evaluation}".*?</td>', text)
    assert "<b>50.0</b>" in cell
    assert 'ev-change good" title="better by more than chance">+25.0 (25.0 to 25.0) ▲' in cell
    assert "n 20 · " in cell
    assert "1 failed" in cell
    assert "120 characters" in cell
    assert "<sup>†</sup>" in cell, "its set has an item more"
    assert 'href="/models?adapter=4"' in text
    assert "not to be compared" in text


def test_the_table_shows_what_is_running(world: World, context: Context) -> None:
    vet(world, "demo", None, status=JobStatus.RUNNING)
    assert "running" in show(context, "")


def test_bars_are_drawn_for_the_lines_that_are_ticked(world: World, context: Context) -> None:
    for number in range(6):
        vet(world, f"m{number}", [number % 2, 1], model=f"m{number}")
    found = overview(context)
    assert found.column is not None
    assert found.column.benchmark is VET
    assert len(found.keys) == 4
    assert "model:m0" in found.keys, "the base"
    picked = overview(context, "?chart=mm-vet&model=model:m3&model=model:nobody&model=model:m2")
    assert picked.keys == ("model:m3", "model:m2")
    assert picked.bars.count("ev-key") == 2
    assert "m3, odd" in picked.bars


# --- items ---


def cases() -> list[Case]:
    ours = [Graded(f"q{n}", (value, 1.0), (f"c{n % 2}",)) for n, value in enumerate((1.0, 0.0, 0.5, 0.2))]
    ours.append(Graded("q4", None, why="no answer"))
    theirs = [Graded(f"q{n}", (value, 1.0)) for n, value in enumerate((0.0, 1.0, 0.5, 0.9, 1.0))]
    return cases_of(VET, ours, theirs)


def test_filters() -> None:
    found = cases()
    assert counts(found) == {"all": 5, "regressions": 2, "gains": 1, "failures": 1}
    assert [case.graded.id for case in chosen(found, "regressions")] == ["q1", "q3"], "the largest first"
    assert [case.graded.id for case in chosen(found, "gains")] == ["q0"]
    assert [case.graded.id for case in chosen(found, "failures")] == ["q4"], "a failure is no regression"
    assert [case.graded.id for case in chosen(found, "all", "c1")] == ["q1", "q3"]
    texts = {"q2": "What is a Zebra?", "q3": "zebra CROSSING"}
    assert [case.graded.id for case in chosen(found, "all", "", "zebra", texts)] == ["q2", "q3"]
    assert [case.graded.id for case in chosen(found, "all", "", "crossing Zebra", texts)] == ["q3"]
    assert [case.graded.id for case in chosen(found, "all", "", "q1")] == ["q1"], "ids are searched, too"


def test_a_single_grade_is_worth_what_its_measure_says() -> None:
    pope, easy = BENCHMARKS["pope"], BENCHMARKS["easy-vqa"]
    answers = {"hit": (1, 0, 0, 0), "wrong": (0, 1, 0, 0), "denied": (0, 0, 1, 0), "missed": (0, 0, 0, 1)}
    worth = values_of(pope, [Graded(name, sums) for name, sums in answers.items()])
    assert worth == {"hit": 100.0, "wrong": 0.0, "denied": 100.0, "missed": 0.0}, "F1 does not know the denied"
    twins = [Graded("1", (0.0, 1.0, 0.0, 0.0)), Graded("1/shuffled", (0.0, 0.0, 1.0, 1.0)), Graded("2", None)]
    assert values_of(easy, twins) == {"1": 0.0, "1/shuffled": 100.0}
    assert values_of(easy, []) == {}


def test_a_grade_finds_what_was_asked() -> None:
    one, two = item(1, name="81", unit="u"), item(2, name="1000081", unit="u")
    items = Items.of([one, two])
    assert items.of_case(Graded("81", None)) == [one]
    assert items.of_case(Graded("81/2", None, unit="81")) == [one], "a turn"
    assert items.of_case(Graded("u", None, unit="u")) == [one, two], "rotations that count together"
    assert items.of_case(Graded("else", None)) == []


def test_regressions_against_the_base_and_an_item_with_everybodys_answers(world: World, context: Context) -> None:
    said = {"q2/judge": ("q2", "Quite [[wrong]].")}
    vet(world, "demo", [1, 1, 0], pictures=True)
    made = vet(world, "dpo (adapter 1)", [1, 0.25, 1], adapter=1, pictures=True, replies=said, grader="judge A")
    other = vet(world, "sft (adapter 2)", [0, 1], adapter=2, pictures=True)
    add_grading(world.db, made.evaluation, "rules", [grade(f"q{n}", v) for n, v in ((1, 1), (2, 0), (3, 1))])
    found = listing(context, f"?evaluation={made.evaluation}&show=regressions")
    assert found.against == "demo"
    assert names(found) == ["q2"]
    assert found.counts == {"all": 3, "regressions": 1, "gains": 1, "failures": 0}
    opened = found.opened
    assert opened is not None
    assert [(one.label, one.grader) for one in opened.said] == [
        ("dpo (adapter 1)", "rules"),
        ("demo", "rules"),
        ("sft (adapter 2)", "rules"),
    ]
    text = show(context, f"?evaluation={made.evaluation}&grader=judge+A&item=q2")
    for shown in ("question 2?", "ref 2", "demo says 2", "dpo (adapter 1) says 2", "sft (adapter 2) says 2"):
        assert shown in text, shown
    assert "Quite [[wrong]]." in text
    assert re.search(r'<img src="/images/[0-9a-f]{64}"', text)
    assert listing(context, f"?evaluation={made.evaluation}&grader=judge+A").against == "", "demo's are by rules"
    against = listing(context, f"?evaluation={made.evaluation}&against=adapter:2&show=gains")
    assert (against.against, names(against)) == ("sft (adapter 2)", ["q1"])
    nobody = listing(context, f"?evaluation={made.evaluation}&against=-")
    assert (nobody.against, nobody.counts["regressions"]) == ("", 0)
    asked_less = listing(context, f"?evaluation={other.evaluation}&item=q3")
    assert asked_less.opened is None, "it was not asked q3"


def test_an_item_shows_no_model_that_was_not_asked_it(world: World, context: Context) -> None:
    made = vet(world, "demo", [1, 1, 0])
    vet(world, "few (adapter 1)", [1], adapter=1)
    found = listing(context, f"?evaluation={made.evaluation}&item=q3")
    assert found.opened is not None
    assert [one.label for one in found.opened.said] == ["demo"]


def test_search_looks_through_questions_references_answers_and_reasons(world: World, context: Context) -> None:
    items = [item(1, question="Where is the Zebra?"), item(2, reference=["a zebra"]), item(3), item(4)]
    made = vet(world, "demo", [1, 1, 1, None], items=items, texts={3: "I see ZEBRAs", 4: "never said"})
    found = listing(context, f"?evaluation={made.evaluation}&q=zebra")
    assert names(found) == ["q1", "q2", "q3"]
    assert names(listing(context, f"?evaluation={made.evaluation}&q=no+answer")) == ["q4"]
    nothing = listing(context, f"?evaluation={made.evaluation}&q=giraffe")
    assert (nothing.total, nothing.opened) == (0, None)
    assert "No item passes these filters" in show(context, f"?evaluation={made.evaluation}&q=giraffe")


def test_paging_and_steps(world: World, context: Context) -> None:
    made = vet(world, "demo", [1] * (desk.PAGE * 2 + 5))
    last = listing(context, f"?evaluation={made.evaluation}&page=99")
    assert (last.pages, last.place.page, len(last.cases)) == (3, 3, 5)
    inside = listing(context, f"?evaluation={made.evaluation}&item=q{desk.PAGE + 1}")
    assert inside.place.page == 2
    assert inside.opened is not None
    assert (inside.opened.before, inside.opened.after) == (f"q{desk.PAGE}", f"q{desk.PAGE + 2}")
    assert inside.opened.number == desk.PAGE + 1
    text = show(context, f"?evaluation={made.evaluation}&page=2")
    assert f"{desk.PAGE + 1}–{2 * desk.PAGE} of {2 * desk.PAGE + 5}" in text


def test_a_link_to_an_item_that_the_filters_leave_out_still_opens_it(world: World, context: Context) -> None:
    made = vet(world, "demo", [1, None])
    found = listing(context, f"?evaluation={made.evaluation}&show=failures&item=q1")
    assert found.opened is not None
    assert (found.opened.case.graded.id, found.opened.number) == ("q1", 0)


def test_an_official_file_has_grades_without_questions(world: World, context: Context) -> None:
    number = import_grades(world.db, "ada", "mm-vet", "gpt-4", "results.json", [grade("q1", 1), grade("q2", 0)])
    text = show(context, f"?evaluation={number}")
    assert "These grades came from an official file" in text
    vet(world, "demo", [1, 1])
    assert "question 1?" not in show(context, f"?evaluation={number}&item=q1")
    assert "demo says 1" not in show(context, f"?evaluation={number}&item=q1"), "no item links the two"


def test_an_evaluation_without_grades_says_what_to_do(world: World, context: Context) -> None:
    made = vet(world, "demo", None)
    text = show(context, f"?evaluation={made.evaluation}")
    assert "Nothing is graded yet." in text
    assert f'href="/jobs?job={made.job}"' in text


def test_nothing_that_a_model_a_judge_or_a_file_says_runs(world: World, context: Context) -> None:
    asked = [item(1, question=EVIL, reference=[EVIL], categories=[EVIL], name=EVIL)]
    made = vet(
        world,
        EVIL,
        {EVIL: 0.5},
        items=asked,
        texts={1: EVIL},
        replies={EVIL: (EVIL, EVIL)},
        grader=EVIL,
        model=EVIL,
        files=EVIL,
    )
    vet(world, f"other {EVIL}", {EVIL: None}, items=asked, adapter=1)
    for search in ("", f"?evaluation={made.evaluation}", f"?evaluation={made.evaluation}&q={EVIL}&item={EVIL}"):
        text = show(context, search)
        assert "&lt;script&gt;" in text
        assert "<script" not in text
        assert "<img src=x" not in text
        assert not re.search(r"<[a-z]+[^>]* onerror", re.sub(r'"[^"]*"', '""', text))


# --- hiding, downloads, the frame ---


@pytest.fixture
def visitor(world: World, context: Context) -> TestClient:
    return TestClient(build_api(context, Door(world.settings)), base_url="http://127.0.0.1")


def test_hiding_is_undone(world: World, context: Context, visitor: TestClient) -> None:
    made = vet(world, "demo", [1, 0])
    assert visitor.post(f"/api/evaluations/{made.evaluation}/hide").json() == {"evaluation": made.evaluation}
    assert list_evaluations(world.db) == []
    text = show(context, f"?hidden={made.evaluation}")
    assert f'data-show-evaluation="{made.evaluation}">Undo' in text
    assert "Hidden (1)" in text
    assert visitor.post(f"/api/evaluations/{made.evaluation}/show").status_code == 200
    assert [one.id for one in list_evaluations(world.db)] == [made.evaluation]
    assert "Undo" not in show(context, f"?hidden={made.evaluation}")
    missing = visitor.post("/api/evaluations/99/hide")
    assert (missing.status_code, missing.json()["error"]) == (404, "There is no evaluation 99.")
    with pytest.raises(NotFound):
        desk.hide(context, 99, False)


def test_downloads_are_the_table_that_is_shown(world: World, visitor: TestClient) -> None:
    vet(world, "demo", [1, 0])
    vet(world, "dpo (adapter 1)", [1, 1], adapter=1)
    vet(world, "picked", [1, 1], purpose="selection")
    by_form = {
        form: visitor.get(f"/api/evaluation/{form}?base=adapter:1") for form in ("csv", "md", "tex", "html")
    }
    for form, answer in by_form.items():
        assert answer.status_code == 200, form
        assert "demo" in answer.text
        assert "picked" not in answer.text
        assert answer.headers["content-disposition"].startswith("attachment")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "against dpo \\(adapter" in by_form["md"].text or "against dpo (adapter 1)" in by_form["md"].text
    selection = visitor.get("/api/evaluation/md?purpose=selection")
    assert "picked" in selection.text
    assert 'filename="selection-table.md"' in selection.headers["content-disposition"]
    assert visitor.get("/api/evaluation/exe").status_code == 404
    wrong = visitor.get("/api/evaluation/csv?purpose=both")
    assert (wrong.status_code, "give reporting or selection" in wrong.json()["error"]) == (400, True)


def test_the_pages_links_lead_to_the_downloads_of_its_place(world: World, context: Context) -> None:
    vet(world, "demo", [1, 0], model="/a&b")
    text = show(context, "?base=model:/a%26b&grader=rules")
    (link,) = re.findall(r'href="/api/evaluation/csv\?([^"]*)"', text)
    assert parse_qs(link.replace("&amp;", "&")) == {"base": ["model:/a&b"], "grader": ["rules"]}


def test_it_stands_in_the_header_after_contests() -> None:
    order = [name for name, _, _ in PAGES]
    assert order.index("evaluation") == order.index("contests") + 1
    assert '<a href="/evaluation" aria-current="page">' in header("evaluation")
