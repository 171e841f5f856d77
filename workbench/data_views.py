"""The Data page as HTML: how far an arrival is, what an import would do, what it did, what is there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from storage.finding import SampleFilter
from storage.imports.done import COUNTED, Source
from storage.imports.intake import Report
from storage.imports.staging import Staged, told_passed
from storage.imports.survey import Survey
from storage.units import in_words
from workbench.data_desk import Arrival
from workbench.data_preview import Preview, Thumbnail
from workbench.job_words import duration, when
from workbench.views import empty, link, notice

_LONGEST = 600  # characters of a text in the preview
_DOING = {"fetching": "Fetching", "unpacking": "Unpacking", "looking": "Looking through", "importing": "Importing"}

INTRODUCTION = """<h2>Bring data</h2><p class="pb-sub">Rows as .jsonl, .json, .parquet or .arrow, with their
images, or a zip of all. You see what would arrive before it is imported.</p>"""

#: kind → (what the list of kinds says, what a row is).
KINDS: Mapping[str, tuple[str, str]] = {
    "llava": ("LLaVA conversations", '{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}'),
    "vqa-rad": ("VQA-RAD", '{"qid", "image_name" | "image", "question", "answer"}'),
    "jsonl": (
        "Plumb's own rows",
        '{"id"?, "images"?, "prompt" | "messages", "reference"?, "split"?, "candidates"?, "chosen"?, "rejected"?}',
    ),
    "rlhf-v": ("RLHF-V, RLAIF-V", '{"question", "chosen", "rejected", "image" | "image_path"}'),
    "vlfeedback": (
        "VLFeedback",
        '{"id", "prompt", "image", "completions": [{"model", "response", "annotations"}]}',
    ),
    "trl": ("TRL preferences", '{"images"?, "prompt"?, "chosen", "rejected"}, texts or messages'),
}


def title(name: str) -> str:
    """Above the form: what it is about."""
    return f"<h2>{escape(_short(name, 80))}</h2>"


def kind_help(kind: str) -> str:
    """What a row of a kind is."""
    return f'<p class="pi-row">A row: <code>{escape(KINDS[kind][1])}</code></p>' if kind in KINDS else ""


def status(arrival: Arrival | None, others: Sequence[Arrival]) -> str:
    """How far it is, and who else imports."""
    parts = []
    if arrival is not None:
        parts.append(_own(arrival))
    for other in others:
        far = f", {other.done:,} of {other.total:,} rows" if other.stage == "importing" else ", waiting"
        parts.append(
            f'<p class="pb-sub" data-busy>{escape(other.user)} imports {escape(_short(other.name, 80))}{far}.</p>'
        )
    return "".join(parts)


def _own(arrival: Arrival) -> str:
    name = escape(_short(arrival.name, 80))
    problem = notice(arrival.problem, "bad") if arrival.problem else ""
    if arrival.stage == "waiting":
        behind = f" It begins after {escape(arrival.behind)}." if arrival.behind else ""
        return f'<div class="pb-notice" role="status" data-busy>The import of {name} waits.{behind}</div>'
    if arrival.busy:
        return _bar(arrival, name)
    if arrival.report is not None and not arrival.problem:
        return finished(arrival, arrival.report)
    return problem


def _bar(arrival: Arrival, name: str) -> str:
    show = in_words if arrival.unit == "bytes" else _number
    if arrival.total:
        far = f"{show(arrival.done)} of {show(arrival.total)} {'' if arrival.unit == 'bytes' else arrival.unit}"
        bar = f'<progress max="{arrival.total}" value="{min(arrival.done, arrival.total)}"></progress>'
    else:
        far = f"{show(arrival.done)} {arrival.unit}" if arrival.done else ""
        bar = "<progress></progress>"
    report = arrival.report if arrival.stage == "importing" else None
    sofar = ""
    if report is not None:
        broken = f", {report.broken_number:,} broken" if report.broken_number else ""
        sofar = f'<p class="pb-sub">{report.added:,} added, {report.known:,} known{broken}</p>'
    return (
        f'<div class="pi-work" data-busy><p><b>{_DOING[arrival.stage]} {name}</b></p>'
        f'<div class="pb-progress" role="status">{bar}<span>{far}</span></div>{sofar}</div>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}"


def finished(arrival: Arrival, report: Report) -> str:
    """The report of an import that has ended."""
    source = arrival.choice.source if arrival.choice else ""
    told = escape(report.told().splitlines()[0])
    kind = "good" if report.added or report.known else "bad"
    if report.halted:
        head = f"Cancelled after {arrival.done:,} rows: {told}. What is in stays; a new import adds the rest."
        kind = "info"
    else:
        head = f"{told}, in {duration(max(1.0, arrival.seconds))}."
    rows = _broken(report.broken, report.broken_number, "left out")
    go = ""
    if report.added or report.known:
        href = escape("/" + link(SampleFilter(source=source)), quote=True)
        go = f'<p class="pi-next"><a class="pb-button primary" href="{href}">See the samples</a></p>'
    return f'<div class="pb-notice {kind}" role="status">{head}</div>{rows}{go}'


def outlook(arrival: Arrival | None) -> str:
    """What an import would do: numbers, broken rows, the first samples."""
    if arrival is None or arrival.staged is None or arrival.stage in ("done", "importing", "waiting", "failed"):
        return ""
    if arrival.outlook is None:
        return '<p class="pb-list-note">Looking through the rows …</p>' if arrival.busy else ""
    found = arrival.outlook
    cards = "".join(_card(one) for one in arrival.previews)
    head = f"<h2>The first {len(arrival.previews)} samples</h2>" if len(arrival.previews) > 1 else ""
    if not cards:
        kind = arrival.choice.kind if arrival.choice else ""
        cards = empty(
            "No row can be read",
            f"As {escape(KINDS.get(kind, (kind, ''))[0])}, each row is broken; the reasons stand above. Choose "
            "another kind, or other files of rows.",
        )
    broken = _broken(found.broken, found.broken_number, "will be left out")
    return (
        f'{_figures(found, arrival.staged)}{_problems(arrival)}{broken}{head}<div class="pi-cards">{cards}</div>'
    )


def _figures(found: Survey, staged: Staged) -> str:
    good = found.rows - found.broken_number
    values = [("Rows", found.rows), ("New", good - found.known), ("Known already", found.known)]
    values += [("Broken", found.broken_number)] if found.broken_number else []
    values += [("Images named", found.images), ("Image files", staged.pictures)]
    more = (("Candidates", found.candidates), ("Pairs", found.pairs), ("Rated answers", found.ratings))
    values += [one for one in more if one[1]]
    cells = "".join(f"<div><dt>{name}</dt><dd>{number:,}</dd></div>" for name, number in values)
    return f'<dl class="pb-figures">{cells}</dl>'


def _problems(arrival: Arrival) -> str:
    told = []
    if arrival.guess is not None:
        told += [escape(why) for why in arrival.guess.problems.values()]
    if arrival.staged is not None and arrival.staged.passed:
        told.append(f"Not read: {escape(told_passed(arrival.staged.passed))}.")
    return "".join(f'<p class="pb-sub pi-passed">{one}</p>' for one in told)


def _broken(broken: Mapping[str, str], number: int, left_out: str) -> str:
    if not number:
        return ""
    items = "".join(f"<li><b>{escape(place)}</b> {escape(_short(why, 400))}</li>" for place, why in broken.items())
    more = f'<p class="pb-sub">… and {number - len(broken):,} more</p>' if number > len(broken) else ""
    row = "row is" if number == 1 else "rows are"
    opened = "open" if number <= 5 else ""
    return (
        f'<details class="pi-broken" {opened}><summary>{number:,} {row} broken and {left_out}</summary>'
        f"<ol>{items}</ol>{more}</details>"
    )


def _card(one: Preview) -> str:
    pictures = "".join(map(_picture, one.pictures))
    if one.more_pictures:
        pictures += f'<span class="pb-sub">and {one.more_pictures} more</span>'
    facts = [escape(one.place)]
    facts += [f"{one.turns} turns"] if one.turns > 1 else []
    facts += [f"split {escape(_short(one.split, 40))}"] if one.split else []
    reference = f"<dt>Reference</dt><dd>{escape(_short(one.reference, _LONGEST))}</dd>" if one.reference else ""
    answers = "".join(
        f"<li>{f'<b>{word}</b> ' if word else ''}{escape(_short(text, 200))}</li>"
        for word, text in one.answers[:4]
    )
    if len(one.answers) > 4:
        answers += f'<li class="pb-sub">and {len(one.answers) - 4} more</li>'
    if answers:
        answers = f"<dt>{len(one.answers)} candidates</dt><dd><ul>{answers}</ul></dd>"
    body = f"<dl>{reference}{answers}</dl>" if reference or answers else ""
    return (
        f'<article class="pi-card"><div class="pi-pictures">{pictures or _NO_PICTURE}</div>'
        f'<div class="pi-text"><p class="pb-sub">{" · ".join(facts)}</p>'
        f'<p class="pi-question">{escape(_short(one.question, _LONGEST))}</p>{body}</div></article>'
    )


_NO_PICTURE = '<span class="pb-thumb none">text</span>'


def _picture(one: Thumbnail) -> str:
    name = escape(one.name, quote=True)
    if one.data:
        return f'<img src="data:image/webp;base64,{one.data}" alt="{name}" title="{name}">'
    return f'<span class="pi-no-picture" title="{name}">{escape(_short(one.why, 120))}</span>'


def sources(found: Sequence[Source], now: datetime) -> str:
    """What is there, by source; a link leads to its samples."""
    if not found:
        return empty(
            "No samples yet",
            'Upload files on the left, name a data set of the hub, or <a href="/">load the demo</a>.',
        )
    rows = "".join(_source(one, now) for one in found)
    return (
        '<table class="pi-sources"><thead><tr><th>Source</th><th class="pi-number">Samples</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _source(one: Source, now: datetime) -> str:
    href = escape("/" + link(SampleFilter(source=one.name)), quote=True)
    number = f"{COUNTED:,}+" if one.samples >= COUNTED else f"{one.samples:,}"
    last = ""
    if one.last is not None:
        last = f'<span class="pb-sub">{when(one.last.at, now)} by {escape(one.last.user)}</span>'
    return (
        f'<tr><td><a href="{href}"><bdi>{escape(_short(one.name, 80))}</bdi></a>{last}</td>'
        f'<td class="pi-number">{number}</td></tr>'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
