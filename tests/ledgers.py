"""A ledger with clocks that tests put, and what they ask of it. Loaded as a plugin by conftest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.judges import book as book_module
from jobs.judges.ledger import (
    Budget,
    Closed,
    Hold,
    Ledger,
)
from jobs.judges.terms import ModelTerms, Terms

MODEL = "gemini-2.5-flash"
NOON = 1_762_200_000.0  # 3 November 2025, 20:00 UTC: noon in Los Angeles
PLENTY = Budget(1000.0)


class Clock:
    """Two clocks: the wall's can be put, the steady one only goes on."""

    def __init__(self) -> None:
        self.steady_now = 5000.0
        self.offset = NOON - self.steady_now

    def now(self) -> float:
        return self.steady_now + self.offset

    def steady(self) -> float:
        return self.steady_now


def terms(
    requests: int = 60,
    tokens: int = 10**9,
    day: int = 10**6,
    tokens_day: int = 10**12,
    money: float = 1000.0,
    zone: str = "America/Los_Angeles",
) -> Terms:
    row = ModelTerms(
        model="gemini-*",
        input_price=1.0,
        output_price=10.0,
        requests_a_minute=requests,
        tokens_a_minute=tokens,
        requests_a_day=day,
        tokens_a_day=tokens_day,
    )
    return Terms(models=(row,), money_a_day=money, day_begins_in=zone)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    return Ledger(tmp_path / "judges", clock.now, clock.steady)


def take(ledger: Ledger, table: Terms | None = None, **changes: Any) -> Hold:
    given = ask(ledger, table, **changes)
    assert isinstance(given, Hold), given
    return given


def refusal(ledger: Ledger, table: Terms | None = None, **changes: Any) -> Closed:
    given = ask(ledger, table, **changes)
    assert isinstance(given, Closed), given
    return given


def ask(ledger: Ledger, table: Terms | None = None, **changes: Any) -> Hold | Closed:
    values: dict[str, Any] = {
        "account": "job-1",
        "budget": PLENTY,
        "model": MODEL,
        "tokens": 100,
        "money": 0.01,
        "ahead": 1000.0,
    }
    return ledger.reserve(terms=table or terms(requests=6000), **(values | changes))


@pytest.fixture(scope="module")
def quick_writes() -> Iterator[None]:
    """Without waiting for the disk: some tests write thousands of times."""
    patch = pytest.MonkeyPatch()

    def write(path: Path, text: str) -> None:
        draft = path.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)

    patch.setattr(book_module, "write_atomically", write)
    yield
    patch.undo()
