"""The ledger's money: never above a budget, whoever dies, and whatever becomes of the file."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.judges import book as book_module
from jobs.judges.book import ACCOUNTS_KEPT, DAYS_KEPT, Account, Book, LedgerBusy
from jobs.judges.ledger import (
    SLACK,
    Budget,
    BudgetSpent,
    Closed,
    Ledger,
    Spent,
    dollars,
)
from ledgers import MODEL, Clock, ask, refusal, take, terms

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


@pytest.mark.slow
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
