"""The names of TRL's preference losses, and how a weighted sum of them is written."""

from __future__ import annotations

import re

#: TRL 1.16's; tests/test_losses.py runs each of them.
LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)

_TERM = re.compile(r"(?:(?P<weight>\d+(?:\.\d+)?)\s*[*×]?\s*)?(?P<name>[a-z_]+)")


def parse_losses(text: str) -> list[tuple[str, float]]:
    """`0.8 sigmoid + 0.2 bco_pair + 1.0 sft` → [("sigmoid", 0.8), …]; a loss without a weight has 1.

    Raises:
        ValueError: an unknown name, a name twice, or weights that are all 0.
    """
    found: list[tuple[str, float]] = []
    for part in text.split("+"):
        term = _TERM.fullmatch(part.strip())
        if term is None or term["name"] not in LOSSES:
            raise ValueError(
                f"{part.strip()!r} is not a loss with or without a weight; use {', '.join(LOSSES)}, "
                "as in 0.8 sigmoid + 0.2 bco_pair"
            )
        if term["name"] in dict(found):
            raise ValueError(f"{term['name']} stands there twice; add its weights up")
        found.append((term["name"], float(term["weight"] or 1.0)))
    if not any(weight for _, weight in found):
        raise ValueError("all weights are 0; give one loss a weight above 0")
    return found
