"""Samples: adding, finding, walking."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sqlite_utils import Database

from storage.errors import NotFound, UserError
from storage.records import Message, Sample, now
from storage.rows import Row, count, marks, one, rows

State = Literal[
    "",
    "no candidates",
    "unjudged",
    "judged",
    "not scored by people",
    "blocked",
    "truncated",
    "unparseable",
    "failed",
    "paired",
    "unpaired",
]
# How a judge's call can end without scores.
PROBLEMS = ("blocked", "truncated", "unparseable", "failed")

# A call that brought no scores (a person's judgement is always ok), and the judge has not been asked again since.
# The first term is there for a partial index on such rows: SQLite takes one only where a query repeats its words.
_UNSOLVED = """j.state <> 'ok' AND NOT EXISTS (
        SELECT 1 FROM judgements k WHERE k.sample_id = j.sample_id AND k.rater_id = j.rater_id AND k.id > j.id)"""

_STATES: dict[str, str] = {
    "no candidates": "NOT EXISTS (SELECT 1 FROM candidates c WHERE c.sample_id = s.id)",
    "unjudged": """EXISTS (SELECT 1 FROM candidates c WHERE c.sample_id = s.id) AND NOT EXISTS (
        SELECT 1 FROM judgements j JOIN raters r ON r.id = j.rater_id
        WHERE j.sample_id = s.id AND r.kind = 'judge' AND j.state = 'ok')""",
    "judged": """EXISTS (SELECT 1 FROM judgements j JOIN raters r ON r.id = j.rater_id
        WHERE j.sample_id = s.id AND r.kind = 'judge' AND j.state = 'ok')""",
    "not scored by people": """EXISTS (SELECT 1 FROM candidates c WHERE c.sample_id = s.id) AND NOT EXISTS (
        SELECT 1 FROM judgements j JOIN raters r ON r.id = j.rater_id
        WHERE j.sample_id = s.id AND r.kind = 'person')""",
    # Found by state: such calls are few, and an EXISTS would ask every sample.
    **{
        state: f"s.id IN (SELECT j.sample_id FROM judgements j WHERE j.state = '{state}' AND {_UNSOLVED})"
        for state in PROBLEMS
    },
    "paired": "EXISTS (SELECT 1 FROM pairs p WHERE p.sample_id = s.id)",
    "unpaired": "NOT EXISTS (SELECT 1 FROM pairs p WHERE p.sample_id = s.id)",
}
STATES: tuple[str, ...] = ("", *_STATES)


@dataclass(frozen=True)
class SampleFilter:
    """What the Samples page can ask for; each field is also a query parameter of its URL."""

    q: str = ""
    source: str = ""
    split: str = ""
    state: str = ""

    @classmethod
    def from_query(cls, query: dict[str, str]) -> SampleFilter:
        """Read a URL's parameters; those that mean nothing here are passed over."""
        known = {field.name: query.get(field.name, "").strip() for field in fields(cls)}
        found = cls(**known)
        return found if found.state in STATES else replace(found, state="")

    def as_query(self) -> dict[str, str]:
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}

    def _where(self) -> tuple[str, list[Any]]:
        parts, values = ["1"], []
        if self.q:
            parts.append("s.id IN (SELECT rowid FROM samples_fts WHERE samples_fts MATCH ?)")
            values.append(quote_search(self.q))
        for column in ("source", "split"):
            if value := getattr(self, column):
                parts.append(f"s.{column} = ?")
                values.append(value)
        if self.state:
            parts.append(_STATES[self.state])
        return " AND ".join(parts), values


def quote_search(text: str) -> str:
    """Words to an FTS5 query: each a quoted prefix, so that no character is an operator."""
    words = text.replace('"', " ").replace("\0", " ").split()
    return " ".join(f'"{word}"*' for word in words) or '""'


def question_of(messages: Sequence[Message]) -> str:
    """The text of the last user turn: what lists show and search finds."""
    for message in reversed(messages):
        if message["role"] == "user":
            parts = message["content"]
            if isinstance(parts, str):
                return parts
            return " ".join(part["text"] for part in parts if part["type"] == "text").strip()
    return ""


def images_of(messages: Sequence[Message]) -> list[str]:
    """The sha256 of every image, in reading order."""
    return [
        part["image"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]


def add_sample(
    db: Database,
    source: str,
    source_id: str,
    messages: list[Message],
    reference: str | None = None,
    split: str | None = None,
) -> int | None:
    """Insert a sample; None if this source's id is there already (importing twice adds nothing).

    Raises:
        UserError: the messages do not end with the user's turn.
    """
    if not messages or messages[-1]["role"] != "user":
        raise UserError(f"Sample {source_id!r} of {source!r}: its messages must end with the user's turn.")
    cursor = db.conn.execute(
        "INSERT OR IGNORE INTO samples (source, source_id, split, messages, question, reference, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            source,
            source_id,
            split,
            json.dumps(messages, ensure_ascii=False),
            question_of(messages),
            reference,
            now(),
        ],
    )
    if cursor.rowcount == 0:
        return None
    sample_id = int(cursor.lastrowid or 0)
    db.conn.executemany(
        "INSERT INTO sample_images (sample_id, position, sha256) VALUES (?, ?, ?)",
        [(sample_id, position, sha256) for position, sha256 in enumerate(images_of(messages))],
    )
    return sample_id


def get_sample(db: Database, sample_id: int) -> Sample:
    """Raises NotFound."""
    found = one(db, "SELECT * FROM samples WHERE id = ?", [sample_id])
    if found is None:
        raise NotFound(f"There is no sample {sample_id}; choose one from the list.")
    return _sample(found)


def get_samples(db: Database, ids: Sequence[int]) -> list[Sample]:
    """Those samples, by id; ids that are not there are left out."""
    found: list[Sample] = []
    for start in range(0, len(ids), 500):
        part = list(ids[start : start + 500])
        found += map(_sample, rows(db, f"SELECT * FROM samples WHERE id IN ({marks(part)})", part))
    return sorted(found, key=lambda sample: sample.id)


def find_samples(db: Database, where: SampleFilter, after: int = 0, limit: int = 50) -> list[Sample]:
    """A keyset page: the samples after this id, in the order of their ids."""
    condition, values = where._where()
    return [
        _sample(row)
        for row in rows(
            db,
            f"SELECT s.* FROM samples s WHERE {condition} AND s.id > ? ORDER BY s.id LIMIT ?",
            [*values, after, limit],
        )
    ]


def count_samples(db: Database, where: SampleFilter) -> int:
    condition, values = where._where()
    return count(db, f"SELECT count(*) FROM samples s WHERE {condition}", values)


def count_problems(db: Database, where: SampleFilter) -> dict[str, int]:
    """How many samples each state of `PROBLEMS` selects beside the filter's other fields; only those above 0."""
    condition, values = replace(where, state="")._where()
    # CROSS JOIN: the few calls first, then their samples; SQLite would ask every sample of a source otherwise.
    found = {
        row["state"]: row["samples"]
        for row in rows(
            db,
            f"""SELECT j.state, count(DISTINCT j.sample_id) AS samples FROM judgements j
                CROSS JOIN samples s ON s.id = j.sample_id
                WHERE {_UNSOLVED} AND {condition} GROUP BY j.state""",
            values,
        )
    }
    return {state: found[state] for state in PROBLEMS if state in found}


def is_selected(db: Database, where: SampleFilter, sample_id: int) -> bool:
    """Whether the filter selects this sample."""
    condition, values = where._where()
    return bool(
        count(
            db,
            f"SELECT EXISTS (SELECT 1 FROM samples s WHERE {condition} AND s.id = ?)",
            [*values, sample_id],
        )
    )


def position_of(db: Database, where: SampleFilter, sample_id: int) -> int:
    """How many samples of the filter stand before this id."""
    condition, values = where._where()
    return count(db, f"SELECT count(*) FROM samples s WHERE {condition} AND s.id < ?", [*values, sample_id])


def neighbour(db: Database, where: SampleFilter, sample_id: int, forward: bool) -> int | None:
    """The next or previous sample of the filter, or None at its end."""
    condition, values = where._where()
    sign, order = (">", "ASC") if forward else ("<", "DESC")
    found = one(
        db,
        f"SELECT s.id FROM samples s WHERE {condition} AND s.id {sign} ? ORDER BY s.id {order} LIMIT 1",
        [*values, sample_id],
    )
    return found["id"] if found else None


def page_start(db: Database, where: SampleFilter, sample_id: int, size: int) -> int:
    """The `after` of the keyset page on which this sample stands."""
    condition, values = where._where()
    offset = position_of(db, where, sample_id) // size * size
    if offset == 0:
        return 0
    found = one(
        db,
        f"SELECT s.id FROM samples s WHERE {condition} ORDER BY s.id LIMIT 1 OFFSET ?",
        [*values, offset - 1],
    )
    return found["id"] if found else 0


def facets(db: Database) -> dict[str, list[str]]:
    """The values that the filters `source` and `split` can take."""
    return {
        column: [
            row["value"]
            for row in rows(
                db,
                f"SELECT DISTINCT {column} AS value FROM samples WHERE {column} IS NOT NULL ORDER BY value",
            )
        ]
        for column in ("source", "split")
    }


def _sample(row: Row) -> Sample:
    messages = json.loads(row["messages"])
    return Sample(
        id=row["id"],
        source=row["source"],
        source_id=row["source_id"],
        split=row["split"],
        messages=messages,
        question=row["question"],
        reference=row["reference"],
        images=tuple(images_of(messages)),
    )
