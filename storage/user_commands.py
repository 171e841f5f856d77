"""`python -m storage users`: add, list, role, remove, password. A password never stands among the arguments."""

from __future__ import annotations

import dataclasses
import getpass
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from sqlite_utils import Database

from storage import users
from storage.database import migrate, session
from storage.errors import UserError
from storage.folder import DataFolder, default_folder
from storage.invitations import invite

app = typer.Typer(help="Who may come in, and what they may do.", no_args_is_help=True, add_completion=False)

Data = Annotated[Path | None, typer.Option("--data", help="the data folder [PLUMB_DATA]")]
Name = Annotated[str, typer.Argument(help="the person's name, as it stands beside their work")]
FromInput = Annotated[bool, typer.Option("--password-stdin", help="read the password from standard input")]
Invite = Annotated[bool, typer.Option("--invite", help="print a link that lets the person set a password, once")]
Address = Annotated[str, typer.Option(help="Plumb's address for the link, as https://plumb.example")]
RoleOf = Annotated[str, typer.Option("--role", help=", ".join(users.ROLES))]


@app.command()
def add(
    name: Name,
    role: RoleOf = "annotator",
    password_stdin: FromInput = False,
    invitation: Invite = False,
    address: Address = "",
    again: Annotated[bool, typer.Option("--again", help="a removed name: it is the same person")] = False,
    data: Data = None,
) -> None:
    """Add a person, with a password or with an invitation."""
    folder = _opened(data)
    users.read_role(role)
    name = users.clean_name(name)
    password = None if invitation else _password(password_stdin)
    with session(folder) as db:
        made = users.add_user(db, name, role, password, again)
        print(f"{made.name} may come in as {made.role}.")
        if invitation:
            _print_link(db, folder, made.name, address)


@app.command("list")
def list_(
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    removed: Annotated[bool, typer.Option("--removed", help="those too who were removed")] = False,
) -> None:
    """Everybody, with role and way in."""
    with session(_opened(data)) as db:
        found = users.list_users(db, removed)
    if as_json:
        print(json.dumps([dataclasses.asdict(user) for user in found], ensure_ascii=False))
        return
    for user in found:
        way = "removed" if user.deleted_at else "password" if user.has_password else "no password"
        print(f"{user.role:>10}  {way:<11}  {user.created_at[:10]}  {user.name}")
    if not found:
        print("Nobody yet: python -m storage users add NAME --role admin")


@app.command()
def role(name: Name, role: Annotated[str, typer.Argument(help=", ".join(users.ROLES))], data: Data = None) -> None:
    """Give a person another role; it holds from their next request on."""
    with session(_opened(data)) as db:
        print(f"{name} is {users.set_role(db, name, role).role} now.")


@app.command()
def remove(name: Name, data: Data = None) -> None:
    """Shut a person out at once; what they did stays under their name."""
    with session(_opened(data)) as db:
        users.remove_user(db, name)
    print(f"{name} is removed and logged out everywhere. Their work stays.")


@app.command()
def password(
    name: Name,
    password_stdin: FromInput = False,
    invitation: Invite = False,
    address: Address = "",
    data: Data = None,
) -> None:
    """Set a person's password, or print a link by which they do; ends their sessions."""
    folder = _opened(data)
    with session(folder) as db:
        users.get_user(db, name)
        if invitation:
            _print_link(db, folder, name, address)
            return
    given = _password(password_stdin)
    with session(folder) as db:
        users.set_password(db, name, given)
    print(f"{name} has a new password and is logged out everywhere.")


def _opened(data: Path | None) -> DataFolder:
    folder = (DataFolder(data.expanduser().resolve()) if data else default_folder()).create()
    migrate(folder)
    return folder


def _password(from_input: bool) -> str:
    if from_input:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UserError("password: there is no terminal to ask at; use --password-stdin or --invite.")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != first:
        raise UserError("password: the two differ; nothing was changed.")
    return first


def _print_link(db: Database, folder: DataFolder, name: str, address: str) -> None:
    print(f"{address.rstrip('/')}{invite(db, folder.key(), name)}")
    where = "" if address else "; put Plumb's address before it"
    print(f"This link lets {name} set a password, once, within seven days{where}.")
