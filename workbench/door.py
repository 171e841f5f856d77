"""The door: who may come in, decided in one place for pages, API, images and Gradio's own routes.

On a loopback address there is one user, named after the operating system's, who is admin. On any other address, or
where `PLUMB_LOGIN` asks for it, people log in with name and password; the machine's owner also by the token that
the console printed at this start. What each may do is workbench/roles.py's affair.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import sqlite3
from http.cookies import SimpleCookie
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from fastapi import Response
from fastapi.responses import HTMLResponse
from sqlite_utils import Database
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings, local_user
from storage import users
from storage.database import connect
from storage.database import session as session_of
from storage.errors import UserError
from storage.users import Role
from workbench.attempts import Attempts, Keyed, Limit, TooManyAttempts, address_key, name_key
from workbench.context import Person
from workbench.login_pages import login_page
from workbench.sessions import Session, Sessions

__all__ = ["PUBLIC", "Door", "DoorMiddleware", "Person", "TooManyAttempts"]

ATTEMPTS, WINDOW_SECONDS = 10, 60.0  # wrong ones from one address
NAME_ATTEMPTS, NAME_SECONDS = 10, 900.0  # wrong ones under one name, from wherever
PUBLIC = frozenset({"/login", "/health", "/invitation"})
_UNRENEWED = ("/images/", "/thumbnails/", "/plumb-static/", "/logout")

# Nothing on a page may load from, or send to, another host. Gradio needs inline and evaluated scripts.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # the token, or an invitation, stands in the address once
    "content-security-policy": _POLICY,
}


class Door:
    """Knows the people. One instance an app; it holds the token of this start in memory alone."""

    def __init__(self, settings: Settings) -> None:
        self.loopback = settings.loopback and not settings.login  # as Context.asks_login
        self.host = settings.host
        self.token = secrets.token_urlsafe(32)
        self.folder = settings.folder
        self.sessions = Sessions(settings.folder.key())
        self.cookie = self.sessions.cookie
        self.attempts = Attempts()
        self.elements: dict[str, Role] = {}  # of the pages: who may use which, filled by workbench/roles.py
        self._user = local_user()
        self._database: Database | None = None
        self._lock = Lock()

    def identify(self, request: HTTPConnection) -> str | None:
        """The user behind the request, or None for a stranger."""
        person = self.person(request)
        return None if person is None else person.name

    def person(self, request: HTTPConnection) -> Person | None:
        """The user and their role as they stand at this moment; None for a stranger.

        Asked at each request, of images too: a signature and one read by a primary key, tens of microseconds. So
        nothing is kept, and a role that changes or a person who is removed counts from the next request on.
        """
        if self.loopback:
            return Person(self._user, "admin")
        session = self.session(request)
        return None if session is None else self._standing(session)

    def asker(self, request: HTTPConnection) -> str:
        """The user behind a request that has come through the door."""
        name = self.identify(request)
        assert name is not None, "the door lets nobody in without a name"
        return name

    def session(self, request: HTTPConnection) -> Session | None:
        """The session that the request's cookie claims, its signature and age checked, its era not yet."""
        value = _cookies(request).get(self.cookie)
        return None if value is None else self.sessions.read(value)

    def _standing(self, session: Session) -> Person | None:
        with self._lock:
            try:
                return self._look_up(session)
            except sqlite3.Error:  # the connection, not the person: once more with a new one
                self._database = None
                return self._look_up(session)

    def _look_up(self, session: Session) -> Person | None:
        if self._database is None:
            self._database = connect(self.folder)
        user = users.find_user(self._database, session.name)
        if user is None or user.era != session.era or self.sessions.has_ended(self._database, session):
            return None
        if session.by_token:
            return Person(user.name, "admin")
        return None if user.deleted_at is not None else Person(user.name, user.role)

    def admit(self, token: str, client: str) -> str | None:
        """A new session for whoever knows the token; None for others.

        Raises:
            TooManyAttempts: this client was wrong too often within the last minute.
        """
        keyed: Keyed = [(address_key(client), Limit(ATTEMPTS, WINDOW_SECONDS))]
        moment = self.attempts.begin(keyed)
        if not hmac.compare_digest(token.strip().encode(), self.token.encode()):
            return None
        self.attempts.forgive(keyed, moment)
        with session_of(self.folder) as db:
            owner = users.own_machine(db, self._user)
        return self.sessions.begin(owner.name, owner.era, by_token=True)

    def log_in(self, name: str, password: str, client: str, device: str | None = None) -> str | None:
        """A new session for whoever knows name and password; None for others, whatever of it was wrong.

        Takes tens of milliseconds on purpose: call it in a thread.

        Args:
            device: the cookie of a browser in which somebody has logged in before. Its owner is not shut out by
                those who guess at the name from elsewhere.

        Raises:
            TooManyAttempts: this client, or whoever tried this name, was wrong too often. Nothing was looked at.
        """
        try:
            name = users.clean_name(name)
        except UserError:
            pass  # nobody's name; costs what others cost
        keyed: Keyed = [
            (address_key(client), Limit(ATTEMPTS, WINDOW_SECONDS)),
            (name_key(name, self.sessions.device_of(device, name)), Limit(NAME_ATTEMPTS, NAME_SECONDS)),
        ]
        moment = self.attempts.begin(keyed)
        with session_of(self.folder) as db:
            user = users.log_in(db, name, password)
        if user is None:
            return None
        self.attempts.forgive(keyed, moment)
        return self.sessions.begin(user.name, user.era)

    def session_for(self, name: str) -> str:
        """A session's cookie for somebody the caller vouches for: after a new password, in tests, benchmarks."""
        with session_of(self.folder) as db:
            return self.sessions.begin(name, users.get_user(db, name).era)

    def log_out(self, request: HTTPConnection) -> None:
        """End the request's session, copies of its cookie included."""
        session = self.session(request)
        if session is not None:
            with session_of(self.folder) as db:
                self.sessions.end(db, session)

    def renewal(self, request: HTTPConnection) -> str | None:
        """The session's cookie with a later time, when it is due; else it would end as idle."""
        if self.loopback or request.url.path.startswith(_UNRENEWED):
            return None
        session = self.session(request)
        value = None if session is None else self.sessions.renewed(session)
        return None if session is None or value is None else cookie_header(self, request, value, session)

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


def cookie_header(door: Door, request: HTTPConnection, value: str, session: Session | None = None) -> str:
    """The `set-cookie` header of a session."""
    given = session or door.sessions.read(value)
    morsel: Any = SimpleCookie({door.cookie: value})[door.cookie]
    morsel["path"], morsel["httponly"], morsel["samesite"] = "/", True, "lax"
    morsel["max-age"] = door.sessions.seconds_left(given) if given else 0
    morsel["secure"] = request.url.scheme == "https"
    return str(morsel.OutputString())


def _cookies(request: HTTPConnection) -> dict[str, str]:
    # Not request.cookies: some of Gradio's helpers hand over other request classes. Not http.cookies: it gives up
    # all cookies for one that another app on this host wrote in a way of its own.
    return cookie_parser(request.headers.get("cookie", ""))


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
        public, request = scope["path"] in PUBLIC, HTTPConnection(scope)
        if not public and self.door.identify(request) is None:
            wants_page = "text/html" in headers.get("accept", "") and scope.get("method") == "GET"
            target = scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
            page = login_page("", target) if wants_page else None
            await _refuse(
                scope, receive, send, 401, "Log in at /login; this session has ended or never was.", page
            )
            return
        renewal = None if public else self.door.renewal(request)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                if renewal is not None and "set-cookie" not in out:
                    out.append("set-cookie", renewal)
            await send(message)

        await self.app(scope, receive, send_guarded)


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
