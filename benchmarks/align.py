"""The main job from end to end, by the same functions as the pages: does alignment change the answers?

    python benchmarks/align.py [--samples 400] [--heldout 25] [--data FOLDER]

easy-VQA → candidates of the demo VLM → rule-based judge → pairs by the paper's rule → frozen data set → DPO
(preset "demo") → greedy answers of base and adapter to the held-out samples → the same judge. Prints one JSON
line last. Held-out pairs share no image with the training part.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from sqlite_utils import Database

sys.path.insert(0, str(Path(__file__).parent.parent))

from jobs import queue
from jobs.configs import PRESETS
from jobs.freezing import freeze
from jobs.judges import rules
from jobs.pairing import PairRule, ScoredSample, preview
from jobs.settings import Settings, load_settings, local_user
from storage import jobs as store
from storage import pairs
from storage.adapters import list_adapters
from storage.candidates import candidates_of
from storage.database import migrate, session
from storage.datasets import dataset_rows
from storage.easy_vqa import import_easy_vqa
from storage.lifecycle import ENDED, JobStatus
from storage.records import Candidate, Job, Score
from storage.scored import walk_scored
from storage.scores import get_judgements


def run(db: Database, settings: Settings, kind: str, **values: Any) -> tuple[Job, float]:
    """Submit a job and wait for its end; returns it and its seconds from start to end."""
    job = queue.submit(db, settings, kind, values, local_user())
    begin, phase = time.monotonic(), ""
    while (job := store.get_job(db, job.id)).status not in ENDED:
        shown = f"{job.status} {job.phase}"
        if shown != phase:
            print(f"  job {job.id} {kind}: {shown}", flush=True)
            phase = shown
        time.sleep(0.5)
    seconds = time.monotonic() - begin
    print(f"  job {job.id} {kind}: {job.status} after {seconds:.0f} s {job.reason}", flush=True)
    if job.status is not JobStatus.DONE:
        raise SystemExit(f"job {job.id} ({kind}) is {job.status}: {job.reason}")
    return job, seconds


def make_dataset(db: Database, heldout: float) -> tuple[str, dict[str, Any]]:
    """Pairs by the paper's rule, all accepted, frozen; returns the data set's name and its figures."""
    user, rule = local_user(), PairRule()
    made = preview((ScoredSample(*row) for row in walk_scored(db)), rule)
    pairs.add_rule_pairs(db, user, rule.stored(), made.pairs)
    pairs.accept_proposed(db, user)
    dataset = freeze(db, user, "demo", heldout_percent=heldout)
    return dataset.name, {**dataset.counts, "hash": dataset.hash[:12]}


def answers_of(db: Database, job: Job, samples: list[int]) -> dict[int, Candidate]:
    found = candidates_of(db, samples)
    return {
        sample_id: candidate
        for sample_id in samples
        for candidate in found[sample_id]
        if candidate.job_id == job.id
    }


def scores_of(db: Database, samples: list[int]) -> dict[int, Score]:
    """The rule-based judge's score of each candidate."""
    return {
        score.candidate_id: score
        for judgements in get_judgements(db, samples).values()
        for judgement in judgements
        if judgement.rater.name == rules.NAME
        for score in judgement.scores
    }


def interval(differences: list[float], draws: int = 2000) -> list[float]:
    """Paired bootstrap: the 95 % interval of the mean difference."""
    generator = random.Random(0)
    means = sorted(mean(generator.choices(differences, k=len(differences))) for _ in range(draws))
    return [round(means[int(draws * share)], 2) for share in (0.025, 0.975)]


def compare(db: Database, base: Job, aligned: Job, samples: list[int]) -> dict[str, Any]:
    """Greedy answers of both models to the same samples, judged alike."""
    before, after = answers_of(db, base, samples), answers_of(db, aligned, samples)
    scores = scores_of(db, samples)
    old = [PairRule().quality(scores[before[sample].id]) for sample in samples]
    new = [PairRule().quality(scores[after[sample].id]) for sample in samples]

    def right(answers: dict[int, Candidate]) -> float:
        return round(mean(scores[answers[sample].id].correctness == 4 for sample in samples), 3)

    return {
        "samples": len(samples),
        "answers_differ": round(mean(before[s].text != after[s].text for s in samples), 3),
        "quality_base": round(mean(old), 2),
        "quality_aligned": round(mean(new), 2),
        "quality_gain_95": interval([float(b - a) for a, b in zip(old, new, strict=True)]),
        "better": sum(b > a for a, b in zip(old, new, strict=True)),
        "worse": sum(b < a for a, b in zip(old, new, strict=True)),
        "right_base": right(before),
        "right_aligned": right(after),
        "characters_base": round(mean(len(before[s].text) for s in samples), 1),
        "characters_aligned": round(mean(len(after[s].text) for s in samples), 1),
        "examples": [[before[s].text, after[s].text] for s in samples[:3]],
    }


def main(
    samples: Annotated[int, typer.Option(help="how many to import")] = 400,
    heldout: Annotated[float, typer.Option(help="percent of the pairs")] = 25.0,
    data: Annotated[Path | None, typer.Option(help="an empty data folder; default: a temporary one")] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    settings = load_settings(data=data or Path(tempfile.mkdtemp(prefix="plumb-align-")))
    settings.folder.create()
    migrate(settings.folder)
    begin = time.monotonic()
    with session(settings.folder) as db:
        import_easy_vqa(db, settings.folder, samples, seed=seed)
        _, generating = run(db, settings, "generate", seed=seed)
        run(db, settings, "judge")
        dataset, counts = make_dataset(db, heldout)
        training, seconds = run(db, settings, "dpo", dataset=dataset, seed=seed, **PRESETS["dpo"]["demo"])
        adapter = list_adapters(db)[0]
        curves = store.metrics_of(db, training.id)
        two_columns = time.monotonic() - begin
        assert training.dataset_id is not None
        held = sorted({row.sample_id for row in dataset_rows(db, training.dataset_id, "heldout")})
        greedy: dict[str, Any] = {
            "temperature": 0,
            "candidates": 1,
            "batch_size": 32,
            "samples": {"ids": held, "only_missing": False},
        }
        base, _ = run(db, settings, "generate", **greedy)
        aligned, _ = run(db, settings, "generate", adapter=adapter.id, **greedy)
        run(db, settings, "judge")
        result = {
            "dataset": counts,
            "heldout": {
                name: round(curve[-1][1], 4) for name, curve in curves.items() if name.startswith("heldout")
            },
            "greedy": compare(db, base, aligned, held),
            "seconds": {
                "generate": round(generating),
                "dpo": round(seconds),
                "to_adapter": round(two_columns),
            },
        }
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    typer.run(main)
