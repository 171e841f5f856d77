"""A judge's scores, shown as suggestions: a person takes them over where they have given none themselves."""

from __future__ import annotations

from sqlite_utils import Database

from storage import history
from storage.database import immediate
from storage.errors import Conflict, NotFound, UserError
from storage.records import METRICS, Judgement
from storage.rows import Row, one, rows
from storage.scores import get_judgements, person_judgement


def accept_suggestion(db: Database, user: str, judgement_id: int, candidate_id: int | None = None) -> Judgement:
    """Copy a judge's scores into the person's, where they have none; one undoable action.

    Args:
        candidate_id: for this answer alone; None: for every answer that the judge scored.

    Returns:
        The person's judgement of the sample.

    Raises:
        NotFound: there is no such judgement.
        UserError: it is a person's, or gives no scores for what was asked.
        Conflict: the person has scored all of it already.
    """
    with immediate(db):
        found = _judgement(db, judgement_id)
        if found["kind"] != "judge":
            raise UserError(f"Judgement {judgement_id} is {found['name']}'s own; only a judge's can be accepted.")
        where = "" if candidate_id is None else f" (candidate {candidate_id})"
        suggested = [
            row
            for row in rows(
                db, "SELECT * FROM scores WHERE judgement_id = ? ORDER BY candidate_id", [judgement_id]
            )
            if candidate_id in (None, row["candidate_id"])
        ]
        if found["state"] != "ok" or not suggested:
            raise UserError(f"{found['name']} gives no scores here{where}: there is nothing to accept.")
        sample_id = found["sample_id"]
        own = {
            row["candidate_id"]: row
            for row in rows(
                db,
                "SELECT s.* FROM scores s JOIN judgements j ON j.id = s.judgement_id"
                " JOIN raters r ON r.id = j.rater_id WHERE j.sample_id = ? AND r.kind = 'person' AND r.name = ?",
                [sample_id, user],
            )
        }
        missing = {
            row["candidate_id"]: values
            for row in suggested
            if (
                values := {
                    metric: row[metric]
                    for metric in METRICS
                    if row[metric] is not None and own.get(row["candidate_id"], {}).get(metric) is None
                }
            )
        }
        if not missing:
            raise Conflict(
                f"You have scored all of this yourself{where}; {found['name']}'s scores change nothing."
            )
        what = f"candidate {next(iter(missing))}" if len(missing) == 1 else f"{len(missing)} answers"
        label = f"{found['name']}'s scores of {what} accepted"
        with history.action(db, user, label, sample_id) as change:
            own_id = person_judgement(db, change, user, sample_id)
            for number, values in missing.items():
                change.upsert("scores", {"judgement_id": own_id, "candidate_id": number}, values)
        return get_judgements(db, [sample_id], own_id)[sample_id][0]


def sample_of_judgement(db: Database, judgement_id: int) -> int:
    """The id of the sample that was judged. Raises NotFound."""
    return int(_judgement(db, judgement_id)["sample_id"])


def _judgement(db: Database, judgement_id: int) -> Row:
    found = one(
        db,
        "SELECT j.sample_id, j.state, r.kind, r.name FROM judgements j JOIN raters r ON r.id = j.rater_id"
        " WHERE j.id = ?",
        [judgement_id],
    )
    if found is None:
        raise NotFound(f"There is no judgement {judgement_id} (any more); reload the sample.")
    return found
