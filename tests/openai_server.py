"""A small OpenAI-compatible server on loopback for outside endpoints: models, chat, streaming or not, faults.

In a test: `with OpenAiServer(models=("llava",)) as server: server.script("cut", Fault("status", 503)); …`
It answers `answer(request)` word by word; each scripted fault is for one request to /chat/completions.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOLD = 60.0  # seconds for which a fault waits for the client to leave


@dataclass(frozen=True)
class Fault:
    """How one request is met otherwise.

    kind: ok | hang (nothing at all) | hang open (a status, then nothing) | pause (a word, then nothing) | cut (a
    word, then the connection is reset) | short (a word, then a clean end) | endless (words without end) | empty
    endless (events without words) | no newline (one line without end) | status (`status`, with `body` as JSON or
    text) | raw (`body` as it is, under `content_type`) | events (`body` as the data of events, then [DONE]) |
    plain (a whole answer, not streamed) | unknown option (400 that names `body`, if the request has it).
    """

    kind: str = "ok"
    status: int = 200
    body: Any = ""
    content_type: str = "text/event-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class OpenAiServer:
    """Args:
    models: what it serves; others get 404. None: GET /models says 404, and every model is known.
    key: the one key that is let in; None: any, and none.
    answer: (the request's body) → the text of the answer.
    usage: whether it counts tokens.
    delay: seconds before each word.
    """

    def __init__(
        self,
        *,
        models: Iterable[str] | None = ("llava", "llava-dpo"),
        key: str | None = None,
        answer: Callable[[dict[str, Any]], str] | None = None,
        usage: bool = True,
        delay: float = 0.0,
    ) -> None:
        self.models = None if models is None else tuple(models)
        self.key, self.usage, self.delay = key, usage, delay
        self.answer = answer or (lambda body: "It is a red circle.")
        self.lists = Fault()  # how GET /models is met
        self.taken: list[Taken] = []
        self.listed = 0  # requests to /models
        self.left: list[str] = []  # kinds of faults whose client left before their end
        self.at_once = self.most_at_once = 0
        self.words = 0  # that were sent
        self._faults: deque[Fault] = deque()
        self.default = Fault()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of all requests for an answer."""
        with self.lock:
            return [one.body for one in self.taken]

    def script(self, *faults: Fault | str, default: Fault | str | None = None) -> None:
        """Add faults, one a request; then comes `default`, at first an answer. A word stands for Fault(word)."""
        with self.lock:
            self._faults.extend(Fault(one) if isinstance(one, str) else one for one in faults)
            if default is not None:
                self.default = Fault(default) if isinstance(default, str) else default

    def fault_for(self, taken: Taken) -> Fault:
        if self.key is not None and taken.headers.get("authorization") != f"Bearer {self.key}":
            return Fault("status", 401, {"error": {"message": "Invalid API key: sk-ab****xy"}})
        if self.models is not None and taken.body.get("model") not in self.models:
            told = f"The model `{taken.body.get('model')}` does not exist."
            return Fault("status", 404, {"error": {"message": told, "code": 404}})
        with self.lock:
            return self._faults.popleft() if self._faults else self.default

    def enter(self, change: int) -> None:
        with self.lock:
            self.at_once += change
            self.most_at_once = max(self.most_at_once, self.at_once)

    def __enter__(self) -> OpenAiServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no more connections and end what is under way; a second time does nothing."""
        self.closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that has left is no news here


def _handler(server: OpenAiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            with server.lock:
                server.listed += 1
            if server.lists.kind != "ok":
                self._meet(server.lists, {})
            elif server.key is not None and self.headers.get("authorization") != f"Bearer {server.key}":
                self._send(401, {"error": {"message": "Invalid API key"}})
            elif server.models is None or not self.path.endswith("/v1/models"):
                self._send(404, {"detail": "Not Found"})
            else:
                listed = [{"id": name, "object": "model", "owned_by": "vllm"} for name in server.models]
                self._send(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            taken = Taken(self.path, headers, json.loads(raw))
            with server.lock:
                server.taken.append(taken)
            if self.path != "/v1/chat/completions":
                self._send(404, {"detail": "Not Found"})
                return
            server.enter(1)
            try:
                self._meet(server.fault_for(taken), taken.body)
            finally:
                server.enter(-1)

        def _meet(self, fault: Fault, body: dict[str, Any]) -> None:
            try:
                self._act(fault, body)
            except OSError:
                with server.lock:
                    server.left.append(fault.kind)
            if fault.kind not in ("ok", "plain", "status"):
                self.close_connection = True

        def _act(self, fault: Fault, body: dict[str, Any]) -> None:
            match fault.kind:
                case "hang":
                    self._wait_for_leave()
                case "hang open":
                    self._begin()
                    self._wait_for_leave()
                case "pause":
                    self._begin()
                    self._event(_delta("It"))
                    self._wait_for_leave()
                case "cut":
                    self._begin()
                    self._event(_delta("It"))
                    # An end without linger resets the connection.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.connection.close()
                case "short":
                    self._begin()
                    self._event(_delta("It"))
                    self._chunk(b"")
                case "endless" | "empty endless":
                    self._begin()
                    while not server.closing.is_set():
                        self._event(_delta((fault.body or "again ") if fault.kind == "endless" else ""))
                        with server.lock:
                            server.words += 1
                case "no newline":
                    self._begin()
                    self._chunk(b"data: ")
                    while not server.closing.is_set():
                        self._chunk(b"x" * 65_536)
                case "status":
                    self._send(fault.status, fault.body, fault.headers)
                case "raw":
                    data = fault.body if isinstance(fault.body, bytes) else str(fault.body).encode()
                    self._send(fault.status, data, {"content-type": fault.content_type, **fault.headers})
                case "events":
                    self._begin()
                    for one in fault.body:
                        data = one if isinstance(one, bytes) else json.dumps(one).encode()
                        self._chunk(b"data: " + data + b"\n\n")
                    self._chunk(b"data: [DONE]\n\n")
                    self._chunk(b"")
                case "plain":
                    self._send(200, self._whole(body))
                case "unknown option" if str(fault.body) in body:
                    told = f"Unrecognized request argument supplied: {fault.body}"
                    self._send(400, {"error": {"message": str(fault.headers.get("told", told))}})
                case _ if body.get("stream"):
                    self._stream(body)
                case _:
                    self._send(200, self._whole(body))

        def _stream(self, body: dict[str, Any]) -> None:
            words = list(_words(server.answer(body)))
            most = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
            self._begin()
            self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            for word in words[:most]:
                if server.delay:
                    time.sleep(server.delay)
                self._event(_delta(word))
                with server.lock:
                    server.words += 1
            reason = "stop" if len(words) <= most else "length"
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
            if server.usage and (body.get("stream_options") or {}).get("include_usage"):
                self._event({"choices": [], "usage": {"completion_tokens": 2 * len(words[:most])}})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

        def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
            message = {"role": "assistant", "content": server.answer(body)}
            return {
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"completion_tokens": 7},
            }

        def _begin(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()

        def _event(self, content: dict[str, Any]) -> None:
            self._chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _send(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
            plain = isinstance(content, str | bytes)
            data = content if isinstance(content, bytes) else (content if plain else json.dumps(content)).encode()
            kind = "text/html" if plain else "application/json"
            self.send_response(status)
            for name, value in {"content-type": kind, **(headers or {}), "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _wait_for_leave(self) -> None:
            """Raises ConnectionError once the client has left."""
            end = time.monotonic() + HOLD
            while not server.closing.is_set() and time.monotonic() < end:
                readable, _, _ = select.select([self.connection], [], [], 0.02)
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionError

    return Handler


def _delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def _words(text: str) -> Iterator[str]:
    for number, word in enumerate(text.split(" ")):
        yield (" " if number else "") + word
