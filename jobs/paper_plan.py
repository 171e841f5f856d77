"""The paper in miniature: what is run, in two sizes (pure).

The paper's story (paper.md, "The finding") with the demo: a language model (demo-text), the same after visual
tuning (demo), then four ways to align it on candidates of its own, judged by rules; DPO on parts of the pairs and
with labels flipped. Image pairs alone are learnt: no text pairs join them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.models import DEMO, DEMO_TEXT

METHODS = ("sft", "steerlm", "rejection", "dpo")


@dataclass(frozen=True)
class Scale:
    """How much of it.

    Attributes:
        samples: of easy-VQA's training split, with four candidates each.
        limits: items of each benchmark; an entry more is made for IFEval where its file is given.
        ifeval_items, ifeval_tokens: of IFEval, whose own limit is 1,280 tokens.
        fractions, flips: of the curves; DPO on all pairs as they are is a point of both.
        seeds: of DPO's training on all pairs; the other points have the first.
        steps, rows: of each training, and of each of its steps.
    """

    name: str
    samples: int
    limits: dict[str, int]
    ifeval_items: int
    ifeval_tokens: int
    fractions: tuple[float, ...]
    flips: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    rows: int


#: what the curves' points are asked, which take as long as the methods themselves: one benchmark of each skill
CURVES = ("easy-vqa", "text-tasks")

QUICK = Scale(
    name="quick",
    samples=120,
    limits={"easy-vqa": 48, "easy-pope": 32, "text-tasks": 32},
    ifeval_items=12,
    ifeval_tokens=64,
    fractions=(0.5,),
    flips=(0.5,),
    seeds=(0,),
    steps=8,
    rows=8,
)
FULL = Scale(
    name="full",
    samples=600,
    limits={"easy-vqa": 300, "easy-pope": 160, "text-tasks": 100},
    ifeval_items=80,
    ifeval_tokens=192,
    fractions=(0.25, 0.5, 0.75),
    flips=(0.25, 0.5, 0.75),
    seeds=(0, 1, 2),
    steps=40,
    rows=16,
)
SCALES = {scale.name: scale for scale in (QUICK, FULL)}


@dataclass(frozen=True)
class Training:
    """One training. `settings` are those in which it differs from the preset."""

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One evaluation. `training` names whose adapter answers; "": `model` itself."""

    model: str
    training: str
    benchmark: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.training or self.model} on {self.benchmark}"


def trainings(scale: Scale) -> list[Training]:
    """The four methods, then the points of the curves."""
    steps = {"max_steps": scale.steps, "global_batch": scale.rows, "seed": scale.seeds[0]}
    found = [Training(kind, kind, steps) for kind in METHODS]
    found += [Training(f"dpo seed {seed}", "dpo", {**steps, "seed": seed}) for seed in scale.seeds[1:]]
    found += [Training(f"dpo {part:.0%}", "dpo", {**steps, "fraction": part}) for part in scale.fractions]
    found += [Training(f"dpo {part:.0%} flipped", "dpo", {**steps, "flip": part}) for part in scale.flips]
    return found


def evaluations(scale: Scale, ifeval: str = "") -> list[Asked]:
    """Each model on each benchmark that it can take; the language model sees nothing.

    Args:
        ifeval: the path of IFEval's file; "" leaves it out.
    """
    benchmarks: dict[str, dict[str, Any]] = {name: {"limit": limit} for name, limit in scale.limits.items()}
    if ifeval:
        benchmarks["ifeval"] = {
            "limit": scale.ifeval_items,
            "max_new_tokens": scale.ifeval_tokens,
            "files": ifeval,
        }
    text = [name for name in benchmarks if name in ("text-tasks", "ifeval")]
    found = [Asked(DEMO_TEXT, "", name, benchmarks[name]) for name in text]
    found += [Asked(DEMO, "", name, benchmarks[name]) for name in benchmarks]
    for one in trainings(scale):
        names = benchmarks if one.name in METHODS else CURVES
        found += [Asked(DEMO, one.name, name, benchmarks[name]) for name in names]
    return found


def told(scale: Scale, ifeval: str) -> dict[str, Any]:
    """What a run that is to go on must share with the one that began."""
    return {**asdict(scale), "ifeval": bool(ifeval)}
