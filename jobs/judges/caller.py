"""One request to a model: granted by the ledger, tried again where that may help, and counted whatever happens.

What goes wrong for good is one of three: GaveUp (this request failed, others may go on), Refused (nothing more
can be asked) or the ledger's BudgetSpent. pybreaker was looked at for the breaker: its `call` holds a lock for as
long as the request takes, so that threads would ask one after the other; a count of refusals in a row is enough.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from jobs.judges.book import LedgerBusy
from jobs.judges.calls import CallError, CallOptions, Client, Prompt, Reply
from jobs.judges.ledger import AHEAD, Budget, Closed, Hold, Ledger, day_of
from jobs.judges.terms import ModelTerms, Terms
from jobs.judges.tokens import estimated_text_tokens, most_text_tokens
from storage.errors import PlumbError

TRIES = 6
SILENT = 10  # requests in a row without any reply, after all their tries
REFUSALS = 5  # in a row: then it isn't the content
TRANSIENT = ("server", "timeout", "connection")
BACKOFF = wait_random_exponential(multiplier=1.0, max=60.0)  # seconds, full jitter
PIECE = 0.4  # seconds of sleep between two checks
LOOK_AGAIN = 5.0  # seconds: somebody may have raised a limit
ASK_AGAIN = 60.0  # seconds: the ledger may have opened earlier, or the clock was put
LONGEST_WAIT = 3600.0  # seconds that a Retry-After of a 5xx is obeyed for
LONG_MINUTE = 15.0  # seconds: a wait that the reader should know of
LONG_RETRY = 300.0  # a quota of the day that says less means something else
WAVES = 40  # of 429 in a row, of up to a minute each: that is no rush hour

# An estimate of a prompt's tokens may be low, and the worst case must not be: a quarter more, and what a provider
# adds by itself (a chat template, the schema). Replies that show more than that raise the quarter.
MARGIN = 1.25
OVERHEAD = 500


@dataclass(frozen=True)
class Paid:
    """A reply, what it cost in dollars, and how many HTTP requests it took."""

    reply: Reply
    money: float
    requests: int


class GaveUp(PlumbError):
    """This request failed for good; others may go on."""

    @property
    def reason(self) -> str:
        return str(self)


class Refused(PlumbError):
    """Nothing more can be asked: a key, a model's name or the settings have to be put right first."""


class Outage(Refused):
    """Nobody answers, whatever is asked: it may be over later."""

    cause = "network"  # jobs.causes.Cause.NETWORK, by which the job is tried again


class Caller:
    """Asks one model for one account. Safe to use from many threads; made anew for each attempt of a job.

    Args:
        terms: reads the table of prices and limits; called for each request, since people edit it meanwhile.
        check: called at least twice a second while waiting. It raises to stop, and blocks while nothing is to be
            asked (a pause).
        tell: gets a sentence when a wait begins that the reader should know of, and "" when it is over. It may
            raise instead of waiting.
        sleep: of seconds; never longer than PIECE.
        ahead: seconds; a caller that allows more than others comes before them (see Ledger.reserve).
    """

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        terms: Callable[[], Terms],
        *,
        account: str,
        budget: Budget,
        model: str,
        options: CallOptions,
        check: Callable[[], None],
        tell: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        ahead: float = AHEAD,
    ) -> None:
        self._client, self._ledger, self._terms = client, ledger, terms
        self._account, self._budget, self._model, self._options = account, budget, model, options
        self._check, self._tell, self._sleep, self._ahead = check, tell, sleep, ahead
        self._lock = threading.Lock()
        self._told: tuple[str, int] | None = None
        self._ended: tuple[type[Refused], str] | None = None
        self._refusals = 0
        self._silent = 0  # requests in a row that were given up, by all threads
        self._waves = 0
        self._wave_over = -math.inf  # steady
        self._tokens_out = min(1000.0, float(options.max_output_tokens))  # running mean
        self._margin = MARGIN

    def ask(self, prompt: Prompt, tokens_in: int) -> Paid:
        """Send the request until a reply comes.

        Args:
            tokens_in: of the prompt, estimated.

        Raises:
            GaveUp, Refused, BudgetSpent: see the module.
            UserError: the table of prices cannot be read, or has no row for the model.
            Exception: what `check` raises; nothing is left set aside then.
        """
        sent: list[float] = []
        # What a text may cost at most: a token a byte. Digits, and scripts other than Latin, come near.
        most_in = tokens_in - estimated_text_tokens(prompt) + most_text_tokens(prompt)
        tries = Retrying(
            stop=stop_after_attempt(TRIES),
            wait=_backoff,
            retry=retry_if_exception(lambda error: isinstance(error, CallError) and error.kind in TRANSIENT),
            sleep=self._pause,
            reraise=True,
        )
        try:
            return tries(self._try, prompt, tokens_in, most_in, sent)
        except CallError as error:
            self._count_silence(error)
            raise GaveUp(f"{error} Given up after {TRIES} tries.") from error

    def _try(self, prompt: Prompt, tokens_in: int, most_in: int, sent: list[float]) -> Paid:
        """One try; a 429 is none. Raises CallError where another try may help."""
        while True:
            hold, row, terms = self._take(tokens_in, most_in)
            sent.append(self._ledger.steady())
            try:
                reply = self._client.ask(self._model, prompt, self._options)
            except CallError as error:
                (self._ledger.lose if error.may_be_billed else self._ledger.release)(hold)
                if error.kind in TRANSIENT:
                    raise
                self._heed(error, sent[-1], terms)
            except BaseException:  # a bug, or the end of the process: nobody knows what became of the request
                self._ledger.lose(hold)
                raise
            else:
                return Paid(reply, self._pay(hold, row, reply, tokens_in), len(sent))

    # before ---------------------------------------------------------------------------------------------

    def _take(self, tokens_in: int, most_in: int) -> tuple[Hold, ModelTerms, Terms]:
        """Wait until a request may be sent, now."""
        while True:
            self._check()
            self._stay_open()
            terms = self._terms()
            row = terms.of(self._model)
            with self._lock:
                worst_in = max(math.ceil(tokens_in * self._margin) + OVERHEAD, most_in)
                tokens = tokens_in + round(self._tokens_out)
            most = row.money(worst_in, self._options.max_output_tokens)
            given = self._ledger.reserve(
                self._account, self._budget, terms, self._model, tokens, most, self._ahead
            )
            if isinstance(given, Hold):
                closed = self._await(given)
                if closed is None:
                    try:
                        self._say(None)
                    except BaseException:
                        self._ledger.release(given)
                        raise
                    return given, row, terms
            else:
                closed = given
            self._say(closed)
            self._sit_out(closed, terms)

    def _sit_out(self, closed: Closed, terms: Terms) -> None:
        """Wait until a place may be free: what is closed for long is asked about once a minute.

        The table is looked at more often than the ledger, which is locked by each who asks.
        """
        seconds = max(closed.until - self._ledger.now(), 0.05)
        end = self._ledger.steady() + min(seconds, ASK_AGAIN)
        while (left := end - self._ledger.steady()) > 0.0:
            self._pause(min(left, LOOK_AGAIN))
            self._stay_open()
            if closed.kind != "minute" and self._terms() != terms:
                return

    def _await(self, hold: Hold) -> Closed | None:
        """Wait for the hold's slot; Closed if it must not be sent after all."""
        if hold.wait <= 0.0:
            return None
        try:
            self._pause(hold.wait)
            self._stay_open()
        except BaseException:
            self._ledger.release(hold)
            raise
        return self._ledger.start(hold)

    def _pause(self, seconds: float) -> None:
        """Sleep in pieces, by the steady clock: `check` may block for long, and the other clock may jump."""
        end = self._ledger.steady() + seconds
        while True:
            self._check()
            left = end - self._ledger.steady()
            if left <= 0.0:
                return
            self._sleep(min(left, PIECE))

    def _stay_open(self) -> None:
        if self._ended is not None:
            kind, text = self._ended
            raise kind(text)

    def _say(self, closed: Closed | None) -> None:
        """Tell what is waited for, once, and once when it goes on."""
        now = self._ledger.now()
        if closed is not None and closed.kind == "minute" and closed.until - now < LONG_MINUTE:
            return
        news = None if closed is None else (closed.kind, round(closed.until))
        with self._lock:
            if news == self._told:
                return
            self._told = news
            self._tell("" if closed is None else _sentence(closed, now))

    # after ----------------------------------------------------------------------------------------------

    def _pay(self, hold: Hold, row: ModelTerms, reply: Reply, tokens_in: int) -> float:
        money, tokens = row.money(reply.tokens_in, reply.tokens_out), reply.tokens_in + reply.tokens_out
        if reply.tokens_in <= 0:  # the provider didn't say: then it costs what it may cost
            money, tokens = hold.money, hold.tokens
        with self._lock:
            self._refusals = self._waves = self._silent = 0
            self._tokens_out += 0.1 * (reply.tokens_out - self._tokens_out)
            if tokens_in > 0:
                self._margin = max(self._margin, 1.1 * (reply.tokens_in - OVERHEAD) / tokens_in)
        # The reply is there and is worth more than its entry: left set aside, it counts at its worst.
        with contextlib.suppress(OSError, LedgerBusy):
            self._ledger.settle(hold, tokens, money)
        return money

    def _heed(self, error: CallError, sent: float, terms: Terms) -> None:
        """What an error means for this request and all others; returns where it is to be sent again."""
        if error.kind == "minute":
            self._close_for_a_while(error, sent)
        elif error.kind == "day":
            self._close_for_the_day(error, terms)
        elif error.kind == "refused":
            with self._lock:
                self._refusals += 1
                in_a_row = self._refusals
            if in_a_row >= REFUSALS:
                self._end(
                    f"The provider refused {in_a_row} requests in a row, the last one so: {error} Put right what "
                    "it names, and resume."
                )
            raise GaveUp(str(error)) from error
        elif error.kind == "key":
            self._end(f"{error} Set the right key in the environment, start Plumb again, and resume.")
        elif error.kind == "model":
            self._end(f"{error} Choose a model that the provider knows (model = {self._model!r}).")
        else:
            self._end(str(error))

    def _close_for_a_while(self, error: CallError, sent: float) -> None:
        steady = self._ledger.steady()
        with self._lock:
            # Those that were under way together get their 429 together: that is one.
            if sent >= self._wave_over - 0.1:  # the two clocks are rounded differently
                self._waves += 1
            waves = self._waves
            seconds = _seconds(error.retry_after)
            if seconds < 1.0:  # it doesn't say, or says nothing
                seconds = min(60.0, 2.0**waves) * random.uniform(0.75, 1.25)
            self._wave_over = max(self._wave_over, steady + seconds)
        if waves > WAVES:
            self._end(
                f"The provider has turned away every request for {waves} times in a row: {error} Lower the limits "
                "in the table on the Judges page, or look at what the provider allows you, and resume."
            )
        self._ledger.close_until(self._model, self._ledger.now() + seconds, _short(error), "minute")

    def _close_for_the_day(self, error: CallError, terms: Terms) -> None:
        now = self._ledger.now()
        seconds = _seconds(error.retry_after)
        if seconds <= LONG_RETRY:
            _, midnight = day_of(now, terms.day_begins_in)
            seconds = midnight - now
            # Just after midnight: the provider's clock is behind, or its day begins later. Not for a day, then.
            if seconds > 23.5 * 3600.0:
                seconds = 600.0
        self._ledger.close_until(self._model, now + seconds, _short(error), "day")

    def _count_silence(self, error: CallError) -> None:
        """An outage must not turn sample after sample into a failed one."""
        with self._lock:
            self._silent += 1
            in_a_row = self._silent
        if in_a_row >= SILENT:
            told = f"No reply to {in_a_row} requests in a row, each tried {TRIES} times: {error} Resume later."
            self._end(told, Outage)

    def _end(self, text: str, kind: type[Refused] = Refused) -> None:
        """All threads are to stop asking."""
        with self._lock:
            self._ended = self._ended or (kind, text)
            kind, text = self._ended
        raise kind(text)


def _backoff(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, CallError) and error.retry_after is not None:
        return min(_seconds(error.retry_after), LONGEST_WAIT)
    return BACKOFF(state)


def _seconds(retry_after: float | None) -> float:
    """A provider's word, made sane: 0 to 7 days."""
    if retry_after is None or not math.isfinite(retry_after):
        return 0.0
    return min(max(retry_after, 0.0), 7 * 86_400.0)


def _short(error: CallError) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:299]}…"


def _sentence(closed: Closed, now: float) -> str:
    """waiting for the day's quota until 08:00 UTC: …"""
    minutes = math.ceil(closed.until / 60.0) * 60.0 if closed.kind != "minute" else closed.until
    moment = datetime.fromtimestamp(minutes, UTC)
    clock = f"{moment:%H:%M}" if closed.kind != "minute" else f"{moment:%H:%M:%S}"
    date = f"{moment.day} {moment:%B} " if closed.until - now > 20 * 3600.0 else ""
    what = {"minute": "", "day": "for the day's quota ", "money": "for the next day's money "}[closed.kind]
    return f"waiting {what}until {date}{clock} UTC: {closed.why}"
