"""Who is answered next: the one whose turn was longest ago, so that five tabs of one person hold nobody up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

#: People whose last turn is remembered; whoever is forgotten counts as new, and comes first.
_REMEMBERED = 1000


class FairLine(Generic[T]):
    """A line of requests. Not safe for threads: its owner locks.

    Next is the request of the user who was served least lately; among those of one user, and among users who have
    not been served yet, whoever came first.

    Args:
        user_of: whose a request is. Requests without a name are one user's: were each a new one's, they would
            always come before whoever has been served.
    """

    def __init__(self, user_of: Callable[[T], str]) -> None:
        self._user_of = user_of
        self._waiting: list[T] = []
        self._served: dict[str, int] = {}
        self._turns = itertools.count(1)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        """In the order in which they will be served if nobody else comes."""
        left, served = list(self._waiting), dict(self._served)
        turn = max(served.values(), default=0)
        while left:
            chosen = self._next(left, served)
            left.remove(chosen)
            turn += 1
            served[self._user_of(chosen)] = turn
            yield chosen

    def add(self, request: T) -> None:
        self._waiting.append(request)

    def pop(self) -> T:
        """Take out the next one. Raises IndexError where nobody waits."""
        if not self._waiting:
            raise IndexError("nobody waits")
        chosen = self._next(self._waiting, self._served)
        self._waiting.remove(chosen)
        user = self._user_of(chosen)
        self._served.pop(user, None)  # so that the latest stands last
        self._served[user] = next(self._turns)
        if len(self._served) > _REMEMBERED:
            del self._served[next(iter(self._served))]
        return chosen

    def _next(self, waiting: list[T], served: dict[str, int]) -> T:
        return min(waiting, key=lambda request: served.get(self._user_of(request), 0))
