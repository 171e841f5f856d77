"""Samples in an order, whatever selects them: read from the index that leaves the fewest, and counted only so far.

A filter names several things: facts (each an indexed column of `sample_facts`), words, a rater. One of them leads:
its rows come in the order of the ids, and the others are asked row by row. Which one is found by counting each a
little way, so a source of three samples among a million leads, and so does a rare word.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlite_utils import Database

from storage.filters import ORDER_COLUMNS, Clause, SampleFilter
from storage.rows import count, marks, rows

COUNTED = 20_000  #: what is counted exactly
COMMON = 5_000  #: samples that have a word which is then asked for as a whole
_WORDS_ASKED = 32  # of a search; the others are passed over
_PREFIX = 4  # letters of the longest beginnings that the table keeps lists of
_ALL = 2**62
_FEW = 2_000  # rows that may be sorted
_SAMPLED = 2_000  # rows of an estimate
_STEP, _STEPS = 10_000, 150  # of SQLite's machine: what counting may cost before it is given up

Place = tuple[Any, ...]  # of a sample in an order: (its value, its id), or its id alone


@dataclass(frozen=True)
class Count:
    """How many; `kind` "about" is an estimate, "over" a lower bound."""

    number: int
    kind: Literal["exact", "about", "over"] = "exact"

    @property
    def told(self) -> str:
        return f"{'' if self.kind == 'exact' else self.kind + ' '}{self.number:,}"


@dataclass(frozen=True)
class Lead:
    """Rows in the order of the ids.

    Attributes:
        sql: selects them as `id`, once for each of `values`.
        place: the column to seek by; SQLite does so in the leading table alone.
        size: selects as many rows, at less cost.
    """

    sql: str
    place: str
    size: str
    values: Sequence[Any]


@dataclass(frozen=True)
class Selection:
    """A filter, and what else is asked.

    Attributes:
        clauses: more facts, beside the filter's.
        sql, values: a condition on `sample_facts f`, beside both.
        lead: what else must select a sample, and leads.
    """

    where: SampleFilter
    clauses: tuple[Clause, ...] = ()
    sql: str = "1"
    values: tuple[Any, ...] = ()
    lead: Lead | None = None

    @property
    def facts(self) -> list[Clause]:
        return sorted((*self.clauses, *self.where.clauses()), key=lambda one: one.rank)

    def condition(self, db: Database, with_words: bool = True) -> tuple[str, list[Any]]:
        """All of it as one condition on `sample_facts f`; without the words where they lead."""
        parts, values = [f"({self.sql})"], list(self.values)
        column, _ = ORDER_COLUMNS[self.where.order]
        if column != "sample_id":  # what has no place in an order is not in it
            parts.append(f"f.{column} IS NOT NULL")
        if self.where.state != "discarded":
            parts.append("f.discarded IS NOT 1")
        for clause in self.facts:
            parts.append(f"+f.{clause.column} IN ({marks(clause.values)})")
            values += clause.values
        if self.where.rater:
            ids = _raters(db, self.where.rater)
            parts.append(
                f"EXISTS (SELECT 1 FROM judgements j WHERE j.sample_id = f.sample_id"
                f" AND j.rater_id IN ({marks(ids)}) AND j.state = 'ok')"
            )
            values += ids
        if self.where.q and with_words:
            parts.append(_with_words(words := spelt(db, self.where.q)))
            values.append(words)
        return " AND ".join(parts), values


def _with_words(words: str) -> str:
    """The condition on `sample_facts f` for words that do not lead: row by row, where FTS5 need not put a list
    together for it, else from a list made once."""
    if all(len(word) <= _PREFIX + 3 or not word.endswith("*") for word in words.split()):  # quotes and the star
        return "EXISTS (SELECT 1 FROM words_fts WHERE words_fts MATCH ? AND words_fts.rowid = f.sample_id)"
    return "f.sample_id IN (SELECT rowid FROM words_fts WHERE words_fts MATCH ?)"


def spelt(db: Database, text: str) -> str:
    """Words as FTS5 asks for them: each a quoted beginning of a word, so that no character is an operator.

    A word that very many samples have is asked for as it is: FTS5 reads its list from any place on, whereas it
    puts the lists of all words of one beginning together first (but for the short ones that the table keeps).
    """
    found = []
    for word in text.replace('"', " ").replace("\0", " ").split()[:_WORDS_ASKED]:
        sql = f"SELECT count(*) FROM (SELECT 1 FROM words_fts WHERE words_fts MATCH ? LIMIT {COMMON})"
        found.append(f'"{word}"' if count(db, sql, [f'"{word}"']) == COMMON else f'"{word}"*')
    return " ".join(found) or '""'


# --- which index leads ---


def _leads(db: Database, selection: Selection) -> list[Lead]:
    """What could lead, the likely narrowest first."""
    where = selection.where
    found: list[Lead] = []
    if selection.lead is not None:
        return [selection.lead]
    if where.q:
        sql = """SELECT words_fts.rowid AS id FROM words_fts CROSS JOIN sample_facts f
                 ON f.sample_id = words_fts.rowid WHERE words_fts MATCH ?"""
        size = "SELECT 1 FROM words_fts WHERE words_fts MATCH ?"
        found.append(Lead(sql, _WORDS, size, [spelt(db, where.q)]))
    if where.rater:
        found.append(scored_by(_raters(db, where.rater)))
    for clause in selection.facts:
        column = clause.column
        sql = f"SELECT f.sample_id AS id FROM sample_facts f INDEXED BY facts_{column} WHERE f.{column} = ?"
        size = f"SELECT 1 FROM sample_facts WHERE {column} = ?"
        found.append(Lead(sql, "f.sample_id", size, clause.values))
    return found or [_EVERYTHING]


def scored_by(raters: Sequence[int]) -> Lead:
    """Samples that these raters have scored, by id of the rater."""
    return Lead(
        """SELECT DISTINCT j.sample_id AS id FROM judgements j INDEXED BY judgements_by_rater
           CROSS JOIN sample_facts f ON f.sample_id = j.sample_id WHERE j.rater_id = ? AND j.state = 'ok'""",
        "j.sample_id",
        "SELECT 1 FROM judgements WHERE rater_id = ?",
        raters,
    )


_WORDS = "words_fts.rowid"
_EVERYTHING = Lead("SELECT f.sample_id AS id FROM sample_facts f WHERE ?", "f.sample_id", "", [1])


def _narrowest(db: Database, leads: list[Lead], needed: bool = False) -> tuple[Lead, int]:
    """The one with the fewest rows, and how many it has, counted up to `_FEW`; only where it is `needed`."""
    if len(leads) == 1 and not needed:
        return leads[0], _FEW
    sizes = [_size(db, lead) for lead in leads]
    place = min(range(len(leads)), key=sizes.__getitem__)  # of several that are large the first
    return leads[place], sizes[place]


def _size(db: Database, lead: Lead) -> int:
    if not lead.size:
        return _FEW
    found = 0
    for value in lead.values:
        found += count(db, f"SELECT count(*) FROM ({lead.size} LIMIT {_FEW - found})", [value])
        if found >= _FEW:
            break
    return found


# --- pages ---


def place_of(db: Database, where: SampleFilter, sample_id: int) -> Place | None:
    """A sample's place in the filter's order; None where it has none."""
    column, _ = ORDER_COLUMNS[where.order]
    if column == "sample_id":
        return (sample_id,)
    found = rows(db, f"SELECT {column} AS value FROM sample_facts WHERE sample_id = ?", [sample_id])
    return (found[0]["value"], sample_id) if found and found[0]["value"] is not None else None


def ids_in_order(
    db: Database, selection: Selection, start: Place | None, limit: int = _ALL, forward: bool = True
) -> list[int]:
    """Ids in the filter's order after a place, or before it, nearest first; None: from the beginning, or end."""
    column, falling = ORDER_COLUMNS[selection.where.order]
    if _impossible(selection):
        return []
    if column == "sample_id":
        return ids_by_id(db, selection, start[0] if start else None, limit, falling == forward)
    leads = [lead for lead in _leads(db, selection) if lead is not _EVERYTHING]
    if leads:
        lead, size = _narrowest(db, leads, needed=True)
        if size < _FEW:
            return _sorted(db, selection, lead, start, limit, forward)
    condition, values = selection.condition(db)
    sign, way = (">", "ASC") if falling != forward else ("<", "DESC")
    parts: list[tuple[str, list[Any]]] = [(f"f.{column} IS NOT NULL", [])]
    if start is not None:  # apart: SQLite seeks to the value alone, and many samples may have the same
        parts = [(f"f.{column} = ? AND f.sample_id {sign} ?", list(start)), (f"f.{column} {sign} ?", [start[0]])]
    least = _least_people(db, selection) if column == "people" else 0
    found: list[int] = []
    for beyond, place in parts:
        sql = f"""SELECT f.sample_id FROM sample_facts f INDEXED BY facts_{column}
                  WHERE {beyond} AND f.{column} >= {least} AND {condition}
                  ORDER BY f.{column} {way}, f.sample_id {way} LIMIT ?"""
        found += [row[0] for row in db.conn.execute(sql, [*place, *values, limit - len(found)])]
        if len(found) == limit:
            break
    return found


def ids_by_id(
    db: Database, selection: Selection, after: int | None = None, limit: int = 50, falling: bool = False
) -> list[int]:
    """Ids in their order, after (or, falling, before) one, whatever the filter's order is."""
    lead, _ = _narrowest(db, _leads(db, selection))
    condition, values = selection.condition(db, with_words=lead.place != _WORDS)
    sign, way = ("<", "DESC") if falling else (">", "ASC")
    beyond, place = ("1", []) if after is None else (f"{lead.place} {sign} ?", [after])
    found: set[int] = set()
    for value in lead.values:
        sql = f"{lead.sql} AND {beyond} AND {condition} ORDER BY id {way} LIMIT ?"
        found.update(row[0] for row in db.conn.execute(sql, [value, *place, *values, limit]))
    return sorted(found, reverse=falling)[:limit]


# Facts that hang together, where SQLite would walk through all samples to see that they do.


def _impossible(selection: Selection) -> bool:
    """Whether a difference is asked for where judges or people have said nothing."""
    asked = [clause for clause in selection.facts if clause.column == "labels"]
    by_gap = selection.where.order == "gap" or any(clause.column == "gap" for clause in selection.facts)
    return by_gap and any(_BOTH not in clause.values for clause in asked)


_BOTH = 4  # labels: judged by a judge, and scored by people
_BY_PEOPLE = {3, _BOTH}


def _least_people(db: Database, selection: Selection) -> int:
    """How many people have scored a sample that is selected, at least."""
    if any(clause.column == "labels" and _BY_PEOPLE.issuperset(clause.values) for clause in selection.facts):
        return 1
    name = selection.where.rater
    sql = "SELECT EXISTS (SELECT 1 FROM raters WHERE name = ? AND kind = 'judge')"
    return int(bool(name) and not count(db, sql, [name]))


def _sorted(
    db: Database, selection: Selection, lead: Lead, start: Place | None, limit: int, forward: bool
) -> list[int]:
    """The few rows of a lead, sorted."""
    column, falling = ORDER_COLUMNS[selection.where.order]
    condition, values = selection.condition(db, with_words=lead.place != _WORDS)
    beyond, place = _beyond(column, start, falling != forward)
    sql = lead.sql.replace(" AS id FROM", f" AS id, f.{column} AS value FROM")
    found: set[tuple[Any, int]] = set()
    for given in lead.values:
        for sample_id, value in db.conn.execute(f"{sql} AND {beyond} AND {condition}", [given, *place, *values]):
            found.add((value, sample_id))
    return [sample_id for _, sample_id in sorted(found, reverse=falling == forward)[:limit]]


def _beyond(column: str, start: Place | None, rising: bool) -> tuple[str, list[Any]]:
    """The condition that a row comes after a place, where values rise, or fall."""
    if start is None:
        return "1", []
    sign = ">" if rising else "<"
    if column == "sample_id":
        return f"f.sample_id {sign} ?", list(start)
    return f"(f.{column}, f.sample_id) {sign} (?, ?)", list(start)


# --- how many ---


def samples_known(db: Database) -> int:
    """All samples, discarded ones too; the number is kept, not counted."""
    return count(db, "SELECT number FROM tallies WHERE name = 'samples'")


def count_of(db: Database, selection: Selection, before: Place | None = None, most: int = COUNTED) -> Count:
    """How many a selection has, or how many of them stand before a place.

    Exact up to `most` where that costs little; else an estimate, or for words a lower bound.
    """
    if _impossible(selection):
        return Count(0)
    column, falling = ORDER_COLUMNS[selection.where.order]
    beyond, place = _beyond(column, before, falling)
    lead, _ = _narrowest(db, _leads(db, selection))
    condition, values = selection.condition(db, with_words=lead.place != _WORDS)
    if lead.place != "f.sample_id":
        beyond = beyond.replace("f.sample_id", lead.place) if column == "sample_id" else beyond
    seen: set[int] = set()
    for value in lead.values:
        sql = f"{lead.sql} AND {beyond} AND {condition} LIMIT {most + 1 - len(seen)}"
        whole = _some(db, sql, [value, *place, *values], seen)
        if len(seen) > most or not whole:
            break
    else:
        return Count(len(seen))
    least = min(len(seen), most)
    if selection.where.q:  # asking for words row by row would be dear
        return Count(least, "over")
    beyond, place = _beyond(column, before, falling)
    return _estimate(db, selection, beyond, place, least)


def _some(db: Database, sql: str, values: Sequence[Any], seen: set[int]) -> bool:
    """Add the ids that are found; False if finding all of them costs too much.

    That is counted in steps of SQLite's machine, not in seconds, so that the same database gives the same counts.
    """
    steps = iter(range(_STEPS))
    db.conn.set_progress_handler(lambda: next(steps, None) is None, _STEP)
    try:
        for row in db.conn.execute(sql, values):
            seen.add(row[0])
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return False
    finally:
        db.conn.set_progress_handler(None, _STEP)
    return True


def _estimate(db: Database, selection: Selection, beyond: str, place: list[Any], least: int) -> Count:
    """By asking a few samples, evenly spread over the ids."""
    condition, values = selection.condition(db)
    highest = count(db, "SELECT coalesce(max(sample_id), 0) FROM sample_facts")
    step = max(1, highest // _SAMPLED)
    asked, hits = db.conn.execute(
        f"""WITH RECURSIVE picked(id) AS (
                SELECT {step} UNION ALL SELECT id + {step} FROM picked WHERE id + {step} <= {highest})
            SELECT count(*), sum(CASE WHEN {beyond} AND {condition} THEN 1 ELSE 0 END)
            FROM picked CROSS JOIN sample_facts f ON f.sample_id = picked.id""",
        [*place, *values],
    ).fetchone()
    guessed = round(samples_known(db) * (hits or 0) / asked) if asked else least
    return Count(_rounded(max(guessed, least)), "about")


def _rounded(number: int) -> int:
    """Two digits: more would pretend to be exact."""
    size: int = 10 ** max(0, len(str(number)) - 2)
    return int(round(number / size) * size)


def _raters(db: Database, name: str) -> list[int]:
    return [row["id"] for row in rows(db, "SELECT id FROM raters WHERE name = ?", [name])]
