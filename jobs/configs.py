"""One configuration model a job kind; torch-free, so that a bad value dies before a device is claimed.

What all have is in config_base.py, the trainings are in config_training.py, contests in config_contest.py,
evaluations in config_evaluation.py.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from jobs.config_base import JobConfig, ModelConfig, RemoteConfig, Selection
from jobs.config_contest import ContestConfig
from jobs.config_evaluation import EvaluateConfig, GradeConfig
from jobs.config_training import (
    TRAINING_PRESETS,
    DpoConfig,
    RejectionConfig,
    SftConfig,
    SteerlmConfig,
    TrainConfig,
)
from jobs.models import check_revision
from storage.errors import UserError
from storage.speakers import Speaker

__all__ = [
    "KINDS",
    "PRESETS",
    "TRAININGS",
    "CallConfig",
    "ChecklistConfig",
    "ContestConfig",
    "DownloadConfig",
    "DpoConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "GradeConfig",
    "JobConfig",
    "JudgeConfig",
    "MergeConfig",
    "ModelConfig",
    "PushConfig",
    "RejectionConfig",
    "Selection",
    "ServeConfig",
    "SftConfig",
    "SteerlmConfig",
    "TrainConfig",
    "explain",
    "parse_config",
]


class GenerateConfig(ModelConfig):
    """Sample n candidates for each sample (paper.md, section 1: four answers a prompt)."""

    kind: ClassVar[str] = "generate"
    resumable: ClassVar[bool] = True

    adapter: int | None = Field(None, title="Adapter", description="id of an adapter; empty: the base")
    outside: str = Field(
        "",
        max_length=240,
        title="Outside model",
        description="MODEL@ENDPOINT: asked in place of base and adapter, and needs no device; empty: none",
    )
    samples: Selection = Field(Selection(), title="Samples")
    candidates: int = Field(4, ge=1, le=26, title="Candidates a sample", description="the paper draws 4")
    temperature: float = Field(
        1.0, ge=0.0, le=2.0, title="Temperature", description="0 is greedy; the paper used 0.7 to 1.2"
    )
    top_p: float = Field(1.0, gt=0.0, le=1.0, title="Top-p")
    max_new_tokens: int = Field(
        64, ge=1, le=4096, title="Longest answer", description="tokens; 1,024 in the paper"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed")
    batch_size: int = Field(
        8, ge=1, le=256, title="Samples a batch", description="each brings its candidates: 8 × 4 = 32 rows"
    )

    @property
    def device_kind(self) -> Literal["device", "network"]:  # type: ignore[override]
        """An outside model takes a network slot."""
        return "network" if self.outside else "device"

    @field_validator("outside")
    @classmethod
    def _spelt_as_one(cls, value: str) -> str:
        held = value.strip()
        if held and Speaker(held).outside is None:
            raise ValueError("write it as MODEL@ENDPOINT, the model as its endpoint calls it, or leave it empty")
        return held

    @model_validator(mode="after")
    def _one_speaker(self) -> GenerateConfig:
        if self.outside and self.adapter is not None:
            raise ValueError(
                f"adapter = {self.adapter} and outside = {self.outside!r} both say who answers; leave one empty"
            )
        return self

    @model_validator(mode="after")
    def _greedy_gives_one(self) -> GenerateConfig:
        if self.temperature == 0 and self.candidates > 1:
            raise ValueError(
                f"temperature 0 gives the same answer {self.candidates} times; "
                "set candidates to 1 or raise the temperature"
            )
        return self


class CallConfig(RemoteConfig):
    """A remote model that is asked about samples."""

    samples: Selection = Field(Selection(), title="Samples")


class JudgeConfig(CallConfig):
    """Score the candidates of each sample with a judge (paper.md, section 2)."""

    kind: ClassVar[str] = "judge"

    judge: Literal["easy-vqa-rules", "gemini", "openai"] = Field(
        "easy-vqa-rules",
        title="Judge",
        description="rules: knows easy-VQA's answers, costs nothing; openai: any endpoint of that kind",
    )
    rubric: str = Field(
        "plumb-1", min_length=1, title="Rubric", description="a version; new ones are made on Judges"
    )
    mode: Literal["together", "alone"] = Field(
        "together", title="Mode", description="all answers of a sample in one request, or each alone"
    )
    checklists: bool = Field(
        False, title="With checklists", description="only samples that have one; made by a checklist job"
    )
    order_seed: int = Field(
        0, ge=0, le=2**31 - 1, title="Order's seed", description="shuffles the answers; another seed judges anew"
    )
    ask_blocked: bool = Field(
        False, title="Ask blocked ones again", description="samples that the provider has refused to judge"
    )

    @field_validator("checklists")
    @classmethod
    def _rules_take_none(cls, value: bool, info: ValidationInfo) -> bool:
        """A form may still hold the choice that it hides for the rule-based judge."""
        return value and info.data.get("judge") != "easy-vqa-rules"


class ChecklistConfig(CallConfig):
    """Write a checklist for each sample, once (arXiv 2604.13029)."""

    kind: ClassVar[str] = "checklist"

    judge: Literal["gemini", "openai"] = Field(
        "gemini", title="Written by", description="openai: any endpoint of that kind"
    )
    items: int = Field(8, ge=2, le=20, title="At most items", description="essential and additional together")


class ServeConfig(ModelConfig):
    """The chat's resident model: a base and any number of its adapters."""

    kind: ClassVar[str] = "serve"

    adapters: tuple[int, ...] = Field((), title="Adapters", description="ids of adapters of this base")
    idle_minutes: float = Field(
        15.0, gt=0.0, le=24 * 60.0, title="Leave when idle for", description="minutes; frees the device"
    )


class MergeConfig(ModelConfig):
    """Merge an adapter into its base: full weights that load with plain `from_pretrained`."""

    kind: ClassVar[str] = "merge"

    adapter: int = Field(title="Adapter", description="id of an adapter of this base")
    name: str = Field(
        "",
        max_length=80,
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*)?$",
        title="Name",
        description="of the folder below models/merged; empty: made from the adapter's",
    )


class PushConfig(JobConfig):
    """Upload an adapter with its card, or merged weights, to a hub."""

    kind: ClassVar[str] = "push"
    device_kind: ClassVar[Literal["device", "network"]] = "network"
    resumable: ClassVar[bool] = True

    adapter: int | None = Field(None, title="Adapter", description="id; or name merged weights below")
    merged: str = Field("", title="Merged weights", description="the name of a folder below models/merged")
    repository: str = Field(
        min_length=3, max_length=96, title="Repository", description="owner/name; made where it isn't there"
    )
    private: bool = Field(True, title="Private")

    @model_validator(mode="after")
    def _one_of_them(self) -> PushConfig:
        if (self.adapter is None) == (not self.merged):
            raise ValueError("give either an adapter or the name of merged weights")
        return self


class DownloadConfig(JobConfig):
    """Fetch a hub's model into the hub's cache, so that jobs find it on this machine."""

    kind: ClassVar[str] = "download"
    device_kind: ClassVar[Literal["device", "network"]] = "network"
    resumable: ClassVar[bool] = True

    model: str = Field(
        min_length=3, max_length=200, title="Model", description="a hub name like llava-hf/llava-1.5-7b-hf"
    )
    revision: str = Field("", title="Revision", description="a commit, branch or tag; empty: main")

    @field_validator("revision")
    @classmethod
    def _revision_is_one(cls, value: str) -> str:
        return check_revision(value)


#: The trainings, in the order of the paper's table.
TRAININGS: tuple[type[TrainConfig], ...] = (DpoConfig, SteerlmConfig, RejectionConfig, SftConfig)

_ALL: tuple[type[JobConfig], ...] = (
    GenerateConfig,
    ChecklistConfig,
    JudgeConfig,
    *TRAININGS,
    ServeConfig,
    ContestConfig,
    EvaluateConfig,
    GradeConfig,
    MergeConfig,
    PushConfig,
    DownloadConfig,
)
KINDS: dict[str, type[JobConfig]] = {model.kind: model for model in _ALL}

PRESETS: dict[str, dict[str, dict[str, Any]]] = TRAINING_PRESETS


def parse_config(kind: str, values: dict[str, Any]) -> JobConfig:
    """Check `values` against the model of `kind`.

    Raises:
        UserError: an unknown kind; an unknown field; a value out of bounds. The text names each field,
            its value and what is allowed.
    """
    if kind not in KINDS:
        raise UserError(f"Unknown job kind {kind!r}; use one of {', '.join(sorted(KINDS))}.")
    try:
        return KINDS[kind].model_validate(values)
    except ValidationError as error:
        raise UserError(f"The {kind} job cannot start: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """pydantic's findings as one sentence each: field, value, remedy."""
    parts = []
    for found in error.errors():
        field = ".".join(str(part) for part in found["loc"])
        message = found["msg"].removeprefix("Value error, ")
        if not field:
            parts.append(message)
        elif found["type"] == "missing":
            parts.append(f"{field} is missing; give one")
        elif found["type"] == "extra_forbidden":
            parts.append(f"{field} is not a setting of this kind; remove it")
        else:
            value = repr(found["input"])
            shown = value if len(value) <= 80 else value[:77] + "…"
            parts.append(f"{field} = {shown}: {message[0].lower()}{message[1:]}")
    return "; ".join(parts) + "."
