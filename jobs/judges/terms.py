"""Prices and limits of models: a table that people edit, read anew by every worker before it asks.

It is `judges/terms.json` in the data folder. Money is in dollars; prices are for a million tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jobs.configs import explain
from storage.errors import UserError
from storage.files import write_atomically

FILE = "terms.json"


class ModelTerms(BaseModel):
    """One row of the table. `model` may end with * and then stands for all names that begin so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, max_length=200, title="Model")
    input_price: float = Field(ge=0.0, le=10_000.0, title="$ per million tokens in")
    output_price: float = Field(ge=0.0, le=10_000.0, title="$ per million tokens out")
    requests_a_minute: int = Field(ge=1, le=10_000_000, title="Requests a minute")
    tokens_a_minute: int = Field(ge=1, le=10**12, title="Tokens a minute")
    requests_a_day: int = Field(ge=1, le=10**9, title="Requests a day")
    tokens_a_day: int = Field(10**12, ge=1, le=10**12, title="Tokens a day")

    def money(self, tokens_in: int, tokens_out: int) -> float:
        """Dollars."""
        return (tokens_in * self.input_price + tokens_out * self.output_price) / 1e6


class Terms(BaseModel):
    """The table, and what all judging of this data folder may cost in a day."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[ModelTerms, ...]
    money_a_day: float = Field(10.0, gt=0.0, le=1_000_000.0, title="Most money a day", description="dollars")
    day_begins_in: str = Field(
        "America/Los_Angeles", title="Days begin in", description="time zone of the provider's quotas"
    )

    @field_validator("models")
    @classmethod
    def _once(cls, value: tuple[ModelTerms, ...]) -> tuple[ModelTerms, ...]:
        names = [row.model for row in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"the model {twice!r} stands there twice; keep one row")
        return value

    @field_validator("day_begins_in")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError("give a time zone as Europe/Berlin or UTC") from None
        return value

    def of(self, model: str) -> ModelTerms:
        """The row of a model: its own, else the longest that fits with a *.

        Raises:
            UserError: there is none, so nobody knows what it costs.
        """
        rows = {row.model: row for row in self.models}
        if model in rows:
            return rows[model]
        fitting = [row for row in self.models if row.model.endswith("*") and model.startswith(row.model[:-1])]
        if not fitting:
            raise UserError(
                f"model = {model!r} has no row in the table of prices and limits, so nobody knows what it would "
                "cost. Add a row for it on the Judges page, or correct the name."
            )
        return max(fitting, key=lambda row: len(row.model))


# List prices and the limits of the first paid tier as known in 2025: a start to be edited, not a promise.
DEFAULT = Terms(
    models=tuple(
        ModelTerms(
            model=model,
            input_price=paid_in,
            output_price=paid_out,
            requests_a_minute=minute,
            tokens_a_minute=1_000_000,
            requests_a_day=10_000,
        )
        for model, paid_in, paid_out, minute in (
            ("gemini-2.5-pro", 1.25, 10.0, 150),
            ("gemini-2.5-flash", 0.30, 2.50, 600),
            ("gemini-2.5-flash-lite", 0.10, 0.40, 600),
        )
    )
)


def read_terms(folder: Path) -> Terms:
    """The table of this folder (the data folder's `judges/`), or the default where nobody has edited one.

    Raises:
        UserError: the file cannot be read as a table; the text names what is wrong.
    """
    file = folder / FILE
    try:
        raw: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return DEFAULT
    except ValueError as error:
        raise UserError(
            f"{file} is not whole JSON ({error}); correct it, or remove it for the defaults."
        ) from None
    return parse_terms(raw)


def parse_terms(raw: Any) -> Terms:
    """Raises UserError."""
    try:
        return Terms.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"The table of prices and limits cannot be used: {explain(error)}") from error


def write_terms(folder: Path, terms: Terms) -> None:
    """Keep the table; workers see it at their next request."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, terms.model_dump_json(indent=2) + "\n")
