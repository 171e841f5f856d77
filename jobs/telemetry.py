"""No library of ours calls home."""

from __future__ import annotations

from collections.abc import MutableMapping

OFF = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "WANDB_DISABLED": "true",
    "TRACKIO_DISABLED": "1",
    # Else transformers asks the hub's bot to convert a repository of pickles, and names the model to it.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
}


def switch_off(environment: MutableMapping[str, str]) -> None:
    """Set every library's own switch; called before any of them is imported."""
    environment.update(OFF)
