"""What is said between a judge and a client: a prompt goes out, a reply or a `CallError` comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from storage.errors import PlumbError

Provider = Literal["gemini", "openai"]
# complete: the model ended by itself. truncated: cut off at the token limit.
Finish = Literal["complete", "truncated", "safety", "recitation", "other"]
ErrorKind = Literal[
    "no key",  # none is set: nothing was sent
    "key",  # 401, 403, or 400 "API key not valid"
    "model",  # 404: the provider does not know the model
    "refused",  # any other 4xx
    "minute",  # 429 by a limit of the minute
    "day",  # 429 by a quota of the day
    "server",  # 5xx, or an answer that is none
    "timeout",
    "connection",  # refused, reset, cut off in the middle of a body
]


@dataclass(frozen=True)
class Picture:
    """An image as it is sent: encoded bytes and their media type (`image/png`, `image/jpeg`)."""

    data: bytes
    media_type: str


@dataclass(frozen=True)
class Prompt:
    """One request's content.

    Attributes:
        system: instructions that stand above the content.
        parts: texts and pictures, in reading order; one turn of the user.
        schema: JSON schema of the reply (type, properties, required, items, enum, minimum, maximum,
            additionalProperties alone are used), or None for free text.
    """

    system: str
    parts: tuple[str | Picture, ...]
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class CallOptions:
    """How a model is asked. `timeout` in seconds."""

    temperature: float = 0.0
    max_output_tokens: int = 8192
    timeout: float = 120.0


@dataclass(frozen=True)
class Reply:
    """What a model said; it was billed, whatever `finish` says.

    Attributes:
        text: all of its text, "" where it was blocked.
        tokens_in: of the prompt, images included.
        tokens_out: of the reply, a model's thinking included, since it is paid for.
        detail: the provider's own words on the finish, for the reader.
    """

    text: str
    finish: Finish
    tokens_in: int
    tokens_out: int
    detail: str = ""


class CallError(PlumbError):
    """A request that brought no reply. Its text is for the user and holds no key.

    Attributes:
        retry_after: seconds that the provider asks to wait (Retry-After, RetryInfo), None where it says nothing.
        status: the HTTP status, None where there was none.
        may_be_billed: the request may have been carried out: nobody saw its reply.
    """

    def __init__(
        self,
        kind: ErrorKind,
        text: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        may_be_billed: bool = False,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.retry_after = retry_after
        self.status = status
        self.may_be_billed = may_be_billed


class Client(Protocol):
    """A provider's API. Safe to call from several threads at once; it never retries by itself."""

    def ask(self, model: str, prompt: Prompt, options: CallOptions) -> Reply:
        """Send one request and wait for its reply.

        Raises:
            CallError: there is no reply; `kind` says why.
        """
        ...

    def close(self) -> None: ...
