"""What has been imported: the last imports, by whom and when; and the sources with their samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlite_utils import Database

from storage.database import immediate
from storage.finding import facets
from storage.rows import count, one
from storage.settings import get_setting, put_setting

_NAME = "imports"
_KEPT = 200  # the latest
#: Samples of a source are counted up to this; a million index entries would take too long at each opening.
COUNTED = 100_000


@dataclass(frozen=True)
class Done:
    """An import that has ended, or was ended, at `at` (UTC, ISO 8601)."""

    source: str
    kind: str
    user: str
    at: str
    added: int
    known: int
    broken: int


@dataclass(frozen=True)
class Source:
    """A source with its samples, at most `COUNTED`, and its latest import; None where that isn't known."""

    name: str
    samples: int
    last: Done | None


def note_import(db: Database, done: Done) -> None:
    """Remember it."""
    with immediate(db):
        put_setting(db, _NAME, [asdict(done), *_kept(db)][:_KEPT])


def last_imports(db: Database) -> list[Done]:
    """The latest first, at most 200."""
    return [Done(**one) for one in _kept(db)]


def list_sources(db: Database, most: int = 200) -> list[Source]:
    """The sources that have samples: those imported last first, then the others by name; at most so many."""
    last: dict[str, Done] = {}
    for done in last_imports(db):
        last.setdefault(done.source, done)
    names = set(facets(db)["source"])
    ordered = [name for name in last if name in names] + sorted(names - last.keys())
    return [Source(name, _samples(db, name), last.get(name)) for name in ordered[:most]]


def sources_version(db: Database) -> tuple[Any, ...]:
    """Differs once a sample has come or gone, or an import was noted; cheap."""
    number = one(db, "SELECT number FROM tallies WHERE name = 'samples'")
    newest = one(db, "SELECT max(id) AS id FROM samples")
    return (number and number["number"], newest and newest["id"], str(_kept(db)[:1]))


def _samples(db: Database, source: str) -> int:
    return count(
        db, "SELECT count(*) FROM (SELECT 1 FROM sample_facts WHERE source = ? LIMIT ?)", [source, COUNTED]
    )


def _kept(db: Database) -> list[Mapping[str, Any]]:
    return list(get_setting(db, _NAME, []))
