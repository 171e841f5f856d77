"""What earlier attempts of a run have told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jobs.event_file import read_events
from jobs.runs import RunFolder


@dataclass
class Told:
    """What earlier attempts of the run have told, and needs no doing again."""

    trial: bool = False
    training: bool = False
    adapter: bool = False
    answers: set[int] = field(default_factory=set)  #: the steps of watched answers


def told_before(run: RunFolder) -> Told:
    """Read it from the run's events, up to where this attempt began: another process of it may be ahead."""
    told, before = Told(), Told()
    for event in read_events(run.events):
        match event:
            case {"kind": "started"}:
                before = replace(told, answers=set(told.answers))
            case {"kind": "metric", "values": {"trial_seconds": _}}:
                told.trial = True
            case {"kind": "phase", "text": "training"}:
                told.training = True
            case {"kind": "adapter"}:
                told.adapter = True
            case {"kind": "answers", "step": step}:
                told.answers.add(step)
    return before
