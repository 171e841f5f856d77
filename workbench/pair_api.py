"""One JSON endpoint of the Pairs page: acts on all that its filter selects. Errors as in `workbench.api`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from workbench import pair_desk
from workbench.context import Context
from workbench.door import Door
from workbench.find_api import BulkBody
from workbench.navigation import counts


def routes(context: Context, door: Door) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.post("/pairs/bulk")
    def post_pairs(body: BulkBody, request: Request) -> dict[str, Any]:
        return act_on_pairs(context, door.asker(request), body)

    return router


def act_on_pairs(context: Context, user: str, body: BulkBody) -> dict[str, Any]:
    """The question, or with its count what came of the act."""
    if body.count is None:
        return asdict(pair_desk.ask(context, body.act, body.search))
    done = asdict(pair_desk.do(context, user, body.act, body.search, body.count))
    with context.database() as db:
        return {**done, "counts": counts(db)}
