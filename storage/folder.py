"""The data folder: where everything that Plumb keeps has its place."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from storage.errors import UserError

#: Lies in a data folder while a backup is restored into it (`storage.restore`).
RESTORING = "restoring.json"


def default_root() -> Path:
    """Where data is kept unless a flag says otherwise: `PLUMB_DATA`, or the platform's place for it."""
    return Path(os.environ.get("PLUMB_DATA") or platformdirs.user_data_dir("plumb"))


def default_folder() -> DataFolder:
    return DataFolder(default_root().expanduser().resolve())


@dataclass(frozen=True)
class DataFolder:
    """Paths inside one data folder. All processes of one Plumb share one such folder."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "plumb.db"

    @property
    def images(self) -> Path:
        """Original image files by content address: `images/ab/<sha256>.png`."""
        return self.root / "images"

    @property
    def thumbnails(self) -> Path:
        return self.root / "thumbnails"

    @property
    def adapters(self) -> Path:
        """Finished adapters by content address: `adapters/<sha256>/`."""
        return self.root / "adapters"

    @property
    def models(self) -> Path:
        """Models that Plumb assembles itself (the demo VLM)."""
        return self.root / "models"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def judges(self) -> Path:
        """What judges share: rubrics made here, prices and limits, the ledger of what was asked and paid."""
        return self.root / "judges"

    @property
    def references(self) -> Path:
        """Log-probabilities of reference models by content: computed once, used by every later run."""
        return self.root / "references"

    @property
    def runtime(self) -> Path:
        """Locks, the supervisor's log and the key of this data folder; nothing worth a backup."""
        return self.root / "runtime"

    @property
    def bin(self) -> Path:
        """Deleted run folders, until they are restored or purged: one rename moves a folder here."""
        return self.runs / ".bin"

    def run(self, job_id: int) -> Path:
        return self.runs / f"{job_id:06d}"

    def binned(self, job_id: int) -> Path:
        """Where a deleted job's run folder lies."""
        return self.bin / self.run(job_id).name

    def create(self) -> DataFolder:
        """Make the folder and its parts.

        Raises:
            UserError: the folder cannot be created or written, or a restore into it was not finished.
        """
        self._refuse_unfinished()
        try:
            parts = (
                self.images,
                self.thumbnails,
                self.adapters,
                self.models,
                self.runs,
                self.judges,
                self.runtime,
            )
            for part in (*parts, self.judges, self.references, self.runtime):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The data folder {self.root} cannot be written ({error.strerror}). "
                "Choose another with --data or PLUMB_DATA."
            ) from error
        self._refuse_unfinished()  # a restore marks it, then looks for what we have made: one of us sees the other
        return self

    def _refuse_unfinished(self) -> None:
        if not (self.root / RESTORING).exists():
            return
        before = None
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the mark alone says enough
            before = json.loads((self.root / RESTORING).read_text(encoding="utf-8")).get("before")
        lies = f" What was there before lies in {before}." if before else ""
        raise UserError(
            f"The restore of a backup into {self.root} was not finished. Run `python -m storage restore` once "
            f"more, or point --data at another folder.{lies}"
        )

    def inside(self, relative: str | Path) -> Path:
        """The path of `relative` below the root.

        Raises:
            UserError: the path leaves the data folder (by `..`, an absolute path or a link).
        """
        root = self.root.resolve()
        path = (root / relative).resolve()
        if not path.is_relative_to(root):
            raise UserError(f"The path {str(relative)!r} leaves the data folder; give one inside it.")
        return path

    def key(self) -> bytes:
        """32 random bytes that belong to this folder, readable by its owner alone.

        They sign sessions and the secret of the chat's model process. The link makes the first writer win
        when two processes start at once.
        """
        path = self.runtime / "key"
        if not path.exists():
            self.runtime.mkdir(parents=True, exist_ok=True)
            draft = self.runtime / f"key.{os.getpid()}.{secrets.token_hex(4)}"
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_bytes()
