"""What evaluations and gradings are asked: which model, which benchmark, which judge. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config_base import ModelConfig, RemoteConfig
from jobs.config_contest import Attributes
from jobs.models import DEMO
from storage.speakers import Speaker

if TYPE_CHECKING:
    from jobs.benchmarks.contract import Benchmark


def _benchmarks() -> dict[str, Benchmark]:
    """All by name. Imported late: numpy and Pillow come with them, and a worker's first line waits for neither."""
    from jobs.benchmarks.registry import BENCHMARKS

    return BENCHMARKS


class EvaluateConfig(ModelConfig):
    """Let one model answer a benchmark; what rules can grade is graded at the end."""

    kind: ClassVar[str] = "evaluate"
    resumable: ClassVar[bool] = True

    model: str = Field(
        DEMO,
        min_length=1,
        title="Model",
        description="demo, demo-text, a folder, or a hub name; one that reads text alone takes text benchmarks",
    )
    adapter: int | None = Field(None, title="Adapter", description="id of an adapter; empty: the base")
    outside: str = Field(
        "",
        max_length=240,
        title="Outside model",
        description="MODEL@ENDPOINT: asked in place of base and adapter, and needs no device; empty: none",
    )
    benchmark: str = Field("text-tasks", title="Benchmark", description="docs/benchmarks.md names their files")
    files: str = Field(
        "", max_length=4096, title="Files", description="path of the benchmark's official file or folder"
    )
    images: str = Field(
        "", max_length=4096, title="Images' folder", description="empty: beside the files, or images/ in there"
    )
    half: Literal["all", "selection", "reporting"] = Field(
        "all",
        title="Items",
        description="a fixed half to choose settings by, the other half to report, or all (for reporting)",
    )
    limit: int | None = Field(
        None, ge=1, le=1_000_000, title="At most", description="items, the same subset for all models; empty: all"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=8192, title="Longest answer", description="tokens; empty: as the benchmark's protocol says"
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, title="Seed", description="where the protocol draws answers at a temperature"
    )
    attributes: Attributes = Field(Attributes(), title="Attributes")
    batch_size: int = Field(8, ge=1, le=512, title="Items a batch")

    @property
    def device_kind(self) -> Literal["device", "network"]:  # type: ignore[override]
        """An outside model takes a network slot."""
        return "network" if self.outside else "device"

    @property
    def purpose(self) -> str:
        """What its figures may be used for: choosing a setting, or reporting."""
        return "selection" if self.half == "selection" else "reporting"

    @property
    def longest(self) -> int:
        """Tokens of an answer."""
        return self.max_new_tokens or _benchmarks()[self.benchmark].max_new_tokens

    def with_whole_paths(self) -> EvaluateConfig:
        """The same with paths that mean the same in every folder."""
        whole = {
            name: str(Path(value).expanduser().resolve())
            for name in ("files", "images")
            if (value := getattr(self, name))
        }
        return self.model_copy(update=whole)

    @field_validator("benchmark")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (known := _benchmarks()):
            raise ValueError(f"use one of {', '.join(known)}")
        return value

    @field_validator("outside")
    @classmethod
    def _spelt_as_one(cls, value: str) -> str:
        held = value.strip()
        if held and Speaker(held).outside is None:
            raise ValueError("write it as MODEL@ENDPOINT, the model as its endpoint calls it, or leave it empty")
        return held

    @model_validator(mode="after")
    def _one_speaker(self) -> EvaluateConfig:
        if self.outside and self.adapter is not None:
            raise ValueError(
                f"adapter = {self.adapter} and outside = {self.outside!r} both say who answers; leave one empty"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """What the table shows of how answers were drawn."""
        told = self.model_dump(mode="json", include={"half", "limit", "seed", "files"})
        asked = {} if self.attributes == Attributes() else self.attributes.model_dump()
        told |= {"attributes": ",".join(map(str, asked.values()))} if asked else {}
        return {**told, "max_new_tokens": self.longest, "purpose": self.purpose, "model": self.model}


class GradeConfig(RemoteConfig):
    """Grade an evaluation's answers, again or with another judge; nothing is generated anew."""

    kind: ClassVar[str] = "grade"

    evaluation: int = Field(ge=1, title="Evaluation", description="its number on the Evaluation page")
    judge: Literal["rules", "gemini", "openai"] = Field(
        "rules", title="Judge", description="rules cost nothing, where the benchmark has them"
    )

    @property
    def grader(self) -> str:
        """As gradings are told apart."""
        return "rules" if self.judge == "rules" else f"{self.model} ({self.judge})"
