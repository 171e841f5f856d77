"""What the Judges page asks and does: plain functions above Gradio."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ValidationError

from jobs import desk
from jobs.configs import JudgeConfig, explain
from jobs.judges import rules
from jobs.judges.calls import Provider
from jobs.judges.keys import NAMES, key_name, need_key
from jobs.judges.ledger import Ledger
from jobs.judges.terms import ModelTerms, Terms, read_terms, write_terms
from jobs.rubric import (
    ANCHORS,
    Rubric,
    list_rubrics,
    load_rubric,
    make_rubric,
    next_version,
    save_rubric,
    unreadable_rubrics,
)
from jobs.settings import Settings
from storage.errors import Conflict, PlumbError, UserError
from storage.records import METRICS
from workbench import judge_views
from workbench.context import Context
from workbench.forms import Choice, Control, collect, controls_of, flatten
from workbench.job_launch import judge_choices
from workbench.views import notice

ZONES = ("America/Los_Angeles", "UTC", "Europe/Berlin", "Asia/Tokyo")
MANY = 5  # errors told at once

# --- keys ---


@dataclass(frozen=True)
class Connection:
    """How a provider is reached. `key` is the environment variable that holds its key, never the key.

    Attributes:
        package: the client package that is in use, with its version; "" where it is not installed.
        address: of its API, without name and password; "" for the provider's own.
        obstacle: why it cannot be asked, and what to do; "" where it can.
    """

    provider: Provider
    key: str | None
    names: tuple[str, ...]
    package: str
    wanted: str
    address: str
    obstacle: str


def connections(settings: Settings) -> list[Connection]:
    packages = {"gemini": settings.gemini_client, "openai": "openai"}
    addresses = {"gemini": settings.gemini_url, "openai": settings.openai_url}
    found = []
    for provider, names in NAMES.items():
        try:
            need_key(provider, settings)
            obstacle = ""
        except UserError as error:
            obstacle = str(error)
        found.append(
            Connection(
                provider=provider,
                key=key_name(provider),
                names=names,
                package=_installed(packages[provider]),
                wanted=packages[provider],
                address=_public(addresses[provider]),
                obstacle=obstacle,
            )
        )
    return found


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _public(address: str) -> str:
    """The address without what may be secret in it: name, password, parameters."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "an address that cannot be read" if address else ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def show_keys(context: Context) -> str:
    return judge_views.keys(connections(context.settings))


# --- prices and limits ---


def read_table(raw: str, money_a_day: float | None, day_begins_in: str | None) -> Terms:
    """The table as the browser sends it: a JSON list of rows, each a dictionary of texts by field.

    A row whose every field is empty is none.

    Raises:
        UserError: naming row, field, value and remedy of what cannot be used, the first few of it.
    """
    rows = json.loads(raw or "[]")
    kept, wrong = [], []
    for number, row in enumerate(rows, start=1):
        texts = {name: str(row.get(name, "")).strip() for name in ModelTerms.model_fields}
        if not any(texts.values()):
            continue
        where = f"Row {number} ({texts['model']})" if texts["model"] else f"Row {number}"
        values: dict[str, Any] = {}
        for name, text in texts.items():
            try:
                read = _number(name, text)
            except UserError as error:
                wrong.append(f"{where}, {_title(ModelTerms, name)}{error}")
            else:
                if read is not None:
                    values[name] = read
        if len(values) == len(texts) or texts.keys() - values.keys() <= {"tokens_a_day"}:
            try:
                kept.append(ModelTerms.model_validate(values))
            except ValidationError as error:
                wrong += [f"{where}, {sentence}" for sentence in _sentences(ModelTerms, error)]
    if wrong:
        more = f" And {len(wrong) - MANY} more." if len(wrong) > MANY else ""
        raise UserError(f"Not saved. {' '.join(wrong[:MANY])}{more}")
    values = {"models": kept, "money_a_day": money_a_day, "day_begins_in": (day_begins_in or "").strip()}
    if money_a_day is None:
        raise UserError("Not saved. Most money a day is empty: give dollars, as 10.")
    try:
        return Terms.model_validate(values)
    except ValidationError as error:
        raise UserError(f"Not saved. {' '.join(_sentences(Terms, error))}") from error


def _number(name: str, text: str) -> str | float | int | None:
    """A field's text as its value; None where it is empty and may be. The error begins behind the field's name."""
    if name == "model":
        if not text:
            raise UserError(" is empty: give a name as the provider spells it, or remove the row.")
        return text
    if not text:
        if name == "tokens_a_day":  # no limit
            return None
        raise UserError(" is empty: give a number.")
    if ModelTerms.model_fields[name].annotation is float:
        # A comma is refused, not guessed at: 0,30 is meant as 0.30 by some and would be read as 30.
        if not re.fullmatch(r"\$?\s*(\d+(\.\d*)?|\.\d+)", text, re.ASCII):
            raise UserError(f" = {text!r}: give dollars as a number with a point, as 0.30.")
        return float(text.removeprefix("$"))
    if not re.fullmatch(r"\d+|\d{1,3}(,\d{3})+", text, re.ASCII):
        raise UserError(f" = {text!r}: give a whole number, as 600.")
    return int(text.replace(",", ""))


def _title(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].title or name


def _sentences(model: type[BaseModel], error: ValidationError) -> list[str]:
    """pydantic's findings with the titles that stand over the fields."""
    found = []
    for one in error.errors():
        name = str(one["loc"][0]) if one["loc"] else ""
        message = one["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if name == "models":
            found.append(f"{message[:1].upper()}{message[1:]}.")
        else:
            found.append(f"{_title(model, name)} = {one['input']!r}: {message}.")
    return found


def mark_of(terms: Terms | None) -> str:
    """By which a page knows whether the table is still the one that it shows; "" where it shows none."""
    return "" if terms is None else hashlib.sha256(terms.model_dump_json().encode()).hexdigest()


def save_table(
    context: Context, raw: str, money_a_day: float | None, day_begins_in: str | None, shown: str = ""
) -> tuple[str, str]:
    """(message, the table anew, or "" where nothing was saved).

    Args:
        shown: the mark of the table that the page showed; "" where it showed none. A tab that was opened before
            somebody lowered a cap must not raise it again unseen.
    """
    try:
        terms = read_table(raw, money_a_day, day_begins_in)
        if shown and shown != mark_of(table(context)[0]):
            raise Conflict(
                "Not saved. Somebody has changed prices or limits since this page showed them. Load the page anew "
                "to see what holds, then change what you want."
            )
        write_terms(context.folder.judges, terms)
    except PlumbError as error:
        return notice(str(error), "bad"), ""
    return notice("Saved. Jobs at work go by it from their next request on.", "good"), judge_views.prices(terms)


def show_table(terms: Terms) -> str:
    return judge_views.prices(terms)


def table(context: Context) -> tuple[Terms | None, str]:
    """The terms and, where they cannot be read, why."""
    try:
        return read_terms(context.folder.judges), ""
    except UserError as error:
        return None, str(error)


def show_today(context: Context) -> str:
    """What was asked and paid today, against the limits."""
    terms, problem = table(context)
    if terms is None:
        return notice(problem, "bad")
    try:
        return judge_views.today(Ledger(context.folder.judges).tell(terms), terms)
    except PlumbError as error:
        return notice(str(error), "bad")


def open_again(context: Context, model: str) -> str:
    """Have a model asked again that is closed for its day's quota; returns what to tell."""
    try:
        opened = Ledger(context.folder.judges).open_again(model)
    except PlumbError as error:
        return notice(str(error), "bad")
    if not opened:
        return notice(f"{model} is not closed any more.", "good")
    return notice(f"{model} is asked again; jobs that wait for it go on within a minute.", "good")


# --- rubrics ---

# The editor's fields in their order: the metrics' by "helpfulness.definition", "helpfulness.0" …
FIELDS: tuple[str, ...] = (
    "version",
    "title",
    "guide",
    *(f"{metric}.{part}" for metric in METRICS for part in ("definition", *map(str, ANCHORS))),
)


def versions(context: Context) -> list[str]:
    """All that can be read, the newest last."""
    return [rubric.version for rubric in list_rubrics(context.folder.judges)]


def open_rubric(context: Context, asked: str | None, addressed: bool = True) -> tuple[str | None, str]:
    """(the version that is shown, its HTML). What cannot be opened is said above the one that is shown instead.

    Args:
        addressed: the page's address is to name it.
    """
    problems = list(unreadable_rubrics(context.folder.judges).values())
    rubric = None
    if asked:
        try:
            rubric = load_rubric(asked, context.folder.judges)
        except PlumbError as error:
            if str(error) not in problems:
                problems.insert(0, str(error))
    if rubric is None:
        known = list_rubrics(context.folder.judges)
        rubric = known[-1] if known else None
        addressed = False
    told = "".join(notice(problem, "bad") for problem in problems)
    if rubric is None:
        return None, told
    return rubric.version, told + judge_views.rubric(rubric, addressed)


def draft(context: Context, base: str) -> list[str]:
    """The editor's fields for a new version from `base`.

    Raises:
        UserError, NotFound: there is no such rubric.
    """
    rubric = load_rubric(base, context.folder.judges)
    return [next_version(context.folder.judges, base), *_texts(rubric)]


def _texts(rubric: Rubric) -> list[str]:
    """The fields behind the version."""
    texts = [rubric.title, rubric.guide]
    for metric in METRICS:
        described = rubric.metrics[metric]
        texts += [described.definition, *(described.anchors[value] for value in ANCHORS)]
    return texts


def save_draft(context: Context, base: str, texts: Sequence[str]) -> Rubric:
    """Keep the editor's fields (in the order of FIELDS) as a new version.

    Raises:
        UserError: a field is empty or cannot be used, or nothing differs from `base`.
        Conflict: the version is there already.
    """
    held = {path: (text or "").strip() for path, text in zip(FIELDS, texts, strict=True)}
    empty = [field_title(path) for path, text in held.items() if not text]
    if empty:
        more = f" and {len(empty) - MANY} more" if len(empty) > MANY else ""
        raise UserError(f"Not saved. Empty: {'; '.join(empty[:MANY])}{more}. Give each a text.")
    rubric = make_rubric(
        {
            "version": held["version"],
            "title": held["title"],
            "guide": held["guide"],
            "metrics": {
                metric: {
                    "definition": held[f"{metric}.definition"],
                    "anchors": {value: held[f"{metric}.{value}"] for value in ANCHORS},
                }
                for metric in METRICS
            },
        },
        f"the rubric {held['version']}",
    )
    if rubric.model_copy(update={"version": base}) == load_rubric(base, context.folder.judges):
        raise UserError(f"Not saved. Nothing differs from {base}; change a text first.")
    save_rubric(context.folder.judges, rubric)
    return rubric


def field_title(path: str) -> str:
    """What stands over a field of the editor."""
    metric, _, part = path.partition(".")
    if not part:
        return "Name of the new version" if path == "version" else path.capitalize()
    return f"{metric.capitalize()}: {part if part == 'definition' else f'what {part} stands for'}"


# --- the judge of the key J ---

_LEFT_OUT = frozenset({"samples", "concurrency", "ask_blocked"})  # mean nothing for one sample at once
MAIN = ("judge", "model", "rubric", "mode", "checklists", "budget")
_RETITLED = {
    "budget": ("Budget a day", "dollars; for all who press J together"),
    "max_requests": ("At most requests a day", "empty: as the budget allows"),
}


def desk_controls() -> tuple[Control, ...]:
    found = []
    for control in controls_of(JudgeConfig):
        if control.path.partition(".")[0] in _LEFT_OUT:
            continue
        if control.path in _RETITLED:
            title, info = _RETITLED[control.path]
            control = replace(control, title=title, info=info)
        found.append(control)
    return tuple(found)


def desk_choices(settings: Settings) -> dict[str, list[Choice]]:
    return judge_choices(settings)


def desk_values(context: Context) -> tuple[dict[str, Any], str]:
    """(What the form shows, by path; why the file that keeps it cannot be read, if so)."""
    try:
        config, problem = desk.read_desk(context.folder), ""
    except UserError as error:
        config, problem = desk.DEFAULT, str(error)
    paths = {control.path for control in desk_controls()}
    values = {path: value for path, value in flatten(config.model_dump()).items() if path in paths}
    return values, problem


def save_desk(context: Context, controls: Sequence[Control], raw: Sequence[Any]) -> JudgeConfig:
    """Choose the judge of the key J.

    Raises:
        UserError, NotFound: a value is out of bounds; there is no such rubric; the model has no price.
    """
    try:
        config = JudgeConfig.model_validate(collect(controls, raw))
    except ValidationError as error:
        raise UserError(f"Not saved: {explain(error)}") from error
    if config.judge != rules.NAME:
        load_rubric(config.rubric, context.folder.judges)
        read_terms(context.folder.judges).of(config.model)
    desk.write_desk(context.folder, config)
    return config


def said_of_desk(context: Context, controls: Sequence[Control], raw: Sequence[Any]) -> str:
    """Save it and say what came of it, as a message."""
    try:
        config = save_desk(context, controls, raw)
    except PlumbError as error:
        return notice(str(error), "bad")
    name = config.model if config.judge != rules.NAME else rules.NAME
    try:
        need_key(config.judge, context.settings)
    except UserError as error:
        return notice(f"Saved, but {name} cannot be asked yet. {error}", "info")
    return notice(f"Saved: the key J asks {name}.", "good")


def rubric_by(query: Mapping[str, str], fallback: str | None) -> tuple[str | None, bool]:
    """(the version to open, whether the address asked for it)."""
    asked = query.get("rubric", "").strip()
    return (asked, True) if asked else (fallback, False)
