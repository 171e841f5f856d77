"""One job as HTML: its headline, curves, settings and results. Pure: records in, text out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jobs.configs import KINDS
from jobs.judges import rules
from jobs.judges.ledger import dollars
from storage.contests import Contest
from storage.lifecycle import ENDED, JobStatus
from storage.records import Adapter, Job
from storage.results import Calls, JobResults
from workbench.charts import Series, line_chart
from workbench.forms import controls_of, flatten
from workbench.job_launch import ESTIMATED, REMOTE_ONLY
from workbench.job_words import (
    bar,
    chip,
    duration,
    kind_name,
    left_words,
    seconds_between,
    state_words,
    summary,
    when,
)
from workbench.progress import WAITING
from workbench.training_form import TRAINED

if TYPE_CHECKING:
    from jobs.judges.estimate import Estimate

Curves = Mapping[str, Sequence[tuple[int, float]]]

Chart = tuple[str, tuple[tuple[str, str, int], ...]]

_CHARTS: tuple[Chart, ...] = (
    ("Money, $", (("money", "dollars so far", 2),)),
    ("Requests a minute", (("rate", "over the last minute", 0),)),
)
_MORE_CHARTS: tuple[Chart, ...] = (("Tokens so far", (("tokens_in", "in", 0), ("tokens_out", "out", 2))),)


def headline(
    job: Job,
    position: int,
    left: float | None,
    now: datetime,
    waits: str = "",
    tries: str = "",
    takes: str = "",
) -> str:
    """The opened job: title, state with its reason, progress.

    Args:
        waits: what a queued job waits for besides a free slot.
        tries: how often it was tried, as HTML.
        takes: of disk and memory, in words.
    """
    rows = [f"by {escape(job.user)}", f"asked {when(job.created_at, now)}"]
    if job.started_at:
        rows.append(f"started {when(job.started_at, now)}")
    if job.ended_at:
        rows.append(f"took {duration(seconds_between(job.started_at or job.created_at, job.ended_at))}")
    if job.slot:
        rows.append(f"on {escape(job.slot)}")
    if takes:
        rows.append(escape(takes))
    reason = ""
    if job.deleted_at is not None:
        by = f" by {escape(job.deleted_by)}" if job.deleted_by else ""
        gone = "" if job.purged_at is None else " Its folder is gone for good; what it made is still there."
        reason = f'<p class="plumb-note">Deleted{by} {when(job.deleted_at, now)}.{gone}</p>'
    if job.reason and job.status in ENDED:
        failed = job.status is JobStatus.FAILED
        role = ' role="alert"' if failed else ""
        reason += f'<p class="plumb-{"error" if failed else "note"}"{role}>{escape(job.reason)}</p>'
    progress = ""
    if job.status not in ENDED:
        words = escape(state_words(job, position, waits)) + left_words(left)
        progress = f'{bar(job)}<p class="plumb-job-state">{words}</p>'
    return (
        f'<div class="plumb-job-head">'
        f"<h2>#{job.id} {escape(kind_name(job))} {chip(job)}</h2>"
        f"<p>{escape(summary(job))}</p>{progress}{reason}{tries}"
        f'<p class="plumb-job-who">{" · ".join(rows)}</p></div>'
    )


def charts(curves: Curves, more: bool = False) -> str:
    """The curves of a job that asks a remote model; "" where there are none. A training's: `run_views`."""
    found = "".join(
        line_chart(
            title, [Series(label, curves.get(metric, ()), colour) for metric, label, colour in names], "samples"
        )
        for title, names in (_MORE_CHARTS if more else _CHARTS)
    )
    return f'<div class="plumb-charts">{found}</div>' if found else ""


def results(job: Job, found: JobResults, dataset: str | None) -> str:
    """What the job has made, with links to where it is used; "" where there is nothing to tell yet."""
    lines = []
    if found.candidates:
        lines.append(f'<b>{found.candidates:,}</b> candidates: see them on <a href="/">Samples</a>.')
    if found.judgements.number:
        lines.append(
            f"<b>{found.judgements.number:,}</b> judgements{_states(found.judgements, linked=True)}. See them on "
            '<a href="/">Samples</a>, or make <a href="/pairs">Pairs</a> of them.'
        )
    if found.checklists.number:
        lines.append(
            f"<b>{found.checklists.number:,}</b> checklists{_states(found.checklists)}. See and edit them on "
            '<a href="/">Samples</a>.'
        )
    if job.status in ENDED and job.kind in ESTIMATED:
        lines += _rest(job, found)
    for adapter in found.adapters:
        lines.append(_adapter_line(adapter))
    if dataset:
        lines.append(f'Data set: <a href="/pairs">{escape(dataset)}</a>')
    if job.kind in TRAINED:
        lines.append(_others(job, dataset))
    if found.contest is not None:
        lines.append(_contest_line(found.contest))
    if job.kind == "evaluate" and found.evaluation is not None:
        lines.append(
            f"<b>{found.evaluation.answers:,}</b> answers to {found.evaluation.items:,} items: see them, and the "
            f'table, on <a href="/evaluation?benchmark={found.evaluation.benchmark}">Evaluation</a>.'
        )
    if job.kind == "grade" and job.status is JobStatus.DONE:
        lines.append('The grades stand in the table on <a href="/evaluation">Evaluation</a>.')
    if job.kind == "merge" and job.status is JobStatus.DONE:
        lines.append('The merged weights stand on <a href="/models">Models</a>; they can be a base model now.')
    if job.kind == "push":
        lines.append(_pushed(job))
    if job.kind == "serve" and job.status is JobStatus.RUNNING:
        lines.append('It answers on the <a href="/chat">Chat</a> page. Stop it to free its device.')
    return f'<ul class="plumb-results">{"".join(f"<li>{line}</li>" for line in lines)}</ul>' if lines else ""


def _contest_line(contest: Contest) -> str:
    """How much of it can be voted on, and where."""
    partial = f", {contest.partial:,} of them in part" if contest.partial else ""
    return (
        f"<b>{contest.answered + contest.partial:,}</b> of {contest.total:,} prompts answered{partial}: "
        f'<a href="/contests?contest={contest.id}">vote on them</a> in “{escape(contest.name)}”.'
    )


def _others(job: Job, dataset: str | None) -> str:
    """Where a training's runs are compared: those of its sweep, or those on its data set."""
    if job.sweep is not None:
        return f'<a href="/models?sweep={job.sweep}">Compare runs</a> of this sweep.'
    query = urlencode({"dataset": dataset}) if dataset else "view=runs"
    return f'<a href="/models?{escape(query)}">Compare runs</a>{" on this data set" if dataset else ""}.'


def _pushed(job: Job) -> str:
    adapter = job.config.get("adapter")
    what = f"/models?adapter={adapter}" if adapter is not None else "/models"
    return f'What is pushed stands on <a href="{what}">Models</a>.'


def _states(calls: Calls, linked: bool = False) -> str:
    """: 480 ok, 3 blocked; each state that went wrong is a link to such samples, where there is such a filter."""
    words = []
    for state, number in calls.states.items():
        text = f"{number:,} {state}"
        words.append(f'<a href="/?state={state}">{text}</a>' if linked and state != "ok" else text)
    return f": {', '.join(words)}" if calls.bad else ""


def _rest(job: Job, found: JobResults) -> list[str]:
    """What an ended job of calls can be asked to do again."""
    calls = found.checklists if job.kind == "checklist" else found.judgements
    if not calls.bad or job.config.get("judge") == rules.NAME:  # rules say the same again
        return []
    verb = "Write" if job.kind == "checklist" else "Judge"
    them = f"these {calls.bad:,}" if calls.bad > 1 else "this one"
    return [f'<a href="/jobs?kind={job.kind}&amp;rest={job.id}">{verb} {them} again</a>, with the same settings.']


def figures(job: Job, found: JobResults, latest: Mapping[str, float]) -> str:
    """What a job that asks a remote model has asked and paid, as a row of figures; "" for others.

    Args:
        latest: the last value of each metric. Its money is the ledger's: it also counts, at their worst,
            requests whose replies never came.
    """
    if job.kind not in ESTIMATED or job.config.get("judge") == rules.NAME or job.status is JobStatus.QUEUED:
        return ""
    calls = found.checklists if job.kind == "checklist" else found.judgements
    money = max(latest.get("money", 0.0), calls.cost)
    most = job.config.get("budget")
    budget = f" of {dollars(float(most))}" if most else ""
    shown = {"Cost" if job.status in ENDED else "Money so far": f"{dollars(money)}{budget}"}
    if job.status in ENDED:
        if found.scored:
            shown["For each scored answer"] = _share(money / found.scored)
        elif calls.states.get("ok"):
            shown["For each checklist"] = _share(money / calls.states["ok"])
    elif job.status is JobStatus.RUNNING and not job.phase.startswith(WAITING):
        shown["Requests a minute"] = f"{latest.get('rate', 0.0):,.0f}"
    if "requests" in latest:
        cap = job.config.get("max_requests")
        shown["Requests"] = f"{latest['requests']:,.0f}" + (f" of {cap:,}" if cap else "")
    tokens_in = max(latest.get("tokens_in", 0), calls.tokens_in)
    tokens_out = max(latest.get("tokens_out", 0), calls.tokens_out)
    if tokens_in or tokens_out:
        shown["Tokens"] = f"{tokens_in:,.0f} in, {tokens_out:,.0f} out"
    note = ""
    unseen = money - calls.cost
    if job.status in ENDED and unseen > 1e-6:
        note = (
            f'<p class="plumb-note">{dollars(unseen)} of it is for requests without a result; one whose reply '
            "never came counts at its worst.</p>"
        )
    return f"{figure_row(shown)}{note}"


def estimate(found: Estimate, budget: float) -> str:
    """What a job would ask, cost and take; `budget` in dollars."""
    shown = {"Samples": f"{found.samples:,}"}
    if found.requests:
        shown |= {
            "Requests": f"{found.requests:,}",
            "Tokens": f"{found.tokens_in:,} in, {found.tokens_out:,} out",
            "Money": f"about {dollars(found.money)}",
            "If every reply were as long as allowed": dollars(found.money_most),
            "Budget": dollars(budget),
            "Time": f"about {duration(found.seconds)}",
        }
    notes = "".join(f'<p class="plumb-note">{escape(note)}</p>' for note in found.notes)
    return f'<div class="plumb-estimate" role="status">{figure_row(shown)}{notes}</div>'


def _share(money: float) -> str:
    """Dollars with two digits that say something, however little it is: $0.00016."""
    if money >= 0.01 or money <= 0:
        return dollars(money)
    return f"${money:.{min(12, 1 - math.floor(math.log10(money)))}f}"


def figure_row(shown: Mapping[str, str]) -> str:
    """Figures by their names, side by side; "" for none."""
    if not shown:
        return ""
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in shown.items())
    return f'<dl class="plumb-figures">{pairs}</dl>'


def _adapter_line(adapter: Adapter) -> str:
    return (
        f"Adapter <b>{escape(adapter.name)}</b> of {escape(adapter.base_model)}, {adapter.bytes / 1e6:.1f} MB: "
        f'<a href="/chat?adapter={adapter.id}">Chat with it</a>, or <a href="/models?adapter={adapter.id}">see '
        f"where it comes from</a>"
    )


def settings(job: Job) -> str:
    """The frozen configuration as a table with the titles of the form."""
    titles = {}
    if job.kind in KINDS:
        titles = {control.path: control.title for control in controls_of(KINDS[job.kind])}
    passed_over = REMOTE_ONLY if job.config.get("judge") == rules.NAME else frozenset()
    rows = "".join(
        f"<tr><th scope=row>{escape(titles.get(path, path))}</th><td>{escape(_value(value))}</td></tr>"
        for path, value in flatten(job.config).items()
        if path not in passed_over
    )
    return f'<table class="plumb-settings">{rows}</table>'


def hint(html: str) -> str:
    return f'<p class="plumb-hint">{html}</p>' if html else ""


def error(text: str) -> str:
    return f'<p class="plumb-error" role="alert">{escape(text)}</p>' if text else ""


def _value(value: Any) -> str:
    if value is None or value == "" or value == [] or value == ():
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return ", ".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
