"""The supervised jobs on the tiny LLaVA: the three methods, stock TRL's numbers, what stops and goes on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from jobs.gpu.callbacks import house_names
from jobs.runs import RunFolder
from jobs.worker import work

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml

KINDS = ["steerlm", "rejection", "sft"]
FAST = {
    "dataset": "answers",
    "dtype": "float32",
    "batch_size": 4,
    "global_batch": 4,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "learning_rate": 5e-2,
    "epochs": 100.0,
    "max_steps": 8,
    "evaluations": 2,
    "watched_samples": 0,
    "watched_prompts": "",
    "report_to": "",
}
BEST = (4, 4, 4, 4, 4)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def asked(kind: str, number: int, names: list[Any], values: tuple[int, ...] = BEST) -> list[dict[str, Any]]:
    """A question; SteerLM's ends with what is asked of the answer."""
    messages = tiny.ask(f"what is {number}?", *names)
    if kind == "steerlm":
        asking = "Attributes: " + ",".join(
            f"{letter}:{value}" for letter, value in zip("HCOXV", values, strict=True)
        )
        messages[0]["content"].append({"type": "text", "text": asking})
    return messages


def answer(kind: str, number: int, names: list[Any], split: str = "train", **changes: Any) -> dict[str, Any]:
    values = changes.pop("values", BEST)
    row = {
        "kind": "answer",
        "split": split,
        "sample_id": number,
        "messages": asked(kind, number, names, values),
        "answer": f"It is a {'red' if number % 2 else 'blue'} thing.",
    }
    return {**row, **changes}


def pair(kind: str, number: int, names: list[Any], split: str = "heldout") -> dict[str, Any]:
    return {
        "kind": "pair",
        "split": split,
        "sample_id": number,
        "pair_id": number,
        "messages": asked(kind, number, names),
        "chosen": f"It is a {'red' if number % 2 else 'blue'} thing.",
        "rejected": "no",
    }


def scored(number: int, names: list[Any], count: int, split: str = "train") -> list[dict[str, Any]]:
    """The answers of one sample, each after its own values."""
    return [
        answer(
            "steerlm",
            number,
            names,
            split,
            values=(rank, 4, 4 - rank, 4, 4),
            answer="yes " * rank + f"it is {number}",
        )
        for rank in range(count)
    ]


def images_in(folder: Path) -> list[tuple[str, Path]]:
    return [tiny.store(folder / "images", tiny.picture(colour)) for colour in ("red", "blue", "green")]


def sft_run(
    folder: Path,
    kind: str = "sft",
    config: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
    adapters: dict[int, Path] | None = None,
) -> RunFolder:
    """A run on rows without an image, with one and with two; with held-out rows of both kinds."""
    images = images_in(folder.parent)
    names = [name for name, _ in images]
    if rows is None:
        rows = [answer(kind, n, names[: n % 3]) for n in range(8)]
        rows += [answer(kind, n, names[:1], "heldout", answer="It is " + "very " * (n % 4)) for n in range(20, 26)]
        rows += [pair(kind, n, names[: n % 2]) for n in range(20, 24)]
        rows += [pair(kind, n, names[: n % 2], "report") for n in range(24, 26)]
    return tiny.frozen_run(folder, kind, {**FAST, **(config or {})}, rows, images, adapters)


def losses(run: RunFolder) -> list[float]:
    return [event["values"]["loss"] for event in tiny.events(run, "metric") if "loss" in event["values"]]


def last_end(run: RunFolder) -> dict[str, Any]:
    return tiny.events(run, "end")[-1]


def adapter_of(run: RunFolder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    runs = {}
    for kind in KINDS:
        runs[kind] = sft_run(tmp_path_factory.mktemp(kind) / "run", kind)
        assert work(runs[kind].path) == 0, last_end(runs[kind])
    return runs


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_and_is_told(trained: dict[str, RunFolder], kind: str) -> None:
    run = trained[kind]
    steps = [event for event in tiny.events(run, "metric") if "loss" in event["values"]]
    assert [event["step"] for event in steps] == list(range(1, 9))
    assert all({"loss", "learning_rate", "gradient_norm"} <= set(event["values"]) for event in steps)
    assert losses(run)[-1] < losses(run)[0] / 2
    held = [event for event in tiny.events(run, "metric") if "heldout_loss" in event["values"]]
    assert [event["step"] for event in held] == [4, 8]
    assert held[-1]["values"]["heldout_loss"] < losses(run)[0]
    assert last_end(run)["status"] == "done"
    event = tiny.events(run, "adapter")[0]
    assert (event["path"], event["name"], event["method"]) == ("adapter", f"answers-{kind}-7", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_pairs_are_rewarded(trained: dict[str, RunFolder], kind: str) -> None:
    """What is learned here are the chosen answers: they become likelier than the reference had them."""
    values: dict[str, float] = {}
    for event in tiny.events(trained[kind], "metric"):
        values |= event["values"]
    assert values["heldout_reward_chosen"] > 0
    assert values["heldout_reward_margin"] == pytest.approx(
        values["heldout_reward_chosen"] - values["heldout_reward_rejected"], abs=1e-4
    )
    assert values["heldout_reward_accuracy"] == values["report_reward_accuracy"] == 1.0
    assert 0 <= values["heldout_token_accuracy"] <= 1
    assert values["token_accuracy"] > 0


def test_each_method_says_how_its_rows_run(trained: dict[str, RunFolder]) -> None:
    said = {kind: " ".join(event["text"] for event in tiny.events(run, "note")) for kind, run in trained.items()}
    assert "A sample's answers in a batch run as one sequence" in said["steerlm"]
    assert "Each row is scored at its answer alone" in said["rejection"]
    assert "Each row is scored at its answer alone" in said["sft"]


def test_the_adapter_loads_again_and_changes_the_logits(trained: dict[str, RunFolder]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from jobs.gpu.prompts import encode

    tensors = adapter_of(trained["sft"])
    assert len(tensors) == 2 * 7 * 2  # A and B on q, k, v, o, gate, up, down of two layers
    assert all("language_model" in name for name in tensors)
    assert all(float(tensor.abs().max()) > 0 for name, tensor in tensors.items() if "lora_B" in name)
    base = AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava(), dtype=torch.float32).eval()
    inputs = encode(AutoProcessor.from_pretrained(tiny.tiny_llava()), [tiny.ask("what is 1?", tiny.picture())])
    with torch.no_grad():
        plain = base(**inputs).logits
        model = PeftModel.from_pretrained(base, trained["sft"].adapter).eval()
        assert not torch.allclose(plain, model(**inputs).logits, atol=1e-2)


@contextlib.contextmanager
def made(run: RunFolder) -> Iterator[Any]:
    """The job's trainer on a run's rows, as the job makes it."""
    from jobs.configs import TRAININGS
    from jobs.gpu.callbacks import Telling
    from jobs.gpu.loading import load_for
    from jobs.gpu.material import read_material
    from jobs.gpu.training import make_trainer
    from jobs.reporter import Reporter

    job = run.job()
    config = next(each for each in TRAININGS if each.kind == job.kind).model_validate(job.config)
    with Reporter(run) as reporter:
        loaded = load_for(config, torch.device("cpu"), run.path, reporter)
        material = read_material(run, loaded, list(run.rows()), True, reporter)
        trainer = make_trainer(run, config, loaded, material, Telling(reporter, config, 0), shared=True)
        trainer.current_gradient_accumulation_steps = 1
        yield trainer


def shaken(trainer: Any) -> Any:
    """Every LoRA weight random, alike for every trainer: with B at zero A has no gradient."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=chance))
    return trainer


def step(trainer: Any, examples: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a step of one batch, and its gradients."""
    trainer.model.zero_grad()
    batch = trainer.data_collator(examples)
    tokens = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.training_step(trainer.model, batch, num_items_in_batch=tokens)
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss), gradients


def stock_trainer(
    rows: list[dict[str, Any]], images: list[tuple[str, Path]], work_in: Path, **settings: Any
) -> Any:
    """TRL's SFTTrainer with its own collator, on the same rows as it takes them."""
    from datasets import Dataset
    from peft import LoraConfig
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    from jobs.gpu.lora import language_linears

    files = dict(images)
    model = AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava(), dtype=torch.float32)
    taken = []
    for row in rows:
        parts = row["messages"][0]["content"]
        shown = [Image.open(files[part["image"]]).convert("RGB") for part in parts if part["type"] == "image"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        taken.append(
            {
                "images": shown,
                "prompt": [{"role": "user", "content": text}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
        )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(work_in / "stock"),
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_list(taken),
        processing_class=AutoProcessor.from_pretrained(tiny.tiny_llava()),
        peft_config=LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.0, target_modules=language_linears(model), task_type="CAUSAL_LM"
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def close(ours: tuple[float, dict[str, torch.Tensor]], stock: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert ours[0] == pytest.approx(stock[0], abs=1e-5)
    assert ours[1].keys() == stock[1].keys()
    assert all("lora_" in name for name in ours[1])
    for name, wanted in stock[1].items():
        assert float(wanted.norm()) > 0
        assert float((ours[1][name] - wanted).norm()) <= 1e-4 * float(wanted.norm()), name


@pytest.mark.parametrize("kind", ["sft", "steerlm", "apart"])
def test_a_step_is_stock_trls_on_the_same_rows(tmp_path: Path, kind: str) -> None:
    """Against TRL's SFTTrainer with its own collator: loss and every gradient."""
    images = images_in(tmp_path)
    names = [name for name, _ in images]
    if kind == "sft":
        rows = [answer(kind, n, names[: 1 + n % 2], answer="word" * (n + 1)) for n in range(4)]
    else:
        rows = [*scored(1, names[:1], 4), *scored(2, names[1:], 3)]
    config = {"shared_prefix": kind == "steerlm"} if kind != "sft" else {}
    run = sft_run(tmp_path / "run", "sft" if kind == "sft" else "steerlm", config, rows)
    with made(run) as trainer:
        shaken(trainer)
    stock = shaken(stock_trainer(rows, images, tmp_path))
    examples, taken = list(trainer.train_dataset), list(stock.train_dataset)
    batch = trainer.data_collator(examples)
    assert ("groups" in batch) == (kind == "steerlm")
    theirs = stock.data_collator([dict(row) for row in taken])
    # TRL's rows go on behind the end token with the template's newline, which no model learns to say here.
    for place in range(len(rows)):
        size, other = int(batch["attention_mask"][place].sum()), int(theirs["attention_mask"][place].sum())
        assert batch["input_ids"][place, :size].tolist() == theirs["input_ids"][place, :other][:size].tolist()
    ends = trainer.processing_class.tokenizer.eos_token_id

    def until_the_end(given: list[dict[str, Any]]) -> Any:
        stacked = collate([dict(row) for row in given])
        after = (stacked["input_ids"] == ends).flip(1).cumsum(1).flip(1) == 0
        stacked["labels"][after] = -100
        return stacked

    collate, stock.data_collator = stock.data_collator, until_the_end
    close(step(trainer, examples), step(stock, taken))


def test_the_stock_path_makes_the_same_run(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    """Images opened batch by batch, every token scored, TRL's head: the same numbers."""
    run = sft_run(tmp_path / "run", "sft")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.gpu.material.why_not", lambda model: "a test wants it so")
        patch.setattr("jobs.gpu.training.answers_alone", contextlib.nullcontext)
        assert work(run.path) == 0, last_end(run)
    assert any("the stock way: a test wants it so." in event["text"] for event in tiny.events(run, "note"))
    ours, stock = (
        [(event["step"], event["values"]) for event in tiny.events(one, "metric") if "loss" in event["values"]]
        for one in (trained["sft"], run)
    )
    assert len(ours) == len(stock) == 8
    assert losses(run) == pytest.approx(losses(trained["sft"]), rel=1e-4)
    held = [
        [
            event["values"]["heldout_loss"]
            for event in tiny.events(one, "metric")
            if "heldout_loss" in event["values"]
        ]
        for one in (trained["sft"], run)
    ]
    assert held[0] == pytest.approx(held[1], rel=1e-4)


def test_a_short_run_trains_on_whole_samples_that_stand_together(tmp_path: Path) -> None:
    """Of 20 samples with 3 answers each, 4 steps of 6 rows see 8: in each batch two, as two sequences."""
    names = [name for name, _ in images_in(tmp_path)]
    rows = [row for n in range(20) for row in scored(n, names[:1], 3)]
    config = {"batch_size": 6, "global_batch": 6, "max_steps": 4, "evaluations": 0}
    run = sft_run(tmp_path / "run", "steerlm", config, rows)
    shapes: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        from jobs.gpu.shared_prefix import SharedPrefix

        real = SharedPrefix.score

        def watched(self: Any, labels: torch.Tensor, named: dict[str, Any]) -> Any:
            if torch.is_grad_enabled():
                shapes.append((len(labels), len(named["pixel_values"]), len(set(named.get("groups", range(6))))))
            return real(self, labels, named)

        patch.setattr(SharedPrefix, "score", watched)
        assert work(run.path) == 0, last_end(run)
    assert any("4 steps see 24 of the 60 rows" in event["text"] for event in tiny.events(run, "note"))
    assert shapes[-4:] == [(6, 2, 2)] * 4  # before them: the step that is tried


def test_kin_in_one_sequence_make_the_run_that_they_make_apart(tmp_path: Path) -> None:
    """One batch a step holds all rows, so that both ways have the same rows in each step."""
    runs = []
    for shared in (True, False):
        names = [name for name, _ in images_in(tmp_path / str(shared))]
        rows = [*scored(1, names[:1], 4), *scored(2, names[1:], 3), *scored(3, [], 1)]
        rows += [row for n in (11, 12) for row in scored(n, names[: n - 10], 3, "heldout")]
        config = {"batch_size": 8, "global_batch": 8, "shared_prefix": shared, "max_steps": 4}
        runs.append(sft_run(tmp_path / str(shared) / "run", "steerlm", config, rows))
        assert work(runs[-1].path) == 0, last_end(runs[-1])
    together, apart = runs
    assert losses(together) == pytest.approx(losses(apart), rel=1e-4)
    held = [
        [
            event["values"]["heldout_loss"]
            for event in tiny.events(run, "metric")
            if "heldout_loss" in event["values"]
        ]
        for run in runs
    ]
    assert len(held[0]) == 2
    assert held[0] == pytest.approx(held[1], rel=1e-4)


def test_held_out_means_weigh_every_token_alike(tmp_path: Path) -> None:
    """Six rows in batches of 4 and 2, with answers of 4 to 60 tokens: one mean over all of their tokens."""
    images = images_in(tmp_path)
    rows = [answer("sft", n, [images[0][0]]) for n in range(4)]
    rows += [answer("sft", 20 + n, [], "heldout", answer="a" * (3 + 11 * n)) for n in range(6)]
    with made(sft_run(tmp_path / "run", "sft", rows=rows)) as trainer:
        found = shaken(trainer).evaluate()
    summed, tokens, right = 0.0, 0, 0
    trainer.model.eval()
    for example in trainer.eval_dataset:
        with torch.no_grad():
            scores = trainer.model(**trainer.data_collator([example]), fused_lm_head=True)
        summed -= float(scores.log_probs.sum())
        tokens += int(scores.label_mask.sum())
        right += int(scores.is_top1.sum())
    assert tokens == sum(4 + 11 * n for n in range(6))
    assert found["eval_loss"] == pytest.approx(summed / tokens, rel=1e-5)
    assert found["eval_mean_token_accuracy"] == pytest.approx(right / tokens, rel=1e-5)
    assert house_names(found)["heldout_loss"] == found["eval_loss"]


@pytest.mark.parametrize("accepts", [True, False])
def test_a_step_of_several_batches_weighs_every_token_alike(tmp_path: Path, accepts: bool) -> None:
    """Two batches of unequal answers make the step of one batch with all rows, whatever the model's class says."""
    from transformers import LlavaForConditionalGeneration

    def first_loss(name: str, batch: int) -> tuple[float, float]:
        rows = [answer("sft", n, [], answer="a" * (1 + 9 * n)) for n in range(4)]
        config = {"batch_size": batch, "global_batch": 4, "max_steps": 1, "evaluations": 0}
        run = sft_run(tmp_path / name, "sft", config, rows)
        assert work(run.path) == 0, last_end(run)
        values = next(event["values"] for event in tiny.events(run, "metric") if "loss" in event["values"])
        return values["loss"], values["gradient_norm"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlavaForConditionalGeneration, "accepts_loss_kwargs", accepts, raising=False)
        assert first_loss("two", 2) == pytest.approx(first_loss("one", 4), rel=1e-4)


def test_only_lora_moves(tmp_path: Path) -> None:
    rows = [answer("sft", n, []) for n in range(4)]
    with made(sft_run(tmp_path / "run", "sft", {"max_steps": 3, "evaluations": 0}, rows)) as trainer:
        before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved == {name for name in before if "lora_" in name}
    assert all(".language_model." in name for name in moved)


def test_flash_attention_takes_rows_the_stock_way_and_pairs_not_at_all(tmp_path: Path) -> None:
    """It reads the mask of several answers as padding; rows of one answer don't need one."""
    from types import SimpleNamespace
    from unittest.mock import MagicMock

    from jobs.configs import DpoConfig, SftConfig, SteerlmConfig
    from jobs.gpu.material import stock_reason
    from storage.errors import UserError

    text = SimpleNamespace(_attn_implementation="flash_attention_2")
    loaded: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text)))
    reporter = MagicMock()
    for config in (SftConfig, SteerlmConfig):
        settings = config(dataset="x", attention="flash_attention_2", dtype="bfloat16")
        assert "flash_attention_2 takes no mask" in str(stock_reason(loaded, settings, reporter))
        assert "the stock way: flash_attention_2" in reporter.note.call_args.args[0]
    with pytest.raises(UserError, match="attention implementation 'flash_attention_2' can't take"):
        stock_reason(loaded, DpoConfig(dataset="x"), reporter)


@pytest.mark.slow
def test_the_seed_decides_everything(tmp_path: Path) -> None:
    def told(name: str, seed: int) -> list[float]:
        run = sft_run(
            tmp_path / name, "sft", {"max_steps": 3, "evaluations": 0, "seed": seed, "lora_dropout": 0.1}
        )
        assert work(run.path) == 0
        return losses(run)

    first = told("a", 1)
    assert first == told("b", 1)
    assert first != told("c", 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "steerlm"])
def test_bfloat16_with_dropout_checkpointing_and_accumulation(tmp_path: Path, kind: str) -> None:
    config = {"dtype": "bfloat16", "batch_size": 2, "gradient_checkpointing": True, "lora_dropout": 0.05}
    run = sft_run(tmp_path / "run", kind, config)
    assert work(run.path) == 0, last_end(run)
    assert all(map(math.isfinite, losses(run)))
    assert losses(run)[-1] < losses(run)[0]


@pytest.mark.parametrize("kind", ["sft", "steerlm"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, kind: str) -> None:
    from jobs.reporter import Reporter

    def run_of(label: str) -> RunFolder:
        names = [name for name, _ in images_in(tmp_path)]
        if kind == "sft":
            rows = [answer(kind, n, names[: n % 3]) for n in range(10)]
        else:
            rows = [row for n in range(4) for row in scored(n, names[: n % 3], 2 + n % 3)]
        return sft_run(tmp_path / label, kind, {"lora_dropout": 0.1, "evaluations": 0}, rows)

    whole, parted = run_of("whole"), run_of("parted")
    assert work(whole.path) == 0
    told = Reporter.progress

    def stop_at_three(self: Reporter, done: float, total: float, unit: str = "items") -> None:
        told(self, done, total, unit)
        if unit == "steps" and done == 3:
            parted.ask_to_stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "progress", stop_at_three)
        assert work(parted.path) == 0
    assert "after step 3 of 8" in last_end(parted)["reason"]
    assert (parted.checkpoints / "checkpoint-3" / "adapter_model.safetensors").is_file()
    assert not tiny.events(parted, "adapter")
    parted.control.unlink()
    assert work(parted.path) == 0
    assert any("checkpoint of step 3" in event["text"] for event in tiny.events(parted, "note"))
    assert losses(parted) == pytest.approx(losses(whole), abs=1e-6)
    for name, tensor in adapter_of(whole).items():
        torch.testing.assert_close(adapter_of(parted)[name], tensor, atol=1e-6, rtol=0)


def test_it_goes_on_from_an_adapter(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    start = {1: trained["sft"].adapter}
    run = sft_run(tmp_path / "run", "sft", {"start_adapter": 1, "max_steps": 2}, adapters=start)
    assert work(run.path) == 0, last_end(run)
    # It knows the rows already: it begins about where the other ended.
    assert losses(run)[0] < losses(trained["sft"])[0] / 2
    before, after = adapter_of(trained["sft"]), adapter_of(run)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "nothing to train on by sft"),
        ([answer("sft", 1, [], "heldout")], "nothing to train on by sft (1 held-out"),
        ([pair("sft", 1, [], "train")], "nothing to train on by sft"),
        ([{"kind": "answer", "split": "train", "sample_id": 3, "messages": tiny.ask("x")}], "Sample 3 has no"),
        ([answer("sft", 4, [], answer="  ")], "Sample 4 has an empty answer (answer)"),
        ([answer("sft", 5, ["0" * 64 + ".png"])], "is missing from the run folder"),
        ([answer("sft", 6, [], messages=[])], "Sample 6 has no messages"),
        ([answer("sft", 8, [], answer="a" * tiny.CONTEXT)], "sample 8 (/?sample=8) has 2"),
    ],
)
def test_rows_that_cannot_be_trained_on(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    run = sft_run(tmp_path / "run", "sft", rows=rows)
    assert work(run.path) == 1
    assert words in last_end(run)["reason"]
