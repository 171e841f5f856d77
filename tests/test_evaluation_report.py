"""The table's exports and the report: each form by hand, nothing runs in any of them, and the commands."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation_rows import evaluated, fake
from factories import World
from jobs.__main__ import app
from jobs.benchmarks.measures import Figure
from jobs.evaluation_charts import Bars, Curve, bars, curves
from jobs.evaluation_curves import runs_of
from jobs.evaluation_exports import csv_of, footnotes, latex_of, markdown_of
from jobs.evaluation_reading import Asked, read_table
from jobs.evaluation_report import html_of, read_report, write_report
from storage.adapters import add_adapter
from storage.errors import UserError
from storage.evaluations import list_evaluations

BENCHMARKS = {"quiz": fake(), "chat": fake("chat", "Chat & Talk", scale=10.0, most=10.0)}
EVIL = '=cmd|" /C calc"!A0 <script>alert(1)</script> | _x_ & 50 % {b}\\'


def filled(world: World) -> World:
    evaluated(world, "demo", [0.0, 0.5] * 10, characters=40)
    evaluated(world, "dpo (adapter 1)", [0.25, 0.75] * 10, adapter=1, characters=60)
    evaluated(world, "few (adapter 2)", [1, None], adapter=2, limit=2)
    evaluated(world, "demo", [0.5, 0.75], benchmark="chat", grader="judge A")
    return world


def table(world: World) -> Any:
    return read_table(world.db, Asked(), benchmarks=BENCHMARKS)


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_line_a_cell_with_unrounded_numbers(world: World) -> None:
    rows = lines_of(csv_of(table(filled(world))))
    assert [(one["model"], one["benchmark"]) for one in rows] == [
        ("demo", "quiz"),
        ("demo", "chat"),
        ("dpo (adapter 1)", "quiz"),
        ("few (adapter 2)", "quiz"),
    ]
    dpo, few = rows[2], rows[3]
    assert (float(dpo["value"]), float(dpo["change"]), float(dpo["change_low"])) == (50.0, 25.0, 25.0)
    assert (dpo["items"], dpo["failures"], dpo["mean_characters"]) == ("20", "0", "60")
    assert (dpo["base"], dpo["purpose"], dpo["grader"], dpo["other_items"]) == ("demo", "reporting", "rules", "")
    assert (few["failures"], few["other_items"], few["settings"].split(", ")[1]) == ("1", "†", "limit 2")
    assert len(dpo["item_set"]) == 12
    assert dpo["item_set"] != few["item_set"]


@pytest.mark.parametrize("label", [EVIL, "+1", "-1", "@SUM(A1)", "\t=1", "  =1+1", "=1\n=2"])
def test_no_spreadsheet_runs_a_label(world: World, label: str) -> None:
    evaluated(world, label, [1, 0])
    (row,) = lines_of(csv_of(table(world)))
    assert row["model"] == f"'{label}"


def test_markdown_is_a_table_whatever_a_label_holds(world: World) -> None:
    evaluated(filled(world), EVIL, [1, 1], adapter=9)
    text = markdown_of(table(world))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| Model | Quiz | Chat & Talk |"
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert "<script" not in text
    assert "25.0 \\[17.5 to 37.5\\]" in text or re.search(r"25\.0 \\\[\d", text)
    assert "+25.0 \\[25.0 to 25.0\\] ▲" in text
    assert "n 20, 60 chars" in text
    assert "n 1, 1 failed" in text
    assert text.startswith("Reporting. In brackets 95 % bootstrap intervals; changes are paired, against demo")
    assert "- Quiz was asked with different items, not to be compared: 20 items" in text


def test_latex_is_escaped_and_marks_what_is_better(world: World) -> None:
    evaluated(filled(world), EVIL, [1, 1], adapter=9)
    text = latex_of(table(world))
    assert "\\begin{tabular}{lcc}\n\\toprule\nModel & Quiz & Chat \\& Talk \\\\" in text
    assert "\\textbf{50.0}" in text
    assert "100.0\\dag{}" in text
    body = text.split("\\midrule")[1].split("\\bottomrule")[0]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 2 for row in body.strip().splitlines())
    assert "50 \\% \\{b\\}\\textbackslash{}" in text
    assert "\\textless{}script\\textgreater{}" in text
    assert text.count("{") == text.count("}")


def test_without_evaluations_each_form_says_so(world: World) -> None:
    empty = table(world)
    assert len(csv_of(empty).splitlines()) == 1
    assert markdown_of(empty) == "No evaluations for reporting yet.\n"
    assert latex_of(empty) == "% No evaluations for reporting yet.\n"
    assert "No evaluations for reporting yet." in html_of(read_report(world.db, Asked(), benchmarks=BENCHMARKS))


def test_selection_is_marked_as_such(world: World) -> None:
    evaluated(world, "demo", [1, 1], purpose="selection")
    asked = Asked("selection")
    assert markdown_of(read_table(world.db, asked, benchmarks=BENCHMARKS)).startswith(
        "Selection: for choosing settings, not for reporting."
    )
    assert "for selection, not for reporting" in html_of(read_report(world.db, asked, benchmarks=BENCHMARKS))


def test_other_graders_are_told(world: World) -> None:
    evaluated(world, "demo", [1, 0], grader="judge A")
    evaluated(world, "a (adapter 1)", [1, 0], adapter=1, grader="judge B")
    found = table(world)
    assert "Quiz was graded by judge A, judge B." in footnotes(found)
    assert "another grader" in markdown_of(found)


class Tags(HTMLParser):
    """The names of all elements, and what they fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href") or name.startswith("on")]


def trained(world: World, number: int, kind: str = "dpo", **config: Any) -> int:
    """An adapter as a training of this configuration leaves it; its id."""
    told = {"dataset": "pairs", "fraction": 1.0, "flip": 0.0, "seed": 0, "beta": 0.1, **config}
    job = world.job(kind, **told)
    add_adapter(world.db, job, f"run {number}", f"{number:064x}", 10, "demo", kind)
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    return int(world.db.conn.execute("SELECT max(id) FROM adapters").fetchone()[0])


def test_the_report_stands_alone_and_names_what_it_stands_on(world: World) -> None:
    adapter = trained(world, 7, fraction=0.5)
    evaluated(world, "demo", [1, 0])
    made = evaluated(world, EVIL, [1, 1], adapter=adapter)
    report = read_report(world.db, Asked(), benchmarks=BENCHMARKS)
    text = html_of(report)
    tags = Tags(text)
    assert not tags.names & {"script", "img", "link", "iframe", "a"}
    assert tags.fetched == []
    assert "url(" not in text
    assert f"{7:064x}" in text
    assert f"runs/{made.job}" in text
    assert "DPO on pairs" in text
    assert "fraction 0.5" in text
    (evaluation, *_) = list_evaluations(world.db)
    assert report.asked[evaluation.set_id or 0] in text
    assert "odd" in text, "bars by category"


def test_curves_over_fraction_and_noise(world: World) -> None:
    evaluated(world, "demo", [0, 0, 1, 0])
    settings: list[dict[str, Any]] = [
        {"fraction": 0.25},
        {"fraction": 0.5},
        {},
        {"flip": 0.5},
        {"beta": 0.5, "fraction": 0.5},
    ]
    settings += [{"fraction": 0.25, "seed": 1}]
    for number, config in enumerate(settings, 1):
        adapter = trained(world, number, **config)
        right = number % 4 + 1
        evaluated(world, f"run (adapter {adapter})", [1.0] * right + [0.0] * (4 - right), adapter=adapter)
    report = read_report(world.db, Asked(), benchmarks=BENCHMARKS)
    fraction, noise = (one for one in report.pictures if "ev-curve" in one)
    assert "of the training data" in fraction
    described = re.search(r'aria-label="([^"]*)"', fraction)
    assert described is not None
    assert described[1] == ("Quiz, accuracy. DPO on pairs: 25 % 50.0, 25 % 75.0, 50 % 75.0, 100 % 100.0"), (
        "both seeds at 25 %, without the run of another β and without the flipped one"
    )
    assert "of the labels flipped" in noise
    assert "0 % 100.0, 50 % 25.0" in noise
    assert "demo 25.0" in noise, "the base as a line across"
    assert len(runs_of(world.db)) == 6


def test_one_point_makes_no_curve(world: World) -> None:
    adapter = trained(world, 1, fraction=0.25)
    evaluated(world, "demo", [1, 0])
    evaluated(world, "run (adapter 1)", [1, 0], adapter=adapter)
    assert not any("ev-curve" in one for one in read_report(world.db, Asked(), benchmarks=BENCHMARKS).pictures)


def figure(value: float | None, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value, low, high, 5, 0, None)


def test_charts_leave_out_what_is_unknown_and_escape_names() -> None:
    drawn = bars("A & B", [Bars("<b>", {"x": figure(50.0, 40.0, 60.0), "y": figure(None)})], 100.0, 1)
    assert drawn.count("<rect") == 2  # a bar and its key
    assert "&lt;b&gt;, x: 50.0 (40.0 to 60.0), 5 items" in drawn
    assert "<b>" not in drawn
    assert bars("none", [Bars("a", {"x": figure(None)})], 100.0, 1) == ""
    assert bars("none", [], None, 1) == ""
    assert curves("none", [Curve("a", [(50.0, figure(None)), (100.0, figure(None))])], "x", 1) == ""
    level = curves("level", [Curve("a", [(50.0, figure(3.0)), (100.0, figure(3.0))])], "x", 1)
    assert "NaN" not in level
    assert "<circle" in level


def test_the_command_writes_every_form(world: World, tmp_path: Path) -> None:
    filled(world)
    folder = tmp_path / "out" / "report"
    found = CliRunner().invoke(app, ["report", str(folder), "--data", str(world.folder.root), "--json"])
    assert found.exit_code == 0, found.output
    assert sorted(Path(one).name for one in json.loads(found.output)) == [
        "report.html",
        "table.csv",
        "table.md",
        "table.tex",
    ]
    assert all((folder / name).is_file() for name in ("report.html", "table.csv", "table.md", "table.tex"))


def test_a_folder_that_cannot_be_written_is_told(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another folder"):
        write_report(world.db, Asked(), tmp_path / "file" / "below", BENCHMARKS)


def judgments(path: Path, *models: str) -> Path:
    rows = [
        {"question_id": question, "model": model, "turn": turn, "score": 5 + turn if question < 83 else -1}
        for model in models
        for question in (81, 82, 83)
        for turn in (1, 2)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def imported(world: World, file: Path, *more: str) -> Any:
    return CliRunner().invoke(
        app, ["import-grades", "mt-bench", str(file), "--data", str(world.folder.root), *more]
    )


def test_official_judgments_come_into_the_table_once(world: World, tmp_path: Path) -> None:
    file = judgments(tmp_path / "gpt-4_single.jsonl", "vicuna", "llava")
    found = imported(world, file)
    assert found.exit_code == 0, found.output
    assert "vicuna on MT-Bench, 6 items, 2 without a grade" in found.output
    assert imported(world, file, "--model", "vicuna").exit_code == 0
    assert len(list_evaluations(world.db)) == 2
    shown = read_table(world.db, Asked())
    assert [line.label for line in shown.lines] == ["vicuna", "llava"]
    cell = shown.lines[0].cells["mt-bench"]
    assert cell.figure is not None
    assert (cell.figure.value, cell.figure.items, cell.figure.failures) == (6.5, 4, 2)
    assert read_table(world.db, Asked("selection")).lines == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["import-grades", "quiz", "x"], "benchmark = 'quiz': give pope"),
        (["import-grades", "mt-bench", "x", "--purpose", "both"], "purpose = 'both': give reporting or selection"),
        (["import-grades", "mt-bench", "nowhere.jsonl"], "nowhere.jsonl is not there"),
        (["report", "out", "--purpose", "both"], "purpose = 'both': give reporting or selection"),
    ],
)
def test_bad_arguments_are_told(world: World, tmp_path: Path, arguments: list[str], told: str) -> None:
    found = CliRunner().invoke(app, [*arguments, "--data", str(world.folder.root)])
    assert found.exit_code == 1
    assert told in str(found.exception)
    assert list_evaluations(world.db) == []
