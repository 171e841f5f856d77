"""`python -m jobs paper`: the paper in miniature, through the same queue as the pages; resumable.

Each step is a job of the queue, kept by its name in `paper.json` of the data folder. Started again, it goes on
where it ended: jobs that are done stay, one that was stopped or killed is resumed, what is missing is queued.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlite_utils import Database

from jobs import paper_plan, queue, steering
from jobs.configs import PRESETS
from jobs.freezing import freeze
from jobs.pairing import PairRule, ScoredSample, preview
from jobs.paper_plan import Asked, Scale, Training
from jobs.settings import Settings, local_user
from jobs.standby import ensure_supervisor
from storage import jobs as store
from storage import pairs
from storage.adapters import list_adapters
from storage.datasets import list_datasets
from storage.easy_vqa import import_easy_vqa
from storage.errors import PlumbError, UserError
from storage.files import write_atomically
from storage.lifecycle import ENDED, JobStatus
from storage.records import Dataset, Job
from storage.scored import walk_scored

STATE = "paper.json"
DATASET = "paper"
POLL_SECONDS = 0.5

Say = Callable[[str], None]


class Paper:
    """One run of it in one data folder.

    Args:
        ifeval: the path of IFEval's input_data.jsonl; "" leaves that benchmark out.
        say: is told how far it is, a line at a time.

    Raises:
        UserError: the folder holds other work, or a run of another size; says what differs.
    """

    def __init__(self, db: Database, settings: Settings, scale: Scale, ifeval: str, say: Say) -> None:
        self._db, self._settings, self._scale, self._ifeval, self._say = db, settings, scale, ifeval, say
        self._file = settings.folder.root / STATE
        self._state = self._begun()
        self._begin = time.monotonic()

    def run(self) -> list[tuple[Asked, Job]]:
        """All of it; returns each evaluation with its job.

        Raises:
            UserError: another process runs it in this folder.
            PlumbError: a job failed twice; started again, the run goes on there.
        """
        try:
            with FileLock(self._settings.folder.runtime / "paper.lock", timeout=0):
                return self._all()
        except Timeout as error:
            raise UserError(
                f"{self._file.parent} is at work for another `jobs paper`; wait for it, or give another --data."
            ) from error

    def _all(self) -> list[tuple[Asked, Job]]:
        import_easy_vqa(self._db, self._settings.folder, self._scale.samples, seed=0)
        self._job("candidates", "generate", {"seed": 0})
        self._job("judge", "judge", {})
        dataset = self._dataset()
        adapters: dict[str, int] = {}
        for one in paper_plan.trainings(self._scale):
            adapters[one.name] = self._train(one, dataset)
        return [(one, self._evaluate(one, adapters)) for one in paper_plan.evaluations(self._scale, self._ifeval)]

    def _train(self, one: Training, dataset: Dataset) -> int:
        """The id of its adapter."""
        preset = PRESETS[one.kind]["demo"]
        unwatched = {"evaluations": 1, "watched_samples": 0, "watched_prompts": ""}
        values = {**preset, **one.settings, **unwatched, "dataset": dataset.name, "name": one.name}
        job = self._job(f"train {one.name}", one.kind, values)
        return next(adapter.id for adapter in list_adapters(self._db) if adapter.job_id == job.id)

    def _evaluate(self, one: Asked, adapters: dict[str, int]) -> Job:
        adapter = adapters[one.training] if one.training else None
        values = {"model": one.model, "benchmark": one.benchmark, "adapter": adapter, "batch_size": 32}
        return self._job(one.name, "evaluate", {**values, **one.settings})

    def _dataset(self) -> Dataset:
        """Pairs by the paper's rule, all accepted, frozen with a tenth of the images held out."""
        known = next((one for one in list_datasets(self._db) if one.name == DATASET), None)
        if known is not None:
            return known
        user, rule = local_user(), PairRule()
        made = preview((ScoredSample(*row) for row in walk_scored(self._db)), rule)
        pairs.add_rule_pairs(self._db, user, rule.stored(), made.pairs)
        pairs.accept_proposed(self._db, user)
        dataset = freeze(self._db, user, DATASET, heldout_percent=10.0)
        self._say(f"{len(made.pairs)} pairs, frozen as {DATASET!r} ({dataset.hash[:12]})")
        return dataset

    # jobs --------------------------------------------------------------------------------------------------

    def _job(self, name: str, kind: str, values: dict[str, Any]) -> Job:
        """The job of a step, done; queued, resumed or only waited for as it needs."""
        job_id = self._state["jobs"].get(name)
        job = None if job_id is None else store.get_job(self._db, job_id)
        if job is not None and job.status is JobStatus.DONE:
            return job
        if job is None:
            job = queue.submit(self._db, self._settings, kind, values, local_user())
            self._state["jobs"][name] = job.id
            self._keep()
        elif job.status in ENDED:
            job = steering.resume(self._db, self._settings, job.id)
        else:
            ensure_supervisor(self._settings)
        while (job := store.get_job(self._db, job.id)).status not in ENDED:
            time.sleep(POLL_SECONDS)
        if job.status is not JobStatus.DONE:
            raise PlumbError(
                f"{name}: job {job.id} is {job.status} ({job.reason}). Start the same command again to go on."
            )
        self._say(f"{time.monotonic() - self._begin:5.0f} s  {name}")
        return job

    def _begun(self) -> dict[str, Any]:
        asked = json.loads(json.dumps(paper_plan.told(self._scale, self._ifeval)))
        if not self._file.exists():
            # All accepted pairs are frozen: somebody's own labels shall not be among them.
            if self._db["samples"].count:
                raise UserError(f"{self._file.parent} holds other work; give a folder of its own with --data.")
            return {"scale": asked, "jobs": {}}
        state: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        differing = [name for name, value in asked.items() if state["scale"].get(name) != value]
        if differing:
            told = ", ".join(f"{name} was {state['scale'].get(name)} and is {asked[name]}" for name in differing)
            raise UserError(
                f"{self._file.parent} holds a run of another size: {told}. Give another --data, or the same size."
            )
        return state

    def _keep(self) -> None:
        write_atomically(self._file, json.dumps(self._state, indent=1))


def default_folder(scale: Scale) -> Path:
    """Beside other data folders: below the working folder, by size."""
    return Path("paper") / scale.name
