"""The projector between tower and language model: trained in full, saved and switched off with its adapter."""

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
from safetensors.torch import save_file

import tiny
import tiny_models
from jobs.configs import DpoConfig
from jobs.gpu.loading import Loaded
from jobs.gpu.lora import attach, speaking
from jobs.gpu.policy import POLICY, REFERENCE, as_reference, keep_reference, make_policy
from jobs.gpu.projector import copies, find_projector
from jobs.runs import RunFolder
from jobs.worker import work
from starting import (
    PROJECTOR,
    answer_row,
    change_settings,
    config_of,
    copied,
    first_run,
    loaded_llava,
    made,
    metrics,
    notes,
    projector_run,
    references_file,
    started,
    weights_of,
)
from storage.errors import UserError
from test_dpo_job import FAST, dpo_run, last_end, pair

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml

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


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return first_run(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def with_projector(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return projector_run(tmp_path_factory.mktemp("projector"))


def gemma_batch() -> dict[str, torch.Tensor]:
    chance = random.Random(0)
    rows = [
        [*tiny_models.words(3, chance), *[tiny_models.IMAGE] * 4, *tiny_models.words(6, chance)] for _ in range(2)
    ]
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
    ((_, copy),) = copies(policy, POLICY)
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
    ((_, copy),) = copies(plain, POLICY)
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
        rows = [answer_row(number, row) for number, row in enumerate(rows)]
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
        rows = [answer_row(number, row) for number, row in enumerate(rows)]
    images = [(file.name, file) for file in base.images.iterdir()]
    config = {**PROJECTOR, **changes, "accumulation": 2, "max_steps": 4, "evaluations": 1, "watched_samples": 2}
    run = tiny.frozen_run(tmp_path / "run", kind, config, rows, images)
    assert work(run.path) == 0, last_end(run)
    losses = metrics(run)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    found = {name: value for name, value in weights_of(run.adapter).items() if "lora_" not in name}
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.slow
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


@pytest.mark.parametrize("train_projector", [True, False])
def test_an_adapter_with_lora_on_the_tower_too(
    tmp_path: Path, with_projector: RunFolder, train_projector: bool
) -> None:
    """Made elsewhere: a list of names that the tower has, too. Nothing cuts its gradient off at the projector."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=2,
        target_modules=["q_proj", "out_proj"],
        modules_to_save=["multi_modal_projector"],
        init_lora_weights=False,
    )
    made_elsewhere = get_peft_model(loaded_llava().model, settings)
    made_elsewhere.peft_config[POLICY].base_model_name_or_path = str(tiny.tiny_llava())
    made_elsewhere.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    before = weights_of(tmp_path / "adapter")
    assert any("vision_tower" in name for name in before)
    losses = []
    for shared in (True, False):
        folder = tmp_path / str(shared)
        changes: dict[str, Any] = {
            "shared_prefix": shared,
            "train_projector": train_projector,
            "projector_learning_rate": 1e-3,
        }
        run = started(folder, tmp_path / "adapter", learning_rate=1e-3, **changes)
        assert work(run.path) == 0, last_end(run)
        losses.append(metrics(run))
        after = weights_of(run.adapter)
        still = {name for name in before if torch.equal(before[name], after[name])}
        expected = set() if train_projector else {name for name in before if "multi_modal_projector" in name}
        assert still == expected
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-5)


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
        # The references were computed in batches of another shape: 16 bits round those otherwise on some CPUs.
        assert float(loss) == pytest.approx(math.log(2), abs=1e-5 if dtype == "float32" else 5e-4)
        switched = {n for n, p in policy.named_parameters() if p.requires_grad and "modules_to_save" in n}
        assert bool(switched) is train_projector
        with as_reference(policy):
            single = trainer.collate_pairs([trainer.train_dataset[1]])
            pixels = single["pixel_values"].to(policy.dtype)
            with torch.no_grad():  # where no autocast adapts the copy's precision
                policy(input_ids=single["input_ids"][:1], pixel_values=pixels)
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
