"""Who a judge is, and what a judgement is keyed by (pure).

A judge as a rater is model + rubric version + mode; whether it gets checklists is part of the mode. A judgement's
key adds what was judged: the sample, its candidates with their texts, the checklist, and the seed of the order.
The same key is never paid for twice.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from jobs.configs import JudgeConfig
from jobs.judges import rules

Rater = tuple[str, str, str]

WITH_LIST = ", with checklist"  # how the mode of a judge ends that gets checklists
MODES = {"together": "all answers together", "alone": "each answer alone"}


def rater_of(config: JudgeConfig) -> Rater:
    """(name, version, mode) under which the judge's scores are stored."""
    if config.judge == rules.NAME:
        return rules.RATER
    return config.model, config.rubric, MODES[config.mode] + (WITH_LIST if config.checklists else "")


def key_of(row: dict[str, Any], rater: Rater, order_seed: int) -> str:
    """The key of a judgement of this row (see `jobs.rows.judge_row`), 32 hexadecimal digits."""
    if rater == rules.RATER:
        order_seed = 0  # it reads each answer by itself: no order to speak of
    checklist = row.get("checklist") or {}
    judged = {
        "sample": row["sample_id"],
        "candidates": sorted([candidate["id"], candidate["text"]] for candidate in row["candidates"]),
        "checklist": checklist.get("id"),
        "rater": list(rater),
        "order_seed": order_seed,
    }
    packed = json.dumps(judged, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(packed.encode()).hexdigest()[:32]
