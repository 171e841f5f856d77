"""The rubric that a judge scores by: a versioned YAML file of five definitions and their anchors.

    version: plumb-1
    title: …
    guide: |-            what a labeller is told before all else
      …
    metrics:
      helpfulness:
        definition: …
        anchors: {0: …, 1: …, 2: …, 3: …, 4: …}
      correctness: …     and coherence, complexity, verbosity

Rubrics that come with Plumb lie in `jobs/judges/rubrics/`, those made by its users in `rubrics/` of the data
folder's `judges/`. A version is never changed once it is written: scores are stored under its name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from jobs.configs import explain
from storage.errors import Conflict, NotFound, UserError
from storage.files import write_once
from storage.records import HIGHEST, LOWEST, METRICS

BUILT_IN = Path(__file__).parent / "judges" / "rubrics"
ANCHORS = tuple(range(LOWEST, HIGHEST + 1))
VERSION_PATTERN = r"[a-z0-9][a-z0-9.-]{0,39}"
LONGEST_VERSION = 40
_VERSION_REMEDY = (
    f"use small letters a to z, digits, - and . alone, with a letter or digit first, {LONGEST_VERSION} at most"
)
LONGEST_FILE = 200_000  # characters; a rubric has some thousands
_SUFFIX = ".yaml"
_DEEPEST = 8  # levels of nesting; a rubric has 4
_TEXT_TAG = "tag:yaml.org,2002:str"


def _tidy(value: Any) -> Any:
    """Text without white space at the ends of its lines and without empty lines around it.

    It then fits a YAML block scalar, and means the same after any number of round trips.
    """
    if not isinstance(value, str):
        return value
    return "\n".join(line.rstrip() for line in value.splitlines()).strip()


Title = Annotated[str, BeforeValidator(_tidy), Field(min_length=1, max_length=200)]
Paragraph = Annotated[str, BeforeValidator(_tidy), Field(min_length=1, max_length=2000)]
Page = Annotated[str, BeforeValidator(_tidy), Field(min_length=1, max_length=20_000)]


class MetricRubric(BaseModel):
    """What one metric means, and what each of its five values stands for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    definition: Paragraph
    anchors: dict[int, Paragraph]

    @field_validator("anchors", mode="before")
    @classmethod
    def _zero_to_four(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("give a text for each of 0, 1, 2, 3 and 4")
        unknown = [key for key in value if type(key) is not int or key not in ANCHORS]
        if unknown:
            raise ValueError(f"there is no anchor {unknown[0]!r}; keep 0, 1, 2, 3 and 4, as plain whole numbers")
        missing = [str(key) for key in ANCHORS if key not in value]
        if missing:
            raise ValueError(f"the anchor {', '.join(missing)} is missing; give a text for each of 0 to 4")
        return {key: value[key] for key in ANCHORS}


class Rubric(BaseModel):
    """One version of the rubric. `metrics` holds exactly the five of `storage.records.METRICS`, in their order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    title: Title
    guide: Page
    metrics: dict[str, MetricRubric]

    @field_validator("version")
    @classmethod
    def _fit_for_a_file(cls, value: str) -> str:
        if not re.fullmatch(VERSION_PATTERN, value):
            raise ValueError(_VERSION_REMEDY)
        return value

    @field_validator("title")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return " ".join(value.split())

    @field_validator("metrics", mode="before")
    @classmethod
    def _the_five(cls, value: Any) -> Any:
        five = ", ".join(METRICS)
        if not isinstance(value, dict):
            raise ValueError(f"describe {five}, each by a definition and anchors")
        missing = [name for name in METRICS if name not in value]
        if missing:
            raise ValueError(f"{' and '.join(missing)} missing; add a definition and the anchors 0 to 4")
        unknown = [name for name in value if name not in METRICS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no metric; remove it and keep {five}")
        return {name: value[name] for name in METRICS}


def make_rubric(values: Any, what: str = "the rubric") -> Rubric:
    """Check `values` (nested dictionaries, as a form or a YAML file holds them).

    Raises:
        UserError: naming each field, its value and the remedy; `what` is its subject.
    """
    try:
        return Rubric.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{_capital(what)} cannot be used: {explain(error)}") from error


def parse_rubric(text: str, what: str) -> Rubric:
    """Read a rubric's YAML. `what` names the text to the reader, as "the rubric plumb-2".

    Plain YAML alone: tags, aliases and a key that stands twice are refused, since what they would come to is not
    what the reader of the file sees.

    Raises:
        UserError: it is no such YAML, or no rubric.
    """
    subject = _capital(what)
    if len(text) > LONGEST_FILE:
        raise UserError(f"{subject} has {len(text):,} characters; {LONGEST_FILE:,} are the most. Shorten it.")
    try:
        _refuse_tags(text, subject)
        _refuse_twins(text, subject)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{subject} is not whole YAML: {_where(error)}. Correct the text there.") from error
    except ValueError as error:  # a date like 2024-99-99
        raise UserError(f"{subject} is not a rubric's YAML ({type(error).__name__}); correct the text.") from error
    if not isinstance(values, dict):
        raise UserError(f"{subject} is not a rubric: give version, title, guide and metrics, each with its value.")
    return make_rubric(values, what)


def _refuse_tags(text: str, subject: str) -> None:
    """Raises UserError at tags, aliases and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # one by one: brackets in thousands end early
        line = event.start_mark.line + 1 if event.start_mark else 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UserError(f"{subject}, line {line}: too many levels; put a text with brackets in quotes.")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{subject}, line {line}: & and * are not read here; put the text in quotes.")
        if tag := getattr(event, "tag", None):
            raise UserError(f"{subject}, line {line}: the tag {tag!r} is not read; remove it.")


def _refuse_twins(text: str, subject: str) -> None:
    """Raises UserError where a key stands twice: YAML's reader would take the last without a word."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    waiting = [root] if root is not None else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    raise UserError(f"{subject}, line {line}: a name is a word or a number; correct it.")
                name = key.value if key.tag == _TEXT_TAG else yaml.safe_load(key.value)  # 1 and 0x1 are the same
                if name in seen:
                    line = key.start_mark.line + 1
                    raise UserError(f"{subject}, line {line}: {name!r} stands there twice; keep one.")
                seen.add(name)
                waiting.append(value)


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)


class _Dumper(yaml.SafeDumper):
    """Longer texts as blocks, so that a person can read and edit the file."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else ">" if len(value) > 90 else None
    return dumper.represent_scalar(_TEXT_TAG, value, style=style)


_Dumper.add_representer(str, _text)


def rubric_yaml(rubric: Rubric) -> str:
    """The file's text; `parse_rubric` reads the same rubric from it."""
    return yaml.dump(
        rubric.model_dump(),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=False,
    )


def load_rubric(version: str, folder: Path) -> Rubric:
    """The rubric of this version. `folder` is the data folder's `judges/`.

    Raises:
        UserError: no such name can be, or the file cannot be used.
        NotFound: there is none; the text names those that are.
    """
    _check_version(version)
    file = next((file for file in (_built_in(version), _made_here(folder, version)) if file.exists()), None)
    if file is None:
        known = ", ".join(_versions(folder))
        raise NotFound(f"There is no rubric {version!r}; use one of {known}, or make it on the Judges page.")
    return _read(file, version)


def list_rubrics(folder: Path) -> list[Rubric]:
    """All versions that can be read: those that come with Plumb first, the newest last."""
    return [rubric for rubric in _read_all(folder).values() if isinstance(rubric, Rubric)]


def unreadable_rubrics(folder: Path) -> dict[str, str]:
    """Version → what is wrong, of files that somebody has spoiled by hand."""
    return {version: str(found) for version, found in _read_all(folder).items() if isinstance(found, UserError)}


def save_rubric(folder: Path, rubric: Rubric) -> Path:
    """Write a new version into `folder` (the data folder's `judges/`) and return its file.

    Raises:
        Conflict: the version is there already; the text names the next free one.
        UserError: its texts hold characters that a file cannot keep.
    """
    text = rubric_yaml(rubric)
    if parse_rubric(text, f"the rubric {rubric.version}") != rubric:
        raise UserError(
            f"The rubric {rubric.version} would not come back from its file as it is; retype its texts."
        )
    target = _made_here(folder, rubric.version)
    taken = Conflict(
        f"version = {rubric.version!r} is taken, and scores may stand under it: a rubric is never changed. "
        f"Save yours as {next_version(folder, rubric.version)!r}."
    )
    if _built_in(rubric.version).exists():
        raise taken
    try:
        write_once(target, text)
    except FileExistsError:
        raise taken from None
    return target


def next_version(folder: Path, base: str) -> str:
    """The next free version after `base`, above all of its kind: "plumb-1" → "plumb-2", "mine" → "mine-2".

    Raises:
        UserError: `base` is no version.
    """
    _check_version(base)
    stem, number = _split(base)
    taken = set(_versions(folder))
    number = max([number, *(other for name in taken for kind, other in [_split(name)] if kind == stem)])
    while True:
        number += 1
        following = stem[: LONGEST_VERSION - len(str(number))] + str(number)
        if following not in taken:
            return following


def _split(version: str) -> tuple[str, int]:
    """ "plumb-12" → ("plumb-", 12); without a number at its end it counts as the first."""
    match = re.fullmatch(r"(.*?)([0-9]{1,9})", version)
    return (match[1], int(match[2])) if match else (f"{version}-", 1)


def _check_version(version: str) -> None:
    """Also keeps a version from leading out of its folder."""
    if not re.fullmatch(VERSION_PATTERN, version):
        shown = version if len(version) <= 60 else version[:59] + "…"
        raise UserError(f"rubric = {shown!r} is no version; {_VERSION_REMEDY}.")


def _built_in(version: str) -> Path:
    return BUILT_IN / f"{version}{_SUFFIX}"


def _made_here(folder: Path, version: str) -> Path:
    return folder / "rubrics" / f"{version}{_SUFFIX}"


def _versions(folder: Path) -> list[str]:
    """The versions that files stand for, readable or not: built-in first, each part with the newest last."""
    found: dict[str, None] = {}
    for place in (BUILT_IN, folder / "rubrics"):
        files = [file for file in place.glob(f"*{_SUFFIX}") if re.fullmatch(VERSION_PATTERN, file.stem)]
        # A checkout gives all built-in files the same age, or any: there the number alone decides.
        files.sort(key=lambda file: (0 if place == BUILT_IN else file.stat().st_mtime_ns, _split(file.stem)))
        found |= dict.fromkeys(file.stem for file in files)
    return list(found)


def _read(file: Path, version: str) -> Rubric:
    what = f"the rubric {version} ({file.name})"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{_capital(what)} cannot be read ({error}); restore it from a backup.") from error
    rubric = parse_rubric(text, what)
    if rubric.version != version:
        raise UserError(
            f"{_capital(what)} says version = {rubric.version!r}; a file is named after its version. Rename it."
        )
    return rubric


def _read_all(folder: Path) -> dict[str, Rubric | UserError]:
    found: dict[str, Rubric | UserError] = {}
    for version in _versions(folder):
        try:
            found[version] = load_rubric(version, folder)
        except UserError as error:
            found[version] = error
    return found


def _capital(what: str) -> str:
    return what[:1].upper() + what[1:]
