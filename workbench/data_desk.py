"""What the Data page does: takes files in, looks through them, imports them in the background. Above Gradio.

Each person has one arrival at a time: uploaded files, or a hub's data set, on its way into the database. It lives
in this process and not in a browser's tab: a reload, or another tab, finds it where it is. Work runs in threads
with connections of their own; imports take turns.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from jobs import hub_data
from storage.database import session
from storage.errors import Conflict, PlumbError, UserError
from storage.folder import DataFolder
from storage.imports.done import Source, list_sources, sources_version
from storage.imports.formats import FORMATS
from storage.imports.intake import Halt, Report, import_rows
from storage.imports.reading import Import
from storage.imports.staging import Guess, Room, Staged, guess, stage
from storage.imports.survey import Survey, survey
from workbench.data_preview import Preview, preview

Stage = Literal["fetching", "unpacking", "looking", "ready", "waiting", "importing", "done", "failed"]
BUSY: frozenset[Stage] = frozenset({"fetching", "unpacking", "looking", "waiting", "importing"})
LONGEST_SOURCE, LONGEST_SPLIT = 200, 60
#: Seconds between two batches of an import: whoever saves meanwhile gets the database, and the process' time.
REST = 0.01
FIRST = 5  # samples that are shown before an import

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What is to be imported, as the form says it.

    Attributes:
        files: names of files of rows, relative to the folder that holds all.
    """

    kind: str
    files: tuple[str, ...]
    source: str
    split: str = ""
    strict: bool = False


@dataclass
class Arrival:
    """One person's files on their way.

    Attributes:
        name: of what was uploaded, for messages.
        done, total, unit: how far the stage is; total 0 where that isn't known.
        problem: why the last step failed; what it was made of stays, so that it can be tried again, unless the
            stage is "failed".
        form: counts up when the form's fields have new suggestions.
        outlook: what an import of `choice` would do.
        report: of the import, while it runs, too.
    """

    user: str
    name: str
    folder: Path
    stage: Stage
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    done: int = 0
    total: int = 0
    unit: str = ""
    problem: str = ""
    form: int = 0
    staged: Staged | None = None
    guess: Guess | None = None
    choice: Choice | None = None
    outlook: Survey | None = None
    previews: Sequence[Preview] = ()
    report: Report | None = None
    behind: str = ""
    began: float = 0.0
    seconds: float = 0.0
    halt: threading.Event = field(default_factory=threading.Event)
    turn: int = 0

    @property
    def busy(self) -> bool:
        return self.stage in BUSY

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files of rows."""
        if self.staged is None:
            return ()
        return tuple(file.relative_to(self.staged.folder).as_posix() for file in self.staged.rows)

    def wanted(self, choice: Choice) -> Import:
        """What an import of a choice reads."""
        assert self.staged is not None
        assert self.guess is not None
        by_name = dict(zip(self.files, self.staged.rows, strict=True))
        files = tuple(by_name[name] for name in choice.files if name in by_name)
        return Import(choice.kind, self.staged.folder, self.guess.images, choice.source, choice.split, files)


class _Ended(Exception):
    """The work was called off, or newer work has taken its place."""


class Desk:
    """The arrivals of one web process."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._room = Room(folder)
        self._lock = threading.Lock()
        self._importing = threading.Lock()
        self._at_work: Arrival | None = None
        self._arrivals: dict[str, Arrival] = {}
        self._sources: tuple[object, list[Source]] | None = None

    def open(self) -> None:
        """Clear away what processes left that have died."""
        with contextlib.suppress(OSError):  # a folder that cannot be written is told where something is written
            self._room.clear_others()

    def of(self, user: str) -> Arrival | None:
        """This person's arrival."""
        return self._arrivals.get(user)

    def others(self, user: str) -> list[Arrival]:
        """Imports of other people that are at work or wait."""
        found = list(self._arrivals.values())
        return [one for one in found if one.user != user and one.stage in ("waiting", "importing")]

    def sources(self) -> list[Source]:
        """What is there by source; remembered until something changes."""
        with session(self._folder) as db:
            version = sources_version(db)
            if self._sources is None or self._sources[0] != version:
                self._sources = (version, list_sources(db))
        return self._sources[1]

    def receive(self, user: str, files: Sequence[tuple[str, Path]]) -> Arrival:
        """Take uploaded files (name, where each lies) and look through them, in the background.

        Raises:
            UserError: there are none.
            Conflict: an import of this person's is at work.
        """
        if not files:
            raise UserError("Files = none: choose files with rows and images, or a zip.")
        named = files[0][0] if len(files) == 1 else f"{files[0][0]} and {len(files) - 1} more"
        arrival = self._begin(user, named, "unpacking")
        held = [(name, _moved(path, arrival.folder / "uploaded")) for name, path in files]
        self._work(arrival, lambda turn: self._stage(arrival, turn, held))
        return arrival

    def fetch(self, user: str, text: str) -> Arrival:
        """Fetch a hub's data set and look through it, in the background.

        Raises:
            UserError: that is no data set's name.
            Conflict: as `receive`.
        """
        address = hub_data.read_address(text)
        arrival = self._begin(user, f"hub:{address.name}", "fetching")
        arrival.unit = "bytes"

        def work(turn: int) -> None:
            into = arrival.folder / "fetched"
            into.mkdir()
            files = hub_data.fetch(address, into, self._tell(arrival, turn))
            self._stage(arrival, turn, files)

        self._work(arrival, work)
        return arrival

    def look(self, user: str, choice: Choice) -> None:
        """Look through the rows as this choice reads them, where that isn't what was looked at."""
        arrival = self._need(user)
        if arrival.stage not in ("ready", "looking") or arrival.choice == choice:
            return
        if replace(choice, strict=False) == (arrival.choice and replace(arrival.choice, strict=False)):
            arrival.choice = choice
            return
        before = arrival.choice
        if before and before.kind != choice.kind and choice.source == _source_name(before.kind, arrival.name):
            choice = replace(choice, source=_source_name(choice.kind, arrival.name))
            arrival.form += 1
        check(choice, arrival)
        self._work(arrival, lambda turn: self._look(arrival, turn, choice))

    def begin(self, user: str, choice: Choice) -> None:
        """Import, in the background, in turn.

        Raises:
            UserError: a field cannot be used; strict, and rows are broken.
            Conflict: nothing lies ready, or it is at work already.
        """
        arrival = self._need(user)
        if arrival.stage not in ("ready", "looking") or arrival.outlook is None:
            raise Conflict("Wait until the files have been looked through; the import starts from there.")
        check(choice, arrival)
        looked = arrival.outlook
        if choice.strict and looked is not None and looked.broken_number:
            raise UserError(
                f"Nothing was imported, since {looked.broken_number:,} rows are broken (they are told below). "
                "Mend them, or untick “Only if no row is broken”."
            )
        arrival.choice = choice
        self._work(arrival, lambda turn: self._import(arrival, turn, choice), "waiting")

    def cancel(self, user: str) -> None:
        """End what is at work: an import after its batch; a look or a fetch, with its files."""
        arrival = self._need(user)
        arrival.halt.set()
        if arrival.stage not in ("waiting", "importing"):
            self.remove(user)

    def remove(self, user: str) -> None:
        """Forget an arrival and remove its files.

        Raises:
            Conflict: its import is at work.
        """
        with self._lock:
            arrival = self._arrivals.get(user)
            if arrival is None:
                return
            if arrival.stage in ("waiting", "importing"):
                raise Conflict("The import is at work. Cancel it first.")
            self._forget(arrival)

    def _need(self, user: str) -> Arrival:
        arrival = self._arrivals.get(user)
        if arrival is None:
            raise Conflict("The files are gone: they were removed, or Plumb was started anew. Upload them again.")
        return arrival

    def _begin(self, user: str, name: str, stage: Stage) -> Arrival:
        with self._lock:
            before = self._arrivals.get(user)
            if before is not None and before.stage in ("waiting", "importing"):
                raise Conflict(f"Your import of {before.name} is at work. Wait for its end, or cancel it.")
            if before is not None:
                self._forget(before)
            arrival = Arrival(user, name, self._room.new_folder(), stage)
            self._arrivals[user] = arrival
            return arrival

    def _forget(self, arrival: Arrival) -> None:
        arrival.halt.set()
        self._arrivals.pop(arrival.user, None)
        shutil.rmtree(arrival.folder, ignore_errors=True)

    def _work(self, arrival: Arrival, work: Callable[[int], None], stage: Stage | None = None) -> None:
        """Run it in a thread; older work on the same arrival ends."""
        with self._lock:
            arrival.turn += 1
            turn = arrival.turn
            arrival.problem, arrival.done, arrival.total = "", 0, 0
            if stage is not None:
                arrival.stage = stage
            arrival.halt.clear()

        def run() -> None:
            try:
                work(turn)
            except _Ended:
                pass
            except PlumbError as error:
                self._fail(arrival, turn, str(error))
            except Exception as error:  # a thread that dies says nothing to anybody: the page would wait for ever
                if self._arrivals.get(arrival.user) is arrival:
                    log.exception("The import of %s could not go on", arrival.name)
                self._fail(arrival, turn, f"It broke off: {type(error).__name__}: {error}")
            if self._arrivals.get(arrival.user) is not arrival:  # removed meanwhile: what was written since, too
                shutil.rmtree(arrival.folder, ignore_errors=True)

        threading.Thread(target=run, name="import", daemon=True).start()

    def _fail(self, arrival: Arrival, turn: int, why: str) -> None:
        if arrival.turn == turn:
            arrival.problem = why
            arrival.stage = "ready" if arrival.choice is not None else "failed"

    def _tell(self, arrival: Arrival, turn: int) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            if arrival.halt.is_set() or arrival.turn != turn:
                raise _Ended
            arrival.done, arrival.total = done, total

        return tell

    def _stage(self, arrival: Arrival, turn: int, files: Sequence[tuple[str, Path]]) -> None:
        arrival.stage, arrival.unit = "unpacking", "bytes"
        into = arrival.folder / "in"
        into.mkdir()
        arrival.staged = stage(files, into, self._tell(arrival, turn))
        arrival.stage, arrival.unit, arrival.done, arrival.total = "looking", "rows", 0, 0
        found = arrival.guess = guess(arrival.staged)
        folder = arrival.staged.folder
        names = tuple(file.relative_to(folder).as_posix() for file in found.files)
        arrival.form += 1
        kind = found.kind or "jsonl"
        self._look(arrival, turn, Choice(kind, names, _source_name(kind, arrival.name)))

    def _look(self, arrival: Arrival, turn: int, choice: Choice) -> None:
        tell, before, staged = self._tell(arrival, turn), arrival.choice, arrival.staged
        assert staged is not None
        with self._lock:
            tell(0, 0)
            arrival.stage, arrival.unit, arrival.choice = "looking", "rows", choice
            if before is None or (before.kind, before.files) != (choice.kind, choice.files):
                arrival.outlook = None  # what it told is not of these rows
        if before is not None and before.kind != choice.kind:
            arrival.guess = guess(staged, choice.kind)
        with session(self._folder) as db:
            found = survey(arrival.wanted(choice), db, FIRST, lambda rows: tell(rows, 0))
        previews = [preview(place, one) for place, one in found.first]
        with self._lock:
            tell(found.rows, found.rows)
            arrival.outlook, arrival.previews, arrival.stage = found, previews, "ready"

    def _import(self, arrival: Arrival, turn: int, choice: Choice) -> None:
        while not self._importing.acquire(timeout=0.2):
            other = self._at_work
            arrival.behind = f"{other.user}'s import of {other.name}" if other else ""
            if arrival.halt.is_set():
                arrival.stage, arrival.problem = "ready", "The import was cancelled before it began."
                return
        try:
            self._at_work = arrival
            rows = arrival.outlook.rows if arrival.outlook else 0
            arrival.stage, arrival.unit, arrival.total = "importing", "rows", rows
            arrival.began, arrival.report = time.monotonic(), Report()

            def watch(read: int, report: Report) -> None:
                arrival.done, arrival.report = read, replace(report)
                if arrival.halt.wait(REST):
                    raise Halt

            with session(self._folder) as db:
                what = arrival.wanted(choice)
                report = import_rows(db, self._folder, what, arrival.user, choice.strict, watch)
            arrival.report, arrival.seconds = report, time.monotonic() - arrival.began
        finally:
            self._at_work = None
            self._importing.release()
        if not report.halted:
            shutil.rmtree(arrival.folder, ignore_errors=True)
        arrival.stage = "ready" if report.halted else "done"


def check(choice: Choice, arrival: Arrival) -> None:
    """Raise UserError where a field cannot be used."""
    if choice.kind not in FORMATS:
        raise UserError(f"Kind = {choice.kind!r}: choose {', '.join(FORMATS)}.")
    if not set(choice.files) & set(arrival.files):
        raise UserError("Files of rows = none: tick at least one.")
    for title, value, most in (
        ("Source", choice.source, LONGEST_SOURCE),
        ("Split", choice.split, LONGEST_SPLIT),
    ):
        if len(value) > most or not value.isprintable():
            raise UserError(f"{title} = {value[:40]!r}: give at most {most} characters in one line.")
    if not choice.source:
        raise UserError("Source = empty: name what the samples are filed under.")


def _source_name(kind: str, name: str) -> str:
    stem = name.split(" and ")[0]
    for ending in (".zip", ".jsonl", ".json", ".parquet", ".arrow"):
        stem = stem.removesuffix(ending)
    return (stem if stem.startswith("hub:") else kind if kind == "vqa-rad" else f"{kind}:{stem}")[:LONGEST_SOURCE]


def _moved(path: Path, into: Path) -> Path:
    """The file under a name of its own in a folder of ours; Gradio keeps uploads for a day otherwise."""
    into.mkdir(exist_ok=True)
    target = into / secrets.token_hex(8)
    shutil.move(path, target)
    return target
