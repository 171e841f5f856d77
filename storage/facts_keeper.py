"""Facts kept up beside everything else: a thread of the web process that works off what imports and jobs leave."""

from __future__ import annotations

import logging
import threading

from storage.database import session
from storage.errors import PlumbError
from storage.facts import catch_up, stale
from storage.folder import DataFolder

EVERY = 2.0  # seconds between looks
STEP = 50  # samples a step: whoever saves meanwhile waits for a step at most
_BETWEEN = 0.05  # seconds between steps, in which others write

log = logging.getLogger(__name__)


def keep_up(folder: DataFolder, end: threading.Event | None = None) -> threading.Thread:
    """Start the thread; it ends with the process, or when `end` is set."""
    ended = end or threading.Event()
    thread = threading.Thread(target=_work, args=(folder, ended), name="facts", daemon=True)
    thread.start()
    return thread


def _work(folder: DataFolder, end: threading.Event) -> None:
    while not end.wait(EVERY):
        try:
            while not end.wait(_BETWEEN):
                with session(folder) as db:
                    if not stale(db, 1) or catch_up(db, STEP) < STEP:
                        break
        except PlumbError:
            continue  # the database is busy or away just now; the next look finds the same work
        except Exception:  # a thread that dies says nothing to anybody: lists would be behind for ever
            log.exception("Facts of samples could not be brought up to date")
