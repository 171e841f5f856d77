"""The paper's four methods on the demo, each trained from the page on one frozen data set, and compared.

    python benchmarks/methods.py [--samples 400] [--heldout 30] [--questions 300] [--data FOLDER]

In headless Chromium: load easy-VQA, generate, judge by rules, pairs by the paper's rule, freeze, then train by
DPO, SteerLM, rejection sampling and SFT with the preset "demo" of each form. Then greedy answers of base and
adapters to questions of easy-VQA's test split, none of whose images was in training. Last a sweep of four DPO
runs, which computes no reference a second time. Prints a table in Markdown, and one JSON line last.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from sqlite_utils import Database

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from align import answers_of, run  # noqa: E402

from browser import Tour, browsing, serving  # noqa: E402
from jobs.configs import PRESETS, TRAININGS  # noqa: E402
from jobs.gpu.demo.data import Question, load_questions  # noqa: E402
from jobs.gpu.demo.scoring import is_right  # noqa: E402
from jobs.settings import Settings, load_settings, local_user  # noqa: E402
from jobs.sweeps import submit_sweep  # noqa: E402
from storage import jobs as store  # noqa: E402
from storage.adapters import list_adapters  # noqa: E402
from storage.database import session  # noqa: E402
from storage.datasets import get_dataset  # noqa: E402
from storage.easy_vqa import import_easy_vqa  # noqa: E402
from storage.finding import SampleFilter, find_samples  # noqa: E402
from storage.lifecycle import ENDED  # noqa: E402
from storage.records import Adapter, Job  # noqa: E402

DATASET = "shapes"
NAMES = {"dpo": "DPO", "steerlm": "SteerLM", "rejection": "rejection sampling", "sft": "standard SFT"}
SHOWN = ("heldout_reward_accuracy", "report_reward_accuracy", "report_reward_margin", "heldout_blank_margin")


def train_from_the_page(data: Path, samples: int, heldout: int) -> dict[str, tuple[int, float]]:
    """Walk from an empty data folder to four adapters; of each kind its job and its seconds."""
    made: dict[str, tuple[int, float]] = {}
    with serving(data) as address, browsing(1280, 860) as page:
        tour = Tour(page, address)
        tour.load_demo(samples)
        tour.start("generate", seconds=1800)
        tour.start("judge", seconds=300)
        tour.make_pairs()
        tour.freeze(DATASET, heldout=heldout)
        for config in TRAININGS:
            begin = time.monotonic()
            job_id = tour.start(config.kind, seconds=1800, dataset=DATASET)
            made[config.kind] = job_id, time.monotonic() - begin
            print(f"  job {job_id} {config.kind}: {made[config.kind][1]:.0f} s", flush=True)
        if page.problems:
            print("console:", page.problems, file=sys.stderr)
    return made


def test_questions(db: Database, settings: Settings, number: int) -> dict[int, Question]:
    """Questions of the test split as samples: their ids with what is asked."""
    import_easy_vqa(db, settings.folder, number, split="test")
    asked = load_questions("test")
    found: dict[int, Question] = {}
    after = 0
    while page := find_samples(db, SampleFilter(split="test"), after=after, limit=500):
        found |= {sample.id: asked[int(sample.source_id.split("/")[1])] for sample in page}
        after = page[-1].id
    return found


def greedy(db: Database, settings: Settings, questions: dict[int, Question], adapter: Adapter | None) -> Any:
    """Share of right answers and mean length in characters, over the test questions."""
    values: dict[str, Any] = {
        "temperature": 0,
        "candidates": 1,
        "batch_size": 32,
        "samples": {"ids": list(questions), "only_missing": False},
        "adapter": adapter.id if adapter else None,
    }
    job, _ = run(db, settings, "generate", **values)
    answers = answers_of(db, job, list(questions))
    opened = [key for key, question in questions.items() if question.kind != "yes/no"]
    right = {key: is_right(question, answers[key].text) for key, question in questions.items()}
    return {
        "right": round(mean(right.values()), 3),
        "right_open": round(mean(right[key] for key in opened), 3),
        "characters": round(mean(len(answers[key].text) for key in questions), 1),
        "example": answers[opened[0]].text,
    }


def figures(db: Database, job_id: int) -> dict[str, float]:
    """The last value of what is shown of a training."""
    curves = store.metrics_of(db, job_id)
    return {name: round(curves[name][-1][1], 3) for name in SHOWN if name in curves}


def sweep(db: Database, settings: Settings) -> list[dict[str, int]]:
    """Four short DPO runs; what each knew of the reference and what it computed."""
    values = {**PRESETS["dpo"]["demo"], "dataset": DATASET, "max_steps": 4, "evaluations": 1, "name": "sweep"}
    grid = {"beta": [0.1, 0.3], "learning_rate": [5e-5, 2e-4]}
    jobs = submit_sweep(db, settings, "dpo", values, grid, local_user())
    return [reference_of(settings, wait(db, job)) for job in jobs]


def wait(db: Database, job: Job) -> Job:
    while (job := store.get_job(db, job.id)).status not in ENDED:
        time.sleep(0.5)
    return job


def reference_of(settings: Settings, job: Job) -> dict[str, int]:
    """Answers known and computed, and forward passes, as the run's note tells."""
    text = (settings.folder.run(job.id) / "events.jsonl").read_text(encoding="utf-8")
    pattern = r"Reference: (\d+) of \d+ answers were known from earlier runs, (\d+) computed in (\d+) forward"
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"job {job.id} is {job.status}: {job.reason}")
    return dict(zip(("known", "computed", "forwards"), map(int, found.groups()), strict=True))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| method | held-out accuracy (chosen by / reported) | easy-VQA, right | characters | training |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        accuracy = " / ".join(f"{row[key]:.2f}" if key in row else "–" for key in SHOWN[:2])
        took = f"{row['seconds']:.0f} s" if "seconds" in row else "–"
        lines.append(f"| {name} | {accuracy} | {100 * row['right']:.1f} % | {row['characters']} | {took} |")
    return "\n".join(lines)


def main(
    samples: Annotated[int, typer.Option(help="how many to import")] = 400,
    heldout: Annotated[int, typer.Option(help="percent of the pairs")] = 30,
    questions: Annotated[int, typer.Option(help="of the test split, answered by each model")] = 300,
    data: Annotated[Path | None, typer.Option(help="an empty data folder; default: a temporary one")] = None,
) -> None:
    data = data or Path(tempfile.mkdtemp(prefix="plumb-methods-"))
    made = train_from_the_page(data, samples, heldout)
    settings = load_settings(data=data)
    with session(settings.folder) as db:
        asked = test_questions(db, settings, questions)
        rows: dict[str, dict[str, Any]] = {"base": greedy(db, settings, asked, None)}
        adapters = {adapter.job_id: adapter for adapter in list_adapters(db)}
        for kind, (job_id, seconds) in made.items():
            answers = greedy(db, settings, asked, adapters[job_id])
            rows[NAMES[kind]] = {**figures(db, job_id), **answers, "seconds": round(seconds)}
        swept = sweep(db, settings)
        counts = get_dataset(db, DATASET).counts
    print(table(rows))
    print(json.dumps({"dataset": counts, "questions": questions, "methods": rows, "sweep": swept}))


if __name__ == "__main__":
    typer.run(main)
