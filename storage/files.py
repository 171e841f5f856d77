"""Images and other files by content address."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write through a temporary file and a rename: a reader sees the old text or the new, never half."""
    with _draft_of(path, text) as draft:
        os.replace(draft, path)


def write_once(path: Path, text: str) -> None:
    """Write a file that must not be there yet; a reader sees all of it or nothing.

    Raises:
        FileExistsError: it is there. A link never replaces, as a rename would: of two at once, one is told.
    """
    with _draft_of(path, text) as draft:
        os.link(draft, path)


@contextmanager
def _draft_of(path: Path, text: str) -> Iterator[Path]:
    """The text as a whole, synced file beside `path`; gone in the end, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` hold what `source` holds: a hard link where the file system allows, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        # Under its own name only when it is whole: a content address must not lead to half a file.
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        shutil.copy2(source, draft)
        os.replace(draft, target)
