"""Jobs that survive everything: generate, judge and dpo jobs on the demo's data under kill -9.

    python benchmarks/faults.py [--kills 50] [--seed 1] [--model FOLDER] [--data FOLDER]

The real app, supervisor and workers; every few seconds one of them, drawn by the seed, is killed. Whenever no job
of a kind is open, another is queued, until all kills are done; then the jobs have their time to end. The model is
a tiny LLaVA unless `--model` names a folder. The last line is JSON:

    kills        by what was killed
    lost         items and steps that are missing, jobs that are not done, adapters that are not there
    duplicated   items that were made or kept twice
    unexplained  attempts and jobs that ended otherwise than done and have no reason or no cause
    diverged     steps that were done again after a checkpoint and came to another loss
    findings     of `python -m storage check`
    steps_again  steps since the last checkpoint before a kill, done once more
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from jobs.telemetry import switch_off  # noqa: E402

switch_off(os.environ)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a model folder; else a tiny LLaVA with random weights")
    parser.add_argument("--data", type=Path, help="the data folder, kept for a look; else one that is removed")
    parser.add_argument("--pause", type=float, nargs=2, default=(2.0, 8.0), help="seconds between two kills")
    parser.add_argument("--seconds", type=float, default=900.0, help="for the jobs to end after the last kill")
    options = parser.parse_args(arguments)

    from killing import Size, raging
    from tiny import tiny_llava

    with tempfile.TemporaryDirectory() as folder:
        root = options.data or Path(folder) / "data"
        with raging(
            root,
            options.model or tiny_llava(),
            kills=options.kills,
            seed=options.seed,
            size=Size(),
            pause=tuple(options.pause),
            seconds=options.seconds,
            tell=lambda text: print(text, flush=True),
        ) as faults:
            found = faults.outcome
    for text in found.told:
        print(text)
    figures = dataclasses.asdict(found)
    figures.pop("told")
    by = figures.pop("kills")
    bad = sum(figures[name] for name in ("lost", "duplicated", "unexplained", "diverged", "findings", "left"))
    print(
        json.dumps({"benchmark": "faults", "seed": options.seed, "kills": sum(by.values()), "by": by, **figures})
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
