"""Acts on everything that a filter selects: how long they, their undo and their redo take.

    python benchmarks/bulk.py [--samples 100000]

On text samples in a data folder of its own. Prints one JSON line last: seconds of a discard, its undo and redo, of
taking back, and of a flag with its undo.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from factories import USER, open_world  # noqa: E402
from storage import bulk, history  # noqa: E402
from storage.database import immediate  # noqa: E402


def main(samples: Annotated[int, typer.Option(help="how many")] = 100_000) -> None:
    """Time bulk acts on samples without images."""
    with tempfile.TemporaryDirectory() as folder:
        world = open_world(Path(folder) / "data")
        with immediate(world.db):
            world.db.conn.executemany(
                "INSERT INTO samples (source, source_id, messages, question, created_at)"
                " VALUES ('x', ?, '[]', 'q', '')",
                [[str(number)] for number in range(samples)],
            )
        ids = list(range(1, samples + 1))
        seconds: dict[str, float] = {}

        def timed(name: str, act: Callable[[], object]) -> None:
            begun = time.perf_counter()
            act()
            seconds[name] = round(time.perf_counter() - begun, 2)

        timed("discard", lambda: bulk.bulk_discard(world.db, USER, ids))
        timed("undo", lambda: history.undo(world.db, USER))
        timed("redo", lambda: history.redo(world.db, USER))
        timed("keep", lambda: bulk.bulk_discard(world.db, USER, ids, False))
        timed("flag", lambda: bulk.bulk_flag(world.db, USER, ids))
        timed("undo_flag", lambda: history.undo(world.db, USER))
        world.db.close()
    print(json.dumps({"benchmark": "bulk", "samples": samples, "seconds": seconds}))


if __name__ == "__main__":
    typer.run(main)
