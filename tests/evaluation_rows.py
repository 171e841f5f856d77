"""Evaluations for tests: items, answers and grades as a job leaves them, without a job that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factories import World, png
from jobs.benchmarks.contract import Benchmark
from jobs.benchmarks.measures import mean_of, share_of
from storage import jobs as store
from storage.database import immediate
from storage.evaluations import add_grading, add_item_answer, begin_evaluation
from storage.images import ensure_image
from storage.lifecycle import JobStatus


def fake(name: str = "quiz", title: str = "Quiz", scale: float = 100.0, most: float | None = 100.0) -> Benchmark:
    """A benchmark whose sums are (right, 1); for 0, 1 the headline is `scale` × the mean."""
    return Benchmark(
        name=name,
        title=title,
        files="none",
        skill="vision",
        max_new_tokens=16,
        headline="accuracy",
        measures={"accuracy": mean_of(scale), "share": share_of(0, 1)},
        read=lambda path, images, scratch: [],
        most=most,
    )


@dataclass(frozen=True)
class Made:
    evaluation: int
    grading: int | None
    job: int


def item(number: int, image: str | None = None, **more: Any) -> dict[str, Any]:
    """An item as the database has it."""
    text = {"type": "text", "text": more.pop("question", f"question {number}?")}
    content = [{"type": "image", "image": image}, text] if image else [text]
    name = more.pop("name", f"q{number}")
    found = {
        "id": name,
        "unit": "",
        "categories": [("odd", "even")[number % 2 == 0]],
        "reference": [f"ref {number}"],
    }
    found |= {"temperature": 0.0, "extra": {}, "messages": [{"role": "user", "content": content}], "following": []}
    return {**found, **more}


def grade(
    name: str, value: float | None, categories: Sequence[str] = (), characters: int | None = 10, why: str = ""
) -> dict[str, Any]:
    sums = None if value is None else (value, 1.0)
    found = {"id": name, "sums": sums, "categories": tuple(categories), "characters": characters, "unit": ""}
    return {**found, "why": why or ("it has no answer" if value is None else "")}


def evaluated(
    world: World,
    label: str,
    values: Mapping[str, float | None] | Sequence[float | None] | None,
    *,
    benchmark: str = "quiz",
    model: str = "demo",
    adapter: int | None = None,
    grader: str = "rules",
    purpose: str = "reporting",
    texts: Mapping[int, str] | None = None,
    items: Sequence[dict[str, Any]] | None = None,
    characters: int = 10,
    replies: Mapping[str, tuple[str, str]] | None = None,
    status: JobStatus = JobStatus.DONE,
    pictures: bool = False,
    **settings: Any,
) -> Made:
    """An evaluation of items q1, q2, … with a grade each; None: a failure. No values: no grading."""
    graded = {f"q{n}": one for n, one in enumerate(values or (), 1)} if not isinstance(values, Mapping) else values
    image = ensure_image(world.db, world.folder, png((20, 90, 200), (320, 200))).sha256 if pictures else None
    asked = list(items) if items is not None else [item(n, image) for n in range(1, max(1, len(graded)) + 1)]
    told = {"purpose": purpose, "half": "all", "limit": None, "seed": 0, "max_new_tokens": 16, **settings}
    job = world.job("evaluate", model=model, benchmark=benchmark)
    with immediate(world.db):
        evaluation = begin_evaluation(world.db, job, benchmark, asked, model, adapter, label, told)
        for number, one in enumerate(asked, 1):
            if graded.get(one["id"], 1) is not None:
                text = (texts or {}).get(number, f"{label} says {number}")
                add_item_answer(world.db, job, number=number, turn=0, text=text, finish="eos", tokens=5)
    world.db.conn.execute("UPDATE jobs SET status = ? WHERE id = ?", [str(status), job.id])
    grading = None
    if values is not None:
        groups = {one["id"]: one["categories"] for one in asked}
        rows = [grade(name, value, groups.get(name, ()), characters) for name, value in graded.items()]
        grading = add_grading(world.db, evaluation, grader, rows, job_id=job.id, replies=replies)
    return Made(evaluation, grading, store.get_job(world.db, job.id).id)
