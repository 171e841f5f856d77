"""What a training will need: counts equal to PEFT's and the processors', estimates that grow where they must."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_vlms
from factories import USER, World
from jobs import model_files, preflight
from jobs.configs import DpoConfig, SteerlmConfig, TrainConfig
from jobs.freezing import freeze
from jobs.hub import lacking_weights
from jobs.model_files import (
    ModelFiles,
    find_model,
    image_tokens,
    language_linears,
    read_header,
    read_tensors,
    weight_bytes,
)
from jobs.preflight import (
    disk_of,
    free_memory,
    gigabytes,
    longest_row,
    memory_of,
    steps_of,
    time_of,
    trainable_parameters,
)
from jobs.queue import prepare
from storage import jobs as store
from storage.adapters import add_adapter, keep_adapter, list_adapters
from storage.errors import NotFound, UserError
from storage.lifecycle import JobStatus
from storage.pairs import choose_by_hand
from storage.records import Job
from tiny import tiny_llava

NOWHERE = Path("/nowhere")


def files_of(folder: Path) -> ModelFiles:
    found = find_model(str(folder), NOWHERE)
    assert found is not None
    return found


def dpo(**values: Any) -> DpoConfig:
    return DpoConfig(dataset="first", model=str(tiny_llava()), **{"batch_size": 2, "global_batch": 4, **values})


def frozen(world: World) -> None:
    for number in range(1, 9):
        one, other = world.candidates(world.sample(number), ["a red circle", "red"])
        choose_by_hand(world.db, USER, one.id, other.id)
    freeze(world.db, USER, "first", ("accepted", "proposed"), heldout_percent=25)


def asked(config: TrainConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def peft_counts(config: TrainConfig, folder: Path, start: Path | None = None) -> int:
    """What PEFT trains, with the model loaded."""
    import torch

    from jobs.gpu.loading import load
    from jobs.gpu.policy import make_policy

    reporter: Any = SimpleNamespace(phase=lambda text: None, note=lambda text: None)
    loaded = load(str(folder), "auto", torch.device("cpu"), NOWHERE, reporter)
    policy = make_policy(config.model_copy(update={"model": str(folder)}), loaded, start)
    return sum(one.numel() for one in policy.parameters() if one.requires_grad)


@pytest.mark.parametrize(
    "values",
    [
        {"lora_r": 4},
        {"lora_r": 8, "lora_targets": "q_proj, down_proj"},
        {"lora_r": 3, "train_projector": True},
    ],
)
def test_trained_parameters_are_pefts(values: dict[str, Any]) -> None:
    config = dpo(**values)
    assert trainable_parameters(files_of(tiny_llava()), config) == peft_counts(config, tiny_llava())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(tiny_vlms.FAMILIES))
def test_trained_parameters_are_pefts_in_every_family(name: str) -> None:
    folder = tiny_vlms.folder(name)
    config = dpo(lora_r=5, train_projector=True)
    assert trainable_parameters(files_of(folder), config) == peft_counts(config, folder)


def test_a_starting_adapter_keeps_its_own_rank_and_layers(tmp_path: Path) -> None:
    import torch

    from jobs.gpu.loading import load
    from jobs.gpu.policy import make_policy
    from jobs.gpu.trainers import save_adapter

    reporter: Any = SimpleNamespace(phase=lambda text: None, note=lambda text: None)
    loaded = load(str(tiny_llava()), "auto", torch.device("cpu"), NOWHERE, reporter)
    save_adapter(make_policy(dpo(lora_r=2, lora_targets="v_proj"), loaded, None), tmp_path)
    tensors = read_tensors(tmp_path, "adapter_model")
    config = dpo(lora_r=64, start_adapter=1)
    assert trainable_parameters(files_of(tiny_llava()), config, tensors) == peft_counts(
        config, tiny_llava(), tmp_path
    )


def test_the_header_says_what_the_weights_are(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: (tensor.shape, tensor.bytes) for name, tensor in found.items()} == {
        "a.weight": ((3, 5), 60),
        "b": ((7,), 14),
    }


@pytest.mark.parametrize(
    "data", [b"", b"\x05", b"\xff" * 20, (9).to_bytes(8, "little") + b"{}", b"PK\x03\x04 pickle"]
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors in .* is not a whole safetensors file"):
        read_header(tmp_path / "model.safetensors")


def test_weights_in_parts_are_read_together_or_not_at_all(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    parts = {"one.safetensors": "model.layers.0.q.weight", "two.safetensors": "model.layers.1.q.weight"}
    index = {"weight_map": {name: part for part, name in parts.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({parts["one.safetensors"]: torch.zeros(2, 3)}, tmp_path / "one.safetensors")
    assert find_model(str(tmp_path), NOWHERE) is None, "a part is missing"
    save_file({parts["two.safetensors"]: torch.zeros(4, 3)}, tmp_path / "two.safetensors")
    assert language_linears(files_of(tmp_path)) == {"model.layers.0.q": (2, 3), "model.layers.1.q": (4, 3)}


@pytest.mark.parametrize("name", ["two.bin", "../two.safetensors", "/two.safetensors", "safetensors", 7, None, []])
def test_an_index_that_names_what_is_no_safetensors_file(tmp_path: Path, name: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    index = {"weight_map": {"a": "one.safetensors", "b": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    words = "cannot be read" if name == [] else f"names {re.escape(repr(name))} among the weights' files"
    with pytest.raises(UserError, match=words):
        find_model(str(tmp_path), NOWHERE)
    with pytest.raises(UserError, match=words):
        lacking_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert lacking_weights(tmp_path) == [], "a whole file is taken, and the index isn't read"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(tiny_vlms.FAMILIES))
@pytest.mark.parametrize("size", [(40, 40), (64, 30), (300, 90), (9, 200)])
def test_image_tokens_are_the_processors(name: str, size: tuple[int, int]) -> None:
    from PIL import Image
    from transformers import AutoConfig

    from jobs.gpu.processors import read_processor
    from tiny import ask

    folder = tiny_vlms.folder(name)
    files = files_of(folder)
    processor = read_processor(str(folder), AutoConfig.from_pretrained(folder))
    messages = ask("what?", Image.new("RGB", size))
    ids = processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0]
    token = files.config.get("image_token_id") or files.config["image_token_index"]
    real = list(ids).count(token)
    if name == "llava_next":  # as many as tiles can be: which are taken depends on the picture's form
        assert real <= (image_tokens(files, *size) or 0) <= 3 * real
    else:
        assert image_tokens(files, *size) == real


def test_an_unknown_familys_images_are_told_to_be_a_guess(world: World) -> None:
    frozen(world)
    files = files_of(tiny_llava())
    strange = dataclasses.replace(files, config={**files.config, "model_type": "newest"})
    freight = prepare(world.db, world.settings, dpo()).freight
    tokens, unsure = longest_row(strange, dpo(), freight)
    assert "'newest'" in unsure
    assert tokens > preflight.IMAGE_TOKENS
    assert longest_row(files, dpo(), freight)[1] == ""


def test_two_sequences_a_pair_hold_the_image_twice(world: World) -> None:
    frozen(world)
    files, freight = files_of(tiny_llava()), prepare(world.db, world.settings, dpo()).freight
    once, _ = longest_row(files, dpo(), freight)
    twice, _ = longest_row(files, dpo(shared_prefix=False), freight)
    assert once < twice < 2 * once


def memory(**values: Any) -> preflight.Memory:
    files = files_of(tiny_llava())
    config = dpo(**values)
    return memory_of(files, config, trainable_parameters(files, config), 600, "cpu")


@given(st.integers(1, 64), st.integers(1, 64), st.booleans())
def test_more_rows_never_need_less_memory(one: int, other: int, checkpointing: bool) -> None:
    low, high = sorted((one, other))
    small, large = (
        memory(batch_size=size, global_batch=size, gradient_checkpointing=checkpointing) for size in (low, high)
    )
    assert small.total <= large.total


def test_what_saves_memory_saves_it_in_the_estimate() -> None:
    plain = memory(lora_r=128, lora_dropout=0.05)
    assert memory(lora_r=128, lora_dropout=0.05, gradient_checkpointing=True).activations < plain.activations
    assert memory(lora_r=16, lora_dropout=0.05).trained < plain.trained
    assert memory(lora_r=128, lora_dropout=0.0).activations < plain.activations
    assert memory(lora_r=128, lora_dropout=0.05, dtype="bfloat16").weights * 2 == plain.weights
    assert memory(lora_r=128, lora_dropout=0.05, attention="eager").activations > plain.activations


def test_four_bits_shrink_the_language_models_layers_alone() -> None:
    files = files_of(tiny_llava())
    packed = sum(out * into for out, into in language_linears(files).values())
    rest = files.parameters - packed
    assert weight_bytes(files, "auto", "4bit") == pytest.approx(rest * 2 + packed * 0.516, rel=0.001)
    assert weight_bytes(files, "float16", "none") == 2 * files.parameters


def test_disk_holds_checkpoints_best_weights_and_the_adapter() -> None:
    assert disk_of(dpo(keep_checkpoints=0), 1000) == 4_000
    assert disk_of(dpo(keep_checkpoints=1), 1000) == 4_000 + 2 * 12_000
    assert disk_of(dpo(keep_checkpoints=0, patience=2), 1000) == 12_000


@given(
    st.integers(1, 3000),
    st.floats(0.1, 5.0),
    st.sampled_from([(1, 1), (8, 128), (4, 8), (3, 9)]),
    st.sampled_from([-1, 7]),
)
def test_steps_are_counted_as_the_trial_counts_them(
    rows: int, epochs: float, batch: tuple[int, int], most: int
) -> None:
    from jobs.gpu import trial

    config = dpo(batch_size=batch[0], global_batch=batch[1], epochs=epochs, max_steps=most)
    assert steps_of(config, rows) == trial.steps_of(config, rows)


def test_a_preflight_tells_rows_steps_and_parameters_and_queues_nothing(world: World) -> None:
    frozen(world)
    config = dpo(epochs=2.0, report_share=0.5)
    found = preflight.preflight(world.db, world.settings, "dpo", asked(config))
    assert (found.rows, found.heldout, found.report) == (6, 1, 1)
    assert (found.steps, found.accumulation) == (4, 2)
    files = files_of(tiny_llava())
    assert found.parameters == files.parameters
    assert found.trainable == trainable_parameters(files, config)
    assert found.memory is not None
    assert found.free_memory is not None
    assert found.disk == disk_of(config, found.trainable)
    assert found.seconds is None
    assert found.warnings == ()
    assert [job for job in store.list_jobs(world.db) if job.kind == "dpo"] == []


def test_a_start_from_an_adapter_says_which_settings_do_nothing(world: World, tmp_path: Path) -> None:
    """Of a base whose weights are not here, too."""
    frozen(world)
    made = tmp_path / "adapter"
    made.mkdir()
    own = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj"]}
    (made / "adapter_config.json").write_text(json.dumps({**own, "base_model_name_or_path": str(tiny_llava())}))
    (made / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    sha256, size = keep_adapter(world.folder, made)
    job = world.job("dpo")
    add_adapter(world.db, job, "first", sha256, size, str(tiny_llava()), "dpo")
    (adapter,) = list_adapters(world.db)

    def notes(**values: Any) -> str:
        config = dpo(start_adapter=adapter.id, lora_alpha=8, lora_dropout=0.0, **values)
        return " ".join(preflight.preflight(world.db, world.settings, "dpo", asked(config)).notes)

    told = notes(lora_r=64, lora_targets="v_proj")
    assert "Training goes on with the adapter 'first'" in told
    assert "the form's do nothing: lora_r 4, not 64; LoRA on q_proj, not v_proj." in told
    assert "Training goes on" not in notes(lora_r=4)
    file = world.folder.adapters / sha256 / "adapter_config.json"
    for text in ("{", "[]", '{"r": "four"}'):
        file.unlink(missing_ok=True)
        file.write_text(text)
        assert "Training goes on" not in notes(lora_r=64), "what is damaged is told when the job starts"


def test_a_run_that_cannot_fit_is_warned_of_with_remedies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen(world)
    monkeypatch.setattr(preflight, "free_memory", lambda device: 1_000_000)
    usage = SimpleNamespace(total=10, used=9, free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = preflight.preflight(world.db, world.settings, "dpo", asked(dpo()))
    memory_warning, disk_warning = found.warnings
    assert "this machine has 0.001 GB free. Set batch_size 2 → 1" in memory_warning
    assert "gradient_checkpointing" in memory_warning
    assert "Set keep_checkpoints to 0" in disk_warning


def test_weights_that_are_not_here_leave_the_rest_told(world: World) -> None:
    frozen(world)
    values = asked(dpo()) | {"model": "owner/of-nothing"}
    found = preflight.preflight(world.db, world.settings, "dpo", values)
    assert (found.parameters, found.trainable, found.memory, found.disk) == (None, None, None, None)
    assert "'owner/of-nothing' aren't on this machine yet" in found.notes[0]
    assert found.rows == 6


def test_what_could_not_be_submitted_is_refused_as_there(world: World) -> None:
    frozen(world)
    with pytest.raises(NotFound, match="no data set named 'gone'"):
        preflight.preflight(world.db, world.settings, "dpo", asked(dpo()) | {"dataset": "gone"})
    with pytest.raises(UserError, match="beta"):
        preflight.preflight(world.db, world.settings, "dpo", asked(dpo()) | {"beta": -1})
    with pytest.raises(UserError, match="is no training"):
        preflight.preflight(world.db, world.settings, "serve", {})


def earlier(world: World, config: TrainConfig, **metrics: float) -> Job:
    """A run of these settings that has told this."""
    job = world.job(config.kind, **asked(config))
    store.move(world.db, job.id, JobStatus.STARTING)
    columns = "slot = 'cpu', started_at = '2026-11-22T20:00:00+00:00'"
    world.db.conn.execute(f"UPDATE jobs SET {columns} WHERE id = ?", [job.id])
    attempt = store.start_attempt(world.db, job.id)
    store.add_metrics(world.db, attempt.id, 0, metrics)
    return store.get_job(world.db, job.id)


def test_time_comes_from_an_earlier_run_of_the_same_model_and_batch(world: World) -> None:
    config = dpo(global_batch=8)
    assert time_of(world.db, config, 10, "cpu") == (None, "")
    trial = earlier(world, dpo(global_batch=4), trial_seconds=3.0)  # two batches
    seconds, whose = time_of(world.db, config, 10, "cpu")
    assert seconds == pytest.approx(10 * 4 * 1.5)
    assert f"the trial step of job {trial.id}" in whose
    run = earlier(world, dpo(global_batch=4), trial_seconds=3.0, pairs_per_second=2.0)
    assert time_of(world.db, config, 10, "cpu") == (10 * 8 / 2.0, f"the pace of job {run.id}")
    assert time_of(world.db, dpo(batch_size=1, global_batch=8), 10, "cpu") == (None, "")
    assert time_of(world.db, config, 10, "cuda:0") == (None, "")
    other = SteerlmConfig(dataset="first", model=config.model, batch_size=2, global_batch=8)
    assert time_of(world.db, other, 10, "cpu") == (None, "")


def test_free_memory_is_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(stdout="24000\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert free_memory("cuda:1") == 24000 << 20
    assert commands[0][-2:] == ["-i", "5"], "the second of those that are visible"
    assert free_memory("mps") is None
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError()))
    assert free_memory("cuda:0") is None
    assert (free_memory("cpu") or 0) > 0


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert preflight._group_memory(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight._group_memory(tmp_path) is None
    assert preflight._group_memory(tmp_path / "none") is None


@pytest.mark.parametrize(("size", "text"), [(61e9, "61 GB"), (4.21e9, "4.2 GB"), (31e6, "0.031 GB")])
def test_bytes_are_told_in_gigabytes(size: float, text: str) -> None:
    assert gigabytes(size) == text


def test_the_names_of_projectors_are_the_trainers() -> None:
    from jobs.gpu import projector

    assert model_files.PROJECTORS == projector.PROJECTORS
