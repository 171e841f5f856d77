"""Make the screenshots of the documents by driving the real app; prints how long each step took.

    python docs/screenshots.py [--samples 400] [--data FOLDER]

Takes the whole way on the embedded demo, with the preset "demo", in headless Chromium.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import Tour, browsing, serving  # noqa: E402
from storage.easy_vqa import load_questions  # noqa: E402

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
        look("chat")
        if page.problems:
            print("console:", page.problems, file=sys.stderr)
    with serving(data) as address, browsing(1280, 860, dark=True) as page:
        tour = Tour(page, address)
        tour.open("/", ".pb-sample")
        page.wait_for_timeout(1000)
        page.screenshot(path=IMAGES / "samples-dark.png")
    return times


def main(
    samples: Annotated[int, typer.Option(help="how many samples to load")] = 400,
    data: Annotated[Path | None, typer.Option(help="an empty folder; default: a temporary one")] = None,
) -> None:
    IMAGES.mkdir(exist_ok=True)
    times: dict[str, Any] = dict(take(samples, data or Path(tempfile.mkdtemp(prefix="plumb-shots-"))))
    print(json.dumps({"samples": samples, "seconds": times, "to_two_columns": round(sum(times.values()), 1)}))


if __name__ == "__main__":
    typer.run(main)
