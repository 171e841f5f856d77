"""From the key to the next sample painted.

    python benchmarks/next_sample.py [--steps 60] [--samples 200] [--pause 500]

A data folder of samples with photographs of their own (1,024 × 768), four answers each, a judge's scores, and a
person's on every other; the real app; headless Chromium at 1,280 × 720. The key → is pressed as often as `--steps`
says, with a pause (milliseconds) between in which a person would look. Time runs from the key's event to the first
frame after the view of another sample is there with its images decoded. The last line is JSON:

    p50_ms, p95_ms, worst_ms   over the steps
    hurried_p95_ms             the same without a pause: what the pause hides (the next image is fetched before)
    server_p95_ms              of p95_ms's steps, the time in which the page waits for the server
    bars                       whether p95_ms is at most 250
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import browsing, serving  # noqa: E402
from factories import World, open_world  # noqa: E402
from storage.database import immediate  # noqa: E402
from storage.images import ensure_image  # noqa: E402
from storage.records import METRICS  # noqa: E402
from storage.samples import add_sample  # noqa: E402
from storage.scores import add_judgement, ensure_rater  # noqa: E402

BAR = 250.0  # milliseconds
SIZE = (1024, 768)
ANSWER = (
    "The picture shows number {number} of a row of rooms. On the left there is a window with a blue frame, and "
    "before it a table with two cups; the light comes from above. So says answer {letter}."
)

# Resolves once the view of another sample is painted: [milliseconds since the key, of these for the server].
WATCH = """() => {
  const before = document.querySelector(".pb-sample").dataset.sample;
  window.nextPainted = new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error("no other sample within 30 s after " + before)), 30000);
    let pressed = null;
    document.addEventListener("keydown", (event) => (pressed = event.timeStamp), { capture: true, once: true });
    const look = () => {
      const now = document.querySelector(".pb-sample");
      if (!now || now.dataset.sample === before) return;
      observer.disconnect();
      const images = [...now.querySelectorAll(".pb-left img")];
      Promise.all(images.map((image) => image.decode())).then(() =>
        requestAnimationFrame(() => setTimeout(() => {
          const end = performance.now();
          const asked = performance.getEntriesByType("resource").filter(
            (entry) => entry.startTime >= pressed && ["fetch", "xmlhttprequest"].includes(entry.initiatorType));
          const first = asked[0];
          resolve([end - pressed, first ? first.responseEnd - first.startTime : 0]);
        })), reject
      );
    };
    const observer = new MutationObserver(look);
    observer.observe(document.documentElement, { childList: true, subtree: true });
  });
}"""


def photograph(number: int) -> bytes:
    """A JPEG of a photograph's size: smooth areas with noise over them, as a camera makes it."""
    import numpy as np
    import PIL.Image

    random = np.random.default_rng(number)
    coarse = PIL.Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE, PIL.Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(smooth + random.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(noisy).save(out, "JPEG", quality=88)
    return out.getvalue()


def fill(world: World, samples: int) -> None:
    """Samples as in the middle of an annotator's day."""
    judge = ensure_rater(world.db, "judge", "a-judge", "plumb-1", "together")
    person = ensure_rater(world.db, "person", "ada")
    job = world.job()
    for number in range(samples):
        image = ensure_image(world.db, world.folder, photograph(number)).sha256
        content = [
            {"type": "image", "image": image},
            {"type": "text", "text": f"What stands before the window of room {number}?"},
        ]
        sample = add_sample(
            world.db, "rooms", str(number), [{"role": "user", "content": content}], "two cups", None
        )
        assert sample is not None
        texts = [ANSWER.format(number=number, letter=letter) for letter in "ABCD"]
        candidates = world.candidates(sample, texts, job)
        raters = [judge, person] if number % 2 else [judge]
        with immediate(world.db):
            for rater in raters:
                scores = [
                    {"candidate_id": one.id, **dict.fromkeys(METRICS, (one.id + number) % 5)} for one in candidates
                ]
                add_judgement(
                    world.db,
                    rater_id=rater,
                    sample_id=sample,
                    job_id=None,
                    state="ok",
                    scores=scores,
                )


def walk(page: Any, steps: int, pause: int) -> list[tuple[float, float]]:
    """Press → so often; (milliseconds, of these for the server) of each step."""
    found = []
    for _ in range(steps):
        page.evaluate(WATCH)
        page.keyboard.press("ArrowRight")
        whole, server = page.evaluate("() => window.nextPainted")
        found.append((float(whole), float(server)))
        # The address names the new sample once its view is shown; the next step starts from there.
        page.wait_for_function(
            "() => new URLSearchParams(location.search).get('sample')"
            " === document.querySelector('.pb-sample').dataset.sample"
        )
        if pause:
            page.wait_for_timeout(pause)
    return found


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--pause", type=int, default=500)
    asked = parser.parse_args()
    least = 2 * asked.steps + 4
    if asked.samples < least:
        parser.error(
            f"--samples {asked.samples} are too few for --steps {asked.steps} twice: give {least} or more"
        )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        world = open_world(data)
        fill(world, asked.samples)
        world.db.close()
        print(f"{asked.samples} samples are made", flush=True)
        with serving(data) as address, browsing() as page:
            page.goto(address + "/")
            # A mark that a script makes: from then on keys are heard.
            page.locator(".pb-sample .pb-card.pb-at").first.wait_for()
            walk(page, 3, asked.pause)  # warm: the first views of a process load what all share
            calm = walk(page, asked.steps, asked.pause)
            hurried = walk(page, asked.steps, 0)
            problems = list(page.problems)
    times = [whole for whole, _ in calm]
    p95 = percentile(times, 0.95)
    print(
        json.dumps(
            {
                "benchmark": "next_sample",
                "p50_ms": round(percentile(times, 0.5)),
                "p95_ms": round(p95),
                "worst_ms": round(max(times)),
                "hurried_p95_ms": round(percentile([whole for whole, _ in hurried], 0.95)),
                "server_p95_ms": round(percentile([server for _, server in calm], 0.95)),
                "steps": asked.steps,
                "samples": asked.samples,
                "pause_ms": asked.pause,
                "cores": os.cpu_count(),
                "bars": {"p95_ms": p95 <= BAR},
            }
        )
    )
    assert not problems, f"the browser's console: {problems}"


if __name__ == "__main__":
    main()
