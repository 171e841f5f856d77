"""What a second run on the same pairs is spared: `python benchmarks/ref_cache.py [--pairs 24]`.

Two `dpo` jobs of one step each on the LLaVA of dpo_step.py, each a worker's whole run, on the same pairs and data
folder; the second has another β and seed. Prints one JSON line last:

    reference_forwards, reference_forwards_first    forward passes of the reference in the second run and the first
    first_step_seconds, first_step_seconds_first    from the worker's start to the end of its first step
    prepare_seconds                                 of the second run: reading templates and images
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import dpo_step

from jobs.runs import JobFile, RunFolder
from jobs.worker import work


def freeze(folder: Path, work_folder: Path, pairs: int, **changes: Any) -> RunFolder:
    settings: dict[str, Any] = {
        "model": str(work_folder / "llava"),
        "dataset": "pairs",
        "dtype": "float32",
        "batch_size": 4,
        "accumulation": pairs // 4,  # one step sees them all
        "max_steps": 1,
        "lora_r": 16,
        "lora_alpha": 32,
        "evaluations": 0,
        **changes,
    }
    rows, images = [], []
    for place in range(pairs):
        buffer = io.BytesIO()
        dpo_step.picture(place, 500).save(buffer, "PNG")
        name = hashlib.sha256(buffer.getvalue()).hexdigest() + ".png"
        (work_folder / name).write_bytes(buffer.getvalue())
        images.append((name, work_folder / name))
        parts = [{"type": "image", "image": name}, {"type": "text", "text": dpo_step.QUESTION}]
        chosen, rejected = dpo_step.SHORT[place % 4]
        row = {
            "split": "train",
            "pair_id": place,
            "sample_id": place,
            "messages": [{"role": "user", "content": parts}],
        }
        rows.append(
            {**row, "chosen": dpo_step.text(chosen, place), "rejected": dpo_step.text(rejected, place + 1)}
        )
    models = str(work_folder / "models")
    job = JobFile(
        job_id=1, kind="dpo", config=settings, user="ada", device="cpu", models_dir=models, created_at=""
    )
    run = RunFolder(folder)
    run.freeze(job, rows, images)
    return run


def measure(run: RunFolder) -> dict[str, float]:
    """Run the worker; seconds to its first step, of preparing, and forward passes of the reference."""
    from jobs.gpu.scoring import PairScorer

    forwards, compute = 0, PairScorer.__call__

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal forwards
        forwards += 1
        return compute(self, *arguments)

    setattr(PairScorer, "__call__", counted)  # noqa: B010 – mypy allows no assignment to a method
    try:
        if work(run.path):
            raise SystemExit(f"the job failed: {run.log_tail()}")
    finally:
        setattr(PairScorer, "__call__", compute)  # noqa: B010
    events = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    begun = {event["text"]: event["time"] for event in events if event["kind"] == "phase"}
    started = next(event["time"] for event in events if event["kind"] == "started")
    stepped = next(event["time"] for event in events if event["kind"] == "metric")
    prepared = begun["computing the reference's log-probabilities"] - begun["preparing the rows"]
    return {"step": stepped - started, "prepare": prepared, "forwards": forwards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    pairs = parser.parse_args().pairs
    warnings.simplefilter("ignore", FutureWarning)
    import transformers  # noqa: F401  the first run isn't to pay for imports
    import trl  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="plumb-ref-") as place:
        folder = Path(place)
        dpo_step.make_model(folder / "llava")
        first = measure(freeze(folder / "one", folder, pairs))
        second = measure(freeze(folder / "two", folder, pairs, beta=0.3, seed=5))
    result = {
        "reference_forwards": second["forwards"],
        "reference_forwards_first": first["forwards"],
        "first_step_seconds": round(second["step"], 2),
        "first_step_seconds_first": round(first["step"], 2),
        "prepare_seconds": round(second["prepare"], 2),
        "pairs": pairs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
