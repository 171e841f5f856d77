"""Room on the disk: whether a job may start, and when one that met a full disk goes on.

Three lines are drawn:

- Below the floor (1 GB or 2 % of the disk, whichever is less; the setting "disk_floor") nothing new starts: what
  is at work needs the rest for its checkpoints and last words.
- Where the budget of the data folder is used up, nothing new starts either. What is at work goes on, for it would
  have to be resumed anyway to be of any use, and its checkpoints replace each other; a budget is no quota.
- Where the disk itself is full, whoever meets that leaves, and its job is PAUSED. It is queued again as soon as
  the floor and what the job is about to write are free: far more than the nothing that made it leave, so that it
  does not come and go. One that is paused time and again without having come further rests ever longer besides.

Jobs that wait for room are served in the queue's order, each with the room that those before it leave.

A database on a full disk cannot even note that a job is paused, or be opened at all where nobody else has it open.
So the supervisor keeps some bytes in `runtime/reserve`, which it gives up once the disk is full.
"""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlite_utils import Database

from jobs import disk
from jobs.checkpoints import list_checkpoints
from jobs.configs import TrainConfig, parse_config
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage import jobs as store
from storage.database import immediate
from storage.errors import PlumbError, UserError
from storage.lifecycle import JobStatus
from storage.pauses import explain_pause, fruitless_pauses, paused_jobs
from storage.records import Job
from storage.settings import get_setting, put_setting
from storage.units import in_words

#: The setting with the bytes that must be free for anything to start.
FLOOR = "disk_floor"
FLOOR_BYTES, FLOOR_SHARE = 1_000_000_000, 0.02

#: How much of the floor's size a job without checkpoints must find free above it: results are small.
OTHERS_SHARE = 0.25
#: A checkpoint is written beside the newest one; another time it is a little larger.
CHECKPOINT_MARGIN = 1.1
#: Before a new try, by how many attempts in a row were paused without having come further; the first rests not.
REST_SECONDS = (0.0, 0.0, 60.0, 300.0, 600.0)
#: A paused job's words are brought up to date so often.
WORDS_SECONDS = 20.0

RESERVE = "reserve"
RESERVE_BYTES, RESERVE_SHARE = 8_000_000, 0.01
#: Below so many free bytes, or the reserve's own size where that is less, the reserve is given up.
SPENT_BELOW = 1_000_000

_told: dict[tuple[str, int], tuple[float, str]] = {}  # (data folder, job) → (when, what was told)
_reckonings: dict[Path, int] = {}  # a checkpoint's bytes by run folder: `wake` asks at every pass


def get_floor(db: Database, settings: Settings) -> int:
    """Bytes that must be free for anything to start."""
    found = get_setting(db, FLOOR)
    if found is not None:
        return int(found)
    return min(FLOOR_BYTES, int(shutil.disk_usage(settings.folder.root).total * FLOOR_SHARE))


def set_floor(db: Database, floor: int | None, user: str) -> None:
    """Set it; None for the default. Raises UserError where it is negative."""
    if floor is not None and (isinstance(floor, bool) or floor < 0):
        raise UserError(f"disk_floor = {floor}: give bytes from 0, or none for the default.")
    put_setting(db, FLOOR, floor, user)


def has_room(db: Database, settings: Settings) -> str:
    """Why no job may start now, with figures and a remedy; "" where one may.

    Without a budget nothing is walked: it can be asked at every pass.
    """
    return too_little_free(db, settings) or over_budget(db, settings)


def too_little_free(db: Database, settings: Settings) -> str:
    """Why the disk allows no start; "" where it does, or where the data folder is gone."""
    try:
        free, floor = shutil.disk_usage(settings.folder.root).free, get_floor(db, settings)
    except OSError:
        return ""
    if free >= floor:
        return ""
    return (
        f"The disk has {in_words(free)} free, and nothing new starts below {in_words(floor)}. "
        f"Free {in_words(floor - free)} or more: {_remedies(settings)}."
    )


def over_budget(db: Database, settings: Settings) -> str:
    """Why the budget of the data folder allows no start; "" where it does, or where there is none.

    What is at work goes on in spite of it.
    """
    budget = disk.get_budget(db)
    if budget is None:
        return ""
    used = disk.measured(settings.folder).total
    if used < budget:
        return ""
    return (
        f"The data folder takes {in_words(used)} of its budget of {in_words(budget)}. Set a larger one "
        f"(`python -m jobs disk --budget`), or {_remedies(settings)}."
    )


def _remedies(settings: Settings) -> str:
    """What can be done for room, as the end of a sentence."""
    binned = disk.measured(settings.folder).parts["bin"]
    if binned:
        return f"empty the bin, which holds {in_words(binned)} (`python -m jobs bin --empty`), or delete runs"
    return "delete runs and empty the bin (`python -m jobs disk` names the largest)"


def wake(db: Database, settings: Settings) -> list[int]:
    """Queue those paused jobs again for which there is room now; the others are told how much they wait for.

    Returns:
        the ids of those that are queued.
    """
    try:
        free, floor = shutil.disk_usage(settings.folder.root).free, get_floor(db, settings)
    except OSError:
        return []
    if not spend_reserve(settings) and free > floor:
        _set_aside(settings)
    paused = paused_jobs(db)
    if not paused:
        return []
    held = over_budget(db, settings)
    woken: list[int] = []
    left = free - floor
    for job in paused:
        run = RunFolder(settings.folder.run(job.id))
        needs = needed(run, job, floor)
        if held or left < needs:
            _explain(db, settings, job, held or waiting_words(floor + needs, free))
            continue
        if _queue_again(db, job):
            woken.append(job.id)
            left -= needs
    return woken


def spend_reserve(settings: Settings) -> bool:
    """Give the reserve up where the disk is full; whether it is. For the supervisor, where nothing else works."""
    try:
        space = shutil.disk_usage(settings.folder.root)
        if space.free >= min(SPENT_BELOW, _reserve_bytes(space.total)):
            return False
        (settings.folder.runtime / RESERVE).unlink(missing_ok=True)
    except OSError:  # the data folder is gone, or read-only
        return False
    return True


def _set_aside(settings: Settings) -> None:
    """Real bytes, which no file system keeps as a hole or packs; where there is no room, there is none."""
    reserve = settings.folder.runtime / RESERVE
    try:
        if reserve.exists():
            return
        size = _reserve_bytes(shutil.disk_usage(settings.folder.root).total)
        draft = reserve.with_name(f"{RESERVE}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                file.write(os.urandom(size))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(reserve)
        finally:
            draft.unlink(missing_ok=True)
    except OSError:
        return


def _reserve_bytes(total: int) -> int:
    return min(RESERVE_BYTES, int(total * RESERVE_SHARE))


def _queue_again(db: Database, job: Job) -> bool:
    with immediate(db):
        if store.get_job(db, job.id).status is not JobStatus.PAUSED:  # it was stopped meanwhile
            return False
        pauses = fruitless_pauses(db, job.id)
        rest = REST_SECONDS[min(pauses, len(REST_SECONDS) - 1)]
        store.requeue(db, job.id, datetime.now(UTC) + timedelta(seconds=rest) if rest else None)
    return True


def waiting_words(needed_free: int, free: int) -> str:
    """Of a paused job: how much must be free for it to go on."""
    return f"the disk is full; goes on by itself when {in_words(needed_free)} are free ({in_words(free)} now)"


def pause_words(db: Database, settings: Settings, job: Job) -> str:
    """Why a paused job waits, with figures of now; "" for a job that is not paused."""
    if job.status is not JobStatus.PAUSED:
        return ""
    floor, free = get_floor(db, settings), shutil.disk_usage(settings.folder.root).free
    run = RunFolder(settings.folder.run(job.id))
    return over_budget(db, settings) or waiting_words(floor + needed(run, job, floor), free)


def _explain(db: Database, settings: Settings, job: Job, words: str) -> None:
    """Keep the words with the job, unless that was just done: on a full disk each write may be one too many."""
    key = (str(settings.folder.root), job.id)
    when, told = _told.get(key, (-WORDS_SECONDS, ""))
    if job.reason == words or (told and time.monotonic() - when < WORDS_SECONDS):
        return
    _told[key] = (time.monotonic(), words)
    try:
        explain_pause(db, job.id, words)
    except Exception:  # a database that cannot grow, say: the worker's own reason stands
        return


def needed(run: RunFolder, job: Job, floor: int) -> int:
    """Bytes that a paused job is about to write, and so must find free above the floor.

    Of a training a checkpoint, as large as the largest it has written, or as the preflight reckons where there is
    none yet. Of others a share of the floor: answers and judgements are text.
    """
    least = int(floor * OTHERS_SHARE)
    try:
        config = parse_config(job.kind, job.config)
    except PlumbError:
        return least
    if not isinstance(config, TrainConfig):
        return least
    found = max((disk.folder_bytes(path) for path in list_checkpoints(run.checkpoints)), default=0)
    if not found:
        found = _reckoned(run, config)
    return max(least, int(found * CHECKPOINT_MARGIN))


def _reckoned(run: RunFolder, config: TrainConfig) -> int:
    """A checkpoint's bytes, from the headers of the weights; 0 where they are not on this machine."""
    from jobs.preflight import checkpoint_bytes  # it imports this module

    if run.path not in _reckonings:
        try:
            _reckonings[run.path] = checkpoint_bytes(run, config)
        except (PlumbError, OSError, ValueError, KeyError):
            _reckonings[run.path] = 0
    return _reckonings[run.path]
