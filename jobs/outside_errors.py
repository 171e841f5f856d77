"""What went wrong with an outside endpoint: statuses, exceptions and bodies → one error with a remedy.

Texts name the endpoint as it is called here, never its address or its key, and quote no more than a line of what
it said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from jobs.causes import Cause
from jobs.judges.clients.errors import error_of, retry_after
from jobs.judges.clients.texts import shorten
from jobs.judges.keys import HIDDEN
from jobs.outside_names import VARIABLE, key_variable
from storage.errors import PlumbError, UserError

Kind = Literal[
    "unset",  # no endpoint of that name is set, or its key cannot be one
    "down",  # no connection: refused, unknown host, TLS
    "slow",  # a connection, and then nothing
    "broken",  # cut off in the middle
    "busy",  # 429
    "server",  # 5xx, or an error told within the stream
    "garbage",  # what it says is no answer
    "key",  # 401, 403
    "model",  # 404
    "refused",  # any other 4xx, a filter
    "too long",  # the prompt exceeds what the model or the server takes
    "endless",  # the answer came to no end
]

#: What another try may help with.
TRANSIENT: frozenset[Kind] = frozenset({"down", "slow", "broken", "busy", "server"})
#: What says nothing about other prompts.
OF_THE_PROMPT: frozenset[Kind] = frozenset({"refused", "too long", "endless"})

_MASKED = re.compile(r"\S*\*{3,}\S*")  # a server's own mask leaves the ends of a key readable
_TOO_LONG = re.compile(
    r"context_length_exceeded|context (length|window|size)|maximum (model|context|sequence|prompt|input) length"
    r"|max_model_len|prompt is too long|(too many|exceed\w*[^.]{0,40}) (input )?tokens|longer than the max",
    re.IGNORECASE,
)


class OutsideError(PlumbError):
    """An endpoint gave no answer.

    Attributes:
        kind: why.
        retry_after: seconds that it asks to wait; None where it says nothing.
        status: the HTTP status, None where there was none.
        told: what it said itself, in a line.
    """

    def __init__(
        self,
        kind: Kind,
        text: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        told: str = "",
    ) -> None:
        super().__init__(text)
        self.kind: Kind = kind
        self.retry_after = retry_after
        self.status = status
        self.told = told

    @property
    def cause(self) -> str:
        """Of a job that ends with it (`jobs.causes.cause_of`)."""
        return Cause.NETWORK if self.kind in TRANSIENT else Cause.SETTING


class Refused(OutsideError, UserError):
    """This one prompt gets no answer; others may."""


def error(
    kind: Kind,
    text: str,
    *,
    retry_after: float | None = None,
    status: int | None = None,
    told: str = "",
) -> OutsideError:
    """An OutsideError, or a Refused where it is about this prompt alone."""
    made = Refused if kind in OF_THE_PROMPT else OutsideError
    return made(kind, text, retry_after=retry_after, status=status, told=told)


def unset(endpoint: str, known: Mapping[str, str]) -> OutsideError:
    """No endpoint is called so."""
    there = f"There are {', '.join(known)}" if known else "None is set"
    return error(
        "unset",
        f"There is no endpoint called {endpoint!r}. {there}; choose another model, or have whoever runs Plumb add "
        f"it to {VARIABLE} and start Plumb again.",
    )


def of_status(
    endpoint: str, url: str, model: str, status: int, headers: Mapping[str, str], body: str
) -> OutsideError:
    """What an answer other than 200 says. A 404's models are the caller's to add."""
    found = error_of(body)
    told = line(str(found.get("message") or found.get("detail") or body), url)
    said = f"{status}: {told}" if told else str(status)
    wait = retry_after(headers, found)
    name = f"The endpoint {endpoint!r}"
    if status in (401, 403):
        text = (
            f"{name} does not accept the key ({said}). Set {key_variable(endpoint)} in the environment to a key "
            "that may use this model, and start Plumb again."
        )
        return error("key", text, status=status, told=told)
    if status == 404:
        text = f"{name} does not know the model {model!r} ({said})."
        return error("model", text, status=status, told=told)
    if status == 413 or (status in (400, 422) and is_too_long(str(found.get("code", "")), told)):
        text = (
            f"{name} finds the conversation too long ({said}). Leave out the oldest image, use smaller ones, or "
            "begin anew."
        )
        return error("too long", text, status=status, told=told)
    if status == 429:
        text = f"{name} is asked too often at the moment ({said}). Wait a little and try again."
        return error("busy", text, retry_after=wait, status=status, told=told)
    if status >= 500:
        text = f"{name} has a fault of its own at the moment ({said}). Look at its log, or try again later."
        return error("server", text, retry_after=wait, status=status, told=told)
    if status < 400:
        text = (
            f"{name} sends elsewhere ({status}), which is not followed: the conversation would go there, too. Put "
            f"its final address into {VARIABLE} and start Plumb again."
        )
        return error("garbage", text, status=status)
    text = f"{name} refuses the request ({said}). Change what it names, or choose another model."
    return error("refused", text, status=status, told=told)


def of_connection(endpoint: str, url: str, failure: BaseException, *, begun: bool) -> OutsideError:
    """What an exception of the network stands for.

    Args:
        begun: something of the answer had come.
    """
    behind = failure.__cause__ or failure
    told = line(str(behind), url) or type(behind).__name__
    names = {kind.__name__ for kind in type(behind).__mro__}
    if begun or names & {"ReadError", "RemoteProtocolError", "CloseError"}:
        text = (
            f"The endpoint {endpoint!r} broke off before the end of the answer ({told}). Try again; if it stays "
            "so, look at its log."
        )
        return error("broken", text, told=told)
    text = (
        f"The endpoint {endpoint!r} cannot be reached ({told}). See that its server runs and that its address in "
        f"{VARIABLE} is right, then try again."
    )
    return error("down", text, told=told)


def silent(endpoint: str, seconds: float, *, begun: bool) -> OutsideError:
    """Nothing came for so long."""
    what = "said nothing more" if begun else "did not begin to answer"
    return error(
        "slow",
        f"The endpoint {endpoint!r} {what} within {seconds:.3g} s. It may be loading, or have too much to do: try "
        "again later, or look at its log.",
    )


def endless(endpoint: str, why: str) -> OutsideError:
    """The answer was cut: it came to no end."""
    return error(
        "endless",
        f"The endpoint {endpoint!r} came to no end: {why}. Ask for a shorter answer, or choose another model.",
    )


def garbage(endpoint: str, url: str, what: str, said: str = "") -> OutsideError:
    """What it answers is no answer. `said`: the beginning of it."""
    quoted = line(said, url)
    return error(
        "garbage",
        f"The endpoint {endpoint!r} answers with {what}{f' ({quoted})' if quoted else ''}. See that its address "
        f"in {VARIABLE} is that of an OpenAI-compatible server, mostly with /v1 at its end, and look at its log.",
        told=quoted,
    )


def is_too_long(code: str, told: str) -> bool:
    """Whether an endpoint says so that the prompt exceeds the model's context."""
    return bool(_TOO_LONG.search(code) or _TOO_LONG.search(told))


def line(text: str, url: str) -> str:
    """One line of what an endpoint or a library said, without keys and without the endpoint's address."""
    for part in (url, urlsplit(url).netloc):
        text = text.replace(part, "…")
    text = "".join(one if one.isprintable() else " " for one in text)
    return shorten(_MASKED.sub(HIDDEN, text))
