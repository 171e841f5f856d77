"""What a judge or checklist job will ask, cost and take, before it starts."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from sqlite_utils import Database

from jobs.configs import ChecklistConfig, JudgeConfig, parse_config
from jobs.judges import rules
from jobs.judges.asking import requests_of
from jobs.judges.caller import MARGIN, OVERHEAD
from jobs.judges.calls import Picture
from jobs.judges.identity import rater_of
from jobs.judges.prompts import checklist_prompt
from jobs.judges.terms import ModelTerms, Terms, read_terms
from jobs.judges.tokens import prompt_tokens
from jobs.packing import pack
from jobs.packing_training import Freight
from jobs.rows import Row
from jobs.rubric import Rubric, parse_rubric
from jobs.settings import Settings
from storage.errors import UserError
from storage.scores import mean_tokens

MEASURED = 200  # rows whose prompts are built; the rest is taken to be like them
# Without earlier replies to go by: reasoning and five numbers an answer; thinking models take more.
TOKENS_AN_ANSWER, TOKENS_A_REPLY, TOKENS_A_POINT, TOKENS_A_CHECKLIST = 130, 120, 12, 260
REPLY_SECONDS = 6.0  # until a reply is there, where nothing is known


@dataclass(frozen=True)
class Estimate:
    """Expected figures; money in dollars.

    Attributes:
        money_most: if every reply were as long as allowed.
        seconds: by limits a minute and requests at once.
        notes: sentences for the reader.
    """

    samples: int
    requests: int
    tokens_in: int
    tokens_out: int
    money: float
    money_most: float
    seconds: float
    notes: tuple[str, ...]


def estimate(
    db: Database, settings: Settings, kind: Literal["judge", "checklist"], values: dict[str, Any]
) -> Estimate:
    """Make the same checks as submitting would, and count.

    Raises:
        UserError, NotFound: as `jobs.queue.submit`.
    """
    config = parse_config(kind, values)
    assert isinstance(config, JudgeConfig | ChecklistConfig)
    freight = pack(db, settings, config)
    if config.judge == rules.NAME:
        notes = ("The rule-based judge asks nobody: it costs nothing.",)
        return Estimate(len(freight.rows), 0, 0, 0, 0.0, 0.0, 0.0, notes)
    terms = read_terms(settings.folder.judges)
    known = mean_tokens(db, rater_of(config)) if isinstance(config, JudgeConfig) else None
    return _count(config, freight, terms, known)


def _count(
    config: JudgeConfig | ChecklistConfig, freight: Freight, terms: Terms, known: tuple[float, float] | None
) -> Estimate:
    rows = freight.rows
    sizes = {image.name: (image.width, image.height) for image in freight.images.values()}
    rubric = parse_rubric(freight.files["rubric.yaml"], "the rubric") if "rubric.yaml" in freight.files else None
    step = max(1, len(rows) // MEASURED)
    measured = [_measure(row, config, rubric, sizes) for row in rows[::step]]
    share = len(rows) / len(measured)
    requests = round(share * sum(one[0] for one in measured))
    tokens_in = round(share * sum(one[1] for one in measured))
    tokens_out = round(share * sum(one[2] for one in measured))
    notes = []
    if known is not None:
        tokens_in, tokens_out = round(known[0] * len(rows)), round(known[1] * len(rows))
        notes.append("Tokens as in this judge's earlier judgements.")
    price = terms.of(config.model)
    money = price.money(tokens_in, tokens_out)
    tries = 1 + config.second_tries  # a reply as long as allowed is cut off, and asked for again
    most = tries * price.money(round(tokens_in * 1.25), requests * config.max_output_tokens)
    minutes = max(requests / price.requests_a_minute, (tokens_in + tokens_out) / price.tokens_a_minute)
    by_replies = REPLY_SECONDS * math.ceil(requests / config.concurrency)
    seconds = max(minutes * 60, by_replies)
    if by_replies > minutes * 60 and requests > 2 * config.concurrency:
        enough = math.ceil(requests * REPLY_SECONDS / (minutes * 60))
        notes.append(
            f"If a reply takes {REPLY_SECONDS:.0f} s, {config.concurrency} requests at once do not reach the "
            f"limit a minute; {min(enough, 256)} would (“Requests at once”, under Advanced)."
        )
    notes += _warnings(config, price, terms, requests, tokens_in, tokens_in + tokens_out, money, len(rows))
    return Estimate(len(rows), requests, tokens_in, tokens_out, money, most, seconds, tuple(notes))


def _measure(
    row: Row, config: JudgeConfig | ChecklistConfig, rubric: Rubric | None, sizes: dict[str, tuple[int, int]]
) -> tuple[int, int, int]:
    """(requests, tokens in, tokens out) of one row."""
    pictures = {
        part["image"]: _blank(*sizes[part["image"]])
        for message in row["messages"]
        for part in message["content"]
        if part["type"] == "image"
    }
    try:
        if isinstance(config, ChecklistConfig):
            return 1, prompt_tokens(checklist_prompt(row, pictures, config.items)), TOKENS_A_CHECKLIST
        assert rubric is not None
        prompts = [prompt for _, _, prompt in requests_of(row, config, rubric, pictures)]
    except UserError:  # it will be a visible failure that costs nothing
        return 0, 0, 0
    points = len((row.get("checklist") or {}).get("items", ()))
    answer = TOKENS_AN_ANSWER + points * TOKENS_A_POINT
    out = TOKENS_A_REPLY * len(prompts) + answer * len(row["candidates"])
    return len(prompts), sum(prompt_tokens(prompt) for prompt in prompts), out


@lru_cache(maxsize=256)
def _blank(width: int, height: int) -> Picture:
    """A picture of this size that weighs nothing: only its size is read."""
    import PIL.Image

    out = io.BytesIO()
    PIL.Image.new("1", (min(width, 3072), min(height, 3072))).save(out, "PNG")
    return Picture(out.getvalue(), "image/png")


def _warnings(
    config: JudgeConfig | ChecklistConfig,
    price: ModelTerms,
    terms: Terms,
    requests: int,
    tokens_in: int,
    tokens: int,
    money: float,
    samples: int,
) -> list[str]:
    notes = []
    sent = math.ceil(MARGIN * tokens_in / max(1, requests)) + OVERHEAD  # as the caller reckons at the worst
    first = price.money(sent, config.max_output_tokens)
    if requests and first > config.budget:
        notes.append(
            f"None would be sent: for a request ${first:,.4f} are set aside, as for a reply of "
            f"{config.max_output_tokens:,} tokens, and the budget is ${config.budget:,.4f}. Raise the budget, or "
            "lower “Longest reply” under Advanced."
        )
    elif money > config.budget:
        enough = math.floor(samples * config.budget / money)
        notes.append(
            f"The budget of ${config.budget:,.2f} will be used up after about {enough:,} of {samples:,} samples."
        )
    if config.max_requests is not None and requests > config.max_requests:
        notes.append(f"It may make {config.max_requests:,} requests and would need {requests:,}.")
    days = max(requests / price.requests_a_day, tokens / price.tokens_a_day, money / terms.money_a_day)
    if days > 1:
        notes.append(
            f"More than a day's quota or money allows: it pauses and goes on, over {math.ceil(days)} days."
        )
    if price.input_price == price.output_price == 0:
        notes.append("The table of prices says that this model costs nothing.")
    return notes
