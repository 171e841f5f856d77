"""The form of a rule that makes pairs: what can be chosen, and the rule that it gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from jobs import freezing
from jobs.configs import explain
from jobs.pairing import PairRule
from storage.errors import UserError
from storage.records import METRICS
from storage.scores import list_raters
from workbench.context import Context

RATERS = ("people before judges", "people", "judges")
SEVERAL = (("the latest decides", "latest"), ("their mean", "mean"), ("their majority", "majority"))
KEPT = (("one: best over a worse one", "one"), ("all above the margin", "all"))


def judge_choices(context: Context) -> list[tuple[str, str]]:
    """Any judge, then each that has scored; the value is its name, version and mode as JSON."""
    with context.database() as db:
        judges = [rater for rater in list_raters(db) if rater.kind == "judge"]
    named = [(rater.name, rater.version, rater.mode) for rater in judges]
    return [("whichever judged last", ""), *((" · ".join(filter(None, one)), json.dumps(one)) for one in named)]


def read_judge(choice: str) -> freezing.Judge | None:
    """The judge that a dropdown's value stands for; None for any."""
    if not choice:
        return None
    name, version, mode = json.loads(choice)
    return name, version, mode


def make_rule(
    metrics: Sequence[str],
    margin: float | None,
    seed: float | None,
    raters: str,
    judge: str = "",
    several: str = "latest",
    keep: str = "one",
    cap: float | None = None,
    *weights: float | None,
) -> PairRule:
    """The rule that the form gives.

    Args:
        cap: 0 or nothing for none.
        weights: in the order of `METRICS`; those of metrics that are not ticked count for nothing.

    Raises:
        UserError: a value is out of bounds; the text names it.
    """
    try:
        # In the order of the rubric, so that the same rule is stored the same way whatever was ticked first.
        ordered = tuple(name for name in METRICS if name in metrics) or tuple(metrics)
        values: dict[str, Any] = {
            "metrics": ordered,
            "margin": margin,
            "seed": seed,
            "raters": raters,
            "several": several,
        }
        given = dict(zip(METRICS, weights, strict=False))
        counted = {name: weight for name, weight in given.items() if name in ordered and weight is not None}
        values |= {"judge": read_judge(judge), "several": several, "keep": keep, "weights": counted}
        values["longest_difference"] = cap or None
        return PairRule.model_validate(values)
    except ValidationError as error:
        raise UserError(f"The rule cannot be used: {explain(error)}") from error
