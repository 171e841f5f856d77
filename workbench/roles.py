"""Who may do what: each handler of the pages and each route of the API needs at least a role, and is asked for it.

Denied by default: what stands in no list of workbench/role_table.py is the admins' alone, and tests/test_roles.py
fails on it. The check sits where Gradio and FastAPI call the function, whichever way the call came (a click, the
queue, a request written by hand), and reads the person's role at that moment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from fastapi import APIRouter, Request
from gradio.blocks import BlockFunction
from starlette.requests import HTTPConnection

from storage.errors import Forbidden
from storage.users import Role, may
from workbench.context import Person, asking
from workbench.door import PUBLIC, Door
from workbench.role_table import LEAST, SELECTORS

_PACKAGE = "workbench."


def name_of(handler: Callable[..., Any]) -> str:
    """How the table calls a function: module in workbench, a dot, its name; of a lambda, its maker's too."""
    bare: Any = handler
    while isinstance(bare, functools.partial) or hasattr(bare, "__wrapped__"):
        bare = bare.func if isinstance(bare, functools.partial) else bare.__wrapped__
    module = str(getattr(bare, "__module__", "")).removeprefix(_PACKAGE)
    parts = [part for part in str(getattr(bare, "__qualname__", bare)).split(".") if part != "<locals>"]
    return ".".join([module, *(parts[-2:] if parts[-1] == "<lambda>" else parts[-1:])])


def least_role(handler: Callable[..., Any]) -> Role:
    """The role that calling it needs."""
    return LEAST.get(name_of(handler), "admin")


def refuse_unless(role: Role, least: Role) -> None:
    """Raise `Forbidden` where the role is too small."""
    if not may(role, least):
        raise Forbidden(reason(role, least))


def reason(role: Role, least: Role) -> str:
    """Why somebody may not, and who can change that."""
    needed = "an admin" if least == "admin" else f"a {least}"
    mine = f"an {role}" if role[0] in "aeiou" else f"a {role}"
    return f"This needs {needed}; you are {mine}. An admin can give you the role, on the People page."


def guard(door: Door) -> Callable[[Request], Any]:
    """The dependency of every route of the API: the endpoint's least role."""

    async def enough(request: Request) -> None:
        if request.url.path in PUBLIC:
            return
        person = door.person(request)
        if person is None:
            raise Forbidden("This session has ended. Log in again.")
        refuse_unless(person.role, least_role(request.scope["endpoint"]))

    return enough


def guard_events(root: gr.Blocks, door: Door) -> None:
    """Ask for the role before each event of the pages, and tell the pages what to show as not allowed."""
    process = root.process_api

    async def process_allowed(
        block_fn: BlockFunction | int, *more: Any, request: Any = None, **named: Any
    ) -> dict[str, Any]:
        handler = root.fns[block_fn] if isinstance(block_fn, int) else block_fn
        asked = request if isinstance(request, list) else [request]
        for one in asked:
            try:
                asking.set(_check(door, handler, one))
            except Forbidden as error:
                raise gr.Error(str(error), title="Not allowed", duration=None, print_exception=False) from error
        return await process(block_fn, *more, request=request, **named)

    root.process_api = process_allowed
    door.elements.clear()
    door.elements.update(_elements(root))


def _check(door: Door, handler: BlockFunction, request: Any) -> Person | None:
    if handler.fn is None:
        return None
    # gr.Request holds the one that came by the wire; a call that came by none has no person.
    wire = getattr(request, "request", request)
    person = door.person(wire) if isinstance(wire, HTTPConnection) else None
    if person is None:
        raise Forbidden("This session has ended. Reload the page and log in again.")
    refuse_unless(person.role, least_role(handler.fn))
    return person


def handlers(root: gr.Blocks) -> Iterator[BlockFunction]:
    """Every event of the pages that runs something on the server."""
    return (one for one in root.fns.values() if one.fn is not None)


def _elements(root: gr.Blocks) -> dict[str, Role]:
    """CSS selectors of what a person of a smaller role sees dimmed, with the role that it needs.

    Of an element with several handlers the smallest counts: the others are refused when they are called.
    """
    found: dict[str, Role] = {}
    for one in handlers(root):
        least = least_role(one.fn)
        for number, event in one.targets:
            if number is None or event not in ("click", "submit", "input", "upload", "select"):
                continue
            block = root.blocks.get(number)
            selector = f"#{getattr(block, 'elem_id', None) or f'component-{number}'}"
            found[selector] = least if selector not in found or may(found[selector], least) else found[selector]
    return {selector: least for selector, least in {**found, **SELECTORS}.items() if least != "annotator"}


def routes(door: Door) -> APIRouter:
    """Who one is, and what one may not do here; the pages ask once."""
    router = APIRouter(prefix="/api")

    @router.get("/me")
    def me(request: Request) -> dict[str, Any]:
        person = door.person(request)
        assert person is not None, "the door lets nobody in without a name"
        denied: dict[str, list[str]] = {}
        for selector, least in door.elements.items():
            if not may(person.role, least):
                denied.setdefault(reason(person.role, least), []).append(selector)
        return {"name": person.name, "role": person.role, "login": not door.loopback, "denied": denied}

    return router
