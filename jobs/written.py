"""What a `generate` job's run folder holds already, so that nothing is answered twice. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from jobs.event_file import read_events
from jobs.runs import RunFolder


def written_before(run: RunFolder) -> defaultdict[Any, set[int]]:
    """{sample: numbers of the candidates that events.jsonl holds}; a torn last line counts as unwritten."""
    numbers: defaultdict[Any, set[int]] = defaultdict(set)
    for event in read_events(run.events):
        if event["kind"] == "candidate":
            numbers[event["sample_id"]].add(event["number"])
    return numbers
