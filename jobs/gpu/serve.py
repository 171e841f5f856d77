"""The `serve` job: the chat's model process, on loopback, with a secret of its start.

    GET  /health   {model, adapters, busy, waiting, idle_seconds}
    POST /chat     a ChatRequest (jobs/gpu/chat_requests.py) → NDJSON, one event a line, until the answers are done
    POST /stop     {request, column?} → {stopped: bool}

Every request needs `Authorization: Bearer <PLUMB_SERVE_KEY>`. Closing the connection of /chat stops its answer.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict

from jobs import steerlm
from jobs.configs import ServeConfig
from jobs.gpu.chat import ChatEngine
from jobs.gpu.chat_requests import ChatRequest
from jobs.gpu.devices import claim_device
from jobs.gpu.loading import load_for
from jobs.gpu.lora import attach, frozen_adapter
from jobs.keys import SERVE_KEY
from jobs.merged import method_of
from jobs.places import models_folder
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder
from storage.errors import PlumbError, UserError

LARGEST_BODY = 64 * 2**20  # bytes: a dozen photographs as base64
_SHORTEST_KEY = 16


def serve(run: RunFolder, job: JobFile, config: ServeConfig, reporter: Reporter) -> None:
    """Answer chats until idle for `config.idle_minutes`, or asked to stop.

    Raises:
        Stopped: asked to stop; answers under way were stopped first.
        UserError: no secret in the environment, or an adapter that doesn't fit.
    """
    key = os.environ.get(SERVE_KEY, "")
    if len(key) < _SHORTEST_KEY:
        raise UserError(
            f"{SERVE_KEY} is not set (or shorter than {_SHORTEST_KEY} characters): the chat's model never answers "
            "without a secret. Start it from Plumb, or set one."
        )
    loaded = load_for(config, claim_device(job.device), models_folder(run, job), reporter)
    found = {number: frozen_adapter(run, number) for number in config.adapters}
    names = {number: f"a{number}" for number in found}
    if found:
        reporter.phase("loading the adapters")
    model = attach(loaded, {names[n]: (adapter.folder, adapter.name) for n, adapter in found.items()})
    steered: set[int | None] = {number for number, adapter in found.items() if adapter.method == steerlm.METHOD}
    if method_of(config.model) == steerlm.METHOD:
        steered.add(None)  # the weights alone: an adapter trained on them is asked as its own method says
    engine = ChatEngine(loaded, model, names, reporter.note, steered)
    server = Server(make_app(engine, key, config.model))
    try:
        reporter.event("endpoint", port=server.start())
        reporter.phase("ready to chat")
        watch(engine, server, reporter, config.idle_minutes * 60)
    finally:
        engine.close()
        server.stop()


def watch(engine: ChatEngine, server: Server, reporter: Reporter, idle_seconds: float, beat: float = 0.2) -> None:
    """Return when idle for long enough.

    Raises:
        Stopped: `control` asks for it.
        PlumbError: the server died.
    """
    while True:
        reporter.check_stop()
        if not server.alive:
            raise PlumbError("The chat's server ended by itself; its log says why. Start it again.")
        if engine.idle_seconds >= idle_seconds:
            reporter.note(f"idle for {idle_seconds / 60:g} minutes")
            return
        time.sleep(beat)


class Server:
    """uvicorn on a loopback port of the system's choice, in a thread: the main one watches."""

    def __init__(self, app: FastAPI) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> int:
        """Returns the port, once requests are answered on it."""
        self._socket.bind(("127.0.0.1", 0))
        port: int = self._socket.getsockname()[1]
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise PlumbError("The chat's server could not start; its log says why.")
            time.sleep(0.01)
        return port

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(timeout=10)
        self._socket.close()


class StopRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    request: str
    column: str | None = None


def make_app(engine: ChatEngine, key: str, model: str) -> FastAPI:
    """The three routes over an engine; nothing is answered without the key, not even that a path is missing."""
    app = FastAPI(title="Plumb chat", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def door(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            return JSONResponse({"error": "This address needs the key of its start."}, status_code=401)
        size = request.headers.get("content-length", "0")
        unsized = "transfer-encoding" in request.headers
        if unsized or not size.isdecimal() or int(size) > LARGEST_BODY:
            told = "bytes of unknown number" if unsized else f"{size} bytes"
            return JSONResponse(
                {"error": f"The request has {told}; at most {LARGEST_BODY} are taken. Send smaller images."},
                status_code=413,
            )
        return await following(request)

    @app.exception_handler(PlumbError)
    async def refused(_: Request, error: PlumbError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # Without the input: it may hold a whole image.
        found = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return JSONResponse({"error": f"The request can't be read: {found}"}, status_code=422)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "model": model,
            "adapters": list(engine.adapters),
            "busy": engine.busy,
            "waiting": engine.waiting,
            "idle_seconds": round(engine.idle_seconds, 1),
        }

    @app.post("/chat")
    async def chat(body: ChatRequest, request: Request) -> Response:
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(event: dict[str, Any] | None) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the server has gone, nobody listens
                pass

        ticket = engine.submit(body, emit)
        return StreamingResponse(lines(events, request, ticket.stop), media_type="application/x-ndjson")

    @app.post("/stop")
    async def stop(body: StopRequest) -> dict[str, bool]:
        return {"stopped": engine.stop(body.request, body.column)}

    return app


async def lines(
    events: asyncio.Queue[dict[str, Any] | None], request: Request, stop: Callable[[], None]
) -> AsyncIterator[str]:
    """Events as lines until None; whoever stops reading stops the answer."""
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), timeout=0.5)
            except TimeoutError:
                event = {}
            if await request.is_disconnected():
                return
            if event is None:
                return
            if event:
                yield json.dumps(event, ensure_ascii=False) + "\n"
    finally:
        stop()
