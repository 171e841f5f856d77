"""`/login`, `/logout` and `/invitation`: plain forms, which work before any script may be loaded."""

from __future__ import annotations

from functools import partial
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from storage import invitations
from storage.database import session
from storage.errors import PlumbError, UserError
from workbench.attempts import TooManyAttempts
from workbench.door import Door, cookie_header
from workbench.login_pages import invitation_page, login_page, plain_page
from workbench.sessions import DEVICE_SECONDS

HASHING = 2  # each takes 64 MiB and a core: a flood of logins shall not take the machine

NO_STORE = {"cache-control": "no-store"}


def routes(door: Door) -> APIRouter:
    router = APIRouter()
    hashing = CapacityLimiter(HASHING)

    @router.get("/login")
    def login_link(request: Request, token: str = "", next: str = "/") -> Response:
        if door.loopback:
            return RedirectResponse(inside(next), 303)
        return by_token(door, request, token, next) if token else _html(login_page("", next), 200)

    @router.post("/login")
    async def login_form(request: Request) -> Response:
        if door.loopback:
            return RedirectResponse("/", 303)
        form = await request.form(max_files=0, max_fields=10)
        token, name, password, target = (str(form.get(one, "")) for one in ("token", "name", "password", "next"))
        if token:
            return by_token(door, request, token, target)
        work = partial(by_password, door, request, name, password, target)
        return await to_thread.run_sync(work, limiter=hashing)

    @router.post("/logout")
    def logout(request: Request) -> Response:
        door.log_out(request)
        response = RedirectResponse("/login", 303, headers=NO_STORE)
        response.delete_cookie(door.cookie, httponly=True, samesite="lax")
        return response

    @router.get("/invitation")
    def invitation_link(key: str = "") -> Response:
        if door.loopback:
            return RedirectResponse("/", 303)
        return _invitation(door, key)

    @router.post("/invitation")
    async def invitation_form(request: Request) -> Response:
        if door.loopback:
            return RedirectResponse("/", 303)
        form = await request.form(max_files=0, max_fields=10)
        key, password, again = (str(form.get(one, "")) for one in ("key", "password", "again"))
        work = partial(take_invitation, door, request, key, password, again)
        return await to_thread.run_sync(work, limiter=hashing)

    return router


def by_token(door: Door, request: Request, token: str, target: str) -> Response:
    """Let the machine's owner in, or tell why not."""
    try:
        value = door.admit(token, _client(request))
    except TooManyAttempts as error:
        return _slow_down(error, login_page(_wait(error), target, by_token=True))
    if value is None:
        text = "This token is not the one that Plumb printed at its last start."
        return _html(login_page(text, target, by_token=True), 401)
    return _let_in(door, request, value, target)


def by_password(door: Door, request: Request, name: str, password: str, target: str) -> Response:
    """Let a person in, or tell no more than that name and password don't go together."""
    try:
        value = door.log_in(name, password, _client(request), request.cookies.get(door.sessions.device_cookie))
    except TooManyAttempts as error:
        return _slow_down(error, login_page(_wait(error), target, name))
    if value is None:
        return _html(login_page("Name and password do not go together.", target, name), 401)
    return _let_in(door, request, value, target)


def take_invitation(door: Door, request: Request, key: str, password: str, again: str) -> Response:
    """Set the password of an invited person, and let them in."""
    if password != again:
        return _invitation(door, key, "The two passwords differ.")
    try:
        with session(door.folder) as db:
            user = invitations.accept(db, door.folder.key(), key, password)
    except PlumbError as error:
        return _invitation(door, key, str(error))
    return _let_in(door, request, door.sessions.begin(user.name, user.era), "/")


def _invitation(door: Door, key: str, problem: str = "") -> Response:
    try:
        with session(door.folder) as db:
            user = invitations.invited(db, door.folder.key(), key)
    except UserError as error:
        return _html(plain_page("Invitation", str(error)), 401)
    return _html(invitation_page(problem, key, user.name), 400 if problem else 200)


def _let_in(door: Door, request: Request, value: str, target: str) -> Response:
    response = RedirectResponse(inside(target), 303, headers=NO_STORE)
    response.headers.append("set-cookie", cookie_header(door, request, value))
    given = door.sessions.read(value)
    if given is not None and not given.by_token:
        response.set_cookie(
            door.sessions.device_cookie,
            door.sessions.device(given.name),
            max_age=DEVICE_SECONDS,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
    return response


def inside(target: str) -> str:
    """A path of this app; whatever could lead to another host becomes the start page."""
    safe = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return quote(target, safe="/?&=%+:,-_.~") if safe else "/"


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def _wait(error: TooManyAttempts) -> str:
    minutes = error.wait / 60
    shown = f"{error.wait:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
    return f"Too many wrong attempts. Wait {shown} and try again; until then the right password is refused too."


def _slow_down(error: TooManyAttempts, page: str) -> Response:
    response = _html(page, 429)
    response.headers["retry-after"] = str(int(error.wait) + 1)
    return response


def _html(page: str, status: int) -> Response:
    return HTMLResponse(page, status, headers=NO_STORE)
