"""The generate job on the tiny LLaVA, in its run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from jobs.reporter import Reporter
from jobs.runs import RunFolder
from jobs.worker import work

CONFIG = {"dtype": "float32", "candidates": 3, "max_new_tokens": 8, "batch_size": 2, "seed": 3}


def generate_run(folder: Path, count: int = 5, rows: list[Any] | None = None, **changes: Any) -> RunFolder:
    images = [tiny.store(folder.parent / "images", tiny.picture(colour)) for colour in ("red", "blue")]
    if rows is None:
        names = [name for name, _ in images]
        rows = [
            {"sample_id": 10 + n, "messages": tiny.ask(f"what is this, {'really ' * n}?", *names[: n % 3])}
            for n in range(count)
        ]
    adapters = changes.pop("adapters", None)
    device = changes.pop("device", "cpu")
    return tiny.frozen_run(folder, "generate", {**CONFIG, **changes}, rows, images, adapters, device)


def candidates(run: RunFolder) -> dict[tuple[int, int], str]:
    return {(event["sample_id"], event["number"]): event["text"] for event in tiny.events(run, "candidate")}


def ended(run: RunFolder) -> dict[str, Any]:
    return tiny.events(run, "end")[-1]


def test_every_sample_gets_its_candidates(tmp_path: Path) -> None:
    run = generate_run(tmp_path / "run")
    assert work(run.path) == 0, ended(run)
    found = candidates(run)
    assert sorted(found) == [(10 + n, number) for n in range(5) for number in range(3)]
    event = tiny.events(run, "candidate")[0]
    assert event["settings"] == {
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 8,
        "seed": 3,
        "model": str(tiny.tiny_llava()),
        "adapter": None,
        "dtype": "float32",
    }
    assert event["finish"] in ("stop", "length")
    assert 0 < event["tokens"] <= 8
    assert len({found[10, number] for number in range(3)}) > 1
    done = [(event["done"], event["total"]) for event in tiny.events(run, "progress")]
    assert done == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert ended(run)["status"] == "done"


def test_batches_do_not_change_the_answers(tmp_path: Path) -> None:
    one = generate_run(tmp_path / "one", batch_size=1)
    all_ = generate_run(tmp_path / "all", batch_size=5)
    other = generate_run(tmp_path / "other", batch_size=5, seed=4)
    for run in (one, all_, other):
        assert work(run.path) == 0
    assert candidates(one) == candidates(all_)
    assert candidates(one) != candidates(other)


def test_a_second_attempt_writes_only_what_is_missing(tmp_path: Path) -> None:
    whole = generate_run(tmp_path / "whole")
    assert work(whole.path) == 0
    run = generate_run(tmp_path / "run")
    # The first attempt died within sample 12, in the middle of a line.
    kept = tiny.events(whole, "candidate")[:7]
    lines = [json.dumps(event) for event in kept]
    run.events.write_text("\n".join(lines) + "\n" + lines[0][:30], encoding="utf-8")
    assert work(run.path) == 0
    written = []
    for line in run.events.read_text(encoding="utf-8").splitlines():
        if line != lines[0][:30]:
            event = json.loads(line)
            if event["kind"] == "candidate":
                written.append(((event["sample_id"], event["number"]), event["text"]))
    assert len(written) == 15
    assert dict(written) == candidates(whole)


def test_a_stop_keeps_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = generate_run(tmp_path / "run")
    told = Reporter.progress

    def stop_after_two(self: Reporter, done: float, total: float, unit: str = "items") -> None:
        told(self, done, total, unit)
        if done == 2:
            run.ask_to_stop()

    monkeypatch.setattr(Reporter, "progress", stop_after_two)
    assert work(run.path) == 0
    assert ended(run)["status"] == "stopped"
    assert len(candidates(run)) == 6


def test_one_bad_sample_does_not_take_the_others_along(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    name, file = tiny.store(tmp_path / "images", tiny.picture("green"))
    cut = tmp_path / "images" / ("c" * 64 + ".png")
    cut.write_bytes(file.read_bytes()[:40])
    empty = tmp_path / "images" / ("e" * 64 + ".png")
    empty.write_bytes(b"")
    rows = [
        {"sample_id": 1, "messages": tiny.ask("fine", name)},
        {"sample_id": 2, "messages": tiny.ask("gone", "9" * 64 + ".png")},
        {"sample_id": 3, "messages": tiny.ask("cut off", cut.name)},
        {"sample_id": 4, "messages": tiny.ask("empty", empty.name)},
        {"sample_id": 5, "messages": tiny.ask("long " * tiny.CONTEXT, name)},
        {"sample_id": 6, "messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]},
        {"sample_id": 7, "messages": [{"role": "user", "content": "a plain string"}]},
    ]
    images = [(name, file), (cut.name, cut), (empty.name, empty)]
    run = tiny.frozen_run(folder, "generate", {**CONFIG, "batch_size": 8}, rows, images)
    assert work(run.path) == 0, ended(run)
    assert {sample for sample, _ in candidates(run)} == {1, 7}
    notes = " ".join(event["text"] for event in tiny.events(run, "note"))
    for words in ("Sample 2 is left out", "is missing", "Sample 3", "cannot be read", "Sample 4", "'video'"):
        assert words in notes
    assert f"exceed the model's {tiny.CONTEXT}" in notes


def test_if_nothing_can_be_answered_the_job_fails(tmp_path: Path) -> None:
    run = generate_run(tmp_path / "run", rows=[{"sample_id": 1, "messages": tiny.ask("x", "0" * 64 + ".png")}])
    assert work(run.path) == 1
    assert "None of the 1 samples" in ended(run)["reason"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": []}, "no samples to answer"),
        ({"device": "cuda:7"}, "'cuda:7' isn't there: torch"),
        ({"device": "tpu"}, "Unknown device 'tpu'"),
        ({"dtype": "float16"}, "dtype 'float16' is not for the CPU"),
        ({"model": "no such name"}, "Unknown base model 'no such name'"),
        ({"adapter": 3}, "adapter 3 is not in the run folder"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    run = generate_run(tmp_path / "run", **changes)
    assert work(run.path) == 1
    assert words in ended(run)["reason"]


def test_a_hub_name_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    run = generate_run(tmp_path / "run", model="someone/unknown-model")
    assert work(run.path) == 1
    assert "'someone/unknown-model' isn't in the cache and the hub can't be reached" in ended(run)["reason"]


def broken_copy(folder: Path, change: str) -> Path:
    """A copy of the tiny LLaVA with one thing wrong."""
    import shutil

    copy = folder / "model"
    shutil.copytree(tiny.tiny_llava(), copy)
    weights = copy / "model.safetensors"
    config = json.loads((copy / "config.json").read_text())
    if change == "pickles":
        weights.rename(copy / "pytorch_model.bin")
    elif change == "no weights":
        weights.unlink()
    elif change == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif change == "text only":
        (copy / "config.json").write_text(json.dumps({**config["text_config"], "model_type": "llama"}))
    elif change == "own code":
        odd = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig"}}
        (copy / "config.json").write_text(json.dumps(odd))
        (copy / "odd.py").write_text("raise SystemExit('code of the model ran')")
    elif change == "no processor":
        for file in ("processor_config.json", "preprocessor_config.json", "tokenizer.json"):
            (copy / file).unlink(missing_ok=True)
        (copy / "tokenizer_config.json").unlink()
    return copy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("pickles", "weights as pickles (pytorch_model.bin)"),
        ("no weights", "no .safetensors file"),
        ("cut off", "damaged"),
        ("text only", "'llama', which doesn't answer questions about images"),
        ("own code", "needs code of its own"),
        ("no processor", "model"),
    ],
)
def test_folders_that_hold_no_usable_model(tmp_path: Path, change: str, words: str) -> None:
    run = generate_run(tmp_path / "run", model=str(broken_copy(tmp_path, change)))
    assert work(run.path) == 1
    assert words in ended(run)["reason"]
    assert "Traceback" not in ended(run)["reason"]


def make_adapter(folder: Path, base: str | None = None, size: float = 0.5) -> Path:
    """A LoRA with weights large enough to be heard."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from jobs.gpu.lora import language_linears

    model = AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava())
    torch.manual_seed(1)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=language_linears(model), task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, tensor in peft.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=size)
    peft.peft_config["default"].base_model_name_or_path = base or str(tiny.tiny_llava())
    peft.save_pretrained(folder)
    return folder


def test_an_adapter_answers_differently(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    base = generate_run(tmp_path / "base", 2)
    tuned = generate_run(tmp_path / "tuned", 2, adapter=5, adapters={5: adapter})
    assert work(base.path) == 0
    assert work(tuned.path) == 0, ended(tuned)
    assert candidates(base).keys() == candidates(tuned).keys()
    assert candidates(base) != candidates(tuned)
    assert tiny.events(tuned, "candidate")[0]["settings"]["adapter"] == 5


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    strange = make_adapter(tmp_path / "strange", base="llava-hf/another-base")
    pickled = make_adapter(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    shaped = make_adapter(tmp_path / "shaped")
    config = json.loads((shaped / "adapter_config.json").read_text())
    (shaped / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    for folder, words in ((strange, "trained on 'llava-hf/another-base'"), (pickled, "pickles"), (shaped, "fit")):
        run = generate_run(tmp_path / f"run-{folder.name}", 1, adapter=5, adapters={5: folder})
        assert work(run.path) == 1
        assert words in ended(run)["reason"]


@pytest.mark.slow
def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    run = generate_run(tmp_path / "run", 2)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.worker", str(run.path)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(candidates(run)) == 6
