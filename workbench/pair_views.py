"""HTML of the Pairs page: the preview of a rule, a pair side by side, the data sets. Pure, all escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

from jobs.freezing import Contents, contents_of
from jobs.pairing import Preview
from storage.records import Dataset, PairView
from workbench.views import empty, thumbnail

_WIDTH, _HEIGHT, _BASE = 300, 92, 18


def histogram(spreads: Mapping[int, int], margin: int, most: int) -> str:
    """Samples by spread of quality (max − min), with the margin marked; an inline SVG.

    Args:
        spreads: spread → number of samples.
        margin: bars from here on make pairs.
        most: the largest spread that the rule's metrics allow.
    """
    highest = max(spreads.values(), default=0)
    if not highest:
        return ""
    last = max(most, *spreads)
    step = _WIDTH / (last + 1)
    every = 1 if last <= 12 else 2 if last <= 24 else 4
    bars = []
    for spread in range(last + 1):
        number = spreads.get(spread, 0)
        height = (_HEIGHT - 12) * number / highest
        kind = "in" if spread >= margin else "out"
        x = spread * step
        if number:
            bars.append(
                f'<rect class="{kind}" x="{x + 1:.1f}" y="{_HEIGHT - height:.1f}" width="{step - 2:.1f}" '
                f'height="{height:.1f}"><title>spread {spread}: {number} samples</title></rect>'
                f'<text class="n" x="{x + step / 2:.1f}" y="{_HEIGHT - height - 2:.1f}">{number}</text>'
            )
        if spread % every == 0:
            bars.append(f'<text x="{x + step / 2:.1f}" y="{_HEIGHT + 12}">{spread}</text>')
    mark = min(margin, last + 1) * step
    told = ", ".join(f"{number} with {spread}" for spread, number in sorted(spreads.items()))
    return (
        f'<svg class="pb-histogram" viewBox="0 -2 {_WIDTH} {_HEIGHT + _BASE}" role="img" '
        f'aria-label="Samples by spread of quality: {told}; margin {margin}">'
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>{"".join(bars)}'
        f'<line class="margin" x1="{mark:.1f}" x2="{mark:.1f}" y1="0" y2="{_HEIGHT}"/></svg>'
        '<p class="pb-sub pb-caption">Samples by spread of quality (best − worst); the line is the margin.</p>'
    )


def preview(found: Preview, margin: int, most: int) -> str:
    """What the rule would make."""
    if not found.spreads:
        if found.unscored:
            return empty(
                "No scores yet",
                f"{found.unscored:,} samples have answers, but none has two that are scored on all five metrics "
                "by those whose scores count here.",
                "/jobs?kind=judge",
                "Judge the candidates",
            )
        return empty(
            "No answers yet",
            "Pairs are made of scored answers. Let a model answer the samples first.",
            "/jobs?kind=generate",
            "Generate candidates",
        )
    facts = [
        ("pairs", f"{len(found.pairs):,}"),
        ("too close", f"{found.too_close:,}"),
        ("not scored", f"{found.unscored:,}"),
    ]
    if found.too_long:
        facts.append(("left out by the cap on length", f"{found.too_long:,}"))
    if found.pairs:
        facts += [
            ("chosen, mean length", f"{found.chosen_characters:.0f} characters"),
            ("rejected, mean length", f"{found.rejected_characters:.0f} characters"),
        ]
    return histogram(found.spreads, margin, most) + _facts(facts)


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return (
        '<dl class="pb-figures">' + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    ) + "</dl>"


def card(view: PairView) -> str:
    """One pair, side by side, with what can be done to it."""
    pair = view.pair
    image = thumbnail(view.images[0], "") if view.images else '<span class="pb-thumb none">text</span>'
    more = f'<span class="pb-more">+{len(view.images) - 1}</span>' if len(view.images) > 1 else ""
    reference = f'<span class="pb-sub"> · reference: {escape(view.reference)}</span>' if view.reference else ""
    buttons = "".join(
        f'<button type="button" class="pb-button small{" primary" if done else ""}" data-pair="{pair.id}" '
        f'data-verb="{verb}" aria-pressed="{"true" if done else "false"}" aria-label="{title} pair {pair.id}">'
        f"{title}</button>"
        for verb, title, done in (
            ("accept", "Accept", pair.status == "accepted"),
            ("reject", "Reject", pair.status == "rejected"),
        )
    )
    flip = (
        f'<button type="button" class="pb-button small" data-pair="{pair.id}" data-verb="flip" '
        f'aria-label="Flip pair {pair.id}" title="Swap chosen and rejected">⇄ Flip</button>'
    )
    return (
        f'<article class="pb-pair {pair.status}" data-card="{pair.id}" aria-label="Pair {pair.id}">'
        f'<a class="pb-pic" href="/?sample={pair.sample_id}" aria-label="Sample {pair.sample_id}">'
        f"{image}{more}</a>"
        f'<div class="pb-pair-body"><p class="pb-q">{escape(view.question)}{reference}</p>'
        f'<div class="pb-sides">{_side("chosen", view.chosen, pair.chosen_quality)}'
        f"{_side('rejected', view.rejected, pair.rejected_quality)}</div></div>"
        f'<div class="pb-pair-act"><p><span class="pb-chip {pair.status}">{pair.status}</span> '
        f'<span class="pb-sub">{_origin(view)} · {escape(pair.user)} · #{pair.id}</span></p>'
        f'<div class="pb-acts">{buttons}{flip}</div></div></article>'
    )


def _origin(view: PairView) -> str:
    """Where a pair comes from; that of a vote leads back to its conversation."""
    if view.conversation is None:
        if view.pair.imported is not None:
            return f"came with {escape(view.pair.imported)}"
        return f"by {view.pair.origin}"
    return f'by <a href="/chat?conversation={view.conversation}">{view.pair.origin} in a chat</a>'


def _side(name: str, text: str, quality: float | None) -> str:
    value = f'<span class="pb-sub"> quality {quality:g}</span>' if quality is not None else ""
    shown = escape(text) or '<i class="pb-sub">(an empty answer)</i>'
    return (
        f'<div class="pb-side-text {name}"><b>{name.capitalize()}</b>{value}<p class="pb-text">{shown}</p></div>'
    )


def contents(found: Contents, statuses: Sequence[str], contradicting: int = 0, href: str = "") -> str:
    """What a data set would hold if it were frozen now, and how many of its pairs contradict another."""
    if not statuses:
        return '<p class="pb-sub">Tick which pairs to freeze.</p>'
    if not found.pairs:
        return f'<p class="pb-sub">No pair is {escape(" or ".join(statuses))} yet: there is nothing to freeze.</p>'
    alone = "" if found.answers else " DPO alone can train on it: no answer is scored."
    return f'<p class="pb-sub">Would hold {found}.{alone}</p>' + contradiction(contradicting, href)


def contradiction(number: int, href: str) -> str:
    """A warning that pairs say the opposite of each other, with the way to them; "" where none do."""
    if not number:
        return ""
    return (
        f'<p class="pb-sub pb-problems" role="status"><b>{number:,} of these pairs contradict another</b> '
        f'(A over B, and B over A): <a href="{escape(href, quote=True)}">look at them</a> before you freeze.</p>'
    )


def datasets(found: Sequence[Dataset]) -> str:
    """The frozen data sets, newest first."""
    if not found:
        return '<p class="pb-sub">No data set yet. Training reads a frozen data set, never the live pairs.</p>'
    rows = "".join(dataset(entry) for entry in found)
    link = '<p class="pb-sub"><a href="/datasets">Look into them, compare, export</a></p>'
    return f'<div class="pb-sets">{rows}</div>{link}'


def dataset(entry: Dataset) -> str:
    """One data set with the way to train on it."""
    counts = entry.counts
    train = f"/jobs?kind=dpo&dataset={quote(entry.name, safe='')}"
    held = contents_of(entry)
    # Frozen before answers were kept: the other methods find nothing in it.
    inside = f"{held}" if held else "pairs alone: freeze again for SteerLM, rejection sampling and SFT"
    return (
        f'<article class="pb-set" aria-label="Data set {escape(entry.name, quote=True)}">'
        f'<div><a href="/datasets?dataset={entry.id}"><b>{escape(entry.name)}</b></a> '
        f'<code title="{escape(entry.hash)}">{escape(entry.hash[:12])}</code></div>'
        f'<p class="pb-sub">{counts["train"]:,} to train on, {counts["heldout"]:,} held out · '
        f"chosen {counts['chosen_characters']:g}, rejected {counts['rejected_characters']:g} characters · "
        f"{escape(entry.user)}</p>"
        f'<p class="pb-sub">{inside}</p>'
        f'<a class="pb-button small" href="{escape(train, quote=True)}">Train on it</a></article>'
    )
