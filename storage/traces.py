"""What happened to a sample: who did what and when, and a stamp that changes with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from sqlite_utils import Database

from storage.rows import one, rows

# The actions that touched a sample. Those of earlier versions name it themselves, their changes do not.
_OF_SAMPLE = """(SELECT action_id AS id FROM changes WHERE sample_id = :sample
                 UNION SELECT id FROM actions WHERE sample_id = :sample)"""


@dataclass(frozen=True)
class Act:
    """One line of a sample's history. `user` is a person's or a judge's name; `at` is UTC, ISO 8601."""

    user: str
    label: str
    at: str
    undone: bool = False


def sample_history(db: Database, sample_id: int, limit: int = 50) -> list[Act]:
    """Who did what to the sample, the latest first: people's acts, undone ones too, judges' calls, new answers."""
    acts = [
        Act(row["user"], row["label"], row["created_at"], row["undone_at"] is not None)
        for row in rows(
            db,
            f"SELECT * FROM actions WHERE id IN {_OF_SAMPLE} ORDER BY id DESC LIMIT :limit",
            {"sample": sample_id, "limit": limit},
        )
    ]
    for row in rows(
        db,
        """SELECT r.name, j.state, j.created_at,
                  (SELECT count(*) FROM scores s WHERE s.judgement_id = j.id) AS answers
           FROM judgements j JOIN raters r ON r.id = j.rater_id
           WHERE j.sample_id = ? AND r.kind = 'judge' ORDER BY j.id DESC LIMIT ?""",
        [sample_id, limit],
    ):
        label = f"scores of {_answers(row['answers'])}" if row["state"] == "ok" else f"judgement {row['state']}"
        acts.append(Act(row["name"], label, row["created_at"]))
    for row in rows(
        db,
        """SELECT model, count(*) AS answers, max(created_at) AS at FROM candidates
           WHERE sample_id = ? AND model IS NOT NULL GROUP BY model, job_id ORDER BY max(id) DESC LIMIT ?""",
        [sample_id, limit],
    ):
        acts.append(Act(row["model"], f"wrote {_answers(row['answers'])}", row["at"]))
    return sorted(acts, key=lambda act: act.at, reverse=True)[:limit]


def _answers(number: int) -> str:
    return "1 answer" if number == 1 else f"{number} answers"


def stamp(db: Database, sample_id: int) -> str:
    """A short text that is another whenever somebody, or a judge, has changed anything of the sample.

    Undone and redone again it is what it was: the sample is too. It names the last action and judgement it knows
    of, so that `changed_by` can tell what came later.
    """
    actions = rows(
        db, f"SELECT id, undone_at FROM actions WHERE id IN {_OF_SAMPLE} ORDER BY id", {"sample": sample_id}
    )
    others = one(
        db,
        """SELECT (SELECT coalesce(max(id), 0) FROM judgements WHERE sample_id = :id) AS judgement,
                  (SELECT count(*) FROM judgements WHERE sample_id = :id) AS judgements,
                  (SELECT coalesce(max(id), 0) FROM candidates WHERE sample_id = :id) AS candidate,
                  (SELECT count(*) FROM candidates WHERE sample_id = :id) AS candidates,
                  (SELECT coalesce(max(id), 0) FROM checklists WHERE sample_id = :id) AS checklist""",
        {"id": sample_id},
    )
    assert others is not None  # a row of subqueries
    live = [row["id"] for row in actions if row["undone_at"] is None]
    digest = hashlib.sha256(json.dumps([live, list(others.values())]).encode()).hexdigest()[:16]
    return f"{actions[-1]['id'] if actions else 0}.{others['judgement']}.{digest}"


def changed_by(db: Database, sample_id: int, since: str, but: str = "") -> list[str]:
    """Who has changed the sample since it had that stamp, people before judges, `but` left out.

    Empty where the stamp holds, or is none of ours. Somebody who undid an older act of theirs is named where
    nobody did anything new.
    """
    known = _known(since)
    if known is None or stamp(db, sample_id) == since:
        return []
    action, judgement = known
    names = [
        row["user"]
        for row in rows(
            db,
            f"SELECT user FROM actions WHERE id IN {_OF_SAMPLE} AND id > :since"
            " GROUP BY user ORDER BY max(id) DESC",
            {"sample": sample_id, "since": action},
        )
    ]
    names += [
        row["name"]
        for row in rows(
            db,
            "SELECT DISTINCT r.name FROM judgements j JOIN raters r ON r.id = j.rater_id"
            " WHERE j.sample_id = ? AND j.id > ? AND r.kind = 'judge' ORDER BY r.name",
            [sample_id, judgement],
        )
    ]
    if not names:
        undone = one(
            db,
            f"SELECT user FROM actions WHERE id IN {_OF_SAMPLE} AND undone_at IS NOT NULL"
            " ORDER BY undone_at DESC LIMIT 1",
            {"sample": sample_id},
        )
        names = [undone["user"]] if undone else []
    return [name for name in dict.fromkeys(names) if name != but]


def changed_row_by(db: Database, table: str, row_id: int, since: str = "0.0.") -> Act | None:
    """Who last changed the row with this id, by an act that holds, since its sample had that stamp; else None."""
    known = _known(since)
    if known is None:
        return None
    found = one(
        db,
        "SELECT a.user, a.label, a.created_at FROM changes c JOIN actions a ON a.id = c.action_id"
        " WHERE c.action_id > ? AND c.table_name = ? AND c.row_key = ? AND a.undone_at IS NULL"
        " ORDER BY a.id DESC LIMIT 1",
        [known[0], table, json.dumps({"id": row_id})],
    )
    return None if found is None else Act(found["user"], found["label"], found["created_at"])


def _known(stamp: str) -> tuple[int, int] | None:
    """The last action and judgement that a stamp knows of; None for a text that is no stamp of ours."""
    parts = stamp.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts[:2]):
        return None
    return int(parts[0]), int(parts[1])
