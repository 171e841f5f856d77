"""From the start of the process to the first page: `python benchmarks/startup.py [--starts 5]`.

Prints one JSON line: `seconds` is the median over the starts of the time from spawning `app.py` on an empty data
folder to the HTML of `/` answered; `torch_imported` is what the process itself says on `/health`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 120.0


def start_once(data: Path) -> tuple[float, bool]:
    """(seconds to the first page, whether torch is in the process)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PLUMB_")}
    # The supervisor that the app starts has nothing to do here and leaves at once.
    environment |= {"PLUMB_DATA": str(data), "PLUMB_SUPERVISOR_IDLE_SECONDS": "0", "PYTHONUNBUFFERED": "1"}
    log = data.with_suffix(".log")
    with log.open("w") as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", "0"], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
        try:
            while not (found := re.search(r"http://\S+", log.read_text())):
                if process.poll() is not None or time.perf_counter() - began > DEADLINE:
                    raise SystemExit(f"app.py did not start: {log.read_text()}")
                time.sleep(0.005)
            with urlopen(found.group() + "/", timeout=DEADLINE) as answer:
                page = answer.read()
            seconds = time.perf_counter() - began
            assert b"gradio_config" in page, "this is not the page"
            with urlopen(found.group() + "/health", timeout=DEADLINE) as answer:
                return seconds, bool(json.load(answer)["torch_imported"])
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    starts = parser.parse_args().starts
    with tempfile.TemporaryDirectory() as folder:
        times, torch = zip(*(start_once(Path(folder) / f"data{i}") for i in range(starts)), strict=True)
    print(
        json.dumps(
            {
                "benchmark": "startup",
                "seconds": round(statistics.median(times), 2),
                "slowest": round(max(times), 2),
                "starts": starts,
                "cores": os.cpu_count(),
                "torch_imported": any(torch),
            }
        )
    )
    assert not any(torch), "torch is in the web process"


if __name__ == "__main__":
    main()
