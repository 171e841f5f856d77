"""What is known of each sample in one narrow row, so that a filter of a million samples is an index lookup.

Triggers (migration 7) put a sample into `stale_samples` whenever anything of it changes, which costs a write next
to nothing; `catch_up` computes the facts of many stale samples at once. Readers catch up with what is little; a
large backlog, after an import say, is worked off in steps by whoever made it, and `stale` says how much is left.

Columns of `sample_facts`, each with an index; NULL where there is nothing to know:

    labels      0 no answers; 1 answers; 2 judged by a judge; 3 scored by people; 4 both
    answers     candidates, at most `MOST`             people     people who have scored; NULL without answers
    problems    bits: 1 blocked, 2 truncated, 4 unparseable, 8 failed (a judge's latest call brought no scores)
    pairs, flags, skips, images, turns    how many, at most `MOST`; turns are the user's
    discarded   1 if it is                             longest    characters of the longest answer
    gap         quarter points by which judges and people differ (the largest `gap_of`), rounded down
    helpfulness …   bits: 1 << v for each value v that a latest judgement gives a candidate in this metric
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlite_utils import Database

from storage.database import immediate
from storage.errors import DatabaseBusy
from storage.records import METRICS
from storage.rows import count, marks

MOST = 9
PROBLEM_BITS = {"blocked": 1, "truncated": 2, "unparseable": 4, "failed": 8}
AT_ONCE = 500
READERS = 200  #: what a reader catches up with

_Rows = Iterable[tuple[Any, ...]]


def stale(db: Database, most: int = 1_000_000) -> int:
    """How many samples' facts are behind, counted up to `most`."""
    return count(db, "SELECT count(*) FROM (SELECT 1 FROM stale_samples LIMIT ?)", [most])


def freshen(db: Database, most: int = READERS) -> None:
    """Before reading: catch up with what is little. A database that is busy or only read is left as it is."""
    if db.conn.in_transaction or not stale(db, 1):
        return
    waits = count(db, "PRAGMA busy_timeout")
    db.conn.execute("PRAGMA busy_timeout = 100")
    try:
        catch_up(db, most)
    except DatabaseBusy:
        pass  # whoever writes just then may be at this very work
    finally:
        db.conn.execute(f"PRAGMA busy_timeout = {waits}")


def catch_up(db: Database, most: int | None = None, progress: Callable[[int], None] | None = None) -> int:
    """Compute the facts of stale samples, `AT_ONCE` a transaction; returns how many.

    Args:
        most: stop after about this many; None: all.
        progress: is told how many are done.
    """
    done = 0
    while most is None or done < most:
        with immediate(db):
            limit = AT_ONCE if most is None else min(AT_ONCE, most - done)
            ids = [row[0] for row in db.conn.execute("SELECT sample_id FROM stale_samples LIMIT ?", [limit])]
            if ids:
                _compute(db, ids)
                db.conn.execute(f"DELETE FROM stale_samples WHERE sample_id IN ({marks(ids)})", ids)
        done += len(ids)
        if progress and ids:
            progress(done)
        if len(ids) < limit:
            break
    return done


def refresh_ids(db: Database, ids: Sequence[int]) -> None:
    """Compute the facts of these samples, where they are stale."""
    with immediate(db):
        found = db.conn.execute(
            f"SELECT sample_id FROM stale_samples WHERE sample_id IN ({marks(ids)})", list(ids)
        )
        if behind := [row[0] for row in found]:
            _compute(db, behind)
            db.conn.execute(f"DELETE FROM stale_samples WHERE sample_id IN ({marks(behind)})", behind)


def forget(db: Database) -> None:
    """Have all facts and words made anew: after a repair."""
    db.conn.execute("DELETE FROM words_fts")
    db.conn.execute("DELETE FROM sample_facts")
    db.conn.execute("INSERT INTO sample_facts (sample_id, source, split) SELECT id, source, split FROM samples")
    db.conn.execute("INSERT OR IGNORE INTO stale_samples SELECT id FROM samples")
    db.conn.execute("UPDATE tallies SET number = (SELECT count(*) FROM samples) WHERE name = 'samples'")


def _compute(db: Database, ids: Sequence[int]) -> None:
    among = marks(ids)

    def read(sql: str) -> _Rows:
        return db.conn.execute(sql.replace("{ids}", among), list(ids))

    facts: dict[int, dict[str, Any]] = {}
    words: dict[int, list[str]] = {}
    for sample_id, source, split, question, reference, turns in read(
        """SELECT id, source, split, question, reference,
                  (SELECT count(*) FROM json_each(messages) WHERE json_extract(value, '$.role') = 'user')
           FROM samples WHERE id IN ({ids})"""
    ):
        facts[sample_id] = {"source": source, "split": split, "turns": min(turns, MOST), "answers": 0}
        words[sample_id] = [question, reference or ""]
    for sample_id, text in read("SELECT sample_id, text FROM candidates WHERE sample_id IN ({ids}) ORDER BY id"):
        known = facts[sample_id]
        known["answers"] = min(known["answers"] + 1, MOST)
        known["longest"] = max(known.get("longest", 0), len(text))
        words[sample_id].append(text)
    for sample_id, text in read("SELECT sample_id, text FROM notes WHERE sample_id IN ({ids}) ORDER BY id"):
        words[sample_id].append(text)
    for table, name in (
        ("pairs", "pairs"),
        ("flags", "flags"),
        ("skips", "skips"),
        ("discards", "discarded"),
        ("sample_images", "images"),
    ):
        for sample_id, number in read(
            f"SELECT sample_id, count(*) FROM {table} WHERE sample_id IN ({{ids}}) GROUP BY sample_id"
        ):
            facts[sample_id][name] = min(number, MOST)
    _judged(facts, read)
    _write(db, ids, facts, words)


def _judged(facts: dict[int, dict[str, Any]], read: Callable[[str], _Rows]) -> None:
    """What raters said: their latest ok judgements alone count."""
    kinds: dict[int, dict[str, set[int]]] = {}
    latest: dict[int, tuple[int, str]] = {}  # judgement → sample, kind
    newest: dict[tuple[int, int], int] = {}
    for judgement, sample_id, rater, state, kind in read(
        """SELECT j.id, j.sample_id, j.rater_id, j.state, r.kind FROM judgements j
           JOIN raters r ON r.id = j.rater_id WHERE j.sample_id IN ({ids}) ORDER BY j.id"""
    ):
        known = facts[sample_id]
        trouble = known.setdefault("_trouble", {})
        trouble.pop(rater, None)
        if state != "ok":
            trouble[rater] = PROBLEM_BITS[state]
            continue
        if (before := newest.get((sample_id, rater))) is not None:
            del latest[before]
        newest[sample_id, rater] = judgement
        latest[judgement] = sample_id, kind
        kinds.setdefault(sample_id, {}).setdefault(kind, set()).add(rater)
    given: dict[int, dict[int, dict[str, list[list[int | None]]]]] = {}
    for judgement, candidate, *values in read(
        f"""SELECT s.judgement_id, s.candidate_id, {", ".join(f"s.{name}" for name in METRICS)}
            FROM scores s JOIN judgements j ON j.id = s.judgement_id WHERE j.sample_id IN ({{ids}})"""
    ):
        if judgement not in latest:
            continue
        sample_id, kind = latest[judgement]
        known = facts[sample_id]
        for name, value in zip(METRICS, values, strict=True):
            if value is not None:
                known[name] = known.get(name, 0) | 1 << value
        given.setdefault(sample_id, {}).setdefault(candidate, {}).setdefault(kind, []).append(values)
    for sample_id, known in facts.items():
        by = kinds.get(sample_id, {})
        people = by.get("person", set())
        known["problems"] = 0
        for bit in known.pop("_trouble", {}).values():
            known["problems"] |= bit
        if known["answers"]:
            known["people"] = min(len(people), MOST)
            known["labels"] = 1 + bool(by.get("judge")) + 2 * bool(people)
        else:
            known["labels"] = 0
        gaps = [gap for kind in given.get(sample_id, {}).values() if (gap := gap_of(kind)) is not None]
        # The least bit more: means of thirds fall short of a quarter that they make up.
        known["gap"] = int(max(gaps) * 4 + 1e-6) if gaps else None


def gap_of(given: dict[str, list[list[int | None]]]) -> float | None:
    """How far judges and people differ on one candidate (pure): the mean over metrics of |mean − mean|.

    Args:
        given: kind of rater → the five values of each rater, None where one is missing.

    Metrics that only one side has scored do not count; None where none is left.
    """
    differences = []
    for place in range(len(METRICS)):
        sides = []
        for kind in ("judge", "person"):
            values = [one[place] for one in given.get(kind, [])]
            known = [value for value in values if value is not None]
            if known:
                sides.append(sum(known) / len(known))
        if len(sides) == 2:
            differences.append(abs(sides[0] - sides[1]))
    return sum(differences) / len(differences) if differences else None


_COLUMNS = (
    *("source", "split", "labels", "answers", "people", "problems", "pairs", "flags", "skips", "discarded"),
    *("images", "turns", "gap", "longest"),
    *METRICS,
)
_NONE = dict.fromkeys(("pairs", "flags", "skips", "discarded", "images"), 0)


def _write(
    db: Database, ids: Sequence[int], facts: dict[int, dict[str, Any]], words: dict[int, list[str]]
) -> None:
    gone = [sample_id for sample_id in ids if sample_id not in facts]
    db.conn.executemany("DELETE FROM words_fts WHERE rowid = ?", [[sample_id] for sample_id in ids])
    db.conn.executemany("DELETE FROM sample_facts WHERE sample_id = ?", [[sample_id] for sample_id in gone])
    sets = ", ".join(f"{name} = ?" for name in _COLUMNS)
    db.conn.executemany(
        f"UPDATE sample_facts SET {sets} WHERE sample_id = ?",
        [[*({**_NONE, **known}.get(name) for name in _COLUMNS), sample_id] for sample_id, known in facts.items()],
    )
    db.conn.executemany(
        "INSERT INTO words_fts (rowid, text) VALUES (?, ?)",
        [[sample_id, "\n".join(texts)] for sample_id, texts in words.items()],
    )
