"""How an adapter wants to be asked: as in its training. Torch-free.

What a training was told of images and the system prompt goes into the tokens that its adapter learnt from, and so
does SteerLM's attribute string. Whoever speaks with the adapter later, or trains it further, says `auto` and means
that: the settings are looked up here when a job is made, and stand in its configuration from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database

from jobs.configs import (
    ContestConfig,
    GenerateConfig,
    JobConfig,
    MergeConfig,
    ModelConfig,
    ServeConfig,
    TrainConfig,
)
from jobs.merged import method_of
from jobs.steerlm import METHOD
from storage.adapters import get_adapter
from storage.errors import UserError
from storage.jobs import get_job
from storage.records import Adapter

AUTO = "auto"

#: Settings of a training that whoever asks its adapter must have, too.
KEPT = ("image_fit", "system_prompt")


def trained_with(db: Database, adapter: Adapter) -> dict[str, str]:
    """What an adapter's training had for `KEPT`."""
    config = get_job(db, adapter.job_id).config
    return {name: str(config.get(name, AUTO)) for name in KEPT}


def asked_as(db: Database, adapter: Adapter) -> str:
    """The method as which an adapter is asked: SteerLM where its rows ended with the attribute string."""
    return METHOD if get_job(db, adapter.job_id).config.get("steer") == "on" else adapter.method


def as_trained(db: Database, config: JobConfig) -> JobConfig:
    """A job's configuration with what its adapters were trained with in place of `auto`.

    Raises:
        NotFound: an adapter is not there.
        UserError: its adapters were trained with different settings, and one process can have one alone.
    """
    if not isinstance(config, ModelConfig):
        return config
    adapters = [get_adapter(db, number) for number in adapters_of(config)]
    changes: dict[str, Any] = {}
    for name in KEPT:
        if getattr(config, name) == AUTO and adapters:
            changes[name] = _common(db, adapters, name)
    if isinstance(config, TrainConfig) and config.steer == AUTO:
        before = asked_as(db, adapters[0]) if adapters else method_of(config.model)
        changes["steer"] = "on" if METHOD in (config.kind, before) else "off"
    return config.model_copy(update=changes)


def adapters_of(config: JobConfig) -> tuple[int, ...]:
    """The ids of the adapters that a job speaks with or trains further."""
    match config:
        case ServeConfig():
            return config.adapters
        case ContestConfig():
            return config.adapters_asked
        case MergeConfig():
            return (config.adapter,)
        case GenerateConfig():
            return () if config.adapter is None else (config.adapter,)
        case TrainConfig():
            return () if config.start_adapter is None else (config.start_adapter,)
    return ()


def alike(db: Database, adapters: Sequence[Adapter], wanted: Sequence[int]) -> list[int]:
    """The ids of those that one process can hold beside the wanted ones; these are among them in any case."""
    asked = [trained_with(db, get_adapter(db, number)) for number in wanted[:1]]
    settings = asked[0] if asked else dict.fromkeys(KEPT, AUTO)
    return sorted({*wanted, *(one.id for one in adapters if trained_with(db, one) == settings)})


def _common(db: Database, adapters: Sequence[Adapter], name: str) -> str:
    """The value that all of them were trained with."""
    found: dict[str, Adapter] = {}
    for adapter in adapters:
        found.setdefault(trained_with(db, adapter)[name], adapter)
    if len(found) > 1:
        (ours, one), (theirs, other) = list(found.items())[:2]
        raise UserError(
            f"{name} is auto, and adapter {one.id} ({one.name}) was trained with {ours!r:.80}, adapter {other.id} "
            f"({other.name}) with {theirs!r:.80}: one process asks all of its adapters alike. Ask them one after "
            f"the other, or set {name}."
        )
    return next(iter(found))
