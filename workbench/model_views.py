"""The Models page as HTML: the family, an adapter, runs side by side. Pure; every text from data is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from storage.adapters import AdapterUses
from storage.lifecycle import JobStatus
from storage.records import Adapter, Dataset
from storage.runs import HELDOUT, REPORT, Run
from workbench import compare, lineage
from workbench.charts import Series, line_chart
from workbench.job_words import KIND_NAMES
from workbench.model_cards import card_html, download
from workbench.model_desk import CURVES, Models, Opened, OpenedMerged, Runs
from workbench.views import empty, go, notice

# Four colours that the eye keeps apart; a fifth curve takes the first again, dashed.
_COLOURS = (0, 1, 2, 4)
NAMED = 6  # best runs that are named above the table
KEPT_APART = (
    "Runs are chosen by held-out figures alone. The report's come from pairs that were kept aside and looked at "
    "once, at the end; they are worth something as long as nobody chooses by them."
)


def tabs(runs: bool) -> str:
    """The two views."""
    links = (("Models", "/models", not runs), ("Runs compared", "/models?view=runs", runs))
    return (
        '<nav class="pb-tabs" aria-label="Views">'
        + "".join(
            f'<a class="pb-tab" href="{href}" data-go{" aria-current=page" if current else ""}>{title}</a>'
            for title, href, current in links
        )
        + "</nav>"
    )


# --- the family, and what is opened of it ---


def family(found: Models) -> str:
    """The picture; where there is none yet, what to do next."""
    if not found.forest:
        return empty(
            "No adapter yet",
            "A training leaves an adapter here, with its card and its family. It needs a frozen data set; make "
            'one on <a href="/pairs">Pairs</a>, then train on it.',
            "/jobs?kind=dpo",
            "Train an adapter",
        )
    problem = notice(found.problem, "bad")
    return f"{problem}{lineage.picture(found.forest, found.selected)}"


def opened(found: Models) -> str:
    """The facts of what is selected."""
    if found.opened is not None:
        return _adapter(found.opened)
    if found.merged is not None:
        return _merged(found.merged)
    return ""


def _adapter(found: Opened) -> str:
    adapter = found.adapter
    return (
        f'<section class="pm-open" aria-label="Adapter {escape(adapter.name, quote=True)}">'
        f"<h2>{escape(adapter.name)} <span class='pb-sub'>adapter #{adapter.id}</span></h2>"
        f"<nav class='pm-acts' aria-label='What to do with it'>{_acts(adapter)}</nav>"
        f"<div class='pm-facts'>{_facts(_adapter_facts(found))}"
        f"{_measured(found.metrics)}</div></section>"
    )


def _acts(adapter: Adapter) -> str:
    base = adapter.base_model
    links = (
        ("Chat with it", "/chat?" + urlencode({"adapter": adapter.id})),
        (
            "Train further",
            "/jobs?" + urlencode({"kind": "dpo", "start_adapter": adapter.id, "model": base}),
        ),
        ("Generate with it", "/jobs?" + urlencode({"kind": "generate", "adapter": adapter.id, "model": base})),
    )
    return "".join(
        f'<a class="pb-button small" href="{escape(href, quote=True)}">{title}</a>' for title, href in links
    )


def _adapter_facts(found: Opened) -> list[tuple[str, str]]:
    adapter = found.adapter
    method = KIND_NAMES.get(adapter.method, adapter.method)
    facts = [("Method", escape(method)), ("Base", escape(adapter.base_model))]
    if found.started is not None:
        facts.append(("Went on from", go(f"/models?adapter={found.started.id}", escape(found.started.name))))
    facts.append(("Training", f'<a href="/jobs?job={adapter.job_id}">job #{adapter.job_id}</a>'))
    if found.job is not None and found.job.sweep is not None:
        sweep = found.job.sweep
        facts[-1] = (
            "Training",
            f"{facts[-1][1]} of {go(f'/models?view=runs&sweep={sweep}', f'sweep #{sweep}')}",
        )
    if found.dataset is not None:
        facts += [*_dataset_facts(found.dataset)]
    facts.append(("Size", f"{adapter.bytes / 1e6:.1f} MB"))
    facts.append(("Made", f"{adapter.created_at[:16].replace('T', ' ')} UTC"))
    facts.append(("Files", f"<code title='sha256 of its files'>{escape(adapter.sha256[:16])}</code>"))
    return facts


def _dataset_facts(dataset: Dataset) -> list[tuple[str, str]]:
    counts = dataset.counts
    shown = f"{counts.get('train', 0):,} pairs to train on, {counts.get('heldout', 0):,} held out"
    if counts.get("scored_answers"):
        shown += f", {counts['scored_answers']:,} scored answers"
    others = "/models?" + urlencode({"view": "runs", "dataset": dataset.name})
    return [
        (
            "Data set",
            f'<a href="/pairs">{escape(dataset.name)}</a>: {shown} '
            f"({go(others, 'all runs on it')})<br>"
            f"<code title='sha256 of its rows'>{escape(dataset.hash[:16])}</code>",
        ),
        ("Labels", labels(dataset.rule)),
    ]


def labels(rule: Mapping[str, Any]) -> str:
    """Where a data set's labels come from, as its rule tells: its raters with their judgements, else the rule."""
    found = [_rater(one) for one in rule.get("raters") or () if isinstance(one, Mapping)]
    if found:
        return "<br>".join(found)
    statuses = [str(one) for one in rule.get("statuses") or ()]
    told = f"{escape(' and '.join(statuses))} pairs" if statuses else "its pairs"
    return f"{told}; the data set does not name its raters"


def _rater(rater: Mapping[str, Any]) -> str:
    words = [str(rater[key]) for key in ("name", "version", "mode") if rater.get(key)]
    kind = "a person" if rater.get("kind") == "person" else str(rater.get("kind") or "")
    told = [
        f"{number:,} {what if number != 1 else what[:-1]}"
        for what in ("judgements", "pairs")
        if isinstance(number := rater.get(what), int)
    ]
    counted = f": {', '.join(told)}" if told else ""
    return escape(" · ".join(words) + (f" ({kind})" if kind else "") + counted)


def _measured(metrics: Mapping[str, float]) -> str:
    """Held-out and reported figures, one row a metric."""
    rows = []
    for metric in compare.METRICS:
        keys = (HELDOUT + metric.name, REPORT + metric.name)
        if any(key in metrics for key in keys):
            cells = "".join(f"<td>{_number(metrics, key)}</td>" for key in keys)
            rows.append(f'<tr><th scope="row" title="{escape(metric.info)}">{metric.title}</th>{cells}</tr>')
    if not rows:
        return '<p class="pb-sub">Nothing was measured on held-out pairs.</p>'
    return (
        '<table class="pm-measured"><thead><tr><td></td><th scope="col">Held-out</th>'
        f'<th scope="col">Report</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _number(metrics: Mapping[str, float], key: str) -> str:
    return compare.shown(key, metrics.get(key))


def _merged(found: OpenedMerged) -> str:
    made = found.made
    source = escape(f"{made.adapter_name} (#{made.adapter})")
    if found.adapter is not None:
        source = go(f"/models?adapter={found.adapter.id}", escape(found.adapter.name))
    path = str(found.folder)
    use = "/jobs?" + urlencode({"kind": "generate", "model": path})
    train = "/jobs?" + urlencode({"kind": "dpo", "model": path})
    facts = [
        ("Made of", f"{source} in {escape(made.base_model)}"),
        ("Precision", escape(made.dtype)),
        ("Size", f"{found.bytes / 1e9:.2f} GB"),
        ("Made", f"{escape(made.created_at[:16].replace('T', ' '))} UTC by job #{escape(str(made.job))}"),
        ("Folder", f"<code>{escape(path)}</code>"),
    ]
    return (
        f'<section class="pm-open" aria-label="Merged weights {escape(found.folder.name, quote=True)}">'
        f"<h2>{escape(found.folder.name)} <span class='pb-sub'>full weights</span></h2>"
        f'<nav class="pm-acts" aria-label="What to do with it">'
        f'<a class="pb-button small" href="{escape(use, quote=True)}">Generate with it</a>'
        f'<a class="pb-button small" href="{escape(train, quote=True)}">Train on it</a></nav>'
        f'<div class="pm-facts">{_facts(facts)}</div></section>'
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    """Names and HTML."""
    return f'<dl class="pm-list">{"".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)}</dl>'


def card(found: Models) -> str:
    """The model card of what is selected, with its file."""
    shown = found.opened or found.merged
    if shown is None:
        return ""
    if not shown.card.strip():
        return '<p class="pb-sub">It came without a card.</p>'
    name = shown.adapter.name if isinstance(shown, Opened) else shown.folder.name
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
    return f"{download(shown.card, f'{plain}.md', 'text/markdown', 'Save as a file')}{card_html(shown.card)}"


def deletion(adapter: Adapter, uses: AdapterUses) -> str:
    """What goes with an adapter and what stays, before it is deleted."""
    size = f"{adapter.bytes / 1e6:.1f} MB"
    if uses.twins:
        goes = "Its entry goes; its files stay, since another adapter has the same ones."
    else:
        goes = f"Its entry, its files ({size}) and the copy of them in its training's run folder go."
    return (
        f'<div class="pb-notice bad" role="alert"><b>Delete {escape(adapter.name)}?</b> {goes} Job '
        f"#{adapter.job_id} with its log, curves and settings stays, and so do weights that it was merged into. "
        "<b>This cannot be undone.</b></div>"
    )


def queued(job_id: int, what: str) -> str:
    """A job that was just queued."""
    return (
        f'<div class="pb-notice good" role="status">{escape(what)} is queued as '
        f'<a href="/jobs?job={job_id}">job #{job_id}</a>.</div>'
    )


# --- runs side by side ---


def runs(found: Runs) -> str:
    """Filters, the table, the curves."""
    if not (found.choices.methods):
        return empty(
            "No training yet",
            "Trainings stand here side by side: what was set differently, and what came of it. A sweep queues "
            "several at once.",
            "/jobs?kind=dpo",
            "Train an adapter",
        )
    if not found.found.runs:
        return f'{_filters(found)}<p class="pb-hint">No run fits these filters. {_all_runs()}</p>'
    return f"{_filters(found)}{_notes(found)}{_table(found)}{_below(found)}{_curves(found)}"


def _all_runs() -> str:
    return go("/models?view=runs", "Show all runs")


def _filters(found: Runs) -> str:
    where, choices = found.address.where, found.choices
    metrics = [(one.name, one.title) for one in compare.METRICS]
    better = [(one.name, f"{one.title} ({one.better} is better)") for one in compare.METRICS if one.better]
    fields = (
        _select("dataset", "Data set", _named(choices.datasets), where.dataset),
        _select("base", "Base", _named(choices.bases), where.base),
        _select(
            "method", "Method", [(kind, KIND_NAMES.get(kind, kind)) for kind in choices.methods], where.method
        ),
        _select("sweep", "Sweep", [(str(one), f"#{one}") for one in choices.sweeps], where.sweep),
        _select("best", "Mark the best by held-out", better, found.found.by, every=False),
        _select("curve", "Curve of held-out", metrics, found.address.curve, every=False),
    )
    return f'<div class="pm-filters" role="group" aria-label="Filters">{"".join(fields)}</div>'


def _named(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, lineage.shortened(name, 40)) for name in names]


def _select(name: str, title: str, options: Sequence[tuple[str, str]], value: object, every: bool = True) -> str:
    chosen = "" if value is None else str(value)
    all_options = ([("", "all")] if every else []) + list(options)
    if chosen and chosen not in dict(all_options):
        all_options.append((chosen, chosen))
    shown = "".join(
        f'<option value="{escape(key, quote=True)}"{" selected" if key == chosen else ""}>{escape(text)}</option>'
        for key, text in all_options
    )
    return f'<label class="pm-field"><span>{title}</span><select data-query="{name}">{shown}</select></label>'


def _notes(found: Runs) -> str:
    notes = "".join(f'<p class="pb-hint pb-warn">{escape(note)}</p>' for note in found.found.notes)
    return f'{_best(found)}<p class="pb-hint">{KEPT_APART}</p>{notes}'


def _best(found: Runs) -> str:
    """The marked runs by name: in a long table the mark may be out of sight."""
    shown = found.found
    key = HELDOUT + shown.by
    best = [run for run in shown.runs if run.job.id in shown.best]
    if not best:
        return ""
    links = ", ".join(
        f'<a href="/jobs?job={run.job.id}">#{run.job.id} {escape(compare.method(run))}</a> '
        f"({compare.figure(run, key)})"
        for run in best[:NAMED]
    )
    more = f" and {len(best) - NAMED} more" if len(best) > NAMED else ""
    title = compare.BY_NAME[shown.by].title.lower()
    return f'<p class="pm-best-runs">Best by held-out {title}: {links}{more}</p>'


def _table(found: Runs) -> str:
    shown = found.found
    groups = [
        ("", 2),
        ("Settings that differ", len(shown.settings)),
        ("Held-out", len(shown.heldout)),
        ("Report", len(shown.report)),
        ("", 1),
    ]
    top = "".join(
        f'<th colspan="{span}" scope="colgroup" class="{_edge(title)}">{title}</th>'
        if title
        else f'<td colspan="{span}"></td>'
        for title, span in groups
        if span
    )
    heads = ['<th scope="col" class="pm-run">Run</th>', '<th scope="col">Data set</th>']
    heads += [f'<th scope="col"{_first(n)}>{escape(one.title)}</th>' for n, one in enumerate(shown.settings)]
    for columns, side in ((shown.heldout, "heldout"), (shown.report, "report")):
        heads += [_metric_head(one, n, side, shown.by) for n, one in enumerate(columns)]
    heads.append('<th scope="col" class="pm-first">Time</th>')
    body = "".join(_row(run, found) for run in shown.runs)
    return (
        '<div class="pm-table" tabindex="0" role="region" aria-label="Runs compared"><table>'
        f"<thead><tr>{top}</tr><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _edge(title: str) -> str:
    return "pm-first pm-report" if title == "Report" else "pm-first"


def _first(number: int) -> str:
    return "" if number else ' class="pm-first"'


def _metric_head(column: compare.Column, number: int, side: str, by: str) -> str:
    assert column.metric is not None
    metric = column.metric
    better = f"; {metric.better} is better" if metric.better else ""
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]
    classes = [f"pm-{side}", *([] if number else ["pm-first"])]
    if side == "heldout" and metric.name == by:
        classes.append("pm-by")
    return (
        f'<th scope="col" class="{" ".join(classes)}" title="{escape(metric.info + better, quote=True)}">'
        f'{metric.title}<span aria-hidden="true">{arrow}</span></th>'
    )


def _row(run: Run, found: Runs) -> str:
    shown, job = found.found, run.job
    ticked = " checked" if job.id in found.address.ticked else ""
    state = "" if job.status is JobStatus.DONE else f' <span class="pb-chip">{job.status}</span>'
    made = "".join(
        f'<span class="pm-made">{go(f"/models?adapter={one.id}", escape(lineage.shortened(one.name, 28)))}</span>'
        for one in run.adapters
    )
    cells = [
        f'<th scope="row" class="pm-run"><input type="checkbox" data-run="{job.id}"{ticked} '
        f'aria-label="Curve of run #{job.id}"><a href="/jobs?job={job.id}">#{job.id} '
        f"{escape(compare.method(run))}</a>"
        f"{state}{made}</th>",
        f"<td>{escape(run.dataset or compare.NONE)}</td>",
    ]
    cells += [
        f"<td{_first(number)}>{escape(compare.setting(run, one.key))}</td>"
        for number, one in enumerate(shown.settings)
    ]
    for columns, side in ((shown.heldout, "heldout"), (shown.report, "report")):
        for number, one in enumerate(columns):
            best = side == "heldout" and one.key == HELDOUT + shown.by and job.id in shown.best
            classes = " ".join(
                [f"pm-{side} pm-number", *([] if number else ["pm-first"]), *(["pm-best"] if best else [])]
            )
            mark = '<span class="pm-hidden"> (best)</span>' if best else ""
            cells.append(f'<td class="{classes}">{compare.figure(run, one.key)}{mark}</td>')
    cells.append(f'<td class="pm-first pm-number">{compare.took(run)}</td>')
    return f"<tr{' class=pm-winner' if job.id in shown.best else ''}>{''.join(cells)}</tr>"


def _below(found: Runs) -> str:
    number = len(found.found.runs)
    more = f" of {found.total:,}; narrow the filters to see others" if found.total > number else ""
    ticked = any(run.job.id in found.address.ticked for run in found.found.runs)
    unticked = f" · {go(found.address.search(runs=None), 'untick all')}" if ticked else ""
    told = f"{number:,} run{'' if number == 1 else 's'}{more}{unticked}"
    return (
        f'<div class="pm-below"><span class="pb-sub">{told}</span>'
        f"{download(compare.as_csv(found.found), 'runs.csv', 'text/csv', 'Save as CSV')}"
        f"{download(compare.as_markdown(found.found), 'runs.md', 'text/markdown', 'Save as Markdown')}</div>"
    )


def _curves(found: Runs) -> str:
    metric = compare.BY_NAME[found.address.curve]
    limits = (0.0, 1.0) if metric.name.endswith("_accuracy") else None
    series = [
        Series(
            compare.label(run, found.found.settings),
            [(float(step), value) for step, value in points],
            _COLOURS[number % len(_COLOURS)],
            dashed=number >= len(_COLOURS),
        )
        for number, (run, points) in enumerate(found.curves)
    ]
    chart = line_chart(f"{metric.title}, held-out", series, "step", limits)
    if not chart:
        return f'<p class="pb-hint">No run shown has a held-out curve of {escape(metric.title.lower())}.</p>'
    have = sum(HELDOUT + metric.name in run.metrics for run in found.found.runs)
    ticked = found.address.ticked
    which = "" if ticked or have <= CURVES else f"The newest {CURVES} are drawn; tick runs to choose others."
    if len(ticked) > CURVES:
        which = f"The first {CURVES} of the ticked runs are drawn."
    told = f'<p class="pb-hint">{which}</p>' if which else ""
    return f'<div class="pm-curves">{told}{chart}</div>'


def hint(text: str) -> str:
    return f'<p class="pb-hint pb-warn">{escape(text)}</p>' if text else ""
