"""The four trainings' settings (paper.md, section 4), and their presets."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config_base import ModelConfig
from jobs.losses import parse_losses

#: Where several texts stand in one field.
BETWEEN = "|"


class TrainConfig(ModelConfig):
    """What the four methods have in common: LoRA on the language model, one schedule, one way to watch."""

    resumable: ClassVar[bool] = True

    dataset: str = Field(min_length=1, title="Data set", description="the name of a frozen data set")
    name: str = Field("", max_length=80, title="Adapter's name", description="empty: made from the job")
    start_adapter: int | None = Field(
        None, title="Start from", description="id of an adapter of this base, trained further; empty: the base"
    )
    learning_rate: float = Field(gt=0.0, le=1.0, title="Learning rate")
    epochs: float = Field(3.0, gt=0.0, le=100.0, title="Epochs")
    max_steps: int = Field(-1, ge=-1, le=10_000_000, title="At most steps", description="-1 or 0: as epochs say")
    batch_size: int = Field(8, ge=1, le=1024, title="Rows a batch", description="on each device at once")
    global_batch: int = Field(
        128, ge=1, le=1_000_000, title="Rows a step", description="reached by accumulation; 128 in the paper"
    )
    fraction: float = Field(
        1.0, gt=0.0, le=1.0, title="Fraction of the data", description="of the rows to train on; smaller ⊂ larger"
    )
    lora_r: int = Field(128, ge=1, le=1024, title="LoRA rank")
    lora_alpha: int = Field(256, ge=1, le=4096, title="LoRA alpha")
    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0, title="LoRA dropout")
    lora_targets: str = Field(
        "",
        max_length=400,
        title="LoRA on",
        description="names of linear layers with commas between them; empty: all of the language model",
    )
    train_projector: bool = Field(
        False, title="Train the projector", description="between vision tower and language model, in full"
    )
    projector_learning_rate: float = Field(2e-5, gt=0.0, le=1.0, title="Projector's learning rate")
    warmup_ratio: float = Field(0.03, ge=0.0, lt=1.0, title="Warm-up", description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", title="Schedule")
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, title="Weight decay")
    gradient_checkpointing: bool = Field(
        False, title="Gradient checkpointing", description="less memory, slower: for large models"
    )
    evaluations: int = Field(
        4, ge=0, le=100, title="Held-out evaluations", description="spread over the run, with checkpoints; 0: none"
    )
    report_share: float = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        title="Share kept for the report",
        description="of the held-out pairs: looked at once, at the end, so that nothing is chosen by them",
    )
    patience: int = Field(
        0,
        ge=0,
        le=100,
        title="Patience",
        description="evaluations without a better held-out accuracy before it stops and takes the best; 0: never",
    )
    keep_checkpoints: int = Field(
        1, ge=0, le=100, title="Checkpoints kept", description="for going on after a stop; 0: none are written"
    )
    watched_samples: int = Field(
        4, ge=0, le=50, title="Watched samples", description="held-out ones answered at every evaluation"
    )
    watched_prompts: str = Field(
        "Write two sentences about the sea. | List three kinds of fruit.",
        max_length=2000,
        title="Watched prompts",
        description=f"text alone, with {BETWEEN} between them",
    )
    watched_tokens: int = Field(48, ge=1, le=2048, title="Longest watched answer", description="tokens")
    steer: Literal["auto", "on", "off"] = Field(
        "auto",
        title="SteerLM's string",
        description="ends each question, all values at 4; auto: where what training starts from is asked with it",
    )
    processes: int = Field(
        1, ge=1, le=1024, title="Devices", description="processes, one a device; the run waits until all are free"
    )
    accelerate_config: str = Field(
        "",
        max_length=1000,
        title="accelerate's config file",
        description="brings FSDP, DeepSpeed and several nodes; empty: one process a device",
    )
    report_to: str = Field(
        "tensorboard",
        max_length=200,
        title="Report to",
        description="transformers' trackers with commas between them: tensorboard, wandb, mlflow …; may be empty",
    )
    only_trial: bool = Field(
        False, title="Only try a step", description="load, run one step on the longest rows, tell time and memory"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed")

    @model_validator(mode="before")
    @classmethod
    def _rows_a_step(cls, values: Any) -> Any:
        """Jobs of version 0.2 and before said how many batches make a step."""
        if isinstance(values, dict) and "accumulation" in values:
            values = dict(values)
            batches = values.pop("accumulation")
            default = cls.model_fields["batch_size"].default
            values.setdefault("global_batch", values.get("batch_size", default) * batches)
        return values

    @field_validator("name")
    @classmethod
    def _name_in_one_line(cls, value: str) -> str:
        if not value.isprintable():  # it stands in lists, in a model card's heading, in a front matter
            raise ValueError("give a name in one line, without line breaks or tabs")
        return value

    @model_validator(mode="after")
    def _batches_fit(self) -> TrainConfig:
        at_once = self.batch_size * self.processes
        if self.global_batch % at_once:
            sizes = range(1, self.batch_size + 1)
            fitting = [size for size in sizes if not self.global_batch % (size * self.processes)]
            remedy = f"set batch_size to {fitting[-1]}, or change global_batch" if fitting else "change it"
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of batch_size × processes = "
                f"{self.batch_size} × {self.processes} = {at_once}; {remedy}"
            )
        return self

    @model_validator(mode="after")
    def _patience_has_evaluations(self) -> TrainConfig:
        if self.patience and not self.evaluations:
            raise ValueError(f"patience {self.patience} counts evaluations, of which there are 0; set evaluations")
        return self

    @property
    def accumulation(self) -> int:
        """Batches a step on each device."""
        return self.global_batch // (self.batch_size * self.processes)

    @property
    def asked_as(self) -> str:
        """The method as which the adapter is asked: SteerLM's string is for whatever goes on from SteerLM, too."""
        return "steerlm" if self.steer == "on" else self.kind

    @property
    def prompts(self) -> tuple[str, ...]:
        """The watched prompts."""
        return tuple(text.strip() for text in self.watched_prompts.split(BETWEEN) if text.strip())

    @property
    def targets(self) -> tuple[str, ...]:
        """The layers named for LoRA; none: all linear ones of the language model."""
        return tuple(name.strip() for name in self.lora_targets.split(",") if name.strip())

    @property
    def trackers(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.report_to.split(",") if name.strip())


class DpoConfig(TrainConfig):
    """Direct preference optimisation with LoRA (paper.md, section 4)."""

    kind: ClassVar[str] = "dpo"

    learning_rate: float = Field(5e-5, gt=0.0, le=1.0, title="Learning rate")
    batch_size: int = Field(8, ge=1, le=1024, title="Pairs a batch", description="on each device at once")
    global_batch: int = Field(
        128, ge=1, le=1_000_000, title="Pairs a step", description="reached by accumulation; 128 in the paper"
    )
    beta: float = Field(0.1, gt=0.0, le=10.0, title="β", description="strength of the pull to the reference")
    loss: str = Field(
        "sigmoid",
        min_length=1,
        max_length=400,
        title="Loss",
        description="TRL's losses, with weights and + between them: 0.8 sigmoid + 0.2 bco_pair + 1.0 sft",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0.0,
        lt=0.5,
        title="Label smoothing",
        description="share of labels taken to be wrong; robust, exo_pair, aot",
    )
    image_weight: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        title="Weight of the image's term",
        description="mDPO: the chosen answer is likelier with its image than with a scrap of it; 1 there; 0: off",
    )
    anchor_weight: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        title="Weight of the anchor",
        description="mDPO: the chosen answer's reward stays above 0",
    )
    flip: float = Field(
        0.0, ge=0.0, le=1.0, title="Labels flipped", description="share of the pairs to train on, for noise curves"
    )
    shared_prefix: bool = Field(
        True,
        title="One sequence a pair",
        description="image and prompt once for both answers: the same numbers, faster; off: TRL's way",
    )

    @field_validator("loss")
    @classmethod
    def _known_losses(cls, value: str) -> str:
        parse_losses(value)
        return value

    @model_validator(mode="after")
    def _smoothing_fits(self) -> DpoConfig:
        names = {name for name, _ in parse_losses(self.loss)}
        takers = {"robust", "exo_pair", "aot", "aot_unpaired"}
        if self.label_smoothing and not names & takers:
            raise ValueError(
                f"label_smoothing {self.label_smoothing} does nothing for {self.loss!r}; set it to 0, "
                "or the loss to robust"
            )
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError("exo_pair needs label_smoothing above 0; its paper recommends 0.001")
        return self


class SupervisedConfig(TrainConfig):
    """The three methods that are supervised fine-tuning on different rows."""

    learning_rate: float = Field(4e-4, gt=0.0, le=1.0, title="Learning rate")


class SteerlmConfig(SupervisedConfig):
    """Every scored answer after its own five values; at inference all five are 4 (paper.md, section 4)."""

    kind: ClassVar[str] = "steerlm"

    shared_prefix: bool = Field(
        True,
        title="One sequence a sample",
        description="a sample's answers in one batch, image and question once for all of them: faster",
    )


class RejectionConfig(SupervisedConfig):
    """The best of each sample's answers: rejection sampling (paper.md, section 4)."""

    kind: ClassVar[str] = "rejection"


class SftConfig(SupervisedConfig):
    """The reference answers: standard supervised fine-tuning (paper.md, section 4)."""

    kind: ClassVar[str] = "sft"


# paper.md, section 4: the table of hyperparameters is what the fields default to; bf16 as there.
_PAPER: dict[str, Any] = {"dtype": "bfloat16", "gradient_checkpointing": True, "train_projector": True}
# About two minutes on 2 cores with the demo VLM: see docs/log.md.
_DEMO: dict[str, Any] = {
    "epochs": 1.0,
    "max_steps": 30,
    "batch_size": 8,
    "global_batch": 8,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "warmup_ratio": 0.1,
    "evaluations": 2,
}

TRAINING_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {
        "paper": _PAPER,
        # InternVL's mixed preference optimisation (paper.md, section 6).
        "MPO": {**_PAPER, "loss": "0.8 sigmoid + 0.2 bco_pair + 1.0 sft"},
        "mDPO": {**_PAPER, "image_weight": 1.0, "anchor_weight": 1.0},
        "demo": {**_DEMO, "learning_rate": 2e-4},
    },
    **{
        kind: {"paper": _PAPER, "demo": {**_DEMO, "learning_rate": 4e-4}}
        for kind in ("steerlm", "rejection", "sft")
    },
}
