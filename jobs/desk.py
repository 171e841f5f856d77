"""“Score this sample”: one judgement at once, in the web process, under the same ledger, limits and caps as jobs.

Nothing of a job's ceremony: no form, no queue, no worker. What is kept is the same: the reply lies in a file of
the judgement's key before it is read, and is used instead of a new request where the process dies before it is
stored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlite_utils import Database

from jobs.configs import JudgeConfig, parse_config
from jobs.event_file import read_events
from jobs.judges import rules
from jobs.judges.identity import Rater, key_of, rater_of
from jobs.judges.keys import need_key
from jobs.judges.run import judge_row
from jobs.judges.terms import read_terms
from jobs.packing import judge_rows, under_way
from jobs.rubric import load_rubric
from jobs.settings import Settings
from storage.database import immediate, session
from storage.errors import Conflict, PlumbError, UserError
from storage.files import write_atomically
from storage.folder import DataFolder
from storage.images import image_path
from storage.records import Image, JudgementState
from storage.samples import get_sample
from storage.scores import add_judgement, ensure_rater, has_ok
from storage.users import ensure_user

FILE = "desk.json"
DEFAULT = JudgeConfig(judge="gemini")


@dataclass(frozen=True)
class Outcome:
    """What came of it. `cost` in dollars; `already`: it had been judged before, nothing was asked."""

    state: JudgementState
    reason: str
    cost: float
    already: bool
    rater: Rater


def read_desk(folder: DataFolder) -> JudgeConfig:
    """The judge that is asked; its budget is what this may cost in a day.

    Raises:
        UserError: the file that keeps it cannot be read.
    """
    file = folder.judges / FILE
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return DEFAULT
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); choose the judge anew on the Judges page.") from None
    config = parse_config("judge", values if isinstance(values, dict) else {})
    assert isinstance(config, JudgeConfig)
    return config


def write_desk(folder: DataFolder, config: JudgeConfig) -> None:
    folder.judges.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.judges / FILE, config.model_dump_json(indent=2) + "\n")


def score_now(folder: DataFolder, settings: Settings, sample_id: int, user: str) -> Outcome:
    """Judge one sample and store the judgement; returns when it is there.

    Raises:
        NotFound: there is no such sample.
        UserError: no key, no candidates, no checklist where one is asked for, no price for the model.
        Conflict: the same judgement is being asked for right now.
        PlumbError: a limit of the day, the budget, or a refusal by the provider.
    """
    config = read_desk(folder)
    rater = rater_of(config)
    with session(folder) as db:
        row, images = _row(db, config, sample_id)
        key = key_of(row, rater, config.order_seed)
    if config.judge == rules.NAME:
        judged = {**judge_row(row), "key": key}
        with session(folder) as db:
            if has_ok(db, key):
                return Outcome("ok", "", 0.0, True, rater)
            _store(db, rater, sample_id, judged, user)
        return Outcome(judged["state"], judged["reason"], 0.0, False, rater)
    need_key(config.judge, settings)
    with _alone(folder, key):
        with session(folder) as db:
            if has_ok(db, key):
                return Outcome("ok", "", 0.0, True, rater)
            if job_id := under_way(db, settings, rater, config.order_seed).get(key):
                raise Conflict(f"Job {job_id} is about to judge this sample the same way; it is not paid twice.")
        judged = _ask(folder, settings, config, row, images, key)
        with session(folder) as db:
            _store(db, rater, sample_id, judged, user)
        _replies(folder, key).unlink(missing_ok=True)
    return Outcome(judged["state"], judged["reason"], judged["cost"], False, rater)


def _row(db: Database, config: JudgeConfig, sample_id: int) -> tuple[dict[str, Any], dict[str, Image]]:
    get_sample(db, sample_id)
    rows, images = judge_rows(db, config, [sample_id])
    if rows:
        return rows[0], images
    if config.checklists and judge_rows(db, config.model_copy(update={"checklists": False}), [sample_id])[0]:
        raise UserError(
            f"Sample {sample_id} has no checklist, and the judge is asked with checklists. Write one beside the "
            "sample, or choose a judge without on the Judges page."
        )
    raise UserError(f"Sample {sample_id} has no answers to judge; generate some first.")


def _ask(
    folder: DataFolder,
    settings: Settings,
    config: JudgeConfig,
    row: dict[str, Any],
    images: dict[str, Image],
    key: str,
) -> dict[str, Any]:
    from jobs.judges.asking import Asker, Kept, as_event, kept_of
    from jobs.judges.connect import connected
    from jobs.judges.ledger import Ledger, day_of

    files = {image.name: image_path(folder, image) for image in images.values()}
    replies = _replies(folder, key)

    def keep(reply: Kept, sample: int) -> None:
        line = json.dumps({"kind": "reply", "sample_id": sample, **as_event(reply)}, ensure_ascii=False)
        with replies.open("ab") as file:
            # A line of its own, also behind one that a crash has torn; half a character becomes "?".
            file.write(b"\n" + line.encode("utf-8", errors="replace") + b"\n")

    def waits(text: str) -> None:
        if text:  # for a quota of the day: nobody waits at the desk for hours
            raise PlumbError(f"Not asked: {text}")

    account = f"desk-{day_of(time.time(), read_terms(folder.judges).day_begins_in)[0]}"
    before_a_pool = 60.0  # seconds ahead: a busy job takes its slots a few seconds ahead
    with connected(
        config,
        settings,
        Ledger(folder.judges),
        folder.judges,
        account,
        check=lambda: None,
        tell=waits,
        ahead=before_a_pool,
    ) as caller:
        asker = Asker(caller, files.__getitem__, keep, config.second_tries, kept_of(read_events(replies)))
        return asker.judge(row, config, load_rubric(config.rubric, folder.judges))


def _store(db: Database, rater: Rater, sample_id: int, judged: dict[str, Any], user: str) -> None:
    fields = {name: value for name, value in judged.items() if name not in ("sample_id", "rater")}
    with immediate(db):
        ensure_user(db, user)
        rater_id = ensure_rater(db, "judge", *rater)
        add_judgement(db, rater_id=rater_id, sample_id=sample_id, job_id=None, asked_by=user, **fields)


@contextmanager
def _alone(folder: DataFolder, key: str) -> Iterator[None]:
    """One request for a key at a time, across threads and processes.

    Keys share 1,024 lock files, which stay: a lock file that is removed lets two in.
    """
    place = folder.judges / "desk"
    place.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place / f"{int(key, 16) % 1024:04}.lock", timeout=0, thread_local=False):
            yield
    except Timeout:
        raise Conflict(
            "This judgement is being asked for right now; its scores appear when it is there."
        ) from None


def _replies(folder: DataFolder, key: str) -> Path:
    return folder.judges / "desk" / f"{key}.jsonl"
