"""One request: granted, tried again where that helps, and counted whatever happens. Nothing really sleeps here."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.judges import book as book_module
from jobs.judges.caller import LOOK_AGAIN, OVERHEAD, PIECE, REFUSALS, TRIES, WAVES, Caller, GaveUp, Refused
from jobs.judges.calls import CallError, CallOptions, ErrorKind, Prompt, Reply
from jobs.judges.ledger import SLACK, Budget, BudgetSpent, Closed, Ledger
from jobs.judges.terms import ModelTerms, Terms
from jobs.reporter import Stopped
from storage.errors import UserError

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


# replies and their cost --------------------------------------------------------------------------------------


def test_a_reply_costs_what_it_took(bench: Bench) -> None:
    paid = bench.caller(bench.provider()).ask(PROMPT, TOKENS)
    assert (paid.reply, paid.requests) == (REPLY, 1)
    assert paid.money == pytest.approx(COST)
    assert bench.money == pytest.approx(COST)
    assert bench.held == 0.0
    assert bench.ledger.tell(bench.table).models[MODEL].tokens == 1100
    assert bench.told == []


def test_a_blocked_reply_is_paid_too(bench: Bench) -> None:
    blocked = Reply("", "safety", TOKENS, 0)
    assert bench.caller(bench.provider(blocked)).ask(PROMPT, TOKENS).money == pytest.approx(0.001)


def test_a_reply_that_names_no_tokens_costs_the_most(bench: Bench) -> None:
    silent = Reply("text", "complete", 0, 0)
    assert bench.caller(bench.provider(silent)).ask(PROMPT, TOKENS).money == pytest.approx(WORST)
    assert bench.money == pytest.approx(WORST)


def test_estimates_that_are_too_low_are_raised(bench: Bench) -> None:
    most: list[float] = []

    class Spy(Ledger):
        def reserve(self, *args: Any, **kwargs: Any) -> Any:
            most.append(args[5])
            return super().reserve(*args, **kwargs)

    bench.ledger = Spy(bench.folder, bench.clock.now, bench.clock.steady)
    caller = bench.caller(bench.provider(Reply("{}", "complete", 3 * TOKENS, 10)))
    for _ in range(2):
        caller.ask(PROMPT, TOKENS)
    first, second = most
    assert first == pytest.approx(WORST)
    assert second > (3 * TOKENS + 10 * LONGEST) / 1e6


def test_a_reply_outlives_a_ledger_that_cannot_be_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Provider):
        def ask(self, model: str, prompt: Prompt, options: CallOptions) -> Reply:
            def full(path: Path, text: str) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(book_module, "write_atomically", full)
            return super().ask(model, prompt, options)

    assert bench.caller(Full(bench.clock)).ask(PROMPT, TOKENS).reply is REPLY
    assert bench.held == pytest.approx(WORST), "counted at its worst"


# tries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["server", "timeout", "connection"])
def test_what_may_pass_is_tried_again(bench: Bench, kind: ErrorKind) -> None:
    provider = bench.provider(failed(kind), failed(kind))
    paid = bench.caller(provider).ask(PROMPT, TOKENS)
    assert paid.requests == 3
    assert bench.money == pytest.approx(COST)
    assert bench.held == 0.0
    assert bench.ledger.spent("job-1").requests == 1


def test_what_does_not_pass_is_given_up(bench: Bench) -> None:
    provider = bench.provider(*[failed("server") for _ in range(TRIES)])
    caller = bench.caller(provider)
    with pytest.raises(GaveUp, match=r"It was server\. Given up after 6 tries") as caught:
        caller.ask(PROMPT, TOKENS)
    assert caught.value.reason == str(caught.value)
    assert len(provider.asked) == TRIES
    assert all(b - a <= 61.0 for a, b in itertools.pairwise(provider.asked))
    assert (bench.money, bench.held) == (0.0, 0.0)
    assert caller.ask(PROMPT, TOKENS).requests == 1, "others go on"


def test_what_may_be_billed_is_counted_at_its_worst(bench: Bench) -> None:
    provider = bench.provider(*[failed("timeout", billed=True) for _ in range(TRIES)])
    with pytest.raises(GaveUp):
        bench.caller(provider).ask(PROMPT, TOKENS)
    assert bench.money == pytest.approx(TRIES * WORST)
    assert (bench.held, bench.ledger.spent("job-1").requests) == (0.0, TRIES)


def test_losses_count_against_the_budget(bench: Bench) -> None:
    provider = bench.provider(*[failed("timeout", billed=True) for _ in range(TRIES)])
    with pytest.raises(BudgetSpent):
        bench.caller(provider, budget=Budget(2.5 * WORST)).ask(PROMPT, TOKENS)
    assert len(provider.asked) == 2


def test_a_server_is_given_the_time_it_asks_for(bench: Bench) -> None:
    provider = bench.provider(failed("server", retry_after=97.0), failed("server", retry_after=float("nan")))
    bench.caller(provider).ask(PROMPT, TOKENS)
    assert provider.asked[1] - provider.asked[0] == pytest.approx(97.0, abs=1.0)
    assert bench.clock.longest <= PIECE
    assert all(b - a <= 0.5 for a, b in itertools.pairwise(bench.checks)), "a stop is heard within half a second"


def test_a_bug_is_not_hidden_and_its_request_counts(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        bench.caller(bench.provider(ZeroDivisionError())).ask(PROMPT, TOKENS)
    assert bench.money == pytest.approx(WORST)
    assert bench.held == 0.0
    with pytest.raises(KeyboardInterrupt):
        bench.caller(bench.provider(KeyboardInterrupt())).ask(PROMPT, TOKENS)
    assert bench.money == pytest.approx(2 * WORST)


# 429 ---------------------------------------------------------------------------------------------------------


def test_a_429_of_the_minute_is_no_try(bench: Bench) -> None:
    provider = bench.provider(*[failed("minute", retry_after=7.0) for _ in range(3 * TRIES)])
    assert bench.caller(provider).ask(PROMPT, TOKENS).requests == 3 * TRIES + 1
    assert all(7.0 <= b - a < 8.0 for a, b in itertools.pairwise(provider.asked))
    assert bench.money == pytest.approx(COST)
    assert bench.told == [], "seven seconds are not worth a word"


def test_a_429_that_says_nothing_is_waited_for_ever_longer(bench: Bench) -> None:
    provider = bench.provider(*[failed("minute") for _ in range(9)])
    bench.caller(provider).ask(PROMPT, TOKENS)
    waits = [b - a for a, b in itertools.pairwise(provider.asked)]
    assert 1.0 < waits[0] < 3.5
    assert all(40.0 < wait < 80.0 for wait in waits[6:])


def test_a_429_seen_by_one_stops_all(bench: Bench) -> None:
    first = bench.provider(failed("minute", retry_after=30.0))
    second = bench.provider()
    other = bench.caller(second, account="job-2")

    def work(number: int) -> None:
        if number == 0:
            bench.caller(first).ask(PROMPT, TOKENS)
        else:
            for _ in range(40):
                other.ask(PROMPT, TOKENS)
                bench.clock.sleep(0.9)

    bench.clock.together(2, work)
    begin = first.asked[0]
    assert not [at for at in second.asked if begin + 0.01 < at < begin + 29.99]
    assert first.asked[1] >= begin + 29.99
    assert [text for _, text in bench.told if text] == ["waiting until 20:00:30 UTC: It was minute."] * 2
    assert [text for _, text in bench.told].count("") == 2, "each caller tells that it goes on"


def test_a_429_without_end_ends_the_job(bench: Bench) -> None:
    provider = bench.provider(*[failed("minute") for _ in range(10 * WAVES)])
    with pytest.raises(Refused, match=r"turned away every request .* Judges page"):
        bench.caller(provider).ask(PROMPT, TOKENS)
    assert len(provider.asked) == WAVES + 1
    assert bench.held == 0.0


def test_requests_under_way_together_are_turned_away_once(bench: Bench) -> None:
    class Rush(Provider):
        def ask(self, model: str, prompt: Prompt, options: CallOptions) -> Reply:
            late = self.clock.time > 5010.0
            self.clock.sleep(1.0)
            super().ask(model, prompt, options)
            if late:
                return REPLY
            raise failed("minute")

    provider = Rush(bench.clock)
    caller = bench.caller(provider)
    bench.clock.together(16, lambda number: caller.ask(PROMPT, TOKENS))
    assert max(provider.asked) < 5030.0, "sixteen at once are not sixteen in a row"


def test_a_quota_of_the_day_is_waited_for(bench: Bench) -> None:
    bench.clock.offset += 10 * 3600.0
    provider = bench.provider(failed("day", retry_after=40.0))
    assert bench.caller(provider).ask(PROMPT, TOKENS).requests == 2
    assert provider.asked[1] - provider.asked[0] == pytest.approx(2 * 3600, abs=10.0)
    assert [text for _, text in bench.told] == ["waiting for the day's quota until 08:00 UTC: It was day.", ""]
    assert bench.money == pytest.approx(COST)


def test_a_quota_of_the_day_may_say_how_long(bench: Bench) -> None:
    provider = bench.provider(failed("day", retry_after=21 * 3600.0))
    bench.caller(provider).ask(PROMPT, TOKENS)
    assert provider.asked[1] - provider.asked[0] == pytest.approx(21 * 3600, abs=10.0)
    assert bench.told[0][1].startswith("waiting for the day's quota until 4 November 17:00 UTC: ")


def test_a_provider_whose_day_begins_a_little_later(bench: Bench) -> None:
    bench.clock.offset += 12 * 3600.0 + 2.0  # just after midnight in Los Angeles
    provider = bench.provider(failed("day"), failed("day"))
    bench.caller(provider).ask(PROMPT, TOKENS)
    assert provider.asked[2] - provider.asked[0] == pytest.approx(1200.0, abs=20.0), "not for a whole day"


# 4xx ---------------------------------------------------------------------------------------------------------


def test_a_refused_request_is_given_up_at_once(bench: Bench) -> None:
    provider = bench.provider(failed("refused"))
    caller = bench.caller(provider)
    with pytest.raises(GaveUp, match="It was refused"):
        caller.ask(PROMPT, TOKENS)
    assert len(provider.asked) == 1
    assert (bench.money, bench.held) == (0.0, 0.0)
    caller.ask(PROMPT, TOKENS)


def test_refusals_in_a_row_open_the_breaker(bench: Bench) -> None:
    one = [failed("refused")] * (REFUSALS - 1)
    provider = bench.provider(*one, REPLY, *one, failed("refused"))
    caller = bench.caller(provider)
    for _ in one:
        with pytest.raises(GaveUp):
            caller.ask(PROMPT, TOKENS)
    caller.ask(PROMPT, TOKENS)  # any reply closes it again
    for _ in one:
        with pytest.raises(GaveUp):
            caller.ask(PROMPT, TOKENS)
    for _ in range(2):
        with pytest.raises(Refused, match="refused 5 requests in a row, the last one so: It was refused"):
            caller.ask(PROMPT, TOKENS)
    assert len(provider.asked) == 2 * REFUSALS, "the last was not sent"


@pytest.mark.parametrize("kind", ["key", "no key", "model"])
def test_what_no_request_can_mend_ends_all_at_once(bench: Bench, kind: ErrorKind) -> None:
    bench.table = table(requests=60)
    provider = bench.provider(*[failed(kind)] * 20)
    caller = bench.caller(provider)
    refused = []

    def work(number: int) -> None:
        with pytest.raises(Refused, match=f"It was {kind}") as caught:
            caller.ask(PROMPT, TOKENS)
        refused.append(str(caught.value))

    bench.clock.together(8, work)
    assert len(refused) == 8
    assert len(provider.asked) == 1, "the others waited for their slots and were not sent"
    assert (bench.money, bench.held) == (0.0, 0.0)


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


@pytest.fixture(scope="module")
def quick_writes() -> Iterator[None]:
    patch = pytest.MonkeyPatch()

    def write(path: Path, text: str) -> None:
        draft = path.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)

    patch.setattr(book_module, "write_atomically", write)
    yield
    patch.undo()


@pytest.mark.parametrize("seed", range(4))
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
    assert spent.money > budget.money - WORST or spent.requests == budget.requests, "and it is used"
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
