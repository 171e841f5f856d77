"""Figures of gradings, computed once: a grading never changes, and resampling thousands of items takes a while."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import TypeVar

from sqlite_utils import Database

from jobs.benchmarks.contract import Benchmark
from jobs.benchmarks.measures import Figure, Graded, by_category, difference, figure
from storage.evaluations import grades_of

MOST_FIGURES = 4000
MOST_GRADINGS = 24  # of nine thousand items each, about 100 MB

Found = TypeVar("Found")


class Kept:
    """The values that were asked for last, by key; safe to share between threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Found]) -> Found:
        """The value, made where it is not held; two threads at once may both make it, and it is the same."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]  # type: ignore[return-value]
        made = make()
        with self._lock:
            self._held[key] = made
            while len(self._held) > self.most:
                self._held.popitem(last=False)
        return made


class Book:
    """What one data folder's gradings came to. A number of a grading is never given twice."""

    def __init__(self) -> None:
        self.gradings = Kept(MOST_GRADINGS)
        self.figures = Kept(MOST_FIGURES)


class Figures:
    """A book opened with a connection."""

    def __init__(self, db: Database, book: Book | None = None) -> None:
        self._db = db
        self._book = book or Book()

    def grades(self, grading_id: int) -> tuple[Graded, ...]:
        """In the benchmark's order."""

        def read() -> tuple[Graded, ...]:
            return tuple(
                Graded(one.id, one.sums, one.categories, one.characters, one.unit, one.why)
                for one in grades_of(self._db, grading_id)
            )

        return self._book.gradings.get(grading_id, read)

    def items_key(self, grading_id: int) -> str:
        """Equal where two gradings are of items of the same names."""

        def made() -> str:
            names = sorted(one.id for one in self.grades(grading_id))
            return hashlib.sha256("\0".join(names).encode()).hexdigest()

        return self._book.figures.get(("items", grading_id), made)

    def figure(self, grading_id: int, benchmark: Benchmark, measure: str) -> Figure:
        score = benchmark.measures[measure]
        return self._book.figures.get(
            ("figure", grading_id, benchmark.name, measure), lambda: figure(self.grades(grading_id), score)
        )

    def difference(self, grading_id: int, base_id: int, benchmark: Benchmark, measure: str) -> Figure:
        """Paired, over the items that both have a grade for."""
        score = benchmark.measures[measure]
        return self._book.figures.get(
            ("difference", grading_id, base_id, benchmark.name, measure),
            lambda: difference(self.grades(grading_id), self.grades(base_id), score),
        )

    def categories(self, grading_id: int, benchmark: Benchmark, measure: str) -> dict[str, Figure]:
        score = benchmark.measures[measure]
        return self._book.figures.get(
            ("categories", grading_id, benchmark.name, measure),
            lambda: by_category(self.grades(grading_id), score),
        )
