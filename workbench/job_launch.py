"""The launch forms of the Jobs page: which fields stand in front, what dropdowns offer, presets.

Plain functions; `workbench/pages/jobs.py` wires them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from jobs.benchmarks.registry import BENCHMARKS
from jobs.configs import KINDS, PRESETS, CallConfig, parse_config
from jobs.judges import rules
from jobs.judges.keys import need_key
from jobs.judges.terms import read_terms
from jobs.merged import list_merged, read_merged
from jobs.models import DEMO, DEMO_TEXT
from jobs.outside import outside_choices
from jobs.rubric import list_rubrics
from jobs.settings import Settings
from storage.adapters import list_adapters
from storage.candidates import count_candidates
from storage.datasets import list_datasets
from storage.errors import UserError
from storage.evaluations import list_evaluations
from storage.finding import SampleFilter, count_samples, facets
from storage.records import Job
from storage.results import samples_without_result
from workbench import training_form
from workbench.forms import Choice, Control, controls_of, flatten
from workbench.training_form import TRAINED

LAUNCHED = ("generate", "judge", "checklist", *TRAINED, "evaluate", "grade", "download")
ESTIMATED = ("judge", "checklist")

# The fields in front, in their order; all others stand under "Advanced".
MAIN: dict[str, tuple[str, ...]] = {
    "generate": (
        "model",
        "adapter",
        "outside",
        "candidates",
        "temperature",
        "max_new_tokens",
        "samples.limit",
        "samples.only_missing",
    ),
    "judge": (
        "judge",
        "model",
        "rubric",
        "mode",
        "checklists",
        "budget",
        "samples.limit",
        "samples.only_missing",
    ),
    "checklist": ("judge", "model", "items", "budget", "samples.limit", "samples.only_missing"),
    **{kind: tuple(path for path in training_form.MAIN if path in training_form.paths(kind)) for kind in TRAINED},
    "evaluate": ("benchmark", "model", "adapter", "outside", "files", "images", "half", "limit", "batch_size"),
    "grade": ("evaluation", "judge", "model", "budget"),
    "download": ("model", "revision"),
}

# Dropdowns whose choices are asked of the database, and whether another value may be typed.
DROPDOWNS: dict[str, dict[str, bool]] = {
    "generate": {
        "model": True,
        "adapter": False,
        "outside": True,
        "device": False,
        "samples.source": False,
        "samples.dataset": False,
    },
    "judge": {
        "judge": False,
        "model": True,
        "rubric": False,
        "mode": False,
        "samples.source": False,
        "samples.dataset": False,
    },
    "checklist": {"judge": False, "model": True, "samples.source": False, "samples.dataset": False},
    **dict.fromkeys(TRAINED, training_form.DROPDOWNS),
    "evaluate": {
        "benchmark": False,
        "model": True,
        "adapter": False,
        "outside": True,
        "half": False,
        "device": False,
    },
    "grade": {"evaluation": False, "judge": False, "model": True},
    "download": {},
}

ABOUT = {
    "generate": "Draw answers from a model for each sample. The answers become candidates.",
    "judge": "Score the candidates. A judge's scores stand beside people's and never replace them.",
    "checklist": "Have a model write what a good answer to each sample must meet. People edit the list beside the "
    "sample, and a judge “with checklists” answers each point before it scores.",
    **training_form.ABOUT,
    "evaluate": "Let one model answer a benchmark. Rules grade what they can at the end (easy-VQA has "
    "19,346 items: set “At most”); the table stands on "
    '<a href="/evaluation">Evaluation</a>.',
    "grade": "Grade an evaluation's answers with a judge, or again by rules. Nothing is generated anew.",
    "download": "Fetch a hub's model into the hub's cache on this machine, so that jobs find it there and need no "
    "network. One that was interrupted goes on in mid-file.",
}

# The fields of a judge job that say nothing where the rule-based judge is asked: it knows no model and no money.
REMOTE_ONLY = frozenset(
    {*CallConfig.model_fields, "rubric", "mode", "checklists", "order_seed", "ask_blocked"} - {"samples"}
)

_JUDGES: dict[str, str] = {
    rules.NAME: "Rules that know easy-VQA",
    "gemini": "Gemini",
    "openai": "OpenAI-compatible endpoint",
}
_MODES: tuple[Choice, ...] = (("all answers together", "together"), ("each answer alone", "alone"))

_HALVES: tuple[Choice, ...] = (
    ("all, for reporting", "all"),
    ("the half for reporting", "reporting"),
    ("the other half, for choosing settings", "selection"),
)

# Merged weights may be the base of others that are merged again.
_MERGED_TIMES = 10

# What a preset leaves alone: whose run it is, not how it runs.
_KEPT = frozenset({"dataset", "model", "name", "device", "start_adapter", "processes", "accelerate_config"})


@dataclass(frozen=True)
class Offers:
    """What the dropdowns offer, by kind and path, and what is missing before a kind makes sense."""

    choices: Mapping[str, Mapping[str, list[Choice]]]
    hints: Mapping[str, str]


def controls(kind: str) -> tuple[Control, ...]:
    return training_form.controls(kind) if kind in TRAINED else controls_of(KINDS[kind])


def tab_of(kind: str) -> str:
    """The tab with a kind's form; the trainings share one."""
    return training_form.TAB if kind in TRAINED else kind


def offers(db: Database, settings: Settings) -> Offers:
    """Real choices: models, adapters, data sets, sources and devices that there are."""
    datasets = list_datasets(db)
    adapters = list_adapters(db)
    merged = {str(folder): f"{folder.name} (merged)" for folder in list_merged(settings.folder.models)}
    models: list[Choice] = [
        (merged.get(name, name), name)
        for name in dict.fromkeys([DEMO, *(adapter.base_model for adapter in adapters), *merged])
    ]
    devices: list[Choice] = [("first that is free", ""), *((name, name) for name in settings.devices)]
    sources: list[Choice] = [("all", ""), *((name, name) for name in facets(db)["source"])]
    samples: dict[str, list[Choice]] = {
        "samples.source": sources,
        "samples.dataset": [("none", ""), *((item.name, item.name) for item in datasets)],
    }
    asked = judge_choices(settings)
    return Offers(
        choices={
            "generate": {
                "model": models,
                "adapter": adapter_choices(db, DEMO),
                "outside": outside_models(settings),
                "device": devices,
                **samples,
            },
            "judge": {**asked, **samples},
            "checklist": {
                "judge": [choice for choice in asked["judge"] if choice[1] != rules.NAME],
                "model": asked["model"],
                **samples,
            },
            **{
                kind: {
                    "dataset": training_form.dataset_choices(datasets, kind),
                    "model": models,
                    "start_adapter": adapter_choices(db, DEMO),
                    "device": devices,
                }
                for kind in TRAINED
            },
            "evaluate": {
                "benchmark": [(f"{one.title} ({one.skill})", one.name) for one in BENCHMARKS.values()],
                "model": [*models, ("demo-text (language model alone)", DEMO_TEXT)],
                "adapter": adapter_choices(db, DEMO),
                "outside": outside_models(settings),
                "half": list(_HALVES),
                "device": devices,
            },
            "grade": {
                "evaluation": _evaluations(db),
                "judge": [("Rules", "rules"), *(choice for choice in asked["judge"] if choice[1] != rules.NAME)],
                "model": asked["model"],
            },
            "download": {},
        },
        hints=_hints(db) | {kind: told for kind in TRAINED if (told := training_form.hint(datasets, kind))},
    )


def _evaluations(db: Database) -> list[Choice]:
    """Those that have answers."""
    return [
        (f"#{one.id}: {one.label} on {one.benchmark}, {one.answers:,} answers", one.id)
        for one in list_evaluations(db)
        if one.answers
    ]


def judge_choices(settings: Settings) -> dict[str, list[Choice]]:
    """Which judges, models of the table, rubrics and modes there are, by path of a judge's form."""
    try:
        table = [row.model for row in read_terms(settings.folder.judges).models]
    except UserError:  # told where the table stands, and when a job is started
        table = []
    return {
        "judge": [(_judge_name(judge, settings), judge) for judge in _JUDGES],
        # A row with * stands for many names: which one is meant is typed.
        "model": [(name, name) for name in table if not name.endswith("*")],
        "rubric": [(rubric.version, rubric.version) for rubric in list_rubrics(settings.folder.judges)],
        "mode": list(_MODES),
    }


def _judge_name(judge: str, settings: Settings) -> str:
    return _JUDGES[judge] + (" (not set up)" if key_hint(judge, settings) else "")


def key_hint(judge: str | None, settings: Settings) -> str:
    """What to do before this judge can be asked, as HTML; "" where it can."""
    try:
        need_key(judge or "", settings)
    except UserError as error:
        return f'{escape(str(error))} <a href="/judges">See Judges</a>.'
    return ""


def is_remote(judge: str | None) -> bool:
    return judge != rules.NAME


def remote_fields(kind: str) -> list[str]:
    """The paths of a kind's fields that matter for remote judges alone; none where all judges are remote."""
    if kind != "judge":
        return []
    return [control.path for control in controls(kind) if control.path in REMOTE_ONLY]


def adapter_choices(db: Database, model: str) -> list[Choice]:
    """The base itself, then the adapters of this base, newest first."""
    return [
        ("none: the base itself", ""),
        *((f"{adapter.name} (#{adapter.id})", adapter.id) for adapter in list_adapters(db, model)),
    ]


def outside_models(settings: Settings) -> list[Choice]:
    """None of them, then what endpoints serve now; nothing where no endpoint is set, so that no field is shown."""
    return [("none: base or adapter", ""), *outside_choices(settings)] if settings.endpoints else []


def _hints(db: Database) -> dict[str, str]:
    hints = {}
    if not count_samples(db, SampleFilter()):
        hints["generate"] = (
            'There are no samples to answer yet. <a href="/">Load the demo or import some on Samples</a>.'
        )
        hints["checklist"] = (
            'There are no samples to write checklists for yet. <a href="/">Load the demo or import some on '
            "Samples</a>."
        )
    if not count_candidates(db):
        hints["judge"] = "There are no candidates to score yet. Generate some first."
    if not _evaluations(db):
        hints["grade"] = "There are no answers to a benchmark yet. Evaluate a model first."
    return hints


def preset_for(model: str) -> str:
    """The preset that fits a model of this name; merged weights are trained as their base is."""
    for _ in range(_MERGED_TIMES):
        made = None
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # a name that can be no path
            made = read_merged(Path(model).expanduser())
        if made is None:
            break
        model = made.base_model
    return "demo" if model == DEMO else "paper"


def preset_values(kind: str, name: str) -> dict[str, Any]:
    """All that a preset decides, by path: the model's defaults with the preset's values over them."""
    values = {control.path: control.default for control in controls(kind) if control.path not in _KEPT}
    return values | PRESETS[kind][name]


def rerun_values(job: Job) -> dict[str, Any]:
    """A job's frozen settings by path, to fill its form again; what its form lacks is left out."""
    known = {control.path for control in controls(job.kind)}
    try:  # a setting of an earlier version stands there under today's name
        config = parse_config(job.kind, job.config).model_dump(mode="json")
    except UserError:  # one that today's bounds refuse: the form will say so
        config = job.config
    return {path: value for path, value in flatten(config).items() if path in known}


def rest_values(db: Database, job: Job) -> dict[str, Any]:
    """A judge or checklist job's settings, for those of its samples alone that it brought nothing usable for."""
    rest = samples_without_result(db, job.id)
    if not rest:
        return rerun_values(job)  # no ids would mean all samples
    chosen = dict.fromkeys(("samples.source", "samples.dataset", "samples.split", "samples.limit"))
    again = {"samples.ids": tuple(rest), "samples.only_missing": True}
    if "blocked" in rest.values():
        again["ask_blocked"] = True
    known = {control.path for control in controls(job.kind)}
    return rerun_values(job) | {path: value for path, value in {**chosen, **again}.items() if path in known}


def start_values(kind: str, query: Mapping[str, str]) -> dict[str, Any]:
    """What a fresh form shows: defaults, the demo preset, and what the page's address asks for."""
    values = {control.path: control.default for control in controls(kind)}
    if kind in PRESETS:
        values |= PRESETS[kind][preset_for(query.get("model") or DEMO)]
    for control in controls(kind):
        asked = query.get(control.path, "")
        if asked and control.kind in ("text", "choice"):
            values[control.path] = asked
        elif asked and control.kind == "integer" and asked.isdecimal():
            values[control.path] = int(asked)
    return values
