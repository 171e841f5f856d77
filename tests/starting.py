"""Runs that train from an adapter, and what tests of them ask: adapters' weights, metrics, notes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import tiny
from jobs.configs import DpoConfig, TrainConfig
from jobs.gpu.loading import Loaded
from jobs.runs import RunFolder
from jobs.worker import work
from test_dpo_job import FAST, dpo_run, last_end

#: Nobody reads the answers on the way.
QUIET = {"watched_samples": 0, "watched_prompts": ""}
PROJECTOR = {**FAST, **QUIET, "train_projector": True, "projector_learning_rate": 1e-2}


def config_of(**changes: Any) -> DpoConfig:
    return DpoConfig.model_validate({**FAST, "model": str(tiny.tiny_llava()), **changes})


def loaded_llava(dtype: torch.dtype = torch.float32) -> Loaded:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tiny.tiny_llava()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
    return Loaded(str(folder), model, AutoProcessor.from_pretrained(folder), torch.device("cpu"))


def metrics(run: RunFolder, name: str = "loss") -> list[float]:
    return [event["values"][name] for event in tiny.events(run, "metric") if name in event["values"]]


def notes(run: RunFolder) -> str:
    return " ".join(event["text"] for event in tiny.events(run, "note"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def first_run(folder: Path) -> RunFolder:
    """A run whose adapter others start from."""
    run = dpo_run(folder / "run", {**FAST, **QUIET, "max_steps": 4, "evaluations": 0})
    assert work(run.path) == 0, last_end(run)
    return run


def projector_run(folder: Path) -> RunFolder:
    """The same with a trained projector."""
    run = dpo_run(folder / "run", {**PROJECTOR, "max_steps": 4, "evaluations": 1})
    assert work(run.path) == 0, last_end(run)
    return run


def answer_row(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A pair's chosen answer as the methods but DPO take it."""
    return {
        "kind": "answer",
        "split": row["split"],
        "sample_id": number,
        "messages": row["messages"],
        "answer": row["chosen"],
    }


def started(folder: Path, adapter: Path, kind: str = "dpo", **changes: Any) -> RunFolder:
    """A run that starts from this adapter; sft kinds have the answers as rows."""
    base = dpo_run(folder / "unused", FAST)
    rows = list(base.rows())
    if kind != "dpo":
        answers = [answer_row(number, row) for number, row in enumerate(rows[:8])]
        rows = [*answers, *({"kind": "pair", **row} for row in rows[8:])]
    images = [(file.name, file) for file in base.images.iterdir()]
    config = {**FAST, **QUIET, "max_steps": 3, "evaluations": 1, "start_adapter": 3, **changes}
    return tiny.frozen_run(folder / "run", kind, config, rows, images, {3: adapter})


def references_file(folder: Path) -> Path:
    (file,) = (folder / "references").glob("*.jsonl")
    return file


def made(
    folder: Path, adapter: Path, dtype: str = "float32", **changes: Any
) -> tuple[Any, RunFolder, list[dict[str, Any]]]:
    """A trainer that starts from an adapter, with its references in place."""
    from jobs.gpu.callbacks import Telling
    from jobs.gpu.loading import load
    from jobs.gpu.material import open_book, read_material
    from jobs.gpu.policy import start_folder
    from jobs.gpu.scoring import PairScorer
    from jobs.gpu.training import make_trainer, references
    from jobs.reporter import Reporter

    run = started(folder, adapter, dtype=dtype, **changes)
    job = run.job()
    config = job.parsed()
    assert isinstance(config, TrainConfig)
    rows = list(run.rows())[:6]
    with Reporter(run) as reporter:
        start = start_folder(run, config)
        loaded = load(config.model, dtype, torch.device("cpu"), folder, reporter)
        material = read_material(run, loaded, rows, True, reporter)
        trainer = make_trainer(run, config, loaded, material, Telling(reporter, config, 0), True, start)
        book = open_book(run, job, loaded, True, start)
        references(
            run, config, trainer, material, book, PairScorer(trainer, material, trainer.collate_pairs), reporter
        )
    trainer.remove_callback(Telling)  # its reporter has ended
    return trainer, run, rows


def copied(adapter: Path, folder: Path) -> Path:
    return Path(shutil.copytree(adapter, folder))


def change_settings(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
