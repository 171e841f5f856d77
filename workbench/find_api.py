"""Small JSON endpoints of the Samples page's left side: acts on what a filter selects, views, guidelines, leases.

As those of `workbench.api`, each answers what now holds, or `{"error": text}` with the text of a `PlumbError`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import Field, StrictBool, StrictInt, StrictStr

from storage import queues
from storage.saved_views import delete_view, list_views, save_view
from workbench import bulk_desk, find_form, guidelines
from workbench.addresses import read_address
from workbench.api_bodies import Body, RowId
from workbench.context import Context
from workbench.door import Door

Answer = dict[str, Any]
Search = Annotated[StrictStr, Field(max_length=8000)]


class BulkBody(Body):
    """`count`: as many as the question said; without it, the question is asked."""

    act: StrictStr
    search: Search
    count: StrictInt | None = None


class ViewBody(Body):
    name: Annotated[StrictStr, Field(max_length=1000)]
    search: Search
    shared: StrictBool = False


class GuidelinesBody(Body):
    text: Annotated[StrictStr, Field(max_length=1_000_000)]
    was: Annotated[StrictInt, Field(ge=0)]


class LeaseBody(Body):
    """`on`: the person is at this sample; otherwise they have left the queue."""

    sample: RowId | None = None
    on: StrictBool


def act_on_all(context: Context, user: str, body: BulkBody) -> Answer:
    """The question, or with its count what came of the act."""
    if body.count is None:
        return asdict(bulk_desk.ask(context, user, body.act, body.search))
    return asdict(bulk_desk.do(context, user, body.act, body.search, body.count))


def keep_view(context: Context, user: str, body: ViewBody) -> Answer:
    """Save the filters, order and queue of an address under a name; answers the panel."""
    address = read_address(body.search)
    # Without the sample: a view is what is listed. Without what came before in a queue, too.
    query = (address.queue or address.where).as_query()
    with context.database() as db:
        view = save_view(db, user, body.name, query, body.shared)
        return {"name": view.name, "html": find_form.views_panel(list_views(db, user), user)}


def drop_view(context: Context, user: str, view_id: int) -> Answer:
    """Delete one of the person's views; answers the panel."""
    with context.database() as db:
        delete_view(db, user, view_id)
        return {"html": find_form.views_panel(list_views(db, user), user)}


def write_guidelines(context: Context, user: str, body: GuidelinesBody) -> Answer:
    """Store a new version; answers the fold-out."""
    return {"html": guidelines.save_guidelines(context, user, body.text, body.was)}


def hold(context: Context, user: str, body: LeaseBody) -> Answer:
    """Stay at a queue's sample, or let go; answers whether it is held, and who else has it open."""
    with context.database() as db:
        if not body.on:
            queues.release(db, user)
        if not body.on or body.sample is None:
            return {"held": False, "others": []}
        held = queues.renew(db, user, body.sample)
        return {"held": held, "others": [name for name in queues.holders(db, body.sample) if name != user]}


def routes(context: Context, door: Door) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.post("/bulk")
    def post_bulk(body: BulkBody, request: Request) -> Answer:
        return act_on_all(context, door.asker(request), body)

    @router.post("/views")
    def post_view(body: ViewBody, request: Request) -> Answer:
        return keep_view(context, door.asker(request), body)

    @router.post("/views/{view_id}/delete")
    def post_view_gone(view_id: Annotated[int, Path(ge=1, lt=2**63)], request: Request) -> Answer:
        return drop_view(context, door.asker(request), view_id)

    @router.post("/guidelines")
    def post_guidelines(body: GuidelinesBody, request: Request) -> Answer:
        return write_guidelines(context, door.asker(request), body)

    @router.post("/lease")
    def post_lease(body: LeaseBody, request: Request) -> Answer:
        return hold(context, door.asker(request), body)

    return router
