"""What an adapter's LoRA has otherwise than the form of a training that starts from it. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jobs.configs import TrainConfig

#: Our settings and PEFT's names of them.
SETTINGS = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}


def differences(config: TrainConfig, settings: Mapping[str, Any]) -> list[str]:
    """What an adapter's LoRA has otherwise than the form: its rank can't be changed, and the rest goes with it."""
    found = [
        f"{ours} {settings[theirs]:g}, not {getattr(config, ours):g}"
        for ours, theirs in SETTINGS.items()
        if settings.get(theirs, getattr(config, ours)) != getattr(config, ours)
    ]
    layers = layers_of(settings.get("target_modules"))
    if config.targets and layers and set(config.targets) != set(layers):
        found.append(f"LoRA on {', '.join(layers)}, not {', '.join(config.targets)}")
    return found


def layers_of(targets: Any) -> list[str]:
    """The names of layers in an adapter's `target_modules`; empty where it is an expression of unknown form."""
    if isinstance(targets, list):
        return sorted({str(name).rsplit(".", 1)[-1] for name in targets})
    ours = re.search(r"\(\?:([\w|]+)\)$", targets or "")
    return ours[1].split("|") if ours else []
