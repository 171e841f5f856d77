"""The `download` job: a hub's model into the hub's cache on this machine. Torch-free.

Only what transformers reads is fetched: weights as safetensors, settings, the tokenizer's files, chat templates;
no pickles, no folders with the same weights in other forms. Files are streamed here and not by huggingface_hub,
whose downloads begin anew when their process was killed: what has come of a file stays beside its place in the
cache, and the next attempt asks for the rest alone (HTTP's Range). A whole file is checked against its hash before
it gets its name; only then the hub's library links it, so that its cache is as it would have made it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jobs import hub
from jobs.configs import DownloadConfig
from jobs.hub import RemoteFile, Unreachable
from jobs.models import is_commit
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder
from storage.errors import PlumbError, UserError
from storage.files import write_atomically

COMMIT = "commit"
PARTIAL = ".plumb.incomplete"
HASHED_AT_ONCE = 16 << 20
#: Files at once. Hubs serve each at a part of the line's speed.
AT_ONCE = 4
#: Seconds without a byte until the connection is given up, tries in a row without a byte, seconds before the first
#: of them; each waits twice as long as the one before.
PATIENCE, TRIES, WAIT_SECONDS = 20.0, 5, 1.0
TELL_SECONDS = 0.5
#: Left free beside the model, since others write to the same disk.
SPARE_BYTES = 200_000_000

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_BESIDE = frozenset({".json", ".model", ".txt", ".jinja", ".tiktoken"})
INDEX = "model.safetensors.index.json"
TEMPLATES = "additional_chat_templates/"


def download(run: RunFolder, job: JobFile, config: DownloadConfig, reporter: Reporter) -> None:
    """Have the model in the hub's cache, whole.

    Raises:
        Stopped: asked to stop; what has come stays, and a resumed job goes on with it.
        UserError: offline; the hub has no such model, or wants a login; no safetensors; no room on the disk.
        Unreachable: the hub cannot be reached, or broke off several times.
    """
    hub.check_download(config)
    # Pinned when the job was submitted, or, where the hub could not be asked then, by the first attempt.
    kept = run.path / COMMIT
    revision = kept.read_text(encoding="utf-8").strip() if kept.is_file() else config.revision
    if not is_commit(revision):
        revision = hub.ask(config.model, revision, anew=True).commit
        write_atomically(kept, revision + "\n")
    fetch(config.model, revision, reporter)


def fetch(name: str, revision: str, reporter: Reporter) -> Path:
    """The model's folder in the hub's cache, in which what was missing has been fetched.

    Raises:
        as `download`.
    """
    reporter.phase(f"downloading {name}")
    listing = hub.ask(name, revision, anew=True)
    work = _Fetch(name, listing.commit, reporter)
    with hub.clear_errors(name, revision):
        work.fetch(wanted_files(listing.files, name))
        rest = [file for file in listing.files if file.name in hub.lacking_weights(work.folder)]
        if rest:  # an index that names its files otherwise than save_pretrained
            work.fetch(rest)
    if lacking := hub.lacking_weights(work.folder):
        raise UserError(
            f"The hub's model {name!r} lacks {lacking[0]}, which its own index names. Choose another revision."
        )
    work.keep_names()
    told = f"{name} is in the hub's cache, at commit {listing.commit}: {megabytes(work.total):,.1f} MB"
    reporter.note(f"{told}, of which {megabytes(work.known):,.1f} MB were there before.")
    return work.folder


def wanted_files(files: Sequence[RemoteFile], name: str) -> list[RemoteFile]:
    """Of a model's files those that transformers reads.

    Raises:
        UserError: there are no weights as safetensors.
    """
    files = [file for file in files if is_inside(file.name)]
    weights = [file for file in files if _WEIGHTS.fullmatch(file.name)]
    whole = [file for file in weights if file.name == "model.safetensors"]  # transformers prefers it
    indexed = any(file.name == INDEX for file in files)
    if not weights and not indexed:
        pickles = any(file.name.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in files)
        why = "has its weights as pickles alone, which can run code when read" if pickles else "has no weights"
        raise UserError(
            f"The hub's model {name!r} {why}; Plumb reads safetensors. Choose another model or revision."
        )
    beside = [
        file
        for file in files
        if Path(file.name).suffix in _BESIDE
        and ("/" not in file.name or file.name.startswith(TEMPLATES))
        and (not file.name.endswith(".index.json") or file.name == INDEX)
    ]
    return [*beside, *(whole or weights)]


def is_inside(name: str) -> bool:
    """Whether a hub's name of a file or a branch stays where it is put; a real hub's always does."""
    return not any(part in ("", ".", "..") for part in name.replace("\\", "/").split("/"))


def bytes_missing(name: str, revision: str) -> int | None:
    """Bytes that a download would bring now; None where the hub can't be asked.

    Raises:
        UserError: the hub has no such model, or nothing in it that Plumb reads.
    """
    try:
        listing = hub.ask(name, revision)
    except Unreachable:
        return None
    store = hub.store_of(name)
    return sum(
        file.size or 0
        for file in wanted_files(listing.files, name)
        if not (store / "snapshots" / listing.commit / file.name).exists()
    )


def megabytes(size: float) -> float:
    return round(size / 1e6, 1)


class _Fetch:
    """Fetches files of one commit into the cache, several at once, and tells how far it is."""

    def __init__(self, name: str, commit: str, reporter: Reporter) -> None:
        self._name, self._commit, self._reporter = name, commit, reporter
        self._store = hub.store_of(name)
        self.folder = self._store / "snapshots" / commit
        self.total = self.known = 0  #: bytes of all files, and of those that were there before
        self._done = 0
        self._lock = threading.Lock()
        self._told = 0.0
        self._halted = threading.Event()

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        """Have all of these in the cache; raises what the first one that failed raised."""
        missing = [file for file in files if not self._is_there(file)]
        sizes = sum(file.size or 0 for file in files)
        here = sizes - sum(file.size or 0 for file in missing) + sum(map(self._begun, missing))
        self.total, self.known, self._done = self.total + sizes, self.known + here, self._done + here
        check_room(self._store, sizes - here)
        self._tell(always=True)
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download")
        try:
            futures = [pool.submit(self._fetch, file) for file in missing]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            self._halted.set()
            # The others were halted by the first: theirs is the reason.
            failed = [error for future in done if (error := future.exception()) is not None]
            if failed:
                raise next((error for error in failed if not isinstance(error, _Halted)), failed[0])
        finally:
            self._halted.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._halted.clear()
        self._done = self.total  # also what another worker has fetched meanwhile
        self._tell(always=True)

    def keep_names(self) -> None:
        """Have the cache know the branches and tags that stand for this commit, for who asks for these offline."""
        try:
            names = [ref for ref, commit in hub.branches(self._name).items() if commit == self._commit]
        except PlumbError:
            return
        for ref in names:
            target = self._store / "refs" / ref
            if is_inside(ref):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, self._commit)

    def _is_there(self, file: RemoteFile) -> bool:
        """Whether the cache has the file; one of another size, cut off by a crash, is taken out."""
        place = self.folder / file.name
        if not place.exists():
            return False
        if file.size is None or place.stat().st_size == file.size:
            return True
        place.resolve().unlink()
        place.unlink(missing_ok=True)
        return False

    def _begun(self, file: RemoteFile) -> int:
        """Bytes of the file that an earlier attempt has left, or that another revision brought."""
        for place in (self._blob(file), self._partial(file)):
            try:
                return min(place.stat().st_size, file.size or 0)
            except OSError:
                continue
        return 0

    def _blob(self, file: RemoteFile) -> Path:
        return self._store / "blobs" / (file.blob or "-")

    def _partial(self, file: RemoteFile) -> Path:
        blob = self._blob(file)
        return blob.with_name(blob.name + PARTIAL)

    def _fetch(self, file: RemoteFile) -> None:
        from huggingface_hub import hf_hub_download

        self._check()
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.blob) and file.size is not None:
            blob = self._blob(file)
            blob.parent.mkdir(parents=True, exist_ok=True)
            with self._turn(blob.with_name(blob.name + ".plumb.lock")):
                if not blob.exists():
                    self._have(file, blob)
        # Here already, so that it is linked alone; or of a hub that tells no hashes: brought by the library.
        hf_hub_download(
            self._name, file.name, revision=self._commit, token=hub.token(), endpoint=hub.endpoint() or None
        )

    @contextmanager
    def _turn(self, file: Path) -> Iterator[None]:
        """Within it no other worker fetches the same file."""
        lock = FileLock(file)
        while True:
            try:
                lock.acquire(timeout=TELL_SECONDS)
                break
            except Timeout:
                self._check()
        try:
            yield
        finally:
            lock.release()

    def _have(self, file: RemoteFile, blob: Path) -> None:
        """The file's bytes in place, checked."""
        partial = self._partial(file)
        for last in (False, True):
            self._stream(file, partial)
            if digest_of(partial, file.blob, self._check) == file.blob:
                os.replace(partial, blob)
                return
            self._count(-partial.stat().st_size)
            partial.unlink()
            if last:
                raise Unreachable(
                    f"{file.name} of {self._name!r} came damaged twice: its hash isn't the hub's. Try later."
                )

    def _stream(self, file: RemoteFile, partial: Path) -> None:
        """Ask for what is missing of the file until it has its size."""
        assert file.size is not None
        tries, most = 0, -1
        while (have := _size(partial)) is None or have < file.size:
            tries = 0 if (have or 0) > most else tries + 1
            most = max(most, have or 0)
            if tries > TRIES:
                raise Unreachable(f"The hub sends {file.name} of {self._name!r} short. Try again later.")
            try:
                self._read(file, partial, have or 0)
            except Exception as error:
                if not passing(error) or tries >= TRIES:
                    raise
                self._pause(WAIT_SECONDS * 2**tries)
        if have > file.size:
            self._count(file.size - have)
            os.truncate(partial, file.size)

    def _read(self, file: RemoteFile, partial: Path, have: int) -> None:
        """One request for what follows the first `have` bytes."""
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status

        url = hf_hub_url(self._name, file.name, revision=self._commit, endpoint=hub.endpoint())
        headers = {**hub.headers(), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        # A redirect to another host, where the bytes lie, is followed without the token (httpx drops it).
        with get_session().stream("GET", url, headers=headers, timeout=PATIENCE, follow_redirects=True) as answer:
            if answer.status_code == 416:  # what lies here is of no file that the hub knows
                self._count(-have)
                partial.unlink()
                return
            hf_raise_for_status(answer)
            goes_on = answer.status_code == 206 and _begins_at(answer.headers, have)
            if have and not goes_on:
                self._count(-have)  # a server that knows no ranges: from the start
            left = (file.size or 0) - (have if goes_on else 0)
            with partial.open("ab" if goes_on else "wb") as out:
                for chunk in answer.iter_bytes():  # as it comes: what waits for more is lost when the line breaks
                    wanted = chunk[:left]  # a server that never ends fills no disk
                    out.write(wanted)
                    self._count(len(wanted))
                    left -= len(wanted)
                    self._check()
                    if left <= 0:
                        break

    def _count(self, size: int) -> None:
        with self._lock:
            self._done += size
        self._tell()

    def _tell(self, always: bool = False) -> None:
        with self._lock:
            if not always and time.monotonic() - self._told < TELL_SECONDS:
                return
            self._told = time.monotonic()
            done, total = megabytes(self._done), megabytes(self.total)
        self._reporter.progress(min(done, total), total, "MB")

    def _check(self) -> None:
        if self._halted.is_set():
            raise _Halted
        self._reporter.check_stop()

    def _pause(self, seconds: float) -> None:
        """Wait, but not past a stop."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._check()
            self._halted.wait(min(0.25, seconds))


class _Halted(Exception):
    """Another file failed, or the job was stopped: this one's fetching ends, too."""


def check_room(store: Path, needed: int) -> None:
    """Raise UserError where the disk of the hub's cache has no room for so many bytes."""
    folder = store
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed and free < needed + SPARE_BYTES:
        raise UserError(
            f"The download takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free where the hub's cache "
            "lies. Free some space, or set HF_HOME to a folder on a larger disk."
        )


def digest_of(file: Path, blob: str, check: Callable[[], None]) -> str:
    """The hash by which a cache names the file: sha256, or git's sha1 where `blob` is as short as that."""
    found = hashlib.sha256() if len(blob) == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as opened:
        while chunk := opened.read(HASHED_AT_ONCE):
            found.update(chunk)
            check()
    return found.hexdigest()


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _begins_at(headers: Any, place: int) -> bool:
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == place


def passing(error: Exception) -> bool:
    """Whether a request may succeed when it is made again: the line broke, or the server is busy."""
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    return "TransportError" in names or status in (408, 429, 500, 502, 503, 504)
