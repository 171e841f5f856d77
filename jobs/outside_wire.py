"""Requests to OpenAI-compatible endpoints as they go over the wire: client, messages, stream of events.

The `openai` package makes the requests. What comes back is read here, from bytes: servers, and what stands in
front of them, answer with web pages, half lines, other encodings and without end, and none of it may take memory
or time without limit.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from jobs.judges.clients.texts import sendable
from jobs.outside_names import is_loopback
from storage.errors import UserError

NO_KEY = "none"  # what the package is told where there is no key; it is not sent
CONNECT_SECONDS = 10.0
#: Bytes of an answer as it comes: 4,096 tokens at some 300 bytes of an event each are 1.2 MB.
LARGEST_REPLY = 8 * 2**20
#: Bytes of a request's images; what jobs/gpu/serve.py takes, too.
LARGEST_REQUEST = 64 * 2**20

Message = Mapping[str, Any]

# Nothing else goes out: the package would send what OPENAI_CUSTOM_HEADERS, OPENAI_ORG_ID and the like hold for
# somebody else, and what machine this is.
_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
        "x-stainless-raw-response",  # by which the package knows its own request again
    }
)
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


class Overflow(Exception):
    """More bytes came than any answer has."""


class Garbled(Exception):
    """What came cannot be read. Its text says what it is instead."""


@asynccontextmanager
async def http_client(url: str, key: str | None) -> AsyncIterator[Any]:
    """An `httpx2.AsyncClient` for one endpoint.

    It follows no redirects, knows no proxy for addresses of this machine, sends the key and no other header of the
    environment, and reads `LARGEST_REPLY` bytes at the most (then `Overflow`).
    """
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = LARGEST_REPLY
            async for part in self._stream:
                left -= len(part)
                if left < 0:
                    raise Overflow
                yield part

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def clean(request: Any) -> None:
        for name in [name for name in request.headers if name.lower() not in _HEADERS]:
            del request.headers[name]
        # A compressed answer could be a thousand times larger than what is counted.
        request.headers["accept-encoding"] = "identity"
        request.headers.pop("authorization", None)
        if key is not None:
            request.headers["authorization"] = f"Bearer {key}"

    async def bound(response: Any) -> None:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise Garbled("something compressed that was asked for as it is")
        response.stream = Bounded(response.stream)

    async with httpx2.AsyncClient(
        verify=_certificates(),
        follow_redirects=False,
        trust_env=not is_loopback(url),
        timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
        # A server that closes a connection after an answer, unsaid, would make the next question on it fail.
        limits=httpx2.Limits(max_keepalive_connections=0),
        event_hooks={"request": [clean], "response": [bound]},
    ) as client:
        yield client


@asynccontextmanager
async def openai_client(url: str, key: str | None) -> AsyncIterator[Any]:
    """An `openai.AsyncOpenAI` for one endpoint, over `http_client`; it never tries again by itself."""
    import openai

    async with http_client(url, key) as http:
        yield openai.AsyncOpenAI(
            api_key=key or NO_KEY,
            base_url=url,
            max_retries=0,
            http_client=http,
            # Else the package looks into the environment for all of them.
            admin_api_key="",
            organization="",
            project="",
            webhook_secret="",
        )


def load() -> None:
    """Import what a request needs, which takes a second: called off the event loop."""
    import openai  # noqa: F401

    # Versions of it wrote whole conversations at the level "debug", which OPENAI_LOG sets.
    logging.getLogger("openai").setLevel(logging.WARNING)
    _certificates()


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a request."""
    import httpx2

    return httpx2.create_ssl_context()


# what goes out -----------------------------------------------------------------------------------------------


def as_sent(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as an endpoint takes it.

    Messages without images have plain text as content, which servers with simple chat templates want. Images go as
    data URLs, of the type that their bytes have.

    Args:
        messages: {role, content}; content is text or a list of {type: "text", text} and {type: "image", data:
            base64}.

    Raises:
        UserError: an image is of no kind that endpoints take; all of them are too large.
    """
    size = sum(len(part["data"]) for part in _all_parts(messages) if part["type"] == "image")
    if size > LARGEST_REQUEST:
        raise UserError(
            f"The conversation's images have {size * 3 / 4 / 2**20:,.0f} MiB; at most "
            f"{LARGEST_REQUEST * 3 // 4 // 2**20} are sent. Leave out the oldest image, or use smaller ones."
        )
    return [{"role": str(message["role"]), "content": _content(message["content"])} for message in messages]


def _all_parts(messages: Sequence[Message]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        if not isinstance(message["content"], str):
            yield from message["content"]


def _content(content: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return sendable(content)
    if all(part["type"] == "text" for part in content):
        return sendable("\n".join(part["text"] for part in content))
    return [_part(part) for part in content]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": sendable(part["text"])}
    kind, data = _picture(part["data"])
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def _picture(data: str) -> tuple[str, str]:
    """(media type, base64). BMP, which browsers and servers take seldom, becomes PNG."""
    try:
        start = base64.b64decode(data[:64], validate=True)
    except ValueError:
        raise UserError("An image cannot be sent: it is not base64. Attach it again.") from None
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind, data
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp", data
    if start.startswith(b"BM"):
        return "image/png", _as_png(base64.b64decode(data))
    raise UserError(
        "An image cannot be sent: it is no PNG, JPEG, WebP, GIF or BMP. Convert it, then attach it again."
    )


def _as_png(raw: bytes) -> str:
    import PIL.Image

    out = io.BytesIO()
    try:
        with PIL.Image.open(io.BytesIO(raw)) as image:
            image.save(out, "PNG")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"An image cannot be sent: it is damaged ({error}). Attach another.") from error
    return base64.b64encode(out.getvalue()).decode("ascii")


# what comes back ---------------------------------------------------------------------------------------------


class Events:
    """Bytes in, the data of server-sent events out (html.spec.whatwg.org, "Interpreting an event stream").

    Comments and other fields are passed over. `end` gives an event that lacks its empty line, as some servers
    leave it.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # of a line that has no end yet
        self._data: list[bytes] = []

    def feed(self, part: bytes) -> Iterator[str]:
        """Raises Garbled where the data is no UTF-8."""
        self._rest.append(part)
        # Joined only where a line ends: else a line without end would be copied again with each part.
        if b"\n" not in part and b"\r" not in b"".join(self._rest[-2:]):
            return
        held = b"".join(self._rest)
        # A carriage return at the end may be half a line's end.
        held, behind = (held[:-1], b"\r") if held.endswith(b"\r") else (held, b"")
        *lines, rest = held.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = [rest + behind]
        for one in lines:
            yield from self._line(one)

    def end(self) -> Iterator[str]:
        yield from self._line(b"".join(self._rest).removesuffix(b"\r"))
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[str]:
        if not line:
            if self._data:
                data, self._data = b"\n".join(self._data), []
                try:
                    yield data.decode("utf-8")
                except UnicodeDecodeError:
                    raise Garbled("text that is not UTF-8") from None
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))


def read_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Raises Garbled where it is none."""
    try:
        found = json.loads(text)
    except UnicodeDecodeError:
        raise Garbled("text that is not UTF-8") from None
    except (ValueError, RecursionError):
        raise Garbled("what is no JSON") from None
    if not isinstance(found, dict):
        raise Garbled("JSON of another shape")
    return found


def first_choice(event: Mapping[str, Any], part: str) -> tuple[str, str] | None:
    """(text, why it ended) of the first choice; None where there is no choice, as with the count of tokens.

    Args:
        part: what holds the text: "delta" in a stream, else "message".

    Raises:
        Garbled: the event has another shape.
    """
    choices = event.get("choices")
    if not isinstance(choices, list):
        raise Garbled("JSON without choices")
    ours = [one for one in choices if not isinstance(one, dict) or one.get("index") in (0, None)]
    if not ours:
        return None
    choice = ours[0]
    said = (choice.get(part) if isinstance(choice, dict) else None) or {}
    if not isinstance(choice, dict) or not isinstance(said, dict):
        raise Garbled("choices of another shape")
    content = said.get("content") or ""
    if isinstance(content, list):  # some servers answer in parts
        content = "".join(str(one.get("text") or "") for one in content if isinstance(one, dict))
    reason = choice.get("finish_reason") or ""
    if not isinstance(content, str) or not isinstance(reason, str):
        raise Garbled("choices of another shape")
    return sendable(content or _refusal(said)), reason


def _refusal(said: Mapping[str, Any]) -> str:
    refusal = said.get("refusal")
    return refusal if isinstance(refusal, str) else ""


def tokens_in(event: Mapping[str, Any]) -> int | None:
    """The tokens of the answer, where the event counts them."""
    usage = event.get("usage")
    found = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**31:
        return None
    return found
