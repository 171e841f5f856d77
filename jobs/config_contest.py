"""What a contest's job is asked: which prompts, which speakers, how answers are drawn. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jobs.config_base import ModelConfig, Selection
from storage.errors import UserError
from storage.records import HIGHEST, LONGEST_NAME
from storage.speakers import MOST, SIDES, Speaker, read_speaker


class Attributes(BaseModel):
    """What SteerLM adapters are asked for, 0 to 4 each (paper.md, section 4); others never see it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    helpfulness: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Helpfulness")
    correctness: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Correctness")
    coherence: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Coherence")
    complexity: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Complexity")
    verbosity: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Verbosity")


class ContestConfig(ModelConfig):
    """Let two or three speakers answer a list of prompts, for people to vote on one by one, blind."""

    kind: ClassVar[str] = "contest"
    resumable: ClassVar[bool] = True

    name: str = Field("", max_length=LONGEST_NAME, title="Name", description="empty: the list's")
    columns: tuple[str, ...] = Field(
        title="Speakers", description=f"2 or {MOST}: base, an adapter's number, or MODEL@ENDPOINT"
    )
    prompts: str = Field(
        "",
        max_length=4096,
        title="Prompts",
        description="the path of a list: MT-Bench's, LLaVA-Bench's, JSON lines or plain ones; empty: samples",
    )
    images: str = Field(
        "",
        max_length=4096,
        title="Images' folder",
        description="where the list's images are; empty: beside it",
    )
    samples: Selection = Field(Selection(), title="Samples")
    limit: int | None = Field(
        None, ge=1, le=1_000_000, title="At most", description="prompts, in their order; empty: all"
    )
    temperature: float = Field(0.0, ge=0.0, le=2.0, title="Temperature", description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, title="Top-p")
    max_new_tokens: int = Field(256, ge=1, le=4096, title="Longest answer", description="tokens")
    seed: int = Field(
        0, ge=0, le=2**31 - 1, title="Seed", description="of the answers, and of who stands on which side"
    )
    system: str = Field(
        "", max_length=4000, title="System prompt of the contest", description="where a prompt brings none"
    )
    attributes: Attributes = Field(Attributes(), title="Attributes")
    batch_size: int = Field(8, ge=1, le=256, title="Prompts a batch", description="each speaker answers it whole")
    blind: bool = Field(True, title="Blind", description="names are hidden until the vote")

    @property
    def device_kind(self) -> Literal["device", "network"]:  # type: ignore[override]
        """A device where one of our own speaks; endpoints alone take a network slot."""
        return "network" if all(one.outside for one in self.speakers) else "device"

    @property
    def speakers(self) -> tuple[Speaker, ...]:
        """Who stands in the columns, as they were asked for."""
        return tuple(read_speaker(spelling, self.model) for spelling in self.columns)

    @property
    def adapters_asked(self) -> tuple[int, ...]:
        """The ids of the adapters among them."""
        return tuple(one.adapter for one in self.speakers if one.adapter is not None)

    def with_whole_paths(self) -> ContestConfig:
        """With the paths of its files as they are from any folder."""
        named = {name: getattr(self, name) for name in ("prompts", "images")}
        whole = {name: str(Path(path).expanduser().absolute()) for name, path in named.items() if path}
        return self.model_copy(update=whole)

    @field_validator("columns")
    @classmethod
    def _two_or_three(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) not in SIDES:
            raise ValueError(f"name 2 or {MOST} speakers, each once")
        try:
            spelt = tuple(read_speaker(one, "").spelling for one in value)
        except UserError as error:
            raise ValueError(str(error).rstrip(".")) from None
        if len(set(spelt)) < len(spelt):
            twice = next(one for one in spelt if spelt.count(one) > 1)
            raise ValueError(f"{twice!r} is there twice, and nobody competes with itself; name another speaker")
        return spelt

    @model_validator(mode="after")
    def _a_list_or_samples(self) -> ContestConfig:
        chosen = [name for name in ("ids", "source", "dataset") if getattr(self.samples, name) is not None]
        if self.prompts and chosen:
            raise ValueError(
                f"prompts and samples.{chosen[0]} both say what is asked; give a list of prompts or choose samples"
            )
        if self.images and not self.prompts:
            raise ValueError("images is the folder of a list's images, and there is no list; give prompts, too")
        return self
