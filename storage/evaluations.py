"""Evaluations: a model's answers to a benchmark's items, and what graders made of them.

What is asked is kept once for all models (`item_sets`, known by a fingerprint). Answers come one by one as a job
tells them; a grading is one grader's grades of all items, and an evaluation may have several: grading again with
another judge generates nothing. Official judgment files come as evaluations without answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import NotFound, UserError
from storage.records import Job, now
from storage.rows import one, rows, with_json
from storage.users import ensure_user

Row = Mapping[str, Any]

PURPOSES = ("reporting", "selection")


@dataclass(frozen=True)
class Evaluation:
    """One model on one benchmark.

    Attributes:
        job_id: that answers; None where an official file brought the grades.
        set_id: what is asked; None without items.
        model, adapter_id: who answers; of an endpoint MODEL@ENDPOINT.
        label: as the table names the model: a base, an adapter, an endpoint's model or the file's.
        settings: {"purpose", "limit", "max_new_tokens", "seed", …}.
        items, answers: how many there are; an answer is of one question.
    """

    id: int
    job_id: int | None
    benchmark: str
    set_id: int | None
    model: str
    adapter_id: int | None
    label: str
    settings: dict[str, Any]
    user: str
    created_at: str
    items: int
    answers: int

    @property
    def purpose(self) -> str:
        return str(self.settings.get("purpose", "reporting"))


@dataclass(frozen=True)
class Grading:
    """One grader's grades of an evaluation. `cost`: dollars. `grades`, `failures`: items with and without one."""

    id: int
    evaluation_id: int
    job_id: int | None
    grader: str
    cost: float
    created_at: str
    grades: int
    failures: int


@dataclass(frozen=True)
class Grade:
    """One item's grade, as `jobs.benchmarks.measures.Graded` has it; `id` is the item's name."""

    id: str
    sums: tuple[float, ...] | None
    categories: tuple[str, ...]
    characters: int | None
    unit: str
    why: str


@dataclass(frozen=True)
class ItemAnswer:
    number: int
    turn: int
    text: str
    finish: str | None
    tokens: int | None


def fingerprint(items: Sequence[Row]) -> str:
    """sha256 of what is asked, images by their content."""
    told = json.dumps(list(items), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def begin_evaluation(
    db: Database,
    job: Job,
    benchmark: str,
    items: Sequence[Row],
    model: str,
    adapter_id: int | None,
    label: str,
    settings: Mapping[str, Any],
) -> int:
    """The evaluation that a job is for; in a transaction of the caller's, together with the job.

    Args:
        items: {"id", "messages", …} each, in their order; images as `sha256`.
    """
    cursor = db.conn.execute(
        "INSERT INTO evaluations (job_id, benchmark, set_id, model, adapter_id, label, settings, user, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            job.id,
            benchmark,
            _ensure_set(db, benchmark, items),
            model,
            adapter_id,
            label,
            json.dumps(settings),
            job.user,
            now(),
        ],
    )
    return int(cursor.lastrowid or 0)


def _ensure_set(db: Database, benchmark: str, items: Sequence[Row]) -> int:
    print_ = fingerprint(items)
    known = one(db, "SELECT id FROM item_sets WHERE fingerprint = ?", [print_])
    if known is not None:
        return int(known["id"])
    cursor = db.conn.execute(
        "INSERT INTO item_sets (benchmark, fingerprint, created_at) VALUES (?, ?, ?)", [benchmark, print_, now()]
    )
    set_id = int(cursor.lastrowid or 0)
    db.conn.executemany(
        "INSERT INTO items (set_id, number, name, item) VALUES (?, ?, ?, ?)",
        [
            (set_id, number, item["id"], json.dumps(item, ensure_ascii=False))
            for number, item in enumerate(items, 1)
        ],
    )
    return set_id


def add_item_answer(
    db: Database, job: Job, *, number: int, turn: int, text: str, finish: str | None, tokens: int | None
) -> None:
    """One answer of a job's evaluation; the second time it is told it changes nothing."""
    found = one(db, "SELECT id FROM evaluations WHERE job_id = ?", [job.id])
    if found is None:
        return
    db.conn.execute(
        "INSERT OR IGNORE INTO item_answers (evaluation_id, number, turn, text, finish, tokens)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [found["id"], number, turn, text, finish, tokens],
    )


def add_grading(
    db: Database,
    evaluation_id: int,
    grader: str,
    grades: Iterable[Row],
    *,
    job_id: int | None = None,
    replies: Mapping[str, tuple[str, str]] | None = None,
    cost: float = 0.0,
) -> int:
    """Keep a grader's grades of an evaluation; those that the same job's grader gave before are replaced.

    Args:
        grades: {"id", "sums", "categories", "characters", "unit", "why"} each.
        replies: what a judge said: (item's id, its words) by the request's name.

    Raises:
        NotFound: there is no such evaluation.
    """
    with immediate(db):
        if one(db, "SELECT 1 FROM evaluations WHERE id = ?", [evaluation_id]) is None:
            raise NotFound(f"There is no evaluation {evaluation_id}.")
        db.conn.execute(
            "DELETE FROM gradings WHERE evaluation_id = ? AND grader = ? AND job_id IS ?",
            [evaluation_id, grader, job_id],
        )
        cursor = db.conn.execute(
            "INSERT INTO gradings (evaluation_id, job_id, grader, cost, created_at) VALUES (?, ?, ?, ?, ?)",
            [evaluation_id, job_id, grader, cost, now()],
        )
        grading_id = int(cursor.lastrowid or 0)
        db.conn.executemany(
            "INSERT INTO grades (grading_id, place, item, sums, categories, characters, unit, why)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    grading_id,
                    place,
                    grade["id"],
                    None if grade["sums"] is None else json.dumps(list(grade["sums"])),
                    json.dumps(list(grade["categories"])),
                    grade["characters"],
                    grade["unit"],
                    grade["why"],
                )
                for place, grade in enumerate(grades)
            ],
        )
        db.conn.executemany(
            "INSERT INTO grade_replies (grading_id, request, item, reply) VALUES (?, ?, ?, ?)",
            [(grading_id, name, item, reply) for name, (item, reply) in (replies or {}).items()],
        )
    return grading_id


def import_grades(
    db: Database,
    user: str,
    benchmark: str,
    label: str,
    file: str,
    grades: Sequence[Row],
    purpose: str = "reporting",
) -> int:
    """An evaluation of grades that an official file holds; importing the same file again replaces them.

    Raises:
        UserError: the file has no grades.
    """
    if not grades:
        raise UserError(f"{file} holds no grades of {label}.")
    with immediate(db):
        ensure_user(db, user)
        known = one(
            db,
            "SELECT id FROM evaluations WHERE job_id IS NULL AND benchmark = ? AND label = ?"
            " AND deleted_at IS NULL AND settings ->> 'file' = ?",
            [benchmark, label, file],
        )
        if known is not None:
            evaluation_id = int(known["id"])
        else:
            settings = {"purpose": purpose, "file": file}
            cursor = db.conn.execute(
                "INSERT INTO evaluations (benchmark, model, label, settings, user, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [benchmark, label, label, json.dumps(settings), user, now()],
            )
            evaluation_id = int(cursor.lastrowid or 0)
        add_grading(db, evaluation_id, f"file {file}", grades)
    return evaluation_id


# reading -----------------------------------------------------------------------------------------------------

_EVALUATIONS = """
    SELECT e.id, e.job_id, e.benchmark, e.set_id, e.model, e.adapter_id, e.label, e.settings, e.user, e.created_at,
           (SELECT count(*) FROM items i WHERE i.set_id = e.set_id) AS items,
           (SELECT count(*) FROM item_answers a WHERE a.evaluation_id = e.id) AS answers
    FROM evaluations e WHERE e.deleted_at IS NULL"""


def list_evaluations(db: Database, benchmark: str | None = None) -> list[Evaluation]:
    """Those that were not deleted, the newest first."""
    condition = "" if benchmark is None else " AND e.benchmark = :benchmark"
    found = rows(db, f"{_EVALUATIONS}{condition} ORDER BY e.id DESC", {"benchmark": benchmark})
    return [Evaluation(**with_json(row, "settings")) for row in found]


def get_evaluation(db: Database, evaluation_id: int) -> Evaluation:
    """Raises NotFound."""
    found = one(db, f"{_EVALUATIONS} AND e.id = :id", {"id": evaluation_id})
    if found is None:
        raise NotFound(f"There is no evaluation {evaluation_id}.")
    return Evaluation(**with_json(found, "settings"))


def evaluation_of_job(db: Database, job_id: int) -> Evaluation | None:
    found = one(db, f"{_EVALUATIONS} AND e.job_id = :id", {"id": job_id})
    return None if found is None else Evaluation(**with_json(found, "settings"))


def set_deleted(db: Database, evaluation_id: int, deleted: bool) -> None:
    """Take an evaluation out of the table, or put it back. Raises NotFound."""
    with immediate(db):
        cursor = db.conn.execute(
            "UPDATE evaluations SET deleted_at = ? WHERE id = ?", [now() if deleted else None, evaluation_id]
        )
        if not cursor.rowcount:
            raise NotFound(f"There is no evaluation {evaluation_id}.")


def items_of(db: Database, evaluation: Evaluation) -> list[dict[str, Any]]:
    """What is asked, in its order: {"number", "id", "messages", "following", …}, images by `sha256`."""
    found = rows(db, "SELECT number, item FROM items WHERE set_id = ? ORDER BY number", [evaluation.set_id])
    return [{"number": row["number"], **json.loads(row["item"])} for row in found]


def answers_of(db: Database, evaluation_id: int) -> list[ItemAnswer]:
    """By item and turn."""
    found = rows(
        db,
        "SELECT number, turn, text, finish, tokens FROM item_answers WHERE evaluation_id = ?"
        " ORDER BY number, turn",
        [evaluation_id],
    )
    return [ItemAnswer(**row) for row in found]


def gradings_of(db: Database, evaluation_ids: Sequence[int]) -> list[Grading]:
    """The gradings of these evaluations, the newest first."""
    found = rows(
        db,
        """SELECT g.id, g.evaluation_id, g.job_id, g.grader, g.cost, g.created_at,
                  (SELECT count(*) FROM grades r WHERE r.grading_id = g.id AND r.sums IS NOT NULL) AS grades,
                  (SELECT count(*) FROM grades r WHERE r.grading_id = g.id AND r.sums IS NULL) AS failures
           FROM gradings g WHERE g.evaluation_id IN (SELECT value FROM json_each(?)) ORDER BY g.id DESC""",
        [json.dumps(list(evaluation_ids))],
    )
    return [Grading(**row) for row in found]


def grades_of(db: Database, grading_id: int) -> list[Grade]:
    """In the benchmark's order."""
    found = rows(
        db,
        "SELECT item AS id, sums, categories, characters, unit, why FROM grades WHERE grading_id = ?"
        " ORDER BY place",
        [grading_id],
    )
    return [
        Grade(
            id=row["id"],
            sums=None if row["sums"] is None else tuple(json.loads(row["sums"])),
            categories=tuple(json.loads(row["categories"])),
            characters=row["characters"],
            unit=row["unit"],
            why=row["why"],
        )
        for row in found
    ]


def replies_of(db: Database, grading_id: int) -> dict[str, tuple[str, str]]:
    """What a judge said: (item's id, its words) by the request's name."""
    found = rows(db, "SELECT request, item, reply FROM grade_replies WHERE grading_id = ?", [grading_id])
    return {row["request"]: (row["item"], row["reply"]) for row in found}


def fingerprints(db: Database) -> dict[int, str]:
    """Of all item sets, by id."""
    return {row["id"]: row["fingerprint"] for row in rows(db, "SELECT id, fingerprint FROM item_sets")}


def hidden_evaluations(db: Database) -> list[Evaluation]:
    """Those that were taken out of the table, the newest first."""
    sql = _EVALUATIONS.replace("e.deleted_at IS NULL", "e.deleted_at IS NOT NULL")
    return [Evaluation(**with_json(row, "settings")) for row in rows(db, f"{sql} ORDER BY e.id DESC")]


def answers_to(
    db: Database, evaluation_ids: Sequence[int], names: Sequence[str]
) -> dict[int, dict[str, list[ItemAnswer]]]:
    """What these evaluations answered to the items of these names: by evaluation, then by name, in their order.

    An evaluation whose items do not hold such a name is missing; one that has not answered it has an empty list.
    """
    found = rows(
        db,
        """SELECT e.id AS evaluation_id, i.name, i.number, a.turn, a.text, a.finish, a.tokens
           FROM evaluations e JOIN items i ON i.set_id = e.set_id
           LEFT JOIN item_answers a ON a.evaluation_id = e.id AND a.number = i.number
           WHERE e.id IN (SELECT value FROM json_each(?)) AND i.name IN (SELECT value FROM json_each(?))
           ORDER BY e.id, i.number, a.turn""",
        [json.dumps(list(evaluation_ids)), json.dumps(list(names))],
    )
    told: dict[int, dict[str, list[ItemAnswer]]] = {}
    for row in found:
        evaluation_id, name = row.pop("evaluation_id"), row.pop("name")
        answers = told.setdefault(evaluation_id, {}).setdefault(name, [])
        if row["text"] is not None:
            answers.append(ItemAnswer(**row))
    return told


def replies_to(db: Database, grading_id: int, items: Sequence[str]) -> dict[str, str]:
    """What a judge said about these items, by the request's name."""
    found = rows(
        db,
        "SELECT request, reply FROM grade_replies"
        " WHERE grading_id = ? AND item IN (SELECT value FROM json_each(?)) ORDER BY request",
        [grading_id, json.dumps(list(items))],
    )
    return {row["request"]: row["reply"] for row in found}
