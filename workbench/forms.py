"""A pydantic model as a form: fields → components, what is typed → values, values → what is shown.

The upper half knows nothing of Gradio: `controls_of` reads a model's fields with their titles, descriptions,
bounds and choices; `collect` turns what the widgets hold into the dictionary that the model checks. Bounds are
shown, not enforced by the widgets: the model alone says what is wrong, in one place and with one wording.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from storage.errors import UserError

Choice = tuple[str, Any]
Kind = Literal["integer", "number", "flag", "choice", "text", "ids", "words"]


@dataclass(frozen=True)
class Control:
    """One field of a form. `path` is dotted for a field of a nested model (`samples.limit`)."""

    path: str
    title: str
    info: str
    kind: Kind
    default: Any
    optional: bool
    choices: tuple[str, ...] = ()


def controls_of(model: type[BaseModel], prefix: str = "") -> tuple[Control, ...]:
    """A model's fields in their order; nested models are unfolded in place.

    Raises:
        TypeError: a field has a type for which there is no control.
    """
    found: list[Control] = []
    for name, entry in model.model_fields.items():
        path = f"{prefix}{name}"
        annotation, optional = _without_none(entry.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found += controls_of(annotation, f"{path}.")
            continue
        kind, choices = _kind(annotation, path)
        default = entry.get_default(call_default_factory=True)
        found.append(
            Control(
                path=path,
                title=entry.title or name.replace("_", " ").capitalize(),
                info=_info(entry),
                kind=kind,
                default=None if default is PydanticUndefined else default,
                optional=optional,
                choices=choices,
            )
        )
    return tuple(found)


def collect(controls: Iterable[Control], raw: Iterable[Any]) -> dict[str, Any]:
    """What the widgets hold, in the order of `controls`, as nested values for the model.

    Raises:
        UserError: a list of ids that is no list of whole numbers.
    """
    values: dict[str, Any] = {}
    for control, held in zip(controls, raw, strict=True):
        *parents, name = control.path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = _read(control, held)
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted path."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def shown(control: Control, value: Any) -> Any:
    """A value as its widget shows it."""
    if control.kind in ("ids", "words"):
        return ", ".join(str(item) for item in value or ())
    if control.optional and control.kind != "flag":
        return "" if value is None else str(value)
    return "" if value is None and control.kind == "text" else value


@dataclass(frozen=True)
class Form:
    """A built form: its controls and, in the same order, their components.

    Attributes:
        groups: the frames around the fields that stand together under "Advanced", by their heading.
    """

    controls: tuple[Control, ...]
    components: tuple[Any, ...]
    groups: Mapping[str, Any] = field(default_factory=dict)

    def component(self, path: str) -> Any:
        return self.components[self._index(path)]

    def part(self, controls: Sequence[Control]) -> Form:
        """The form of another model that shares these components: its fields must be among this one's."""
        return Form(tuple(controls), tuple(self.component(control.path) for control in controls), self.groups)

    def fill(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates that show these values (by dotted path); the other fields stay as they are."""
        updates = {}
        for path, value in values.items():
            index = self._index(path)
            updates[self.components[index]] = gr.update(value=shown(self.controls[index], value))
        return updates

    def offer(self, path: str, choices: Sequence[Choice], value: Any) -> dict[Any, Any]:
        """An update that gives a dropdown these choices; with no value asked for, the first is chosen."""
        known = [choice[1] for choice in choices]
        component = self.component(path)
        free = bool(getattr(component, "allow_custom_value", False))
        if value in (None, ""):
            return {component: gr.update(choices=list(choices), value=known[0] if known else None)}
        # What was asked for and is gone stays named: in its place an empty field, or the first choice, would mean
        # something else in silence (no adapter is the base). Whoever starts the job is told what is missing.
        gone = [] if value in known or free else [(f"{value} (not there any more)", value)]
        return {component: gr.update(choices=[*choices, *gone], value=value)}

    def show(self, paths: Iterable[str], visible: bool) -> dict[Any, Any]:
        """Updates that show these fields or hide them; a hidden field keeps its value."""
        return {self.component(path): gr.update(visible=visible) for path in paths}

    def _index(self, path: str) -> int:
        for index, control in enumerate(self.controls):
            if control.path == path:
                return index
        raise KeyError(path)


def merged(*updates: Mapping[Any, Any]) -> dict[Any, Any]:
    """One update a component: what the later say is added to what the earlier say, and wins.

    A plain value in place of an update stands for that value.
    """
    together: dict[Any, Any] = {}
    for part in updates:
        for component, update in part.items():
            told = update if isinstance(update, Mapping) else gr.update(value=update)
            together[component] = {**together.get(component, {}), **told}
    return together


def build_form(
    controls: Sequence[Control],
    main: Sequence[str],
    dropdowns: Mapping[str, bool] | None = None,
    width: int = 150,
    groups: Mapping[str, Sequence[str]] | None = None,
    wide: Collection[str] = (),
) -> Form:
    """Make the components inside the current Blocks: `main` first, the rest under "Advanced".

    Args:
        controls: of one model; each becomes one component.
        main: paths of the important fields, in their order.
        dropdowns: paths whose choices come from the database, with whether other values may be typed too.
        width: the least width of a field, in pixels.
        groups: paths of fields under "Advanced" that stand together, by the heading above them; those that are in
            no group come first.
        wide: paths of fields that take two places in a row.
    """
    groups = groups or {}
    dropdowns = dropdowns or {}
    by_path = {control.path: control for control in controls}
    made: dict[str, Any] = {}
    with gr.Row(elem_classes="plumb-form"):
        for path in main:
            made[path] = _component(by_path[path], dropdowns, width, path in wide)
    rest = [control.path for control in controls if control.path not in made]
    grouped = {path for paths in groups.values() for path in paths}
    frames: dict[str, Any] = {}
    if rest:
        with gr.Accordion("Advanced", open=False):
            for heading, paths in {"": [path for path in rest if path not in grouped], **groups}.items():
                if not paths:
                    continue
                with gr.Column(elem_classes="plumb-group") as frame:
                    if heading:
                        gr.HTML(f"<h4>{escape(heading)}</h4>", apply_default_css=False, elem_classes="plumb-piece")
                    with gr.Row(elem_classes="plumb-form"):
                        for path in paths:
                            made[path] = _component(by_path[path], dropdowns, width, path in wide)
                frames[heading] = frame
    frames.pop("", None)
    return Form(tuple(controls), tuple(made[control.path] for control in controls), frames)


def _component(control: Control, dropdowns: Mapping[str, bool], width: int, wide: bool = False) -> Any:
    value = shown(control, control.default)
    common: dict[str, Any] = {
        "label": control.title,
        "info": control.info or None,
        "min_width": width,
        "interactive": True,
        "elem_classes": "plumb-wide" if wide else None,
    }
    if control.path in dropdowns:
        first = [value] if value not in (None, "") else []
        return gr.Dropdown(
            choices=first,
            value=value if first else None,
            allow_custom_value=dropdowns[control.path],
            **common,
        )
    if control.kind == "choice":
        choices: list[Choice] = [(choice, choice) for choice in control.choices]
        if control.optional:
            choices.insert(0, ("any", ""))
        return gr.Dropdown(choices=choices, value=value, **common)
    if control.kind == "flag":
        return gr.Checkbox(value=bool(value), **common)
    if control.kind in ("integer", "number") and not control.optional:  # a Number cannot stand empty: it shows 0
        return gr.Number(value=value, step=1 if control.kind == "integer" else None, **common)
    return gr.Textbox(value="" if value is None else str(value), lines=1, max_lines=1, **common)


def _read(control: Control, held: Any) -> Any:
    if control.kind == "ids":
        return _ids(control, held)
    if control.kind == "words":
        return tuple(word.strip() for word in str(held or "").split(",") if word.strip())
    if control.kind == "integer" and isinstance(held, float) and held.is_integer():
        return int(held)  # the browser knows one kind of number
    if control.optional and (held is None or (isinstance(held, str) and not held.strip())):
        return None
    if control.kind in ("text", "choice"):
        return held if held is not None else ""
    return held


def _ids(control: Control, held: Any) -> tuple[int, ...] | None:
    text = str(held or "").strip()
    if not text:
        return None if control.optional else ()
    words = text.replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise UserError(f"{control.path} = {text!r}: give whole numbers with commas between them, like 3, 5, 8.")
    return tuple(int(word) for word in words)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (typing.Union, types.UnionType):
        kept = [part for part in get_args(annotation) if part is not type(None)]
        if len(kept) == 1:
            return kept[0], True
    return annotation, False


def _kind(annotation: Any, path: str) -> tuple[Kind, tuple[str, ...]]:
    if get_origin(annotation) is Literal:
        return "choice", tuple(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple and get_args(annotation) == (int, ...):
        return "ids", ()
    if get_origin(annotation) is tuple and get_args(annotation) == (str, ...):
        return "words", ()
    kinds: dict[Any, Kind] = {bool: "flag", int: "integer", float: "number", str: "text"}
    if annotation not in kinds:
        raise TypeError(f"There is no control for {path} of type {annotation!r}.")
    return kinds[annotation], ()


def _info(field: FieldInfo) -> str:
    """The description and the bounds, as one line."""
    return " · ".join(part for part in (field.description or "", _bounds(field)) if part)


def _bounds(field: FieldInfo) -> str:
    limits = {
        name: value
        for found in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if (value := getattr(found, name, None)) is not None
    }
    low = high = ""
    if "ge" in limits or "gt" in limits:
        low = _number(limits["ge"]) if "ge" in limits else f"over {_number(limits['gt'])}"
    if "le" in limits or "lt" in limits:
        high = _number(limits["le"]) if "le" in limits else f"below {_number(limits['lt'])}"
    if limits.get("le", 0) >= 1_000_000:  # such a bound guards against a slip; it tells nothing
        high = ""
    if low and high:
        return f"{low} to {high}"
    if high:
        return high if "lt" in limits else f"at most {high}"
    return f"{low} or more" if "ge" in limits else low


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
