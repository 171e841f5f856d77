"""What a training will need, told before it is queued: parameters, memory, disk, steps, time. Torch-free.

Counts are exact: rows are packed as for the job itself, parameters are read from the headers of the weights.
Memory is an estimate by the formulas below; only a trial step knows.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlite_utils import Database

from jobs import disk_guard, hub, queue
from jobs.configs import DpoConfig, TrainConfig, parse_config
from jobs.disk import get_budget, measured
from jobs.download import bytes_missing
from jobs.lora_settings import differences
from jobs.model_files import (
    ModelFiles,
    Tensor,
    find_model,
    image_tokens,
    language_linears,
    lora_parameters,
    projector_parameters,
    read_tensors,
    weight_bytes,
)
from jobs.models import is_hub_name
from jobs.out_of_memory import remedies
from jobs.packing_training import Freight
from jobs.places import models_folder
from jobs.processor import computes_bfloat16
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage import jobs as store
from storage.errors import UserError
from storage.records import Job

#: A trainable parameter in float32: the weight, its gradient, and Adam's two running means.
TRAINED_BYTES = 4 + 4 + 8
#: In a checkpoint: the weight and Adam's two means. In an adapter: the weight.
CHECKPOINT_BYTES, ADAPTER_BYTES = 4 + 8, 4

#: Characters a token where there is no tokenizer at hand; English prose has a little more.
CHARACTERS = 3.5
#: Tokens that a chat template puts around a question and an answer.
FRAME = 24
#: Image tokens where the family isn't known: LLaVA-1.5's.
IMAGE_TOKENS = 576

#: Python with torch, transformers, peft and trl, before a model is loaded; and a CUDA context.
PROCESS_BYTES, CONTEXT_BYTES = 900_000_000, 600_000_000
#: Products of hidden states and vocabulary that are at hand at once (jobs/gpu/token_scores.py, TILE in float32).
TILES_BYTES = 3 * (4 << 24)

#: What a run of other settings must share for its time to say something.
_SAME_PACE = (
    "model",
    "batch_size",
    "dtype",
    "quantization",
    "attention",
    "gradient_checkpointing",
    "shared_prefix",
    "processes",
    "lora_r",
)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step, by what takes them."""

    weights: int
    trained: int
    activations: int
    program: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations + self.program


@dataclass(frozen=True)
class Missing:
    """A hub's model that isn't whole on this machine. `bytes` to download; None where the hub can't be asked."""

    model: str
    revision: str
    bytes: int | None


@dataclass(frozen=True)
class Preflight:
    """What a training will need. None stands for what cannot be told.

    Attributes:
        rows: to train on, as the method takes them.
        heldout, report: pairs that are looked at along the run, and once at its end.
        steps: optimizer steps; `accumulation` batches each, on each device.
        parameters, trainable: of the model, and of what is trained.
        memory: on each device; `copies` of it share the free memory where processes share the CPU.
        free_memory: bytes that `device` has now.
        disk: bytes that checkpoints and adapter take at the most; `free_disk` what there is.
        seconds: of the whole run, from what `seconds_from` names.
        warnings: why it can't or won't run, each with a remedy.
        notes: what the figures leave out.
        missing: the base, where it has to be downloaded first.
    """

    rows: int
    heldout: int
    report: int
    steps: int
    accumulation: int
    device: str
    parameters: int | None
    trainable: int | None
    memory: Memory | None
    copies: int
    free_memory: int | None
    disk: int | None
    free_disk: int
    seconds: float | None
    seconds_from: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    missing: Missing | None = None


def preflight(db: Database, settings: Settings, kind: str, values: Mapping[str, Any]) -> Preflight:
    """Check a training as if it were submitted, and tell what it will need. Nothing is queued.

    Raises:
        UserError: it could not be submitted.
        NotFound: the data set or the adapter is not there.
    """
    prepared = queue.prepare(db, settings, parse_config(kind, dict(values)))
    config, freight = prepared.config, prepared.freight
    if not isinstance(config, TrainConfig):
        raise UserError(f"A {kind} job is no training; there is nothing to check.")
    rows = sum(row["split"] == "train" for row in freight.rows)
    pairs = [row["split"] for row in freight.rows if row["kind"] == "pair"]
    steps = steps_of(config, rows)
    device, free = roomiest(config, settings)
    notes: list[str] = []
    files = find_model(config.model, settings.folder.models, config.revision)
    warnings: list[str] = []
    missing = None
    parameters = trainable = memory = disk = None
    if files is None:
        notes.append(
            f"The weights of {config.model!r} aren't on this machine yet: parameters, memory and disk cannot "
            "be told."
        )
        missing = missing_model(config)
        if missing is not None:
            warnings += _missing_warnings(missing)
    else:
        parameters = files.parameters
        adapter = started_from(settings, freight)
        trainable = trainable_parameters(files, config, adapter)
        tokens, unsure = longest_row(files, config, freight)
        if unsure:
            notes.append(unsure)
        memory = memory_of(files, config, trainable, tokens, device, adapter)
        disk = disk_of(config, trainable)
    seconds, seconds_from = time_of(db, config, steps, device)
    copies = config.processes if device == "cpu" else 1
    free_disk = shutil.disk_usage(settings.folder.root).free
    notes += _idle_settings(settings, config, freight)
    warnings += _memory_warnings(config, memory, copies, free, device)
    warnings += disk_warnings(db, settings, disk, free_disk)
    if rows < config.global_batch:
        notes.append(
            f"One step takes all {rows:,} rows, since global_batch is {config.global_batch:,}. A smaller one "
            "gives more steps."
        )
    return Preflight(
        rows=rows,
        heldout=pairs.count("heldout"),
        report=pairs.count("report"),
        steps=steps,
        accumulation=config.accumulation,
        device=device,
        parameters=parameters,
        trainable=trainable,
        memory=memory,
        copies=copies,
        free_memory=free,
        disk=disk,
        free_disk=free_disk,
        seconds=seconds,
        seconds_from=seconds_from,
        warnings=tuple(warnings),
        notes=tuple(notes),
        missing=missing,
    )


def disk_warnings(db: Database, settings: Settings, disk: int | None, free: int) -> list[str]:
    """What the disk and the data folder's budget have against it; the job would wait, or pause on its way."""
    held = disk_guard.has_room(db, settings)
    if held:
        return [f"It would wait for room. {held}"]
    if disk is None:
        return []
    takes = f"Checkpoints and adapter take {gigabytes(disk)}, and the"
    if disk > free:
        return [
            f"{takes} disk has {gigabytes(free)} free: it would pause on its way. Set keep_checkpoints to 0, or "
            "free some disk."
        ]
    budget = get_budget(db)
    if budget is None:
        return []
    left = budget - measured(settings.folder).total
    if disk > left:
        return [
            f"{takes} data folder has {gigabytes(left)} left of its budget of {gigabytes(budget)}: no other job "
            "would start after it. Set keep_checkpoints to 0, delete runs, or set a larger budget."
        ]
    return []


def missing_model(config: TrainConfig) -> Missing | None:
    """What a hub's model still has to bring; None for `demo`, which is assembled, and for folders."""
    if not is_hub_name(config.model):
        return None
    return Missing(config.model, config.revision, bytes_missing(config.model, config.revision))


def _missing_warnings(missing: Missing) -> list[str]:
    if hub.offline():
        return [
            f"The job would fail: {missing.model!r} isn't on this machine, and {hub.OFFLINE} is set. Unset it and "
            "start Plumb again, or copy the model's folder here and give its path as the base model."
        ]
    if missing.bytes is None:
        return [
            f"The hub doesn't answer, and {missing.model!r} isn't on this machine: the job waits for it to be "
            "downloaded, and fails where that can't be."
        ]
    return []


def steps_of(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of a run, as jobs/gpu/trial.py counts them."""
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil(rows / (config.batch_size * config.processes))
    return math.ceil(config.epochs * max(1, math.ceil(batches / config.accumulation)))


def started_from(settings: Settings, freight: Freight) -> dict[str, Tensor] | None:
    """The tensors of the adapter that training starts from, if it starts from one."""
    if not freight.adapters:
        return None
    return read_tensors(settings.folder.adapters / freight.adapters[0].sha256, "adapter_model") or {}


def _idle_settings(settings: Settings, config: TrainConfig, freight: Freight) -> list[str]:
    """That a start from an adapter leaves LoRA's settings as they are there, where the form has others."""
    if not freight.adapters:
        return []
    adapter = freight.adapters[0]
    try:
        file = settings.folder.adapters / adapter.sha256 / "adapter_config.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        others = differences(config, found if isinstance(found, dict) else {})
    except (OSError, ValueError, TypeError):  # what is damaged is told when the job starts
        return []
    if not others:
        return []
    return [
        f"Training goes on with the adapter {adapter.name!r}, so that its LoRA settings hold and the form's do "
        f"nothing: {'; '.join(others)}."
    ]


def trainable_parameters(
    files: ModelFiles, config: TrainConfig, adapter: Mapping[str, Tensor] | None = None
) -> int:
    """What PEFT will count: LoRA on the language model's linear layers and, where it is trained, the projector.

    Args:
        adapter: of the one that training starts from; its rank and layers stay as they are.
    """
    if adapter is None:
        lora = lora_parameters(language_linears(files, config.targets), config.lora_r)
    else:
        lora = sum(tensor.count for name, tensor in adapter.items() if "lora_" in name)
    return lora + (projector_parameters(files) if config.train_projector else 0)


def longest_row(files: ModelFiles, config: TrainConfig, freight: Freight) -> tuple[int, str]:
    """Tokens of the longest row to train on, as one or two sequences; and what is unsure about them.

    A token is taken to have 3.5 characters; images count as their family's processor makes them.
    """
    images = {image.name: image for image in freight.images.values()}
    known: dict[str, int] = {}
    unsure = ""
    for name, image in images.items():
        found = image_tokens(files, image.width, image.height)
        if found is None:
            unsure = (
                f"How many tokens an image takes in a {files.config.get('model_type')!r} model isn't known here; "
                f"{IMAGE_TOKENS} are assumed."
            )
        known[name] = IMAGE_TOKENS if found is None else found
    longest = 0
    for row in freight.rows:
        if row["split"] == "train":
            longest = max(longest, _tokens(row, known, config))
    return longest, unsure


def _tokens(row: Mapping[str, Any], images: Mapping[str, int], config: TrainConfig) -> int:
    shown = words = 0
    for message in row["messages"]:
        for part in message["content"]:
            if part["type"] == "image":
                shown += images.get(part["image"], IMAGE_TOKENS)
            else:
                words += len(part["text"])
    prompt = shown + math.ceil(words / CHARACTERS) + FRAME
    answers = [math.ceil(len(row[name]) / CHARACTERS) for name in ("answer", "chosen", "rejected") if name in row]
    together = not isinstance(config, DpoConfig) or config.shared_prefix
    return prompt * (1 if together else len(answers)) + sum(answers)


def memory_of(
    files: ModelFiles,
    config: TrainConfig,
    trainable: int,
    tokens: int,
    device: str,
    adapter: Mapping[str, Tensor] | None = None,
) -> Memory:
    """Bytes on one device at the peak of a step, roughly.

    Activations, for each token and layer of the language model, in numbers of the dtype that is computed in: what
    a layer keeps for its backward is about 14 times its width (norms, queries, keys, values, attention, residual)
    and 5 times its inner width (gate, up, their product and its parts); dropout before LoRA keeps another 6 and 1.
    After Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) with a gated MLP and frozen weights, and without
    their s² term, since sdpa keeps no scores; eager attention keeps two of them a head. With gradient
    checkpointing a layer keeps its input alone, and one layer at a time is whole.

    Args:
        tokens: of the longest row.
    """
    text = files.text
    width, layers = int(text.get("hidden_size", 4096)), int(text.get("num_hidden_layers", 32))
    inner = int(text.get("intermediate_size", 4 * width))
    heads = int(text.get("num_attention_heads", 32))
    if device == "cpu" and config.dtype == "auto" and not computes_bfloat16():
        config = config.model_copy(update={"dtype": "float32"})  # as jobs/gpu/devices.py reads the weights
    element = computed_bytes(files, config)
    placed = config.batch_size * tokens
    each = 14 * width + 5 * inner
    if config.lora_dropout:
        each += 6 * width + inner
    layer = placed * each * element
    if config.attention == "eager":
        layer += config.batch_size * heads * tokens**2 * (element + 4)
    whole = layer + placed * width * element * layers if config.gradient_checkpointing else layer * layers
    reference = 4 * sum(tensor.count for tensor in adapter.values()) if adapter else 0
    return Memory(
        weights=weight_bytes(files, config.dtype, config.quantization),
        trained=TRAINED_BYTES * trainable + reference,
        activations=whole + TILES_BYTES,
        program=CONTEXT_BYTES if device.startswith("cuda") else PROCESS_BYTES,
    )


def computed_bytes(files: ModelFiles, config: TrainConfig) -> int:
    """Bytes of a number that the language model computes with."""
    if config.dtype != "auto":
        return 4 if config.dtype == "float32" else 2
    linears = language_linears(files)
    saved = {files.tensors[f"{name}.weight"].dtype for name in linears}
    return 4 if saved == {"F32"} else 2


def disk_of(config: TrainConfig, trainable: int) -> int:
    """The most that checkpoints, best weights and adapter take; the newest is written before the oldest goes."""
    checkpoints = config.keep_checkpoints + 1 if config.keep_checkpoints else 0
    weights = 1 + (2 if config.patience else 0)
    return trainable * (CHECKPOINT_BYTES * checkpoints + ADAPTER_BYTES * weights)


def checkpoint_bytes(run: RunFolder, config: TrainConfig) -> int:
    """What one checkpoint of a frozen training takes; 0 where the base isn't on this machine.

    Raises:
        UserError: a file of the base is damaged, or the run folder's job.json.
    """
    files = find_model(config.model, models_folder(run, run.job()), config.revision)
    if files is None:
        return 0
    starts = sorted((run.path / "data" / "adapters").glob("*/"))
    adapter = read_tensors(starts[0], "adapter_model") if starts else None
    return trainable_parameters(files, config, adapter or None) * CHECKPOINT_BYTES


def _memory_warnings(
    config: TrainConfig, memory: Memory | None, copies: int, free: int | None, device: str
) -> Sequence[str]:
    if memory is None or free is None or memory.total * copies <= free:
        return ()
    where = "this machine" if device == "cpu" else device
    several = f" for {copies} processes" if copies > 1 else ""
    steps = "; or ".join(remedies(config, device))
    return (
        f"It needs about {gigabytes(memory.total * copies)} of memory{several}, and {where} has "
        f"{gigabytes(free)} free. {steps[:1].upper()}{steps[1:]}.",
    )


def roomiest(config: TrainConfig, settings: Settings) -> tuple[str, int | None]:
    """The device that the job names or, of those it may take, the one with most free memory; and that memory."""
    suits = [config.device] if config.device else list(settings.devices)
    if not config.device and any(name.startswith("cuda:") for name in suits) and config.processes > 1:
        suits = [name for name in suits if name.startswith("cuda:")]
    found = [(name, free_memory(name)) for name in suits]
    return max(found, key=lambda one: -1 if one[1] is None else one[1])


def free_memory(device: str) -> int | None:
    """Bytes that a device has free now; None where that cannot be told."""
    if device == "cpu":
        free = psutil.virtual_memory().available
        limit = _group_memory(Path("/sys/fs/cgroup"))
        return free if limit is None else min(free, limit)
    if not device.startswith("cuda:"):
        return None
    number = device.removeprefix("cuda:")
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if visible:
        number = visible[int(number)] if int(number) < len(visible) else number
    asked = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", number]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
        return int(told.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _group_memory(folder: Path) -> int | None:
    """What a container may still take, where it has a limit; its file cache can be taken back."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        cache = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
        return max(0, int(limit) - used + cache)
    except (OSError, ValueError, IndexError):
        return None


def time_of(db: Database, config: TrainConfig, steps: int, device: str) -> tuple[float | None, str]:
    """Seconds that the run will take, after an earlier run or trial of the same model and batch; and whose.

    A run's pace is its median; a trial's step is one on its longest rows, so that it gives the most.
    """
    same = [
        job
        for job in store.list_jobs(db, kind=config.kind, limit=500, deleted=True)
        if _same_pace(job, config, device) and job.started_at
    ]
    same.sort(key=lambda job: job.config.get("dataset") != config.dataset)  # stable: the newest of each first
    for job in same[:20]:
        curves = store.metrics_of(db, job.id)
        paces = curves.get("pairs_per_second") or curves.get("rows_per_second")
        if paces:
            pace = statistics.median(value for _, value in paces)
            return steps * config.global_batch / pace, f"the pace of job {job.id}"
        if curves.get("trial_seconds"):
            batches = max(1, int(job.config["global_batch"]) // (config.batch_size * config.processes))
            batch = curves["trial_seconds"][-1][1] / batches
            return steps * batch * config.accumulation, f"the trial step of job {job.id}, at the most"
    return None, ""


def _same_pace(job: Job, config: TrainConfig, device: str) -> bool:
    own = config.model_dump(mode="json")
    if any(job.config.get(name) != own[name] for name in _SAME_PACE if name in own):
        return False
    slot = (job.slot or "").split(",")[0]
    return slot.split(":")[0] == device.split(":")[0]


def gigabytes(size: float) -> str:
    """Bytes for people, in 10⁹: 61 GB, 4.2 GB, 0.03 GB."""
    size /= 1e9
    return f"{size:.0f} GB" if size >= 20 else f"{size:.1f} GB" if size >= 0.1 else f"{size:.2g} GB"
