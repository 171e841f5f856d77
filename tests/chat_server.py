"""A scripted stand-in for the `serve` job's endpoint: real HTTP on loopback, answers from a queue of scripts."""

from __future__ import annotations

import asyncio
import json
import re
import select
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from factories import World
from jobs.configs import parse_config
from jobs.keys import serve_key
from storage import jobs as store
from storage.adapters import add_adapter
from storage.chats import get_conversation, list_conversations
from storage.lifecycle import JobStatus
from storage.records import Conversation
from storage.speakers import sides
from workbench.chat_desk import Cast, Decoding, View, check_decoding, default_cast
from workbench.chat_round import Stops, answer_column, send
from workbench.context import Context

USER = "ada"

_MARKS = re.compile(r'<a class="plumb-edit".*?</a>\s*')


@dataclass(frozen=True)
class Stopped:
    """In a script: until this column is asked to stop."""

    column: str


@dataclass(frozen=True)
class Dies:
    """In a script: the connection breaks off, as it does where the process is killed."""


@dataclass(frozen=True)
class Refuses:
    """Alone in a script: the request is answered with this status and nothing else."""

    status: int
    error: str


Script = Iterable[dict[str, Any] | str | float | threading.Event | Stopped | Dies | Refuses]

WAIT = 30.0  # seconds after which a script that waits for its reader to leave gives up


def says(*texts: str, finish: str = "stop") -> list[dict[str, Any]]:
    """A script in which two or three columns speak word by word, in turn."""
    events: list[dict[str, Any]] = []
    words = {side: text.split(" ") for side, text in zip(sides(len(texts)), texts, strict=True)}
    for place in range(max(map(len, words.values()))):
        for column, spoken in words.items():
            if place < len(spoken):
                events.append({"column": column, "delta": (" " if place else "") + spoken[place]})
    return events + [{"column": column, "done": finish, "tokens": len(words[column])} for column in words]


class ChatServer:
    """Each request to /chat takes the next script; a number in a script is a pause, an event is waited for.

    Leaving cuts both short.

    `requests` are the bodies that came, `stops` those of /stop, `left` is set once a reader closed its connection
    before the end, `late` tells whether an event was not set within `WAIT` seconds.
    """

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.scripts: deque[Script] = deque()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.stops: list[dict[str, Any]] = []
        self.left = threading.Event()
        self.late = False
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # chunks: a reader sees whether an answer was whole

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                fake.keys.append(self.headers.get("authorization", ""))
                if fake.key and fake.keys[-1] != f"Bearer {fake.key}":
                    self._answer(401, {"error": "This address needs the key of its start."})
                    return
                if self.path == "/stop":
                    fake.stops.append(json.loads(body))
                    known = any(fake.stops[-1]["request"] == one["request"] for one in fake.requests)
                    self._answer(200, {"stopped": known})
                    return
                fake.requests.append(json.loads(body))
                if not fake.scripts:
                    self._answer(422, {"error": "There is no script for this request."})
                    return
                script = [*fake.scripts.popleft()]
                if script and isinstance(script[0], Refuses):
                    self._answer(script[0].status, {"error": script[0].error})
                    return
                self.send_response(200)
                self.send_header("content-type", "application/x-ndjson")
                self.send_header("transfer-encoding", "chunked")
                self.send_header("connection", "close")
                self.end_headers()
                try:
                    self._play(script)
                except OSError:
                    fake.left.set()
                self.close_connection = True

            def _play(self, script: Script) -> None:
                for event in script:
                    if isinstance(event, Dies):
                        return
                    if isinstance(event, Stopped):
                        while all(stop["column"] != event.column for stop in fake.stops):
                            self._pause(0.02)
                        continue
                    if isinstance(event, threading.Event):
                        deadline = time.monotonic() + WAIT
                        while not event.is_set() and time.monotonic() < deadline:
                            self._pause(0.02)
                        fake.late = fake.late or not event.is_set()
                        continue
                    if isinstance(event, (int, float)):
                        self._pause(event)
                        continue
                    text = event if isinstance(event, str) else json.dumps(event)
                    self._chunk(text.encode() + b"\n")
                self._chunk(b"")

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

            def _pause(self, seconds: float) -> None:
                readable, _, _ = select.select([self.connection], [], [], seconds)
                if readable:
                    raise ConnectionResetError  # end of file: the reader has gone

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                """Tests read what they need from the fake."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def add_serve_job(context: Context, adapters: tuple[int, ...] = (), model: str = "demo", user: str = "ada") -> int:
    """A queued `serve` job, as `submit` would leave it."""
    config = parse_config("serve", {"model": model, "adapters": adapters}).model_dump(mode="json")
    with context.database() as db:
        return store.add_job(db, kind="serve", config=config, user=user, slot_kind="device").id


def set_running(context: Context, job_id: int, port: int) -> None:
    with context.database() as db:
        store.move(db, job_id, JobStatus.STARTING)
        store.move(db, job_id, JobStatus.RUNNING)
        store.set_progress(db, job_id, phase="ready to chat", port=port)


@contextmanager
def serving(context: Context, *scripts: Script, adapters: tuple[int, ...] = ()) -> Iterator[ChatServer]:
    """A running `serve` job whose endpoint is the fake, with its key."""
    job_id = add_serve_job(context, adapters)
    with ChatServer(serve_key(context.folder, job_id)) as server:
        server.scripts.extend(scripts)
        set_running(context, job_id, server.port)
        yield server


def trained(world: World, name: str = "colours", base: str = "demo") -> int:
    """An adapter with its files, as a finished training leaves it."""
    job = world.job("dpo", name=name)
    sha256 = f"{job.id:064d}"
    folder = world.folder.adapters / sha256
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    add_adapter(world.db, job, name, sha256, 7, base, "dpo")
    store.move(world.db, job.id, JobStatus.STOPPED)
    return default_cast(world.db, base).speakers[1].adapter or 0


async def everything(views: AsyncGenerator[View]) -> list[View]:
    async with aclosing(views) as open_views:
        return [view async for view in open_views]


def ask(
    context: Context,
    text: str = "What is it?",
    files: tuple[str, ...] = (),
    conversation: int | None = None,
    cast: Cast | None = None,
    blind: bool = False,
    replace: int | None = None,
    **values: Any,
) -> list[View]:
    """Send a message and wait for the end; every view that the page got."""
    settings = {**Decoding().model_dump(), **values}
    cast = cast or Cast()
    return asyncio.run(
        everything(
            send(context, Stops(), "session", USER, conversation, text, files, cast, settings, blind, replace)
        )
    )


def again(context: Context, conversation: int, column: int, go_on: bool = False, **values: Any) -> list[View]:
    """Have one column answer again, or go on; every view that the page got."""
    decoding = check_decoding({**Decoding().model_dump(), **values})
    return asyncio.run(
        everything(answer_column(context, Stops(), "session", USER, conversation, column, decoding, go_on))
    )


def stored(world: World) -> Conversation:
    """The user's newest conversation."""
    return get_conversation(world.db, list_conversations(world.db, USER)[0].id, USER)


def texts(view: View, column: int) -> list[str]:
    """What a column shows, without the page's own marks."""
    return [_MARKS.sub("", message["content"]) for message in view.columns[column]]
