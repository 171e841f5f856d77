"""Raters, judgements and their scores. A judge's score never touches a person's: they are other rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from sqlite_utils import Database

from storage import history
from storage.candidates import get_candidate
from storage.database import immediate
from storage.errors import UserError
from storage.records import HIGHEST, LOWEST, METRICS, Judgement, JudgementState, Point, Rater, Score, now
from storage.rows import marks, one, rows


def ensure_rater(
    db: Database, kind: Literal["person", "judge"], name: str, version: str = "", mode: str = ""
) -> int:
    """The rater's id; made on first sight."""
    key = [kind, name, version, mode]
    db.conn.execute("INSERT OR IGNORE INTO raters (kind, name, version, mode) VALUES (?, ?, ?, ?)", key)
    found = one(db, "SELECT id FROM raters WHERE kind = ? AND name = ? AND version = ? AND mode = ?", key)
    assert found is not None  # inserted one line above, in the same transaction
    return int(found["id"])


def set_score(db: Database, user: str, candidate_id: int, metric: str, value: int | None) -> Judgement:
    """Set, change or clear (None) one of the user's own scores; undoable. Returns the user's judgement.

    A value that stands there already makes no act.

    Raises:
        UserError: an unknown metric, or a value that is not a whole number from 0 to 4.
        NotFound: there is no such candidate.
    """
    if metric not in METRICS:
        raise UserError(f"Unknown metric {metric!r}; use one of {', '.join(METRICS)}.")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise UserError(f"{metric} = {value!r}: give a whole number from {LOWEST} to {HIGHEST}.")
    if value is not None and not LOWEST <= value <= HIGHEST:
        raise UserError(f"{metric} = {value}: give a whole number from {LOWEST} to {HIGHEST}.")
    with immediate(db):
        sample_id = get_candidate(db, candidate_id).sample_id
        found = one(
            db,
            f"SELECT s.judgement_id, s.{metric} AS value FROM scores s JOIN judgements j ON j.id = s.judgement_id"
            " JOIN raters r ON r.id = j.rater_id WHERE s.candidate_id = ? AND r.kind = 'person' AND r.name = ?",
            [candidate_id, user],
        )
        if found is not None and found["value"] == value:  # sent twice, say: no act that an undo would take back
            return get_judgements(db, [sample_id], found["judgement_id"])[sample_id][0]
        shown = "cleared" if value is None else str(value)
        with history.action(db, user, f"{metric} {shown} for candidate {candidate_id}", sample_id) as change:
            judgement_id = person_judgement(db, change, user, sample_id)
            key = {"judgement_id": judgement_id, "candidate_id": candidate_id}
            change.upsert("scores", key, {metric: value})
        return get_judgements(db, [sample_id], judgement_id)[sample_id][0]


def person_judgement(db: Database, change: history.Recorder, user: str, sample_id: int) -> int:
    """The id of the person's one judgement of a sample; made, as part of the action, where there is none."""
    rater_id = ensure_rater(db, "person", user)
    found = one(
        db,
        "SELECT id FROM judgements WHERE rater_id = ? AND sample_id = ? ORDER BY id LIMIT 1",
        [rater_id, sample_id],
    )
    if found:
        return int(found["id"])
    return change.insert(
        "judgements", {"rater_id": rater_id, "sample_id": sample_id, "state": "ok", "created_at": now()}
    )


def add_judgement(
    db: Database,
    *,
    rater_id: int,
    sample_id: int,
    job_id: int | None,
    state: JudgementState,
    raw: str = "",
    reason: str = "",
    scores: Iterable[dict[str, Any]] = (),
    tokens_in: int = 0,
    tokens_out: int = 0,
    cost: float = 0.0,
    key: str = "",
    note: str = "",
    checklist_id: int | None = None,
    asked_by: str | None = None,
    points: Iterable[dict[str, Any]] = (),
) -> int | None:
    """Store a judge's call with its scores; None if this job has judged the sample already.

    Args:
        scores: of each candidate {candidate_id, five metrics, position}; position may be missing.
        key: names what was judged, see `jobs.judges.identity`.
        note: what the reader of the scores should know (an image was made smaller, say).
        points: {candidate_id, number, met} of each item of the checklist.
        asked_by: the person who had this sample judged, where no job did.
    """
    cursor = db.conn.execute(
        "INSERT OR IGNORE INTO judgements"
        " (rater_id, sample_id, job_id, state, raw, reason, tokens_in, tokens_out, cost, key, note, checklist_id,"
        " asked_by, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            rater_id,
            sample_id,
            job_id,
            state,
            raw,
            reason,
            tokens_in,
            tokens_out,
            cost,
            key,
            note,
            checklist_id,
            asked_by,
            now(),
        ],
    )
    if cursor.rowcount == 0:
        return None
    judgement_id = int(cursor.lastrowid or 0)
    columns = ("candidate_id", *METRICS, "position")
    db.conn.executemany(
        f"INSERT INTO scores (judgement_id, {', '.join(columns)}) VALUES (?, {marks(columns)})",
        [[judgement_id, *({"position": None, **score}[column] for column in columns)] for score in scores],
    )
    db.conn.executemany(
        "INSERT INTO checklist_points (judgement_id, candidate_id, number, met) VALUES (?, ?, ?, ?)",
        [[judgement_id, point["candidate_id"], point["number"], int(point["met"])] for point in points],
    )
    return judgement_id


def get_judgements(
    db: Database, sample_ids: Sequence[int], judgement_id: int | None = None
) -> dict[int, list[Judgement]]:
    """All judgements of these samples with their scores, oldest first; or only the one with this id."""
    found: dict[int, list[Judgement]] = {sample_id: [] for sample_id in sample_ids}
    for start in range(0, len(sample_ids), 500):
        part = list(sample_ids[start : start + 500])
        only = "" if judgement_id is None else f" AND j.id = {int(judgement_id)}"
        scores: dict[int, list[Score]] = {}
        for row in rows(
            db,
            f"SELECT s.* FROM scores s JOIN judgements j ON j.id = s.judgement_id"
            f" WHERE j.sample_id IN ({marks(part)}){only} ORDER BY s.candidate_id",
            part,
        ):
            scores.setdefault(row.pop("judgement_id"), []).append(Score(**row))
        points: dict[int, list[Point]] = {}
        for row in rows(
            db,
            f"SELECT p.* FROM checklist_points p JOIN judgements j ON j.id = p.judgement_id"
            f" WHERE j.sample_id IN ({marks(part)}){only} ORDER BY p.candidate_id, p.number",
            part,
        ):
            point = Point(row["candidate_id"], row["number"], bool(row["met"]))
            points.setdefault(row["judgement_id"], []).append(point)
        for row in rows(
            db,
            f"""SELECT j.*, r.kind, r.name, r.version, r.mode FROM judgements j
                JOIN raters r ON r.id = j.rater_id
                WHERE j.sample_id IN ({marks(part)}){only} ORDER BY j.id""",
            part,
        ):
            rater = Rater(row.pop("rater_id"), *(row.pop(name) for name in ("kind", "name", "version", "mode")))
            found[row["sample_id"]].append(
                Judgement(
                    rater=rater,
                    scores=tuple(scores.get(row["id"], ())),
                    points=tuple(points.get(row["id"], ())),
                    **row,
                )
            )
    return found


def latest_ok(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Each rater's latest judgement that is ok, in the order of the raters' ids (pure)."""
    latest: dict[int, Judgement] = {}
    for judgement in judgements:
        known = latest.get(judgement.rater.id)
        if judgement.state == "ok" and (known is None or judgement.id > known.id):
            latest[judgement.rater.id] = judgement
    return [latest[rater_id] for rater_id in sorted(latest)]


def list_raters(db: Database) -> list[Rater]:
    return [Rater(**row) for row in rows(db, "SELECT * FROM raters ORDER BY kind DESC, id")]


def judged_fully(db: Database, rater: tuple[str, str, str]) -> set[int]:
    """Samples whose every candidate has an ok judgement of this judge (name, version, mode)."""
    return {
        row["id"]
        for row in rows(
            db,
            """SELECT s.id FROM samples s
               WHERE EXISTS (SELECT 1 FROM candidates c WHERE c.sample_id = s.id)
               AND NOT EXISTS (
                 SELECT 1 FROM candidates c WHERE c.sample_id = s.id AND NOT EXISTS (
                   SELECT 1 FROM scores x JOIN judgements j ON j.id = x.judgement_id
                   JOIN raters r ON r.id = j.rater_id
                   WHERE x.candidate_id = c.id AND j.state = 'ok' AND r.kind = 'judge'
                   AND r.name = ? AND r.version = ? AND r.mode = ?))""",
            list(rater),
        )
    }


def states_by_key(db: Database, rater: tuple[str, str, str]) -> dict[str, JudgementState]:
    """The state under each key of this judge (name, version, mode): ok if one is, else the latest."""
    return {
        row["key"]: row["state"]
        for row in rows(
            db,
            """SELECT j.key, j.state FROM judgements j JOIN raters r ON r.id = j.rater_id
               WHERE r.kind = 'judge' AND r.name = ? AND r.version = ? AND r.mode = ? AND j.key <> ''
               ORDER BY j.state = 'ok', j.id""",
            list(rater),
        )
    }


def has_ok(db: Database, key: str) -> bool:
    """Whether a judgement under this key is ok."""
    return one(db, "SELECT 1 FROM judgements WHERE key = ? AND state = 'ok' LIMIT 1", [key]) is not None


def mean_tokens(db: Database, rater: tuple[str, str, str], least: int = 20) -> tuple[float, float] | None:
    """Mean tokens (in, out) of this judge's ok judgements, or None where there are fewer than `least`."""
    found = one(
        db,
        """SELECT count(*) AS n, avg(j.tokens_in) AS tokens_in, avg(j.tokens_out) AS tokens_out
           FROM judgements j JOIN raters r ON r.id = j.rater_id
           WHERE r.kind = 'judge' AND r.name = ? AND r.version = ? AND r.mode = ?
           AND j.state = 'ok' AND j.tokens_in > 0""",
        list(rater),
    )
    assert found is not None  # an aggregate always has a row
    return (found["tokens_in"], found["tokens_out"]) if found["n"] >= least else None
