"""Fixtures for tests that ask a hub: a hub with a model, an empty cache, and what a download leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from hub_server import FIRST, FakeHub
from jobs import download, hub
from jobs.runs import RunFolder

NAME = "ada/colours"
SECRET = "hf_secretOfTheTests456"
WEIGHTS = bytes(range(256)) * 12_000  # 3.07 MB: three chunks
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
FILES = {
    "config.json": b'{"model_type": "llava"}',
    "tokenizer.model": b"words",
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
}
OTHERS = {
    "pytorch_model.bin": b"a pickle",
    "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": WEIGHTS,
    "original/model.safetensors": WEIGHTS,
    "original/params.json": b"{}",
    "README.md": b"# Colours",
    "onnx/model.onnx": b"onnx",
}


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that this process asks, with an empty cache and a model."""
    from huggingface_hub import constants

    made = FakeHub()
    made.add(NAME, FILES | OTHERS)
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(download, "TELL_SECONDS", 0.01)
    hub._answers.clear()
    yield made
    made.close()
    hub._answers.clear()


@pytest.fixture
def no_network(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.close()
    monkeypatch.setattr(hub, "ASK_SECONDS", 2.0)


def cached(commit: str = FIRST, name: str = NAME, **refs: str) -> Path:
    """A model in the cache, as the hub's library leaves it."""
    store = hub.store_of(name)
    folder = store / "snapshots" / commit
    folder.mkdir(parents=True)
    for file, content in FILES.items():
        (folder / file).write_bytes(content)
    (store / "refs").mkdir(exist_ok=True)
    for ref, stands_for in refs.items():
        (store / "refs" / ref).write_text(stands_for)
    return folder


def download_run(folder: Path, **config: Any) -> RunFolder:
    run = tiny.frozen_run(folder, "download", {"model": NAME, **config}, device="network")
    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(job))
    return run


def ended(run: RunFolder) -> dict[str, Any]:
    return tiny.events(run, "end")[-1]


def held(commit: str = FIRST) -> dict[str, bytes]:
    folder = hub.store_of(NAME) / "snapshots" / commit
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
