"""Grading an evaluation's answers: by rules at the end of `evaluate`, by rules or a judge in a `grade` job.

Grades go into a file of the run folder, and one event tells of it: nine thousand grades are no news of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from jobs.benchmarks.contract import Answers, Item
from jobs.benchmarks.measures import Graded
from jobs.benchmarks.registry import BENCHMARKS
from jobs.config_evaluation import GradeConfig
from jobs.event_file import read_events
from jobs.item_rows import EVALUATION, item_of
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder
from storage.files import write_atomically

GRADES = "grades.json"

Replies = Mapping[str, tuple[str, str]]  # (item's id, the judge's words) by request


def grade(run: RunFolder, job: JobFile, config: GradeConfig, reporter: Reporter) -> None:
    """Grade what lies in the run folder; replies that are there already are not asked for again.

    Raises:
        Stopped: by request, or because the budget is used up.
        PlumbError: nothing more can be asked.
    """
    held = json.loads((run.path / "data" / EVALUATION).read_text(encoding="utf-8"))
    benchmark = BENCHMARKS[held["benchmark"]]
    items = [item_of(row) for row in held["items"]]
    answers: Answers = held["answers"]
    if config.judge == "rules":
        assert benchmark.grade is not None
        tell(run, reporter, config.grader, benchmark.grade(items, answers))
        return
    from jobs.judges.remote import ask_about_items

    ask_about_items(run, job, config, reporter)
    events = [event for event in read_events(run.events) if event["kind"] in ("item_reply", "reply")]
    said = {event["request"]: event for event in events if event["kind"] == "item_reply"}
    replies = {name: event["reply"] for name, event in said.items() if event["state"] == "ok"}
    assert benchmark.grade_replies is not None
    graded = with_reasons(benchmark.grade_replies(items, answers, replies), said, items)
    cost = sum(event.get("cost") or 0.0 for event in events if event["kind"] == "reply")
    tell(run, reporter, config.grader, graded, {name: (e["item"], e["reply"]) for name, e in said.items()}, cost)


def with_reasons(
    graded: Sequence[Graded], said: Mapping[str, Mapping[str, Any]], items: Sequence[Item]
) -> list[Graded]:
    """A failure whose judge failed says why that was.

    Args:
        said: `item_reply` events by request.
    """
    units = {item.id: item.unit for item in items}
    reasons: dict[str, str] = {}
    by_unit: dict[str, str] = {}
    for event in said.values():
        if event["state"] != "ok":
            reason = f"the judge's reply was {event['state']}: {event['reason']}"
            reasons.setdefault(event["item"], reason)
            by_unit.setdefault(units.get(event["item"], ""), reason)

    def why(one: Graded) -> str:
        # MT-Bench grades turns (81/1), MMBench questions, which are the units of their rotations.
        item = one.id if one.id in units else one.id.rpartition("/")[0]
        return reasons.get(item) or by_unit.get(one.id) or one.why

    return [one if one.sums is not None else replace(one, why=why(one)) for one in graded]


def by_rules(run: RunFolder, reporter: Reporter, benchmark: str, items: Sequence[Item], answers: Answers) -> bool:
    """Grade at the end of an evaluation; False where the benchmark needs a judge for that."""
    rules = BENCHMARKS[benchmark].grade
    if rules is None:
        return False
    reporter.phase("grading")
    tell(run, reporter, "rules", rules(items, answers))
    return True


def tell(
    run: RunFolder,
    reporter: Reporter,
    grader: str,
    graded: Sequence[Graded],
    replies: Replies | None = None,
    cost: float = 0.0,
) -> None:
    """Keep grades in the run folder, and say so."""
    told = {"grades": [asdict(one) for one in graded], "replies": dict(replies or {})}
    write_atomically(run.path / GRADES, json.dumps(told, ensure_ascii=False))
    failures = sum(one.sums is None for one in graded)
    if failures:
        reporter.note(
            f"{failures:,} of {len(graded):,} items have no grade; the Evaluation page says why for each."
        )
    reporter.event("grading", grader=grader, file=GRADES, cost=cost)
