"""The table of prices and limits that people edit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.judges.terms import DEFAULT, FILE, ModelTerms, Terms, parse_terms, read_terms, write_terms
from storage.errors import UserError


def row(model: str, **changes: Any) -> dict[str, Any]:
    values = {
        "model": model,
        "input_price": 1.25,
        "output_price": 10.0,
        "requests_a_minute": 150,
        "tokens_a_minute": 1_000_000,
        "requests_a_day": 1000,
    }
    return values | changes


def parse(*rows: dict[str, Any], **changes: Any) -> Terms:
    return parse_terms({"models": list(rows)} | changes)


def test_money_is_dollars_for_a_million_tokens() -> None:
    terms = ModelTerms(**row("m"))
    assert terms.money(1_000_000, 0) == pytest.approx(1.25)
    assert terms.money(0, 100_000) == pytest.approx(1.0)
    assert terms.money(0, 0) == 0.0


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))
def test_more_tokens_never_cost_less(one: int, other: int, more: int) -> None:
    terms = ModelTerms(**row("m"))
    assert terms.money(one, other) <= terms.money(one + more, other)
    assert terms.money(one, other) <= terms.money(one, other + more)


def test_a_model_has_its_own_row_before_one_with_a_star() -> None:
    terms = parse(row("gemini-*"), row("gemini-2.5-*"), row("gemini-2.5-pro"), row("*"))
    for model, expected in {
        "gemini-2.5-pro": "gemini-2.5-pro",
        "gemini-2.5-pro-preview": "gemini-2.5-*",
        "gemini-3-pro": "gemini-*",
        "llava": "*",
    }.items():
        assert terms.of(model).model == expected


def test_a_star_stands_at_the_end_alone() -> None:
    terms = parse(row("gemini-2.5-pro"), row("a*b"))
    for model in ("gemini-2.5-pro-preview", "a1b", "gemini"):
        with pytest.raises(UserError, match=f"model = '{model}' has no row.*Judges page"):
            terms.of(model)


def test_stars_that_are_doubled_or_named_stand_for_themselves() -> None:
    terms = parse(row("a**"), row("a*"))
    assert terms.of("a*").model == "a*"
    assert terms.of("a*x").model == "a**", "the longer one: it wants a star in the name"
    assert terms.of("ax").model == "a*"


def test_the_default_is_a_table_of_its_own_kind() -> None:
    assert parse_terms(json.loads(DEFAULT.model_dump_json())) == DEFAULT
    ZoneInfo(DEFAULT.day_begins_in)
    assert DEFAULT.of("gemini-2.5-flash").output_price > 0


def test_a_folder_without_a_table_has_the_default(tmp_path: Path) -> None:
    assert read_terms(tmp_path) is DEFAULT
    assert read_terms(tmp_path / "not there") is DEFAULT


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    terms = parse(row("gemini-*", tokens_a_day=5), money_a_day=3.5, day_begins_in="Europe/Berlin")
    write_terms(tmp_path / "judges", terms)
    assert read_terms(tmp_path / "judges") == terms
    assert [path.name for path in (tmp_path / "judges").iterdir()] == [FILE], "no draft stays"


@pytest.mark.parametrize("content", ["", "{", "models", '{"models": ['])
def test_a_torn_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=r"terms\.json is not whole JSON .* remove it for the defaults"):
        read_terms(tmp_path)


def test_a_file_of_bytes_that_are_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"terms\.json is not whole JSON"):
        read_terms(tmp_path)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ([], "table"),
        (None, "table"),
        ({}, "models"),
        ({"models": [], "prices": 1}, "prices"),
        ({"models": [row("m"), row("m")]}, "'m' stands there twice"),
        ({"models": [row("")]}, "model"),
        ({"models": [row("m", input_price=-1)]}, "input_price"),
        ({"models": [row("m", output_price=float("nan"))]}, "output_price"),
        ({"models": [row("m", output_price=float("inf"))]}, "output_price"),
        ({"models": [row("m", requests_a_minute=0)]}, "requests_a_minute"),
        ({"models": [row("m", requests_a_minute=1.5)]}, "requests_a_minute"),
        ({"models": [row("m", requests_a_day="many")]}, "requests_a_day"),
        ({"models": [row("m", tokens_a_day=0)]}, "tokens_a_day"),
        ({"models": [], "money_a_day": 0}, "money_a_day"),
        ({"models": [], "money_a_day": float("nan")}, "money_a_day"),
        ({"models": [], "money_a_day": float("inf")}, "money_a_day"),
        ({"models": [], "day_begins_in": "Mars/Olympus"}, "give a time zone as Europe/Berlin or UTC"),
        ({"models": [], "day_begins_in": "../../etc/passwd"}, "give a time zone"),
        ({"models": [], "day_begins_in": ""}, "give a time zone"),
        ({"models": [], "day_begins_in": "Europe"}, "give a time zone"),
    ],
)
def test_what_cannot_be_used_is_named(raw: Any, named: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_terms(raw)
    assert named in str(caught.value)
    assert str(caught.value).startswith("The table of prices and limits cannot be used")
