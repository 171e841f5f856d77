"""What is trained and what it is compared with: LoRA's layers, starting adapters, the projector."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import tiny_models
from jobs.configs import DpoConfig, TrainConfig, parse_config
from jobs.gpu.loading import Loaded
from jobs.gpu.lora import attach, language_linears, speaking
from jobs.gpu.policy import POLICY, REFERENCE, as_reference, differences, keep_reference, layers_of, make_policy
from jobs.gpu.projector import copies, find_projector
from jobs.runs import RunFolder
from jobs.worker import work
from storage.errors import UserError
from test_dpo_job import FAST, dpo_run, last_end, pair

PROJECTOR = {**FAST, "train_projector": True, "projector_learning_rate": 1e-2}
NAMES = {
    "llava": "model.multi_modal_projector",
    "llava_next": "model.multi_modal_projector",
    "qwen2_5_vl": "model.visual.merger",
    "smolvlm": "model.connector",
    "gemma3": "model.multi_modal_projector",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose adapter others start from."""
    run = dpo_run(tmp_path_factory.mktemp("first") / "run", {**FAST, "max_steps": 4, "evaluations": 0})
    assert work(run.path) == 0, last_end(run)
    return run


@pytest.fixture(scope="module")
def with_projector(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same with a trained projector."""
    run = dpo_run(tmp_path_factory.mktemp("projector") / "run", {**PROJECTOR, "max_steps": 4, "evaluations": 1})
    assert work(run.path) == 0, last_end(run)
    return run


def started(folder: Path, adapter: Path, kind: str = "dpo", **changes: Any) -> RunFolder:
    """A run that starts from this adapter; sft kinds have the answers as rows."""
    base = dpo_run(folder / "unused", FAST)
    rows = list(base.rows())
    if kind != "dpo":
        answers = [
            {"kind": "answer", "split": "train", "sample_id": n, "messages": row["messages"], "answer": row["chosen"]}
            for n, row in enumerate(rows[:8])
        ]
        rows = [*answers, *({"kind": "pair", **row} for row in rows[8:])]
    images = [(file.name, file) for file in base.images.iterdir()]
    config = {**FAST, "max_steps": 3, "evaluations": 1, "start_adapter": 3, **changes}
    return tiny.frozen_run(folder / "run", kind, config, rows, images, {3: adapter})


def references_file(folder: Path) -> Path:
    (file,) = (folder / "references").glob("*.jsonl")
    return file


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
        book = open_book(job, loaded, True, start)
        references(run, config, trainer, material, book, PairScorer(trainer, material, trainer.collate_pairs), reporter)
    trainer.remove_callback(Telling)  # its reporter has ended
    return trainer, run, rows


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
    found = list(zip(trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"]))
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


def copied(adapter: Path, folder: Path) -> Path:
    return Path(shutil.copytree(adapter, folder))


def change_settings(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def another_base(folder: Path) -> None:
    change_settings(folder, base_model_name_or_path="llava-hf/llava-1.5-7b-hf")


def a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def wrong_shapes(folder: Path) -> None:
    tensors = {name: value[:, :-1].contiguous() if "lora_A" in name else value for name, value in weights_of(folder).items()}
    save_file(tensors, folder / "adapter_model.safetensors")


def a_layer_too_many(folder: Path) -> None:
    tensors = weights_of(folder)
    name, value = next((name, value) for name, value in tensors.items() if "layers.1." in name)
    save_file({**tensors, name.replace("layers.1.", "layers.7."): value.clone()}, folder / "adapter_model.safetensors")


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

    settings = {"max_steps": 4, "evaluations": 0, "train_projector": True, "lora_dropout": 0.0}
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


# The projector


def gemma_batch() -> dict[str, torch.Tensor]:
    chance = random.Random(0)
    rows = [[*tiny_models.words(3, chance), *[tiny_models.IMAGE] * 4, *tiny_models.words(6, chance)] for _ in range(2)]
    ids = torch.tensor(rows)
    labels = ids.clone()
    labels[:, :8] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": (ids == tiny_models.IMAGE).long(),
        "labels": labels,
        "pixel_values": tiny_models.pixels(2, 3, 16, 16, chance=chance),
    }


def make_family(name: str) -> Any:
    torch.manual_seed(0)
    model = tiny_models.make_gemma3() if name == "gemma3" else tiny_models.FAMILIES[name].make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    return model


def family_policy(name: str, **changes: Any) -> Any:
    """A policy on a tiny model, with LoRA away from zero and TRL's fused head."""
    from trl.trainer.utils import add_fused_lm_head

    model = make_family(name)
    config = DpoConfig.model_validate({**PROJECTOR, "model": "tiny", **changes})
    policy = make_policy(config, Loaded("tiny", model, None, torch.device("cpu")), None)
    with torch.no_grad():
        for parameter_name, parameter in policy.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(0.0, 0.1)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return policy.train()


def gradients(policy: Any, log_probs: torch.Tensor) -> dict[str, torch.Tensor]:
    chosen, rejected = log_probs.sum(dim=1).chunk(2)
    policy.zero_grad()
    torch.autograd.backward(-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected) + 0.3).mean())
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_each_familys_projector_is_found(name: str) -> None:
    assert find_projector(make_family(name)) == NAMES[name]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", list(tiny_models.FAMILIES))
def test_the_projectors_gradient_is_the_stock_paths(name: str, checkpointing: bool) -> None:
    """And the naive one's: transformers' module trained in place, without PEFT's copy or a cut at the tower."""
    from jobs.gpu.shared_prefix import SharedPrefix

    policy = family_policy(name)
    if checkpointing:
        policy.enable_input_require_grads()
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    prefix = SharedPrefix(policy.get_base_model(), images_once=True).install()
    batch, images = tiny_models.stacked(name, [1, 0, 2], [(5, 9), (12, 1), (3, 3)])
    found = {}
    for on in (True, False):
        prefix.on = on
        found[on] = gradients(policy, policy(**batch, **images, use_cache=False, fused_lm_head=True).log_probs)
    trained = {key for key in found[False] if "modules_to_save" in key}
    (_, copy), = copies(policy, POLICY)
    assert len(trained) == len(list(copy.parameters()))
    assert found[True].keys() == found[False].keys()
    for key, wanted in found[False].items():
        assert float((found[True][key] - wanted).norm()) <= 1e-4 * float(wanted.norm()) + 1e-9, key

    plain = policy.get_base_model().get_submodule(NAMES[name])
    copy._forward_hooks.clear()
    copy._forward_pre_hooks.clear()
    prefix.on = False
    naive = gradients(policy, policy(**batch, **images, use_cache=False, fused_lm_head=True).log_probs)
    assert plain.original_module is not copy
    for key in trained:
        assert float((found[True][key] - naive[key]).norm()) <= 1e-4 * float(naive[key].norm()) + 1e-9, key


def test_gemma_trains_its_projector_the_stock_way() -> None:
    policy = family_policy("gemma3")
    found = gradients(policy, policy(**gemma_batch(), use_cache=False, fused_lm_head=True).log_probs)
    trained = {key for key in found if "modules_to_save" in key}
    assert len(trained) == 2
    assert all(float(found[key].norm()) > 0 for key in trained)


def test_checkpointing_runs_no_backward_through_the_tower() -> None:
    policy = family_policy("llava")
    policy.enable_input_require_grads()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    seen: list[str] = []
    tower = policy.get_base_model().model.vision_tower
    for module in tower.modules():
        module.register_full_backward_hook(lambda *_: seen.append("tower"))
    batch, images = tiny_models.stacked("llava", [1, 1], [(5, 9), (4, 4)])
    images = {key: torch.cat([value, value]) for key, value in images.items()}
    gradients(policy, policy(**batch, **images, use_cache=False, fused_lm_head=True).log_probs)
    assert not seen


def test_a_base_without_a_projector_is_refused_by_name() -> None:
    loaded = loaded_llava()
    model = loaded.model
    model.model.add_module("bridge", model.model.multi_modal_projector)
    del model.model.multi_modal_projector
    with pytest.raises(UserError) as error:
        make_policy(config_of(train_projector=True), loaded, None)
    assert "is of type 'llava', and has no projector that Plumb knows" in str(error.value)
    assert str(tiny.tiny_llava()) in str(error.value)


def test_a_projector_in_4_bits_is_refused() -> None:
    loaded = loaded_llava()
    linear = loaded.model.model.multi_modal_projector.linear_1
    linear.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="was loaded in 4 bits, in which it can't be trained"):
        make_policy(config_of(train_projector=True), loaded, None)


def test_the_projector_is_in_float32_and_small_steps_move_it() -> None:
    """In bfloat16 a weight of 1 takes no step of 2e-5."""
    policy = make_policy(config_of(train_projector=True), loaded_llava(torch.bfloat16), None)
    ((own, copy),) = copies(policy, POLICY)
    assert {parameter.dtype for parameter in own.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.float32}
    for mine, theirs in zip(copy.parameters(), own.parameters(), strict=True):
        assert torch.equal(mine, theirs.float())
        assert mine.requires_grad
        assert not theirs.requires_grad
    assert policy.projector_rate == 2e-5
    # Where no autocast adapts them, the ends are in the base's precision.
    given = torch.randn(1, 4, 16, dtype=torch.bfloat16)
    assert copy(given).dtype == torch.bfloat16
    assert torch.allclose(copy(given), own(given), atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(copy(given), own(given))


def test_the_projector_has_its_own_learning_rate(with_projector: RunFolder, tmp_path: Path) -> None:
    trainer, _, _ = made(
        tmp_path, with_projector.adapter, train_projector=True, projector_learning_rate=3e-3, learning_rate=7e-3
    )
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer
    named = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates: dict[float, set[str]] = {}
    for group in optimizer.param_groups:
        kinds = {"projector" if "modules_to_save" in named[id(one)] else "lora" for one in group["params"]}
        rates.setdefault(group["lr"], set()).update(kinds)
    assert rates == {7e-3: {"lora"}, 3e-3: {"projector"}}
    assert optimizer.param_groups[0]["lr"] == 7e-3  # the one that is told
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(held) == sorted(id(one) for one in trainer.model.parameters() if one.requires_grad)


def test_a_run_with_the_projector(with_projector: RunFolder) -> None:
    losses = metrics(with_projector)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0]
    assert metrics(with_projector, "learning_rate")[1] == pytest.approx(1e-2, rel=0.5)
    found = weights_of(with_projector.adapter)
    projector = {name: value for name, value in found.items() if "lora_" not in name}
    assert sorted(name.split("multi_modal_projector.")[1] for name in projector) == [
        "linear_1.bias", "linear_1.weight", "linear_2.bias", "linear_2.weight",
    ]  # fmt: skip
    own = loaded_llava().model.model.multi_modal_projector.state_dict()
    for name, value in projector.items():
        assert not torch.equal(value, own[name.split("multi_modal_projector.")[1]]), name
    assert len(found) == 2 * 7 * 2 + 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_peft_loads_it_and_the_base_keeps_its_own(with_projector: RunFolder, dtype: torch.dtype) -> None:
    """And chat: two adapters and the base on one model, each with the projector that is its own."""
    from peft import PeftModel

    from jobs.gpu.prompts import encode, to_device

    loaded = loaded_llava(dtype)
    inputs = to_device(
        encode(loaded.processor, [tiny.ask("what is 1?", tiny.picture())]), torch.device("cpu"), dtype
    )
    with torch.no_grad():
        base = loaded.model(**inputs).logits
        plain = PeftModel.from_pretrained(loaded_llava(dtype).model, with_projector.adapter).eval()
        wanted = plain(**inputs).logits
        assert not torch.allclose(wanted, base, atol=1e-2)
    state = weights_of(with_projector.adapter)
    (_, copy), = copies(plain, POLICY)
    for name, value in copy.state_dict().items():
        kept = next(tensor for key, tensor in state.items() if key.endswith(f"multi_modal_projector.{name}"))
        assert torch.equal(value, kept.to(dtype))
    lora_only = Path(with_projector.path.parent / f"lora-{dtype}".replace(".", "-"))
    copied(with_projector.adapter, lora_only)
    save_file({k: v for k, v in state.items() if "lora_" in k}, lora_only / "adapter_model.safetensors")
    change_settings(lora_only, modules_to_save=None)
    with torch.no_grad():
        alone = PeftModel.from_pretrained(loaded_llava(dtype).model, lora_only).eval()(**inputs).logits
    for order in (["whole", "lora"], ["lora", "whole"]):
        folders = {"whole": (with_projector.adapter, "whole"), "lora": (lora_only, "lora")}
        model = attach(loaded_llava(dtype), {name: folders[name] for name in order})
        expected = {"whole": wanted, "lora": alone, None: base}
        with torch.no_grad():
            for speaker in ("whole", None, "lora", "whole", "lora", None):
                with speaking(model, speaker):
                    assert torch.equal(model(**inputs).logits, expected[speaker]), (order, speaker)


def test_references_are_the_same_with_and_without_the_projector(tmp_path: Path) -> None:
    """Training the projector changes the policy: the reference has the base's. So the book serves both runs."""
    runs = [
        dpo_run(tmp_path / name, {**PROJECTOR, "train_projector": train, "max_steps": 2, "evaluations": 0})
        for name, train in (("with", True), ("without", False))
    ]
    assert work(runs[0].path) == 0, last_end(runs[0])
    assert metrics(runs[0])[0] == pytest.approx(math.log(2), abs=1e-5)
    kept = sorted(json.loads(line)["logp"] for line in references_file(tmp_path).read_text().split("\n") if line)
    shutil.rmtree(tmp_path / "references")
    assert work(runs[1].path) == 0, last_end(runs[1])
    again = sorted(json.loads(line)["logp"] for line in references_file(tmp_path).read_text().split("\n") if line)
    assert kept == again
    third = dpo_run(tmp_path / "third", {**PROJECTOR, "max_steps": 1, "evaluations": 0, "seed": 5})
    assert work(third.path) == 0
    assert "0 computed in 0 forward passes" in notes(third)


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_text_alone_trains_with_a_projector_that_nothing_uses(tmp_path: Path, kind: str) -> None:
    rows = [pair(n, []) for n in range(4)]
    if kind == "sft":
        rows = [
            {"kind": "answer", "split": "train", "sample_id": n, "messages": row["messages"], "answer": row["chosen"]}
            for n, row in enumerate(rows)
        ]
    config = {**PROJECTOR, "max_steps": 2, "evaluations": 0}
    run = tiny.frozen_run(tmp_path / "run", kind, config, rows)
    assert work(run.path) == 0, last_end(run)
    own = loaded_llava().model.model.multi_modal_projector.state_dict()
    for name, value in weights_of(run.adapter).items():
        if "lora_" not in name:
            assert torch.equal(value, own[name.split("multi_modal_projector.")[1]])


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_bfloat16_with_projector_dropout_checkpointing_and_accumulation(tmp_path: Path, kind: str) -> None:
    """The paper's preset, small; answers along the run are made without autocast."""
    changes = {"dtype": "bfloat16", "gradient_checkpointing": True, "lora_dropout": 0.05, "batch_size": 2}
    base = dpo_run(tmp_path / "unused", FAST)
    rows = list(base.rows())
    if kind == "sft":
        rows = [
            {"kind": "answer", "split": row["split"], "sample_id": n, "messages": row["messages"],
             "answer": row["chosen"]}
            for n, row in enumerate(rows)
        ]  # fmt: skip
    images = [(file.name, file) for file in base.images.iterdir()]
    config = {**PROJECTOR, **changes, "accumulation": 2, "max_steps": 4, "evaluations": 1}
    run = tiny.frozen_run(tmp_path / "run", kind, config, rows, images)
    assert work(run.path) == 0, last_end(run)
    losses = metrics(run)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    found = {name: value for name, value in weights_of(run.adapter).items() if "lora_" not in name}
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.parametrize("shared", [True, False])
def test_a_projector_that_the_adapter_brings_stays_unless_it_is_trained(
    tmp_path: Path, with_projector: RunFolder, first: RunFolder, shared: bool
) -> None:
    before = weights_of(with_projector.adapter)
    projector = [name for name in before if "lora_" not in name]
    kept = started(tmp_path / "kept", with_projector.adapter, shared_prefix=shared)
    assert work(kept.path) == 0, last_end(kept)
    after = weights_of(kept.adapter)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in projector)
    assert not any(torch.equal(before[name], after[name]) for name in before if "lora_" in name)
    assert metrics(kept)[0] == pytest.approx(math.log(2), abs=1e-5)

    moved = started(
        tmp_path / "moved", with_projector.adapter, shared_prefix=shared, train_projector=True,
        projector_learning_rate=1e-2,
    )  # fmt: skip
    assert work(moved.path) == 0, last_end(moved)
    after = weights_of(moved.adapter)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert metrics(moved)[0] == pytest.approx(math.log(2), abs=1e-5)

    added = started(
        tmp_path / "added", first.adapter, shared_prefix=shared, train_projector=True, projector_learning_rate=1e-2
    )
    assert work(added.path) == 0, last_end(added)
    after = weights_of(added.adapter)
    assert after.keys() == before.keys()
    assert metrics(added)[0] == pytest.approx(math.log(2), abs=1e-5)
    own = loaded_llava().model.model.multi_modal_projector.state_dict()
    assert not any(torch.equal(after[name], own[name.split("multi_modal_projector.")[1]]) for name in projector)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_policy_and_reference_are_equal_at_first(tmp_path: Path, with_projector: RunFolder, dtype: str) -> None:
    """In 16 bits too: a copy of the projector in the base's precision would not be the policy's."""
    for train_projector in (True, False):
        trainer, _, _ = made(
            tmp_path / str(train_projector), with_projector.adapter, dtype, train_projector=train_projector
        )
        policy = trainer.model
        for name, parameter in policy.named_parameters():
            if f".{REFERENCE}." in name:
                assert torch.equal(parameter, policy.get_parameter(name.replace(".ref.", ".default.")))
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in range(6)]))
        policy.eval()
        with torch.no_grad(), trainer.accelerator.autocast():
            loss = trainer.compute_loss(policy, batch)
        assert float(loss) == pytest.approx(math.log(2), abs=1e-5)
        switched = {n for n, p in policy.named_parameters() if p.requires_grad and "modules_to_save" in n}
        assert bool(switched) is train_projector
        with as_reference(policy):
            pass
        assert {n for n, p in policy.named_parameters() if p.requires_grad and "modules_to_save" in n} == switched


def test_a_fresh_policy_keeps_no_copy() -> None:
    policy = make_policy(config_of(train_projector=True), loaded_llava(), None)
    policy.add_adapter(REFERENCE, policy.peft_config[POLICY])  # as TRL does
    keep_reference(policy, started=False)
    assert list(policy.peft_config) == [POLICY]
    assert not any(f".{REFERENCE}." in name for name, _ in policy.named_parameters())
    trainable = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 7 * 2 + 4
    assert all(f".{POLICY}." in name for name in trainable)


def test_the_form_takes_an_adapter_and_a_rate() -> None:
    config = parse_config("sft", {"dataset": "x", "start_adapter": 3, "train_projector": True})
    assert isinstance(config, TrainConfig)
    assert (config.start_adapter, config.projector_learning_rate) == (3, 2e-5)
