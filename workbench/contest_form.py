"""What the form of a new contest asks: its fields, what it will make, the start. Plain functions above Gradio."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from sqlite_utils import Database

from jobs import queue
from jobs.config_base import Selection
from jobs.config_contest import ContestConfig
from jobs.configs import parse_config
from jobs.outside import outside_choices
from jobs.packing import select
from jobs.prompt_lists import read_prompts
from storage.contests import contest_of_job
from storage.datasets import list_datasets
from storage.errors import NotFound, PlumbError, UserError
from storage.finding import facets
from workbench.chat_desk import choices_of, models_of
from workbench.context import Context
from workbench.forms import Choice, Control, collect, controls_of
from workbench.job_views import error

FILE, SAMPLES = "file", "samples"
LISTS = (".jsonl", ".ndjson", ".json", ".txt")
MOST_FILES = 1000

MAIN = ("temperature", "max_new_tokens", "limit")
SAMPLES_MAIN = ("samples.source", "samples.dataset", "samples.split", "samples.ids")
DROPDOWNS = {"device": False, "samples.source": False, "samples.dataset": False}
ABOUT_FILES = (
    "<p class='pb-sub'>The <code>question.jsonl</code> of MT-Bench, Vicuna or LLaVA-Bench; JSON lines with "
    "<code>prompt</code>, <code>turns</code> or <code>messages</code>, and <code>images</code>, "
    "<code>category</code>, <code>id</code> where you like; or plain text, one prompt a line. Add the "
    "pictures that it names.</p>"
)

# What the form asks in a way of its own; the rest of the configuration stands as it is.
_OWN = {"name", "model", "columns", "prompts", "images", "samples"}
_SAMPLE_FIELDS = {"samples.source", "samples.dataset", "samples.split", "samples.ids"}


def controls() -> tuple[Control, ...]:
    """How answers are drawn, and all else that a contest's job takes."""
    return tuple(one for one in controls_of(ContestConfig) if one.path.partition(".")[0] not in _OWN)


def sample_controls() -> tuple[Control, ...]:
    """Which samples are asked; how many is said by the contest's own limit."""
    return tuple(one for one in controls_of(Selection, "samples.") if one.path in _SAMPLE_FIELDS)


def speaker_choices(context: Context, db: Database, model: str) -> list[Choice]:
    """The base, its adapters, and what outside endpoints serve now."""
    return [*choices_of(db, model), *outside_choices(context.settings)]


def offers(context: Context, model: str) -> dict[str, list[Choice]]:
    """What the dropdowns offer, by name."""
    with context.database() as db:
        return {
            "model": [(name, name) for name in dict.fromkeys([*models_of(db), model])],
            "speakers": speaker_choices(context, db, model),
            "samples.source": [("all", ""), *((name, name) for name in facets(db)["source"])],
            "samples.dataset": [("none", ""), *((item.name, item.name) for item in list_datasets(db))],
            "device": [("first that is free", ""), *((name, name) for name in context.settings.devices)],
        }


@dataclass(frozen=True)
class Wanted:
    """What the form holds.

    Attributes:
        files: the list and its pictures, as they were uploaded.
        values: for `ContestConfig`, but for the list's path.
    """

    source: Literal["file", "samples"]
    files: tuple[Path, ...]
    values: Mapping[str, Any]

    @classmethod
    def read(cls, raw: Sequence[Any]) -> Wanted:
        """From what the fields hold, in the order of `NewContest.fields`.

        Raises:
            UserError: a field holds what it cannot hold.
        """
        name, model, first, second, third, source, files, *rest = raw
        mine = sample_controls()
        values = collect(mine, rest[: len(mine)]) if source == SAMPLES else {}
        values |= collect(controls(), rest[len(mine) :])
        values |= {
            "name": (name or "").strip(),
            "model": (model or "").strip(),
            "columns": [one for one in (first, second, third) if one],
        }
        paths = tuple(Path(str(file)) for file in files or ()) if source == FILE else ()
        return cls("samples" if source == SAMPLES else "file", paths, values)


@dataclass(frozen=True)
class Plan:
    """What a contest will make: prompts, the questions in them, answers of all speakers."""

    prompts: int
    questions: int
    answers: int
    pictures: int


def plan(context: Context, wanted: Wanted) -> Plan:
    """Read the list, or count the samples; nothing is stored.

    Raises:
        UserError: the list cannot be used (with the numbers of its lines), or another field.
        NotFound: the data set is not there.
    """
    with laid_out(wanted) as values:
        config = parse_config("contest", values)
        assert isinstance(config, ContestConfig)
        if config.prompts:
            prompts = read_prompts(Path(config.prompts), limit=config.limit)
            number, questions = len(prompts), sum(prompt.turns for prompt in prompts)
            pictures = sum(len(prompt.images) for prompt in prompts)
        else:
            with context.database() as db:
                ids = select(db, config.samples)[: config.limit]
            number, questions, pictures = len(ids), len(ids), 0
            if not ids:
                raise UserError("samples: there is no sample that fits; choose another source, or load the demo.")
    return Plan(number, questions, questions * len(config.columns), pictures)


def start(context: Context, user: str, wanted: Wanted) -> int:
    """Submit the contest's job; returns the contest's id.

    Raises:
        PlumbError: as `plan`, and where a speaker, the model or the device cannot be used.
    """
    with laid_out(wanted) as values, context.database() as db:
        job = queue.submit(db, context.settings, "contest", values, user)
        made = contest_of_job(db, job.id)
    if made is None:
        raise NotFound(f"Job {job.id} has started, but its contest was deleted meanwhile.")
    return made.id


def told(context: Context, raw: Sequence[Any]) -> str:
    """What the form will make, or what is wrong with it, as HTML."""
    try:
        found = plan(context, Wanted.read(raw))
    except PlumbError as wrong:
        return error(str(wrong))
    parts = [_number(found.prompts, "prompt")]
    if found.questions > found.prompts:
        parts.append(_number(found.questions, "question"))
    if found.pictures:
        parts.append(_number(found.pictures, "picture"))
    words = f"{', '.join(parts)}: {_number(found.answers, 'answer')} to draw."
    return f'<p class="plumb-count" role="status">{escape(words)}</p>'


@contextmanager
def laid_out(wanted: Wanted) -> Iterator[dict[str, Any]]:
    """The values of the configuration; an uploaded list lies in a folder of its own with its pictures meanwhile.

    The browser sends each file by itself: a list finds the pictures it names where it lies, or in `images/`.

    Raises:
        UserError: there is no list among the files, or several; two files have one name.
    """
    if wanted.source == SAMPLES:
        yield dict(wanted.values)
        return
    lists = [file for file in wanted.files if file.suffix.lower() in LISTS]
    if not wanted.files:
        raise UserError("Prompts: choose a file with prompts, or samples of this workbench.")
    if len(lists) != 1:
        there = ", ".join(file.name for file in lists) or "none"
        raise UserError(f"Prompts: give one list ({', '.join(LISTS)}) with its pictures; there is {there}.")
    names = [file.name for file in wanted.files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"Prompts: two files are called {twice[0]!r}; the list could not tell them apart.")
    if len(names) > MOST_FILES:
        raise UserError(f"Prompts: {len(names):,} files at once; at most {MOST_FILES:,}.")
    with tempfile.TemporaryDirectory(prefix="plumb-contest-") as place:
        folder = Path(place)
        (folder / "images").mkdir()
        for file in wanted.files:
            _lay(file, folder / file.name)
            if file not in lists:
                _lay(file, folder / "images" / file.name)
        yield {**wanted.values, "prompts": str(folder / lists[0].name)}


def _lay(file: Path, place: Path) -> None:
    """The same file at another place; what the browser has sent may have been cleared away since."""
    try:
        os.link(file, place)
    except FileNotFoundError:
        raise UserError(f"Prompts: {file.name} is not here any more; choose the file again.") from None
    except OSError:  # another disk
        shutil.copyfile(file, place)


def _number(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
