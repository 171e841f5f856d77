"""What every job's configuration has: torch-free, so that a bad value dies before a device is claimed.

Every field has bounds and a reason for its default. The forms of the Jobs page are made from these models
(title, description, bounds), the command line reads the same models from JSON.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jobs.models import DEMO, check_revision


class Selection(BaseModel):
    """Which samples a job works on; resolved to rows when the job is frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: tuple[int, ...] | None = Field(None, title="Sample ids", description="empty: all that fit the rest")
    source: str | None = Field(None, title="Source", description="only samples of this source")
    dataset: str | None = Field(None, title="Data set", description="only the samples of this frozen data set")
    split: Literal["train", "heldout"] | None = Field(
        None, title="Split", description="of that data set: train or heldout"
    )
    limit: int | None = Field(None, ge=1, le=1_000_000, title="At most", description="samples, in their order")
    only_missing: bool = Field(
        True,
        title="Only what is missing",
        description="skip samples that this model or judge has already answered",
    )

    @model_validator(mode="after")
    def _split_needs_dataset(self) -> Selection:
        if self.split and not self.dataset:
            raise ValueError(f"split {self.split!r} needs a data set; name one in 'dataset'")
        return self


class JobConfig(BaseModel):
    """What every kind has.

    Attributes:
        device_kind: whether the job takes a device slot or a network slot.
        resumable: it skips what its run folder already holds, so that it can go on where it ended.
        pausable: it asks nothing while its run folder's `control` says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]
    device_kind: ClassVar[Literal["device", "network"]] = "device"
    resumable: ClassVar[bool] = False
    pausable: ClassVar[bool] = False


class ModelConfig(JobConfig):
    """A job that loads a model."""

    model: str = Field(
        DEMO, min_length=1, title="Base model", description="demo, a folder, or a hub name like owner/name"
    )
    revision: str = Field(
        "", title="Revision", description="a commit, branch or tag of a hub's model; empty: main"
    )
    device: str | None = Field(None, title="Device", description="cpu, cuda:0 …; empty: the first that is free")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", title="Precision", description="auto: as the weights were saved; float32 on a CPU without bfloat16"
    )
    quantization: Literal["none", "4bit"] = Field(
        "none", title="Quantization", description="4bit: bitsandbytes' NF4, on CUDA alone"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", title="Attention", description="flash: on CUDA alone, and not with one sequence a pair"
    )
    image_fit: Literal["auto", "square", "processor"] = Field(
        "auto",
        title="Images",
        description="square: padded, so that nothing is cropped; auto: for LLaVA-1.5, else as the processor does",
    )
    system_prompt: str = Field(
        "auto",
        max_length=4000,
        title="System prompt",
        description="where a chat has none; auto: Vicuna's for LLaVA-1.5, else none",
    )

    @field_validator("revision")
    @classmethod
    def _revision_is_one(cls, value: str) -> str:
        return check_revision(value)


class RemoteConfig(JobConfig):
    """A job that asks a remote model: which one, how, and what it may cost."""

    device_kind: ClassVar[Literal["device", "network"]] = "network"
    resumable: ClassVar[bool] = True
    pausable: ClassVar[bool] = True

    model: str = Field(
        "gemini-2.5-flash",
        min_length=1,
        max_length=200,
        title="Judge's model",
        description="as the provider names it; its price and limits stand on the Judges page",
    )
    budget: float = Field(
        1.0, gt=0.0, le=1_000_000.0, title="Budget", description="dollars; the job stops before it would cost more"
    )
    max_requests: int | None = Field(
        None, ge=1, le=100_000_000, title="At most requests", description="empty: as the budget allows"
    )
    temperature: float = Field(0.0, ge=0.0, le=2.0, title="Temperature", description="0: the same again")
    max_output_tokens: int = Field(
        8192, ge=64, le=65_536, title="Longest reply", description="tokens; a model's thinking counts among them"
    )
    timeout: float = Field(120.0, ge=1.0, le=3600.0, title="Wait for a reply", description="seconds")
    concurrency: int = Field(
        16, ge=1, le=256, title="Requests at once", description="limits a minute hold whatever stands here"
    )
    second_tries: int = Field(
        1,
        ge=0,
        le=5,
        title="Ask again",
        description="times, where a reply was cut off or cannot be read; each is paid",
    )
