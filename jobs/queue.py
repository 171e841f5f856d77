"""Submitting jobs: what pages and commands share. What is done with a job afterwards is in steering.py."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from jobs.as_trained import as_trained, asked_as
from jobs.configs import ContestConfig, EvaluateConfig, JobConfig, ModelConfig, TrainConfig, parse_config
from jobs.hub import pinned
from jobs.models import check_model
from jobs.packing import pack
from jobs.packing_contest import told_of
from jobs.packing_evaluation import begin
from jobs.packing_training import Freight
from jobs.placement import ACCELERATE_FILE, AccelerateFile, check_accelerate, wanted
from jobs.reporter import versions
from jobs.runs import JobFile, RunFolder
from jobs.settings import Settings
from jobs.standby import ensure_supervisor
from storage import jobs as store
from storage.adapters import get_adapter
from storage.contests import create_contest
from storage.database import immediate
from storage.errors import Conflict, UserError
from storage.files import write_atomically
from storage.images import image_path
from storage.lifecycle import JobStatus
from storage.records import Adapter, Job

#: The three priorities and their words; a job of a higher one starts before all of a lower one.
PRIORITIES: dict[int, str] = {-1: "low", 0: "normal", 1: "high"}
MOST_RETRIES = 100


@dataclass(frozen=True)
class Order:
    """Where a job stands in the queue, and how the queue goes about it.

    Attributes:
        priority: one of `PRIORITIES`.
        after: the id of a job that must be done before this one starts.
        retries: how often it is tried again after attempts that died, by no fault of its settings, without having
            come further.
    """

    priority: int = 0
    after: int | None = None
    retries: int = 4


#: Of a job about which nobody says anything.
PLAIN = Order()


@dataclass(frozen=True)
class Prepared:
    """A job that was checked and packed, and is not queued yet."""

    config: JobConfig
    device: str | None
    freight: Freight


def submit(
    db: Database, settings: Settings, kind: str, values: dict[str, Any], user: str, order: Order = PLAIN
) -> Job:
    """Check, freeze and queue a job, and see to it that a supervisor is there.

    Raises:
        UserError: a value is out of bounds; the model or device is unknown; there is nothing to do.
        NotFound: the data set, the adapter, or the job that this one comes after is not there.
        Conflict: the job that it comes after has failed or was stopped.
    """
    check_order(db, order)  # first: packing may take long
    job = enqueue(db, settings, prepare(db, settings, parse_config(kind, values)), user, order)
    ensure_supervisor(settings)
    return job


def prepare(db: Database, settings: Settings, config: JobConfig, freight: Freight | None = None) -> Prepared:
    """Check a job's configuration and pack what it names; nothing is written, but a list's images.

    Args:
        freight: of a job that differs in nothing that rows depend on; without it the job is packed.

    Raises:
        UserError: the model or device is unknown; there is nothing to do.
        NotFound: the data set or the adapter is not there.
    """
    device = None
    loads = not isinstance(config, ModelConfig) or config.device_kind == "device"
    if isinstance(config, ModelConfig) and loads:
        device = check_device(config.device, settings)
        # A worker runs in another folder than the one who asks: a relative path means something there only.
        config = config.model_copy(update={"model": check_model(config.model)})
    if isinstance(config, ContestConfig | EvaluateConfig):
        config = config.with_whole_paths()
    file = check_processes(config, settings) if isinstance(config, TrainConfig) else None
    config = as_trained(db, config)
    freight = freight or pack(db, settings, config)
    if loads:  # the base of a job that asks outside models alone is a name, whatever it is
        config = pinned(config, [settings.folder.adapters / adapter.sha256 for adapter in freight.adapters])
    if file is not None:
        freight = replace(freight, files={**freight.files, ACCELERATE_FILE: file.text})
    return Prepared(config, device, freight)


def enqueue(
    db: Database,
    settings: Settings,
    prepared: Prepared,
    user: str,
    order: Order = PLAIN,
    *,
    sweep: int | None = None,
    begins_sweep: bool = False,
) -> Job:
    """Freeze and queue a prepared job; a supervisor is the caller's to see to.

    Args:
        sweep: the id of the first job of its grid.
        begins_sweep: it is that first job.

    Raises:
        UserError: its run folder cannot be written.
        NotFound: an adapter that it needs was deleted since it was prepared; or as `check_order`.
        Conflict: as `check_order`.
    """
    config, freight = prepared.config, prepared.freight
    with immediate(db):
        check_order(db, order)
        for adapter in freight.adapters:
            get_adapter(db, adapter.id)
        job = store.add_job(
            db,
            kind=config.kind,
            config=config.model_dump(mode="json"),
            user=user,
            slot_kind=config.device_kind,
            device=prepared.device,
            dataset_id=freight.dataset.id if freight.dataset else None,
            adapter_id=getattr(config, "adapter", getattr(config, "start_adapter", None)),
            sweep=sweep,
            priority=order.priority,
            after_id=order.after,
            retries=order.retries,
        )
        if begins_sweep:
            job = store.begin_sweep(db, job.id)
        if isinstance(config, ContestConfig):
            create_contest(db, job, *told_of(config, len(freight.rows)))
        if isinstance(config, EvaluateConfig):
            begin(db, job, config, freight)
        # The folder is whole before the row can be seen: a supervisor never meets half a job.
        _freeze(db, settings, job, freight)
    return job


def check_order(db: Database, order: Order) -> None:
    """See that a job can stand in the queue like this.

    Raises:
        UserError: priority or retries are out of bounds.
        NotFound: the job that it comes after is not there.
        Conflict: that job has failed or was stopped.
    """
    check_priority(order.priority)
    check_retries(order.retries)
    if order.after is not None:
        check_leader(db, order.after)


def check_priority(priority: int) -> int:
    """The priority as it is. Raises UserError where there is none such."""
    if isinstance(priority, bool) or priority not in PRIORITIES:
        told = [f"{number} ({word})" for number, word in PRIORITIES.items()]
        raise UserError(f"priority = {priority!r}: give {', '.join(told[:-1])} or {told[-1]}.")
    return priority


def check_retries(retries: int) -> int:
    """The number as it is. Raises UserError where it is out of bounds."""
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= MOST_RETRIES:
        raise UserError(
            f"retries = {retries!r}: give a whole number from 0 (never tried again) to {MOST_RETRIES}."
        )
    return retries


def check_leader(db: Database, job_id: int) -> Job:
    """The job that another is to come after.

    Raises:
        NotFound: there is none such.
        Conflict: it has ended otherwise than done, so that nothing can come after it.
    """
    leader = store.get_job(db, job_id)
    if leader.status in (JobStatus.FAILED, JobStatus.STOPPED):
        ended = "failed" if leader.status is JobStatus.FAILED else "was stopped"
        raise Conflict(
            f"Job {leader.id} ({leader.kind}) {ended}, so that nothing can come after it; resume it first, or run "
            "it again and name the new job."
        )
    return leader


def check_device(device: str | None, settings: Settings) -> str | None:
    """The device as it is. Raises UserError where this Plumb does not have it."""
    if device is not None and device not in settings.devices:
        raise UserError(
            f"device = {device!r} is not there; this Plumb has {', '.join(settings.devices)} "
            "(set by --devices or PLUMB_DEVICES). Choose one of them, or leave the field empty."
        )
    return device


def check_processes(config: TrainConfig, settings: Settings) -> AccelerateFile | None:
    """See that this Plumb has the devices that a training asks for; returns accelerate's configuration, if any.

    Raises:
        UserError: it doesn't, or the file starts another number of processes.
    """
    if not config.accelerate_config:
        wanted(config.device, config.processes, settings.devices)
        return None
    file = check_accelerate(Path(config.accelerate_config), config.processes)
    wanted(config.device, config.processes // file.machines, settings.devices)
    return file


def _freeze(db: Database, settings: Settings, job: Job, freight: Freight) -> None:
    folder = settings.folder
    run = RunFolder(folder.run(job.id))
    if run.path.exists():
        # Of a submit that died before its commit, or of a database that is gone: it may be somebody's work.
        run.path.rename(run.path.with_name(f"{run.path.name}.old-{secrets.token_hex(4)}"))
    file = JobFile(
        job_id=job.id,
        kind=job.kind,
        config=job.config,
        user=job.user,
        device=job.device or ("network" if job.slot_kind == "network" else "auto"),
        dataset_hash=freight.dataset.hash if freight.dataset else None,
        models_dir=str(folder.models),
        judges_dir=str(folder.judges),
        references_dir=str(folder.references),
        versions=versions(),
        created_at=job.created_at,
    )
    try:
        run.freeze(
            file,
            freight.rows,
            ((image.name, image_path(folder, image)) for image in freight.images.values()),
            ((adapter.sha256, _adapter_folder(folder.adapters, adapter)) for adapter in freight.adapters),
            freight.files,
        )
        named = {
            str(adapter.id): {"sha256": adapter.sha256, "name": adapter.name, "method": asked_as(db, adapter)}
            for adapter in freight.adapters
        }
        write_atomically(run.path / "data" / "adapters.json", json.dumps(named, indent=2) + "\n")
    except OSError as error:
        shutil.rmtree(run.path, ignore_errors=True)
        raise UserError(
            f"The run folder {run.path} cannot be written ({error.strerror}: {error.filename}). "
            "Free some disk, or run `python -m storage check` for files that are missing."
        ) from error


def _adapter_folder(adapters: Path, adapter: Adapter) -> Path:
    path = adapters / adapter.sha256
    if not path.is_dir():
        raise UserError(
            f"The files of adapter {adapter.id} ({adapter.name}) are missing from the data folder; "
            "train it again or restore a backup."
        )
    return path
