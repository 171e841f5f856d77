"""Submitting and stopping jobs: what pages and commands share."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from jobs.configs import KINDS, JobConfig, ModelConfig, TrainConfig, parse_config
from jobs.judges import rules
from jobs.models import check_model
from jobs.packing import pack
from jobs.packing_training import Freight
from jobs.placement import ACCELERATE_FILE, AccelerateFile, check_accelerate, wanted
from jobs.reporter import versions
from jobs.runs import PAUSE, JobFile, RunFolder
from jobs.settings import Settings
from jobs.standby import ensure_supervisor
from storage import jobs as store
from storage.database import immediate
from storage.errors import Conflict, UserError
from storage.files import write_atomically
from storage.images import image_path
from storage.lifecycle import ENDED, JobStatus
from storage.records import Adapter, Job

RESUMABLE = frozenset(kind for kind, config in KINDS.items() if config.resumable)
PAUSABLE = frozenset(kind for kind, config in KINDS.items() if config.pausable)


@dataclass(frozen=True)
class Prepared:
    """A job that was checked and packed, and is not queued yet."""

    config: JobConfig
    device: str | None
    freight: Freight


def submit(db: Database, settings: Settings, kind: str, values: dict[str, Any], user: str) -> Job:
    """Check, freeze and queue a job, and see to it that a supervisor is there.

    Raises:
        UserError: a value is out of bounds; the model or device is unknown; there is nothing to do.
        NotFound: the data set or the adapter is not there.
    """
    job = enqueue(db, settings, prepare(db, settings, parse_config(kind, values)), user)
    ensure_supervisor(settings)
    return job


def prepare(db: Database, settings: Settings, config: JobConfig, freight: Freight | None = None) -> Prepared:
    """Check a job's configuration and pack what it names; nothing is written.

    Args:
        freight: of a job that differs in nothing that rows depend on; without it the job is packed.

    Raises:
        UserError: the model or device is unknown; there is nothing to do.
        NotFound: the data set or the adapter is not there.
    """
    device = None
    if isinstance(config, ModelConfig):
        device = check_device(config.device, settings)
        # A worker runs in another folder than the one who asks: a relative path means something there only.
        config = config.model_copy(update={"model": check_model(config.model)})
    file = check_processes(config, settings) if isinstance(config, TrainConfig) else None
    freight = freight or pack(db, settings, config)
    if file is not None:
        freight = replace(freight, files={**freight.files, ACCELERATE_FILE: file.text})
    return Prepared(config, device, freight)


def enqueue(
    db: Database,
    settings: Settings,
    prepared: Prepared,
    user: str,
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
    """
    config, freight = prepared.config, prepared.freight
    with immediate(db):
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
        )
        if begins_sweep:
            job = store.begin_sweep(db, job.id)
        # The folder is whole before the row can be seen: a supervisor never meets half a job.
        _freeze(settings, job, freight)
    return job


def stop(db: Database, settings: Settings, job_id: int) -> Job:
    """Ask a job to stop; a queued one ends at once.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended already.
    """
    with immediate(db):
        job = store.get_job(db, job_id)
        if job.status in ENDED:
            raise Conflict(f"Job {job_id} has ended already ({job.status}).")
        if job.status is JobStatus.QUEUED:
            store.move(db, job_id, JobStatus.STOPPED, "stopped before it started")
        elif job.status is not JobStatus.STOPPING:
            store.move(db, job_id, JobStatus.STOPPING, "asked to stop")
        if job.status is not JobStatus.QUEUED:
            RunFolder(settings.folder.run(job_id)).ask_to_stop()
    if job.status is not JobStatus.QUEUED:
        ensure_supervisor(settings)
    return store.get_job(db, job_id)


def pause(db: Database, settings: Settings, job_id: int) -> Job:
    """Have a judge or checklist job ask nothing more until `go_on`; replies on their way are kept.

    Raises:
        NotFound: there is no such job.
        Conflict: it is not at work, or of a kind that cannot pause.
    """
    with immediate(db):  # a stop that is asked for meanwhile comes after, and wins
        job = store.get_job(db, job_id)
        if job.kind not in PAUSABLE or job.config.get("judge") == rules.NAME:
            raise Conflict(f"Job {job_id} ({job.kind}) cannot pause; stop it instead.")
        if job.status not in (JobStatus.STARTING, JobStatus.RUNNING):
            raise Conflict(f"Job {job_id} is {job.status}; only a job at work can pause.")
        RunFolder(settings.folder.run(job_id)).ask_to_pause()
    return job


def go_on(db: Database, settings: Settings, job_id: int) -> Job:
    """End a pause; harmless where there is none.

    Raises:
        NotFound: there is no such job.
        Conflict: it has been asked to stop, or has ended.
    """
    with immediate(db):
        job = store.get_job(db, job_id)
        if job.status not in (JobStatus.STARTING, JobStatus.RUNNING):
            raise Conflict(f"Job {job_id} is {job.status}; there is no pause to end.")
        if is_paused(settings, job_id):
            RunFolder(settings.folder.run(job_id)).ask_nothing()
    return job


def is_paused(settings: Settings, job_id: int) -> bool:
    return RunFolder(settings.folder.run(job_id)).asked() == PAUSE


def resume(db: Database, settings: Settings, job_id: int) -> Job:
    """Queue a stopped or failed job again; it goes on after what its run folder already holds.

    Raises:
        NotFound: there is no such job.
        Conflict: it is not stopped or failed, of a kind that begins anew each time, or its adapter is gone.
    """
    with immediate(db):
        job = store.get_job(db, job_id)
        if job.kind not in RESUMABLE:
            raise Conflict(f"Job {job_id} ({job.kind}) cannot go on where it ended; start it again.")
        if not (settings.folder.run(job_id) / "job.json").exists():
            raise Conflict(f"The run folder of job {job_id} is gone; start it again.")
        asked = job.config.get("adapter", job.config.get("start_adapter"))
        if job.adapter_id is None and asked is not None and job.kind not in ("push", "serve"):
            # Its run folder still holds the files, but what it makes would be booked as the base's.
            raise Conflict(f"Job {job_id} works with adapter {asked}, which was deleted; start it again without.")
        job = store.requeue(db, job_id)
        RunFolder(settings.folder.run(job_id)).ask_nothing()
    ensure_supervisor(settings)
    return job


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


def _freeze(settings: Settings, job: Job, freight: Freight) -> None:
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
            str(adapter.id): {"sha256": adapter.sha256, "name": adapter.name, "method": adapter.method}
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
