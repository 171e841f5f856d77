"""Make the screenshots of the documents by driving the real app; prints how long each step took.

    python docs/screenshots.py [--samples 400] [--data FOLDER] [--trained FOLDER] [--evaluated FOLDER]

Takes the whole way on the embedded demo, with the preset "demo", in headless Chromium. Then it lets a remote judge
score the same samples, for the pictures of estimate, running job and agreement: the judge is the tests' server; it
gives the rule-based judge's scores with noise, and the person's scores are such scores too.

With --trained it shoots the pages about trainings alone, over a data folder that holds some (as
`benchmarks/methods.py --data FOLDER` leaves it). With --evaluated it shoots the Evaluation page alone, over the
folder of a `python -m jobs paper`.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import Tour, browsing, serving  # noqa: E402
from gemini_server import GeminiServer  # noqa: E402
from jobs.judges.prompts import order_of  # noqa: E402
from jobs.models import DEMO  # noqa: E402
from jobs.queue import submit  # noqa: E402
from jobs.settings import load_settings, local_user  # noqa: E402
from storage.adapters import list_adapters  # noqa: E402
from storage.candidates import candidates_of  # noqa: E402
from storage.database import session  # noqa: E402
from storage.datasets import list_datasets  # noqa: E402
from storage.easy_vqa import load_questions  # noqa: E402
from storage.finding import SampleFilter, find_samples  # noqa: E402
from storage.folder import DataFolder  # noqa: E402
from storage.jobs import get_job  # noqa: E402
from storage.lifecycle import ENDED  # noqa: E402
from storage.records import METRICS  # noqa: E402
from storage.scores import get_judgements, list_raters  # noqa: E402

KEY, MODEL = "key-of-the-screenshots", "gemini-2.5-flash"
PEOPLE = 60  # samples that a person has scored

IMAGES = ROOT / "docs" / "images"


def take(samples: int, data: Path) -> dict[str, float]:
    """Walk the tour and shoot each page; returns the seconds of each step."""
    times: dict[str, float] = {}
    begin = time.monotonic()

    def lap(name: str) -> None:
        times[name] = round(time.monotonic() - begin - sum(times.values()), 1)
        print(f"{name}: {times[name]} s", flush=True)

    with serving(data) as address, browsing(1280, 860) as page:

        def look(name: str) -> None:
            page.wait_for_timeout(700)
            page.screenshot(path=IMAGES / f"{name}.png")

        tour = Tour(page, address, look)
        tour.load_demo(samples)
        lap("load the demo")
        tour.start("generate", seconds=1800)
        lap("generate")
        tour.start("judge", seconds=120)
        lap("judge")
        tour.score_first()
        tour.make_pairs()
        tour.freeze("shapes", heldout=20)
        lap("score, pair, freeze")
        tour.start("dpo", seconds=1800, look="jobs-dpo", dataset="shapes")
        look("jobs-done")
        lap("dpo")
        questions = load_questions("test")
        opened = next(question for question in questions if question.answer not in ("yes", "no"))
        tour.chat(opened.text, opened.image)
        lap("chat: both columns answer")
        tour.chat("Write two sentences about the sea.")
        page.locator("#vote-right").click()
        page.locator("#vote-told").get_by_text("The right one is better").wait_for()
        look("chat")
        look_at_contest(data, address, page)
        look("contests")
        lap("a contest of twelve prompts")
        tour.open("/machine", "h2")
        page.get_by_role("button", name="Check now").click()
        page.wait_for_timeout(8000)
        look("machine")
        if page.problems:
            print("console:", page.problems, file=sys.stderr)
    with serving(data) as address, browsing(1280, 860, dark=True) as page:
        tour = Tour(page, address)
        tour.open("/", ".pb-sample")
        page.wait_for_timeout(1000)
        page.screenshot(path=IMAGES / "samples-dark.png")
    return times


def look_at_contest(data: Path, address: str, page: Any) -> None:
    """Let base and adapter answer twelve samples, then open the first of them to vote on."""
    with session(DataFolder(data)) as db:
        adapter = list_adapters(db)[0].id
        values = {"columns": ["base", str(adapter)], "samples": {"source": "easy-vqa"}, "limit": 12}
        more = {"name": "Base against DPO", "max_new_tokens": 48}
        job = submit(db, load_settings(data=data, devices="cpu"), "contest", values | more, local_user())
    while True:
        with session(DataFolder(data)) as db:
            status = get_job(db, job.id).status
        if status in ENDED:
            break
        page.wait_for_timeout(500)
    page.goto(f"{address}/contests?contest=1")
    page.locator("#vote-left").wait_for()
    page.wait_for_timeout(1000)


def take_trainings(data: Path) -> None:
    """Shoot form, finished training, its answers, lineage and compared runs over the trainings that are there."""
    with session(DataFolder(data)) as db:
        first, job = min((adapter.id, adapter.job_id) for adapter in list_adapters(db))
        dataset = next(one.name for one in list_datasets(db))
    with serving(data) as address, browsing(1280, 860) as page:

        def look(name: str) -> None:
            page.wait_for_timeout(1200)
            page.screenshot(path=IMAGES / f"{name}.png")

        tour = Tour(page, address)
        tour.open(f"/jobs?kind=dpo&dataset={dataset}", "#start-train")
        page.locator("#jobs-list [data-open]").wait_for(state="attached")
        page.locator("#check-train").click()
        page.locator("#needs-train dl").wait_for()
        look("jobs-dpo-form")
        tour.open(f"/jobs?job={job}", "#job-charts svg")
        look("jobs-done")
        page.locator("#job-answers img").first.wait_for()
        page.locator("#job-ends").scroll_into_view_if_needed()
        below_header = "element => { element.scrollIntoView({block: 'start'}); window.scrollBy(0, -70); }"
        page.locator("#job-checkpoint").evaluate(below_header)
        look("jobs-answers")
        tour.open(f"/models?adapter={first}", "#pm-picture svg")
        look("models")
        tour.open(f"/models?view=runs&dataset={dataset}", "#pm-runs table")
        look("models-runs")
        if page.problems:
            print("console:", page.problems, file=sys.stderr)


def take_evaluations(data: Path) -> None:
    """Shoot the table and the curves over the evaluations that are there."""
    with serving(data) as address, browsing(1280, 900) as page:
        tour = Tour(page, address)
        tour.open(f"/evaluation?{urlencode({'base': f'model:{DEMO}'})}", ".ev-table")
        page.wait_for_timeout(1500)
        page.screenshot(path=IMAGES / "evaluation.png")
        page.locator("figure.ev-curve").first.scroll_into_view_if_needed()
        page.wait_for_timeout(600)
        page.screenshot(path=IMAGES / "evaluation-curves.png")
        if page.problems:
            print("console:", page.problems, file=sys.stderr)


def noisy(scores: dict[str, int], seed: str, share: float) -> dict[str, int]:
    """Scores of which about this share is moved by one."""
    draw = random.Random(seed)
    return {
        metric: min(4, max(0, value + draw.choice((-1, 1)))) if draw.random() < share else value
        for metric, value in scores.items()
    }


class StandIn:
    """What the test server answers: the rule-based judge's scores of the sample in the prompt, with noise."""

    def __init__(self, data: Path) -> None:
        self.scores: dict[int, dict[int, dict[str, int]]] = {}
        self._known: dict[tuple[str, str], int] = {}
        with session(DataFolder(data)) as db:
            found = find_samples(db, SampleFilter(), limit=100_000)
            ids = [sample.id for sample in found]
            candidates, judgements = candidates_of(db, ids), get_judgements(db, ids)
        for sample in found:
            judged = next(one for one in judgements[sample.id] if one.rater.name == "easy-vqa-rules")
            self.scores[sample.id] = {
                score.candidate_id: {metric: score.value(metric) or 0 for metric in METRICS}
                for score in judged.scores
            }
            self._known[sample.images[0], sample.question] = sample.id
        self.candidates = {sample_id: [one.id for one in candidates[sample_id]] for sample_id in ids}

    def answer(self, prompt: str, pictures: list[bytes]) -> str:
        image = hashlib.sha256(pictures[0]).hexdigest()
        fitting = [key for (sha, question), key in self._known.items() if sha == image and question in prompt]
        row = {"sample_id": fitting[0], "candidates": [{"id": key} for key in self.candidates[fitting[0]]]}
        answers = [
            {
                "letter": chr(65 + place),
                "reasoning": "A stand-in's reply.",
                **noisy(self.scores[fitting[0]][candidate_id], f"judge:{candidate_id}", 0.35),
            }
            for place, candidate_id in enumerate(order_of(row, 0))
        ]
        return json.dumps({"image": "a coloured shape", "answers": answers})


def take_judging(data: Path) -> None:
    """Shoot the judges' pages over what `take` has left."""
    stand_in = StandIn(data)
    kinds = ("blocked", "truncated", "malformed", "500")
    with GeminiServer(answer=stand_in.answer, latency=0.5, faults=0.04, kinds=kinds, key=KEY) as server:
        environment = {"GEMINI_API_KEY": KEY, "PLUMB_GEMINI_URL": server.url}
        with serving(data, **environment) as address, browsing(1280, 860) as page:

            def look(name: str) -> None:
                page.wait_for_timeout(900)
                page.screenshot(path=IMAGES / f"{name}.png")

            tour = Tour(page, address, look)
            for sample_id in list(stand_in.scores)[:PEOPLE]:
                for candidate_id, scores in stand_in.scores[sample_id].items():
                    for metric, value in noisy(scores, f"person:{candidate_id}", 0.25).items():
                        body = {"candidate": candidate_id, "metric": metric, "value": value}
                        page.request.post(f"{address}/api/scores", data=body).dispose()
            tour.judge(look)
            with session(DataFolder(data)) as db:
                judge = next(one.id for one in list_raters(db) if one.name == MODEL)
            tour.open(f"/agreement?first={judge}&second=people&metric=helpfulness", "#pb-found table")
            page.wait_for_timeout(1500)
            look("agreement")
            tour.open("/judges", "h2")
            look("judges")
            if page.problems:
                print("console:", page.problems, file=sys.stderr)


def main(
    samples: Annotated[int, typer.Option(help="how many samples to load")] = 400,
    data: Annotated[Path | None, typer.Option(help="an empty folder; default: a temporary one")] = None,
    trained: Annotated[Path | None, typer.Option(help="shoot what is trained there, and nothing else")] = None,
    evaluated: Annotated[Path | None, typer.Option(help="shoot what is evaluated there, and nothing else")] = None,
) -> None:
    IMAGES.mkdir(exist_ok=True)
    if trained is not None:
        take_trainings(trained)
    if evaluated is not None:
        take_evaluations(evaluated)
    if trained is not None or evaluated is not None:
        return
    data = data or Path(tempfile.mkdtemp(prefix="plumb-shots-"))
    times: dict[str, Any] = dict(take(samples, data))
    take_trainings(data)
    take_judging(data)
    print(json.dumps({"samples": samples, "seconds": times, "to_two_columns": round(sum(times.values()), 1)}))


if __name__ == "__main__":
    typer.run(main)
