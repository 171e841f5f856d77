"""One question to an outside endpoint, answered as a stream: the same for chat and jobs.

An answer ends at its end, at the longest answer that was asked for (whether the server obeys or not), or at a
limit of bytes or time. Everything else that a server can do ends in one `OutsideError`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from jobs import outside_errors, outside_wire
from jobs.outside_errors import OutsideError
from jobs.outside_models import served_models
from jobs.outside_names import VARIABLE, endpoint_key
from jobs.outside_wire import Events, Garbled, Message, Overflow
from jobs.settings import Settings
from storage.errors import UserError
from storage.speakers import Speaker

#: An answer is cut when it has had as many pieces as it may have tokens, and as many characters of each: some
#: servers send a word at a time, others single characters.
CHARACTERS, MOST_CHARACTERS = 4, 64


@dataclass(frozen=True)
class Drawing:
    """How an answer is drawn. `seed` and `top_p` are the server's to obey."""

    temperature: float
    top_p: float
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Limits:
    """Seconds: until the first byte of an answer, between two, and until its end."""

    first: float
    silence: float
    total: float


#: Somebody looks on. A server in which a model is loading answers nothing, or late.
CHAT = Limits(first=60.0, silence=60.0, total=600.0)
#: A server that has a queue of its own may take long before it begins.
JOBS = Limits(first=300.0, silence=120.0, total=1200.0)


@dataclass(frozen=True)
class End:
    """Why an answer ended, "stop" or "length", and its tokens: as the server counts them, else pieces."""

    finish: str
    tokens: int


class _Habits:
    """What servers refused once, so that they aren't asked for it with every request again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], frozenset[str]] = {}

    def of(self, url: str, model: str) -> frozenset[str]:
        with self._lock:
            return self._known.get((url, model), frozenset())

    def learn(self, url: str, model: str, habit: str) -> None:
        with self._lock:
            self._known[url, model] = self._known.get((url, model), frozenset()) | {habit}


_habits = _Habits()
_NO_USAGE = "stream_options"  # it doesn't know this option
_NEW_NAME = "max_completion_tokens"  # it wants the longest answer under this name: OpenAI's newer models


async def converse(
    settings: Settings, speaker: Speaker, messages: Sequence[Message], drawing: Drawing, limits: Limits
) -> AsyncGenerator[str | End]:
    """Ask, and yield the pieces of the answer, then its `End`. Closing this iterator closes the connection.

    Args:
        messages: as `outside_wire.as_sent` takes them.

    Raises:
        OutsideError: there is no answer, or no whole one.
    """
    assert speaker.outside is not None
    model, endpoint = speaker.outside
    url = settings.endpoints.get(endpoint)
    if url is None:
        raise outside_errors.unset(endpoint, settings.endpoints)
    try:
        key = endpoint_key(endpoint)
    except UserError as error:
        raise outside_errors.error("unset", str(error)) from None
    try:
        sent = await asyncio.to_thread(outside_wire.as_sent, messages)
    except UserError as error:
        kind: outside_errors.Kind = "too long" if "MiB" in str(error) else "refused"
        raise outside_errors.error(kind, str(error)) from error
    await asyncio.to_thread(outside_wire.load)
    answer = _Answer(endpoint, url, model, drawing, limits)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(outside_wire.openai_client(url, key))
        try:
            response = await answer.begin(stack, client, sent)
        except OutsideError as error:
            if error.kind != "model":
                raise
            raise await _with_models(settings, endpoint, error) from None
        pieces = await stack.enter_async_context(aclosing(answer.pieces(response)))
        async for piece in pieces:
            yield piece


class _Answer:
    """One answer on its way."""

    def __init__(self, endpoint: str, url: str, model: str, drawing: Drawing, limits: Limits) -> None:
        self._endpoint, self._url, self._model = endpoint, url, model
        self._drawing, self._limits = drawing, limits
        self._end_at = asyncio.get_running_loop().time() + limits.total
        self._number = self._characters = 0  # pieces that were told
        self._counted: int | None = None
        self._reason = ""
        self._done = False  # the server has said so
        self._start = b""  # of the body, for messages

    async def begin(self, stack: AsyncExitStack, client: Any, sent: list[dict[str, Any]]) -> Any:
        """The response, whose status is 200; asked again without what the server refuses to know."""
        for _ in range(3):
            habits = _habits.of(self._url, self._model)
            try:
                return await self._ask(stack, client, sent, habits)
            except OutsideError as error:
                habit = next((one for one in _refused(error) if one not in habits), None)
                if habit is None:
                    raise
                _habits.learn(self._url, self._model, habit)
        raise AssertionError("there are two habits to learn")

    async def _ask(
        self, stack: AsyncExitStack, client: Any, sent: list[dict[str, Any]], habits: frozenset[str]
    ) -> Any:
        import openai

        drawing = self._drawing
        longest = "max_completion_tokens" if _NEW_NAME in habits else "max_tokens"
        fields: dict[str, Any] = {
            "model": self._model,
            "messages": sent,
            "temperature": drawing.temperature,
            "top_p": drawing.top_p,
            "seed": drawing.seed,
            longest: drawing.max_tokens,
            "stream": True,
        }
        if _NO_USAGE not in habits:
            fields["stream_options"] = {"include_usage": True}
        asked = client.chat.completions.with_streaming_response.create(**fields)
        try:
            return await self._timely(lambda: stack.enter_async_context(asked), self._limits.first)
        except openai.APIStatusError as error:
            response = error.response
            raise outside_errors.of_status(
                self._endpoint, self._url, self._model, error.status_code, response.headers, response.text
            ) from None
        except Exception as error:
            raise self._lost(error) from error

    async def pieces(self, response: Any) -> AsyncGenerator[str | End]:
        """The pieces of the answer, then its end."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise outside_errors.garbage(self._endpoint, self._url, "a web page instead of an answer")
        streamed = kind != "application/json"
        try:
            async with aclosing(self._events(response) if streamed else self._whole(response)) as events:
                async for event in events:
                    text = self._take(event, "delta" if streamed else "message")
                    if not text:
                        continue
                    room = self._room(text)
                    if room:
                        yield text[:room]
                    if room < len(text):
                        yield End("length", self._number)
                        return
            yield self._end(kind)
        except Garbled as error:
            raise outside_errors.garbage(self._endpoint, self._url, str(error), self._shown()) from None

    async def _events(self, response: Any) -> AsyncGenerator[dict[str, Any]]:
        """The events of a stream, up to [DONE]."""
        decoder = Events()
        async with aclosing(self._parts(response)) as parts:
            async for part in parts:
                for data in decoder.feed(part):
                    if data.strip() == "[DONE]":
                        self._done = True
                        return
                    yield outside_wire.read_json(data)
        for data in decoder.end():
            self._done = self._done or data.strip() == "[DONE]"
            if not self._done:
                yield outside_wire.read_json(data)

    async def _whole(self, response: Any) -> AsyncGenerator[dict[str, Any]]:
        """The one object of a server that doesn't stream."""
        body = b"".join([part async for part in self._parts(response)])
        self._done = True
        yield outside_wire.read_json(body)

    async def _parts(self, response: Any) -> AsyncGenerator[bytes]:
        """The bytes of the body; none comes later than the limits allow."""
        parts = response.iter_bytes()
        while True:
            waits = self._limits.silence if self._start else self._limits.first
            try:
                part = await self._timely(lambda: anext(parts, None), waits)
            except Exception as error:
                raise self._lost(error) from error
            if part is None:
                return
            self._start = self._start or bytes(part[:300])
            yield part

    async def _timely(self, work: Callable[[], Awaitable[Any]], seconds: float) -> Any:
        """What is awaited, within so many seconds and the limit of the whole."""
        left = self._end_at - asyncio.get_running_loop().time()
        try:
            if left <= 0.0:
                raise TimeoutError
            async with asyncio.timeout(min(seconds, left)):
                return await work()
        except TimeoutError as error:
            if left <= seconds and self._start:
                told = f"{self._limits.total:.3g} s have gone by"
                raise outside_errors.endless(self._endpoint, told) from error
            raise outside_errors.silent(self._endpoint, min(seconds, left), begun=bool(self._start)) from error

    def _take(self, event: Mapping[str, Any], part: str) -> str:
        """The text of an event; what else it tells is kept."""
        if event.get("error"):
            raise self._told_error(event["error"])
        counted = outside_wire.tokens_in(event)
        self._counted = self._counted if counted is None else counted
        found = outside_wire.first_choice(event, part)
        if found is None:
            return ""
        text, reason = found
        self._reason = reason or self._reason
        return text

    def _told_error(self, error: object) -> OutsideError:
        """An error that comes within a stream, after the status said that all was well."""
        found = error if isinstance(error, Mapping) else {"message": error}
        status = found.get("code")
        message = str(found.get("message") or "an error without words")
        told = outside_errors.line(message, self._url)
        if outside_errors.is_too_long(str(found.get("code", "")), told):
            status = 413
        status = status if isinstance(status, int) and 400 <= status < 600 else 500
        return outside_errors.of_status(self._endpoint, self._url, self._model, status, {}, message)

    def _room(self, text: str) -> int:
        """How many characters of a further piece belong to the answer: a server may know no longest one."""
        most = self._drawing.max_tokens
        if self._number >= most and self._characters >= CHARACTERS * most:
            return 0
        room = min(len(text), MOST_CHARACTERS * most - self._characters)
        self._number += room > 0
        self._characters += room
        return room

    def _end(self, kind: str) -> End:
        """How the answer ended, once nothing more comes. Raises OutsideError where it hasn't."""
        if self._reason in ("content_filter", "abort"):
            why = "its filter blocked the answer" if self._reason == "content_filter" else "it gave the answer up"
            raise outside_errors.error(
                "refused", f"The endpoint {self._endpoint!r} gives no whole answer: {why}. Ask in other words."
            )
        if not self._reason and not self._number:
            if self._start and not self._done and kind != "text/event-stream":
                raise Garbled("something that is no stream of events")
            raise Garbled("a stream without an answer" if self._start else "nothing at all")
        if not self._reason and not self._done:
            raise outside_errors.of_connection(
                self._endpoint, self._url, EOFError("the stream ended in mid-answer"), begun=True
            )
        tokens = self._number if self._counted is None else self._counted
        return End("length" if self._reason == "length" else "stop", tokens)

    def _lost(self, error: BaseException) -> OutsideError:
        """What the package's exception stands for."""
        for one in (error, error.__cause__):
            if isinstance(one, OutsideError):
                return one
            if isinstance(one, Overflow):
                told = f"{outside_wire.LARGEST_REPLY / 2**20:,.0f} MiB came without it"
                return outside_errors.endless(self._endpoint, told)
            if isinstance(one, Garbled):
                return outside_errors.garbage(self._endpoint, self._url, str(one))
        return outside_errors.of_connection(self._endpoint, self._url, error, begun=bool(self._start))

    def _shown(self) -> str:
        return self._start.decode("utf-8", errors="replace")


async def _with_models(settings: Settings, endpoint: str, error: OutsideError) -> OutsideError:
    """That a model is unknown, with those that there are."""
    served = await asyncio.to_thread(served_models, settings, endpoint)
    if served.models:
        shown = ", ".join(served.models[:12]) + (" …" if len(served.models) > 12 else "")
        told = f"It serves {shown}; choose one of these."
    else:
        told = f"Correct the name, or the endpoint's address in {VARIABLE} if it doesn't end in /v1."
    return outside_errors.error("model", f"{error} {told}", status=error.status, told=error.told)


def _refused(error: OutsideError) -> list[str]:
    """What a server doesn't know of the request, by its own words."""
    if error.status not in (400, 422):
        return []
    if "stream_options" in error.told or "include_usage" in error.told:
        return [_NO_USAGE]
    return [_NEW_NAME] if "max_completion_tokens" in error.told else []
