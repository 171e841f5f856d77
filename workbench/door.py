"""The door: who may come in, decided in one place for pages, API, images and Gradio's own routes.

On a loopback address there is one user, named after the operating system's. On any other address a person shows
the token that the console printed at this start, and gets a signed session that outlives restarts. Roles and
passwords will come through `Door.identify` later.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import json
import secrets
import time
from collections import deque
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings, local_user

SESSION_SECONDS = 14 * 24 * 3600
ATTEMPTS, WINDOW_SECONDS = 10, 60.0
PUBLIC = frozenset({"/login", "/health"})

# Nothing on a page may load from, or send to, another host. Gradio needs inline and evaluated scripts.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # the token stands in the address once
    "content-security-policy": _POLICY,
}


class Door:
    """Knows the users. One instance an app; it holds the token of this start in memory alone."""

    def __init__(self, settings: Settings) -> None:
        self.loopback = settings.loopback
        self.host = settings.host
        self.token = secrets.token_urlsafe(32)
        self._user = local_user()
        key = settings.folder.key()
        self._signer = URLSafeTimedSerializer(key, salt="plumb-session")
        # Cookies are shared by all ports of a host: the name keeps two data folders apart.
        self.cookie = "plumb-" + hashlib.sha256(b"cookie:" + key).hexdigest()[:12]
        self._failures: dict[str, deque[float]] = {}

    def identify(self, request: HTTPConnection) -> str | None:
        """The user behind the request, or None for a stranger."""
        if self.loopback:
            return self._user
        # Not request.cookies: some of Gradio's helpers hand over other request classes. Not http.cookies: it
        # gives up all cookies for one that another app on this host wrote in a way of its own.
        value = cookie_parser(request.headers.get("cookie", "")).get(self.cookie)
        if value is None:
            return None
        try:
            name = self._signer.loads(value, max_age=SESSION_SECONDS)
        except BadSignature:
            return None
        return name if isinstance(name, str) else None

    def admit(self, token: str, client: str) -> str | None:
        """A new session for whoever knows the token; None for others.

        Raises:
            TooManyAttempts: this client was wrong too often within the last minute.
        """
        moment = time.monotonic()
        for known in [name for name, past in self._failures.items() if past[-1] < moment - WINDOW_SECONDS]:
            del self._failures[known]
        past = self._failures.get(client, deque(maxlen=ATTEMPTS))
        if len(past) == ATTEMPTS and past[0] > moment - WINDOW_SECONDS:
            raise TooManyAttempts
        if not hmac.compare_digest(token.strip().encode(), self.token.encode()):
            past.append(moment)
            self._failures[client] = past
            return None
        return str(self._signer.dumps(self._user))

    def refusal(self, headers: Headers) -> str | None:
        """Why a request is refused whoever sends it: another site's page is behind it."""
        host = headers.get("host", "")
        if self.loopback and not self._is_ours(host):
            # DNS rebinding: a foreign name that resolves to this machine.
            return f"Plumb does not answer to the name {host!r}; open it as http://{self.host}."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"Requests from pages of {origin} are refused."
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in ("localhost", self.host) or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


class TooManyAttempts(Exception):
    """A client guesses tokens."""


class DoorMiddleware:
    """Stands before everything, websockets and mounted apps included."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app = app
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        reason = self.door.refusal(headers)
        if reason is not None:
            await _refuse(scope, receive, send, 403, reason)
            return
        if scope["path"] not in PUBLIC and self.door.identify(HTTPConnection(scope)) is None:
            wants_page = "text/html" in headers.get("accept", "") and scope.get("method") == "GET"
            target = scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
            page = login_page("", target) if wants_page else None
            await _refuse(scope, receive, send, 401, "Log in at /login with the token from Plumb's console.", page)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_guarded)


def routes(door: Door) -> APIRouter:
    """`/login`, by link or by form."""
    router = APIRouter()

    @router.get("/login")
    def login_link(request: Request, token: str = "", next: str = "/") -> Response:
        if door.loopback:
            return RedirectResponse(_inside(next), 303)
        return _login(door, request, token, next) if token else HTMLResponse(login_page("", next))

    @router.post("/login")
    async def login_form(request: Request) -> Response:
        if door.loopback:
            return RedirectResponse("/", 303)
        form = await request.form(max_files=0, max_fields=10)
        return _login(door, request, str(form.get("token", "")), str(form.get("next", "/")))

    return router


def _login(door: Door, request: Request, token: str, target: str) -> Response:
    try:
        session = door.admit(token, request.client.host if request.client else "")
    except TooManyAttempts:
        text = f"Too many wrong tokens. Wait {WINDOW_SECONDS:.0f} seconds and try again."
        return HTMLResponse(login_page(text, target), 429)
    if session is None:
        text = "This token is not the one that Plumb printed at its last start."
        return HTMLResponse(login_page(text, target), 401)
    response = RedirectResponse(_inside(target), 303)
    response.set_cookie(
        door.cookie,
        session,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


def _inside(target: str) -> str:
    """A path of this app; whatever could lead to another host becomes the start page."""
    safe = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return quote(target, safe="/?&=%+:,-_.~") if safe else "/"


async def _refuse(
    scope: Scope, receive: Receive, send: Send, status: int, text: str, page: str | None = None
) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": text[:120]})
        return
    response = (
        HTMLResponse(page, status)
        if page is not None
        else Response(json.dumps({"error": text}), status, media_type="application/json")
    )
    response.headers.update(_HEADERS)
    response.headers["cache-control"] = "no-store"
    await response(scope, receive, send)


def login_page(problem: str, target: str) -> str:
    """The form for the token; stands alone, since a stranger gets no style sheet."""
    note = f'<p class="bad" role="alert">{html.escape(problem)}</p>' if problem else ""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Plumb: log in</title><style>
:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;
min-height:90vh;margin:0}}main{{width:min(26rem,90vw)}}h1{{font-size:1.4rem}}label{{display:block;font-weight:600}}
input{{font:inherit;width:100%;box-sizing:border-box;padding:.5rem;margin:.3rem 0 .8rem}}
button{{font:inherit;padding:.5rem 1.2rem}}.bad{{color:#b42318;font-weight:600}}small{{opacity:.75}}</style></head>
<body><main><h1>Plumb</h1>{note}<form method="post" action="/login">
<input type="hidden" name="next" value="{html.escape(target, quote=True)}">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button>Log in</button></form>
<p><small>Plumb printed the token on its console when it started.</small></p></main></body></html>"""
