"""Submitting and stopping jobs: what pages and commands share."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from jobs.configs import (
    DpoConfig,
    GenerateConfig,
    JobConfig,
    JudgeConfig,
    ModelConfig,
    Selection,
    ServeConfig,
    parse_config,
)
from jobs.judges import rules
from jobs.models import check_model
from jobs.reporter import versions
from jobs.rows import Row, dpo_row, generate_row, judge_row
from jobs.runs import JobFile, RunFolder
from jobs.settings import Settings
from jobs.supervisor import ensure_supervisor
from storage import jobs as store
from storage.adapters import get_adapter
from storage.candidates import answered_by, candidates_of
from storage.database import immediate
from storage.datasets import dataset_rows, get_dataset
from storage.errors import Conflict, UserError
from storage.files import write_atomically
from storage.images import get_images, image_path
from storage.lifecycle import ENDED, JobStatus
from storage.records import Adapter, Dataset, Image, Job, Message
from storage.samples import SampleFilter, find_samples, get_samples, images_of
from storage.scores import judged_fully


@dataclass(frozen=True)
class Freight:
    """What goes into the run folder beside job.json."""

    rows: list[Row]
    images: dict[str, Image] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    dataset: Dataset | None = None


def submit(db: Database, settings: Settings, kind: str, values: dict[str, Any], user: str) -> Job:
    """Check, freeze and queue a job, and see to it that a supervisor is there.

    Raises:
        UserError: a value is out of bounds; the model or device is unknown; there is nothing to do.
        NotFound: the data set or the adapter is not there.
    """
    config = parse_config(kind, values)
    device = None
    if isinstance(config, ModelConfig):
        device = check_device(config.device, settings)
        # A worker runs in another folder than the one who asks: a relative path means something there only.
        config = config.model_copy(update={"model": check_model(config.model)})
    freight = pack(db, config)
    with immediate(db):
        job = store.add_job(
            db,
            kind=kind,
            config=config.model_dump(mode="json"),
            user=user,
            slot_kind=config.device_kind,
            device=device,
            dataset_id=freight.dataset.id if freight.dataset else None,
            adapter_id=getattr(config, "adapter", None),
        )
        # The folder is whole before the row can be seen: a supervisor never meets half a job.
        _freeze(settings, job, freight)
    ensure_supervisor(settings)
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
        ensure_supervisor(settings)
    return store.get_job(db, job_id)


def check_device(device: str | None, settings: Settings) -> str | None:
    """The device as it is. Raises UserError where this Plumb does not have it."""
    if device is not None and device not in settings.devices:
        raise UserError(
            f"device = {device!r} is not there; this Plumb has {', '.join(settings.devices)} "
            "(set by --devices or PLUMB_DEVICES). Choose one of them, or leave the field empty."
        )
    return device


def pack(db: Database, config: JobConfig) -> Freight:
    """Resolve what a configuration names into rows, images and adapters."""
    match config:
        case GenerateConfig():
            return _pack_generate(db, config)
        case JudgeConfig():
            return _pack_judge(db, config)
        case DpoConfig():
            return _pack_dpo(db, config)
        case ServeConfig():
            adapters = tuple(get_adapter(db, adapter_id) for adapter_id in config.adapters)
            for adapter in adapters:
                _check_base(adapter, config.model)
            return Freight(rows=[], adapters=adapters)
    raise UserError(f"There is no way to freeze a job of kind {config.kind!r}.")


def _pack_generate(db: Database, config: GenerateConfig) -> Freight:
    adapters: tuple[Adapter, ...] = ()
    if config.adapter is not None:
        adapters = (get_adapter(db, config.adapter),)
        _check_base(adapters[0], config.model)
    ids = select(db, config.samples)
    if config.samples.only_missing:
        answered = answered_by(db, config.model, config.adapter)
        ids = [sample_id for sample_id in ids if sample_id not in answered]
    ids = _limited(ids, config.samples)
    if not ids:
        raise UserError(
            "There is nothing to generate: no sample fits the selection. Load the demo on the Samples page, "
            "widen the selection, or switch off “Only what is missing” to draw more candidates."
        )
    samples = get_samples(db, ids)
    images = _images(db, [sample.messages for sample in samples])
    return Freight([generate_row(sample, images) for sample in samples], images, adapters)


def _pack_judge(db: Database, config: JudgeConfig) -> Freight:
    ids = select(db, config.samples)
    if config.samples.only_missing:
        done = judged_fully(db, rules.RATER)
        ids = [sample_id for sample_id in ids if sample_id not in done]
    candidates = candidates_of(db, ids)
    ids = _limited([sample_id for sample_id in ids if candidates[sample_id]], config.samples)
    if not ids:
        raise UserError(
            "There is nothing to judge: no sample of the selection has candidates without this judge's scores. "
            "Generate candidates first, or switch off “Only what is missing” to judge again."
        )
    samples = get_samples(db, ids)
    images = _images(db, [sample.messages for sample in samples])
    return Freight([judge_row(sample, candidates[sample.id], images) for sample in samples], images)


def _pack_dpo(db: Database, config: DpoConfig) -> Freight:
    dataset = get_dataset(db, config.dataset)
    frozen = dataset_rows(db, dataset.id)
    if not any(row.split == "train" for row in frozen):
        raise UserError(
            f"The data set {dataset.name!r} has no pairs to train on; freeze one with pairs on the Pairs page."
        )
    images = _images(db, [row.row["messages"] for row in frozen])
    return Freight([dpo_row(row, images) for row in frozen], images, dataset=dataset)


def select(db: Database, selection: Selection) -> list[int]:
    """The ids that a selection names, in order, before its limit.

    Raises:
        UserError: an id is not there.
        NotFound: the data set is not there.
    """
    if selection.ids is not None:
        found = {sample.id for sample in get_samples(db, selection.ids)}
        missing = [sample_id for sample_id in selection.ids if sample_id not in found]
        if missing:
            raise UserError(f"samples.ids: there is no sample {missing[0]}; remove it from the list.")
        ids = sorted(found)
    else:
        ids = []
        while page := find_samples(db, SampleFilter(), after=ids[-1] if ids else 0, limit=1000):
            ids += [sample.id for sample in page if selection.source is None or sample.source == selection.source]
            if len(page) < 1000:
                break
    if selection.dataset:
        rows = dataset_rows(db, get_dataset(db, selection.dataset).id, selection.split)
        inside = {row.sample_id for row in rows}
        ids = [sample_id for sample_id in ids if sample_id in inside]
    return ids


def _limited(ids: Sequence[int], selection: Selection) -> list[int]:
    return list(ids[: selection.limit] if selection.limit else ids)


def _images(db: Database, chats: Sequence[Sequence[Message]]) -> dict[str, Image]:
    return get_images(db, (sha256 for messages in chats for sha256 in images_of(messages)))


def _check_base(adapter: Adapter, model: str) -> None:
    if adapter.base_model != model:
        raise UserError(
            f"adapter {adapter.id} ({adapter.name}) was trained on {adapter.base_model!r}, not on {model!r}; "
            f"set the base model to {adapter.base_model!r}."
        )


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
        versions=versions(),
        created_at=job.created_at,
    )
    try:
        run.freeze(
            file,
            freight.rows,
            ((image.name, image_path(folder, image)) for image in freight.images.values()),
            ((adapter.sha256, _adapter_folder(folder.adapters, adapter)) for adapter in freight.adapters),
        )
        named = {str(adapter.id): {"sha256": adapter.sha256, "name": adapter.name} for adapter in freight.adapters}
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
