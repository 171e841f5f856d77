"""One step of supervised fine-tuning on SteerLM's rows, ours against the stock TRL SFTTrainer that is installed.

    python benchmarks/sft_step.py [--rounds 3] [--no-packed]

The LLaVA of dpo_step.py: LLaVA-1.5's geometry (336 px, patch 14: 576 image tokens; a vocabulary of 32,064), a
language model of 6 layers × 256, LoRA r 16 on all its linear layers, float32. A row is an image, a prompt of 40
tokens, the attributes that are asked for (47 tokens, as many as SmolLM2's tokenizer makes of SteerLM's string) and
an answer of 40 to 120 tokens. A step is what a trainer does for a batch: collate, forward, loss, backward. Both
trainers stand in one process with the same weights and take turns; stock has its own collator and settings.
Prints one JSON line last:

    ratio, ratio_checkpointing      4 rows of 4 samples: stock seconds over ours, medians over the rounds
    ratio_packed (…_checkpointing)  8 rows, 4 answers to each of 2 samples: ours runs a sample as one sequence
    ratio_scored, …                 against a stock that scores the answers' tokens alone, as TRL does on GPUs
    max_diff, max_grad_diff         summed log-probabilities; gradients, relative to each one's norm
    memory_stock, memory_ours, …    what a step adds to the process, MB, at most
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import dpo_step

from jobs.runs import JobFile, RunFolder

SIZES = (40, 120, 67, 93)  # tokens of the answers, the end token among them
IMAGE_SIDE = 500


class Step(dpo_step.Step):
    """One side: a trainer, and the batch that it collates anew at each step."""

    def sums(self) -> torch.Tensor:
        """Summed log-probabilities of the batch's answers, (rows,)."""
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator(self.fresh()))
        with torch.no_grad():
            scored: torch.Tensor = self.trainer.model(**inputs, fused_lm_head=True).log_probs
        return scored.sum(dim=1)


def rows_of(samples: int, answers: int) -> list[tuple[int, str, str]]:
    """Of each row its sample, what is asked, and the answer."""
    found = []
    for sample in range(samples):
        for rank in range(answers):
            values = [str((rank + place) % 5) for place in range(5)]
            # Letters for tokens: 22 that ask for attributes, then 25 with the five values among them.
            attributes = "in these attributes: " + " hel:" + ",cor:".join(values[:4]) + ",len:" + values[4]
            asked = dpo_step.QUESTION + attributes.ljust(47, ".")[:47]
            size = SIZES[(sample + rank) % len(SIZES)]
            found.append((sample, asked, dpo_step.text(size, answers * sample + rank)))
    return found


def stock_step(folder: Path, work: Path, rows: list[tuple[int, str, str]]) -> Step:
    """TRL's SFTTrainer with its own collator and settings."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    from jobs.gpu.lora import language_linears

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    taken = [
        {
            "images": [dpo_step.picture(sample, IMAGE_SIDE)],
            "prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for sample, asked, answer in rows
    ]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(work / "stock"),
            per_device_train_batch_size=len(rows),
            max_length=None,
            gradient_checkpointing=True,  # TRL makes the inputs ask for gradients then; switched for each figure
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=Dataset.from_list(taken),
        processing_class=AutoProcessor.from_pretrained(folder),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=language_linears(model), task_type="CAUSAL_LM"
        ),
    )
    return Step(trainer, list(trainer.train_dataset))


def our_step(folder: Path, work: Path, rows: list[tuple[int, str, str]]) -> Step:
    """The job's own trainer, built as the job builds it."""
    from jobs.configs import SteerlmConfig
    from jobs.gpu.callbacks import Telling
    from jobs.gpu.loading import load
    from jobs.gpu.material import read_material, stock_reason
    from jobs.gpu.training import make_trainer
    from jobs.reporter import Reporter

    settings: dict[str, Any] = {
        "model": str(folder),
        "dataset": "steps",
        "dtype": "float32",
        "batch_size": len(rows),
        "global_batch": len(rows),
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "gradient_checkpointing": True,
    }
    frozen, images = [], []
    for sample, asked, answer in rows:
        buffer = io.BytesIO()
        dpo_step.picture(sample, IMAGE_SIDE).save(buffer, "PNG")
        name = hashlib.sha256(buffer.getvalue()).hexdigest() + ".png"
        (work / name).write_bytes(buffer.getvalue())
        images.append((name, work / name))
        parts = [{"type": "image", "image": name}, {"type": "text", "text": asked}]
        frozen.append(
            {
                "kind": "answer",
                "split": "train",
                "sample_id": sample,
                "messages": [{"role": "user", "content": parts}],
                "answer": answer,
            }
        )
    job = JobFile(
        job_id=1,
        kind="steerlm",
        config=settings,
        user="ada",
        device="cpu",
        models_dir=str(work / "models"),
        created_at="",
    )
    run = RunFolder(Path(tempfile.mkdtemp(dir=work)))
    run.freeze(job, frozen, images)
    config = SteerlmConfig.model_validate(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Reporter(run) as reporter:
        loaded = load(config.model, config.dtype, device, work / "models", reporter)
        assert stock_reason(loaded, config, reporter) is None
        material = read_material(run, loaded, frozen, True, reporter)
        trainer = make_trainer(run, config, loaded, material, Telling(reporter, config, 0), shared=True)
    return Step(trainer, list(trainer.train_dataset))


def measure(rounds: int, packed: bool, work: Path) -> dict[str, Any]:
    from jobs.gpu.dpo import answers_alone

    folder = work / "llava"
    dpo_step.make_model(folder)
    result: dict[str, Any] = {"max_diff": 0.0, "max_grad_diff": 0.0}
    for kind, samples, answers in (("", 4, 1), *([("_packed", 2, 4)] if packed else [])):
        rows = rows_of(samples, answers)
        stock, ours = stock_step(folder, work, rows), our_step(folder, work, rows)
        dpo_step.same_adapters(stock, ours)
        batch = ours.trainer.data_collator(ours.fresh())
        asked = (batch["labels"] != -100).long().argmax(dim=1)
        assert asked.eq((dpo_step.SIDE // dpo_step.PATCH) ** 2 + 40 + 47).all(), asked
        assert ("groups" in batch) == bool(kind)
        result["max_diff"] = max(result["max_diff"], float((stock.sums() - ours.sums()).abs().max()))
        for on, mark in ((False, kind), (True, f"{kind}_checkpointing")):
            for side in (stock, ours):
                side.checkpointing(on)
            times = dpo_step.compare(stock, ours, rounds)
            result[f"ratio{mark}"] = round(times[0] / times[1], 2)
            result[f"seconds_stock{mark}"], result[f"seconds_ours{mark}"] = (round(value, 2) for value in times)
            differs = dpo_step.gradient_difference(stock, ours)
            result["max_grad_diff"] = max(result["max_grad_diff"], differs)
            result[f"memory_stock{mark}"] = round(dpo_step.peak_memory(stock))
            result[f"memory_ours{mark}"] = round(dpo_step.peak_memory(ours))
            with answers_alone():
                times = dpo_step.compare(stock, ours, rounds)
                result[f"ratio_scored{mark}"] = round(times[0] / times[1], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-packed", dest="packed", action="store_false")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    with tempfile.TemporaryDirectory(prefix="plumb-step-") as work:
        result = measure(arguments.rounds, arguments.packed, Path(work))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    print(json.dumps({**result, "rounds": arguments.rounds, "threads": torch.get_num_threads(), "device": device}))


if __name__ == "__main__":
    main()
