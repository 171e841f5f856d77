"""Answers that people write: candidates with an author and, where one was edited, the candidate it came from."""

from __future__ import annotations

from sqlite_utils import Database

from storage import history
from storage.candidates import get_candidate
from storage.database import immediate
from storage.errors import Conflict, UserError
from storage.records import Candidate, now
from storage.remarks import need_sample
from storage.rows import rows
from storage.standing import who_built_on
from storage.texts import LONGEST_ANSWER, plain_text


def write_answer(db: Database, user: str, sample_id: int, text: str, parent_id: int | None = None) -> Candidate:
    """A person's own answer to a sample, new or made of another candidate; undoable.

    It can be scored, chosen and trained on like any other.

    Raises:
        NotFound: there is no such sample, or no such parent.
        UserError: the text is blank, too long, or holds what no text can hold; the parent answers another sample.
        Conflict: a candidate of the sample reads the same: choose that one.
    """
    kept = _checked(text)
    with immediate(db):
        need_sample(db, sample_id)
        if parent_id is not None and get_candidate(db, parent_id).sample_id != sample_id:
            raise UserError(
                f"Candidate {parent_id} does not answer sample {sample_id}; edit one of that sample's answers."
            )
        _refuse_twin(db, sample_id, kept, None)
        what = "new answer" if parent_id is None else f"answer made of candidate {parent_id}"
        with history.action(db, user, f"{what} to sample {sample_id}", sample_id) as change:
            number = change.insert(
                "candidates",
                {
                    "sample_id": sample_id,
                    "text": kept,
                    "author": user,
                    "parent_id": parent_id,
                    "created_at": now(),
                },
            )
        return get_candidate(db, number)


def edit_answer(db: Database, user: str, candidate_id: int, text: str, was: str | None = None) -> Candidate:
    """Change the text of one's own answer in place, as long as nothing stands on it; undoable.

    Args:
        was: what it said when the person began to write. None: whatever it was.

    Raises:
        NotFound: there is no such candidate.
        UserError: it is another's, or the text cannot be stored.
        Conflict: somebody has scored it, made a pair with it or an answer of it: their labels were given to the
            text as it is. Or the text is not what it `was`, or another candidate reads the same.
    """
    kept = _checked(text)
    with immediate(db):
        candidate = get_candidate(db, candidate_id)
        if candidate.author != user:
            whose = candidate.author or candidate.model or "somebody else"
            raise UserError(
                f"Candidate {candidate_id} is by {whose}: only its author may change it. "
                "Write an answer of your own from it."
            )
        if candidate.text == kept:
            return candidate
        if was is not None and candidate.text != was.strip():
            raise Conflict(
                f"Candidate {candidate_id} has been changed since, in another window. "
                "Reload the page to see it, then write again."
            )
        built = who_built_on(db, candidate_id)
        if built is not None:
            raise Conflict(f"Candidate {candidate_id} cannot be changed: {built}. Write a new answer from it.")
        _refuse_twin(db, candidate.sample_id, kept, candidate_id)
        label = f"answer {candidate_id} changed"
        with history.action(db, user, label, candidate.sample_id) as change:
            change.update("candidates", {"id": candidate_id}, {"text": kept})
        return get_candidate(db, candidate_id)


def _checked(text: str) -> str:
    kept = plain_text("The answer", text, LONGEST_ANSWER)
    if not kept:
        raise UserError("The answer is empty; write one.")
    return kept


def _refuse_twin(db: Database, sample_id: int, text: str, but: int | None) -> None:
    for row in rows(db, "SELECT id, text FROM candidates WHERE sample_id = ? ORDER BY id", [sample_id]):
        if row["id"] != but and row["text"].strip() == text:
            raise Conflict(f"Candidate {row['id']} reads the same already; score and choose that one.")
