"""Two chat columns in one batch against one after the other; a second turn against the whole conversation anew.

    python benchmarks/chat.py [--model FOLDER] [--tokens 48] [--rounds 3]

    ratio              base and adapter in one batch / one after the other, seconds; aim 0.70
    ratio_peft         … by PEFT's own `generate(adapter_names=…)`, for comparison
    ratio_three        base and two adapters in one batch / one after the other
    memory_ratio       peak memory of a process with base and three adapters / base alone; aim 1.10. Each answers
                       three times in two columns: the base beside one adapter after the other, or beside itself
    second_turn_ratio  time to the first token of a second turn / with nothing known; aim 0.5
    stop_tokens        forwards after a stop of all columns; aim 2
    equal              texts of the batch equal those one after the other (greedy, float32)

Each side answers an image turn with exactly `--tokens` tokens a column, greedily; sides alternate, medians count.
The model is a LLaVA of the demo VLM's size with random weights, in float32 (so that texts can be compared), or the
one in `--model`. `larger` repeats the ratios with 336 pixels, 576 image tokens and 12 layers × 1,024.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from jobs.telemetry import switch_off

switch_off(os.environ)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jobs/worker.py does

import torch  # noqa: E402

import tiny  # noqa: E402
from jobs.gpu.columns import Asked, Columns  # noqa: E402
from jobs.gpu.decoding import Decoding, Sampling  # noqa: E402
from jobs.gpu.kept_prompts import KeptPrompts  # noqa: E402
from jobs.gpu.loading import Loaded  # noqa: E402
from jobs.gpu.lora import attach, language_linears, speaking  # noqa: E402
from jobs.gpu.prompts import encode  # noqa: E402
from jobs.gpu.row_adapters import RowAdapters  # noqa: E402
from random_llava import DEMO, LARGER, random_llava  # noqa: E402

NAMES = ("a", "b", "c")


def load(model: str) -> tuple[Any, Any]:
    if model in ("demo", "larger"):
        return random_llava(DEMO if model == "demo" else LARGER)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    found = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32, use_safetensors=True).eval()
    return found, AutoProcessor.from_pretrained(model)


def with_adapters(model: Any, processor: Any, folder: Path, names: Sequence[str]) -> Any:
    """LoRA of rank 16 on all linear layers, with weights that are heard."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, target_modules=language_linears(model), task_type="CAUSAL_LM")
    peft = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        peft.add_adapter(name, config)
    with torch.no_grad():
        for name, tensor in peft.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.02)
    for name in names:
        peft.peft_config[name].base_model_name_or_path = "random"
    peft.save_pretrained(folder)
    return attached(peft.unload(), processor, folder, names)


def attached(model: Any, processor: Any, folder: Path, names: Sequence[str]) -> Any:
    """The model with adapters of these names from a folder, as a `serve` job loads them."""
    found = {name: (folder / name, name) for name in names}
    return attach(Loaded("random", model, processor, torch.device("cpu")), found)


class Bench:
    """One model with its adapters, and the ways to answer with it."""

    def __init__(self, model: Any, processor: Any, tokens: int, side: int) -> None:
        self.model, self.processor = model, processor
        self.sampling = Sampling(temperature=0.0, max_new_tokens=tokens, min_new_tokens=tokens)
        self.ends = frozenset({processor.tokenizer.eos_token_id})
        self.rows = RowAdapters(model)
        self.chat = tiny.ask(
            "What shape is in the image, and which colour does it have?", tiny.picture("red", side)
        )

    def inputs(self, chat: Any) -> Any:
        return encode(self.processor, [chat])

    def together(self, names: Sequence[str | None], kept: KeptPrompts | None = None, chat: Any = None) -> Any:
        inputs = self.inputs(chat or self.chat)
        asked = [Asked(name, inputs) for name in names]
        columns = Columns(self.model, self.rows, asked, kept or KeptPrompts(), self.sampling, 0, self.ends)
        with speaking(self.model, None):
            while not columns.finished:
                columns.step()
        return [answer.tokens for answer in columns.answers]

    def in_turn(self, names: Sequence[str | None]) -> Any:
        found = []
        for name in names:
            decoding = Decoding(self.model, self.inputs(self.chat), [0], self.sampling, self.ends)
            with speaking(self.model, name):
                while not decoding.finished:
                    decoding.step()
            found.append(decoding.answers[0].tokens)
        return found

    def peft(self, names: Sequence[str | None]) -> Any:
        inputs = encode(self.processor, [self.chat] * len(names))
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                adapter_names=[name or "__base__" for name in names],
                max_new_tokens=self.sampling.max_new_tokens,
                min_new_tokens=self.sampling.min_new_tokens,
                do_sample=False,
                eos_token_id=sorted(self.ends),
                pad_token_id=min(self.ends),
            )
        return output[:, inputs["input_ids"].shape[1] :].tolist()

    def first_token(self, kept: KeptPrompts, chat: Any) -> None:
        """Read the prompts of two columns and say one token of each."""
        inputs = self.inputs(chat)
        sampling = Sampling(temperature=0.0, max_new_tokens=1, min_new_tokens=1)
        asked = [Asked(None, inputs), Asked("a", inputs)]
        columns = Columns(self.model, self.rows, asked, kept, sampling, 0, self.ends)
        with speaking(self.model, None):
            columns.step()


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Every way in turn, so often; medians of the seconds and their ratios."""
    two, three = (None, "a"), (None, "a", "b")
    second = [
        *bench.chat,
        {"role": "assistant", "content": [{"type": "text", "text": "It is a red circle. " * 4}]},
        *tiny.ask("Are you sure? Look again."),
    ]
    equal = bench.together(two) == bench.in_turn(two)  # also the warm-up
    bench.peft(two)
    kept = KeptPrompts()
    bench.together(two, kept)
    bench.first_token(kept, second)
    times: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], Any]) -> None:
        times.setdefault(name, []).append(seconds(work))

    for _ in range(rounds):
        note("batch", lambda: bench.together(two))
        note("in_turn", lambda: bench.in_turn(two))
        note("peft", lambda: bench.peft(two))
        note("batch_three", lambda: bench.together(three))
        note("in_turn_three", lambda: bench.in_turn(three))
        known = KeptPrompts()
        bench.together(two, known)
        note("second_known", lambda: bench.first_token(known, second))  # noqa: B023
        note("second_anew", lambda: bench.first_token(KeptPrompts(), second))
    middle = {name: statistics.median(found) for name, found in times.items()}
    return {
        "ratio": round(middle["batch"] / middle["in_turn"], 3),
        "ratio_peft": round(middle["peft"] / middle["in_turn"], 3),
        "ratio_three": round(middle["batch_three"] / middle["in_turn_three"], 3),
        "second_turn_ratio": round(middle["second_known"] / middle["second_anew"], 3),
        "equal": equal,
        "seconds": {name: round(value, 3) for name, value in middle.items()},
    }


def stop_tokens(bench: Bench) -> int:
    """Forwards of the model between a stop of all columns and the batch's end."""
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    inputs = bench.inputs(bench.chat)
    asked = [Asked(None, inputs), Asked("a", inputs)]
    columns = Columns(bench.model, bench.rows, asked, KeptPrompts(), bench.sampling, 0, bench.ends)
    with speaking(bench.model, None):
        columns.step()
        handle = bench.model.get_base_model().register_forward_pre_hook(count)
        for column in sorted(columns.open):
            columns.stop(column)
        while not columns.finished:
            columns.step()
    handle.remove()
    return forwards


def peak_memory(model: str, folder: Path, names: Sequence[str], tokens: int) -> int:
    """Peak bytes of a process of its own that answers with the base and these adapters."""
    command = [sys.executable, __file__, "--model", model, "--tokens", str(tokens), "--adapters", str(folder)]
    command += ["--memory", ",".join(names)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(json.loads(output.splitlines()[-1])["peak"])


def answer_once(model_name: str, folder: Path, names: Sequence[str], tokens: int) -> None:
    """Base and adapters answer together once, in this process; prints its peak of memory."""
    import peft  # noqa: F401  # a `serve` job without adapters could do without; weights are what is compared

    model, processor = load(model_name)
    side = model.config.vision_config.image_size
    bench = Bench(attached(model, processor, folder, names), processor, tokens, side)
    beside: list[str | None] = list(names) or [None] * len(NAMES)
    for name in beside:
        bench.together([None, name])
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": peak}))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", default="demo", help="a folder with a model; else random weights of the demo's size"
    )
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--adapters", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory is not None:
        names = [name for name in options.memory.split(",") if name]
        answer_once(options.model, options.adapters, names, options.tokens)
        return {}
    result: dict[str, Any] = {}
    for model_name in (options.model, "larger"):
        model, processor = load(model_name)
        side = model.config.vision_config.image_size
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(with_adapters(model, processor, Path(folder), NAMES), processor, options.tokens, side)
        found = measure(bench, options.rounds)
        print(f"{model_name}: {json.dumps(found)}", flush=True)
        if model_name == "larger":
            result["larger"] = found
        else:
            result |= found | {"stop_tokens": stop_tokens(bench)}
        del bench, model
    with tempfile.TemporaryDirectory() as folder:
        with_adapters(*load(options.model), Path(folder), NAMES)
        alone, four = (peak_memory(options.model, Path(folder), names, options.tokens) for names in ((), NAMES))
    result |= {
        "memory_ratio": round(four / alone, 3),
        "tokens": options.tokens,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
