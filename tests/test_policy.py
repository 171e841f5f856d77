"""What is trained and what it is compared with: LoRA's layers, starting adapters, the projector."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
import tiny_models
from jobs.configs import TrainConfig, parse_config
from jobs.gpu.lora import attach, language_linears
from jobs.gpu.policy import POLICY, REFERENCE, make_policy
from jobs.lora_settings import differences, layers_of
from jobs.runs import RunFolder
from jobs.worker import work
from starting import (
    change_settings,
    config_of,
    copied,
    first_run,
    loaded_llava,
    made,
    metrics,
    notes,
    projector_run,
    started,
    weights_of,
)
from storage.errors import UserError
from test_dpo_job import FAST, dpo_run, last_end

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return first_run(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def with_projector(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return projector_run(tmp_path_factory.mktemp("projector"))


# LoRA's layers


def test_lora_sits_on_the_layers_that_are_named(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", {**FAST, "max_steps": 2, "evaluations": 0, "lora_targets": "q_proj, up_proj"})
    assert work(run.path) == 0, last_end(run)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights_of(run.adapter)}
    assert layers == {"q_proj", "up_proj"}


def test_without_names_it_sits_on_all_but_the_head() -> None:
    policy = make_policy(config_of(), loaded_llava(), None)
    layers = {name.split(".lora_")[0] for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in layers} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert all(".language_model." in name for name in layers)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("q_proj, qkv", "lora_targets: 'qkv' is no linear layer of the language model; there are down_proj, gate"),
        ("lm_head", "lora_targets: lm_head is the vocabulary's head, which gets no LoRA"),
        ("fc1", "'fc1' is no linear layer"),  # the vision tower's
        ("linear_1", "'linear_1' is no linear layer"),  # the projector's
        ("q_proj|k_proj", "'q_proj|k_proj' is no linear layer"),
        ("embed_tokens", "'embed_tokens' is no linear layer"),
    ],
)
def test_a_target_that_is_not_there_ends_the_job(tmp_path: Path, targets: str, words: str) -> None:
    run = dpo_run(tmp_path / "run", {**FAST, "lora_targets": targets})
    assert work(run.path) == 1
    assert words in last_end(run)["reason"]
    assert "o_proj, q_proj, up_proj, v_proj" in last_end(run)["reason"]


@pytest.mark.parametrize("name", list(tiny_models.FAMILIES))
def test_every_familys_layers_are_found(name: str) -> None:
    model = tiny_models.FAMILIES[name].make()
    for target in ("q_proj", "down_proj"):
        assert target in language_linears(model, [target])
    with pytest.raises(UserError, match="lm_head is the vocabulary's head"):
        language_linears(model, ["lm_head"])


# Starting adapters


@pytest.mark.parametrize("shared", [True, False])
def test_training_goes_on_from_the_adapter(tmp_path: Path, first: RunFolder, shared: bool) -> None:
    """Policy = reference at first: ln 2; and what is saved is the policy alone."""
    run = started(tmp_path, first.adapter, shared_prefix=shared)
    assert work(run.path) == 0, last_end(run)
    losses = metrics(run)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0]
    before, after = weights_of(first.adapter), weights_of(run.adapter)
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == len(before)
    assert not list(run.adapter.glob("ref*"))
    # It goes on: nearer to where it began than a fresh one would be.
    near = sum(float((after[name] - before[name]).norm()) for name in before)
    assert near < sum(float(after[name].norm()) for name in before)


@pytest.mark.parametrize("brings_projector", [False, True])
def test_the_reference_is_the_adapter_frozen(
    tmp_path: Path, first: RunFolder, with_projector: RunFolder, brings_projector: bool
) -> None:
    """The book's numbers are plain forwards with the adapter; after training the copy is what it was."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from jobs.gpu.answering import end_tokens
    from jobs.gpu.frames import answer_frame, answer_ids
    from jobs.gpu.prompts import encode, from_run

    source = with_projector if brings_projector else first
    trainer, run, rows = made(tmp_path, source.adapter, train_projector=brings_projector)
    policy = trainer.model

    def reference() -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in policy.named_parameters() if f".{REFERENCE}." in n}

    at_first = reference()
    assert at_first
    assert all(torch.equal(p, policy.get_parameter(n.replace(".ref.", ".default."))) for n, p in at_first.items())
    assert not any(p.requires_grad for n, p in policy.named_parameters() if f".{REFERENCE}." in n)
    columns = (trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
    found = list(zip(*columns, strict=True))
    trainer.train()
    after = reference()
    assert all(torch.equal(after[name], at_first[name]) for name in at_first)
    assert not torch.equal(
        policy.get_parameter(next(iter(at_first)).replace(".ref.", ".default.")), next(iter(at_first.values()))
    )

    base = AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava(), dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, source.adapter).eval()
    processor = trainer.processing_class
    ends = end_tokens(plain.get_base_model(), processor.tokenizer)
    for row, values in zip(rows, found, strict=True):
        messages = from_run(run, row["messages"])
        encoded = encode(processor, [messages])
        for side, value in zip(("chosen", "rejected"), values, strict=True):
            answer = answer_ids(processor, row[side], answer_frame(processor, messages, ends))
            ids = torch.cat([encoded["input_ids"], torch.tensor([answer])], dim=1)
            images = {"pixel_values": encoded["pixel_values"]} if "pixel_values" in encoded else {}
            with torch.no_grad():
                words = plain(input_ids=ids, **images).logits[0].log_softmax(dim=-1)
            start = ids.shape[1] - len(answer)
            wanted = sum(float(words[start + place - 1, token]) for place, token in enumerate(answer))
            assert value == pytest.approx(wanted, abs=1e-4)


def test_another_start_is_another_context(tmp_path: Path, first: RunFolder) -> None:
    """The base's references are not the adapter's, and a second run from the same adapter computes none."""
    plain = dpo_run(tmp_path / "plain", {**FAST, "max_steps": 1, "evaluations": 0})
    assert work(plain.path) == 0
    one = started(tmp_path, first.adapter, max_steps=1, evaluations=0)
    assert work(one.path) == 0
    assert len(list((tmp_path / "references").glob("*.jsonl"))) == 2
    assert "0 of" in next(e["text"] for e in tiny.events(one, "note") if e["text"].startswith("Reference:"))
    again = started(tmp_path / "more", first.adapter, max_steps=1, evaluations=0)
    shutil.copytree(tmp_path / "references", tmp_path / "more" / "references", dirs_exist_ok=True)
    assert work(again.path) == 0
    assert "0 computed in 0 forward passes" in notes(again)


def test_the_adapters_settings_win_and_the_log_says_which(tmp_path: Path, first: RunFolder) -> None:
    run = started(
        tmp_path, first.adapter, max_steps=1, evaluations=0, lora_r=64, lora_alpha=8, lora_targets="q_proj",
        lora_dropout=0.1,
    )  # fmt: skip
    assert work(run.path) == 0, last_end(run)
    told = next(e["text"] for e in tiny.events(run, "note") if "settings of the adapter" in e["text"])
    assert "'adapter 3'" in told
    assert "lora_r 4, not 64" in told
    assert "lora_dropout 0, not 0.1" in told
    assert "lora_alpha" not in told
    assert "LoRA on down_proj, gate_proj" in told
    assert "not q_proj" in told
    settings = json.loads((run.adapter / "adapter_config.json").read_text())
    assert settings["r"] == 4
    assert weights_of(run.adapter).keys() == weights_of(first.adapter).keys()
    same = started(tmp_path / "same", first.adapter, max_steps=1, evaluations=0)
    assert work(same.path) == 0
    assert "settings of the adapter" not in notes(same)


def test_what_differs() -> None:
    ours = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["a.q_proj", "v_proj"]}
    assert differences(config_of(), ours) == []
    assert differences(config_of(lora_targets="v_proj, q_proj"), ours) == []
    assert differences(config_of(lora_targets="k_proj"), ours) == ["LoRA on q_proj, v_proj, not k_proj"]
    assert differences(config_of(lora_r=8), ours) == ["lora_r 4, not 8"]
    assert layers_of(r"model\.language_model\.(?:.+\.)?(?:a|b_proj)") == ["a", "b_proj"]
    assert layers_of("all-linear") == layers_of(None) == []


def another_base(folder: Path) -> None:
    change_settings(folder, base_model_name_or_path="llava-hf/llava-1.5-7b-hf")


def a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def wrong_shapes(folder: Path) -> None:
    tensors = {
        name: value[:, :-1].contiguous() if "lora_A" in name else value
        for name, value in weights_of(folder).items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")


def a_layer_too_many(folder: Path) -> None:
    tensors = weights_of(folder)
    name, value = next((name, value) for name, value in tensors.items() if "layers.1." in name)
    save_file(
        {**tensors, name.replace("layers.1.", "layers.7."): value.clone()}, folder / "adapter_model.safetensors"
    )


def a_layer_too_few(folder: Path) -> None:
    tensors = weights_of(folder)
    save_file(
        {name: value for name, value in tensors.items() if "layers.1.mlp.up_proj" not in name},
        folder / "adapter_model.safetensors",
    )


def layers_of_another(folder: Path) -> None:
    change_settings(folder, target_modules=["c_attn"])


def a_head(folder: Path) -> None:
    change_settings(folder, modules_to_save=["lm_head"])


def another_kind(folder: Path) -> None:
    change_settings(folder, peft_type="IA3")


BROKEN = {
    another_base: "was trained on 'llava-hf/llava-1.5-7b-hf' and doesn't fit",
    a_pickle: "has its weights as pickles (adapter_model.bin)",
    wrong_shapes: "doesn't fit .* size mismatch for .*lora_A",
    a_layer_too_many: r"doesn't fit .* it brings .*layers\.7\.",
    a_layer_too_few: r"doesn't fit .* it lacks .*layers\.1\.mlp\.up_proj",
    layers_of_another: "doesn't fit .* Target modules .*c_attn.* not found in the base model",
    a_head: "brings lm_head trained in full; of such modules Plumb goes on with a projector alone",
    another_kind: "is of type 'IA3'; only LORA is supported",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda change: change.__name__)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, first: RunFolder, break_it: Any) -> None:
    import re

    adapter = copied(first.adapter, tmp_path / "adapter")
    break_it(adapter)
    run = started(tmp_path, adapter)
    assert work(run.path) == 1
    reason = last_end(run)["reason"]
    assert last_end(run)["status"] == "failed"
    wanted = BROKEN[break_it]
    assert re.search(wanted if ".*" in wanted else re.escape(wanted), reason), reason
    assert "Traceback" not in reason


def test_an_adapter_with_lora_on_the_head_is_refused(tmp_path: Path, first: RunFolder) -> None:
    from peft import LoraConfig, get_peft_model

    base = loaded_llava().model
    policy = get_peft_model(base, LoraConfig(r=2, target_modules=["lm_head"]))
    policy.peft_config[POLICY].base_model_name_or_path = str(tiny.tiny_llava())
    policy.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    run = started(tmp_path, tmp_path / "adapter")
    assert work(run.path) == 1
    assert "has LoRA on the vocabulary's head" in last_end(run)["reason"]


def test_it_is_refused_before_the_base_is_loaded(tmp_path: Path, first: RunFolder) -> None:
    adapter = copied(first.adapter, tmp_path / "adapter")
    another_base(adapter)
    run = started(tmp_path, adapter)
    assert work(run.path) == 1
    assert not any("loading the model" in event["text"] for event in tiny.events(run, "phase"))


@pytest.mark.parametrize("break_it", [wrong_shapes, a_layer_too_many, a_layer_too_few, layers_of_another])
def test_chat_and_generate_refuse_it_too(tmp_path: Path, first: RunFolder, break_it: Any) -> None:
    adapter = copied(first.adapter, tmp_path / "adapter")
    break_it(adapter)
    with pytest.raises(UserError, match="The adapter 'mine' doesn't fit"):
        attach(loaded_llava(), {"a": (adapter, "mine")})
    with pytest.raises(UserError, match="The adapter 'mine' doesn't fit"):
        attach(loaded_llava(), {"a": (first.adapter, "whole"), "b": (adapter, "mine")})


@pytest.mark.parametrize("kind", ["sft", "rejection", "steerlm"])
def test_the_other_methods_start_from_an_adapter_too(tmp_path: Path, first: RunFolder, kind: str) -> None:
    run = started(tmp_path, first.adapter, kind, learning_rate=1e-6)
    assert work(run.path) == 0, last_end(run)
    # Hardly moved: rewards are against the adapter, not against the base.
    assert abs(metrics(run, "heldout_reward_margin")[-1]) < 1e-2
    before, after = weights_of(first.adapter), weights_of(run.adapter)
    assert all(torch.allclose(before[name], after[name], atol=1e-4) for name in before)
    assert before.keys() == after.keys()


def test_a_run_from_an_adapter_goes_on_after_a_stop(tmp_path: Path, with_projector: RunFolder) -> None:
    """As one that was never stopped, to the last bit; the checkpoint holds the policy alone."""
    from jobs.reporter import Reporter

    settings: dict[str, Any] = {"max_steps": 4, "evaluations": 0, "train_projector": True, "lora_dropout": 0.0}
    whole = started(tmp_path / "whole", with_projector.adapter, **settings)
    assert work(whole.path) == 0, last_end(whole)
    run = started(tmp_path / "cut", with_projector.adapter, **settings)
    told = Reporter.progress

    def stop_at_two(self: Reporter, done: float, total: float, unit: str = "items") -> None:
        told(self, done, total, unit)
        if unit == "steps" and done == 2:
            run.ask_to_stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "progress", stop_at_two)
        assert work(run.path) == 0
    checkpoint = run.checkpoints / "checkpoint-2"
    assert weights_of(checkpoint).keys() == weights_of(whole.adapter).keys()
    assert not [path for path in checkpoint.iterdir() if path.is_dir()]
    run.control.unlink()
    assert work(run.path) == 0, last_end(run)
    assert metrics(run) == metrics(whole)
    found, wanted = weights_of(run.adapter), weights_of(whole.adapter)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_form_takes_an_adapter_and_a_rate() -> None:
    config = parse_config("sft", {"dataset": "x", "start_adapter": 3, "train_projector": True})
    assert isinstance(config, TrainConfig)
    assert (config.start_adapter, config.projector_learning_rate) == (3, 2e-5)


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_a_4_bit_bases_adapter_stays_in_float32(
    first: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """TRL casts it to bfloat16 when its trainer is made, and looks at no more than this to see that it should."""
    from transformers import LlavaForConditionalGeneration

    monkeypatch.setattr(LlavaForConditionalGeneration, "is_loaded_in_4bit", True, raising=False)
    trainer, _, _ = made(tmp_path, first.adapter, kind=kind)
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    for name, tensor in weights_of(first.adapter).items():
        place = name.replace(".weight", f".{POLICY}.weight")
        assert torch.equal(trained[place].data, tensor), name
        assert torch.equal(trainer.model.get_parameter(place.replace(POLICY, REFERENCE)).data, tensor), name
