"""How much faster a benchmark is answered in batches than one item after the other, with the same answers.

    python benchmarks/evaluate.py [--items 200] [--batch 32] [--benchmark easy-vqa]

Both sides run the code of the `evaluate` job with the demo VLM in float32, in one process, one after the other;
the model is loaded before. Greedy answers must be equal. Prints one JSON line last.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent.parent))

from jobs.benchmarks.registry import BENCHMARKS
from jobs.configs import parse_config
from jobs.event_file import read_events
from jobs.gpu import evaluate as job_code
from jobs.gpu.demo.assemble import ensure_demo
from jobs.gpu.devices import claim_device
from jobs.gpu.loading import Loaded, load_for
from jobs.packing_evaluation import pack_evaluation
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder
from jobs.settings import load_settings
from storage.database import migrate, session
from storage.images import image_path


def main(
    items: Annotated[int, typer.Option(help="how many, about")] = 200,
    batch: Annotated[int, typer.Option(help="items a batch")] = 32,
    benchmark: Annotated[str, typer.Option(help="easy-vqa, easy-pope or text-tasks")] = "easy-vqa",
    tokens: Annotated[int, typer.Option(help="the longest answer; 0: the benchmark's")] = 0,
) -> None:
    settings = load_settings(data=Path(tempfile.mkdtemp(prefix="plumb-evaluate-")))
    settings.folder.create()
    migrate(settings.folder)
    ensure_demo(settings.folder.models / "demo-vlm")
    seconds: dict[int, float] = {}
    answers: dict[int, dict[int, str]] = {}
    loaded: list[Loaded] = []
    with session(settings.folder) as db:
        for size in (batch, 1):
            values = {"benchmark": benchmark, "limit": items, "batch_size": size, "dtype": "float32"}
            config = parse_config("evaluate", {**values, "max_new_tokens": tokens or None})
            freight = pack_evaluation(db, settings, config)  # type: ignore[arg-type]
            run = RunFolder(settings.folder.root / f"batch-{size}")
            job = JobFile(
                job_id=size,
                kind="evaluate",
                config=config.model_dump(mode="json"),
                user="benchmark",
                device="cpu",
                models_dir=str(settings.folder.models),
                created_at="2026-01-01T00:00:00+00:00",
            )
            images = [(one.name, image_path(settings.folder, one)) for one in freight.images.values()]
            run.freeze(job, freight.rows, images)
            with Reporter(run) as reporter:
                if not loaded:
                    loaded.append(load_for(config, claim_device("cpu"), settings.folder.models, reporter))  # type: ignore[arg-type]
                job_code.load_for = lambda *_, **__: loaded[0]  # type: ignore[attr-defined]
                begin = time.monotonic()
                job_code.evaluate(run, job, config, reporter)  # type: ignore[arg-type]
                seconds[size] = time.monotonic() - begin
            told = [event for event in read_events(run.events) if event["kind"] == "item_answer"]
            answers[size] = {event["number"]: event["text"] for event in told}
            print(f"{size} a batch: {len(told)} answers in {seconds[size]:.1f} s", flush=True)
    result = {
        "benchmark": BENCHMARKS[benchmark].title,
        "items": len(answers[1]),
        "batch": batch,
        "batched_s": round(seconds[batch], 2),
        "one_by_one_s": round(seconds[1], 2),
        "ratio": round(seconds[1] / seconds[batch], 2),
        "equal": sum(answers[batch][number] == text for number, text in answers[1].items()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
