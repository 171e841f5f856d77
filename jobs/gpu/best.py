"""Early stop: the weights of the best evaluation so far, kept in the run folder.

best/best.json      {"history": [{"step": 4, "values": {…}}, …]}: every evaluation and its metrics
best/<step>/        the adapter as it was then, in safetensors
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from storage.files import write_atomically

ACCURACY, MARGIN = "heldout_reward_accuracy", "heldout_reward_margin"


class Best:
    """Which evaluation is the best: by held-out reward accuracy, then by margin; of equal ones the first.

    Args:
        patience: evaluations without a better one before it is enough.
        step: the one that the run goes on from: what was seen after it is forgotten, and will be seen again.
        writes: this process keeps the files; the others only count.
    """

    def __init__(self, folder: Path, patience: int, step: int, writes: bool = True) -> None:
        self._folder, self._patience, self._writes = folder, patience, writes
        self._history = [entry for entry in self._read() if entry["step"] <= step]
        if writes and not self._history:
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = json.loads((self._folder / "best.json").read_text(encoding="utf-8"))[
                "history"
            ]
            return found
        except (OSError, ValueError, KeyError):
            return []

    def add(self, step: int, values: Mapping[str, float], save: Callable[[Path], None]) -> None:
        """Take up an evaluation; `save` writes the weights into a folder where it is the best."""
        if ACCURACY not in values:
            return
        self._history = [entry for entry in self._history if entry["step"] < step]
        self._history.append({"step": step, "values": dict(values)})
        if self.step == step:
            save(self._folder / str(step))
        if self._writes:
            write_atomically(self._folder / "best.json", json.dumps({"history": self._history}, indent=1))

    @property
    def _place(self) -> int:
        ranks = [(entry["values"][ACCURACY], entry["values"].get(MARGIN, 0.0)) for entry in self._history]
        return ranks.index(max(ranks))

    @property
    def step(self) -> int | None:
        """The step of the best evaluation; None where there was none."""
        return int(self._history[self._place]["step"]) if self._history else None

    @property
    def values(self) -> dict[str, float]:
        """Its metrics."""
        return dict(self._history[self._place]["values"]) if self._history else {}

    @property
    def folder(self) -> Path:
        """Its weights."""
        return self._folder / str(self.step)

    @property
    def enough(self) -> bool:
        """Whether so many evaluations brought nothing better that it is time to stop."""
        return bool(self._history) and len(self._history) - 1 - self._place >= self._patience

    def prune(self) -> None:
        """Drop the weights of all but the best: for when a checkpoint holds the step of the latest evaluation.

        Until then a crash goes back to where another one was the best.
        """
        if not self._writes or not self._folder.is_dir():
            return
        for found in self._folder.iterdir():
            if found.is_dir() and found.name != str(self.step):
                shutil.rmtree(found)
