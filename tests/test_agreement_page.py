"""The Agreement page: what an address shows, the empty states, the line beside a sample; all escaped."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import USER, World
from storage.records import METRICS, Candidate, Judgement, Rater, Score
from storage.scores import add_judgement, ensure_rater, set_score
from test_samples_page import EVIL, Shape
from workbench import agreement_charts as charts
from workbench import agreement_desk, agreement_views
from workbench.agreement import PEOPLE
from workbench.agreement_desk import AgreementDesk, Side, View
from workbench.agreement_stats import Estimate
from workbench.charts import BOTTOM, HEIGHT, WIDTH
from workbench.context import Context
from workbench.pages import agreement as page

TOGETHER = "all answers together"
LISTS = TOGETHER + ", with checklist"


@pytest.fixture
def desk(context: Context) -> AgreementDesk:
    return AgreementDesk(context)


def judge(
    world: World,
    sample: int,
    answers: list[Candidate],
    values: list[int],
    mode: str = TOGETHER,
    name: str = "gemini",
) -> str:
    """A judge's scores, all five metrics alike; returns its name in addresses."""
    rater = ensure_rater(world.db, "judge", name, "1", mode)
    scores = [
        {"candidate_id": answer.id, **dict.fromkeys(METRICS, value), "position": place}
        for place, (answer, value) in enumerate(zip(answers, values, strict=True))
    ]
    add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state="ok", scores=scores)
    return str(rater)


def person(world: World, answers: list[Candidate], values: list[int], user: str = USER) -> str:
    for answer, value in zip(answers, values, strict=True):
        for metric in METRICS:
            set_score(world.db, user, answer.id, metric, value)
    return str(ensure_rater(world.db, "person", user))


def fill(world: World, samples: int = 6) -> tuple[str, str]:
    """Samples of two answers, scored by a judge and two people; returns (judge, first person)."""
    draws = random.Random(1)
    sides = ("", "")
    for number in range(1, samples + 1):
        sample = world.sample(number)
        answers = world.candidates(sample, [f"a {'long ' * number}answer", "short"])
        truth = [draws.randrange(5), draws.randrange(5)]
        noisy = [min(4, max(0, value + draws.choice((-1, 0, 0, 1)))) for value in truth]
        sides = judge(world, sample, answers, noisy), person(world, answers, truth)
        person(world, answers, [value if number % 2 else 2 for value in truth], "bob")
    return sides


def html(desk: AgreementDesk, search: str = "") -> str:
    return page.show(desk, search)[1]


# --- the address ---


@pytest.mark.parametrize(
    ("search", "asked"),
    [
        ("", page.Address()),
        ("?first=3&second=people&metric=verbosity", page.Address("3", PEOPLE, "verbosity")),
        ("?first=people&second=people&metric=quality", page.Address(PEOPLE, PEOPLE, "quality")),
        ("?first=-1&second=<b>&metric=beauty", page.Address()),
        ("?first=99999999999999999999&second=07", page.Address("", "7")),
    ],
)
def test_the_address_is_read(search: str, asked: page.Address) -> None:
    assert page.read_address(search) == asked


def test_the_address_says_who_is_compared(world: World, desk: AgreementDesk) -> None:
    first, second = fill(world)

    def shown(search: str) -> tuple[str, str, str, str]:
        view, _ = page.show(desk, search)
        one, other = view.compared
        return one.key, other.key, view.metric, view.obstacle

    assert shown("") == (first, PEOPLE, "quality", "")
    assert shown(f"?first={first}&second={second}&metric=coherence") == (first, second, "coherence", "")
    assert shown(f"?first={second}") == (second, PEOPLE, "quality", "")
    assert shown(f"?second={first}") == (PEOPLE, first, "quality", "")
    assert shown("?first=77&second=78") == (first, PEOPLE, "quality", "")  # nobody of these numbers
    assert shown(f"?first={first}&second={first}")[3] == "same"


def test_the_dropdowns_offer_judges_then_people(world: World, desk: AgreementDesk) -> None:
    first, second = fill(world)
    view, _ = page.show(desk, "")
    offered = page.choices(view.sides)
    assert offered[:2] == [("gemini · version 1 · all answers together", first), ("All people (2)", PEOPLE)]
    assert offered[2] == ("ada (person)", second)
    assert offered[3][0] == "bob (person)"


def test_views_are_links_of_this_page(world: World, desk: AgreementDesk) -> None:
    """Gradio's base is the start page: a bare query would lead there."""
    first, _ = fill(world)
    drawn = html(desk)
    assert f'href="/agreement?first={first}&amp;second=people&amp;metric=coherence"' in drawn
    assert 'href="?' not in drawn


# --- what is shown ---


def test_the_table_holds_the_statistics_of_every_metric(world: World, desk: AgreementDesk) -> None:
    fill(world)
    view, drawn = page.show(desk, "")
    shape = Shape(drawn)
    found = view.found["helpfulness"]
    assert (found.n, found.samples) == (24, 6)
    assert found.kappa.value is not None
    assert f"{found.kappa.value:.2f}".replace("-", "−") in shape.text
    for heading in ("Weighted κ", "Krippendorff’s α", "Spearman’s ρ", "Within one", "The same"):
        assert heading in shape.text
    for measure in (*METRICS, "quality"):
        assert measure.capitalize() in shape.text
    assert shape.text.count("person / person") == 7  # a row each, and once in the words below
    assert "Samples that both scored: 6." in shape.text  # so few that intervals mislead
    assert shape.all(**{"class": "pb-table"})
    tables = [tag for tag, _ in shape.tags if tag == "table"]
    assert len(tables) == [tag for tag, _ in shape.tags].count("caption") == 4


def test_people_among_themselves_have_one_row_a_metric(world: World, desk: AgreementDesk) -> None:
    fill(world)
    view, drawn = page.show(desk, "?first=people&second=people")
    assert view.among_people is None
    assert "People among themselves" in drawn
    assert drawn.count("person / person") == 6
    assert view.found["quality"].n == 12
    assert not view.letters


def test_one_person_is_no_mark_to_hold_a_judge_to(world: World, desk: AgreementDesk) -> None:
    sample = world.sample()
    answers = world.candidates(sample, ["a", "b"])
    judge(world, sample, answers, [1, 4])
    person(world, answers, [1, 3])
    view, drawn = page.show(desk, "")
    assert view.among_people is None
    assert "person / person" not in drawn
    assert "nan" not in drawn.lower().replace("coherenc", "")


def test_what_is_not_defined_is_a_dash_that_says_why(world: World, desk: AgreementDesk) -> None:
    sample = world.sample()
    answers = world.candidates(sample, ["a", "b"])
    judge(world, sample, answers, [2, 2])
    person(world, answers, [2, 2])
    shape = Shape(html(desk))
    dashes = shape.all(**{"class": "pb-undefined"})
    assert len(dashes) >= 6 * 3
    assert all(dash["title"] and dash["title"] == dash["aria-label"] for dash in dashes)
    assert "nan" not in html(desk).lower()


def test_the_confusion_matrix_is_drawn(world: World, desk: AgreementDesk) -> None:
    sample = world.sample()
    answers = world.candidates(sample, ["a", "b", "c"])
    first = judge(world, sample, answers, [4, 4, 1])
    second = person(world, answers, [4, 3, 1])
    view, drawn = page.show(desk, f"?first={first}&second={second}&metric=helpfulness")
    assert view.confusion is not None
    expected = np.zeros((5, 5), int)
    expected[4, 4] = expected[4, 3] = expected[1, 1] = 1
    assert (view.confusion == expected).all()
    cells = [found for tag, found in Shape(drawn).tags if tag == "td" and "--share" in str(found.get("style"))]
    assert len(cells) == 25
    assert [number for number, cell in enumerate(cells) if cell["style"] == "--share: 65%"] == [6, 23, 24]
    sides = [found for found in Shape(drawn).tags if found[0] == "th" and found[1].get("class") == "side"]
    assert [found["scope"] for _, found in sides] == ["colgroup", "rowgroup"]
    assert drawn.index('colspan="5">ada</th>') > 0
    assert drawn.count("--share") < html(desk, f"?first={first}&second={second}").count("--share") == 169


def test_the_pictures_tell_what_they_show(world: World, desk: AgreementDesk) -> None:
    fill(world)
    shape = Shape(html(desk, "?metric=helpfulness"))
    pictures = [found for tag, found in shape.tags if tag == "svg" and found.get("role") == "img"]
    labels = [str(found["aria-label"]) for found in pictures]
    assert labels[0].startswith("Mean helpfulness by letter. gemini: A ")
    assert labels[1].startswith("Mean helpfulness by length of the answer. gemini: ")
    assert "all people: " in labels[1]
    assert "ρ" in labels[1]


def test_two_judges_share_a_picture_and_are_held_against_people(world: World, desk: AgreementDesk) -> None:
    keys = ("", "")
    for number in range(1, 5):
        sample = world.sample(number)
        answers = world.candidates(sample, ["a", "b", "c"])
        values = [number % 5, (number + 1) % 5, 0]
        keys = judge(world, sample, answers, [4, 2, number % 3]), judge(world, sample, answers, values, LISTS)
        person(world, answers, values)
    view, drawn = page.show(desk, f"?first={keys[0]}&second={keys[1]}")
    assert [len(line.means) for line in view.letters] == [3, 3]
    assert drawn.count("Mean quality by letter</figcaption>") == 1
    assert "gemini, without checklist / gemini, with checklist" in drawn
    # Side by side in the table, and once more on the same answers.
    assert [row.judge.checklist for row in view.judges] == [False, True]
    assert [entry.checklists for entry in view.contrasts] == [True]
    assert "without, then with checklists" in drawn
    # The other way round is the same contrast, not a second one.
    assert len(page.show(desk, f"?first={keys[1]}&second={keys[0]}")[0].contrasts) == 1


def test_any_two_judges_are_held_against_people_on_the_same_answers(world: World, desk: AgreementDesk) -> None:
    sample = world.sample()
    answers = world.candidates(sample, ["a", "b", "c"])
    one, other = (judge(world, sample, answers, [4, 2, 1], name=name) for name in ("gemini", "other"))
    person(world, answers, [4, 2, 0])
    view, drawn = page.show(desk, f"?first={one}&second={other}")
    assert [(entry.one.name, entry.other.name, entry.n) for entry in view.contrasts] == [("gemini", "other", 3)]
    assert "gemini · version 1 · all answers together, then other" in drawn
    assert page.show(desk, "")[0].contrasts == ()


def test_a_judge_that_read_each_answer_alone_has_no_letters(world: World, desk: AgreementDesk) -> None:
    sample = world.sample()
    answers = world.judged(sample, [12, 2])  # by a judge that kept no order
    person(world, answers, [4, 1])
    view, drawn = page.show(desk, "")
    assert view.letters == ()
    assert "Score by letter: the judge read each answer alone" in drawn


def test_the_largest_disagreements_are_links(world: World, desk: AgreementDesk) -> None:
    first, second = fill(world)
    sample = world.sample(90, question="which one?")
    answers = world.candidates(sample, ["word " * 100, ""])
    judge(world, sample, answers, [4, 4])
    person(world, answers, [0, 1])
    view, drawn = page.show(desk, f"?first={first}&second={second}&metric=verbosity")
    furthest = view.disagreements[0]
    assert (furthest.quality, furthest.metric) == ((12, 0), (4, 0))
    assert (furthest.first.name, furthest.second.name) == ("gemini", "ada")
    assert f'<a href="/?sample={sample}">#{sample}</a>' in drawn
    assert "which one?" in drawn
    assert "word " * 100 not in drawn
    assert "(an empty answer)" in drawn


# --- where nothing is ---


def test_without_scores_the_way_to_both_is_shown(world: World, desk: AgreementDesk) -> None:
    for number in range(2):
        shape = Shape(html(desk))
        assert "No scores yet" in shape.text
        assert shape.all(href="/")
        assert shape.all(href="/jobs?kind=judge")
        world.candidates(world.sample(number), ["a"])  # answers alone change nothing


def test_a_judge_alone(world: World, desk: AgreementDesk) -> None:
    sample = world.sample()
    answers = world.candidates(sample, ["a", "b"])
    first = judge(world, sample, answers, [1, 4])
    view, drawn = page.show(desk, "")
    assert view.obstacle == "no people"
    assert 'href="/"' in drawn
    second = judge(world, sample, answers, [1, 3], LISTS)
    view, drawn = page.show(desk, "")  # two judges may be compared, and the way to more is still shown
    assert (view.obstacle, [side.key for side in view.compared]) == ("", [first, second])
    assert "No person has scored an answer yet" in drawn
    assert not view.judges
    assert not view.contrasts


def test_people_alone(world: World, desk: AgreementDesk) -> None:
    answers = world.candidates(world.sample(), ["a", "b"])
    person(world, answers, [1, 3])
    view, drawn = page.show(desk, "")
    assert view.obstacle == "no judge"
    assert 'href="/jobs?kind=judge"' in drawn
    assert page.show(desk, "?first=people&second=people")[0].obstacle == "alone"
    person(world, answers, [1, 4], "bob")
    view, drawn = page.show(desk, "")
    assert view.obstacle == ""
    assert [side.key for side in view.compared] == [PEOPLE, PEOPLE]
    assert 'href="/jobs?kind=judge"' in drawn


def test_no_answer_in_common(world: World, desk: AgreementDesk) -> None:
    one, other = world.sample(1), world.sample(2)
    judge(world, one, world.candidates(one, ["a", "b"]), [1, 4])
    person(world, world.candidates(other, ["c", "d"]), [2, 3])
    view, drawn = page.show(desk, "")
    assert view.obstacle == "no overlap"
    assert "have not scored one answer in common" in drawn
    assert 'href="/?state=judged"' in drawn
    assert "Each on the answers that it scored" in drawn  # their biases are shown all the same
    assert view.letters
    assert view.disagreements == ()


# --- all texts are escaped ---


def test_the_page_escapes_its_texts(world: World, desk: AgreementDesk) -> None:
    sample = world.sample(1, question=EVIL)
    answers = world.candidates(sample, [EVIL, EVIL + "!"])
    judge(world, sample, answers, [4, 4], EVIL + LISTS, EVIL)
    judge(world, sample, answers, [4, 3], EVIL + TOGETHER, EVIL)
    person(world, answers, [0, 1], EVIL)
    keys = [side.key for side in page.show(desk, "")[0].sides]
    for first in keys:
        for second in keys:
            shape = Shape(html(desk, f"?first={first}&second={second}"))
            assert "script" not in {tag for tag, _ in shape.tags}
            assert "img" not in {tag for tag, _ in shape.tags}
            assert all(name[:2] != "on" for _, attributes in shape.tags for name in attributes)
            assert EVIL in shape.text


# --- the memory ---


def test_what_was_worked_out_is_kept_until_scores_change(
    world: World, desk: AgreementDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world)
    calls: list[Any] = []
    real = agreement_desk.agreement_table

    def counted(*args: Any) -> Any:
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(agreement_desk, "agreement_table", counted)
    before = desk.view()
    assert len(calls) == 2  # the judge against people, people among themselves
    desk.view(metric="verbosity")
    assert desk.view().found == before.found
    assert len(calls) == 2
    candidate = world.db.execute("SELECT max(candidate_id) FROM scores").fetchone()[0]
    set_score(world.db, USER, candidate, "verbosity", None)
    after = desk.view()
    assert len(calls) == 4
    assert after.found["verbosity"].n == before.found["verbosity"].n - 1
    assert after.found["helpfulness"] == before.found["helpfulness"]


def test_the_memory_does_not_grow(world: World, desk: AgreementDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_desk, "KEPT", 4)
    fill(world)
    shown = [desk.view(metric=metric) for metric in METRICS]
    assert len(desk._memory) <= 4
    assert desk.view(metric=METRICS[0]).found == shown[0].found


def test_several_threads_may_ask(world: World, desk: AgreementDesk) -> None:
    fill(world)
    found: list[View] = []
    threads = [threading.Thread(target=lambda: found.append(desk.view())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(view.found == found[0].found for view in found)


@pytest.mark.slow
def test_the_web_process_starts_without_the_libraries() -> None:
    code = (
        "import sys, workbench.ui; "
        "print(sorted({'scipy', 'sklearn', 'krippendorff'} & {name.split('.')[0] for name in sys.modules}))"
    )
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.stdout.strip().endswith("[]"), result.stdout + result.stderr


# --- charts ---


def test_marks_stay_within_the_picture() -> None:
    means = [(3, Estimate(0.0, 0.0, 0.1)), (0, Estimate(None, why="No scores.")), (9, Estimate(4.0, 3.5, 4.0))]
    drawn = Shape(
        charts.interval_chart(
            "t", ["A", "B", "C"], [charts.Band("x", means)] * 2, x_label="l", highest=4, reference=2.0
        )
    )
    circles = [found for tag, found in drawn.tags if tag == "circle"][:2]
    assert len([found for tag, found in drawn.tags if tag == "circle"]) == 3  # two means, one in the legend
    for found in circles:
        assert 0 <= float(str(found["cx"])) <= WIDTH
        assert 0 <= float(str(found["cy"])) <= HEIGHT - BOTTOM
    assert len(drawn.all(**{"class": "mean"})) == 1
    assert charts.interval_chart("t", ["A"], [charts.Band("x", [means[1]])], x_label="l", highest=4) == ""


def test_equal_means_are_drawn_level() -> None:
    flat = [charts.Band("x", [(3, Estimate(2.0)), (3, Estimate(2.0))])]
    drawn = Shape(charts.interval_chart("t", ["A", "B"], flat, x_label="l", highest=4))
    assert len({found["cy"] for tag, found in drawn.tags if tag == "circle" and found["r"] == "4"}) == 2


def test_numbers_as_people_read_them() -> None:
    assert charts.number(-0.5) == "−0.50"
    assert charts.number(-0.001) == "0.00"
    assert charts.spread(Estimate(0.1, -0.05, 0.2)) == "−0.05 to 0.20"
    assert charts.spread(Estimate(0.1)) == ""


def test_sides_of_one_name_are_told_apart() -> None:
    one = Side("1", "g", judge=True, version="version 1", mode=TOGETHER)
    assert agreement_views.names(one, Side("2", "h", judge=True)) == ("g", "h")
    lists = Side("2", "g", judge=True, version="version 1", mode=TOGETHER, checklist=True)
    assert agreement_views.names(one, lists) == ("g, without checklist", "g, with checklist")
    newer = Side("3", "g", judge=True, version="version 2", mode="each answer alone")
    assert agreement_views.names(one, newer) == (
        "g, version 1, all answers together",
        "g, version 2, each answer alone",
    )
    for other in (one, Side("5", "g", judge=True)):
        assert agreement_views.names(Side("4", "g", judge=False), other) == ("g (person)", "g (judge)")


# --- beside the sample ---


def given(number: int, rater: Rater, *scores: Score, state: Any = "ok") -> Judgement:
    return Judgement(number, rater, 1, None, state, "", "", 0, 0, 0.0, "", scores)


ADA, BOB = Rater(1, "person", "ada", "", ""), Rater(2, "person", "bob", "", "")
GEMINI = Rater(3, "judge", "gemini", "1", TOGETHER)


def test_the_line_beside_a_sample() -> None:
    line = agreement_views.sample_agreement(
        [
            given(1, GEMINI, Score(7, 0, 0, 0, 0, 0)),  # judged again since
            given(2, GEMINI, Score(7, 4, 3, 2, 1, 0), Score(8, 1, 1, 1, 1, 1)),
            given(3, GEMINI, state="blocked"),
            given(4, ADA, Score(7, 4, 3, 0), Score(9, 4)),
            given(5, BOB, Score(9, 1)),
        ]
    )
    shape = Shape(line)
    assert shape.text == "gemini and ada: 2 of 3 scores the same, mean difference 0.67"
    assert shape.all(href="/agreement?first=3&second=1")


def test_no_line_where_nothing_is_shared() -> None:
    assert agreement_views.sample_agreement([]) == ""
    assert agreement_views.sample_agreement([given(1, GEMINI, Score(7, 4)), given(2, ADA, Score(8, 4))]) == ""
    assert agreement_views.sample_agreement([given(1, ADA, Score(7, 4)), given(2, BOB, Score(7, 4))]) == ""


def test_the_line_escapes_names_and_tells_judges_apart() -> None:
    evil, other = Rater(3, "judge", EVIL, "1", TOGETHER), Rater(4, "judge", EVIL, "1", EVIL)
    person = Rater(5, "person", EVIL, "", "")
    shape = Shape(
        agreement_views.sample_agreement(
            [given(1, evil, Score(7, 4)), given(2, other, Score(7, 4)), given(3, person, Score(7, 4))]
        )
    )
    assert {tag for tag, _ in shape.tags} == {"p", "a"}
    assert f"{EVIL} (1, {TOGETHER}) and {EVIL}: 1 of 1" in shape.text
    assert f"{EVIL} (1, {EVIL}) and" in shape.text
