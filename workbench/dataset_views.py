"""Frozen data sets as HTML: the list, one in detail, two against each other. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from storage.dataset_compare import SHOWN, Comparison, Lengths
from storage.exports.writing import FORMATS
from storage.records import Dataset, DatasetRow, Job
from storage.samples import images_of

FORMAT_WORDS = {
    "jsonl": "JSONL and images: comes back into another Plumb with the same hash",
    "trl": "TRL: parquet with images inside, for DPOTrainer",
    "llava": "LLaVA: conversations that end with the chosen answer",
    "steerlm": "SteerLM: a row a scored answer with its attribute string",
    "oumi": "Oumi: vision-DPO lines",
}


def listed(found: Sequence[Dataset], chosen: int | None) -> str:
    """All data sets, newest first."""
    if not found:
        return (
            '<p class="pb-empty">No data set yet. Accept pairs on <a href="/pairs">Pairs</a> and freeze them '
            "under a name: training reads frozen data sets alone.</p>"
        )
    rows = "".join(
        f'<tr{" class=chosen" if one.id == chosen else ""}><td><a href="/datasets?dataset={one.id}">'
        f"{escape(one.name)}</a></td><td class=num>{one.counts['train']:,}</td>"
        f"<td class=num>{one.counts['heldout']:,}</td><td><code>{escape(one.hash[:8])}</code></td>"
        f"<td>{escape(one.user)}</td><td>{escape(one.created_at[:10])}</td></tr>"
        for one in found
    )
    head = (
        "<tr><th>Name</th><th class=num>Train</th><th class=num>Held out</th>"
        "<th>Hash</th><th>By</th><th>On</th></tr>"
    )
    return f'<table class="ps-table">{head}{rows}</table>'


def details(
    one: Dataset,
    chosen: Lengths,
    rejected: Lengths,
    images: Mapping[str, int],
    jobs: Sequence[Job],
    others: Sequence[Dataset],
) -> str:
    """Everything that is known of one data set, and what can be done with it."""
    facts = [
        ("Hash", f"<code>{escape(one.hash)}</code>"),
        ("Frozen", f"by {escape(one.user)} on {escape(one.created_at[:16].replace('T', ' '))} UTC"),
        (
            "Pairs",
            f"{one.counts['train']:,} to train on, {one.counts['heldout']:,} held out, of "
            f"{one.counts['samples']:,} samples",
        ),
        (
            "Images",
            f"{images['train']:,} in the part to train on, {images['heldout']:,} in the held-out part, "
            f"{images['both']:,} in both",
        ),
        *_answers(one),
        ("Rule", _rule(one.rule)),
        ("Raters", _raters(one.rule)),
        ("Trained on by", _jobs(jobs)),
    ]
    told = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return (
        f"<h2>{escape(one.name)}</h2><dl class=ps-facts>{told}</dl>{_bars(chosen, rejected)}{_exports(one)}"
        f"{_compare_form(one, others)}"
    )


def _answers(one: Dataset) -> list[tuple[str, str]]:
    if "scored_answers" not in one.counts:
        return []
    counts = one.counts
    told = f"{counts['scored_answers']:,} scored ones of {counts['scored_samples']:,} samples, "
    return [("Answers", f"{told}{counts['references']:,} references")]


def _rule(rule: Mapping[str, Any]) -> str:
    words = [f"{' and '.join(rule.get('statuses', ()))} pairs", f"{rule.get('heldout_percent', 0):g} % held out"]
    words += [f"split by image with seed {rule['seed']}"] if "seed" in rule else []
    words += [f"scores of {rule['whose_scores']}"] if "whose_scores" in rule else []
    made = "".join(
        f"<li>{one['pairs']:,} pairs by {escape(_settings(one['rule']))}</li>"
        for one in rule.get("pair_rules", ())
    )
    return escape(", ".join(words)) + (f"<ul>{made}</ul>" if made else "")


def _settings(rule: Any) -> str:
    if not isinstance(rule, dict):
        return "hand"
    told = {name: " + ".join(value) if isinstance(value, list) else value for name, value in rule.items() if value}
    return ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in told.items())


def _raters(rule: Mapping[str, Any]) -> str:
    found = [
        f"<li>{escape(' '.join(filter(None, (one['name'], one.get('version'), one.get('mode')))))}: "
        f"{one.get('judgements', one.get('pairs', 0)):,} {'judgements' if 'judgements' in one else 'pairs'}</li>"
        for one in rule.get("raters", ())
    ]
    return f"<ul>{''.join(found)}</ul>" if found else "not kept"


def _jobs(jobs: Sequence[Job]) -> str:
    if not jobs:
        return "no job yet"
    return ", ".join(f'<a href="/jobs?job={job.id}">job {job.id} ({escape(job.kind)})</a>' for job in jobs)


def _bars(chosen: Lengths, rejected: Lengths) -> str:
    """Mean lengths side by side: judges like long answers, and DPO learns to write them."""
    most = max(chosen.mean, rejected.mean, 1.0)
    rows = "".join(
        f'<div class="ps-bar"><span class="ps-bar-name">{name}</span><span class="ps-bar-track">'
        f'<span class="ps-bar-fill {name}" style="width:{100 * one.mean / most:.1f}%"></span></span>'
        f"<span>mean {one.mean:g}, median {one.median:g}, longest {one.longest:,}</span></div>"
        for name, one in (("chosen", chosen), ("rejected", rejected))
    )
    return f'<h3>Characters of the answers</h3><div role="img" aria-label="lengths of the answers">{rows}</div>'


def _exports(one: Dataset) -> str:
    links = "".join(
        f'<li><a class="pb-button small" download href="/api/datasets/{one.id}/export.zip?format={form}">'
        f"{form}</a> "
        f"{escape(FORMAT_WORDS[form])}</li>"
        for form in FORMATS
    )
    push = f"python -m jobs push-dataset {one.name!r} OWNER/REPOSITORY --format trl"
    return (
        f'<h3>Export</h3><ul class="ps-exports">{links}</ul>'
        '<p class="pb-sub">A zip each; the download begins when its files are written. To a hub, with HF_TOKEN '
        f"in the environment: <code>{escape(push)}</code></p>"
    )


def _compare_form(one: Dataset, others: Sequence[Dataset]) -> str:
    options = "".join(f'<option value="{other.id}">{escape(other.name)}</option>' for other in others)
    if not options:
        return ""
    return (
        '<h3>Compare</h3><form action="/datasets" method="get" class="ps-compare">'
        f'<input type="hidden" name="dataset" value="{one.id}"><label>with '
        f'<select name="with">{options}</select></label> '
        '<button class="pb-button small" type="submit">Compare</button></form>'
    )


def rows(found: Sequence[DatasetRow], heading: str) -> str:
    """Some pairs to look at."""
    shown = "".join(_pair(row) for row in found)
    return f"<h3>{escape(heading)}</h3>{shown}" if shown else ""


def _pair(row: DatasetRow) -> str:
    images = "".join(
        f'<img src="/thumbnails/{sha256}" alt="image of the prompt" loading="lazy" width="96">'
        for sha256 in images_of(row.row["messages"])
    )
    question = row.row["messages"][-1]["content"]
    text = question if isinstance(question, str) else " ".join(p["text"] for p in question if p["type"] == "text")
    sides = "".join(
        f'<div class="ps-side {name}"><b>{name}</b> {escape(row.row[name]) or "<i>(empty)</i>"}</div>'
        for name in ("chosen", "rejected")
    )
    return f'<article class="ps-pair">{images}<div><p>{escape(text)}</p>{sides}</div></article>'


def comparison(first: Dataset, second: Dataset, found: Comparison) -> str:
    """Two data sets against each other."""
    one, other = escape(first.name), escape(second.name)
    numbers = [
        ("in both, alike", found.same),
        ("of these in different parts (train here, held out there)", found.moved),
        ("in both, chosen and rejected the other way round", found.turned_number),
        (f"only in {one}", found.only_first_number),
        (f"only in {other}", found.only_second_number),
    ]
    told = "".join(f"<tr><td>{name}</td><td class=num>{number:,}</td></tr>" for name, number in numbers)
    lengths = "".join(
        f"<tr><td>{name} characters, mean</td><td class=num>{first.counts[key]:g}</td>"
        f"<td class=num>{second.counts[key]:g}</td></tr>"
        for name, key in (("chosen", "chosen_characters"), ("rejected", "rejected_characters"))
    )
    rules = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(first.rule.get(name)))}</td>"
        f"<td>{escape(str(second.rule.get(name)))}</td></tr>"
        for name in sorted({*first.rule, *second.rule} - {"raters", "pair_rules"})
        if first.rule.get(name) != second.rule.get(name)
    )
    same = "the same rows (equal hashes)" if first.hash == second.hash else "different hashes"
    return (
        f"<h2>{one} against {other}: {same}</h2>"
        f'<table class="ps-table"><tr><th>Pairs</th><th class=num>Number</th></tr>{told}</table>'
        f'<table class="ps-table"><tr><th></th><th>{one}</th><th>{other}</th></tr>{lengths}{rules}'
        f"<tr><td>raters</td><td>{_raters(first.rule)}</td><td>{_raters(second.rule)}</td></tr></table>"
        + rows(found.turned, f"Turned round, as {first.name} has them (first {SHOWN})")
        + rows(found.only_first, f"Only in {first.name} (first {SHOWN})")
        + rows(found.only_second, f"Only in {second.name} (first {SHOWN})")
    )
