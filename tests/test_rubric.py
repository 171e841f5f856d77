"""The rubric's file: what is read, what is refused, and that a version never changes."""

from __future__ import annotations

import hashlib
import os
import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.rubric import (
    BUILT_IN,
    LONGEST_FILE,
    Rubric,
    list_rubrics,
    load_rubric,
    make_rubric,
    next_version,
    parse_rubric,
    rubric_yaml,
    save_rubric,
    unreadable_rubrics,
)
from storage.errors import Conflict, NotFound, UserError
from storage.records import METRICS


def values(version: str = "mine-1") -> dict[str, Any]:
    metric = {"definition": "What it means.", "anchors": {value: f"stands for {value}" for value in range(5)}}
    return {
        "version": version,
        "title": "A rubric",
        "guide": "Look first.\nThen score.",
        "metrics": {name: deepcopy(metric) for name in METRICS},
    }


def test_plumb_1_comes_with_the_five_metrics_and_reads_back_from_its_own_text() -> None:
    rubric = load_rubric("plumb-1", Path("/nowhere"))
    assert tuple(rubric.metrics) == METRICS
    assert all(tuple(metric.anchors) == (0, 1, 2, 3, 4) for metric in rubric.metrics.values())
    assert parse_rubric(rubric_yaml(rubric), "it") == rubric
    assert rubric_yaml(rubric).count("|-") + rubric_yaml(rubric).count(">-") > 5  # for people to read


def test_plumb_1_is_as_it_was_when_scores_were_first_stored_under_its_name() -> None:
    """Another wording is another judge: leave this one and write plumb-2."""
    text = load_rubric("plumb-1", Path("/nowhere")).model_dump_json()
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "151e6173ce7e4df7"


def change(path: str, value: Any = None, remove: bool = False) -> dict[str, Any]:
    """The values of a good rubric with one of them replaced or removed; `path` is written a/b/0."""
    changed = values()
    place: Any = changed
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in way:
        place = place[part]
    if remove:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (change("metrics/verbosity", remove=True), ["verbosity", "missing", "add"]),
        (change("metrics/charm", {"definition": "x", "anchors": {}}), ["'charm'", "remove"]),
        (change("metrics", []), ["metrics", "helpfulness"]),
        (change("metrics/coherence", "clear"), ["coherence"]),
        (change("metrics/coherence/anchors/3", remove=True), ["coherence", "anchor 3 is missing", "give"]),
        (change("metrics/coherence/anchors/5", "best"), ["coherence", "anchor 5", "keep 0, 1, 2, 3 and 4"]),
        (change("metrics/coherence/anchors", {"0": "a", 1: "b", 2: "c", 3: "d", 4: "e"}), ["anchor '0'"]),
        (change("metrics/coherence/anchors", {False: "a", True: "b", 2: "c", 3: "d", 4: "e"}), ["anchor False"]),
        (change("metrics/coherence/anchors", {0: "a", 1: "b", 2.0: "c", 3: "d", 4: "e"}), ["anchor 2.0"]),
        (change("metrics/coherence/anchors", ["a", "b", "c", "d", "e"]), ["coherence", "each of 0, 1, 2"]),
        (change("metrics/coherence/anchors/3", "  \n "), ["coherence.anchors.3"]),
        (change("metrics/coherence/definition", 7), ["coherence.definition", "7"]),
        (change("metrics/coherence/weight", 7), ["weight", "remove"]),
        (change("guide", ""), ["guide"]),
        (change("guide", "x" * 20_001), ["guide"]),
        (change("title", remove=True), ["title is missing"]),
        (change("author", "ada"), ["author", "remove"]),
        (change("version", "Plumb 2"), ["version", "'Plumb 2'", "small letters"]),
        (change("version", "../plumb"), ["version", "'../plumb'"]),
        (change("version", "a\n"), ["version"]),
        (change("version", "x" * 41), ["version", "40"]),
        (change("version", 2), ["version", "2"]),
    ],
)
def test_a_rubric_that_is_none_is_refused_with_field_and_remedy(broken: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        make_rubric(broken, "the rubric mine-1")
    assert str(refused.value).startswith("The rubric mine-1 ")
    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["not a rubric", "metrics"]),
        ("- a\n- b", ["not a rubric"]),
        ("a: [", ["not whole YAML", "line 1"]),
        ("a: 1\nb: 'x", ["not whole YAML", "line 2"]),
        ("a: \x00", ["not whole YAML"]),
        ("version: !!python/object/apply:os.system [ls]", ["line 1", "tag", "remove"]),
        ("version: !!str 3", ["tag"]),
        ("version: !mine x", ["tag"]),
        ("a: &x [1]\nb: 2", ["line 1", "quotes"]),
        ("a: *x", ["line 1", "quotes"]),
        ("version: x\nversion: y", ["line 2", "'version'", "twice"]),
        ("metrics:\n  x: {1: a, 0x1: b}", ["line 2", "1 stands there twice"]),
        ("? [a]\n: b", ["line 1"]),
        ("version: 2024-99-99", ["correct"]),
        ("x" * (LONGEST_FILE + 1), ["200,001", "Shorten"]),
        ("[" * 150_000, ["levels"]),
        ("- " * 90_000, ["levels"]),
    ],
)
def test_yaml_that_cannot_be_trusted_is_refused_at_once(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse_rubric(text, "the upload")
    assert str(refused.value).startswith("The upload")
    assert [word for word in words if word not in str(refused.value)] == []


texts = st.text(min_size=1, max_size=300).filter(lambda text: bool(text.strip()))


@settings(max_examples=60, deadline=None)
@given(title=st.text(min_size=1, max_size=100).filter(str.strip), guide=texts, definition=texts, anchor=texts)
def test_any_rubric_comes_back_from_its_yaml(title: str, guide: str, definition: str, anchor: str) -> None:
    given_values = values() | {"title": title, "guide": guide}
    given_values["metrics"]["correctness"]["definition"] = definition
    given_values["metrics"]["correctness"]["anchors"][4] = anchor
    try:
        rubric = make_rubric(given_values)
    except UserError:  # half characters, or nothing left without white space
        return
    assert parse_rubric(rubric_yaml(rubric), "it") == rubric
    assert Rubric.model_validate(rubric.model_dump()) == rubric


def test_metrics_stand_in_their_order_whatever_the_order_of_the_file() -> None:
    shuffled = values()
    shuffled["metrics"] = dict(reversed(shuffled["metrics"].items()))
    shuffled["metrics"]["coherence"]["anchors"] = {4: "e", 0: "a", 2: "c", 1: "b", 3: "d"}
    rubric = make_rubric(shuffled)
    assert tuple(rubric.metrics) == METRICS
    assert tuple(rubric.metrics["coherence"].anchors) == (0, 1, 2, 3, 4)


def test_a_saved_rubric_is_found_and_never_written_again(tmp_path: Path) -> None:
    rubric = make_rubric(values("plumb-2"))
    path = save_rubric(tmp_path, rubric)
    assert path == tmp_path / "rubrics" / "plumb-2.yaml"
    assert load_rubric("plumb-2", tmp_path) == rubric
    before = path.read_bytes()
    with pytest.raises(Conflict, match=r"'plumb-2' is taken.*'plumb-3'"):
        save_rubric(tmp_path, make_rubric(values("plumb-2") | {"title": "Another"}))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["plumb-2.yaml"]  # no draft is left behind


def test_a_built_in_rubric_cannot_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="plumb-1"):
        save_rubric(tmp_path, make_rubric(values("plumb-1")))
    assert not (tmp_path / "rubrics" / "plumb-1.yaml").exists()


def test_of_two_that_save_at_once_one_is_told(tmp_path: Path) -> None:
    outcomes: list[str] = []
    together = threading.Barrier(8)

    def save(number: int) -> None:
        rubric = make_rubric(values("plumb-2") | {"title": f"by {number}"})
        together.wait()
        try:
            save_rubric(tmp_path, rubric)
            outcomes.append(rubric.title)
        except Conflict:
            outcomes.append("taken")

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[1:] == ["taken"] * 7
    assert load_rubric("plumb-2", tmp_path).title in outcomes


def test_the_list_has_built_in_ones_first_and_the_newest_last(tmp_path: Path) -> None:
    built_in = [file.stem for file in BUILT_IN.glob("*.yaml")]
    for age, version in enumerate(["zeta", "alpha", "plumb-10", "plumb-9"]):
        path = save_rubric(tmp_path, make_rubric(values(version)))
        os.utime(path, (1_000 + age, 1_000 + age))
    assert [one.version for one in list_rubrics(tmp_path)] == [*built_in, "zeta", "alpha", "plumb-10", "plumb-9"]


def test_a_spoiled_file_hides_no_other_and_says_why(tmp_path: Path) -> None:
    good = save_rubric(tmp_path, make_rubric(values("good")))
    good.with_name("bad.yaml").write_text("title: [", encoding="utf-8")
    good.with_name("renamed.yaml").write_text(good.read_text(encoding="utf-8"), encoding="utf-8")
    good.with_name("binary.yaml").write_bytes(b"\xff\xfe")
    good.with_name("Not A Version.yaml").write_text("", encoding="utf-8")
    assert [one.version for one in list_rubrics(tmp_path)][-1:] == ["good"]
    spoiled = unreadable_rubrics(tmp_path)
    assert sorted(spoiled) == ["bad", "binary", "renamed"]
    assert "line 1" in spoiled["bad"]
    assert "'good'" in spoiled["renamed"]
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_rubric("bad", tmp_path)


@pytest.mark.parametrize("version", ["", "../../etc/passwd", "/etc/passwd", "..", "A", "a/b", "a\x00", "x" * 9999])
def test_no_version_leads_out_of_its_folder(tmp_path: Path, version: str) -> None:
    with pytest.raises(UserError, match="no version"):
        load_rubric(version, tmp_path)
    with pytest.raises(UserError, match="no version"):
        next_version(tmp_path, version)


def test_an_unknown_version_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"'plumb-7'.*plumb-1"):
        load_rubric("plumb-7", tmp_path)


@pytest.mark.parametrize(
    ("base", "there", "expected"),
    [
        ("plumb-1", [], "plumb-2"),
        ("plumb-1", ["plumb-2", "plumb-10"], "plumb-11"),
        ("mine", [], "mine-2"),
        ("mine", ["mine", "mine-2"], "mine-3"),
        ("v1.9", [], "v1.10"),
        ("9" * 40, [], "9" * 30 + "1000000000"),
        ("x" * 40, [], "x" * 39 + "2"),
        ("x" * 40, ["x" * 39 + "2"], "x" * 39 + "3"),
    ],
)
def test_the_next_version_is_free_and_above_all_of_its_kind(
    tmp_path: Path, base: str, there: list[str], expected: str
) -> None:
    for version in there:
        save_rubric(tmp_path, make_rubric(values(version)))
    assert next_version(tmp_path, base) == expected
    save_rubric(tmp_path, make_rubric(values(expected)))
