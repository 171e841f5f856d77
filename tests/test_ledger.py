"""The ledger: never above a limit, never above a budget, whoever dies and whatever the clock does."""

from __future__ import annotations

import heapq
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.judges import book as book_module
from jobs.judges.book import ACCOUNTS_KEPT, DAYS_KEPT, Account, Book, LedgerBusy
from jobs.judges.ledger import (
    AHEAD,
    SLACK,
    UNDER_WAY_SECONDS,
    Budget,
    BudgetSpent,
    Closed,
    Hold,
    Ledger,
    Spent,
    day_of,
    dollars,
    token_seconds,
)
from jobs.judges.terms import ModelTerms, Terms
from storage.errors import UserError

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


# the minute --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_writes() -> Iterator[None]:
    """Without waiting for the disk: these tests write thousands of times."""
    patch = pytest.MonkeyPatch()
    patch.setattr(book_module, "write_atomically", lambda path, text: path.write_text(text, encoding="utf-8"))
    yield
    patch.undo()


def sendings(
    table: Terms, arrivals: list[float], lateness: Callable[[], float], who: Callable[[], int], sizes: list[int]
) -> list[tuple[float, int]]:
    """Play callers against three Ledgers on one file, some of them new in between: (when it was sent, tokens)."""
    clock = Clock()
    sent = []
    with tempfile.TemporaryDirectory() as folder:

        def make() -> Ledger:
            return Ledger(Path(folder), clock.now, clock.steady)

        ledgers = [make(), make(), make()]
        order = itertools.count()
        events: list[tuple[float, int, int, Hold | None]] = [
            (clock.steady_now + at, next(order), size, None) for at, size in zip(arrivals, sizes, strict=True)
        ]
        heapq.heapify(events)
        while events:
            clock.steady_now, _, size, hold = heapq.heappop(events)
            number = who()
            if number == 3:
                ledgers[number := 0] = make()
            if hold is None:
                given = ask(ledgers[number], table, tokens=size, ahead=AHEAD)
                if isinstance(given, Closed):
                    later = clock.steady_now + max(0.01, given.until - clock.now())
                    heapq.heappush(events, (later, next(order), size, None))
                    continue
                hold = given
                if hold.wait > 0:
                    at = clock.steady_now + hold.wait + lateness()
                    heapq.heappush(events, (at, next(order), size, hold))
                    continue
            elif ledgers[number].start(hold) is not None:
                heapq.heappush(events, (clock.steady_now + 0.01, next(order), size, None))
                continue
            sent.append((clock.steady_now, size))
            ledgers[number].settle(hold, size, 0.001)
    return sent


def most_in_a_minute(sent: list[tuple[float, int]]) -> tuple[int, int]:
    """(requests, tokens) in the fullest minute, its ends included."""
    minutes = [[size for at, size in sent if begin <= at <= begin + 60.0] for begin, _ in sent]
    return max(map(len, minutes)), max(map(sum, minutes))


@settings(max_examples=12, deadline=None)
@given(
    limit=st.integers(1, 40),
    gaps=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.7, 3.0, 20.0]), min_size=20, max_size=70),
    seed=st.randoms(use_true_random=False),
)
def test_no_minute_sees_more_requests_than_the_limit(
    quick_writes: None, limit: int, gaps: list[float], seed: Any
) -> None:
    arrivals = list(itertools.accumulate(gaps))
    sent = sendings(
        terms(requests=limit),
        arrivals,
        lambda: seed.choice([0.0, 0.0, seed.uniform(0.0, SLACK), SLACK - 1e-6, SLACK + 0.2]),
        lambda: seed.choice([0, 1, 2, 3]),
        [1] * len(arrivals),
    )
    assert len(sent) == len(arrivals), "each is sent once"
    assert most_in_a_minute(sent)[0] <= limit


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.one_of(
        st.integers(1, 12_000).map(lambda size: [size] * 40),
        st.lists(st.integers(1, 4000), min_size=20, max_size=60),
    ),
    seed=st.randoms(use_true_random=False),
)
def test_no_minute_sees_more_tokens_than_the_limit(quick_writes: None, sizes: list[int], seed: Any) -> None:
    arrivals = sorted(seed.uniform(0.0, 90.0) for _ in sizes)
    sent = sendings(
        terms(requests=10_000, tokens=10_000), arrivals, lambda: seed.uniform(0.0, SLACK), lambda: 0, sizes
    )
    # One that is larger than the limit by itself is the provider's to refuse; it is sent alone.
    assert most_in_a_minute(sent)[1] <= max(10_000, max(sizes)) + max(sizes) - min(sizes)


@pytest.mark.parametrize("limit", [1, 2, 9, 150])
def test_a_busy_pool_gets_nearly_the_limit(quick_writes: None, limit: int) -> None:
    minutes = 1 if limit == 150 else 4
    sent = sendings(
        terms(requests=limit), [0.0] * (limit * minutes + 15), lambda: 0.0, lambda: 0, [1] * (limit * minutes + 15)
    )
    first = sent[0][0]
    during = sum(at < first + minutes * 60.0 for at, _ in sent)
    assert 0.97 * limit * minutes <= during <= limit * minutes
    assert most_in_a_minute(sent)[0] <= limit


def test_slots_are_handed_out_ahead_but_not_far(ledger: Ledger, clock: Clock) -> None:
    table = terms(requests=60)  # every 1.02 s
    waits = []
    while isinstance(given := ask(ledger, table, ahead=AHEAD), Hold):
        waits.append(given.wait)
    assert waits[0] == 0.0
    assert waits[-1] <= AHEAD
    assert [round(b - a, 3) for a, b in itertools.pairwise(waits[1:])] == [1.02] * (len(waits) - 2)
    assert given.kind == "minute"
    assert clock.now() < given.until <= clock.now() + AHEAD
    assert isinstance(ask(ledger, table, ahead=2 * AHEAD), Hold), "who waits longer comes first"


def test_an_idle_hour_is_not_made_up_for(ledger: Ledger, clock: Clock) -> None:
    take(ledger, terms(requests=60))
    clock.steady_now += 3600.0
    assert [take(ledger, terms(requests=60)).wait > 0 for _ in range(3)] == [False, True, True]


def test_a_reply_that_took_more_tokens_puts_off_the_next(ledger: Ledger) -> None:
    table = terms(requests=10**6, tokens=100_000)
    first = take(ledger, table, tokens=1000)
    expected = take(ledger, table, tokens=1000).wait
    ledger.settle(first, 21_000, 0.01)
    later = take(ledger, table, tokens=1000).wait
    assert later == pytest.approx(2 * token_seconds(1000, 100_000) - SLACK + 15.66, rel=0.05)
    ledger.settle(take(ledger, table, tokens=21_000), 1000, 0.01)
    assert expected < take(ledger, table, tokens=1000).wait < later + 1.5


def test_a_request_above_the_tokens_of_a_minute_takes_one_minute() -> None:
    assert token_seconds(10**9, 1000) == pytest.approx(60 / 0.98)
    assert token_seconds(500, 1000) == pytest.approx(60 / 0.98)
    assert token_seconds(0, 1000) == 0.0


def test_models_have_lanes_of_their_own(ledger: Ledger) -> None:
    table = terms(requests=1)
    assert take(ledger, table).wait == 0.0
    assert take(ledger, table, model="gemini-2.5-pro").wait == 0.0
    assert take(ledger, table).wait > 60.0


def test_a_model_without_a_price_is_not_asked(ledger: Ledger) -> None:
    with pytest.raises(UserError, match="has no row"):
        ask(ledger, model="gpt-9")


# closed ------------------------------------------------------------------------------------------------------


def test_a_closed_model_is_closed_to_all(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    other = Ledger(tmp_path / "judges", clock.now, clock.steady)
    take(other, terms(requests=60))
    waiting = take(other, terms(requests=60))
    ledger.close_until(MODEL, clock.now() + 30.0, "too many", "minute")
    ledger.close_until(MODEL, clock.now() + 10.0, "shorter", "minute")
    assert refusal(other) == Closed(clock.now() + 30.0, "too many", "minute")
    clock.steady_now += waiting.wait
    assert other.start(waiting) == Closed(clock.now() + 30.0 - waiting.wait, "too many", "minute")
    assert other.spent("job-1").held == pytest.approx(0.01), "the first alone: the other was released"
    assert isinstance(ask(other, model="gemini-2.5-pro"), Hold)
    clock.steady_now += 30.0
    take(other)


def test_a_hold_whose_slot_is_over_is_taken_anew(ledger: Ledger, clock: Clock) -> None:
    table = terms(requests=60)
    take(ledger, table)
    early, late = take(ledger, table), take(ledger, table)
    clock.steady_now += early.wait + SLACK - 0.01
    assert ledger.start(early) is None
    clock.steady_now += 600.0
    assert ledger.start(late) is not None
    assert ledger.start(late) is not None, "it is gone"
    ledger.release(late)
    assert ledger.tell(table).models[MODEL].requests == 2


def test_a_paused_job_sets_nothing_aside_for_long(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    table = terms(requests=60)
    take(ledger, table)
    for _ in range(5):
        take(ledger, table)
    clock.steady_now += 60.0
    other = Ledger(tmp_path / "judges", clock.now, clock.steady)
    take(other, table, account="job-2")
    assert other.spent("job-1").held == pytest.approx(0.01), "what was sent may still come"


# the clock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-86_400.0, -3600.0, -5.0, 5.0, 3600.0, 86_400.0])
def test_a_clock_that_jumps_moves_no_slot(ledger: Ledger, clock: Clock, jump: float) -> None:
    table = terms(requests=60)
    waits = [take(ledger, table).wait for _ in range(3)]
    clock.offset += jump
    waits += [take(ledger, table).wait for _ in range(3)]
    assert [round(b - a, 3) for a, b in itertools.pairwise(waits[1:])] == [1.02] * 4


def test_a_clock_put_back_opens_what_was_closed(ledger: Ledger, clock: Clock) -> None:
    ledger.close_until(MODEL, clock.now() + 60.0, "too many", "minute")
    clock.offset -= 3600.0
    take(ledger)


def test_after_a_reboot_lanes_begin_anew(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    table = terms(requests=1)
    take(ledger, table)
    assert take(ledger, table).wait > 60.0
    clock.steady_now, clock.offset = 20.0, NOON
    again = Ledger(tmp_path / "judges", clock.now, clock.steady)
    assert take(again, table).wait <= 20.0


# the day -----------------------------------------------------------------------------------------------------


def test_days_begin_at_midnight_of_the_zone() -> None:
    assert day_of(NOON, "America/Los_Angeles") == ("2025-11-03", NOON + 12 * 3600)
    assert day_of(NOON, "UTC") == ("2025-11-03", NOON + 4 * 3600)
    summer_begins = 1_774_742_400.0  # 29 March 2026, 00:00 UTC: the day has 23 hours in Berlin
    assert day_of(summer_begins, "Europe/Berlin") == ("2026-03-29", summer_begins + 22 * 3600)


@given(
    st.floats(0.0, 4e9),
    st.sampled_from(["America/Los_Angeles", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"]),
)
def test_the_next_day_is_ahead_and_another(now: float, zone: str) -> None:
    name, following = day_of(now, zone)
    assert now < following <= now + 26 * 3600
    assert day_of(following, zone)[0] > name


def test_the_day_has_its_requests(ledger: Ledger, clock: Clock) -> None:
    table = terms(day=3, requests=6000)
    holds = [take(ledger, table) for _ in range(3)]
    closed = refusal(ledger, table)
    assert (closed.kind, closed.until) == ("day", NOON + 12 * 3600)
    assert "3 of 3 requests a day" in closed.why
    assert "Judges page" in closed.why
    ledger.release(holds[0])
    take(ledger, table)  # one that was turned away does not count
    refusal(ledger, table)
    take(ledger, terms(day=4, requests=6000))  # somebody raised the limit
    clock.offset += 12 * 3600
    take(ledger, table)


def test_the_day_has_its_tokens(ledger: Ledger) -> None:
    table = terms(tokens_day=1000, requests=6000)
    hold = take(ledger, table, tokens=900)
    assert "900 of 1,000 tokens a day" in refusal(ledger, table, tokens=200).why
    ledger.settle(hold, 500, 0.01)
    take(ledger, table, tokens=200)
    with pytest.raises(BudgetSpent, match="Tokens a day = 1,000"):
        ask(ledger, table, tokens=1001)


def test_a_clock_that_jumps_days_forgets_nothing(ledger: Ledger, clock: Clock) -> None:
    table = terms(day=2, requests=6000)
    for _ in range(2):
        ledger.settle(take(ledger, table), 100, 0.01)
    for days in (1, 400, -30):
        clock.offset += days * 86_400.0
        take(ledger, table)
        clock.offset -= days * 86_400.0
        assert refusal(ledger, table).kind == "day"
    assert ledger.spent_today(table).money == pytest.approx(0.02)


def test_the_day_has_its_money(ledger: Ledger, clock: Clock) -> None:
    table = terms(money=1.0, requests=6000)
    first = take(ledger, table, money=0.6)
    waiting = refusal(ledger, table, money=0.6, account="job-2")
    assert (waiting.kind, waiting.until) == ("minute", clock.now() + UNDER_WAY_SECONDS), "the first may cost less"
    ledger.settle(first, 100, 0.5)
    closed = refusal(ledger, table, money=0.6, account="job-2")
    assert (closed.kind, closed.until) == ("money", NOON + 12 * 3600)
    assert "$0.5000 of $1.00" in closed.why
    assert "Judges page" in closed.why
    take(ledger, table, money=0.5)
    take(ledger, terms(money=2.0, requests=6000), money=0.6)
    with pytest.raises(BudgetSpent, match=r"Most money a day = \$1.00 is less than one request"):
        ask(ledger, table, money=1.01)
    clock.offset += 12 * 3600
    take(ledger, table, money=1.0)


# a budget ----------------------------------------------------------------------------------------------------


def test_a_budget_is_never_exceeded(ledger: Ledger) -> None:
    budget = Budget(1.0)
    first, second = take(ledger, budget=budget, money=0.4), take(ledger, budget=budget, money=0.4)
    assert refusal(ledger, budget=budget, money=0.4).kind == "minute"
    ledger.settle(first, 100, 0.1)
    third = take(ledger, budget=budget, money=0.4)
    ledger.lose(second)
    ledger.settle(third, 100, 0.3)
    assert ledger.spent("job-1").money == pytest.approx(0.8)
    with pytest.raises(BudgetSpent, match=r"budget = \$1.00: \$0.8000 is spent, and one more .* \$0.4000.*Raise"):
        ask(ledger, budget=budget, money=0.4)
    take(ledger, budget=budget, money=0.2)
    take(ledger, budget=budget, money=1.0, account="job-2")


@pytest.mark.parametrize("budget", [0.0, 0.39])
def test_a_budget_below_one_request_says_what_one_may_cost(ledger: Ledger, budget: float) -> None:
    with pytest.raises(BudgetSpent, match=r"is less than one request to gemini-2.5-flash may cost \$0.4000"):
        ask(ledger, budget=Budget(budget), money=0.4)
    take(ledger, budget=Budget(0.0), money=0.0)  # a model of one's own costs nothing


def test_a_budget_of_requests(ledger: Ledger) -> None:
    budget = Budget(10.0, requests=2)
    first, _ = take(ledger, budget=budget), take(ledger, budget=budget)
    assert refusal(ledger, budget=budget).kind == "minute"
    ledger.release(first)
    third = take(ledger, budget=budget)
    ledger.settle(third, 100, 0.01)
    assert refusal(ledger, budget=budget).kind == "minute"
    ledger.floor("job-1", 0.0, 2)
    with pytest.raises(BudgetSpent, match="max_requests = 2: 2 requests are spent"):
        ask(ledger, budget=budget)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["settle", "lose", "release", "keep", "break"]),
            st.floats(0.0, 0.3),
            st.floats(0.0, 1.0),
        ),
        max_size=40,
    )
)
def test_spent_and_held_stay_below_the_budget(quick_writes: None, steps: list[tuple[str, float, float]]) -> None:
    """Whatever ends how, and with a file that is torn in between."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder), clock.now, clock.steady)
        paid, requests = 0.0, 0
        for end, money, share in steps:
            if end == "break":
                (Path(folder) / "ledger.json").write_text("{")
                continue
            try:
                given = ask(ledger, budget=Budget(1.0), money=money)
            except BudgetSpent:
                assert paid + money > 1.0 - 1e-6
                continue
            if isinstance(given, Closed):
                continue
            if end == "settle":
                ledger.settle(given, 100, money * share)
                paid += money * share
            elif end == "lose":
                ledger.lose(given)
                paid += money
            elif end == "release":
                ledger.release(given)
            requests += end in ("settle", "lose")
            spent = ledger.spent("job-1")
            assert spent.money == pytest.approx(paid)
            assert spent.requests == requests
            assert spent.money + spent.held <= 1.0 + 1e-6


# who dies ----------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from jobs.judges.ledger import Budget, Ledger
from jobs.judges.terms import parse_terms
ledger = Ledger(Path(sys.argv[1]))
table = parse_terms(__import__("json").loads(sys.argv[2]))
for _ in range(3):
    ledger.reserve("job-1", Budget(1.0), table, "gemini-2.5-flash", 100, 0.3, 1000.0)
print("ready", flush=True)
time.sleep(600)
"""


def test_holds_of_a_killed_process_end(tmp_path: Path) -> None:
    table = terms(requests=1)  # one is sent at once, the others wait for a minute and more
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), table.model_dump_json()], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        ledger = Ledger(tmp_path)
        budget = Budget(1.0)
        assert refusal(ledger, table, budget=budget, money=0.3).kind == "minute", "they live and may cost less"
        assert ledger.spent("job-1").held == pytest.approx(0.9)
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
        fresh = Ledger(tmp_path)
        fresh.floor("job-1", 0.0, 0)
        spent = fresh.spent("job-1")
        assert spent.money == pytest.approx(0.3)
        assert (spent.requests, spent.held) == (1, 0.0)
        take(fresh, table, budget=budget, money=0.3)


def test_a_forgotten_hold_ends_in_the_end(ledger: Ledger, clock: Clock) -> None:
    take(ledger, budget=Budget(1.0), money=0.7)
    clock.steady_now += 3600.0
    assert refusal(ledger, budget=Budget(1.0), money=0.7).kind == "minute", "a reply may take an hour"
    clock.steady_now += 3700.0
    with pytest.raises(BudgetSpent, match=r"\$0.7000 is spent"):
        ask(ledger, budget=Budget(1.0), money=0.7)


def work(folder: str, number: int) -> list[float]:
    """Of one of four processes: the slots it got, in seconds from the same moment."""
    clock = Clock()
    ledger = Ledger(Path(folder), clock.now, clock.steady)
    slots = []
    for _ in range(100):
        hold = take(ledger, terms(requests=60), account=f"job-{number % 2}", ahead=1e6)
        slots.append(hold.wait)
        ledger.settle(hold, 50, 0.001)
    return slots


def test_four_processes_share_one_ledger(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        slots = sorted(itertools.chain(*pool.starmap(work, [(str(tmp_path), number) for number in range(4)])))
    assert len(slots) == 400
    assert all(b - a >= 60 / 0.98 / 60 - 1e-6 for a, b in itertools.pairwise(slots[1:]))
    clock = Clock()
    told = Ledger(tmp_path, clock.now, clock.steady).tell(terms())
    assert (told.models[MODEL].requests, told.models[MODEL].tokens) == (400, 400 * 50)
    assert told.today.money == pytest.approx(0.4)
    assert {name: spent.requests for name, spent in told.accounts.items()} == {"job-0": 200, "job-1": 200}
    assert all(spent.money == pytest.approx(0.2) for spent in told.accounts.values())


# the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"version": 2}', b"[]", b"\xff\xfe\x00", b'{"steady": NaN}', b"\0" * 512]
)
def test_a_broken_file_is_moved_aside(tmp_path: Path, ledger: Ledger, clock: Clock, content: bytes) -> None:
    folder = tmp_path / "judges"
    hold = take(ledger)
    ledger.settle(take(ledger), 100, 0.25)
    (folder / "ledger.json").write_bytes(content)
    assert ledger.spent("job-1").money == pytest.approx(0.25), "this process remembers"
    ledger.settle(hold, 100, 0.25)
    assert ledger.spent("job-1") == ledger.tell(terms()).accounts["job-1"]
    assert ledger.spent("job-1").money == pytest.approx(0.5)
    assert ledger.spent("job-1").requests == 2
    (broken,) = folder.glob("ledger.broken-*.json")
    assert broken.read_bytes() == content
    json.loads((folder / "ledger.json").read_text())

    (folder / "ledger.json").unlink()
    fresh = Ledger(folder, clock.now, clock.steady)
    fresh.floor("job-1", 0.4, 3)
    fresh.floor("job-1", 0.3, 5)
    assert (fresh.spent("job-1").money, fresh.spent("job-1").requests) == (0.4, 5)


def test_the_file_stays_small(ledger: Ledger, tmp_path: Path) -> None:
    book = Book(accounts={f"job-{number}-2025-11-03T10:00:00": Account(money=0.1) for number in range(10_000)})
    for number in range(100):
        book.pay(f"job-{number}-2025-11-03T10:00:00", f"day-{number}", 0.1)
    book.prune(0.0, 0.0)
    assert list(book.accounts)[-1] == "job-99-2025-11-03T10:00:00", "the last used stay"
    assert (len(book.accounts), list(book.days)) == (ACCOUNTS_KEPT, [f"day-{n}" for n in range(95, 100)])
    assert len(book.days) == DAYS_KEPT
    (tmp_path / "judges" / "ledger.json").write_text(book.model_dump_json())
    for _ in range(256):
        take(ledger, terms(requests=10_000), account="job-77-2025-11-03T10:00:00")
    assert (tmp_path / "judges" / "ledger.json").stat().st_size < 100_000


def test_an_account_that_was_pruned_is_remembered_by_its_process(
    ledger: Ledger, tmp_path: Path, clock: Clock
) -> None:
    hold = take(ledger, budget=Budget(1.0), money=0.8)
    ledger.settle(hold, 100, 0.8)
    other = Ledger(tmp_path / "judges", clock.now, clock.steady)
    for number in range(ACCOUNTS_KEPT + 1):
        other.floor(f"later-{number}", 0.1, 1)
    assert "job-1" not in other.tell(terms()).accounts
    with pytest.raises(BudgetSpent):
        ask(ledger, budget=Budget(1.0), money=0.8)


def test_drafts_of_killed_writers_go(ledger: Ledger, tmp_path: Path, clock: Clock) -> None:
    take(ledger)
    draft = tmp_path / "judges" / ".ledger.json.x1"
    draft.write_text("{")
    again = Ledger(tmp_path / "judges", clock.now, clock.steady)
    assert not draft.exists()
    assert again.spent("job-1").held == pytest.approx(0.01)


def test_nothing_is_written_while_all_wait(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    ledger.close_until(MODEL, clock.now() + 3600.0, "too many", "day")
    before = (tmp_path / "judges" / "ledger.json").stat()
    for account in ("job-1", "job-2", "job-1"):
        refusal(ledger, account=account)
    assert (tmp_path / "judges" / "ledger.json").stat().st_ino == before.st_ino


def test_a_lock_that_is_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "LOCK_SECONDS", 0.05)
    ledger = Ledger(tmp_path)
    with filelock.FileLock(tmp_path / "ledger.lock"), pytest.raises(LedgerBusy, match="has been locked"):
        take(ledger)
    take(ledger)


def test_a_full_disk_loses_no_payment(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = take(ledger)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(book_module, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            ledger.settle(hold, 100, 0.007)
    assert ledger.spent("job-1").held == pytest.approx(0.01), "it stays set aside"
    take(ledger)


def test_what_the_ledger_tells(ledger: Ledger, clock: Clock) -> None:
    table = terms(requests=6000)
    ledger.settle(take(ledger, table), 150, 0.25)
    take(ledger, table, account="desk", money=0.5)
    ledger.close_until("gemini-2.5-pro", clock.now() + 60.0, "too many", "minute")
    told = ledger.tell(table)
    assert told.day == "2025-11-03"
    assert (told.today.money, told.today.requests, told.today.held) == (0.25, 1, 0.5)
    assert (told.models[MODEL].requests, told.models[MODEL].tokens, told.models[MODEL].closed) == (2, 250, None)
    closed = told.models["gemini-2.5-pro"].closed
    assert closed is not None
    assert closed.why == "too many"
    assert told.accounts["job-1"].money == 0.25
    assert ledger.spent("desk") == Spent(0.0, 0, 0.5)
    assert ledger.spent("nobody").money == 0.0


def test_dollars_are_read_easily() -> None:
    assert [dollars(money) for money in (0.0, 0.01234, 1.0, 1234.5)] == ["$0.00", "$0.0123", "$1.00", "$1,234.50"]


@pytest.mark.parametrize("later", [False, True])
def test_slots_that_a_killed_process_left_unused_are_handed_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    """But never from under a request that has a later one."""
    clock = Clock()
    first = Ledger(tmp_path, clock.now, clock.steady)
    second = Ledger(tmp_path, clock.now, clock.steady)
    monkeypatch.setattr(second, "_process", "another")
    table = terms(60)
    _, sent, *_ = [take(first, table) for _ in range(4)]
    gap = 60 / (60 * 0.98)
    if later:
        take(second, table)
    begun = clock.steady_now
    clock.steady_now += sent.wait
    assert first.start(sent) is None
    monkeypatch.setattr("jobs.judges.ledger.is_alive", lambda process: process == "another")
    clock.steady_now += 0.1
    slot = clock.steady_now + take(second, table).wait
    assert slot == pytest.approx(begun - SLACK + (5 if later else 2) * gap)
