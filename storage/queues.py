"""Queues: which sample a person gets next, so that no two get the same one at once.

A queue is walked by sample id, from the sample at which the person is, and anew from the beginning after the last:
one that is passed over comes back, one that is skipped does not. What a person gets is leased to them for some
minutes. Choosing and leasing are one write transaction, so two people who ask at once get two samples. Only
`overlap` gives a sample to several people, and to no more than it wants.

What a queue holds is read from `sample_facts`, as filters are; a sample whose facts are behind is looked at anew
before it is given out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlite_utils import Database

from storage.database import immediate
from storage.facts import MOST, catch_up, freshen, refresh_ids
from storage.filters import Clause, SampleFilter
from storage.records import HIGHEST, LOWEST, Sample
from storage.rows import one, rows
from storage.samples import get_sample
from storage.selecting import COUNTED, Count, Lead, Selection, count_of, ids_by_id, samples_known, scored_by
from storage.users import ensure_user

#: kind → title
QUEUES: dict[str, str] = {
    "unscored": "not scored by anybody",
    "fewer": "scored by too few people",
    "disagree": "judges and people disagree",
    "flagged": "flagged",
    "overlap": "for agreement",
}
MINUTES = 15.0  #: that a lease lasts
_LOOKED_AT = 20  # samples that are looked at together for facts that are behind
_EXACTLY = 100_000  # samples among which progress is counted as far as lists are
_FEW = 2_000  # what is counted among more
_BACKLOG = 5_000  # samples that are caught up with before a queue is said to be empty


@dataclass(frozen=True)
class Queue:
    """What is to be worked off.

    Attributes:
        kind: one of `QUEUES`.
        people: so many are to score a sample ("fewer", "overlap"); 1 to 9.
        gap: judges and people differ by at least this ("disagree"), see `SampleFilter.gap`.
        percent: of the samples that several people are to score ("overlap").
        seed: which samples these are.
        where: only samples of this filter; its order does not count.
    """

    kind: str
    people: int = 2
    gap: float = 1.0
    percent: float = 10.0
    seed: int = 0
    where: SampleFilter = field(default_factory=SampleFilter)

    def as_query(self) -> dict[str, str]:
        """The parameters of its address; `read_queue` reads them."""
        told = {**self.where.as_query(), "queue": self.kind}
        if self.kind in ("fewer", "overlap"):
            told["people"] = str(self.people)
        if self.kind == "disagree":
            told["apart"] = f"{self.gap:g}"
        if self.kind == "overlap":
            told |= {"percent": f"{self.percent:g}", "seed": str(self.seed)}
        return told

    @property
    def clause(self) -> Clause:
        """What the facts of its samples are."""
        if self.kind == "disagree":
            return Clause("gap", tuple(range(self._quarters, 4 * (HIGHEST - LOWEST) + 1)), 3)
        if self.kind == "flagged":
            return Clause("flags", tuple(range(1, MOST + 1)), 2)
        return Clause("people", tuple(range(1 if self.kind == "unscored" else self.people)), 6)

    @property
    def settled(self) -> Clause | None:
        """What the facts of samples are that it is done with; None where that cannot be told."""
        if self.kind == "disagree":
            return Clause("gap", tuple(range(self._quarters)), 3)
        if self.kind == "flagged":
            return None
        return Clause("people", tuple(range(1 if self.kind == "unscored" else self.people, MOST + 1)), 6)

    @property
    def _quarters(self) -> int:
        return math.ceil(self.gap * 4)


@dataclass(frozen=True)
class Progress:
    """How far a queue is.

    Attributes:
        mine: samples of its filter that the person has scored.
        done: samples that it is done with, whoever scored them; 0 for "flagged", where nobody can tell.
        left: samples that the person can still get, now or when others have let go of them.
        skipped: samples of its filter that the person has skipped.
    """

    mine: Count
    done: Count
    left: Count
    skipped: Count


def read_queue(query: Mapping[str, str]) -> Queue | None:
    """The queue that an address names; None where it names none. What cannot be read is passed over."""
    kind = query.get("queue", "").strip()
    if kind not in QUEUES:
        return None
    plain = Queue(kind)
    return Queue(
        kind,
        people=int(_number(query, "people", 1, MOST, plain.people)),
        gap=_number(query, "apart", LOWEST, HIGHEST - LOWEST, plain.gap),
        percent=_number(query, "percent", 0, 100, plain.percent),
        seed=int(_number(query, "seed", 0, _PRIME, plain.seed)),
        where=SampleFilter.from_query(dict(query)),
    )


def _number(query: Mapping[str, str], name: str, low: float, high: float, default: float) -> float:
    try:
        value = float(query.get(name, ""))
    except ValueError:
        return default
    return value if low <= value <= high else default


def next_in_queue(
    db: Database, user: str, queue: Queue, minutes: float = MINUTES, after: int | None = None
) -> Sample | None:
    """The person's next sample, leased to them for so many minutes; their other leases end.

    Args:
        after: the first one after this sample, beginning anew at the end, and never this one itself. None: the
            sample that they hold, if it still is in the queue, else the first one.

    Returns:
        None where nothing is left for them now.
    """
    freshen(db)
    found = _take(db, user, queue, minutes, after)
    if found is None and catch_up(db, _BACKLOG):  # what is left may be what nothing is known of yet
        found = _take(db, user, queue, minutes, after)
    return None if found is None else get_sample(db, found)


def _take(db: Database, user: str, queue: Queue, minutes: float, after: int | None) -> int | None:
    with immediate(db):
        ensure_user(db, user)
        selection = _for(db, user, queue, time.time())
        found = None
        if after is None:
            held = one(db, "SELECT sample_id FROM leases WHERE user = ? ORDER BY until DESC LIMIT 1", [user])
            # One that has run out, too, if nobody else has taken it: whoever comes back goes on where they were.
            if held is not None and _first(db, selection, held["sample_id"] - 1) == held["sample_id"]:
                found = held["sample_id"]
        if found is None:
            found = _first(db, selection, after or 0)
        if found is None and after:
            found = _first(db, selection, 0)
        if found == after:
            found = None
        db.conn.execute("DELETE FROM leases WHERE user = ?", [user])
        if found is not None:
            _lease(db, user, found, minutes)
    return found


def _first(db: Database, selection: Selection, after: int) -> int | None:
    """The first sample after this one. If its facts are behind, those of some are looked at anew; then it is asked
    again."""
    while True:
        found = ids_by_id(db, selection, after, 1)
        if not found or one(db, "SELECT 1 FROM stale_samples WHERE sample_id = ?", found) is None:
            return found[0] if found else None
        refresh_ids(db, ids_by_id(db, selection, after, _LOOKED_AT))


def _lease(db: Database, user: str, sample_id: int, minutes: float) -> None:
    db.conn.execute(
        "INSERT INTO leases (sample_id, user, until) VALUES (?, ?, ?)",
        [sample_id, user, time.time() + 60 * minutes],
    )


def renew(db: Database, user: str, sample_id: int, minutes: float = MINUTES) -> bool:
    """The person is at this sample: it stays theirs for so many minutes, and their other leases end.

    Takes the lease where nobody holds the sample, so one opened from a list is theirs as well.

    Returns:
        False, with nothing changed, where somebody else holds it, or it is gone. True without a write where less
        than a tenth of the time has passed.
    """
    if _fresh(db, user, sample_id, minutes):
        return True
    with immediate(db):
        ensure_user(db, user)
        now = time.time()
        own = one(
            db, "SELECT 1 FROM leases WHERE sample_id = ? AND user = ? AND until > ?", [sample_id, user, now]
        )
        others = [name for name in holders(db, sample_id) if name != user]
        if (own is None and others) or one(db, "SELECT 1 FROM samples WHERE id = ?", [sample_id]) is None:
            return False
        db.conn.execute("DELETE FROM leases WHERE user = ?", [user])
        _lease(db, user, sample_id, minutes)
    return True


def _fresh(db: Database, user: str, sample_id: int, minutes: float) -> bool:
    """Whether this sample, and no other, has been the person's for hardly any time."""
    held = rows(db, "SELECT sample_id, until FROM leases WHERE user = ?", [user])
    return [row["sample_id"] for row in held] == [sample_id] and held[0]["until"] > time.time() + 54 * minutes


def release(db: Database, user: str) -> None:
    """Let go of what the person holds; no write where they hold nothing."""
    if one(db, "SELECT 1 FROM leases WHERE user = ? LIMIT 1", [user]) is not None:
        with immediate(db):
            db.conn.execute("DELETE FROM leases WHERE user = ?", [user])


def holders(db: Database, sample_id: int) -> list[str]:
    """The people who hold a sample now, by name."""
    found = rows(
        db,
        "SELECT user FROM leases WHERE sample_id = ? AND until > ? ORDER BY user",
        [sample_id, time.time()],
    )
    return [row["user"] for row in found]


def progress(db: Database, user: str, queue: Queue) -> Progress:
    """How far the queue is, for this person and for all; large numbers are estimates, see `Count`."""
    freshen(db)
    most = COUNTED if samples_known(db) <= _EXACTLY else _FEW
    where = replace(queue.where, order="")
    settled, rater = queue.settled, _rater(db, user)
    done = mine = Count(0)
    if settled is not None:
        sql, values = _picked(queue)
        done = count_of(db, Selection(where, (settled,), sql, values), most=most)
    if rater is not None:
        mine = count_of(db, Selection(where, lead=scored_by([rater])), most=most)
    skips = Lead(
        """SELECT k.sample_id AS id FROM skips k CROSS JOIN sample_facts f ON f.sample_id = k.sample_id
           WHERE k.user = ?""",
        "k.sample_id",
        "SELECT 1 FROM skips WHERE user = ?",
        [user],
    )
    return Progress(
        mine=mine,
        done=done,
        left=count_of(db, _for(db, user, queue, None), most=most),
        skipped=count_of(db, Selection(where, lead=skips), most=most),
    )


_SKIPPED = "EXISTS (SELECT 1 FROM skips k WHERE k.sample_id = f.sample_id AND k.user = ?)"
_SCORED = """EXISTS (SELECT 1 FROM judgements m WHERE m.sample_id = f.sample_id AND m.rater_id = ?
    AND m.state = 'ok')"""
_HELD = "SELECT {what} FROM leases l WHERE l.sample_id = f.sample_id AND l.user <> ? AND l.until > ?"
# Who holds a sample and has scored it already is counted among its people, not once more.
_NOT_COUNTED = """NOT EXISTS (SELECT 1 FROM judgements o JOIN raters r ON r.id = o.rater_id
    WHERE o.sample_id = l.sample_id AND r.kind = 'person' AND r.name = l.user AND o.state = 'ok')"""


def _for(db: Database, user: str, queue: Queue, now: float | None) -> Selection:
    """What a person can get at this moment; None: at some time, whoever holds it now."""
    sql, values = _picked(queue)
    parts, told = [sql, f"NOT {_SKIPPED}"], [*values, user]
    if queue.kind in ("fewer", "overlap") and (rater := _rater(db, user)) is not None:
        parts.append(f"NOT {_SCORED}")
        told.append(rater)
    if now is not None and queue.kind == "overlap":
        parts.append(f"f.people + ({_HELD.format(what='count(*)')} AND {_NOT_COUNTED}) < ?")
        told += [user, now, queue.people]
    elif now is not None:
        parts.append(f"NOT EXISTS ({_HELD.format(what='1')})")
        told += [user, now]
    return Selection(replace(queue.where, order=""), (queue.clause,), " AND ".join(parts), tuple(told))


def _rater(db: Database, user: str) -> int | None:
    found = one(db, "SELECT id FROM raters WHERE kind = 'person' AND name = ?", [user])
    return None if found is None else int(found["id"])


# --- the samples of an overlap ---

_PRIME = 2**31 - 1  # products of two numbers below it stay below 2**63, where SQLite's whole numbers end
_STRIDE, _SHIFT, _START = 1_540_483_477, 1_183_186_591, 374_761_393
_PARTS = 100_000


def wants_overlap(sample_id: int, percent: float, seed: int = 0) -> bool:
    """Whether a sample is among the pseudo-random `percent` of all that `overlap` gives to several people (pure).

    The same samples for the same seed, whatever else is imported or scored; those of a smaller percent are among
    those of a larger one. The fifth power is one to one modulo this prime, and leaves no pattern of the ids in it.
    `_picked` says it in SQL.
    """
    mixed = (sample_id % _PRIME * _STRIDE + seed * _SHIFT + _START) % _PRIME
    return pow(mixed, 5, _PRIME) % _PARTS < round(percent * _PARTS / 100)


def _picked(queue: Queue) -> tuple[str, tuple[Any, ...]]:
    """What a queue asks of a sample beside its facts, as a condition on `sample_facts f`."""
    if queue.kind != "overlap":
        return "f.discarded IS NOT 1", ()
    shift = queue.seed * _SHIFT + _START
    mixed = f"((f.sample_id % {_PRIME} * {_STRIDE} + {shift}) % {_PRIME})"
    square = f"({mixed} * {mixed} % {_PRIME})"
    power = f"({square} * {square} % {_PRIME} * {mixed} % {_PRIME})"
    return f"f.discarded IS NOT 1 AND {power} % {_PARTS} < ?", (round(queue.percent * _PARTS / 100),)
