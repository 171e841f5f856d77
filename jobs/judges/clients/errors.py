"""What went wrong with a request: answers and exceptions of three packages → one `CallError` with a remedy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from jobs.judges.calls import CallError, ErrorKind
from jobs.judges.clients.texts import shorten
from jobs.judges.keys import HIDDEN, scrub

_RETRY_INFO = "google.rpc.RetryInfo"
_QUOTA_FAILURE = "google.rpc.QuotaFailure"
_DAY = re.compile(r"per[ _-]?day|\bdaily\b|\b[RT]PD\b", re.IGNORECASE)
_BAD_KEY = re.compile(r"API_KEY_INVALID|API[ _]key (not valid|expired|not found)", re.IGNORECASE)
_WAIT = re.compile(r"(?:try again|retry) (?:in|after) ((?:[\d.]+ ?(?:ms|s|m|h|d))+)", re.IGNORECASE)
_DURATION = re.compile(r"([\d.]+) ?(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_MASKED = re.compile(r"\S*\*{3,}\S*")  # a provider's own mask leaves the ends of a key readable

# The SDKs speak through requests, httpx or its fork httpx2. Their exceptions are known by name, so that none of
# the three has to be imported here.
_NOT_SENT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "ConnectTimeoutError",
        "ConnectionRefusedError",
        "InvalidSchema",
        "InvalidURL",
        "LocalProtocolError",
        "LocationParseError",
        "MissingSchema",
        "NameResolutionError",
        "NewConnectionError",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "WriteError",
        "WriteTimeout",
    }
)
_TIMEOUTS = frozenset({"APITimeoutError", "ReadTimeoutError", "Timeout", "TimeoutException", "TimeoutError"})
_NETWORK = frozenset(
    {"APIConnectionError", "HTTPError", "OSError", "ProtocolError", "RequestException", "TransportError"}
)


@dataclass(frozen=True)
class Service:
    """Whom a client talks to, in words for the user.

    Attributes:
        name: as a sentence begins with it.
        key: the environment variable that holds the key, or may hold it where none is set.
        address: the environment variable that sets the address.
    """

    name: str
    key: str
    address: str

    def failure(
        self,
        kind: ErrorKind,
        text: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        may_be_billed: bool = False,
    ) -> CallError:
        """A CallError whose text holds no key."""
        words = _MASKED.sub(HIDDEN, scrub(text))
        return CallError(kind, words, retry_after=retry_after, status=status, may_be_billed=may_be_billed)

    def refusal(self, status: int, headers: Mapping[str, str], body: str, model: str) -> CallError:
        """An answer that is none: what its status, headers and body say.

        A 4xx, 429 or 5xx is not billed; Google says so of 400 and 500 (ai.google.dev/gemini-api/docs/billing). At
        a 504 a gateway has given up waiting: the model may have run all the same.
        """
        error = error_of(body)
        message = shorten(_message(error, body))
        said = f"{status}: {message}" if message else str(status)
        wait = retry_after(headers, error)
        kind = _kind(status, error, body)
        return self.failure(
            kind, self._sentence(kind, said, model), retry_after=wait, status=status, may_be_billed=status == 504
        )

    def no_answer(self, body: str, status: int = 200) -> CallError:
        """A reply that cannot be read as one: the model has run, and nobody can tell what it said."""
        start = shorten(body) or "nothing at all"
        return self.failure(
            "server",
            f"{self.name} answered with something that is no reply ({start}). Try again; if it stays so, check "
            f"the address in {self.address}.",
            status=status,
            may_be_billed=True,
        )

    def broken(self, error: BaseException, timeout: float) -> CallError:
        """An exception of the network instead of an answer. `timeout` in seconds."""
        names = set(_names(error))
        sent = not names & _NOT_SENT
        said = shorten(" ".join(str(error).split())) or type(error).__name__
        if names & _TIMEOUTS and "NewConnectionError" not in names:  # which urllib3 derives from a timeout
            return self.failure(
                "timeout",
                f"{self.name} did not {'answer' if sent else 'take the request'} within {timeout:g} s. Try again, "
                "or allow more time (Wait for a reply).",
                may_be_billed=sent,
            )
        if sent:
            return self.failure(
                "connection",
                f"The connection to {self.name} broke before the reply was there ({said}). Try again.",
                may_be_billed=True,
            )
        return self.failure(
            "connection",
            f"{self.name} cannot be reached ({said}). Check the network, and the address in {self.address} if it "
            "is set.",
        )

    def unsent(self, error: BaseException) -> CallError:
        """An SDK's exception before anything was sent."""
        said = shorten(f"{type(error).__name__}: {error}")
        return self.failure(
            "refused",
            f"The request to {self.name} cannot be made ({said}). Check the model's name and the settings.",
        )

    def unforeseen(self, error: BaseException, timeout: float) -> CallError:
        """Any exception of an SDK that is no answer: of the network, or of reading the reply."""
        if set(_names(error)) & (_NETWORK | _TIMEOUTS | _NOT_SENT):
            return self.broken(error, timeout)
        return self.no_answer(f"{type(error).__name__}: {error}")

    def _sentence(self, kind: ErrorKind, said: str, model: str) -> str:
        """What happened and what to do."""
        if kind == "key":
            return (
                f"{self.name} does not accept the key ({said}). Set {self.key} in the environment to a valid key "
                "that may use this model, and start Plumb again."
            )
        if kind == "model":
            return (
                f"{self.name} does not know the model {model!r} ({said}). Correct its name; if it is right, check "
                f"the address in {self.address}."
            )
        if kind == "minute":
            return (
                f"{self.name}'s limit of the minute is reached ({said}). Wait, or lower the limits on the Judges "
                "page."
            )
        if kind == "day":
            return (
                f"{self.name}'s quota of the day is used up ({said}). Go on when it begins anew, or raise it with "
                "the provider."
            )
        if kind == "server":
            return f"{self.name} has a fault of its own at the moment ({said}). Try again later."
        if said.startswith("413"):
            return (
                f"{self.name} finds the request too large ({said}). Judge each answer alone, or use smaller "
                "images."
            )
        if said.startswith("429"):
            return f"{self.name} wants to be paid first ({said}). Settle the account with the provider."
        return f"{self.name} refuses the request ({said}). Correct what it names, or choose another model."


def error_of(body: str) -> dict[str, Any]:
    """The error object of an answer's body as Google, OpenAI and FastAPI write it; {} where there is none."""
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    if isinstance(content, list):
        content = content[0] if content else {}
    if not isinstance(content, dict):
        return {}
    inner = content.get("error", content)
    return inner if isinstance(inner, dict) else {"message": str(inner)}


def retry_after(headers: Mapping[str, str], error: Mapping[str, Any], now: datetime | None = None) -> float | None:
    """Seconds to wait: the longest of RetryInfo and Retry-After (seconds or a date), else what the message says.

    None where nothing is said. `now` stands in for the clock in tests.
    """
    found = [_duration(detail.get("retryDelay")) for detail in _details(error, _RETRY_INFO)]
    header = headers.get("retry-after", "").strip()
    found.append(_number(header, 1.0))
    found.append(_number(headers.get("retry-after-ms", ""), 0.001))
    if header and found[-2] is None:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            pass
        else:
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            found.append(max(0.0, (date - (now or datetime.now(UTC))).total_seconds()))
    told = [seconds for seconds in found if seconds is not None]
    if not told and (match := _WAIT.search(str(error.get("message", "")))):
        told = [seconds for seconds in [_duration(match[1])] if seconds is not None]
    return max(told, default=None)


def _kind(status: int, error: Mapping[str, Any], body: str) -> ErrorKind:
    if status in (401, 403) or (status == 400 and _BAD_KEY.search(body)):
        return "key"
    if status == 404:
        return "model"
    if status == 429:
        if error.get("code") == "insufficient_quota" or error.get("type") == "insufficient_quota":
            return "refused"  # OpenAI's word for an account without money: no waiting helps
        return "day" if _of_the_day(error) else "minute"
    return "server" if status >= 500 else "refused"


def _of_the_day(error: Mapping[str, Any]) -> bool:
    """Whether a 429 is by a quota of the day: by its violations, by its message where it names none."""
    violations = [
        violation
        for detail in _details(error, _QUOTA_FAILURE)
        for violation in detail.get("violations") or []
        if isinstance(violation, dict)
    ]
    told = [
        " ".join(str(one.get(name, "")) for name in ("quotaId", "quotaMetric", "subject")) for one in violations
    ]
    if not "".join(told).strip():
        told = [str(error.get("message", ""))]
    return any(_DAY.search(text) for text in told)


def _details(error: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    details = error.get("details")
    if not isinstance(details, list):
        return []
    return [one for one in details if isinstance(one, dict) and str(one.get("@type", "")).endswith(kind)]


def _message(error: Mapping[str, Any], body: str) -> str:
    for name in ("message", "detail"):
        if error.get(name):
            return str(error[name])
    return body


def _duration(value: Any) -> float | None:
    """Seconds of "37s", "1.5s", "6m0s" or {"seconds": 37}."""
    if isinstance(value, dict):
        return _number(str(value.get("seconds", "")), 1.0)
    parts = _DURATION.findall(value) if isinstance(value, str) else []
    numbers = [_number(number, _SECONDS[unit]) for number, unit in parts]
    return sum(number for number in numbers if number is not None) if numbers else None


def _number(text: str, factor: float) -> float | None:
    try:
        value = float(text) * factor
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _names(error: BaseException) -> Iterator[str]:
    """The classes of an exception and of what it stems from: its cause, its arguments, urllib3's `reason`."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield from (base.__name__ for base in type(one).__mro__)
        waiting += [one.__cause__, getattr(one, "reason", None), *one.args]
