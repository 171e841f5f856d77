"""Forms from pydantic models: every field gets a control, and what the widgets hold comes back as values."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr
import pytest
from pydantic import BaseModel, Field

from jobs.configs import KINDS, TRAININGS, parse_config
from storage.errors import UserError
from workbench.forms import Control, build_form, collect, controls_of, flatten, merged, shown


class Inner(BaseModel):
    ids: tuple[int, ...] | None = Field(None, title="Ids")
    limit: int | None = Field(None, ge=1, le=1_000_000, title="At most", description="in their order")


class Outer(BaseModel):
    name: str = Field(min_length=1, title="Name")
    count: int = Field(4, ge=1, le=26)
    rate: float = Field(0.5, gt=0.0, lt=1.0, title="Rate", description="a share")
    way: Literal["this", "that"] = "this"
    wide: bool = True
    inner: Inner = Inner()


def controls() -> dict[str, Control]:
    return {control.path: control for control in controls_of(Outer)}


def held(values: dict[str, Any]) -> dict[str, Any]:
    """`collect` with these values in the widgets and the defaults in the others."""
    found = controls_of(Outer)
    return collect(found, [values.get(control.path, shown(control, control.default)) for control in found])


def test_nested_models_are_unfolded_in_their_order() -> None:
    assert list(controls()) == ["name", "count", "rate", "way", "wide", "inner.ids", "inner.limit"]


def test_titles_descriptions_and_bounds_come_from_the_model() -> None:
    found = controls()
    assert found["rate"].title == "Rate"
    assert found["rate"].info == "a share · over 0 to below 1"
    assert found["count"].title == "Count"
    assert found["count"].info == "1 to 26"
    assert found["inner.limit"].info == "in their order · 1 or more"  # a bound of a million tells nothing
    assert found["way"].choices == ("this", "that")


def test_what_the_widgets_hold_becomes_nested_values() -> None:
    values = held({"name": "x", "count": 3.0, "inner.ids": "4, 7 9", "inner.limit": "12"})
    assert values == {
        "name": "x",
        "count": 3,
        "rate": 0.5,
        "way": "this",
        "wide": True,
        "inner": {"ids": (4, 7, 9), "limit": "12"},
    }
    assert isinstance(values["count"], int)
    assert Outer.model_validate(values).inner.limit == 12


def test_empty_widgets_mean_none_only_where_none_is_allowed() -> None:
    values = held({"name": "", "rate": None})
    assert values["inner"] == {"ids": None, "limit": None}
    assert values["name"] == ""
    assert values["rate"] is None  # the model refuses it, with its name


def test_a_fraction_is_not_rounded_but_refused_by_the_model() -> None:
    values = held({"name": "x", "count": 2.5})
    with pytest.raises(ValueError, match="fractional part"):
        Outer.model_validate(values)


def test_ids_that_are_no_numbers_are_named() -> None:
    with pytest.raises(UserError, match=r"inner\.ids = '3, x': give whole numbers"):
        held({"inner.ids": "3, x"})


def test_words_have_commas_between_them() -> None:
    class Named(BaseModel):
        columns: tuple[str, ...] = ("base", "7b instruct@lab")

    (found,) = controls_of(Named)
    assert shown(found, found.default) == "base, 7b instruct@lab"
    assert collect([found], [" base,, 7b instruct@lab ,"]) == {"columns": ("base", "7b instruct@lab")}
    assert collect([found], [None]) == {"columns": ()}


def test_an_unknown_type_is_a_bug_that_shows_at_once() -> None:
    class Odd(BaseModel):
        thing: dict[str, int] = {}

    with pytest.raises(TypeError, match="no control for thing"):
        controls_of(Odd)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_defaults_of_every_kind_survive_the_form(kind: str) -> None:
    found = controls_of(KINDS[kind])
    lacking: dict[str, dict[str, Any]] = {
        "download": {"model": "owner/model"},
        "grade": {"evaluation": 1},
        "merge": {"adapter": 3},
        "contest": {"columns": ("base", "3")},
        "push": {"adapter": 3, "repository": "ada/colours"},
        **{config.kind: {"dataset": "some pairs"} for config in TRAININGS},
    }
    needed = lacking.get(kind, {})
    raw = [shown(control, needed.get(control.path, control.default)) for control in found]
    assert parse_config(kind, collect(found, raw)) == parse_config(kind, needed)


def test_flatten_gives_dotted_paths() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": [3]}}) == {"a": 1, "b.c.d": 2, "b.e": [3]}


def test_a_built_form_puts_the_main_fields_first_and_keeps_the_models_order() -> None:
    with gr.Blocks() as page:
        form = build_form(controls_of(Outer), ["way", "name"], {"name": False})
    assert [control.path for control in form.controls] == list(controls())
    assert isinstance(form.component("name"), gr.Dropdown)
    accordion = next(block for block in page.blocks.values() if isinstance(block, gr.Accordion))
    inside = {block._id for block in page.blocks.values() if _within(block, accordion)}
    assert form.component("count")._id in inside
    assert form.component("way")._id not in inside


def test_offering_choices_keeps_a_value_that_is_among_them() -> None:
    with gr.Blocks():
        form = build_form(controls_of(Outer), ["name"], {"name": False})
    component = form.component("name")
    assert form.offer("name", [("A", "a"), ("B", "b")], "b")[component]["value"] == "b"
    assert form.offer("name", [("A", "a"), ("B", "b")], "")[component]["value"] == "a"
    for choices in ([("A", "a"), ("B", "b")], []):
        gone = form.offer("name", choices, "gone")[component]
        assert gone["value"] == "gone", "what was asked for and is gone never becomes something else in silence"
        assert gone["choices"] == [*choices, ("gone (not there any more)", "gone")]


def test_what_is_said_of_one_field_at_once_comes_together() -> None:
    with gr.Blocks():
        form = build_form(controls_of(Outer), ["name"], {"name": False})
    together = merged(form.fill({"count": 7}), form.show(["count", "rate"], False), form.fill({"count": 8}))
    assert together[form.component("count")] == {"__type__": "update", "value": 8, "visible": False}
    assert together[form.component("rate")]["visible"] is False
    assert "value" not in together[form.component("rate")], "a hidden field keeps what it holds"


def _within(block: Any, container: Any) -> bool:
    parent = getattr(block, "parent", None)
    while parent is not None:
        if parent is container:
            return True
        parent = parent.parent
    return False
