"""A run folder run in another checkout, with its data folder gone: the same answers, judgements and weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
from factories import USER, World, metrics_of
from jobs import queue
from jobs.freezing import freeze
from jobs.places import SHARED, judges_folder, models_folder, references_folder
from jobs.runs import JobFile, RunFolder
from storage.files import link_or_copy
from storage.pairs import choose_by_hand
from storage.scores import add_judgement, ensure_rater

ROOT = Path(__file__).parent.parent
TRAINING = {
    "dataset": "first",
    "dtype": "float32",
    "batch_size": 2,
    "global_batch": 2,
    "lora_r": 4,
    "lora_alpha": 8,
    "learning_rate": 1e-2,
    "max_steps": 3,
    "evaluations": 1,
    "watched_samples": 1,
    "watched_tokens": 4,
}


@dataclass(frozen=True)
class Elsewhere:
    """Two places to run one job: at home, and in another checkout with the data folder renamed."""

    world: World
    folder: Path

    def both(self, kind: str, values: dict[str, Any]) -> tuple[RunFolder, RunFolder]:
        job = queue.submit(self.world.db, self.world.settings, kind, values, USER)
        home = RunFolder(self.world.folder.run(job.id))
        away = RunFolder(Path(shutil.copytree(home.path, self.folder / "taken" / "along")))
        assert perform(home, ROOT, self.folder) == 0, told(home)
        self.world.db.close()
        root = self.world.folder.root
        gone = root.rename(root.with_name("renamed"))
        checkout = self.folder / "checkout"
        for package in ("jobs", "storage"):
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, checkout / package, ignore=left_out)
        assert str(checkout) in where_from(checkout, self.folder)
        assert perform(away, checkout, self.folder) == 0, told(away)
        assert not root.exists(), "nothing was made where the data folder had been"
        return RunFolder(gone / home.path.relative_to(root)), away


def clean(folder: Path) -> dict[str, str]:
    """An environment in which nothing of this process's own is left."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **quiet, "HOME": str(folder / "nobody"), "HF_HUB_OFFLINE": "1"}


def where_from(checkout: Path, folder: Path) -> str:
    asked = [sys.executable, "-c", "import jobs, storage; print(jobs.__path__, storage.__path__)"]
    return subprocess.run(
        asked, cwd=checkout, env=clean(folder), capture_output=True, text=True, check=True
    ).stdout


def perform(run: RunFolder, checkout: Path, folder: Path) -> int:
    asked = [sys.executable, "-m", "jobs.worker", str(run.path)]
    with run.log.open("ab") as log:
        return subprocess.run(
            asked, cwd=checkout, env=clean(folder), stdout=log, stderr=log, timeout=280, check=False
        ).returncode


def told(run: RunFolder) -> str:
    return run.log.read_text(encoding="utf-8")[-3000:]


@pytest.fixture
def elsewhere(world: World, tmp_path: Path, no_supervisor: None) -> Elsewhere:
    return Elsewhere(world, tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A base model that lies outside the data folder, as on a cluster's shared disk."""
    return str(shutil.copytree(tiny.tiny_llava(), tmp_path / "base"))


def frozen(world: World) -> None:
    rater = ensure_rater(world.db, "judge", "test-judge")
    for number in range(1, 7):
        sample = world.sample(number)
        found = world.candidates(sample, ["a red circle", "red"])
        scores = [
            {"candidate_id": one.id, **metrics_of(quality)} for one, quality in zip(found, (11, 4), strict=True)
        ]
        add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state="ok", scores=scores)
        choose_by_hand(world.db, USER, found[0].id, found[1].id)
    freeze(world.db, USER, "first", ("accepted", "proposed"), heldout_percent=30)


def results(run: RunFolder, kind: str, *leaving: str) -> list[dict[str, Any]]:
    """The run's results, without what a clock decides."""
    return [
        {name: value for name, value in event.items() if name not in ("time", *leaving)}
        for event in tiny.events(run, kind)
    ]


@pytest.mark.slow
def test_generate_with_the_demo_model(elsewhere: Elsewhere) -> None:
    """The demo VLM is assembled anew inside the run folder; at home it is there already."""
    at_home = elsewhere.world.folder.models / "demo-vlm"
    for file in tiny.demo_vlm()[0].iterdir():
        link_or_copy(file, at_home / file.name)
    elsewhere.world.sample(1)
    elsewhere.world.sample(2, question="is there a circle?")
    values = {"model": "demo", "candidates": 2, "max_new_tokens": 8, "batch_size": 2}
    home, away = elsewhere.both("generate", values)
    assert len(results(home, "candidate")) == 4
    assert results(home, "candidate") == results(away, "candidate")
    assert (away.path / SHARED / "models" / "demo-vlm" / "model.safetensors").stat().st_nlink == 1


def test_judge_by_rules(elsewhere: Elsewhere) -> None:
    for number in (1, 2):
        elsewhere.world.candidates(
            elsewhere.world.sample(number), ["circle", "a blue triangle", "It is a circle."]
        )
    home, away = elsewhere.both("judge", {"judge": "easy-vqa-rules"})
    assert len(results(home, "judgement")) == 2
    assert results(home, "judgement") == results(away, "judgement")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "steerlm"])
def test_trainings(elsewhere: Elsewhere, base: str, kind: str) -> None:
    import torch
    from safetensors.torch import load_file

    frozen(elsewhere.world)
    home, away = elsewhere.both(kind, {**TRAINING, "model": base})
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (home, away))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-6
    assert any(float(value.abs().max()) > 0 for name, value in ours.items() if "lora_B" in name)
    assert results(home, "answers") == results(away, "answers") != []
    assert losses(home) == pytest.approx(losses(away), abs=1e-6)
    assert list((away.path / SHARED / "references").glob("*.jsonl"))
    assert torch.is_tensor(next(iter(ours.values())))


def losses(run: RunFolder) -> Sequence[float]:
    return [event["values"]["loss"] for event in tiny.events(run, "metric") if "loss" in event["values"]]


# Where a worker looks


def job_of(**folders: Path) -> JobFile:
    named = {"models_dir": "", "judges_dir": "", "references_dir": ""} | {
        name: str(folder) for name, folder in folders.items()
    }
    return JobFile(
        job_id=1, kind="generate", config={"model": "demo"}, user="ada", device="cpu", created_at="", **named
    )


def all_of(run: RunFolder, job: JobFile) -> list[Path]:
    return [models_folder(run, job), references_folder(run, job), judges_folder(run, job)]


NAMES = ("models", "references", "judges")


def test_a_data_folder_is_where_its_runs_look(world: World, tmp_path: Path) -> None:
    root = world.folder.root
    run = RunFolder(world.folder.run(1))
    named = {f"{name}_dir": root / name for name in NAMES}
    assert all_of(run, job_of(**named)) == [root / name for name in NAMES]
    # Moved: what job.json names is gone, what lies beside the runs is not.
    moved = {f"{name}_dir": tmp_path / "before" / name for name in NAMES}
    assert all_of(run, job_of(**moved)) == [root / name for name in NAMES]


def test_a_run_folder_on_its_own_holds_what_is_shared(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "here" / "runs" / "000001")
    away = {f"{name}_dir": tmp_path / "gone" / name for name in NAMES}
    own = [run.path / SHARED / name for name in NAMES]
    assert all_of(run, job_of(**away)) == own
    for name in NAMES:  # somebody's own folders, not a data folder's
        (tmp_path / "here" / name).mkdir(parents=True)
    assert all_of(run, job_of(**away)) == own


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    named = {f"{name}_dir": tmp_path / "data" / name for name in NAMES}
    for folder in named.values():
        folder.mkdir(parents=True)
    assert all_of(run, job_of(**named)) == list(named.values())
    monkeypatch.setattr(
        "jobs.places.os.access", lambda path, mode: not Path(path).is_relative_to(tmp_path / "data")
    )
    own = [run.path / SHARED / name for name in NAMES]
    assert all_of(run, job_of(**named)) == own
    # A demo model that is there is read, not made again.
    (named["models_dir"] / "demo-vlm").mkdir()
    (named["models_dir"] / "demo-vlm" / "config.json").write_text(json.dumps({}))
    assert models_folder(run, job_of(**named)) == named["models_dir"]
    other = job_of(**named).model_copy(update={"config": {"model": "owner/name"}})
    assert models_folder(run, other) == own[0]


def test_runs_frozen_before_references_were_named(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    run = RunFolder(tmp_path / "run")
    assert references_folder(run, job_of(models_dir=tmp_path / "models")) == tmp_path / "references"
