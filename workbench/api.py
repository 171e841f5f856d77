"""Small JSON endpoints for what is saved at a click: scores, pairs, checklists, undo; and a judge asked at once.

Each answers what is now stored, or `{"error": text}` with the text of a `PlumbError`. Setting a score twice to
the same value is harmless, so a browser may send it again after a network failure.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from jobs import desk
from storage import history
from storage.checklists import edit_checklist
from storage.errors import Conflict, DatabaseBusy, NotFound, PlumbError
from storage.pairs import choose_by_hand, flip, list_pairs, set_status
from storage.records import ChecklistItem
from storage.scores import set_score
from workbench import pair_views
from workbench.context import Context
from workbench.door import Door
from workbench.navigation import counts

VERBS: dict[str, Literal["accepted", "rejected", "proposed"]] = {
    "accept": "accepted",
    "reject": "rejected",
    "propose": "proposed",
}

# Judges asked at once by this process. A call takes seconds: more wait in line without holding one of the threads
# that pages and images are served by.
JUDGED_AT_ONCE = 16


# SQLite's integers have 63 bits; a larger number can be no row's id.
RowId = Annotated[StrictInt, Field(ge=1, lt=2**63)]


class ScoreBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    candidate: RowId
    metric: str
    value: StrictInt | None


class PairBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    chosen: RowId
    rejected: RowId


class JudgeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sample: RowId


class ItemBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str
    essential: StrictBool


class ChecklistBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sample: RowId
    items: list[ItemBody]


def save_score(context: Context, user: str, body: ScoreBody) -> dict[str, Any]:
    """Set or clear one of the user's scores; answers the candidate's scores as they now stand."""
    with context.database() as db:
        judgement = set_score(db, user, body.candidate, body.metric, body.value)
    score = next(score for score in judgement.scores if score.candidate_id == body.candidate)
    return {"candidate": body.candidate, "metric": body.metric, "value": score.value(body.metric)}


def save_pair(context: Context, user: str, body: PairBody) -> dict[str, Any]:
    """A pair by hand."""
    with context.database() as db:
        pair = choose_by_hand(db, user, body.chosen, body.rejected)
        return {
            "pair": pair.id,
            "sample": pair.sample_id,
            "chosen": pair.chosen_id,
            "rejected": pair.rejected_id,
            "counts": counts(db),
        }


def change_pair(context: Context, user: str, pair_id: int, verb: str) -> dict[str, Any]:
    """Accept, reject or flip; answers the pair's card as it now looks."""
    with context.database() as db:
        if verb == "flip":
            flip(db, user, pair_id)
        elif verb in VERBS:
            set_status(db, user, [pair_id], VERBS[verb])
        else:
            raise NotFound(f"Nothing named {verb!r} can be done to a pair; use accept, reject, propose or flip.")
        view = list_pairs(db, after=pair_id - 1, limit=1)[0]
        return {"pair": pair_id, "html": pair_views.card(view), "counts": counts(db)}


def judge_now(context: Context, user: str, body: JudgeBody) -> dict[str, Any]:
    """Ask the desk's judge about one sample and wait for it; answers what came of it, `cost` in dollars."""
    outcome = desk.score_now(context.folder, context.settings, body.sample, user)
    return {
        "sample": body.sample,
        "state": outcome.state,
        "reason": outcome.reason,
        "cost": outcome.cost,
        "already": outcome.already,
        "rater": list(outcome.rater),
    }


def save_checklist(context: Context, user: str, body: ChecklistBody) -> dict[str, Any]:
    """The items as the sample's next version; answers the version that now holds."""
    items = [ChecklistItem(item.text, item.essential) for item in body.items]
    with context.database() as db:
        checklist = edit_checklist(db, user, body.sample, items)
    return {"sample": body.sample, "checklist": checklist.id, "version": checklist.version}


def undo(context: Context, user: str) -> dict[str, Any]:
    """Take back the user's latest change, whatever page it was made on."""
    with context.database() as db:
        action = history.undo(db, user)
        return {"undone": action.label, "sample": action.sample_id, "counts": counts(db)}


def routes(context: Context, door: Door) -> APIRouter:
    router = APIRouter(prefix="/api")

    def user(request: Request) -> str:
        name = door.identify(request)
        assert name is not None, "the door lets nobody in without a name"
        return name

    @router.post("/scores")
    def post_score(body: ScoreBody, request: Request) -> dict[str, Any]:
        return save_score(context, user(request), body)

    @router.post("/pairs")
    def post_pair(body: PairBody, request: Request) -> dict[str, Any]:
        return save_pair(context, user(request), body)

    @router.post("/pairs/{pair_id}/{verb}")
    def post_pair_change(
        pair_id: Annotated[int, Path(ge=1, lt=2**63)], verb: str, request: Request
    ) -> dict[str, Any]:
        return change_pair(context, user(request), pair_id, verb)

    judging = CapacityLimiter(JUDGED_AT_ONCE)

    @router.post("/judge")
    async def post_judge(body: JudgeBody, request: Request) -> dict[str, Any]:
        # Goes on to its end where the browser has left meanwhile: what was paid for is stored.
        return await to_thread.run_sync(partial(judge_now, context, user(request), body), limiter=judging)

    @router.post("/checklist")
    def post_checklist(body: ChecklistBody, request: Request) -> dict[str, Any]:
        return save_checklist(context, user(request), body)

    @router.post("/undo")
    def post_undo(request: Request) -> dict[str, Any]:
        return undo(context, user(request))

    return router


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """A `PlumbError` as JSON: its text, under the status that fits it."""
    status = 400
    if isinstance(error, NotFound):
        status = 404
    elif isinstance(error, Conflict):
        status = 409
    elif isinstance(error, DatabaseBusy):
        status = 503
    assert isinstance(error, PlumbError)
    return JSONResponse({"error": str(error)}, status)


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that is not what the endpoint takes: field, value, remedy."""
    assert isinstance(error, RequestValidationError)
    parts = []
    for found in error.errors():
        field = ".".join(str(part) for part in found["loc"] if part not in ("body", "path")) or "the request"
        parts.append(f"{field} = {found.get('input')!r:.80}: {found['msg']}")
    return JSONResponse({"error": "; ".join(parts) + "."}, 422)
