"""A training's checkpoints: when one is whole, and which of them are kept. Nothing heavy is imported.

checkpoints/checkpoint-<step>/   the adapter, optimizer, scheduler and random state after that step
    trainer_state.json           the last file that transformers writes
    whole.json                   {"files": {name: bytes}}: all of them are on the disk, and so long

What a process has written is not yet on the disk: after a power failure a file may be there and be empty, and a
network's file system may tell of a quota as late as that. So a checkpoint is called whole only when its files were
flushed, and older ones go only then. They are told apart by their steps and never by their times, as transformers
would do it: on the day on which a clock is put back that deletes the newest.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.causes import chain, is_disk_full, is_full
from jobs.reporter import Stopped
from jobs.runs import RunFolder
from storage.files import write_atomically

PREFIX = "checkpoint-"
STATE_FILE = "trainer_state.json"
WHOLE = "whole.json"


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after this step lies."""
    return checkpoints / f"{PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """All that are there, whole or not, the newest first."""
    found = [path for path in checkpoints.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, and has lost nothing since.

    Raises:
        OSError: it cannot be read just now, which says nothing about it.
    """
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        sealed = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))["files"].items()
    except FileNotFoundError as error:
        # Before it could be sealed: by an older Plumb, or by a process that was killed just then.
        return Path(error.filename).name == WHOLE and all(_sizes(checkpoint).values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    there = _sizes(checkpoint)
    return all(there.get(name) == size for name, size in sealed)


def last_checkpoint(run: RunFolder) -> Path | None:
    """The newest whole checkpoint of the run; those that a crash or a full disk tore are removed."""
    drop_torn(run.checkpoints)
    return next(iter(list_checkpoints(run.checkpoints)), None)


def drop_torn(checkpoints: Path) -> None:
    """Remove those that are not whole; several processes may be at it."""
    for found in list_checkpoints(checkpoints):
        with contextlib.suppress(OSError):  # only what is known to be torn goes
            if not is_whole(found):
                shutil.rmtree(found, ignore_errors=True)


def unseal(checkpoint: Path) -> None:
    """Before one is written again over what a stop has torn."""
    (checkpoint / WHOLE).unlink(missing_ok=True)


def seal(checkpoint: Path) -> None:
    """Bring a checkpoint to the disk, and then call it whole.

    Raises:
        OSError: it is not there, as the file system says only now.
    """
    sizes = _sizes(checkpoint)
    folders = {checkpoint} | {(checkpoint / name).parent for name in sizes}
    for path in (*(checkpoint / name for name in sizes), *folders):
        _flush(path)
    write_atomically(checkpoint / WHOLE, json.dumps({"files": sizes}, indent=1))
    _flush(checkpoint)


def keep_newest(checkpoints: Path, count: int) -> None:
    """Remove the oldest until so many whole ones are left: the newest whole one always stays."""
    whole = [found for found in list_checkpoints(checkpoints) if is_whole(found)]
    for found in whole[max(1, count) :]:
        # Whatever a kill leaves of it is torn, and not taken for whole.
        (found / STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(found, ignore_errors=True)


@contextmanager
def cleared_up(checkpoints: Path, alone: bool = True) -> Iterator[None]:
    """Whatever goes wrong within, no half-written checkpoint stays on the disk.

    Where that is full, what was half-written may be what fills it: an error that came of it must say so itself,
    since afterwards there may be room.

    Args:
        alone: this is the process that removes; of several it is the first.

    Raises:
        OSError: in place of a writer's error that does not tell of the full disk.
    """
    try:
        yield
    except Exception as error:
        unsaid = not isinstance(error, Stopped) and not any(is_disk_full(one) for one in chain(error))
        full = unsaid and is_full(checkpoints.parent)
        if alone:
            drop_torn(checkpoints)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoints)) from error
        raise


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of the files in it, by their names in it, but for the seal and marks."""
    return {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != WHOLE and path.suffix != ".pending" and not path.name.startswith(".")
    }


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # no flushing there
            raise
    finally:
        os.close(descriptor)
