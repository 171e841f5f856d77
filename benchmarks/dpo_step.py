"""One DPO step, ours against the stock TRL DPOTrainer that is installed.

    python benchmarks/dpo_step.py [--rounds 3] [--no-long] [--demo FOLDER]

A LLaVA of LLaVA-1.5's geometry (336 px, patch 14: 576 image tokens; a vocabulary of 32,064) with a language model
of 6 layers × 256, LoRA r 16 on all its linear layers, float32, batches of 4 pairs, prompts of 40 tokens beside the
image, answers of 40 to 120 tokens. A step is what a trainer does for a batch: collate, forward, loss, backward.
Both trainers stand in one process with the same weights and take turns; stock runs as its settings leave it
(policy and reference on stacked rows), ours with the references known already. Prints one JSON line last:

    ratio, ratio_checkpointing      stock seconds over ours, medians over the rounds
    ratio_scored                    against a stock that scores the answers' tokens alone, as TRL does on GPUs
    max_diff, max_grad_diff         summed log-probabilities; gradients, relative to each one's norm
    memory_stock, memory_ours       what a step adds to the process, MB, at most (…_checkpointing too)
    ratio_long                      answers of 400 tokens (--no-long leaves it out)
    ratio_demo                      the demo VLM in FOLDER, bf16
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

SIDE, PATCH, WORDS = 336, 14, 32_064
PAIRS = 4
SHORT = [(40, 120), (67, 93), (93, 67), (120, 40)]  # tokens of the pairs' answers, the end token among them
LONG = [(400, 400)] * PAIRS
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = "what is shown here, in all"[:22]  # with the template's 18 tokens: 40


def make_model(folder: Path) -> None:
    """The LLaVA and its processor as `save_pretrained` leaves them: random weights, a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
    )
    tokenizer.chat_template = TEMPLATE
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
            projection_dim=64,
        ),
        text_config=LlamaConfig(
            vocab_size=WORDS,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=6,
            num_attention_heads=8,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=image,
        image_token_id=image,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def text(tokens: int, seed: int) -> str:
    """So many letters less one: an answer of `tokens` tokens with its end."""
    letters = [chr(ord("a") + (seed * 7 + place * place) % 26) for place in range(tokens - 1)]
    return "".join(letters)


def picture(seed: int, side: int) -> Image.Image:
    noise = torch.randint(
        0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Image.fromarray(noise.numpy())


@dataclass
class Step:
    """One side: a trainer, and the batch that it collates anew at each step."""

    trainer: Any
    examples: list[dict[str, Any]]

    def __post_init__(self) -> None:
        self.trainer.current_gradient_accumulation_steps = 1  # `train` would set it

    def __call__(self) -> None:
        self.trainer.model.zero_grad()
        self.trainer.training_step(self.trainer.model, self.trainer.data_collator(self.fresh()))

    def fresh(self) -> list[dict[str, Any]]:
        """TRL's collator writes into its examples."""
        return [dict(example) for example in self.examples]

    def sums(self) -> torch.Tensor:
        """Summed log-probabilities of the batch's answers, (2 × pairs,)."""
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator(self.fresh()))
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        leave = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
        given = {name: value for name, value in inputs.items() if name not in leave}
        with torch.no_grad():
            scored: torch.Tensor = self.trainer.model(**given, labels=labels, fused_lm_head=True).log_probs
        return scored.sum(dim=1)

    def checkpointing(self, on: bool) -> None:
        model = self.trainer.model
        model.activation_checkpointing_enable() if on else model.activation_checkpointing_disable()


def stock_step(folder: Path, work: Path, sizes: list[tuple[int, int]], dtype: torch.dtype, side: int) -> Step:
    """TRL's DPOTrainer with its own collator and settings."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    from jobs.gpu.lora import language_linears

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    rows = [
        {
            "images": [picture(place, side)],
            "prompt": [{"role": "user", "content": QUESTION}],
            "chosen": [{"role": "assistant", "content": text(chosen, 2 * place)}],
            "rejected": [{"role": "assistant", "content": text(rejected, 2 * place + 1)}],
        }
        for place, (chosen, rejected) in enumerate(sizes)
    ]
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(work / "stock"),
            per_device_train_batch_size=PAIRS,
            max_length=None,
            gradient_checkpointing=True,  # TRL makes the inputs ask for gradients then; switched for each figure
            bf16=dtype == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(folder),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=language_linears(model), task_type="CAUSAL_LM"
        ),
    )
    return Step(trainer, list(trainer.train_dataset))


def our_step(folder: Path, work: Path, sizes: list[tuple[int, int]], dtype: torch.dtype, side: int) -> Step:
    """The job's own trainer, built as the job builds it, with its references in the book."""
    from jobs.configs import DpoConfig
    from jobs.gpu.callbacks import Telling
    from jobs.gpu.loading import load
    from jobs.gpu.material import open_book, read_material, stock_reason
    from jobs.gpu.scoring import PairScorer
    from jobs.gpu.training import make_trainer, references
    from jobs.reporter import Reporter
    from jobs.runs import JobFile, RunFolder

    settings: dict[str, Any] = {
        "model": str(folder),
        "dataset": "steps",
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": PAIRS,
        "accumulation": 1,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "gradient_checkpointing": True,
    }
    rows, images = [], []
    for place, (chosen, rejected) in enumerate(sizes):
        buffer = io.BytesIO()
        picture(place, side).save(buffer, "PNG")
        name = hashlib.sha256(buffer.getvalue()).hexdigest() + ".png"
        (work / name).write_bytes(buffer.getvalue())
        images.append((name, work / name))
        parts = [{"type": "image", "image": name}, {"type": "text", "text": QUESTION}]
        rows.append(
            {
                "split": "train",
                "pair_id": place,
                "sample_id": place,
                "messages": [{"role": "user", "content": parts}],
                "chosen": text(chosen, 2 * place),
                "rejected": text(rejected, 2 * place + 1),
            }
        )
    job = JobFile(
        job_id=1,
        kind="dpo",
        config=settings,
        user="ada",
        device="cpu",
        models_dir=str(work / "models"),
        created_at="",
    )
    run = RunFolder(Path(tempfile.mkdtemp(dir=work)))
    run.freeze(job, rows, images)
    config = DpoConfig.model_validate(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Reporter(run) as reporter:
        loaded = load(config.model, config.dtype, device, work / "models", reporter)
        assert stock_reason(loaded, config, reporter) is None
        book = open_book(run, job, loaded, True)
        material = read_material(run, loaded, rows, True, reporter)
        trainer = make_trainer(run, config, loaded, material, Telling(reporter, config, 0), shared=True)
        scorer = PairScorer(trainer, material, trainer.collate_pairs)
        references(run, config, trainer, material, book, scorer, reporter)
    return Step(trainer, list(trainer.train_dataset))


def same_adapters(stock: Step, ours: Step) -> None:
    """LoRA's B leaves its zeros, alike on both sides: with zeros, A would have no gradient to compare."""
    chance = torch.Generator().manual_seed(3)
    mine = dict(ours.trainer.model.named_parameters())
    with torch.no_grad():
        for name, parameter in stock.trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=chance))
                mine[name].copy_(parameter)


def gradient_difference(stock: Step, ours: Step) -> float:
    """The largest difference of a gradient, relative to its norm."""
    mine = dict(ours.trainer.model.named_parameters())
    found = [
        float((mine[name].grad - parameter.grad).norm() / parameter.grad.norm())
        for name, parameter in stock.trainer.model.named_parameters()
        if parameter.grad is not None
    ]
    if not found:
        raise SystemExit("no gradients to compare")
    return max(found)


def seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def peak_memory(step: Callable[[], None]) -> float:
    """MB that a step adds to the process, at most: sampled every 2 ms (CUDA keeps its own count)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what an earlier step left would hide this one's
    except OSError:
        pass
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    step()
    done.set()
    thread.join()
    return (highest - before) / 2**20


def say(words: str) -> None:
    print(f"  {words}", flush=True)


def compare(stock: Step, ours: Step, rounds: int) -> tuple[float, float]:
    """Median seconds of each, taking turns."""
    stock()
    ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        times[0].append(seconds(stock))
        times[1].append(seconds(ours))
    found = statistics.median(times[0]), statistics.median(times[1])
    say(f"stock {found[0]:.2f} s, ours {found[1]:.2f} s, ratio {found[0] / found[1]:.2f}")
    return found


def measure(rounds: int, long: bool, demo: Path | None, work: Path) -> dict[str, Any]:
    from jobs.gpu.dpo import answers_alone

    folder = work / "llava"
    make_model(folder)
    sides = [make(folder, work, SHORT, torch.float32, 500) for make in (stock_step, our_step)]
    stock, ours = sides
    same_adapters(stock, ours)
    asked = ours.trainer.data_collator(ours.fresh())["completion_mask"].argmax(dim=1)
    assert asked.eq((SIDE // PATCH) ** 2 + 40).all(), asked  # image tokens and the prompt's 40
    result: dict[str, Any] = {"max_diff": float((stock.sums() - ours.sums()).abs().max())}
    for on, mark in ((False, ""), (True, "_checkpointing")):
        for side in sides:
            side.checkpointing(on)
        times = compare(stock, ours, rounds)
        result[f"ratio{mark}"] = round(times[0] / times[1], 2)
        result[f"seconds_stock{mark}"], result[f"seconds_ours{mark}"] = (round(value, 2) for value in times)
        result["max_grad_diff"] = max(result.get("max_grad_diff", 0.0), gradient_difference(stock, ours))
        result[f"memory_stock{mark}"] = round(peak_memory(stock))
        result[f"memory_ours{mark}"] = round(peak_memory(ours))
        with answers_alone():
            times = compare(stock, ours, rounds)
            result[f"ratio_scored{mark}"] = round(times[0] / times[1], 2)
    if long:
        stock, ours = (make(folder, work, LONG, torch.float32, 500) for make in (stock_step, our_step))
        stock.checkpointing(False)
        ours.checkpointing(False)
        times = compare(stock, ours, 1)
        result["ratio_long"] = round(times[0] / times[1], 2)
    if demo is not None:
        stock, ours = (make(demo, work, SHORT, torch.bfloat16, 64) for make in (stock_step, our_step))
        stock.checkpointing(False)
        ours.checkpointing(False)
        times = compare(stock, ours, rounds)
        result["ratio_demo"] = round(times[0] / times[1], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-long", dest="long", action="store_false")
    parser.add_argument("--demo", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    with tempfile.TemporaryDirectory(prefix="plumb-step-") as work:
        result = measure(arguments.rounds, arguments.long, arguments.demo, Path(work))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    print(json.dumps({**result, "rounds": arguments.rounds, "threads": torch.get_num_threads(), "device": device}))


if __name__ == "__main__":
    main()
