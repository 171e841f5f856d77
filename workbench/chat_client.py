"""The web process's side of the chat: find or start the model's process, then talk to it over loopback.

The process is a `serve` job: it takes a device slot like any other, and a supervisor starts it. What is asked of
it and what it answers is described in `jobs/gpu/serve.py` and `jobs/gpu/chat.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from sqlite_utils import Database

from jobs.as_trained import AUTO, KEPT, alike
from jobs.keys import serve_key
from jobs.queue import submit
from jobs.steering import stop, waits_for
from storage.adapters import list_adapters
from storage.errors import Conflict, PlumbError
from storage.jobs import active_jobs, get_job, list_jobs, queue_position
from storage.lifecycle import ENDED, JobStatus
from storage.records import Job
from workbench.chat_holds import Hold, is_wanted_gone, rounds_on
from workbench.context import Context

POLL_SECONDS = 0.5
LARGEST_BODY = 64 * 2**20  # bytes; what jobs/gpu/serve.py takes
_SALT = secrets.token_bytes(16)
_OPEN = tuple(status for status in JobStatus if status not in ENDED and status is not JobStatus.STOPPING)

# Two first messages at once must not start two processes, the second of which would stop the first.
_starting = threading.Lock()


@dataclass(frozen=True)
class Waiting:
    """The model isn't ready: why, and which job to look at."""

    text: str
    job_id: int | None = None
    blocker_id: int | None = None


@dataclass(frozen=True)
class Ready:
    job_id: int
    port: int


@dataclass(frozen=True)
class Delta:
    column: str
    text: str


@dataclass(frozen=True)
class Done:
    """A column's answer has ended: `finish` is stop, length or stopped."""

    column: str
    finish: str
    tokens: int


@dataclass(frozen=True)
class Line:
    """`ahead` other requests come first."""

    ahead: int


@dataclass(frozen=True)
class Length:
    """How many tokens a column's prompt has, and how many the model takes; None where nobody knows."""

    column: str
    tokens: int
    context: int | None


@dataclass(frozen=True)
class Apart:
    """A column answers after the others, since it can't share their batch."""

    column: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """A column cannot answer, or none can.

    Attributes:
        code: "too long" where the conversation exceeds what the model takes; "" for all else.
    """

    text: str
    column: str | None = None
    code: str = ""


@dataclass(frozen=True)
class Lost:
    """The process died: what these columns said is asked for again."""

    columns: tuple[str, ...]


Event = Delta | Done | Line | Length | Apart | Failed
TOO_LONG = "too long"


class ModelGone(PlumbError):
    """Nobody answers where the model's process was: it has left or died."""


class BrokeOff(PlumbError):
    """The process died while it spoke."""


class Ended(PlumbError):
    """The job of a process ended.

    Attributes:
        job_id: of which job.
    """

    def __init__(self, text: str, job_id: int) -> None:
        super().__init__(text)
        self.job_id = job_id


def find_process(db: Database, model: str, adapters: Sequence[int]) -> Job | None:
    """The newest open `serve` job of this base that holds (or will hold) all these adapters."""
    return next((job for job in _open_jobs(db, model) if not _lacks(job, adapters)), None)


def start_process(context: Context, db: Database, user: str, model: str, adapters: Sequence[int]) -> Job:
    """Submit a `serve` job with all adapters of the base, so that switching between them needs no new start.

    All of them that were trained with the same images and system prompt, that is: a process asks them alike.

    One of the same base that lacks an adapter is stopped: it would hold the device for nothing. Whoever calls
    this has seen that no answer comes from it.
    """
    held = alike(db, list_adapters(db, model), adapters)
    old_ones = [job for job in _open_jobs(db, model) if _lacks(job, held)]
    started = submit(db, context.settings, "serve", {"model": model, "adapters": held}, user)
    for old in old_ones:  # only now: where nothing could be submitted, the old one goes on
        try:
            stop(db, context.settings, old.id)
        except Conflict:
            pass  # it ended in between, which is all that was wanted
    return started


def _open_jobs(db: Database, model: str) -> list[Job]:
    return [job for job in list_jobs(db, kind="serve", statuses=_OPEN) if job.config.get("model") == model]


def _lacks(job: Job, adapters: Sequence[int]) -> bool:
    held = set(job.config.get("adapters") or ())
    # A process that asks its adapters as they were trained doesn't ask the base alone as anybody else would.
    strange = bool(held) and any(job.config.get(name, AUTO) != AUTO for name in KEPT)
    return not set(adapters) <= held or (not adapters and strange)


async def ready_process(
    context: Context, user: str, model: str, adapters: Sequence[int], hold: Hold, poll: float = POLL_SECONDS
) -> AsyncGenerator[Waiting | Ready]:
    """Yield how far the model's process is, at every poll, and at last that it is ready; `hold` then holds it.

    Where the process lacks an adapter, it is replaced once nobody's answer comes from it any more.

    Raises:
        Ended: it did before it was ready.
        PlumbError: the job cannot be submitted.
    """
    while isinstance(
        job_id := await asyncio.to_thread(ensure_process, context, user, model, adapters, hold), Waiting
    ):
        yield job_id
        await asyncio.sleep(poll)
    while True:
        state = await asyncio.to_thread(look_at, context, job_id)
        yield state
        if isinstance(state, Ready):
            return
        await asyncio.sleep(poll)


def ensure_process(context: Context, user: str, model: str, adapters: Sequence[int], hold: Hold) -> int | Waiting:
    """The id of an open `serve` job with these adapters, held; or which answers must end before one can start."""
    with _starting, context.database() as db:
        hold.drop()
        found = find_process(db, model, adapters)
        # One that somebody waits to replace takes no new rounds: else it might never be free.
        if found is None or is_wanted_gone(context.folder, found.id):
            used = {job.id: rounds_on(context.folder, job.id) for job in _open_jobs(db, model)}
            if any(used.values()):
                hold.wait_for(used)
                count = sum(used.values())
                text = "1 answer still comes" if count == 1 else f"{count} answers still come"
                return Waiting(
                    f"{text} from the model's process, which lacks a newer adapter. It starts again after that.",
                    next(job_id for job_id, rounds in used.items() if rounds),
                )
            found = start_process(context, db, user, model, adapters)
        hold.take(found.id)
        return found.id


def look_at(context: Context, job_id: int) -> Waiting | Ready:
    """How far a `serve` job is.

    Raises:
        Ended: it has.
    """
    with context.database() as db:
        job = get_job(db, job_id)
        if job.status is JobStatus.RUNNING and job.port is not None:
            return Ready(job.id, job.port)
        if job.status in ENDED or job.status is JobStatus.STOPPING:
            reason = job.reason or f"it is {job.status}"
            raise Ended(
                f"The model's process (job {job.id}) is not there: {reason} Send your message again.", job.id
            )
        if job.status is JobStatus.QUEUED:
            number = queue_position(db, job)
            if why := waits_for(db, job):
                return Waiting(f"The model is number {number} in the queue, and waits: {why}.", job.id)
            blocker = next((other for other in active_jobs(db) if other.slot_kind == "device"), None)
            if blocker is None:
                return Waiting(f"The model waits for its device, number {number} in the queue.", job.id)
            text = f"The model is number {number} in the queue. It waits for job {blocker.id} ({blocker.kind}"
            text += f", {blocker.done:,.0f} of {blocker.total:,.0f} {blocker.unit})" if blocker.total else ")"
            return Waiting(f"{text}, which holds the device.", job.id, blocker.id)
    if job.status is JobStatus.STARTING and not job.phase:
        return Waiting("The model's process is starting.", job.id)
    text = job.phase[:1].upper() + job.phase[1:] or "The model's process is starting"
    if job.total > 0:
        text += f": {job.done:,.0f} of {job.total:,.0f} {job.unit}".rstrip()
    return Waiting(f"{text}.", job.id)


async def stream(
    context: Context,
    ready: Ready,
    request: str,
    user: str,
    columns: Sequence[Mapping[str, Any]],
    decoding: Mapping[str, Any],
) -> AsyncGenerator[Event]:
    """Ask columns at once and yield what comes back. Closing this iterator stops the decoding.

    Args:
        request: an id of one's own choice, by which `stop_column` knows it.
        columns: {id, adapter, messages, prefix?} each; images of messages as base64.
        decoding: temperature, top_p, seed, max_new_tokens, attributes.

    Raises:
        ModelGone: nobody listens on the port.
        BrokeOff: the answer broke off before its end.
        PlumbError: the process refuses.
    """
    asked = {"request": request, "user": line_name(user), "columns": list(columns), **decoding}
    body = await asyncio.to_thread(lambda: json.dumps(asked).encode())
    if len(body) > LARGEST_BODY:
        yield Failed(
            f"The conversation has {len(body) / 2**20:,.0f} MiB with its images; at most "
            f"{LARGEST_BODY // 2**20} are sent. Leave out the oldest image, or begin a new conversation with "
            "smaller ones.",
            code=TOO_LONG,
        )
        return
    async with _client(context, ready) as client:
        try:
            async with client.stream("POST", "/chat", content=body) as response:
                if response.status_code == 413:
                    yield Failed(_refusal(await response.aread(), 413), code=TOO_LONG)
                    return
                if response.status_code != 200:
                    raise PlumbError(_refusal(await response.aread(), response.status_code))
                async for line in response.aiter_lines():
                    event = read_event(line)
                    if event is not None:
                        yield event
        except httpx.ConnectError as error:
            raise ModelGone("The model's process has left. Send your message again to start it anew.") from error
        except httpx.HTTPError as error:
            raise BrokeOff(
                f"The model's process (job {ready.job_id}) broke off its answer ({type(error).__name__}). "
                f"Its log is on the Jobs page; send your message again."
            ) from error


async def stop_column(context: Context, ready: Ready, request: str, column: str) -> bool:
    """Stop one column of a request; False where the process doesn't know it (yet, or any more)."""
    async with _client(context, ready) as client:
        try:
            answer = await client.post("/stop", json={"request": request, "column": column})
            return answer.status_code == 200 and bool(answer.json().get("stopped"))
        except (httpx.HTTPError, ValueError, AttributeError):
            return False  # it has died: whoever reads the answer is told


def line_name(user: str) -> str:
    """A user as the model's process knows one, which gives each a fair turn: no name, but always the same."""
    return hmac.new(_SALT, user.encode(), hashlib.sha256).hexdigest()[:16]


def _client(context: Context, ready: Ready) -> httpx.AsyncClient:
    # trust_env off: a proxy from the environment must never see the key, nor loopback requests at all.
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{ready.port}",
        headers={
            "authorization": f"Bearer {serve_key(context.folder, ready.job_id)}",
            "content-type": "application/json",
        },
        trust_env=False,
        timeout=httpx.Timeout(10.0, read=None),
    )


def read_event(line: str) -> Event | None:
    """One line of the answer; None for lines that tell nothing here.

    Raises:
        PlumbError: the line is no JSON object.
    """
    if not line.strip():
        return None
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PlumbError(f"The model's process answered what is not an event: {line[:80]!r}.")
    column = found.get("column")
    if "error" in found:
        return Failed(str(found["error"]), column, str(found.get("code") or ""))
    if column is not None and "delta" in found:
        return Delta(str(column), str(found["delta"]))
    if column is not None and "done" in found:
        return Done(str(column), str(found["done"]), int(found.get("tokens", 0)))
    if column is not None and "prompt" in found:
        return Length(str(column), int(found["prompt"]), found.get("context"))
    if column is not None and "apart" in found:
        return Apart(str(column), str(found["apart"]))
    return Line(int(found["waiting"])) if "waiting" in found else None


def _refusal(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"The model's process refused the message (status {status}); its log is on the Jobs page."
