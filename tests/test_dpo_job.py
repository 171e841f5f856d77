"""The dpo job on the tiny LLaVA: what moves, what doesn't, what it says, what it refuses."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from jobs.gpu.callbacks import evaluation_steps, house_names
from jobs.runs import RunFolder
from jobs.worker import work

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml

#: What a clock and the machine decide.
TIMED = {
    "trial_seconds",
    "trial_memory_gb",
    "pairs_per_second",
    "rows_per_second",
    "tokens_per_second",
    "memory_gb",
}
HELD_OUT = {"loss", "reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy", "logp_chosen"}
HELD_OUT |= {"token_accuracy", "logp_rejected", "chosen_tokens", "rejected_tokens", "blank_margin", "kl"}

SHORT = {"dataset": "pairs", "dtype": "float32", "batch_size": 4, "accumulation": 1, "lora_r": 4, "lora_alpha": 8}
FAST = {**SHORT, "learning_rate": 1e-2, "epochs": 100.0, "max_steps": 8, "evaluations": 2, "lora_dropout": 0.0}


def pair(number: int, names: list[str], split: str = "train", **changes: Any) -> dict[str, Any]:
    row = {
        "split": split,
        "sample_id": number,
        "pair_id": number,
        "messages": tiny.ask(f"what is {number}?", *names),
        "chosen": f"It is a {'red' if number % 2 else 'blue'} thing.",
        "rejected": "no",
    }
    return {**row, **changes}


def dpo_run(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> RunFolder:
    images = [tiny.store(folder.parent / "images", tiny.picture(colour)) for colour in ("red", "blue", "green")]
    names = [name for name, _ in images]
    if rows is None:
        # Rows without an image, with one and with two, side by side in a batch.
        rows = [pair(n, names[: n % 3]) for n in range(8)]
        rows += [pair(n, names[:1], "heldout") for n in range(20, 26)]
    return tiny.frozen_run(folder, "dpo", config, rows, images)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = dpo_run(tmp_path_factory.mktemp("dpo") / "run", FAST)
    assert work(run.path) == 0, tiny.events(run, "end")
    return run


def metrics(run: RunFolder, *names: str) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of the run's metrics that have all of these, without what a clock decides."""
    return [
        (event["step"], {name: value for name, value in event["values"].items() if name not in TIMED})
        for event in tiny.events(run, "metric")
        if event["values"].keys() >= set(names) and not event["values"].keys() <= TIMED
    ]


def last_end(run: RunFolder) -> dict[str, Any]:
    return tiny.events(run, "end")[-1]


def test_the_loss_falls_and_every_metric_is_told(trained: RunFolder) -> None:
    steps = [event for event in tiny.events(trained, "metric") if "loss" in event["values"]]
    assert [event["step"] for event in steps] == list(range(1, 9))
    wanted = {"loss", "reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy"}
    wanted |= {"logp_chosen", "logp_rejected", "learning_rate", "gradient_norm"}
    wanted |= {"token_accuracy", "answer_tokens", "pairs_per_second", "tokens_per_second", "memory_gb"}
    assert all(set(event["values"]) == wanted for event in steps)
    assert all(value > 0 for event in steps for name, value in event["values"].items() if name in TIMED)
    losses = [event["values"]["loss"] for event in steps]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)  # policy = reference before the first step
    assert losses[-1] < losses[0] / 2
    assert steps[-1]["values"]["reward_accuracy"] == 1.0


def test_held_out_metrics_come_at_their_points(trained: RunFolder) -> None:
    found = [event for event in tiny.events(trained, "metric") if "heldout_loss" in event["values"]]
    assert [event["step"] for event in found] == [4, 8]
    assert all(set(event["values"]) == {f"heldout_{name}" for name in HELD_OUT} for event in found)
    assert tiny.events(trained, "progress")[-1] | {"time": 0} == {
        "kind": "progress",
        "time": 0,
        "done": 8,
        "total": 8,
        "unit": "steps",
    }


def test_held_out_means_weigh_every_pair_alike(trained: RunFolder) -> None:
    """Six held-out pairs in batches of 4 and 2: the mean is over six, not over two means."""
    accuracy = [
        event["values"]["heldout_reward_accuracy"]
        for event in tiny.events(trained, "metric")
        if "heldout_loss" in event["values"]
    ]
    assert all(value * 6 == pytest.approx(round(value * 6), abs=1e-5) for value in accuracy)
    margins = [event["values"] for event in tiny.events(trained, "metric") if "heldout_loss" in event["values"]]
    for values in margins:
        assert values["heldout_reward_margin"] == pytest.approx(
            values["heldout_reward_chosen"] - values["heldout_reward_rejected"], abs=1e-5
        )


def test_the_adapter_loads_again_and_changes_the_logits(trained: RunFolder) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from jobs.gpu.prompts import encode

    tensors = load_file(trained.adapter / "adapter_model.safetensors")
    assert tensors
    assert all("language_model" in name for name in tensors)
    assert not any("lm_head" in name or "embed" in name for name in tensors)
    # r = 4 on q, k, v, o, gate, up, down of two layers, A and B each; every B has left its zero.
    assert len(tensors) == 2 * 7 * 2
    assert all(float(tensor.abs().max()) > 0 for name, tensor in tensors.items() if "lora_B" in name)
    assert not list(trained.adapter.glob("*.bin"))

    base = AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny.tiny_llava())
    inputs = encode(processor, [tiny.ask("what is 1?", tiny.picture())])
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with torch.no_grad():
        plain = base(**inputs).logits
        model = PeftModel.from_pretrained(base, trained.adapter).eval()
        adapted = model(**inputs).logits
        with model.disable_adapter():
            back = model(**inputs).logits
    assert not torch.allclose(plain, adapted, atol=1e-2)
    assert torch.equal(plain, back)
    assert before  # the base's own weights are compared in test_only_lora_moves


def test_only_lora_moves(tmp_path: Path) -> None:
    import torch

    from jobs.configs import DpoConfig
    from jobs.gpu.callbacks import Telling
    from jobs.gpu.loading import load
    from jobs.gpu.material import read_material
    from jobs.gpu.training import make_trainer
    from jobs.reporter import Reporter

    run = dpo_run(tmp_path / "run", FAST)
    rows = list(run.rows())
    config = DpoConfig.model_validate({**FAST, "model": str(tiny.tiny_llava()), "max_steps": 3})
    with Reporter(run) as reporter:
        loaded = load(config.model, "float32", torch.device("cpu"), tmp_path, reporter)
        before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
        material = read_material(run, loaded, rows[:8], True, reporter)
        trainer = make_trainer(run, config, loaded, material, Telling(reporter, config, 0), shared=True)
        start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
    after = trainer.model.get_base_model().state_dict()
    same = {name.replace(".base_layer", ""): tensor for name, tensor in after.items() if "lora_" not in name}
    assert before.keys() == same.keys()
    assert all(torch.equal(before[name], same[name]) for name in before)
    assert start
    assert all(".language_model." in name and "lora_" in name for name in start)
    moved = {n for n, p in trainer.model.named_parameters() if p.requires_grad and not torch.equal(start[n], p)}
    assert moved == start.keys()


def test_the_card_traces_the_adapter(trained: RunFolder) -> None:
    card = (trained.adapter / "README.md").read_text(encoding="utf-8")
    wanted = ("d" * 64, "pairs", "ada", "| pairs | 8 | 6 | 0 |", "heldout_reward_accuracy", "jobs submit job.json")
    for part in wanted:
        assert part in card
    event = tiny.events(trained, "adapter")[0]
    assert (event["path"], event["name"], event["method"]) == ("adapter", "pairs-dpo-7", "dpo")
    assert json.loads((trained.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tiny.tiny_llava()
    )
    assert last_end(trained)["status"] == "done"


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    def losses(name: str, seed: int) -> list[float]:
        run = dpo_run(tmp_path / name, {**FAST, "max_steps": 3, "evaluations": 0, "seed": seed})
        assert work(run.path) == 0
        return [values["loss"] for _, values in metrics(run, "loss")]

    first = losses("a", 1)
    assert first == losses("b", 1)
    assert first != losses("c", 2)


def test_bfloat16_with_dropout_checkpointing_and_accumulation(tmp_path: Path) -> None:
    config = {
        **FAST,
        "dtype": "bfloat16",
        "batch_size": 2,
        "accumulation": 2,
        "gradient_checkpointing": True,
        "lora_dropout": 0.05,
        "max_steps": 6,
    }
    run = dpo_run(tmp_path / "run", config)
    assert work(run.path) == 0, last_end(run)
    losses = [event["values"]["loss"] for event in tiny.events(run, "metric") if "loss" in event["values"]]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_a_stop_leaves_a_checkpoint(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", FAST)
    run.ask_to_stop()
    assert work(run.path) == 0
    assert last_end(run)["status"] == "stopped"  # before the first step: nothing to keep
    run.control.unlink()

    from jobs.reporter import Reporter

    told = Reporter.progress

    def stop_at_two(self: Reporter, done: float, total: float, unit: str = "items") -> None:
        told(self, done, total, unit)
        if unit == "steps" and done == 2:
            run.ask_to_stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "progress", stop_at_two)
        assert work(run.path) == 0
    assert "after step 2 of 8" in last_end(run)["reason"]
    assert (run.checkpoints / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert not tiny.events(run, "adapter")


def test_no_held_out_rows_is_fine(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", {**FAST, "max_steps": 1}, [pair(n, []) for n in range(4)])
    assert work(run.path) == 0
    assert any("no held-out pairs" in event["text"] for event in tiny.events(run, "note"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "nothing to train on by dpo"),
        ([pair(1, [], "heldout")], "nothing to train on by dpo (1 held-out"),
        ([{"split": "train", "pair_id": 3, "messages": tiny.ask("x")}], "Pair 3 has no chosen, rejected"),
        ([pair(4, [], chosen="  ")], "Pair 4 has an empty answer (chosen)"),
        ([pair(5, ["0" * 64 + ".png"])], "is missing from the run folder"),
        ([pair(6, [], messages=[])], "Pair 6 has no messages"),
        ([pair(6, [], messages=[{"role": "assistant", "content": "x"}])], "must be the user's"),
    ],
)
def test_rows_that_cannot_be_trained_on(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    run = dpo_run(tmp_path / "run", FAST, rows)
    assert work(run.path) == 1
    assert words in last_end(run)["reason"]


def test_a_loss_that_is_no_number_names_the_step(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", {**FAST, "learning_rate": 1.0, "beta": 10.0, "schedule": "constant"})
    from trl import DPOTrainer

    real = DPOTrainer._compute_loss

    def broken(self: Any, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = real(self, model, inputs, return_outputs)
        return loss * float("nan") if self.state.global_step == 2 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DPOTrainer, "_compute_loss", broken)
        assert work(run.path) == 1
    reason = last_end(run)["reason"]
    assert "step 3: loss is nan, in a batch of pair" in reason
    assert "learning rate" in reason


@pytest.mark.slow
def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", {**FAST, "max_steps": 2})
    done = subprocess.run(
        [sys.executable, "-m", "jobs.worker", str(run.path)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert last_end(run)["status"] == "done"
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_the_stock_path_makes_the_same_run(trained: RunFolder, tmp_path: Path) -> None:
    """Two sequences a pair, images opened batch by batch, every token scored: TRL's own way, the same numbers."""
    import contextlib

    run = dpo_run(tmp_path / "run", FAST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.gpu.material.why_not", lambda model: "a test wants it so")
        patch.setattr("jobs.gpu.training.answers_alone", contextlib.nullcontext)
        assert work(run.path) == 0
    assert any("the stock way: a test wants it so." in event["text"] for event in tiny.events(run, "note"))
    assert any("runs as one sequence" in event["text"] for event in tiny.events(trained, "note"))
    ours, stock = (metrics(one) for one in (trained, run))
    assert [step for step, _ in ours] == [step for step, _ in stock]
    for (step, left), (_, right) in zip(ours, stock, strict=True):
        if step == 1:  # policy and reference are equal but for rounding: who is ahead is chance
            left, right = ({**values, "reward_accuracy": 0.0} for values in (left, right))
        assert left == pytest.approx(right, rel=1e-3, abs=1e-3)


def test_a_pair_that_does_not_fit_is_told_with_its_address(tmp_path: Path) -> None:
    rows = [pair(n, []) for n in range(4)]
    rows[2]["rejected"] = "a" * tiny.CONTEXT
    run = dpo_run(tmp_path / "run", FAST, rows)
    assert work(run.path) == 1
    reason = last_end(run)["reason"]
    assert "1 rows don't fit into the model's 256 tokens" in reason
    assert "pair 2 (/?sample=2) has 2" in reason
    assert not any("training" in event["text"] for event in tiny.events(run, "phase"))


def test_few_steps_prepare_no_more_pairs_than_they_see(tmp_path: Path) -> None:
    rows = [pair(n, []) for n in range(30)]
    run = dpo_run(tmp_path / "run", {**FAST, "max_steps": 2}, rows)
    assert work(run.path) == 0
    notes = [event["text"] for event in tiny.events(run, "note")]
    assert "2 steps see 8 of the 30 rows, drawn by the seed." in notes
    assert any("of 16 answers" in text for text in notes)


def test_evaluation_points() -> None:
    assert evaluation_steps(30, 2) == {15, 30}
    assert evaluation_steps(3, 10) == {1, 2, 3}
    assert evaluation_steps(30, 0) == frozenset()


def test_house_names_leave_the_rest_out() -> None:
    logs = {"loss": 0.5, "eval_rewards/margins": 1, "eval_runtime": 3, "epoch": 1, "train_loss": 2}
    assert house_names(logs) == {"loss": 0.5, "heldout_reward_margin": 1.0}
