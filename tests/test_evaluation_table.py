"""The table of evaluations: hand-worked cells, paired changes, purposes apart, item sets and graders marked."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from evaluation_rows import evaluated, fake, grade, item
from factories import World
from jobs.benchmarks.measures import Figure
from jobs.evaluation_figures import Book, Figures, Kept
from jobs.evaluation_reading import Asked, read_table
from jobs.evaluation_table import Cell, Table, number, settings_words, signed, spread
from storage.errors import UserError
from storage.evaluations import add_grading, answers_to, hidden_evaluations, import_grades, replies_to, set_deleted
from storage.lifecycle import JobStatus

QUIZ, CHAT = fake(), fake("chat", "Chat", scale=10.0, most=10.0)
BENCHMARKS = {"quiz": QUIZ, "chat": CHAT}


def table(world: World, **asked: str) -> Table:
    return read_table(world.db, Asked(**asked), benchmarks=BENCHMARKS)


def cell(found: Table, label: str, benchmark: str = "quiz") -> Cell:
    (line,) = [line for line in found.lines if line.label == label]
    return line.cells[benchmark]


def figure_of(one: Cell) -> Figure:
    assert one.figure is not None
    return one.figure


def change_of(one: Cell) -> Figure:
    assert one.change is not None
    return one.change


def test_without_evaluations_it_is_empty(world: World) -> None:
    found = table(world)
    assert (found.lines, found.columns, found.base, found.graders) == ((), (), "", ())


def test_a_cell_holds_the_mean_its_items_failures_and_lengths(world: World) -> None:
    evaluated(world, "demo", [1, 0, 1, 1, None], characters=30)
    one = cell(table(world), "demo")
    figure = figure_of(one)
    assert figure.value == 75.0  # 3 of the 4 that have a grade
    assert (figure.items, figure.failures, figure.characters) == (4, 1, 30.0)
    assert figure.low is not None
    assert figure.high is not None
    assert 0 <= figure.low < 75 < figure.high <= 100
    assert one.change is None, "the base is not compared with itself"


def test_the_change_is_paired_over_the_items_that_both_have(world: World) -> None:
    evaluated(world, "demo", [0, 0, 1, 1, None])
    evaluated(world, "better (adapter 1)", [1, 1, 1, None, 1], adapter=1)
    change = change_of(cell(table(world), "better (adapter 1)"))
    # q1, q2, q3 have both: 3/3 against 1/3.
    assert change.value == pytest.approx(200 / 3)
    assert (change.items, change.failures) == (3, 2)


def test_a_change_that_is_everywhere_the_same_is_marked_and_a_mere_chance_is_not(world: World) -> None:
    evaluated(world, "demo", [0.0, 0.5] * 20)
    evaluated(world, "up (adapter 1)", [0.25, 0.75] * 20, adapter=1)
    evaluated(world, "down (adapter 2)", [0.0, 0.25] * 20, adapter=2)
    evaluated(world, "same (adapter 3)", [0.5, 0.0] * 20, adapter=3)
    found = table(world)
    up = cell(found, "up (adapter 1)")
    assert (change_of(up).low, change_of(up).high, up.sign) == (25.0, 25.0, 1)  # paired: no chance left in it
    assert cell(found, "down (adapter 2)").sign == -1
    same = cell(found, "same (adapter 3)")
    assert change_of(same).value == pytest.approx(0.0)
    assert same.sign == 0


def test_too_few_items_tell_nothing(world: World) -> None:
    evaluated(world, "demo", [0] * 9)
    evaluated(world, "up (adapter 1)", [1] * 9, adapter=1)
    up = cell(table(world), "up (adapter 1)")
    assert (change_of(up).low, up.sign) == (100.0, 0)


def test_selection_never_stands_in_the_reporting_table(world: World) -> None:
    evaluated(world, "demo", [1, 1], purpose="selection")
    evaluated(world, "demo", [0, 1])
    assert figure_of(cell(table(world), "demo")).value == 50.0
    assert figure_of(cell(table(world, purpose="selection"), "demo")).value == 100.0
    with pytest.raises(UserError, match="purpose = 'both': give reporting or selection"):
        table(world, purpose="both")


def test_only_selection_leaves_the_reporting_table_empty(world: World) -> None:
    evaluated(world, "demo", [1, 1], purpose="selection")
    assert table(world).lines == ()


def test_the_newest_evaluation_with_grades_counts_and_tells_of_a_newer_one_at_work(world: World) -> None:
    evaluated(world, "demo", [0, 0])
    evaluated(world, "demo", [0, 1])
    newest = evaluated(world, "demo", None, status=JobStatus.RUNNING)
    one = cell(table(world), "demo")
    assert figure_of(one).value == 50.0
    assert one.state == "running"
    set_deleted(world.db, newest.evaluation, True)
    assert cell(table(world), "demo").state == ""


def test_one_without_grades_says_what_it_is_at(world: World) -> None:
    evaluated(world, "demo", None, status=JobStatus.FAILED)
    evaluated(world, "done (adapter 1)", None, adapter=1)
    found = table(world)
    assert (cell(found, "demo").figure, cell(found, "demo").state) == (None, "failed")
    assert cell(found, "done (adapter 1)").state == "not graded yet"


def test_the_grader_can_be_chosen_where_several_graded(world: World) -> None:
    made = evaluated(world, "demo", [1, 1], grader="judge A")
    evaluated(world, "other (adapter 1)", [1, 0], adapter=1, grader="judge A")
    evaluated(world, "demo", [0, 1], benchmark="chat", grader="rules")
    add_grading(world.db, made.evaluation, "judge B", [grade("q1", 0), grade("q2", 0)])
    newest = table(world)
    assert newest.graders == ("judge B", "judge A", "rules")
    assert figure_of(cell(newest, "demo")).value == 0.0
    assert cell(newest, "other (adapter 1)").other_grader, "judge A's grades are not set against judge B's"
    assert cell(newest, "other (adapter 1)").change is None
    by_a = table(world, grader="judge A")
    assert figure_of(cell(by_a, "demo")).value == 100.0
    assert change_of(cell(by_a, "other (adapter 1)")).value == -50.0
    assert figure_of(cell(by_a, "demo", "chat")).value == 5.0, "a column that A never graded keeps its own"
    by_b = cell(table(world, grader="judge B"), "other (adapter 1)")
    assert (by_b.figure, by_b.state) == (None, "not graded by judge B")


def test_other_items_are_marked(world: World) -> None:
    evaluated(world, "demo", [1] * 6)
    evaluated(world, "few (adapter 1)", [1] * 3, adapter=1, limit=3)
    evaluated(world, "alike (adapter 2)", [1] * 6, adapter=2)
    found = table(world)
    (column,) = found.columns
    assert column.mixed
    assert [(mark, items) for mark, items, _ in column.sets] == [("", 6), ("†", 3)]
    assert cell(found, "few (adapter 1)").mark == "†"
    assert cell(found, "few (adapter 1)").settings == "limit 3"
    assert cell(found, "demo").settings == "all items"
    assert change_of(cell(found, "few (adapter 1)")).items == 3
    assert cell(found, "alike (adapter 2)").mark == ""


def test_as_many_items_that_are_others_are_marked_too(world: World) -> None:
    evaluated(world, "demo", [1, 1])
    evaluated(world, "reworded (adapter 1)", [1, 1], adapter=1, items=[item(1, question="why?"), item(2)])
    names = {"x1": 1.0, "x2": 1.0}
    evaluated(world, "apart (adapter 2)", names, adapter=2, items=[item(1, name="x1"), item(2, name="x2")])
    found = table(world)
    assert [cell(found, line.label).mark for line in found.lines] == ["", "†", "‡"]
    assert cell(found, "apart (adapter 2)").change is None, "there is no item to pair"


def test_an_official_file_has_the_names_alone(world: World) -> None:
    evaluated(world, "demo", [1, 0])
    import_grades(world.db, "ada", "quiz", "gpt-4", "gpt-4_single.jsonl", [grade("q1", 1), grade("q2", 1)])
    found = table(world)
    one = cell(found, "gpt-4")
    assert one.mark == ""
    assert one.grading is not None
    assert one.grading.grader == "file gpt-4_single.jsonl"
    assert one.other_grader
    assert [line.label for line in found.lines] == ["demo", "gpt-4"]


def test_bases_come_first_and_the_base_of_most_adapters_is_what_is_compared_with(world: World) -> None:
    evaluated(world, "m@local", [1, 1], model="m@local")
    evaluated(world, "tuned (adapter 7)", [1, 1], adapter=7)
    evaluated(world, "text", [1, 1], model="text")
    evaluated(world, "demo", [1, 0])
    found = table(world)
    assert [line.label for line in found.lines] == ["text", "demo", "tuned (adapter 7)", "m@local"]
    assert found.base_label == "demo"
    chosen = table(world, base="adapter:7")
    assert chosen.base_label == "tuned (adapter 7)"
    assert change_of(cell(chosen, "demo")).value == -50.0
    assert table(world, base="adapter:99").base_label == "demo", "an unknown one falls back"


def test_an_adapter_with_a_new_name_stays_one_line_and_two_models_of_one_name_stay_two(world: World) -> None:
    evaluated(world, "old (adapter 1)", [0, 0], adapter=1)
    evaluated(world, "new (adapter 1)", [1, 1], adapter=1, benchmark="chat")
    evaluated(world, "llava", [1, 1], model="/a/llava")
    evaluated(world, "llava", [1, 1], model="/b/llava")
    labels = [line.label for line in table(world).lines]
    assert labels == ["llava (/a/llava)", "llava (/b/llava)", "new (adapter 1)"]


def test_a_hidden_evaluation_leaves_the_table_and_comes_back(world: World) -> None:
    made = evaluated(world, "demo", [1, 1])
    set_deleted(world.db, made.evaluation, True)
    assert table(world).lines == ()
    assert [one.id for one in hidden_evaluations(world.db)] == [made.evaluation]
    set_deleted(world.db, made.evaluation, False)
    assert [line.label for line in table(world).lines] == ["demo"]
    assert hidden_evaluations(world.db) == []


def test_unknown_benchmarks_are_left_out(world: World) -> None:
    evaluated(world, "demo", [1], benchmark="of a later version")
    assert table(world).lines == ()


def test_figures_are_computed_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated(world, "demo", [1, 0])
    evaluated(world, "a (adapter 1)", [1, 1], adapter=1)
    book = Book()
    first = read_table(world.db, Asked(), book, BENCHMARKS)

    def never(*args: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("jobs.evaluation_figures.figure", never)
    monkeypatch.setattr("jobs.evaluation_figures.difference", never)
    monkeypatch.setattr("jobs.evaluation_figures.grades_of", never)
    assert read_table(world.db, Asked(), book, BENCHMARKS).lines == first.lines


def test_what_is_kept_is_bounded() -> None:
    kept = Kept(2)
    made = [kept.get(key, partial("made {}".format, key)) for key in (1, 2, 1, 3, 1)]
    assert made == ["made 1", "made 2", "made 1", "made 3", "made 1"]
    assert kept.get(2, lambda: "made again") == "made again", "2 was used least recently, and is gone"


def test_categories(world: World) -> None:
    made = evaluated(world, "demo", [1, 0, 1, 1])
    assert made.grading is not None
    found = Figures(world.db).categories(made.grading, QUIZ, "accuracy")
    assert {name: (figure.value, figure.items) for name, figure in found.items()} == {
        "odd": (100.0, 2),
        "even": (50.0, 2),
    }


def test_answers_and_replies_of_an_item(world: World) -> None:
    said = {"q1/judge": ("q1", "[[7]]"), "q2/judge": ("q2", "[[1]]")}
    one = evaluated(world, "demo", [1, 0], replies=said)
    other = evaluated(world, "a (adapter 1)", [None, 1], adapter=1)
    apart = evaluated(world, "b (adapter 2)", {"z": 1.0}, adapter=2, items=[item(1, name="z")])
    found = answers_to(world.db, [one.evaluation, other.evaluation, apart.evaluation], ["q1"])
    assert [answer.text for answer in found[one.evaluation]["q1"]] == ["demo says 1"]
    assert found[other.evaluation]["q1"] == []
    assert apart.evaluation not in found
    assert one.grading is not None
    assert replies_to(world.db, one.grading, ["q1"]) == {"q1/judge": "[[7]]"}


def test_numbers_in_words(world: World) -> None:
    assert (number(-0.04, 1), number(-1.26, 1), number(None, 2)) == ("0.0", "−1.3", "–")
    assert (signed(2.0, 1), signed(-2.0, 1), signed(0.01, 1), signed(None, 1)) == ("+2.0", "−2.0", "0.0", "–")
    assert spread(Figure(1.0, 0.5, 1.5, 3, 0, None), 2) == "0.50 to 1.50"
    assert spread(Figure(1.0, None, None, 3, 0, None), 2) == ""
    made = evaluated(world, "demo", [1], files="/somewhere/secret/pope.json", limit=5)
    (line,) = table(world).lines
    assert line.cells["quiz"].evaluation.id == made.evaluation
    words = settings_words(line.cells["quiz"].evaluation)
    assert words == "half all, limit 5, seed 0, max new tokens 16, files pope.json"
