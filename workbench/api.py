"""Small JSON endpoints for what is saved at a key or a click; a judge asked at once; a sample's history and stamp.

Each answers what is now stored, or `{"error": text}` with the text of a `PlumbError`. A browser names each change
by a key of its own, in the header `X-Plumb-Key`: sent again, after a failure of the network say, it is not made
again, and gets the answer of the first time. An answer about a sample has its `stamp`, and the one `before` this
change: where that is not the one that the page knows, somebody else was at the sample meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlite_utils import Database

from jobs import desk
from storage import discarding, history, remarks
from storage.candidates import get_candidate
from storage.checklists import edit_checklist
from storage.errors import Conflict, DatabaseBusy, Forbidden, NotFound, PlumbError, UserError
from storage.own_answers import edit_answer, write_answer
from storage.pairs import choose_by_hand, flip, get_pair, list_pairs, pairs_of_sample, set_status
from storage.queues import holders
from storage.records import METRICS, Action, ChecklistItem
from storage.request_keys import once
from storage.scores import set_score
from storage.suggestions import accept_suggestion, sample_of_judgement
from workbench import pair_views
from workbench.api_bodies import (
    AnswerBody,
    Body,
    ChecklistBody,
    JudgeBody,
    MarkBody,
    NoteBody,
    PairBody,
    PairVerbBody,
    ScoreBody,
    SuggestionBody,
)
from workbench.context import Context
from workbench.door import Door
from workbench.navigation import counts

Answer = dict[str, Any]
Key = Annotated[str, Header(alias="X-Plumb-Key")]
Id = Annotated[int, Path(ge=1, lt=2**63)]

VERBS: dict[str, Literal["accepted", "rejected", "proposed"]] = {
    "accept": "accepted",
    "reject": "rejected",
    "propose": "proposed",
}

# Judges asked at once by this process. A call takes seconds: more wait in line without holding one of the threads
# that pages and images are served by.
JUDGED_AT_ONCE = 16


def _saved(
    db: Database, user: str, key: str, address: str, body: Body | None, change: Callable[[], Answer]
) -> Answer:
    """Make a change once a key."""
    content = json.dumps([address, body.model_dump() if body else None])
    return once(db, user, key, hashlib.sha256(content.encode()).hexdigest(), change)


def _on_sample(db: Database, sample_id: int, change: Callable[[], Answer]) -> Answer:
    """A change of one sample, with its stamps before and after."""
    before = history.stamp(db, sample_id)
    answer = change()
    return {**answer, "sample": sample_id, "before": before, "stamp": history.stamp(db, sample_id)}


def save_score(context: Context, user: str, body: ScoreBody, key: str = "") -> Answer:
    """Set or clear one of the user's scores; answers the score as it now stands."""
    with context.database() as db:

        def change() -> Answer:
            judgement = set_score(db, user, body.candidate, body.metric, body.value)
            score = next(score for score in judgement.scores if score.candidate_id == body.candidate)
            return {"candidate": body.candidate, "metric": body.metric, "value": score.value(body.metric)}

        def made() -> Answer:
            return _on_sample(db, get_candidate(db, body.candidate).sample_id, change)

        return _saved(db, user, key, "scores", body, made)


def save_pair(context: Context, user: str, body: PairBody, key: str = "") -> Answer:
    """A pair by hand.

    Raises:
        Conflict: with `stamp`: somebody else has made or changed the pair of these two since, and this would turn
            it round or take it out of its status.
    """
    with context.database() as db:

        def change() -> Answer:
            _refuse_overwriting(db, user, body)
            pair = choose_by_hand(db, user, body.chosen, body.rejected)
            return {"pair": pair.id, "chosen": pair.chosen_id, "rejected": pair.rejected_id}

        def made() -> Answer:
            return _on_sample(db, get_candidate(db, body.chosen).sample_id, change)

        answer = _saved(db, user, key, "pairs", body, made)
        return {**answer, "counts": counts(db)}


def _refuse_overwriting(db: Database, user: str, body: PairBody) -> None:
    if body.stamp is None:
        return
    for pair in pairs_of_sample(db, get_candidate(db, body.chosen).sample_id):
        if {pair.chosen_id, pair.rejected_id} != {body.chosen, body.rejected}:
            continue
        if pair.chosen_id == body.chosen and pair.status == "accepted":
            continue
        act = history.changed_row_by(db, "pairs", pair.id, body.stamp)
        if act is not None and act.user != user:
            raise Conflict(
                f"{act.user} was here meanwhile (“{act.label}”, pair {pair.id}). Look at it first; "
                "choose again to put yours in its place."
            )


def change_pair(
    context: Context, user: str, pair_id: int, verb: str, body: PairVerbBody | None = None, key: str = ""
) -> Answer:
    """Accept, reject or flip; answers the pair's card as it now looks.

    Raises:
        Conflict: it is no longer as `body` says that the card showed it.
    """
    with context.database() as db:

        def change() -> Answer:
            _refuse_stale(db, pair_id, body)
            if verb == "flip":
                flip(db, user, pair_id)
            elif verb in VERBS:
                set_status(db, user, [pair_id], VERBS[verb])
            else:
                raise NotFound(
                    f"Nothing named {verb!r} can be done to a pair; use accept, reject, propose or flip."
                )
            return {"pair": pair_id}

        def made() -> Answer:
            return _on_sample(db, get_pair(db, pair_id).sample_id, change)

        answer = _saved(db, user, key, f"pairs/{pair_id}/{verb}", body, made)
        view = next(iter(list_pairs(db, after=pair_id - 1, limit=1, viewer=user)), None)
        shown = pair_views.card(view) if view is not None and view.pair.id == pair_id else ""
        return {**answer, "html": shown, "counts": counts(db)}


def _refuse_stale(db: Database, pair_id: int, body: PairVerbBody | None) -> None:
    pair = get_pair(db, pair_id)
    if body is None or (body.was in (None, pair.status) and body.chosen in (None, pair.chosen_id)):
        return
    act = history.changed_row_by(db, "pairs", pair_id)
    who = f" by {act.user} (“{act.label}”)" if act else ""
    raise Conflict(f"Pair {pair_id} has been changed since{who}. Look at it first; then decide again.")


def save_flag(context: Context, user: str, body: MarkBody, key: str = "") -> Answer:
    """Raise or take down the user's flag."""
    return _mark(context, user, body, key, "flag", remarks.set_flag)


def save_skip(context: Context, user: str, body: MarkBody, key: str = "") -> Answer:
    """Pass the sample over in the user's queues, or no longer."""
    return _mark(context, user, body, key, "skip", remarks.set_skip)


def save_discard(context: Context, user: str, body: MarkBody, key: str = "") -> Answer:
    """Take the sample out of use, or back into it."""

    def put(db: Database, user: str, sample_id: int, on: bool) -> bool:
        return (discarding.discard if on else discarding.keep)(db, user, sample_id)

    answer = _mark(context, user, body, key, "discard", put)
    with context.database() as db:
        return {**answer, "counts": counts(db)}


def _mark(
    context: Context,
    user: str,
    body: MarkBody,
    key: str,
    name: str,
    put: Callable[[Database, str, int, bool], bool],
) -> Answer:
    with context.database() as db:

        def change() -> Answer:
            return {"on": body.on, "changed": put(db, user, body.sample, body.on)}

        return _saved(db, user, key, name, body, lambda: _on_sample(db, body.sample, change))


def save_note(context: Context, user: str, body: NoteBody, key: str = "") -> Answer:
    """The user's note on a sample; a blank one takes it away."""
    with context.database() as db:

        def change() -> Answer:
            changed = remarks.set_note(db, user, body.sample, body.text, body.was)
            return {"text": body.text.strip(), "changed": changed}

        return _saved(db, user, key, "note", body, lambda: _on_sample(db, body.sample, change))


def save_answer(context: Context, user: str, body: AnswerBody, key: str = "") -> Answer:
    """An answer of the user's own: new, made of another, or changed in place."""
    if body.edit is not None and body.parent is not None:
        raise UserError("edit and parent: give one of them; an answer is changed in place or made of another.")
    with context.database() as db:

        def change() -> Answer:
            if body.edit is None:
                candidate = write_answer(db, user, body.sample, body.text, body.parent)
            elif get_candidate(db, body.edit).sample_id != body.sample:
                raise UserError(f"edit = {body.edit}: this candidate does not answer sample {body.sample}.")
            else:
                candidate = edit_answer(db, user, body.edit, body.text, body.was)
            return {
                "candidate": candidate.id,
                "text": candidate.text,
                "author": candidate.author,
                "parent": candidate.parent_id,
            }

        return _saved(db, user, key, "answer", body, lambda: _on_sample(db, body.sample, change))


def save_suggestion(context: Context, user: str, body: SuggestionBody, key: str = "") -> Answer:
    """A judge's scores as the user's own, where they have none; answers the user's scores as they now stand."""
    with context.database() as db:

        def change() -> Answer:
            judgement = accept_suggestion(db, user, body.judgement, body.candidate)
            return {
                "scores": [
                    {"candidate": score.candidate_id, "metric": metric, "value": score.value(metric)}
                    for score in judgement.scores
                    if body.candidate in (None, score.candidate_id)
                    for metric in METRICS
                ]
            }

        def made() -> Answer:
            return _on_sample(db, sample_of_judgement(db, body.judgement), change)

        return _saved(db, user, key, "suggestion", body, made)


def judge_now(context: Context, user: str, body: JudgeBody) -> Answer:
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


def save_checklist(context: Context, user: str, body: ChecklistBody, key: str = "") -> Answer:
    """The items as the sample's next version; answers the version that now holds."""
    items = [ChecklistItem(item.text, item.essential) for item in body.items]
    with context.database() as db:

        def change() -> Answer:
            checklist = edit_checklist(db, user, body.sample, items)
            return {"checklist": checklist.id, "version": checklist.version}

        return _saved(db, user, key, "checklist", body, lambda: _on_sample(db, body.sample, change))


def undo(context: Context, user: str, key: str = "") -> Answer:
    """Take back the user's latest change, whatever page it was made on."""
    return _step(context, user, key, "undone", history.undo)


def redo(context: Context, user: str, key: str = "") -> Answer:
    """Make the change again that the user took back last."""
    return _step(context, user, key, "redone", history.redo)


def _step(context: Context, user: str, key: str, name: str, step: Callable[[Database, str], Action]) -> Answer:
    with context.database() as db:

        def change() -> Answer:
            action = step(db, user)
            stamps = {} if action.sample_id is None else {"stamp": history.stamp(db, action.sample_id)}
            return {name: action.label, "sample": action.sample_id, **stamps}

        return {**_saved(db, user, key, name, None, change), "counts": counts(db)}


def sample_history(context: Context, sample_id: int, limit: int) -> Answer:
    """Who did what to the sample and when, the latest first."""
    with context.database() as db:
        remarks.need_sample(db, sample_id)
        acts = history.sample_history(db, sample_id, limit)
    return {"sample": sample_id, "acts": [asdict(act) for act in acts]}


def sample_stamp(context: Context, user: str, sample_id: int, since: str) -> Answer:
    """The sample's stamp, who has it open just now, and who else has changed it since it had the stamp `since`."""
    with context.database() as db:
        remarks.need_sample(db, sample_id)
        return {
            "sample": sample_id,
            "stamp": history.stamp(db, sample_id),
            "holders": [name for name in holders(db, sample_id) if name != user],
            "changed_by": ", ".join(history.changed_by(db, sample_id, since, but=user)) if since else "",
        }


def routes(context: Context, door: Door) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.post("/scores")
    def post_score(body: ScoreBody, request: Request, key: Key = "") -> Answer:
        return save_score(context, door.asker(request), body, key)

    @router.post("/pairs")
    def post_pair(body: PairBody, request: Request, key: Key = "") -> Answer:
        return save_pair(context, door.asker(request), body, key)

    @router.post("/pairs/{pair_id}/{verb}")
    def post_pair_change(
        pair_id: Id, verb: str, request: Request, body: PairVerbBody | None = None, key: Key = ""
    ) -> Answer:
        return change_pair(context, door.asker(request), pair_id, verb, body, key)

    @router.post("/flag")
    def post_flag(body: MarkBody, request: Request, key: Key = "") -> Answer:
        return save_flag(context, door.asker(request), body, key)

    @router.post("/note")
    def post_note(body: NoteBody, request: Request, key: Key = "") -> Answer:
        return save_note(context, door.asker(request), body, key)

    @router.post("/skip")
    def post_skip(body: MarkBody, request: Request, key: Key = "") -> Answer:
        return save_skip(context, door.asker(request), body, key)

    @router.post("/discard")
    def post_discard(body: MarkBody, request: Request, key: Key = "") -> Answer:
        return save_discard(context, door.asker(request), body, key)

    @router.post("/answer")
    def post_answer(body: AnswerBody, request: Request, key: Key = "") -> Answer:
        return save_answer(context, door.asker(request), body, key)

    @router.post("/suggestion")
    def post_suggestion(body: SuggestionBody, request: Request, key: Key = "") -> Answer:
        return save_suggestion(context, door.asker(request), body, key)

    judging = CapacityLimiter(JUDGED_AT_ONCE)

    @router.post("/judge")
    async def post_judge(body: JudgeBody, request: Request) -> Answer:
        # Goes on to its end where the browser has left meanwhile: what was paid for is stored.
        return await to_thread.run_sync(partial(judge_now, context, door.asker(request), body), limiter=judging)

    @router.post("/checklist")
    def post_checklist(body: ChecklistBody, request: Request, key: Key = "") -> Answer:
        return save_checklist(context, door.asker(request), body, key)

    @router.post("/undo")
    def post_undo(request: Request, key: Key = "") -> Answer:
        return undo(context, door.asker(request), key)

    @router.post("/redo")
    def post_redo(request: Request, key: Key = "") -> Answer:
        return redo(context, door.asker(request), key)

    @router.get("/sample/{sample_id}/history")
    def get_history(sample_id: Id, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Answer:
        return sample_history(context, sample_id, limit)

    @router.get("/sample/{sample_id}/stamp")
    def get_stamp(sample_id: Id, request: Request, since: Annotated[str, Query(max_length=100)] = "") -> Answer:
        return sample_stamp(context, door.asker(request), sample_id, since)

    return router


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """A `PlumbError` as JSON: its text, under the status that fits it."""
    status = 400
    if isinstance(error, NotFound):
        status = 404
    elif isinstance(error, Conflict):
        status = 409
    elif isinstance(error, Forbidden):
        status = 403
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
