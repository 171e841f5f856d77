"""The launch forms of the Jobs page: which fields stand in front, what dropdowns offer, presets.

Plain functions; `workbench/pages/jobs.py` wires them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from jobs.configs import KINDS, PRESETS
from jobs.models import DEMO
from jobs.settings import Settings
from storage.adapters import list_adapters
from storage.candidates import count_candidates
from storage.datasets import list_datasets
from storage.records import Job
from storage.samples import SampleFilter, count_samples, facets
from workbench.forms import Choice, Control, controls_of, flatten

LAUNCHED = ("generate", "judge", "dpo")

# The fields in front, in their order; all others stand under "Advanced".
MAIN: dict[str, tuple[str, ...]] = {
    "generate": (
        "model",
        "adapter",
        "candidates",
        "temperature",
        "max_new_tokens",
        "samples.limit",
        "samples.only_missing",
    ),
    "judge": ("judge", "samples.limit", "samples.only_missing"),
    "dpo": ("dataset", "model", "name", "beta", "learning_rate", "epochs", "max_steps", "batch_size", "lora_r"),
}

# Dropdowns whose choices are asked of the database, and whether another value may be typed.
DROPDOWNS: dict[str, dict[str, bool]] = {
    "generate": {
        "model": True,
        "adapter": False,
        "device": False,
        "samples.source": False,
        "samples.dataset": False,
    },
    "judge": {"samples.source": False, "samples.dataset": False},
    "dpo": {"dataset": False, "model": True, "device": False},
}

ABOUT = {
    "generate": "Draw answers from a model for each sample. The answers become candidates.",
    "judge": "Score the candidates. A judge's scores stand beside people's and never replace them.",
    "dpo": "Train a LoRA adapter on a frozen data set of pairs, by direct preference optimisation.",
}

# What a preset leaves alone: whose run it is, not how it runs.
_KEPT = frozenset({"dataset", "model", "name", "device"})


@dataclass(frozen=True)
class Offers:
    """What the dropdowns offer, by kind and path, and what is missing before a kind makes sense."""

    choices: Mapping[str, Mapping[str, list[Choice]]]
    hints: Mapping[str, str]


def controls(kind: str) -> tuple[Control, ...]:
    return controls_of(KINDS[kind])


def offers(db: Database, settings: Settings) -> Offers:
    """Real choices: models, adapters, data sets, sources and devices that there are."""
    datasets = list_datasets(db)
    adapters = list_adapters(db)
    models: list[Choice] = [
        (name, name) for name in dict.fromkeys([DEMO, *(adapter.base_model for adapter in adapters)])
    ]
    devices: list[Choice] = [("first that is free", ""), *((name, name) for name in settings.devices)]
    sources: list[Choice] = [("all", ""), *((name, name) for name in facets(db)["source"])]
    frozen: list[Choice] = [
        (f"{item.name} ({item.counts.get('train', 0)} + {item.counts.get('heldout', 0)} held out)", item.name)
        for item in datasets
    ]
    samples: dict[str, list[Choice]] = {
        "samples.source": sources,
        "samples.dataset": [("none", ""), *((item.name, item.name) for item in datasets)],
    }
    return Offers(
        choices={
            "generate": {"model": models, "adapter": adapter_choices(db, DEMO), "device": devices, **samples},
            "judge": dict(samples),
            "dpo": {"dataset": frozen, "model": models, "device": devices},
        },
        hints=_hints(db, bool(datasets)),
    )


def adapter_choices(db: Database, model: str) -> list[Choice]:
    """The base itself, then the adapters of this base, newest first."""
    return [
        ("none: the base itself", ""),
        *((f"{adapter.name} (#{adapter.id})", adapter.id) for adapter in list_adapters(db, model)),
    ]


def _hints(db: Database, has_datasets: bool) -> dict[str, str]:
    hints = {}
    if not count_samples(db, SampleFilter()):
        hints["generate"] = (
            'There are no samples to answer yet. <a href="/">Load the demo or import some on Samples</a>.'
        )
    if not count_candidates(db):
        hints["judge"] = "There are no candidates to score yet. Generate some first."
    if not has_datasets:
        hints["dpo"] = 'There is no frozen data set yet. <a href="/pairs">Make pairs and freeze them on Pairs</a>.'
    return hints


def preset_for(model: str) -> str:
    """The preset that fits a model of this name."""
    return "demo" if model == DEMO else "paper"


def preset_values(kind: str, name: str) -> dict[str, Any]:
    """All that a preset decides, by path: the model's defaults with the preset's values over them."""
    values = {control.path: control.default for control in controls(kind) if control.path not in _KEPT}
    return values | PRESETS[kind][name]


def rerun_values(job: Job) -> dict[str, Any]:
    """A job's frozen settings by path, to fill its form again; what its form lacks is left out."""
    known = {control.path for control in controls(job.kind)}
    return {path: value for path, value in flatten(job.config).items() if path in known}


def start_values(kind: str, query: Mapping[str, str]) -> dict[str, Any]:
    """What a fresh form shows: defaults, the demo preset, and what the page's address asks for."""
    values = {control.path: control.default for control in controls(kind)}
    if kind in PRESETS:
        values |= PRESETS[kind][preset_for(DEMO)]
    for control in controls(kind):
        asked = query.get(control.path, "")
        if asked and control.kind in ("text", "choice"):
            values[control.path] = asked
        elif asked and control.kind == "integer" and asked.isdecimal():
            values[control.path] = int(asked)
    return values
