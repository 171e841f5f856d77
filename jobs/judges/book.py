"""The ledger's file: its records, and how they are read and written under one lock.

If it is broken (the machine crashed), it is moved aside to `ledger.broken-…` and a new one begins.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

import filelock
import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.processes import START_TOLERANCE
from storage.errors import PlumbError
from storage.files import write_atomically

FILE = "ledger.json"
LOCK = "ledger.lock"
LOCK_SECONDS = 30.0
DAYS_KEPT = 5
ACCOUNTS_KEPT = 100

ClosedKind = Literal["minute", "day", "money"]


class LedgerBusy(PlumbError):
    """Another process held the ledger's lock for too long."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Lanes(Record):
    """The next free slots of a model, and the latest that was used; in steady time."""

    requests: float = 0.0
    tokens: float = 0.0
    sent: float = 0.0


class Closure(Record):
    """A model is closed; times in seconds since the epoch."""

    since: float
    until: float
    why: str
    kind: ClosedKind


class Use(Record):
    """Of a model in a day, requests under way included; tokens in and out."""

    requests: int = 0
    tokens: int = 0


class Day(Record):
    """What all accounts have paid or lost in a day."""

    money: float = 0.0
    requests: int = 0
    models: dict[str, Use] = Field(default_factory=dict)


class Account(Record):
    """What one account has paid or lost in all."""

    money: float = 0.0
    requests: int = 0


class Held(Record):
    """A request that was granted and has not ended. `money` is the most it may cost, `slot` in steady time."""

    account: str
    model: str
    tokens: int
    money: float
    day: str
    slot: float
    sent: bool
    tokens_a_minute: int
    process: str


class Book(Record):
    """All of it. Days and accounts stand in the order of their last use."""

    version: Literal[1] = 1
    steady: float = 0.0  # when the last slot was given
    lanes: dict[str, Lanes] = Field(default_factory=dict)
    closed: dict[str, Closure] = Field(default_factory=dict)
    days: dict[str, Day] = Field(default_factory=dict)
    accounts: dict[str, Account] = Field(default_factory=dict)
    holds: dict[str, Held] = Field(default_factory=dict)

    def hold(self, key: str, held: Held) -> None:
        self.holds[key] = held
        use = self._touch_day(held.day).models.setdefault(held.model, Use())
        use.requests += 1
        use.tokens += held.tokens

    def release(self, key: str) -> None:
        """It cost nothing and counts for nothing."""
        held = self.holds.pop(key, None)
        if held is not None:
            self.correct(held, requests=-1, tokens=-held.tokens)

    def lose(self, key: str) -> None:
        """It counts at its worst."""
        held = self.holds.pop(key, None)
        if held is not None:
            self.pay(held.account, held.day, held.money)

    def correct(self, held: Held, *, requests: int = 0, tokens: int) -> None:
        """Put right what a hold was counted at, if its day is still kept."""
        if held.day in self.days and held.model in self.days[held.day].models:
            use = self.days[held.day].models[held.model]
            use.requests = max(0, use.requests + requests)
            use.tokens = max(0, use.tokens + tokens)

    def pay(self, account: str, day: str, money: float) -> None:
        entry = self.touch_account(account)
        entry.money += money
        entry.requests += 1
        total = self._touch_day(day)
        total.money += money
        total.requests += 1

    def held_money(self, *, account: str | None = None, day: str | None = None) -> float:
        """Dollars set aside, of an account or for a day."""
        return sum(
            hold.money
            for hold in self.holds.values()
            if account in (None, hold.account) and day in (None, hold.day)
        )

    def touch_account(self, name: str) -> Account:
        self.accounts[name] = entry = self.accounts.pop(name, None) or Account()
        return entry

    def _touch_day(self, name: str) -> Day:
        self.days[name] = day = self.days.pop(name, None) or Day()
        return day

    def prune(self, now: float, over: float) -> None:
        """Keep it small: it is written two or three times for each request. `over`: steady time of dead lanes."""
        for model in [name for name, lanes in self.lanes.items() if max(lanes.requests, lanes.tokens) < over]:
            del self.lanes[model]
        for model in [name for name, closure in self.closed.items() if closure.until <= now]:
            del self.closed[model]
        # The last few days by use, not by date: a clock that jumps forth and back finds its day again.
        for day in list(self.days)[:-DAYS_KEPT]:
            del self.days[day]
        busy = {hold.account for hold in self.holds.values()}
        for account in list(self.accounts)[:-ACCOUNTS_KEPT]:
            if account not in busy:
                del self.accounts[account]


class BookFile:
    """The book of a folder. Several objects, threads and processes may open it, one at a time.

    Args:
        folder: is made if it is not there.
        now: seconds since the epoch, to name a broken file by.
    """

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / FILE
        self._now = now
        self._threads = threading.Lock()
        # Threads queue above; of a process one at a time polls for the file's lock.
        self._lock = filelock.FileLock(
            folder / LOCK, timeout=LOCK_SECONDS, thread_local=False, poll_interval=0.005
        )
        with self.open():
            for draft in folder.glob(f".{FILE}.*"):  # of writers that were killed: under the lock nobody writes
                draft.unlink(missing_ok=True)

    @contextmanager
    def open(self) -> Iterator[Book]:
        """The book under lock; changes are written unless an exception leaves the block.

        Raises:
            LedgerBusy: the lock is not to be had.
            OSError: it cannot be written; the file is as it was.
        """
        with self._threads:
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise LedgerBusy(
                    f"{self._file} has been locked by another process for {LOCK_SECONDS:.0f} s: one that hangs or "
                    "was halted. End that process and try again."
                ) from None
            try:
                text = self._text()
                book = _parse(text)
                if book is None:
                    self._move_aside()
                    text, book = None, Book()
                yield book
                changed = book.model_dump_json()
                if changed != text:
                    write_atomically(self._file, changed)
            finally:
                self._lock.release()

    def read(self) -> Book:
        """The file is always replaced as a whole: reading takes no lock."""
        return _parse(self._text()) or Book()

    def _text(self) -> str | None:
        try:
            return self._file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def _move_aside(self) -> None:
        stamp = datetime.fromtimestamp(self._now()).strftime("%Y%m%d-%H%M%S")
        os.replace(self._file, self._file.with_name(f"ledger.broken-{stamp}-{uuid4().hex[:4]}.json"))


def _parse(text: str | None) -> Book | None:
    """None: it is broken."""
    try:
        return Book() if text is None else Book.model_validate_json(text)
    except ValidationError:
        return None


def this_process() -> str:
    """`pid@started`: a PID alone may be somebody else's tomorrow."""
    return f"{os.getpid()}@{_since_boot(psutil.Process())}"


def _since_boot(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: both move when the clock is put, the difference stays."""
    return process.create_time() - psutil.boot_time()


def is_alive(process: str) -> bool:
    """Whether the process (`pid@started`) still runs; one that was killed and not yet reaped does not."""
    pid, _, started = process.partition("@")
    try:
        found = psutil.Process(int(pid))
        same = abs(_since_boot(found) - float(started)) <= START_TOLERANCE
        return same and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True
