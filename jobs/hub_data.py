"""A hub's data set into a private folder, for an import: its rows and images, at one commit. Torch-free.

The token comes from the environment alone, as for models. Files are streamed here, so that they can be counted and
ended; what was fetched is checked against the hub's hash.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from jobs import download, hub
from jobs.hub import RemoteFile, Unreachable
from storage.errors import UserError
from storage.imports.archives import MOST_BYTES, PICTURES, ROWS, check_room, safe_name
from storage.imports.staging import told_passed
from storage.units import in_words

MOST_FILES = 20_000
AT_ONCE = 4
_WANTED = (*ROWS, *PICTURES, ".zip")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
WHAT = "data set"

#: Is told bytes done and in all; may raise to end the fetching.
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Address:
    """A data set's name, and a commit, branch or tag of it; "" for main."""

    name: str
    revision: str = ""

    @property
    def told(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def read_address(text: str) -> Address:
    """OWNER/NAME[@REVISION], with or without `hub:` before it.

    Raises:
        UserError: it is no name of a hub's data set.
    """
    name, _, revision = text.strip().removeprefix("hub:").removeprefix("datasets/").partition("@")
    if not _NAME.fullmatch(name) or ".." in name or (revision and not re.fullmatch(r"[\w./-]{1,100}", revision)):
        raise UserError(
            f"data set = {text.strip()[:100]!r}: give the name of a hub's data set as OWNER/NAME, or "
            "OWNER/NAME@REVISION."
        )
    return Address(name, revision)


def fetch(address: Address, into: Path, tell: Tell | None = None) -> list[tuple[str, Path]]:
    """Fetch what an import reads; returns (name, where it lies now), as `staging.stage` takes them.

    Args:
        into: an empty folder on the disk on which there must be room.

    Raises:
        UserError: no such data set, gated, nothing in it that an import reads, too large for the disk.
        Unreachable: the hub cannot be reached, also where asking is forbidden.
    """
    commit, files = _listing(address)
    total = sum(file.size or 0 for file in files)
    if total > MOST_BYTES:
        raise UserError(f"{address.told} has {in_words(total)}; the limit of an import is {in_words(MOST_BYTES)}.")
    check_room(into, 2 * total)  # what is fetched, and what images become in the data folder
    work = _Fetch(address, commit, into, total, tell)
    with hub.clear_errors(address.name, address.revision, WHAT):
        return work.fetch(files)


def _listing(address: Address) -> tuple[str, list[RemoteFile]]:
    from huggingface_hub import HfApi

    if hub.offline():
        raise Unreachable(
            f"{hub.OFFLINE} is set: the hub is not asked about {address.name!r}. Unset it and start Plumb again, "
            "or upload the files instead."
        )
    api = HfApi(endpoint=hub.endpoint(), token=hub.token(), library_name="plumb")
    with hub.clear_errors(address.name, address.revision, WHAT):
        info = api.dataset_info(
            address.name, revision=address.revision or hub.MAIN, files_metadata=True, timeout=hub.ASK_SECONDS
        )
    if not info.sha:
        raise Unreachable(f"The hub's answer about {address.name!r} names no commit.")
    wanted: list[RemoteFile] = []
    passed: Counter[str] = Counter()
    for entry in info.siblings or []:
        name, large = entry.rfilename, entry.lfs
        suffix = Path(name).suffix.lower()
        if suffix not in _WANTED or name.startswith("."):
            passed[suffix or "no ending"] += 1
            continue
        size, blob = (large.size, large.sha256) if large else (entry.size, entry.blob_id)
        wanted.append(RemoteFile(safe_name(name, address.name), size, blob or ""))
    if not any(Path(file.name).suffix.lower() in (*ROWS, ".zip") for file in wanted):
        raise UserError(
            f"The hub's data set {address.name!r} holds no rows that are read "
            f"({told_passed(passed) or 'no files'}). An import reads {', '.join(ROWS)}; its "
            "revision refs/convert/parquet may have them."
        )
    if len(wanted) > MOST_FILES:
        raise UserError(f"{address.told} has {len(wanted):,} files; the limit is {MOST_FILES:,}.")
    return info.sha, wanted


class _Fetch:
    """Fetches files of one commit, several at once."""

    def __init__(self, address: Address, commit: str, into: Path, total: int, tell: Tell | None) -> None:
        self._address, self._commit, self._into, self._total, self._tell = address, commit, into, total, tell
        self._done, self._lock, self._halted = 0, threading.Lock(), threading.Event()

    def fetch(self, files: list[RemoteFile]) -> list[tuple[str, Path]]:
        """All of them; raises what the first one that failed raised, or whoever is told."""
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="hub-data")
        try:
            futures = [pool.submit(self._have, number, file) for number, file in enumerate(files)]
            left = set(futures)
            while left:
                done, left = wait(left, timeout=0.2, return_when=FIRST_EXCEPTION)
                if error := next((one.exception() for one in done if one.exception()), None):
                    raise error
                if self._tell:
                    self._tell(self._done, self._total)
            return [future.result() for future in futures]
        finally:
            self._halted.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _have(self, number: int, file: RemoteFile) -> tuple[str, Path]:
        target = self._into / f"{number}"
        tries = 0
        while True:
            try:
                self._read(file, target)
                break
            except Exception as error:
                if not download.passing(error) or tries >= download.TRIES:
                    raise
                tries += 1
                self._halted.wait(download.WAIT_SECONDS * 2**tries)
        if len(file.blob) in (40, 64) and download.digest_of(target, file.blob, self._check) != file.blob:
            raise Unreachable(f"{file.name} of {self._address.name!r} came damaged: try again.")
        return file.name, target

    def _read(self, file: RemoteFile, target: Path) -> None:
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status

        self._check()
        url = hf_hub_url(
            self._address.name, file.name, repo_type="dataset", revision=self._commit, endpoint=hub.endpoint()
        )
        headers = {**hub.headers(), "Accept-Encoding": "identity"}
        came = 0
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=download.PATIENCE, follow_redirects=True
            ) as answer:
                hf_raise_for_status(answer)
                with target.open("wb") as out:
                    for chunk in answer.iter_bytes():
                        came += len(chunk)
                        if came > (MOST_BYTES if file.size is None else file.size):
                            raise Unreachable(f"The hub sends more of {file.name} than it said. Try again later.")
                        out.write(chunk)
                        self._count(len(chunk))
                        self._check()
            if file.size is not None and came < file.size:
                raise Unreachable(f"The hub sends {file.name} of {self._address.name!r} short. Try again later.")
        except BaseException:
            self._count(-came)
            raise

    def _count(self, size: int) -> None:
        with self._lock:
            self._done += size

    def _check(self) -> None:
        if self._halted.is_set():
            raise InterruptedError("another file failed, or the fetching was ended")
