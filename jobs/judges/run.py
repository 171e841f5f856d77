"""The `judge` job: one judgement a sample, reported as soon as it is made."""

from __future__ import annotations

import json
from typing import Any

from jobs.configs import JudgeConfig
from jobs.event_file import read_events
from jobs.judges import rules
from jobs.judges.identity import key_of
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder


def judge(run: RunFolder, job: JobFile, config: JudgeConfig, reporter: Reporter) -> None:
    """Judge every row of the run folder; raises as `remote.judge_remotely`."""
    if config.judge != rules.NAME:
        from jobs.judges.remote import judge_remotely  # brings the clients' packages

        judge_remotely(run, job, config, reporter)
        return
    rows = list(run.rows())
    done = _judged(run)
    reporter.phase(f"judging with {config.judge}")
    reporter.progress(len(done), len(rows), "samples")
    for number, row in enumerate(rows, start=1):
        reporter.check_stop()
        if row["sample_id"] in done:
            continue
        reporter.event(
            "judgement",
            sample_id=row["sample_id"],
            rater=dict(zip(("name", "version", "mode"), rules.RATER, strict=True)),
            key=key_of(row, rules.RATER, 0),
            **judge_row(row),
        )
        if number % 20 == 0 or number == len(rows):
            reporter.progress(number, len(rows), "samples")


def judge_row(row: dict[str, Any]) -> dict[str, Any]:
    """One row → the fields of a judgement event. A sample that the rules do not know fails visibly."""
    if row["source"] != "easy-vqa" or not row["reference"]:
        return {
            "state": "failed",
            "reason": f"The rule-based judge knows easy-VQA's answers only; this sample is of {row['source']!r}.",
            "raw": "",
            "scores": [],
        }
    question = " ".join(part["text"] for part in row["messages"][-1]["content"] if part["type"] == "text")
    verdicts = {
        candidate["id"]: rules.judge_answer(question, row["reference"], candidate["text"])
        for candidate in row["candidates"]
    }
    return {
        "state": "ok",
        "reason": "",
        "raw": json.dumps({str(key): verdict.reason for key, verdict in verdicts.items()}, ensure_ascii=False),
        "scores": [{"candidate_id": key, **verdict.scores} for key, verdict in verdicts.items()],
    }


def _judged(run: RunFolder) -> set[int]:
    """Samples that an earlier attempt in this folder has judged already."""
    return {event["sample_id"] for event in read_events(run.events) if event["kind"] == "judgement"}
