"""A caller whose time passes only when all who take part sleep. Loaded as a plugin by conftest."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.judges.caller import OVERHEAD, Caller
from jobs.judges.calls import CallError, CallOptions, ErrorKind, Prompt, Reply
from jobs.judges.ledger import Budget, Ledger
from jobs.judges.terms import ModelTerms, Terms

MODEL = "gemini-2.5-flash"
NOON = 1_762_200_000.0  # 3 November 2025, 20:00 UTC: noon in Los Angeles
PROMPT = Prompt("judge", ("a question",))
TOKENS = 1000
LONGEST = 500
# (1,000 × 1.25 + 500 tokens in at $1 + 500 out at $10) / 10⁶
WORST = (TOKENS * 1.25 + OVERHEAD + 10 * LONGEST) / 1e6
REPLY = Reply("{}", "complete", TOKENS, 100)
COST = (TOKENS + 10 * 100) / 1e6


class Clock:
    """Time that passes only when all threads that take part sleep; the wall's clock can be put."""

    def __init__(self) -> None:
        self.time = 5000.0
        self.offset = NOON - self.time
        self.longest = 0.0
        self._awake = 1
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def now(self) -> float:
        return self.time + self.offset

    def steady(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        over = threading.Event()
        with self._lock:
            self.longest = max(self.longest, seconds)
            heapq.heappush(self._sleepers, (self.time + seconds, next(self._numbers), over))
            self._rest()
        assert over.wait(60.0), "somebody neither sleeps nor works"

    def _rest(self) -> None:
        """One thread less is awake; was it the last, time goes on to the next who wakes."""
        self._awake -= 1
        if self._awake == 0 and self._sleepers:
            self.time = max(self.time, self._sleepers[0][0])
            while self._sleepers and self._sleepers[0][0] <= self.time:
                self._awake += 1
                heapq.heappop(self._sleepers)[2].set()

    def together(self, count: int, work: Callable[[int], object]) -> None:
        """Run `work` in this many threads, until all are done."""
        self._awake = count
        errors: list[BaseException] = []

        def run(number: int) -> None:
            try:
                work(number)
            except BaseException as error:
                errors.append(error)
            finally:
                with self._lock:
                    self._rest()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._awake = 1
        if errors:
            raise errors[0]


class Provider:
    """Answers as scripted, then with REPLY; knows when it was asked and what it billed."""

    def __init__(self, clock: Clock, *script: Reply | BaseException) -> None:
        self.clock = clock
        self.script = list(script)
        self.asked: list[float] = []

    def ask(self, model: str, prompt: Prompt, options: CallOptions) -> Reply:
        self.asked.append(self.clock.time)
        outcome = self.script.pop(0) if self.script else REPLY
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def close(self) -> None:
        pass


class Bench:
    """A ledger, a table that tests edit, and callers."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.folder = folder
        self.ledger = Ledger(folder, self.clock.now, self.clock.steady)
        self.table = table()
        self.told: list[tuple[float, str]] = []
        self.checks: list[float] = []

    def provider(self, *script: Reply | BaseException) -> Provider:
        return Provider(self.clock, *script)

    def caller(self, client: Any, **changes: Any) -> Caller:
        values: dict[str, Any] = {
            "account": "job-1",
            "budget": Budget(1000.0),
            "model": MODEL,
            "options": CallOptions(max_output_tokens=LONGEST),
            "check": lambda: self.checks.append(self.clock.time),
            "tell": lambda text: self.told.append((self.clock.time, text)),
            "sleep": self.clock.sleep,
        }
        return Caller(client, self.ledger, lambda: self.table, **(values | changes))

    @property
    def held(self) -> float:
        return self.ledger.spent("job-1").held

    @property
    def money(self) -> float:
        return self.ledger.spent("job-1").money


def table(requests: int = 6000, day: int = 10**6, money: float = 1000.0, price: float = 1.0) -> Terms:
    row = ModelTerms(
        model="gemini-*",
        input_price=price,
        output_price=10.0 * price,
        requests_a_minute=requests,
        tokens_a_minute=10**9,
        requests_a_day=day,
    )
    return Terms(models=(row,), money_a_day=money)


def failed(kind: ErrorKind, retry_after: float | None = None, billed: bool = False) -> CallError:
    return CallError(kind, f"It was {kind}.", retry_after=retry_after, may_be_billed=billed)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "judges")
