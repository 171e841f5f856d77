"""Models of outside endpoints: which there are, and one question to one of them.

An endpoint is any server with OpenAI's chat interface whose models may take images: vLLM with LoRA modules serves
a base and its adapters under names of their own. Chat columns stream through `outside_stream.converse`; jobs ask
with `ask`.
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.stop import stop_before_delay

from jobs import outside_errors
from jobs.outside_errors import TRANSIENT, OutsideError, Refused
from jobs.outside_models import Served, begin, outside_choices, served_models
from jobs.outside_names import endpoint_key
from jobs.outside_stream import JOBS, Drawing, End, Limits, converse
from jobs.outside_wire import Message
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage.errors import UserError
from storage.speakers import Speaker

__all__ = [
    "OutsideAnswer",
    "OutsideError",
    "Refused",
    "Served",
    "ask",
    "check_outside",
    "outside_choices",
    "served_models",
    "with_images",
]

TRIES = 6
BACKOFF_SECONDS = 1.0  # before the second try at the most; twice as long before each further one
LONGEST_BACKOFF = 30.0
LONGEST_WAIT = 120.0  # that a Retry-After is obeyed for
PIECE = 0.25  # seconds between two looks at `check`


@dataclass(frozen=True)
class OutsideAnswer:
    """Attributes:
    tokens: as the endpoint counts them; where it doesn't, the pieces in which the answer came.
    """

    text: str
    finish: Literal["stop", "length"]
    tokens: int


def ask(
    settings: Settings,
    speaker: Speaker,
    messages: Sequence[Message],
    *,
    temperature: float,
    top_p: float,
    seed: int,
    max_tokens: int,
    check: Callable[[], None],
    limits: Limits = JOBS,
) -> OutsideAnswer:
    """Ask an outside model and wait for its whole answer; several threads may ask at once.

    What may be over soon (429, 5xx, a lost connection, silence) is asked again, after what Retry-After says (up to
    `LONGEST_WAIT`) or a random and growing while; no try begins once `limits.total` has gone by.

    Args:
        speaker: whose `outside` is set.
        messages: {role, content: text or parts}, images as {type: "image", data: base64}; see `with_images`.
        check: called four times a second, whatever happens; what it raises ends the request and is raised.

    Raises:
        Refused: this prompt gets no answer (it is a UserError); others may.
        OutsideError: the endpoint gives none: it is down, doesn't accept the key, doesn't know the model.
    """
    drawing = Drawing(temperature, top_p, seed, max_tokens)
    tries = Retrying(
        stop=stop_after_attempt(TRIES) | stop_before_delay(limits.total),
        wait=_wait,
        retry=retry_if_exception(lambda error: isinstance(error, OutsideError) and error.kind in TRANSIENT),
        sleep=lambda seconds: _pause(seconds, check),
        reraise=True,
    )
    try:
        return tries(_once, settings, speaker, messages, drawing, limits, check)
    except OutsideError as error:
        number = int(tries.statistics.get("attempt_number", 1))
        if error.kind not in TRANSIENT or number == 1:
            raise
        text = f"{error} Given up after {number} tries."
        raise outside_errors.error(error.kind, text, status=error.status, told=error.told) from error


def with_images(run: RunFolder, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A row's messages with each image's file name replaced by its bytes, as `ask` takes them.

    Raises:
        UserError: an image's file is missing, or the messages have another shape.
    """
    try:
        return [{"role": message["role"], "content": _loaded(run, message["content"])} for message in messages]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Its messages have another shape than a chat ({error!r}); import the sample anew."
        ) from error


def check_outside(settings: Settings, speaker: Speaker) -> None:
    """See that an outside model can be asked, as far as can be told: an endpoint that is down may be up later.

    Raises:
        UserError: there is no endpoint of that name, its key cannot be one, or it serves other models.
    """
    assert speaker.outside is not None
    model, endpoint = speaker.outside
    if endpoint not in settings.endpoints:
        raise UserError(str(outside_errors.unset(endpoint, settings.endpoints)))
    endpoint_key(endpoint)
    served = served_models(settings, endpoint)
    if served.models and model not in served.models:
        shown = ", ".join(served.models[:12]) + (" …" if len(served.models) > 12 else "")
        raise UserError(
            f"The endpoint {endpoint!r} does not serve {model!r}. It serves {shown}; choose one of these."
        )


def _loaded(run: RunFolder, content: str | Sequence[Message]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if part["type"] == "image" and "data" not in part:
            try:
                raw = run.image(part["image"]).read_bytes()
            except OSError as error:
                raise UserError(f"The image {part['image']} cannot be read ({error.strerror}).") from error
            parts.append({"type": "image", "data": base64.b64encode(raw).decode("ascii")})
        else:
            parts.append(dict(part))
    return parts


def _once(
    settings: Settings,
    speaker: Speaker,
    messages: Sequence[Message],
    drawing: Drawing,
    limits: Limits,
    check: Callable[[], None],
) -> OutsideAnswer:
    check()
    asked = begin(_collected(settings, speaker, messages, drawing, limits))
    try:
        while True:
            try:
                return asked.result(PIECE)
            except TimeoutError:
                if asked.done():
                    raise
                check()
    finally:
        asked.cancel()  # what is done stays done


async def _collected(
    settings: Settings, speaker: Speaker, messages: Sequence[Message], drawing: Drawing, limits: Limits
) -> OutsideAnswer:
    said: list[str] = []
    end: End | None = None
    async with aclosing(converse(settings, speaker, messages, drawing, limits)) as pieces:
        async for piece in pieces:
            if isinstance(piece, End):
                end = piece
            else:
                said.append(piece)
    assert end is not None  # the pieces end with it, or raise
    return OutsideAnswer("".join(said), "length" if end.finish == "length" else "stop", end.tokens)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, OutsideError) and error.retry_after is not None:
        return min(error.retry_after, LONGEST_WAIT)
    return random.uniform(0.0, min(LONGEST_BACKOFF, BACKOFF_SECONDS * 2 ** (state.attempt_number - 1)))


def _pause(seconds: float, check: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0.0:
        check()
        time.sleep(min(left, PIECE))
