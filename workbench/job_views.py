"""Jobs as HTML: the list, one job's headline, curves, settings and results. Pure: records in, text out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jobs.configs import KINDS
from jobs.judges import rules
from jobs.judges.identity import MODES
from jobs.judges.ledger import dollars
from storage.lifecycle import ENDED, JobStatus
from storage.records import Adapter, Job
from storage.results import Calls, JobResults
from workbench import training_form
from workbench.charts import Series, line_chart
from workbench.forms import controls_of, flatten
from workbench.job_launch import ESTIMATED, REMOTE_ONLY
from workbench.progress import WAITING
from workbench.training_form import TRAINED

if TYPE_CHECKING:
    from jobs.judges.estimate import Estimate

Curves = Mapping[str, Sequence[tuple[int, float]]]

Chart = tuple[str, tuple[tuple[str, str, int], ...]]

KIND_NAMES = {
    "generate": "Generate",
    "judge": "Judge",
    "checklist": "Checklists",
    **training_form.NAMES,
    "serve": "Chat model",
    "merge": "Merge",
    "push": "Push",
}

_CHARTS: tuple[Chart, ...] = (
    ("Money, $", (("money", "dollars so far", 2),)),
    ("Requests a minute", (("rate", "over the last minute", 0),)),
)
_MORE_CHARTS: tuple[Chart, ...] = (("Tokens so far", (("tokens_in", "in", 0), ("tokens_out", "out", 2))),)


def job_list(
    jobs: Sequence[Job],
    positions: Mapping[int, int],
    left: Mapping[int, float],
    selected: int | None,
    now: datetime,
    more: bool = False,
    open_jobs: int = 0,
    sweeps: Mapping[int, Mapping[JobStatus, int]] | None = None,
) -> str:
    """The list as links that carry their job, marked with the address of the selected one.

    Args:
        positions: in the queue, of queued jobs.
        left: seconds, of running jobs where they can be told.
        more: there are older jobs than these.
        open_jobs: queued or at work; the page's header shows the number.
        sweeps: how many jobs of a sweep are in which state, by its number.
    """
    address = f' data-url="?job={selected}"' if selected is not None else ""
    mark = f'<span data-open="{open_jobs}"{address}></span>'
    if not jobs:
        return (
            f'{mark}<div class="plumb-empty"><b>No jobs yet.</b><p>Choose what to do on the right, and press '
            "Start. A job goes on when you close this page.</p></div>"
        )
    entries, shown = "", None
    for job in jobs:
        if job.sweep is not None and job.sweep != shown:
            entries += _sweep(job.sweep, (sweeps or {}).get(job.sweep, {}))
        shown = job.sweep
        entries += _entry(job, positions.get(job.id, 0), left.get(job.id), job.id == selected, now)
    rest = '<a class="plumb-more" href="/jobs" data-more="1">Show older jobs</a>' if more else ""
    return f'{mark}<nav class="plumb-jobs" aria-label="Jobs">{entries}</nav>{rest}'


def _entry(job: Job, position: int, left: float | None, selected: bool, now: datetime) -> str:
    state = _state_words(job, position)
    told = f'<span class="plumb-job-state" title="{escape(state)}">{escape(state)}{_left_words(left)}</span>'
    return (
        f'<a class="plumb-job plumb-is-{job.status}{" plumb-selected" if selected else ""}'
        f'{" plumb-swept" if job.sweep is not None else ""}" '
        f'href="/jobs?job={job.id}" '
        f'data-job="{job.id}"{" aria-current=true" if selected else ""}>'
        f'<span class="plumb-job-top"><b>#{job.id} {escape(_kind(job))}</b>{_chip(job)}</span>'
        f'<span class="plumb-job-what">{escape(summary(job))}</span>'
        f"{_bar(job) if job.status not in ENDED else ''}"
        f"{told if state else ''}"
        f'<span class="plumb-job-who">{escape(job.user)} · {_when(job.created_at, now)}</span></a>'
    )


def _sweep(sweep: int, states: Mapping[JobStatus, int]) -> str:
    """The line above the jobs of a sweep."""
    told = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    return (
        f'<p class="plumb-sweep"><a href="/models?sweep={sweep}">Compare</a><b>Sweep #{sweep}</b> · '
        f"{sum(states.values())} jobs<br>{told}</p>"
    )


def headline(job: Job, position: int, left: float | None, now: datetime) -> str:
    """The opened job: title, state with its reason, progress."""
    rows = [f"by {escape(job.user)}", f"asked {_when(job.created_at, now)}"]
    if job.started_at:
        rows.append(f"started {_when(job.started_at, now)}")
    if job.ended_at:
        rows.append(f"took {duration(_seconds_between(job.started_at or job.created_at, job.ended_at))}")
    if job.slot:
        rows.append(f"on {escape(job.slot)}")
    reason = ""
    if job.reason and job.status in ENDED:
        failed = job.status is JobStatus.FAILED
        role = ' role="alert"' if failed else ""
        reason = f'<p class="plumb-{"error" if failed else "note"}"{role}>{escape(job.reason)}</p>'
    progress = ""
    if job.status not in ENDED:
        words = escape(_state_words(job, position)) + _left_words(left)
        progress = f'{_bar(job)}<p class="plumb-job-state">{words}</p>'
    return (
        f'<div class="plumb-job-head">'
        f"<h2>#{job.id} {escape(_kind(job))} {_chip(job)}</h2>"
        f"<p>{escape(summary(job))}</p>{progress}{reason}<p class='plumb-job-who'>{' · '.join(rows)}</p></div>"
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
    if job.kind == "merge" and job.status is JobStatus.DONE:
        lines.append('The merged weights stand on <a href="/models">Models</a>; they can be a base model now.')
    if job.kind == "push":
        lines.append(_pushed(job))
    if job.kind == "serve" and job.status is JobStatus.RUNNING:
        lines.append('It answers on the <a href="/chat">Chat</a> page. Stop it to free its device.')
    return f'<ul class="plumb-results">{"".join(f"<li>{line}</li>" for line in lines)}</ul>' if lines else ""


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


def summary(job: Job) -> str:
    """What the job works on, in a few words."""
    config = job.config
    match job.kind:
        case "generate":
            return f"{config.get('candidates')} candidates a sample from {model_name(config.get('model'))}"
        case "judge":
            if config.get("judge") == rules.NAME:
                return rules.NAME
            mode = MODES.get(config.get("mode", ""), "")
            with_lists = "with checklists" if config.get("checklists") else ""
            words = (config.get("model"), config.get("rubric"), mode, with_lists)
            return ", ".join(str(word) for word in words if word)
        case "checklist":
            return f"at most {config.get('items')} items a sample, by {config.get('model')}"
        case kind if kind in TRAINED:
            return _training_summary(job)
        case "merge":
            return f"adapter #{config.get('adapter')} into {model_name(config.get('model'))}"
        case "push":
            what = f"adapter #{config['adapter']}" if config.get("adapter") else f"{config.get('merged')} (merged)"
            return f"{what} to {config.get('repository')}"
        case "serve":
            count = len(config.get("adapters") or ())
            return f"{model_name(config.get('model'))} with {count} adapter{'' if count == 1 else 's'}"
    return ""


def _training_summary(job: Job) -> str:
    """The base and the data set; of a sweep's job its name, which tells in what it differs."""
    config = job.config
    words = f"{model_name(config.get('model'))} on {config.get('dataset')}"
    if job.sweep is not None and config.get("name"):
        words = str(config["name"])
    if config.get("start_adapter") is not None:
        words += f", from adapter #{config['start_adapter']}"
    return f"{words}, a trial step" if config.get("only_trial") else words


def model_name(model: object) -> str:
    """A base as it is shown: of a folder its name."""
    text = str(model)
    return Path(text).name if text.startswith("/") else text


def log(text: str, ended: bool = False, notes: Sequence[str] = ()) -> str:
    """What the worker told, and the log's tail; the style sheet keeps its last line in view."""
    told = "".join(f"<li>{escape(note)}</li>" for note in notes)
    told = f'<ul class="plumb-notes">{told}</ul>' if told else ""
    if not text.strip():
        empty = "The worker wrote nothing." if ended else "Nothing was written yet."
        return told or f'<p class="plumb-note">{empty}</p>'
    tail = f'<div class="plumb-log" tabindex="0" role="region" aria-label="Log"><pre>{escape(text)}</pre></div>'
    return told + tail


def hint(html: str) -> str:
    return f'<p class="plumb-hint">{html}</p>' if html else ""


def error(text: str) -> str:
    return f'<p class="plumb-error" role="alert">{escape(text)}</p>' if text else ""


def duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _kind(job: Job) -> str:
    return KIND_NAMES.get(job.kind, job.kind)


def _chip(job: Job) -> str:
    return f'<span class="plumb-chip plumb-chip-{job.status}">{job.status}</span>'


def _state_words(job: Job, position: int) -> str:
    match job.status:
        case JobStatus.QUEUED:
            return f"number {position} in the queue" if position else "in the queue"
        case JobStatus.STARTING:
            return "the worker is starting"
        case JobStatus.RUNNING | JobStatus.STOPPING:
            words = job.phase or ("answering" if job.kind == "serve" and job.port else "running")
            if job.total > 0:
                words += f": {_count(job.done)} of {_count(job.total)} {job.unit}".rstrip()
            return f"stopping ({words})" if job.status is JobStatus.STOPPING else words
    return job.reason


def _bar(job: Job) -> str:
    if job.total <= 0 or job.status is JobStatus.QUEUED:
        return ""
    percent = min(100.0, 100.0 * job.done / job.total)
    return (
        f'<span class="plumb-bar" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}"><span style="width:{percent:.1f}%"></span></span>'
    )


def _left_words(left: float | None) -> str:
    return f" · about {duration(left)} left" if left is not None else ""


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


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


def _when(stamp: str, now: datetime) -> str:
    ago = (now - _moment(stamp)).total_seconds()
    if ago < 60:
        words = "just now"
    elif ago < 86_400:
        words = f"{duration(ago // 60 * 60)} ago"
    else:
        words = stamp[:16].replace("T", " ") + " UTC"
    return f'<span title="{escape(stamp[:19].replace("T", " "))} UTC">{words}</span>'


def _moment(stamp: str) -> datetime:
    moment = datetime.fromisoformat(stamp)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _seconds_between(start: str, end: str) -> float:
    return (_moment(end) - _moment(start)).total_seconds()
