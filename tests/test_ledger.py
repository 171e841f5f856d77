"""The ledger: never above a limit, of the minute or of the day, whatever the clock does."""

from __future__ import annotations

import heapq
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.judges.ledger import (
    AHEAD,
    SLACK,
    UNDER_WAY_SECONDS,
    BudgetSpent,
    Closed,
    Hold,
    Ledger,
    day_of,
    token_seconds,
)
from jobs.judges.terms import Terms
from ledgers import MODEL, NOON, Clock, ask, refusal, take, terms
from storage.errors import UserError

# the minute --------------------------------------------------------------------------------------------------


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
@pytest.mark.slow
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
@pytest.mark.slow
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
