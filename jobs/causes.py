"""Why an attempt ended otherwise than done, and how that is told from an error. Nothing is imported for it.

Libraries wrap what the system said in errors of their own, so that the whole chain behind an error is looked at,
and classes of packages that may not be there are known by their names.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from jobs.out_of_memory import is_out_of_memory
from storage.errors import PlumbError


class Cause(StrEnum):
    """Why an attempt ended otherwise than done; kept with the attempt, and what the failure policy goes by."""

    NONE = ""
    STOP = "stop"  # it was asked to
    SETTING = "setting"  # a value, a model or a row that it cannot work with: it would fail again
    BUG = "bug"  # nobody foresaw it
    MEMORY = "memory"  # torch or Python found no more: it would fail again
    KERNEL = "kernel"  # the kernel ended it for memory
    KILLED = "killed"  # by a signal, from whomever
    GONE = "gone"  # nobody saw it end: a reboot, or a kill while no supervisor was there
    DISK = "disk"  # full
    NETWORK = "network"  # a hub or an endpoint that could not be reached


#: What may be over at another try. A full disk is not among them: its job is paused until there is room.
TRANSIENT = frozenset({Cause.KERNEL, Cause.KILLED, Cause.GONE, Cause.NETWORK})

#: Exit codes of a worker that may have found no room for its last word (sysexits.h's nearest meanings).
DISK_FULL = 75  # EX_TEMPFAIL
CANNOT_WRITE = 74  # EX_IOERR: its run folder is read-only, or gone
LOCKED = 73  # EX_CANTCREAT: another worker is at work in the folder

#: Below so many free bytes a disk is full: not even a worker's words fit.
FULL_BYTES = 256_000

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# How libraries say it whose errors have no number: safetensors (Rust) and torch among them.
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "(os error 28)", "(os error 122)")

# Where a class is defined, by the package's name, and what it or an ancestor of it is called.
_NETWORK = {
    "requests": {"ConnectionError", "Timeout", "ChunkedEncodingError"},
    "urllib3": {"TimeoutError", "ProtocolError", "NewConnectionError", "MaxRetryError", "IncompleteRead"},
    "httpx": {"TransportError"},
    "httpx2": {"TransportError"},
    "httpcore": {"NetworkError", "TimeoutException", "ProtocolError"},
    "httpcore2": {"NetworkError", "TimeoutException", "ProtocolError"},
    "http": {"RemoteDisconnected", "IncompleteRead"},
    "socket": {"gaierror", "herror", "timeout"},
    "aiohttp": {"ClientConnectionError", "ClientPayloadError"},
}
# Of a hub or an endpoint that is there and cannot answer now.
_BUSY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that stand behind it, the nearest first."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting += [behind for behind in (one.__cause__, one.__context__) if behind is not None]


def cause_of(error: BaseException) -> Cause:
    """The cause that an error stands for.

    An error on purpose is a setting's, unless a full disk stands behind it, or it names another cause itself (its
    attribute `cause`): whoever raised it has looked at what stood behind it.
    """
    if any(is_disk_full(one) for one in chain(error)):
        return Cause.DISK
    if isinstance(error, PlumbError):
        told = getattr(error, "cause", "")
        return Cause(told) if isinstance(told, str) and told in set(Cause) and told else Cause.SETTING
    if any(is_out_of_memory(one) for one in chain(error)):
        return Cause.MEMORY
    return Cause.NETWORK if is_network(error) else Cause.BUG


def is_disk_full(error: BaseException) -> bool:
    """Whether one error, not what stands behind it, says that the disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()
    return any(words in text for words in _FULL_WORDS)


def is_network(error: BaseException) -> bool:
    """Whether it, or what stands behind it, is of a connection that broke or could not be made."""
    found = list(chain(error))
    # Asking a hub was forbidden, by the environment: it would be again.
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in found):
        return False
    return any(_is_network(one) for one in found)


def _is_network(error: BaseException) -> bool:
    # A broken pipe is of a process beside this one; `filelock.Timeout` is a TimeoutError, too.
    if type(error) in (TimeoutError, ConnectionError, ConnectionResetError, ConnectionRefusedError):
        return True
    for kind in type(error).__mro__:
        if kind.__name__ in _NETWORK.get(kind.__module__.split(".")[0], ()):
            return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _BUSY_STATUSES


def is_full(folder: Path) -> bool:
    """Whether the disk under a folder takes nothing more: by its free bytes, and by trying, for quotas.

    False where the folder is gone or cannot be written for another reason.
    """
    try:
        if shutil.disk_usage(folder).free < FULL_BYTES:
            return True
        probe = folder / f".probe.{os.getpid()}"
        try:
            with probe.open("wb") as file:
                file.write(secrets.token_bytes(FULL_BYTES // 4))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return is_disk_full(error)
    return False
