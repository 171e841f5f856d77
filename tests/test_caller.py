"""One request: granted, tried again where that helps, and counted whatever happens. Nothing really sleeps here."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from callers import COST, LONGEST, MODEL, PROMPT, REPLY, TOKENS, WORST, Bench, Provider, failed, table
from jobs.judges import book as book_module
from jobs.judges.caller import PIECE, REFUSALS, TRIES, WAVES, GaveUp, Refused
from jobs.judges.calls import CallOptions, ErrorKind, Prompt, Reply
from jobs.judges.ledger import Budget, BudgetSpent, Ledger

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


@pytest.mark.slow
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
