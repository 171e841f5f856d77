"""Requests that wait: for a stop, a pause, limits of our own, and one another. Nothing really sleeps here."""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path

import pytest

from callers import LONGEST, MODEL, NOON, PROMPT, REPLY, TOKENS, WORST, Bench, Clock, Provider, failed, table
from jobs.judges.caller import LOOK_AGAIN, OVERHEAD, PIECE, GaveUp, Refused
from jobs.judges.calls import CallOptions, ErrorKind, Prompt, Reply
from jobs.judges.ledger import SLACK, Budget, BudgetSpent, Closed
from jobs.judges.terms import Terms
from jobs.reporter import Stopped
from storage.errors import UserError

# stop and pause ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["slot", "closed", "backoff"])
def test_a_stop_is_obeyed_while_waiting(bench: Bench, why: str) -> None:
    bench.table = table(requests=10 if why == "slot" else 6000)
    provider = bench.provider(*[failed("server", retry_after=50.0)] * (why == "backoff"))
    if why == "slot":
        bench.caller(provider).ask(PROMPT, TOKENS)
    if why == "closed":
        bench.ledger.close_until(MODEL, bench.clock.now() + 600.0, "too many", "minute")
    asked = len(provider.asked) + (why == "backoff")

    def check() -> None:
        if bench.clock.time > 5003.0:
            raise Stopped("stopped by request")

    with pytest.raises(Stopped):
        bench.caller(provider, check=check, ahead=60.0).ask(PROMPT, TOKENS)
    assert bench.clock.time < 5003.5
    assert len(provider.asked) == asked
    assert bench.held == 0.0


def test_who_does_not_want_to_wait_need_not(bench: Bench) -> None:
    bench.ledger.close_until(MODEL, bench.clock.now() + 600.0, "too many", "day")

    def not_now(text: str) -> None:
        if text:
            raise UserError(f"Not asked: {text}")

    def not_then(text: str) -> None:
        if not text:
            raise OSError(28, "No space left on device")

    provider = bench.provider()
    with pytest.raises(UserError, match="Not asked: waiting for the day's quota until 20:10 UTC: too many"):
        bench.caller(provider, tell=not_now).ask(PROMPT, TOKENS)
    with pytest.raises(OSError, match="No space"):
        bench.caller(provider, tell=not_then).ask(PROMPT, TOKENS)
    assert (provider.asked, bench.held) == ([], 0.0)


def test_after_a_pause_slots_are_taken_anew(bench: Bench) -> None:
    bench.table = table(requests=60)
    paused_until = 5600.0

    def check() -> None:
        while 5001.5 < bench.clock.time < paused_until:
            bench.clock.sleep(0.3)

    provider = bench.provider()
    caller = bench.caller(provider, check=check)
    bench.clock.together(6, lambda number: caller.ask(PROMPT, TOKENS))
    asked = sorted(provider.asked)
    assert len(asked) == 6
    assert not [at for at in asked if 5001.6 < at < paused_until]
    assert all(b - a > 60 / 0.98 / 60 - SLACK - 0.01 for a, b in itertools.pairwise(asked)), "no burst afterwards"
    assert asked[-1] < paused_until + 15.0


# limits of our own -------------------------------------------------------------------------------------------


def test_two_callers_share_the_pace(bench: Bench) -> None:
    bench.table = table(requests=60)
    provider = bench.provider()
    callers = [bench.caller(provider, account=f"job-{number}") for number in range(2)]

    def work(number: int) -> None:
        for _ in range(5):
            callers[number % 2].ask(PROMPT, TOKENS)

    bench.clock.together(8, work)
    asked = sorted(provider.asked)
    assert len(asked) == 40
    assert all(b - a > 60 / 0.98 / 60 - 0.01 for a, b in itertools.pairwise(asked[1:]))
    assert asked[-1] - asked[0] < 40 * 1.0205 + 1.0, "and lose no slot"


def test_who_waits_longer_comes_before_a_busy_pool(bench: Bench) -> None:
    bench.table = table(requests=60)
    provider, at_the_desk = bench.provider(), bench.provider()
    caller, desk = bench.caller(provider), bench.caller(at_the_desk, account="desk", ahead=60.0)

    def work(number: int) -> None:
        if number:
            for _ in range(3):
                caller.ask(PROMPT, TOKENS)
        else:
            bench.clock.sleep(8.0)
            desk.ask(PROMPT, TOKENS)

    bench.clock.together(30, work)
    assert at_the_desk.asked[0] < 5000.0 + 8.0 + 8.5


def test_the_day_ends_and_the_job_goes_on(bench: Bench) -> None:
    bench.table = table(day=3)
    bench.clock.offset += 11 * 3600.0
    provider = bench.provider()
    caller = bench.caller(provider)
    bench.clock.together(5, lambda number: caller.ask(PROMPT, TOKENS))
    asked = sorted(provider.asked)
    assert asked[2] < 5001.0
    assert asked[3] - asked[2] == pytest.approx(3600, abs=10.0)
    first, second = bench.told
    assert first[1].startswith("waiting for the day's quota until 08:00 UTC: 3 of 3 requests a day")
    assert second[1] == ""
    assert second[0] == pytest.approx(asked[3])


@pytest.mark.parametrize("cap", ["money", "requests"])
def test_a_raised_limit_lets_it_go_on(bench: Bench, cap: str) -> None:
    bench.table = table(money=1.5 * WORST) if cap == "money" else table(day=2)
    big = Reply("{}", "complete", TOKENS, LONGEST)
    provider = bench.provider(big, big)

    def check() -> None:
        if bench.clock.time > 5100.0:
            bench.table = table()

    caller = bench.caller(provider, check=check)
    for _ in range(3):
        caller.ask(PROMPT, TOKENS)
    assert 5100.0 < provider.asked[-1] <= 5100.0 + LOOK_AGAIN + PIECE
    words = [text for _, text in bench.told]
    assert len(words) == 2
    what = "next day's money" if cap == "money" else "day's quota"
    assert words[0].startswith(f"waiting for the {what} until 08:00 UTC: ")
    assert "Judges page" in words[0]
    assert words[1] == ""


@pytest.mark.parametrize("jump", [-7200.0, -3600.0, 3600.0, 7200.0])
def test_a_clock_that_jumps_stalls_nothing_and_sends_no_burst(bench: Bench, jump: float) -> None:
    bench.table = table(requests=60)
    provider = bench.provider(*[REPLY] * 4, failed("minute", retry_after=20.0))

    def check() -> None:
        if 5003.0 < bench.clock.time < 5003.5 or 5010.0 < bench.clock.time < 5010.5:
            bench.clock.offset = NOON - 5000.0 + jump

    caller = bench.caller(provider, check=check)
    bench.clock.together(12, lambda number: caller.ask(PROMPT, TOKENS))
    asked = sorted(provider.asked)
    assert len(asked) == 13
    assert all(b - a > 60 / 0.98 / 60 - SLACK - 0.01 for a, b in itertools.pairwise(asked[1:]))
    assert asked[-1] < 5000.0 + 60.0


def test_a_budget_below_one_request(bench: Bench) -> None:
    provider = bench.provider()
    with pytest.raises(BudgetSpent, match=r"budget = \$0.0010 is less than one request .* may cost \$0.006"):
        bench.caller(provider, budget=Budget(0.001)).ask(PROMPT, TOKENS)
    with pytest.raises(BudgetSpent, match=r"budget = \$0.00 is less"):
        bench.caller(provider, budget=Budget(0.0)).ask(PROMPT, TOKENS)
    assert provider.asked == []


def test_a_table_that_is_broken_meanwhile_ends_the_wait(bench: Bench) -> None:
    caller = bench.caller(bench.provider())
    caller.ask(PROMPT, TOKENS)
    bench.table = Terms(models=())
    with pytest.raises(UserError, match="has no row"):
        caller.ask(PROMPT, TOKENS)
    assert bench.held == 0.0


# many at once ------------------------------------------------------------------------------------------------


class Chance(Provider):
    """Does anything, and bills whatever may be billed."""

    def __init__(self, clock: Clock, seed: int) -> None:
        super().__init__(clock)
        self.random = random.Random(seed)
        self.billed = 0.0
        self.most = 0.0
        self.requests = 0
        self.lock = threading.Lock()

    def ask(self, model: str, prompt: Prompt, options: CallOptions) -> Reply:
        with self.lock:
            self.asked.append(self.clock.time)
            latency = self.random.choice([0.0, 0.3, 2.0, 40.0])
            dice = self.random.random()
            tokens_in = self.random.randint(1, round(TOKENS * 1.25) + OVERHEAD)
            tokens_out = self.random.choice([0, 50, LONGEST])
            kind: ErrorKind = self.random.choice(["server", "timeout", "connection"])
        self.clock.sleep(latency)
        if dice < 0.06:
            raise failed("minute", retry_after=self.random.choice([None, 0.0, 3.0]))
        if dice < 0.07:
            raise failed("day", retry_after=400.0)
        if dice < 0.12:
            raise failed(kind)
        if dice < 0.13:
            raise failed("refused")
        with self.lock:
            self.billed += (tokens_in + 10 * tokens_out) / 1e6
            self.requests += 1
        if dice < 0.25:
            raise failed(kind, billed=True)
        return Reply("{}", "complete", tokens_in, tokens_out)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_what_is_billed_never_exceeds_the_budget(quick_writes: None, tmp_path: Path, seed: int) -> None:
    bench = Bench(tmp_path / "judges")
    bench.table = table(requests=300)
    provider = Chance(bench.clock, seed)
    budget = Budget(40 * WORST, requests=None if seed % 2 else 45)
    callers = [bench.caller(provider, budget=budget) for _ in range(2)]
    ended: list[type] = []

    def work(number: int) -> None:
        while True:
            try:
                callers[number % 2].ask(PROMPT, TOKENS)
            except GaveUp:
                continue
            except (BudgetSpent, Refused) as error:
                ended.append(type(error))
                return

    bench.clock.together(32, work)
    spent = bench.ledger.spent("job-1")
    assert len(ended) == 32, "nobody hangs"
    assert set(ended) == {BudgetSpent}
    assert provider.billed <= spent.money + 1e-9, "nothing is forgotten"
    assert spent.money <= budget.money + 1e-9
    assert spent.held == 0.0
    assert provider.requests == spent.requests
    assert budget.requests is None or spent.requests == budget.requests
    # A caller that saw the longest prompt reckons with a tenth more than it from then on.
    worst = WORST + 0.1 * 1.25 * TOKENS / 1e6
    assert spent.money > budget.money - worst or spent.requests == budget.requests, "and it is used"
    for begin in provider.asked:
        assert sum(begin <= at <= begin + 60.0 for at in provider.asked) <= 300


def test_a_ledger_that_answers_closed_is_asked_again_in_time(bench: Bench) -> None:
    """The pool comes back for slots before they run out, however many wait."""
    bench.table = table(requests=600)
    provider = bench.provider()
    caller = bench.caller(provider)

    def work(number: int) -> None:
        for _ in range(3):
            caller.ask(PROMPT, TOKENS)

    bench.clock.together(90, work)
    asked = sorted(provider.asked)
    assert len(asked) == 270
    assert asked[-1] - asked[0] < 270 * 60 / 0.98 / 600 * 1.03 + 1.0
    assert isinstance(bench.ledger.reserve("x", Budget(1.0), bench.table, MODEL, 1, 0.0, ahead=-1.0), Closed)
