"""One configuration model a job kind; torch-free, so that a bad value dies before a device is claimed.

Every field has bounds and a reason for its default. The forms of the Jobs page are made from these models
(title, description, bounds), the command line reads the same models from JSON.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from jobs.models import DEMO
from storage.errors import UserError


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
    device: str | None = Field(None, title="Device", description="cpu, cuda:0 …; empty: the first that is free")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", title="Precision", description="auto: as the weights were saved"
    )


class GenerateConfig(ModelConfig):
    """Sample n candidates for each sample (paper.md, section 1: four answers a prompt)."""

    kind: ClassVar[str] = "generate"
    resumable: ClassVar[bool] = True

    adapter: int | None = Field(None, title="Adapter", description="id of an adapter; empty: the base")
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

    @model_validator(mode="after")
    def _greedy_gives_one(self) -> GenerateConfig:
        if self.temperature == 0 and self.candidates > 1:
            raise ValueError(
                f"temperature 0 gives the same answer {self.candidates} times; "
                "set candidates to 1 or raise the temperature"
            )
        return self


class CallConfig(JobConfig):
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


class DpoConfig(ModelConfig):
    """Direct preference optimisation with LoRA (paper.md, section 4)."""

    kind: ClassVar[str] = "dpo"

    dataset: str = Field(min_length=1, title="Data set", description="the name of a frozen data set")
    name: str = Field("", max_length=80, title="Adapter's name", description="empty: made from the job")
    beta: float = Field(0.1, gt=0.0, le=10.0, title="β", description="strength of the pull to the reference")
    learning_rate: float = Field(5e-5, gt=0.0, le=1.0, title="Learning rate")
    epochs: float = Field(3.0, gt=0.0, le=100.0, title="Epochs")
    max_steps: int = Field(-1, ge=-1, le=10_000_000, title="At most steps", description="-1: as epochs say")
    batch_size: int = Field(8, ge=1, le=1024, title="Pairs a batch", description="on the device at once")
    accumulation: int = Field(
        16, ge=1, le=1024, title="Accumulation", description="batches a step: 8 × 16 = 128, as in the paper"
    )
    lora_r: int = Field(128, ge=1, le=1024, title="LoRA rank")
    lora_alpha: int = Field(256, ge=1, le=4096, title="LoRA alpha")
    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0, title="LoRA dropout")
    warmup_ratio: float = Field(0.03, ge=0.0, lt=1.0, title="Warm-up", description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", title="Schedule")
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, title="Weight decay")
    gradient_checkpointing: bool = Field(
        False, title="Gradient checkpointing", description="less memory, slower: for large models"
    )
    shared_prefix: bool = Field(
        True,
        title="One sequence a pair",
        description="image and prompt once for both answers: the same numbers, faster; off: TRL's way",
    )
    evaluations: int = Field(
        4, ge=0, le=100, title="Held-out evaluations", description="spread over the run; 0: none"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed")


class ServeConfig(ModelConfig):
    """The chat's resident model: a base and any number of its adapters."""

    kind: ClassVar[str] = "serve"

    adapters: tuple[int, ...] = Field((), title="Adapters", description="ids of adapters of this base")
    idle_minutes: float = Field(
        15.0, gt=0.0, le=24 * 60.0, title="Leave when idle for", description="minutes; frees the device"
    )


KINDS: dict[str, type[JobConfig]] = {
    model.kind: model for model in (GenerateConfig, ChecklistConfig, JudgeConfig, DpoConfig, ServeConfig)
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {
        # paper.md, section 4: the table of hyperparameters; bf16 as there.
        "paper": {"dtype": "bfloat16", "gradient_checkpointing": True},
        # About two minutes on 2 cores with the demo VLM: see docs/log.md.
        "demo": {
            "learning_rate": 2e-4,
            "epochs": 1.0,
            "max_steps": 30,
            "batch_size": 8,
            "accumulation": 1,
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "warmup_ratio": 0.1,
            "evaluations": 2,
        },
    },
}


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
