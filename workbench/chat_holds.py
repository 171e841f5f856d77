"""Which rounds of the chat use which model's process, so that none is replaced under an answer.

One place for the whole web process: rounds of all users hold here what they use. Nothing here waits or reads
the database, so that the event loop may call it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from types import TracebackType

from storage.folder import DataFolder

_lock = threading.Lock()
_running: Counter[tuple[DataFolder, int]] = Counter()
_wanted: Counter[tuple[DataFolder, int]] = Counter()


class Hold:
    """One round's hold on a process, or its wait for others to let go of one. Empty after `with`, for good.

    A thread that still looks for a process when the round has ended thus cannot hold one for ever.
    """

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._held: list[tuple[DataFolder, int]] = []
        self._awaited: list[tuple[DataFolder, int]] = []
        self._ended = False

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._change([], [], ended=True)

    def take(self, job_id: int) -> None:
        """Use this process, and no other any more."""
        self._change([job_id], [])

    def wait_for(self, job_ids: Iterable[int]) -> None:
        """Use none; these are to be replaced once nobody uses them, and nobody new should."""
        self._change([], job_ids)

    def drop(self) -> None:
        self._change([], [])

    def _change(self, held: Iterable[int], awaited: Iterable[int], ended: bool = False) -> None:
        with _lock:
            _running.subtract(self._held)
            _wanted.subtract(self._awaited)
            self._ended = self._ended or ended
            self._held = [] if self._ended else [(self._folder, job_id) for job_id in held]
            self._awaited = [] if self._ended else [(self._folder, job_id) for job_id in awaited]
            _running.update(self._held)
            _wanted.update(self._awaited)
            for counter in (_running, _wanted):
                for key in [key for key, count in counter.items() if not count]:
                    del counter[key]


def rounds_on(folder: DataFolder, job_id: int) -> int:
    """How many rounds use this process now."""
    with _lock:
        return _running[folder, job_id]


def is_wanted_gone(folder: DataFolder, job_id: int) -> bool:
    """Whether somebody waits for this process to be replaced."""
    with _lock:
        return _wanted[folder, job_id] > 0
