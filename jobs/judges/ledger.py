"""What may be asked and what was paid: one file for all workers of a data folder and its web process.

It is `judges/ledger.json` under a file lock. pyrate-limiter was looked at: its SQLite bucket inserts one row for
each unit of weight, so tokens (3,000 a request) don't fit, and nothing there corrects an estimate afterwards or
caps money.

A request is a *hold* from the moment it is granted: its tokens, and the most that it may cost, are set aside. It
ends in one of three ways: settled (the reply came), released (certainly not billed) or lost (nobody knows: it
stays counted at its worst). Holds of a process that died are lost if they had been sent, released if not.

**Limits of the minute** are paced: each request gets the next slot of its model, 60 / (limit × PACE) seconds
after the one before, and no burst. A request leaves at most SLACK seconds after its slot, so those that leave
within 60 s have slots within 60 + SLACK: at most floor(60.75 / 60 × 0.98 × limit) + 1, which is never above the
limit, whatever the limit is. What is left of the margin, 0.47 s, is the network's: requests overtake one another.

Tokens are paced the same way in a lane of their own: a request takes 60 / PACE × tokens / (limit − tokens)
seconds of it. So requests of one size never pass the limit; a large one among small ones may, by what it is
larger. They are estimates until the reply is there; then the lane moves by what the estimate was wrong.

Slots are in `time.monotonic`, which all processes of a machine share and which no change of the clock moves;
after a reboot it begins anew, and the lanes with it. Days and closures are in seconds since the epoch.

If the file is broken, a new one begins: what was counted today is forgotten; what an account had spent comes back
from the memory of each process and by `floor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

from jobs.judges.book import (
    Account,
    Book,
    BookFile,
    ClosedKind,
    Closure,
    Day,
    Held,
    Lanes,
    Use,
    is_alive,
    this_process,
)
from jobs.judges.terms import ModelTerms, Terms
from storage.errors import PlumbError

PACE = 0.98  # of a limit of the minute
SLACK = 0.75  # seconds after its slot in which a request may still leave
AHEAD = 6.0  # seconds: slots further off are not given, so that little is lost when a worker is killed or stopped
SWEEP_SECONDS = 1.0
UNDER_WAY_SECONDS = 2.0  # until one looks whether a request under way has left some money
UNSENT_SECONDS = 5.0  # after its slot a hold that was not sent is of no use: its job was paused
SENT_SECONDS = 7200.0  # longer than any request: a hold this old in a living process was forgotten by a bug
CENT = 1e-9  # dollars: sums of floats may differ by less


@dataclass(frozen=True)
class Budget:
    """What an account may spend in all: dollars, and requests (None: no cap)."""

    money: float
    requests: int | None = None


@dataclass(frozen=True)
class Hold:
    """A request that may be sent in `wait` seconds.

    With a wait of 0 it counts as sent; otherwise call `Ledger.start` once it is over. `tokens` are estimated,
    `money` is the most it may cost in dollars, `day` is the day it counts for.
    """

    id: str
    account: str
    model: str
    tokens: int
    money: float
    wait: float
    day: str


@dataclass(frozen=True)
class Closed:
    """Nothing is granted before `until` (seconds since the epoch); `why` is for the reader.

    `minute` passes by itself and soon; `day` and `money` may pass earlier, when somebody raises a limit.
    """

    until: float
    why: str
    kind: ClosedKind


@dataclass(frozen=True)
class Spent:
    """Dollars and requests that were paid or lost, and dollars that are set aside for requests under way."""

    money: float
    requests: int
    held: float


@dataclass(frozen=True)
class ModelUse:
    """Requests and tokens of a model today, those under way included."""

    requests: int
    tokens: int
    closed: Closed | None


@dataclass(frozen=True)
class Snapshot:
    """The ledger for pages. `today` is of all accounts; `models` are those asked today or closed now."""

    day: str
    today: Spent
    models: dict[str, ModelUse]
    accounts: dict[str, Spent]


class BudgetSpent(PlumbError):
    """No further request fits what may be spent; waiting does not help."""


class Ledger:
    """Grants requests within limits and budgets, and counts what they cost.

    Safe to use from several threads, by several objects and in several processes at once. Every method that
    changes it raises LedgerBusy where its lock is not to be had, and OSError where it cannot be written.

    Args:
        folder: the data folder's `judges/`.
        now: seconds since the epoch.
        steady: seconds of a clock that never jumps and that all processes share.
    """

    def __init__(
        self, folder: Path, now: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = now
        self.steady = steady
        self._book_file = BookFile(folder, now)
        self._process = this_process()
        # What this process knows to be spent, by account: outlives a broken file and the pruning of old accounts.
        self._known: dict[str, Account] = {}
        self._swept: float | None = None

    # a request's way ------------------------------------------------------------------------------------

    def reserve(
        self,
        account: str,
        budget: Budget,
        terms: Terms,
        model: str,
        tokens: int,
        money: float,
        ahead: float = AHEAD,
    ) -> Hold | Closed:
        """A place for one request, or until when there is none.

        Args:
            tokens: estimated, in and out.
            money: the most it may cost, in dollars.
            ahead: seconds; a slot further off is not given. Who allows more comes before those who allow less.

        Raises:
            BudgetSpent: it fits neither now nor when all that is under way has ended.
            UserError: the table has no row for the model.
        """
        row = terms.of(model)
        day, midnight = day_of(self.now(), terms.day_begins_in)
        with self._open(account) as book:
            self._sweep(book)
            closed = (
                self._over_budget(book, account, budget, model, money)
                or self._over_day(book.days.get(day), midnight, row, model, tokens)
                or self._over_money_a_day(book, day, midnight, terms, model, money)
                or self._closure(book, model)
            )
            if closed is not None:
                return closed
            lanes = book.lanes.get(model, Lanes())
            steady = self.steady()
            requests_from = max(lanes.requests, steady - SLACK)
            tokens_from = max(lanes.tokens, steady - SLACK)
            slot = max(requests_from, tokens_from)
            wait = max(0.0, slot - steady)
            if wait > ahead:
                # Who is sent away comes back while there are slots left to take, and not all come at once.
                until = self.now() + max(wait - ahead / 2, ahead / 2)
                return Closed(until, f"all places of the next {wait:.0f} s are taken", "minute")
            book.lanes[model] = Lanes(
                requests=slot + 60.0 / PACE / row.requests_a_minute,
                tokens=tokens_from + token_seconds(tokens, row.tokens_a_minute),
                sent=slot if wait == 0.0 else lanes.sent,
            )
            book.steady = steady
            hold = Hold(uuid4().hex[:16], account, model, tokens, money, wait, day)
            held = Held(
                account=account,
                model=model,
                tokens=tokens,
                money=money,
                day=day,
                slot=slot,
                sent=wait == 0.0,
                tokens_a_minute=row.tokens_a_minute,
                process=self._process,
            )
            book.hold(hold.id, held)
            return hold

    def start(self, hold: Hold) -> Closed | None:
        """The wait is over and the request is about to be sent: None if it may be.

        Closed: the model was closed meanwhile, or the slot is long over (a pause). The hold is released; reserve
        anew.
        """
        with self._open() as book:
            held = book.holds.get(hold.id)
            if held is None or self.steady() - held.slot > SLACK:
                closed: Closed | None = Closed(self.now(), "its place is over", "minute")
            else:
                closed = self._closure(book, hold.model)
            if closed is not None:
                book.release(hold.id)
            elif held is not None:
                held.sent = True
                lanes = book.lanes.setdefault(held.model, Lanes())
                lanes.sent = max(lanes.sent, held.slot)
            return closed

    def settle(self, hold: Hold, tokens: int, money: float) -> None:
        """The reply came: what it took, in and out, and what it cost in dollars."""
        with self._open(hold.account) as book:
            held = book.holds.pop(hold.id, None)
            # Paid all the same if the hold is not there (the ledger began anew, or took us for dead): at worst
            # something is counted twice, never not at all.
            book.pay(hold.account, hold.day, money)
            if held is None:
                return
            book.correct(held, tokens=tokens - held.tokens)
            limit = held.tokens_a_minute
            wrong = token_seconds(tokens, limit) - token_seconds(held.tokens, limit)
            lanes = book.lanes.setdefault(hold.model, Lanes())
            lanes.tokens = (max(lanes.tokens, self.steady()) if wrong > 0 else lanes.tokens) + wrong

    def release(self, hold: Hold) -> None:
        """It was certainly not billed: never sent, or turned away."""
        with self._open(hold.account) as book:
            book.release(hold.id)

    def lose(self, hold: Hold) -> None:
        """It may have been billed and nobody knows: it stays counted at its worst."""
        with self._open(hold.account) as book:
            book.lose(hold.id)

    def close_until(self, model: str, until: float, why: str, kind: ClosedKind) -> None:
        """Grant and start nothing more of this model before `until` (seconds since the epoch), to nobody."""
        with self._open() as book:
            closed = self._closure(book, model)
            if closed is None or closed.until < until:
                book.closed[model] = Closure(since=self.now(), until=until, why=why, kind=kind)

    def open_again(self, model: str) -> bool:
        """Ask the model again though a quota of its day was said to be used up; whether it was closed.

        A quota may have been raised, or the provider been wrong; if not, its next answer closes it again.
        """
        with self._open() as book:
            return book.closed.pop(model, None) is not None

    def floor(self, account: str, money: float, requests: int) -> None:
        """An account has spent at least this: a worker's own events say so, whatever became of the ledger."""
        with self._open(account) as book:
            self._sweep(book)
            entry = book.touch_account(account)
            book.accounts[account] = _most(entry, Account(money=money, requests=requests))

    # what it says ---------------------------------------------------------------------------------------

    def spent(self, account: str) -> Spent:
        """Of an account, in all."""
        book = self._book_file.read()
        entry = _most(book.accounts.get(account, Account()), self._known.get(account, Account()))
        return Spent(entry.money, entry.requests, book.held_money(account=account))

    def spent_today(self, terms: Terms) -> Spent:
        """Of all accounts."""
        return self.tell(terms).today

    def tell(self, terms: Terms) -> Snapshot:
        """All of it, as the file stands."""
        book = self._book_file.read()
        name, _ = day_of(self.now(), terms.day_begins_in)
        day = book.days.get(name, Day())
        closed = {model: found for model in book.closed if (found := self._closure(book, model))}
        models = {}
        for model in sorted(day.models.keys() | closed.keys()):
            use = day.models.get(model, Use())
            models[model] = ModelUse(use.requests, use.tokens, closed.get(model))
        accounts = {
            account: Spent(entry.money, entry.requests, book.held_money(account=account))
            for account, entry in book.accounts.items()
        }
        return Snapshot(name, Spent(day.money, day.requests, book.held_money(day=name)), models, accounts)

    # what forbids a request -----------------------------------------------------------------------------

    def _over_budget(self, book: Book, account: str, budget: Budget, model: str, money: float) -> Closed | None:
        entry = book.accounts.get(account, Account())
        if budget.requests is not None and entry.requests + 1 > budget.requests:
            raise BudgetSpent(
                f"max_requests = {budget.requests:,}: {entry.requests:,} requests are spent. Allow more requests."
            )
        if entry.money + money > budget.money + CENT:
            so_far = f": {dollars(entry.money)} is spent, and one more" if entry.money else " is less than one"
            raise BudgetSpent(
                f"budget = {dollars(budget.money)}{so_far} request to {model} may cost {dollars(money)}, if the "
                "reply is as long as allowed. Raise the budget, or allow shorter replies."
            )
        # It may still fit when those under way have ended. They do end: see _sweep.
        under_way = sum(hold.account == account for hold in book.holds.values())
        many = budget.requests is not None and entry.requests + under_way + 1 > budget.requests
        if many or entry.money + book.held_money(account=account) + money > budget.money + CENT:
            return Closed(
                self.now() + UNDER_WAY_SECONDS, "requests under way may take what is left of the budget", "minute"
            )
        return None

    def _over_day(
        self, day: Day | None, midnight: float, row: ModelTerms, model: str, tokens: int
    ) -> Closed | None:
        if tokens > row.tokens_a_day:
            raise BudgetSpent(
                f"Tokens a day = {row.tokens_a_day:,} of {model} is less than one request takes, about "
                f"{tokens:,}. Correct it in the table of prices and limits on the Judges page."
            )
        use = (day or Day()).models.get(model, Use())
        where = f"to {model} are used. The limit stands in the table on the Judges page."
        if use.requests + 1 > row.requests_a_day:
            return Closed(midnight, f"{use.requests:,} of {row.requests_a_day:,} requests a day {where}", "day")
        if use.tokens + tokens > row.tokens_a_day:
            return Closed(midnight, f"{use.tokens:,} of {row.tokens_a_day:,} tokens a day {where}", "day")
        return None

    def _over_money_a_day(
        self, book: Book, day: str, midnight: float, terms: Terms, model: str, money: float
    ) -> Closed | None:
        cap, spent = terms.money_a_day, book.days.get(day, Day()).money
        if money > cap + CENT:
            raise BudgetSpent(
                f"Most money a day = {dollars(cap)} is less than one request to {model} may cost: "
                f"{dollars(money)}, if the reply is as long as allowed. Raise it on the Judges page, or allow "
                "shorter replies."
            )
        if spent + money > cap + CENT:
            why = f"{dollars(spent)} of {dollars(cap)} is spent. Raise “Most money a day” on the Judges page."
            return Closed(midnight, why, "money")
        if spent + book.held_money(day=day) + money > cap + CENT:
            return Closed(
                self.now() + UNDER_WAY_SECONDS,
                "requests under way may take what is left of the day's money",
                "minute",
            )
        return None

    def _closure(self, book: Book, model: str) -> Closed | None:
        closure = book.closed.get(model)
        # One from the future: the clock was put back, and `until` means nothing any more.
        if closure is None or not closure.since - 60.0 <= self.now() < closure.until:
            return None
        return Closed(closure.until, closure.why, closure.kind)

    # the book -------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self, account: str | None = None) -> Iterator[Book]:
        """The book under lock, with this account at no less than the process knows it has spent."""
        with self._book_file.open() as book:
            known = self._known.get(account or "")
            entry = book.accounts.get(account or "", Account())
            if account is not None and known is not None and _most(entry, known) != entry:
                book.accounts[account] = _most(entry, known)
            yield book
            book.prune(self.now(), self.steady() - SLACK)
            if account is not None and account in book.accounts:
                self._known[account] = book.accounts[account].model_copy()

    def _sweep(self, book: Book) -> None:
        """End the holds that nobody else will end."""
        steady = self.steady()
        if steady < book.steady:  # the machine was started anew
            book.lanes.clear()
            book.steady = steady
        if self._swept is not None and 0.0 <= steady - self._swept < SWEEP_SECONDS:
            return
        self._swept = steady
        alive = {self._process: True}
        unused: dict[str, list[float]] = {}
        for key, held in list(book.holds.items()):
            if held.process not in alive:
                alive[held.process] = is_alive(held.process)
            dead, late = not alive[held.process], steady - held.slot
            if held.sent and (dead or late > SENT_SECONDS):
                book.lose(key)
            elif not held.sent and (dead or late > UNSENT_SECONDS):
                book.release(key)
                unused.setdefault(held.model, []).append(held.slot)
        for model, slots in unused.items():
            self._give_back(book, model, slots)

    def _give_back(self, book: Book, model: str, slots: list[float]) -> None:
        """Hand out again the slots that a process left behind, where nobody has a later one."""
        lanes = book.lanes.get(model)
        if lanes is None:
            return
        taken = max([lanes.sent, *(held.slot for held in book.holds.values() if held.model == model)])
        free = [slot for slot in slots if slot > taken]
        if free:
            lanes.requests = min(lanes.requests, *free)


def _most(one: Account, other: Account) -> Account:
    return Account(money=max(one.money, other.money), requests=max(one.requests, other.requests))


def token_seconds(tokens: int, tokens_a_minute: int) -> float:
    """How long a request takes the lane of tokens; one of half the limit or more takes it for the minute."""
    if tokens * 2 >= tokens_a_minute:
        return 60.0 / PACE
    return 60.0 / PACE * max(tokens, 0) / (tokens_a_minute - tokens)


def day_of(now: float, zone: str) -> tuple[str, float]:
    """The date in this time zone, and when the next begins there (seconds since the epoch, above `now`)."""
    moment = datetime.fromtimestamp(now, ZoneInfo(zone))
    following = datetime.combine(moment.date() + timedelta(days=1), time_of_day(), moment.tzinfo)
    return moment.date().isoformat(), max(following.timestamp(), now + 1.0)


def dollars(money: float) -> str:
    """$12.30, or $0.0123 where it is less than a dollar."""
    return f"${money:,.2f}" if money >= 1.0 or money == 0.0 else f"${money:.4f}"
