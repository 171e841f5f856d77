"""A stand-in for Gemini's API, and for an OpenAI-compatible endpoint: real HTTP on loopback, scripted.

In a test: `with GeminiServer() as server: server.script(Step("minute", retry=2)); …`. As a process (for
benchmarks): `python tests/gemini_server.py --port 0 --latency 0.3 --faults 0.05 --limit 600 --seed 1`, which
prints its address; GET /stats tells what it has counted.

A request is *billed* where the model ran: answered, cut off, malformed, blocked after generation, lost on the way
back or held until the client left. 4xx, 429 and 5xx are not billed.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gemini_replies import answer_by_default
from gemini_wire import Answer, Asked, Step, dialect_of, prompt_key

__all__ = ["Asked", "GeminiServer", "Step", "prompt_key"]

WINDOW = 60.0  # seconds of the limit a minute
MIXED = ("minute", "500", "503", "timeout", "reset", "malformed")
ANSWERED = frozenset({"ok", "truncated", "malformed", "blocked", "recitation", "finish", "empty", "not json"})
BILLED = ANSWERED | {"reset", "timeout", "drop"}


@dataclass(frozen=True)
class Counted:
    """What became of a request. `at`: seconds since the epoch; `prompt`: see `Asked.prompt_key`."""

    kind: str
    at: float
    prompt: str


class GeminiServer:
    """Answers requests by the next step of the script, by a random fault, or as `answer` says.

    Args:
        latency: seconds before each answer.
        faults: share of requests that meet one of `kinds`, drawn by `seed`.
        limit: requests a minute (any 60 s); beyond it 429 with RetryInfo.
        key: the one key that is let in; None: any.
        models: the models that are known; None: any.
        answer: (the prompt's texts, its pictures) → the reply's text.
        hold: the longest time that a "timeout" waits for the client to leave.
        largest: bytes of a request's body.
        keep: whether to keep the requests themselves in `requests`.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        faults: float = 0.0,
        kinds: Iterable[str] = MIXED,
        limit: int | None = None,
        seed: int = 0,
        key: str | None = None,
        models: Iterable[str] | None = None,
        answer: Callable[[str, list[bytes]], str] | None = None,
        hold: float = 60.0,
        largest: int = 20_971_520,
        keep: bool = True,
        port: int = 0,
    ) -> None:
        self.latency, self.faults, self.kinds, self.limit = latency, faults, tuple(kinds), limit
        self.key, self.models, self.answer = key, None if models is None else set(models), answer
        self.hold, self.largest = hold, largest
        self.requests: list[Asked] = []
        self.counted: list[Counted] = []
        self.most_at_once = 0
        self.connections = 0  # that were opened in all
        self._keep = keep
        self._steps: deque[Step] = deque()
        self._default = Step()
        self._random = random.Random(seed)
        self._window: deque[float] = deque()
        self._at_once = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """What PLUMB_GEMINI_URL is set to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        """What PLUMB_OPENAI_URL is set to."""
        return f"{self.url}/v1"

    def script(self, *steps: Step | str, default: Step | str | None = None) -> None:
        """Add steps, one a request; then comes `default`, at first Step("ok"). A word stands for Step(word)."""
        with self._lock:
            self._steps.extend(Step(step) if isinstance(step, str) else step for step in steps)
            if default is not None:
                self._default = Step(default) if isinstance(default, str) else default

    # what has been counted ------------------------------------------------------------------------------

    @property
    def received(self) -> int:
        return len(self.counted)

    @property
    def billed(self) -> int:
        return sum(one.kind in BILLED for one in list(self.counted))

    @property
    def billed_by_prompt(self) -> Counter[str]:
        return Counter(one.prompt for one in list(self.counted) if one.kind in BILLED)

    @property
    def received_by_prompt(self) -> Counter[str]:
        return Counter(one.prompt for one in list(self.counted))

    @property
    def by_kind(self) -> Counter[str]:
        return Counter(one.kind for one in list(self.counted))

    @property
    def times(self) -> list[float]:
        """When requests were taken that the limit let through, seconds since the epoch."""
        return [one.at for one in list(self.counted) if one.kind not in ("limit", "key", "model", "large")]

    def stats(self) -> dict[str, Any]:
        """Everything that is counted, as GET /stats gives it."""
        return {
            "received": self.received,
            "billed": self.billed,
            "by_kind": dict(self.by_kind),
            "billed_by_prompt": dict(self.billed_by_prompt),
            "received_by_prompt": dict(self.received_by_prompt),
            "times": self.times,
            "most_at_once": self.most_at_once,
            "connections": self.connections,
        }

    # how a request is met -------------------------------------------------------------------------------

    def step_for(self, asked: Asked, size: int) -> Step:
        """What this request meets, before anything is answered."""
        if size > self.largest:
            return Step("large")
        if self.key is not None and asked.key != self.key:
            return Step("key")
        if self.models is not None and asked.model not in self.models:
            return Step("model")
        with self._lock:
            wait = self._over_limit()
            if wait is not None:
                return Step("limit", retry=wait)
            if self._steps:
                return self._steps.popleft()
            if self._random.random() < self.faults:
                return Step(self._random.choice(self.kinds), retry=1.0)
            return self._default

    def count(self, asked: Asked, kind: str, at: float) -> None:
        with self._lock:
            self.counted.append(Counted(kind, at, asked.prompt_key))
            if self._keep:
                self.requests.append(asked)

    def text_for(self, asked: Asked) -> str:
        if self.answer is not None:
            return self.answer("\n".join(asked.texts), [data for data, _ in asked.pictures])
        return answer_by_default(asked)

    def enter(self, change: int) -> None:
        with self._lock:
            self._at_once += change
            self.most_at_once = max(self.most_at_once, self._at_once)

    def track(self, connection: socket.socket, is_open: bool) -> None:
        with self._lock:
            (self._open.add if is_open else self._open.discard)(connection)
            self.connections += is_open

    def _over_limit(self) -> float | None:
        """Seconds until the next request may come; None: this one may."""
        if self.limit is None:
            return None
        now = time.monotonic()
        while self._window and self._window[0] <= now - WINDOW:
            self._window.popleft()
        if len(self._window) >= self.limit:
            return self._window[0] + WINDOW - now
        self._window.append(now)
        return None

    def __enter__(self) -> GeminiServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no more connections and end those that are open; a second time does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
        with self._lock:
            left = list(self._open)
        for connection in left:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # gone already


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # connections that wait to be taken: 100 threads begin at once
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients leave in the middle on purpose: a traceback for each would hide what matters."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _handler(fake: GeminiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            fake.track(self.connection, True)

        def finish(self) -> None:
            fake.track(self.connection, False)
            super().finish()

        def do_GET(self) -> None:
            if self.path == "/stats":
                self._send(Answer(200, fake.stats()))
            else:
                self._send(Answer(404, {"error": {"message": "There is no such page."}}))

        def do_POST(self) -> None:
            at = time.time()
            data = self.rfile.read(int(self.headers.get("content-length", "0")))
            dialect = dialect_of(self.path)
            if dialect is None:
                self._send(Answer(404, {"error": {"message": f"There is no such path: {self.path}"}}))
                return
            asked = dialect.read(self.path, dict(self.headers.items()), json.loads(data))
            step = fake.step_for(asked, len(data))
            fake.enter(1)
            try:
                self._meet(step, asked, at)
            finally:
                fake.enter(-1)

        def _meet(self, step: Step, asked: Asked, at: float) -> None:
            dialect = asked.dialect
            delay = fake.latency if step.latency is None else step.latency
            if step.kind not in ("limit", "key", "model", "large"):
                time.sleep(delay)
            fake.count(asked, step.kind, at)
            if step.kind == "timeout":
                self._wait_for_leaving()
            elif step.kind == "drop":
                self._reset()
            elif step.kind in BILLED:
                text = step.text if step.text is not None else fake.text_for(asked)
                answer = dialect.reply(asked, step, text)
                if step.kind == "reset":
                    self._send(answer, cut=True)
                    self._reset()
                else:
                    self._send(answer)
            else:
                self._send(dialect.error(asked, step))

        def _send(self, answer: Answer, cut: bool = False) -> None:
            body = answer.data
            self.send_response(answer.status)
            self.send_header("content-type", answer.media_type)
            self.send_header("content-length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)

        def _wait_for_leaving(self) -> None:
            select.select([self.connection], [], [], fake.hold)  # readable: the client has closed its end
            self.close_connection = True

        def _reset(self) -> None:
            """End the connection as a broken one ends: with RST."""
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            fake.track(self.connection, False)
            self.rfile.close()
            self.connection.close()

        def log_message(self, *arguments: Any) -> None:
            """Tests read what they need from the fake."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description="A Gemini-compatible test server; prints its address.")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests, 0 to 1")
    parser.add_argument("--kinds", default=",".join(MIXED), help="of the faults")
    parser.add_argument("--limit", type=int, default=None, help="requests a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", default=None, help="the one key that is let in")
    parser.add_argument("--hold", type=float, default=60.0, help="seconds that a timeout waits")
    values: Mapping[str, Any] = vars(parser.parse_args())
    server = GeminiServer(**{**values, "kinds": values["kinds"].split(","), "keep": False})
    with server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
