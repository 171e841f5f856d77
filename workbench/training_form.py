"""The form of the four trainings: one form for all of them, in which a method shows what it has.

Plain functions; `workbench/training_panel.py` makes the components, `workbench/pages/jobs.py` wires them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape

from jobs.configs import KINDS, TRAININGS
from storage.records import Dataset
from workbench.forms import Choice, Control, controls_of

TRAINED: tuple[str, ...] = tuple(config.kind for config in TRAININGS)
TAB = "train"

NAMES = {"dpo": "DPO", "steerlm": "SteerLM", "rejection": "Rejection sampling", "sft": "SFT"}
METHODS: tuple[Choice, ...] = tuple((NAMES[kind], kind) for kind in TRAINED)

ABOUT = {
    "dpo": "Direct preference optimisation: learns from pairs to prefer the chosen answer to the rejected one.",
    "steerlm": "Learns every scored answer after its own five values; it is asked with all five at 4.",
    "rejection": "Learns the best of each sample's scored answers.",
    "sft": "Standard supervised fine-tuning: learns the reference answers.",
}

#: The button "Try a step" sets it.
_NOT_SHOWN = frozenset({"only_trial"})

MAIN: tuple[str, ...] = (
    "dataset",
    "model",
    "start_adapter",
    "beta",
    "loss",
    "learning_rate",
    "epochs",
    "max_steps",
    "lora_r",
    "batch_size",
    "global_batch",
    "name",
)

#: Fields for longer texts.
WIDE = frozenset({"loss", "name", "system_prompt", "lora_targets", "watched_prompts", "accelerate_config"})

#: What stands under "Advanced", by heading; a method shows those that it has.
GROUPS: dict[str, tuple[str, ...]] = {
    "Data": ("fraction", "flip", "report_share", "seed", "image_fit", "system_prompt", "steer", "revision"),
    "Preference": ("label_smoothing", "image_weight", "anchor_weight"),
    "LoRA": ("lora_alpha", "lora_dropout", "lora_targets", "train_projector", "projector_learning_rate"),
    "Schedule": ("schedule", "warmup_ratio", "weight_decay"),
    "Watching": (
        "evaluations",
        "patience",
        "keep_checkpoints",
        "watched_samples",
        "watched_prompts",
        "watched_tokens",
        "report_to",
    ),
    "Devices and speed": (
        "device",
        "processes",
        "accelerate_config",
        "dtype",
        "quantization",
        "attention",
        "gradient_checkpointing",
        "shared_prefix",
    ),
}

DROPDOWNS: dict[str, bool] = {"dataset": False, "model": True, "start_adapter": False, "device": False}

#: What several values can be typed for, as the sweep's panel calls it.
SWEPT: dict[str, tuple[str, str]] = {
    "beta": ("β", "0.1, 0.3, 0.5"),
    "learning_rate": ("Learning rate", "5e-5, 5e-6"),
    "epochs": ("Epochs", "2, 3"),
    "fraction": ("Fraction of the data", "0.25, 0.5, 0.75, 1"),
    "flip": ("Labels flipped", "0, 0.25, 0.5"),
    "seed": ("Seed", "0, 1, 2"),
    "loss": ("Loss, with ; between", "sigmoid; robust; ipo"),
}

# What each method learns from, by the data set's count of it.
_NEEDS = {
    "dpo": ("train", "pairs to train on"),
    "steerlm": ("scored_answers", "scored answers"),
    "rejection": ("scored_answers", "scored answers"),
    "sft": ("references", "reference answers"),
}


@cache
def controls(kind: str) -> tuple[Control, ...]:
    """The fields of a method, in the order of its model."""
    return tuple(control for control in controls_of(KINDS[kind]) if control.path not in _NOT_SHOWN)


@cache
def all_controls() -> tuple[Control, ...]:
    """The fields of all methods; one that several have is there once."""
    found: dict[str, Control] = {}
    for kind in TRAINED:
        for control in controls(kind):
            found.setdefault(control.path, control)
    return tuple(found.values())


def paths(kind: str) -> frozenset[str]:
    return frozenset(control.path for control in controls(kind))


def group_shown(heading: str, kind: str) -> bool:
    """Whether the method has any field under this heading."""
    return bool(paths(kind) & set(GROUPS[heading]))


def swept(kind: str) -> tuple[str, ...]:
    """The fields of a method that the sweep's panel offers."""
    return tuple(path for path in SWEPT if path in paths(kind))


def lacks(dataset: Dataset, kind: str) -> str:
    """Why a method cannot learn from a data set, in a few words; "" where it can."""
    name, what = _NEEDS[kind]
    if name not in dataset.counts:
        return f"was frozen before Plumb kept {what}; freeze its pairs again under another name"
    return "" if dataset.counts[name] else f"has no {what}"


def dataset_choices(datasets: Sequence[Dataset], kind: str) -> list[Choice]:
    """Those that the method can learn from, with how much there is."""
    return [(f"{item.name} ({_held(item, kind)})", item.name) for item in datasets if not lacks(item, kind)]


def _held(dataset: Dataset, kind: str) -> str:
    counts = dataset.counts
    if kind == "dpo":
        return f"{counts['train']:,} pairs + {counts.get('heldout', 0):,} held out"
    name, what = _NEEDS[kind]
    return f"{counts[name]:,} {what}"


def hint(datasets: Sequence[Dataset], kind: str) -> str:
    """What is missing before the method makes sense, or which data sets are not offered, as HTML."""
    if not datasets:
        return 'There is no frozen data set yet. <a href="/pairs">Make pairs and freeze them on Pairs</a>.'
    left_out = {item.name: reason for item in datasets if (reason := lacks(item, kind))}
    if not left_out:
        return ""
    named = [f"<b>{escape(name)}</b> {escape(reason)}" for name, reason in list(left_out.items())[:3]]
    more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f'Not offered for {NAMES[kind]}: {"; ".join(named)}{more}. <a href="/pairs">See Pairs</a>.'


def sweep_texts(kind: str, values: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """A grid as the sweep's fields show it; fields that it leaves out, and those of other methods, are empty."""
    return {
        path: ", ".join(f"{value:g}" for value in values.get(path, ())) if path in swept(kind) else ""
        for path in SWEPT
    }
