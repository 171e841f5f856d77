"""A limit on guessing: so many wrong attempts within a time, by address and by name."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

MOST_KEYS = 20_000  # of somebody who guesses names from many addresses, the oldest are forgotten


class Limit(NamedTuple):
    """`most` attempts under one key within `seconds`."""

    most: int
    seconds: float


class TooManyAttempts(Exception):
    """Somebody guesses; `wait` is in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"too many wrong attempts; wait {wait:.0f} seconds")
        self.wait = wait


Keyed = Sequence[tuple[str, Limit]]


class Attempts:
    """Counts an attempt before it is judged, so that a hundred sent at once are not all judged; a right one is
    taken off again. While a key is full nothing is judged under it, right or wrong: nobody learns by trying on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._past: dict[str, deque[float]] = {}
        self._lock = Lock()

    def begin(self, keyed: Keyed) -> float:
        """Count an attempt under all keys; answers what `forgive` takes it off by.

        Raises:
            TooManyAttempts: one of the keys is full; nothing was counted.
        """
        with self._lock:
            moment = self._clock()
            wait = max((self._wait(key, limit, moment) for key, limit in keyed), default=0.0)
            if wait > 0:
                raise TooManyAttempts(wait)
            for key, _ in keyed:
                self._past.setdefault(key, deque()).append(moment)
                self._past[key] = self._past.pop(key)  # the latest stands last
            while len(self._past) > MOST_KEYS:
                del self._past[next(iter(self._past))]
            return moment

    def forgive(self, keyed: Keyed, moment: float) -> None:
        """It was right: take this one off. Earlier ones stay, or a guesser would log in between guesses."""
        with self._lock:
            for key, _ in keyed:
                past = self._past.get(key)
                if past and moment in past:
                    past.remove(moment)
                    if not past:
                        del self._past[key]

    def _wait(self, key: str, limit: Limit, moment: float) -> float:
        past = self._past.get(key, deque())
        while past and past[0] <= moment - limit.seconds:
            past.popleft()
        return past[0] + limit.seconds - moment if len(past) >= limit.most else 0.0


def address_key(client: str) -> str:
    """One key for whatever one subscriber can send from: of IPv6 the first 64 bits."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return f"address:{client[:100]}"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return f"address:{address.ipv4_mapped}"
        return f"address:{ipaddress.ip_network((address, 64), strict=False)}"
    return f"address:{address}"


def name_key(name: str, device: str) -> str:
    """A name as typed, of any length; known devices of its owner are counted apart from everybody else's."""
    return f"name:{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()}:{device}"
