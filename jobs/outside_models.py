"""Which models outside endpoints serve, asked of them and kept for a minute."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jobs import outside_errors, outside_wire
from jobs.judges.clients.texts import sendable
from jobs.outside_errors import OutsideError
from jobs.outside_names import endpoint_key
from jobs.outside_wire import Garbled, Overflow
from jobs.settings import Settings
from storage.errors import PlumbError
from storage.speakers import Speaker

LIST_SECONDS = 3.0
KEPT_SECONDS = 60.0
MISSED_SECONDS = 20.0  # a server that was not there may be soon
MOST_MODELS = 200

Found = TypeVar("Found")


@dataclass(frozen=True)
class Served:
    """What an endpoint serves.

    Attributes:
        models: as it calls them, in its order; () where it doesn't say.
        problem: why it doesn't say, for people; "" where it does.
    """

    models: tuple[str, ...]
    problem: str = ""


@dataclass
class _Entry:
    """What is known of one endpoint; its lock lets one ask while the others wait for the same answer."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    served: Served | None = None
    until: float = 0.0


_entries: dict[tuple[str, str, str | None], _Entry] = {}
_entries_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def served_models(settings: Settings, endpoint: str) -> Served:
    """What an endpoint serves now, or did within the last minute; never raises.

    It waits, `LIST_SECONDS` at the most: not for the thread of an event loop.
    """
    try:
        url = settings.endpoints.get(endpoint)
        if url is None:
            return Served((), str(outside_errors.unset(endpoint, settings.endpoints)))
        key = endpoint_key(endpoint)
    except PlumbError as error:
        return Served((), str(error))
    with _entries_lock:
        entry = _entries.setdefault((endpoint, url, key), _Entry())
    with entry.lock:
        if entry.served is None or time.monotonic() > entry.until:
            entry.served = _asked(endpoint, url, key)
            entry.until = time.monotonic() + (KEPT_SECONDS if entry.served.models else MISSED_SECONDS)
        return entry.served


def outside_choices(settings: Settings) -> list[tuple[str, str]]:
    """("llava-dpo (office)", "llava-dpo@office") of every model of every endpoint that answers, asked at once."""
    if not settings.endpoints:
        return []
    found: dict[str, Served] = {}

    def look(endpoint: str) -> None:
        found[endpoint] = served_models(settings, endpoint)

    threads = [threading.Thread(target=look, args=(endpoint,), daemon=True) for endpoint in settings.endpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [
        (f"{model} ({endpoint})", f"{model}@{endpoint}")
        for endpoint in settings.endpoints
        for model in found[endpoint].models
    ]


def begin(work: Coroutine[Any, Any, Found]) -> Future[Found]:
    """Run it on this process's loop for outside endpoints, which threads share."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="outside", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(work, _loop)


def _asked(endpoint: str, url: str, key: str | None) -> Served:
    asked = begin(_fetched(endpoint, url, key))
    try:
        # The longer wait is for a name server that is asked in a thread, which nothing can end.
        return asked.result(LIST_SECONDS + 0.5)
    except OutsideError as error:
        return Served((), str(error))
    except TimeoutError:
        asked.cancel()
        return Served((), str(outside_errors.silent(endpoint, LIST_SECONDS, begun=False)))
    except Exception as error:
        return Served((), str(outside_errors.of_connection(endpoint, url, error, begun=False)))


async def _fetched(endpoint: str, url: str, key: str | None) -> Served:
    """Raises OutsideError, TimeoutError, or an exception of the network."""
    async with asyncio.timeout(LIST_SECONDS), outside_wire.http_client(url, key) as client:
        try:
            response = await client.get(f"{url}/models")
            if response.status_code != 200:
                raise outside_errors.of_status(
                    endpoint, url, "", response.status_code, response.headers, response.text
                )
            return Served(_names(endpoint, outside_wire.read_json(response.content)))
        except (Garbled, Overflow) as error:
            what = str(error) or "more than a list of models"
            raise outside_errors.garbage(endpoint, url, what) from None


def _names(endpoint: str, content: dict[str, Any]) -> tuple[str, ...]:
    """Raises Garbled where it is no list of models."""
    entries = content.get("data")
    if not isinstance(entries, list):
        raise Garbled("JSON that is no list of models")
    names = [one.get("id") for one in entries if isinstance(one, dict)]
    known = dict.fromkeys(sendable(name) for name in names if isinstance(name, str))
    usable = [name for name in known if Speaker(f"{name}@{endpoint}").outside == (name, endpoint)]
    if not usable:
        raise Garbled("a list without models")
    return tuple(usable[:MOST_MODELS])
