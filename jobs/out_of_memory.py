"""Out of memory: how it is recognised, without importing torch, and what to change in the job's own numbers."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.configs import (
    ContestConfig,
    GenerateConfig,
    JobConfig,
    MergeConfig,
    ModelConfig,
    ServeConfig,
    TrainConfig,
)

#: How libraries say it that raise a plain RuntimeError; in small letters.
_WORDS = (
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "cuda out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "mps backend out of memory",
)

#: A rank below this is rarely worth training.
SMALLEST_RANK = 8


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def explain_memory(error: BaseException, config: JobConfig | None, device: str) -> str:
    """What happened, and every remedy that this job has left, the cheapest first.

    Args:
        config: None where the job's settings could not be read.
        device: as in job.json: 'cpu', 'cuda:0' …
    """
    where = "This machine" if device in ("cpu", "network", "auto", "") else f"The device {device}"
    steps = list(remedies(config, device))
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    told = f" [{said}]" if said else ""
    return f"{where} is out of memory. {'; or '.join(steps)[:1].upper()}{'; or '.join(steps)[1:]}.{told}"


def remedies(config: JobConfig | None, device: str) -> Iterator[str]:
    """What to change, with the numbers; the last resort is always there."""
    match config:
        case TrainConfig():
            yield from _of_training(config)
        case GenerateConfig():
            if config.batch_size > 1:
                yield f"set batch_size {config.batch_size} → {max(1, config.batch_size // 2)}"
            elif config.candidates > 1:
                yield (
                    f"set candidates {config.candidates} → {max(1, config.candidates // 2)} "
                    "and run the job again for more"
                )
            if config.max_new_tokens > 64:
                yield f"set max_new_tokens {config.max_new_tokens} → {config.max_new_tokens // 2}"
        case ContestConfig():
            if config.batch_size > 1:
                yield f"set batch_size {config.batch_size} → {max(1, config.batch_size // 2)}"
            if config.max_new_tokens > 64:
                yield f"set max_new_tokens {config.max_new_tokens} → {config.max_new_tokens // 2}"
        case ServeConfig():
            yield "ask in fewer columns at once"
        case _:
            pass
    if isinstance(config, ModelConfig) and not isinstance(config, MergeConfig):
        if config.quantization == "none" and device.startswith("cuda"):
            yield "set quantization none → 4bit"
        elif config.dtype == "float32" and device.startswith("cuda"):
            yield "set dtype float32 → bfloat16"
    yield "use a smaller model or more memory"


def _of_training(config: TrainConfig) -> Iterator[str]:
    smaller = smaller_batch(config)
    if smaller is not None:
        batches = config.global_batch // (smaller * config.processes)
        yield (
            f"set batch_size {config.batch_size} → {smaller} (global_batch {config.global_batch} stays: "
            f"accumulation rises from {config.accumulation} to {batches})"
        )
    if not config.gradient_checkpointing:
        yield "set gradient_checkpointing to true"
    if config.start_adapter is None and config.lora_r > SMALLEST_RANK:
        yield f"set lora_r {config.lora_r} → {max(SMALLEST_RANK, config.lora_r // 2)}"


def smaller_batch(config: TrainConfig) -> int | None:
    """The largest batch of at most half the size that still divides the global batch; None from 1 on."""
    return next(
        (
            size
            for size in range(config.batch_size // 2, 0, -1)
            if config.global_batch % (size * config.processes) == 0
        ),
        None,
    )
