"""Two chat columns in one batch against one after the other; a second turn against the whole conversation anew.

    python benchmarks/chat.py [--model FOLDER] [--tokens 48] [--rounds 5] [--columns 2|3]

    ratio              base and adapter in one batch / one after the other, seconds; aim 0.70
    ratio_peft         … by PEFT's own `generate(adapter_names=…)`, for comparison
    ratio_three        base and two adapters in one batch / one after the other
    memory_ratio       peak memory of a process with base and three adapters / base alone; aim 1.10. Each answers
                       three times in two columns: the base beside one adapter after the other, or beside itself
    second_turn_ratio  time to the first token of a second turn / with nothing known; aim 0.5. Each column goes on
                       from its own answer; `second_turn_ratio_edited` from one that neither gave
    stop_tokens        forwards after a stop of all columns; aim 2
    equal              texts of the batch equal those one after the other (greedy, float32), two and three columns
    bars               which of the aims are met

Each side answers an image turn with exactly `--tokens` tokens a column, greedily. The sides alternate; a ratio is
the median of the rounds' own ratios, and `least` has those of the shortest times, which other work on the machine
disturbs less. The model is a LLaVA of the demo VLM's size with random weights, in float32 (so that texts can be
compared), or the one in `--model`. `larger` repeats the ratios with 336 pixels, 576 image tokens and 12 layers ×
1,024. With `--columns` only batches of so many are timed.
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
from jobs.gpu.prompts import begun_with, encode, tokens_of  # noqa: E402
from jobs.gpu.row_adapters import RowAdapters  # noqa: E402
from random_llava import DEMO, LARGER, random_llava  # noqa: E402

NAMES = ("a", "b", "c")

#: The issue's bars: at most so much.
BARS = {"ratio": 0.70, "memory_ratio": 1.10, "second_turn_ratio": 0.5, "stop_tokens": 2}


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

    def second_turn(self, answer: Sequence[int]) -> Any:
        """The inputs of a second turn whose first answer was these tokens."""
        stand_in = "x"
        first = self.inputs(self.chat)
        question = tiny.ask("Are you sure? Look again.")
        said = {"role": "assistant", "content": [{"type": "text", "text": stand_in}]}
        whole = self.inputs([*self.chat, said, *question])["input_ids"][0].tolist()
        behind = first["input_ids"].shape[1] + len(tokens_of(stand_in, self.processor.tokenizer))
        return begun_with(first, [*answer, *whole[behind:]])

    def first_token(self, kept: KeptPrompts, turns: Sequence[Any]) -> None:
        """Read the prompts of two columns and say one token of each."""
        sampling = Sampling(temperature=0.0, max_new_tokens=1, min_new_tokens=1)
        asked = [Asked(name, inputs) for name, inputs in zip((None, "a"), turns, strict=True)]
        columns = Columns(self.model, self.rows, asked, kept, sampling, 0, self.ends)
        with speaking(self.model, None):
            columns.step()


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(bench: Bench, rounds: int, only: int | None = None) -> dict[str, Any]:
    """Every way in turn, so often; the medians of the rounds' ratios, and of the seconds."""
    casts: dict[str, tuple[str | None, ...]] = {"": (None, "a"), "_three": (None, "a", "b")}
    casts = {name: cast for name, cast in casts.items() if only in (None, len(cast))}
    equal, own = True, []
    for cast in casts.values():  # also the warm-up
        said = bench.together(cast)
        equal = equal and said == bench.in_turn(cast)
        own = said[:2]
    turns = [bench.second_turn(answer) for answer in own]
    other = [bench.second_turn(tokens_of("It is a red circle. " * 4, bench.processor.tokenizer))] * 2
    bench.peft((None, "a"))
    times: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], Any]) -> None:
        times.setdefault(name, []).append(seconds(work))

    for _ in range(rounds):
        for name, cast in casts.items():
            note(f"batch{name}", lambda: bench.together(cast))  # noqa: B023
            note(f"in_turn{name}", lambda: bench.in_turn(cast))  # noqa: B023
        if "" in casts:
            note("peft", lambda: bench.peft((None, "a")))
        for name, second in (("", turns), ("_edited", other)):
            known = KeptPrompts()
            bench.together((None, "a"), known)
            note(f"known{name}", lambda: bench.first_token(known, second))  # noqa: B023
            note(f"anew{name}", lambda: bench.first_token(KeptPrompts(), second))  # noqa: B023
    pairs = {f"ratio{name}": (f"batch{name}", f"in_turn{name}") for name in casts}
    if "" in casts:
        pairs["ratio_peft"] = ("peft", "in_turn")
    pairs |= {f"second_turn_ratio{name}": (f"known{name}", f"anew{name}") for name in ("", "_edited")}
    ratios = {
        name: statistics.median(mine / other for mine, other in zip(times[one], times[two], strict=True))
        for name, (one, two) in pairs.items()
    }
    least = {name: min(times[one]) / min(times[two]) for name, (one, two) in pairs.items()}
    return {
        **{name: round(value, 3) for name, value in ratios.items()},
        "least": {name: round(value, 3) for name, value in least.items()},
        "equal": equal,
        "seconds": {name: round(statistics.median(found), 3) for name, found in times.items()},
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--columns", type=int, choices=(2, 3), help="time only batches of so many columns")
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
        found = measure(bench, options.rounds, options.columns)
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
    result["bars"] = {
        name: "met" if result[name] <= most else "missed" for name, most in BARS.items() if name in result
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
