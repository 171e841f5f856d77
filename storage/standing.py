"""What stands on a row and would go, or come to mean something else, without a word if the row went or changed.

Scores of an answer, say, go with it by ON DELETE CASCADE, and another text under the same scores is a lie. What
the database itself refuses (a pair of the answer, a frozen data set) is asked for as well, where a person is to be
told who did it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from storage.rows import one

# (who, what they did), of everything that stands on an answer; :id is the candidate's. A score that its author has
# cleared again counts too where the author is another: they may still undo the clearing.
_ON_AN_ANSWER = """
    SELECT r.name AS who, 'scored' AS did FROM scores s JOIN judgements j ON j.id = s.judgement_id
        JOIN raters r ON r.id = j.rater_id WHERE s.candidate_id = :id
        AND (coalesce(s.helpfulness, s.correctness, s.coherence, s.complexity, s.verbosity) IS NOT NULL
             OR r.kind = 'judge' OR r.name IS NOT (SELECT author FROM candidates WHERE id = :id))
    UNION ALL SELECT coalesce(r.name, 'a judge'), 'judged' FROM checklist_points p
        JOIN judgements j ON j.id = p.judgement_id JOIN raters r ON r.id = j.rater_id WHERE p.candidate_id = :id
    UNION ALL SELECT user, 'made a pair with' FROM pairs WHERE :id IN (chosen_id, rejected_id)
        AND sample_id = (SELECT sample_id FROM candidates WHERE id = :id)
    UNION ALL SELECT coalesce(author, model, 'somebody'), 'written another answer from' FROM candidates
        WHERE parent_id = :id AND sample_id = (SELECT sample_id FROM candidates WHERE id = :id)"""

# Somebody else's note may speak of an answer that was there when it was written. By acts, not by the clock: who
# takes the answer back did so in the act :action.
_NOTED_SINCE = """
    SELECT a.user AS who, 'noted something beside' AS did FROM changes c JOIN actions a ON a.id = c.action_id
        WHERE c.sample_id = :sample AND c.table_name = 'notes' AND c.after IS NOT NULL AND a.id > :action
        AND a.undone_at IS NULL AND a.user <> (SELECT user FROM actions WHERE id = :action)
        AND EXISTS (SELECT 1 FROM notes n WHERE n.sample_id = :sample AND n.user = a.user)"""

_ON_A_TURN = (
    "SELECT 1 FROM votes WHERE :id IN (left_turn_id, right_turn_id)"
    " UNION ALL SELECT 1 FROM turn_scores WHERE turn_id = :id LIMIT 1"
)


def who_built_on(db: Database, candidate_id: int) -> str | None:
    """Who has scored the answer, paired it or written another from it, as `ada has scored the answer`."""
    found = one(db, f"SELECT * FROM ({_ON_AN_ANSWER}) LIMIT 1", {"id": candidate_id})
    return None if found is None else f"{found['who']} has {found['did']} the answer"


def stands_on(
    db: Database,
    table: str,
    key: Mapping[str, Any],
    row: Mapping[str, Any],
    new: Mapping[str, Any] | None,
    action: int,
) -> str | None:
    """Why the row may not go (`new` is None) or become `new` when this action is walked; None if it may."""
    if table == "turns" and new is None and one(db, _ON_A_TURN, {"id": key["id"]}):
        return "somebody has voted on what came of it since"
    if table == "candidates" and (new is None or new["text"] != row["text"]):
        since = who_built_on(db, key["id"])
        noted = one(db, f"{_NOTED_SINCE} LIMIT 1", {"sample": row["sample_id"], "action": action})
        if since is None and noted is not None:
            since = f"{noted['who']} has {noted['did']} the answer"
        return None if since is None else f"{since} since"
    if table == "judgements" and new is None:
        left = one(db, "SELECT 1 FROM scores WHERE judgement_id = :id LIMIT 1", {"id": key["id"]})
        return None if left is None else "other scores belong to the same scoring"
    return None
