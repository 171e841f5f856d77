"""Four answers a sample in one batch against four single generations of the same length.

    python benchmarks/generate.py [--model FOLDER] [--samples 4] [--tokens 24] [--rounds 3]

Ours: `jobs.gpu.decoding`, the samples as one batch, four answers of each from one prefill. The other side: stock
`model.generate`, one answer at a time, each reading image and prompt again, as a plain loop over a data set does.
`in_turn` gives the ratio for one sample alone, so that what the batch of samples adds can be told apart. All sides
run in one process, alternating; every answer has exactly `--tokens` tokens. The last line is JSON; key
`ratio`, aim 2.

The model is the demo VLM in `--model` (a folder that holds it), else a LLaVA of its size with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from jobs.telemetry import switch_off

switch_off(os.environ)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jobs/worker.py does

import torch  # noqa: E402

import tiny  # noqa: E402
from jobs.gpu.answering import Answerer, stock_answers  # noqa: E402
from jobs.gpu.decoding import Sampling  # noqa: E402
from jobs.gpu.prompts import encode  # noqa: E402
from random_llava import DEMO, random_llava  # noqa: E402

ANSWERS = 4


def load(folder: Path | None) -> tuple[Any, Any]:
    if folder is None:
        return random_llava(DEMO, torch.bfloat16)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
    return model, AutoProcessor.from_pretrained(folder)


def timed(work: Callable[[], int]) -> tuple[float, int]:
    start = time.perf_counter()
    tokens = work()
    return time.perf_counter() - start, tokens


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder with the demo VLM; else random weights of its size")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)

    model, processor = load(options.model)
    colours = ("red", "blue", "green", "yellow", "black", "white")
    chats = [
        tiny.ask("What shape is in the image?", tiny.picture(colours[n % len(colours)], 64))
        for n in range(options.samples)
    ]
    sampling = Sampling(max_new_tokens=options.tokens, min_new_tokens=options.tokens)
    answerer = Answerer(model, processor, note=lambda text: sys.exit(f"the loop was given up: {text}"))

    def batched() -> int:
        found = answerer.answers(chats, range(len(chats)), ANSWERS, sampling)
        return sum(len(answer.tokens) for group in found for answer in group)

    def in_turn() -> int:
        found = [answerer.answers([chat], [place], ANSWERS, sampling)[0] for place, chat in enumerate(chats)]
        return sum(len(answer.tokens) for group in found for answer in group)

    def single() -> int:
        tokens = 0
        for chat in chats:
            for number in range(ANSWERS):
                inputs = answerer.on_device(encode(processor, [chat]))
                (answer,) = stock_answers(model, inputs, 1, sampling, number, answerer.ends, lambda ids: None)
                tokens += len(answer.tokens)
        return tokens

    sides = {"batched": batched, "in_turn": in_turn, "single": single}
    for work in sides.values():  # warm-up
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        counts = {}
        for name, work in sides.items():
            took, counts[name] = timed(work)
            seconds[name].append(took)
        if len(set(counts.values())) != 1:
            sys.exit(f"the sides wrote different numbers of tokens: {counts}")
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "benchmark": "generate",
        "ratio": round(middle["single"] / middle["batched"], 2),
        "ratio_in_turn": round(middle["single"] / middle["in_turn"], 2),
        "seconds": round(middle["batched"], 3),
        "seconds_in_turn": round(middle["in_turn"], 3),
        "seconds_single": round(middle["single"], 3),
        "spread_single": [round(value, 3) for value in sorted(seconds["single"])],
        "samples": options.samples,
        "answers": ANSWERS,
        "tokens_an_answer": options.tokens,
        "tokens": next(iter(counts.values())),
        "prompt_tokens": int(encode(processor, chats[:1])["attention_mask"].sum()),
        "model": "demo VLM" if options.model else "random weights of the demo VLM's size",
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
