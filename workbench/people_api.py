"""What the People page asks for: invite, new link, role, log out, remove; and one's own password."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from storage import users
from storage.database import immediate
from storage.errors import Conflict, UserError
from storage.invitations import invite
from storage.passwords import LONGEST
from workbench import people_views
from workbench.attempts import TooManyAttempts
from workbench.context import Context
from workbench.door import Door, Person, cookie_header

Answer = dict[str, Any]


class NameBody(BaseModel):
    """Whom it is about."""

    name: str = Field(max_length=1000)


class RoleBody(NameBody):
    """A person and a role."""

    role: str = Field(max_length=100)


class InviteBody(RoleBody):
    """A newcomer; `again`: a removed name is the same person."""

    again: str = Field("", max_length=10)


class PasswordBody(BaseModel):
    """One's own; `old` is not needed where none was."""

    old: str = Field("", max_length=4 * LONGEST)
    new: str = Field(max_length=4 * LONGEST)


def shown(context: Context, person: Person, said: str = "", link: str = "") -> str:
    """The page as the person sees it now."""
    everybody: list[users.User] = []
    if person.role == "admin":
        with context.database() as db:
            everybody = users.list_users(db, removed=True)
    return people_views.page(person, context.asks_login, everybody, said, link)


def add(context: Context, body: InviteBody) -> tuple[str, str]:
    """A newcomer's way in: what was done, and the path of the link."""
    with context.database() as db, immediate(db):
        user = users.add_user(db, body.name, body.role, again=bool(body.again))
        path = invite(db, context.folder.key(), user.name)
    return f"{user.name} may come in as {user.role}.", path


def new_link(context: Context, body: NameBody) -> tuple[str, str]:
    """Another link for somebody who is here: to a first password, or to one in a forgotten one's place."""
    with context.database() as db, immediate(db):
        path = invite(db, context.folder.key(), body.name)
    return f"{body.name} is logged out everywhere and can set a password.", path


def change_role(context: Context, me: str, body: RoleBody) -> str:
    """Give somebody else another role.

    Raises:
        Conflict: it is one's own: the last admin would shut the door behind them.
    """
    if body.name == me:
        raise Conflict("role: you cannot change your own; another admin can, or `python -m storage users role`.")
    with context.database() as db:
        user = users.set_role(db, body.name, body.role)
    return f"{user.name} is {user.role} from now on."


def remove(context: Context, me: str, body: NameBody) -> str:
    """Shut somebody else out."""
    if body.name == me:
        raise Conflict("name: you cannot remove yourself; another admin can, or `python -m storage users remove`.")
    with context.database() as db, immediate(db):
        users.remove_user(db, body.name)
    return f"{body.name} is removed; what they did stays."


def log_out(context: Context, body: NameBody) -> str:
    """End all sessions of a person."""
    with context.database() as db:
        users.end_sessions(db, body.name)
    return f"{body.name} is logged out everywhere."


def change_password(door: Door, context: Context, name: str, body: PasswordBody, client: str) -> str:
    """Answers a new session's cookie: the earlier ones have ended.

    Raises:
        UserError: the old password is wrong, or the new one cannot be used.
        Conflict: too many wrong ones; nothing was looked at.
    """
    with context.database() as db:
        needed = users.get_user(db, name).has_password
    if needed:
        try:
            known = door.log_in(name, body.old, client)
        except TooManyAttempts as error:
            raise Conflict(
                f"Too many wrong attempts. Wait {error.wait / 60:.0f} minutes and try again."
            ) from error
        if known is None:
            raise UserError("Password until now: this is not it. Nothing was changed.")
    with context.database() as db:
        users.set_password(db, name, body.new)
    return door.session_for(name)


def routes(context: Context, door: Door) -> APIRouter:
    router = APIRouter(prefix="/api")

    def person(request: Request) -> Person:
        found = door.person(request)
        assert found is not None, "the door lets nobody in without a name"
        return found

    def answer(request: Request, said: str, path: str = "") -> Answer:
        link = f"{str(request.base_url).rstrip('/')}{path}" if path else ""
        me = door.person(request)  # who has just logged themselves out is nobody any more
        return {"said": said, "html": shown(context, me, said, link) if me else "", "gone": me is None}

    @router.post("/people/invite")
    def post_invite(body: InviteBody, request: Request) -> Answer:
        return answer(request, *add(context, body))

    @router.post("/people/link")
    def post_link(body: NameBody, request: Request) -> Answer:
        return answer(request, *new_link(context, body))

    @router.post("/people/role")
    def post_role(body: RoleBody, request: Request) -> Answer:
        return answer(request, change_role(context, person(request).name, body))

    @router.post("/people/remove")
    def post_remove(body: NameBody, request: Request) -> Answer:
        return answer(request, remove(context, person(request).name, body))

    @router.post("/people/logout")
    def post_log_out(body: NameBody, request: Request) -> Answer:
        return answer(request, log_out(context, body))

    @router.post("/me/password")
    def post_password(body: PasswordBody, request: Request, response: Response) -> Answer:
        me = person(request)
        if door.loopback:
            raise UserError("password: nobody logs in here; Plumb answers to this machine alone.")
        client = request.client.host if request.client else ""
        value = change_password(door, context, me.name, body, client)
        response.headers.append("set-cookie", cookie_header(door, request, value))
        said = "Your password is changed. Other browsers are logged out."
        return {"said": said, "html": shown(context, me, said), "gone": False}

    return router
