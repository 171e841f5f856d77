"""Pictures of the Agreement page: the confusion matrix, and means with their intervals. Pure, all escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from workbench.agreement_stats import Estimate, Ints
from workbench.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ticks

_FOOT = BOTTOM + 14  # two lines under each place: its name and how many answers it has
_DEEPEST = 65  # per cent of the accent's colour
_APART = 14  # between the marks of two series at one place


@dataclass(frozen=True)
class Band:
    """One series of means: at each place (n, mean with its interval). `told` is what the legend adds."""

    label: str
    means: Sequence[tuple[int, Estimate]]
    told: str = ""


def number(value: float, digits: int = 2) -> str:
    """A number as people read it, with a real minus sign and without a negative zero."""
    shown = f"{value:.{digits}f}"
    return f"{0:.{digits}f}" if float(shown) == 0 else shown.replace("-", "−")


def spread(found: Estimate, digits: int = 2) -> str:
    """The interval in words: "0.58 to 0.66"; "" where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"{number(found.low, digits)} to {number(found.high, digits)}"


def heat_map(counts: Ints, first: str, second: str, caption: str) -> str:
    """How often the first gave i (row) where the second gave j (column), as a table that is shaded like a map."""
    levels = range(len(counts))
    most = int(counts.max()) or 1
    head = "".join(f'<th scope="col">{level}</th>' for level in levels)
    rows = []
    for given in levels:
        side = (
            f'<th scope="rowgroup" class="side" rowspan="{len(counts)}"><span>{escape(first)}</span></th>'
            if given == 0
            else ""
        )
        cells = "".join(_cell(int(counts[given, other]), most, given == other) for other in levels)
        rows.append(f'<tr>{side}<th scope="row">{given}</th>{cells}</tr>')
    size = " fine" if len(counts) > 5 else ""
    return (
        f'<table class="pb-heat{size}"><caption>{escape(caption)}</caption>'
        '<colgroup><col class="side"><col class="level"></colgroup>'
        f'<thead><tr><td colspan="2"></td><th scope="colgroup" class="side" colspan="{len(counts)}">'
        f'{escape(second)}</th></tr><tr><td colspan="2"></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(count: int, most: int, alike: bool) -> str:
    # The root lets small counts be seen beside large ones; the deepest shade still carries the page's ink.
    share = _DEEPEST * (count / most) ** 0.5
    classes = " ".join(name for name, holds in (("same", alike), ("none", not count)) if holds)
    return f'<td class="{classes}" style="--share: {share:.0f}%">{count}</td>'


def interval_chart(
    title: str,
    places: Sequence[str],
    bands: Sequence[Band],
    *,
    x_label: str,
    highest: int,
    reference: float | None = None,
) -> str:
    """Means with 95 % intervals at named places, one mark for each series, as an HTML figure.

    Args:
        places: names under the horizontal axis, in order; each band has a mean for each of them.
        highest: the largest score that can be; marks never leave 0 to highest.
        reference: a value drawn as a dashed line across.
    """
    values = [value for band in bands for _, mean in band.means for value in (mean.value, mean.low, mean.high)]
    known = [value for value in [*values, reference] if value is not None]
    if not known:
        return ""
    low, high = _range(min(known), max(known), highest)
    marks = ticks(low, high, 5)
    frame = _Frame(len(places), marks[0], marks[-1])
    body = [*_grid(frame, marks), *_places(frame, places, bands, x_label)]
    if reference is not None:
        y = frame.y(reference)
        body.append(
            f'<line class="mean" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}">'
            f"<title>mean of all: {number(reference)}</title></line>"
        )
    for index, band in enumerate(bands):
        body += _band(frame, places, band, index, len(bands))
    described = "; ".join(f"{band.label}: {_described(places, band)}" for band in bands)
    return (
        f'<figure class="pb-marks"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 14}" role="img" aria-label="{escape(f"{title}. {described}")}">'
        f"{''.join(body)}</svg>{_legend(bands)}</figure>"
    )


@dataclass(frozen=True)
class _Frame:
    places: int
    low: float
    high: float

    def x(self, place: int) -> float:
        return LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / self.places

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _range(low: float, high: float, highest: int) -> tuple[float, float]:
    """At least a quarter of the scale, so that no mere trifle looks like a slope."""
    least = highest / 4
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    return max(0.0, low), min(float(highest), high)


def _grid(frame: _Frame, marks: Sequence[float]) -> list[str]:
    parts = []
    for mark in marks:
        y = frame.y(mark)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{mark:g}</text>')
    return parts


def _places(frame: _Frame, places: Sequence[str], bands: Sequence[Band], x_label: str) -> list[str]:
    parts = []
    bottom = HEIGHT - BOTTOM
    # With many letters (26 candidates) only some are named; all are drawn.
    every = 1 + len(places) // 14
    for place, name in enumerate(places):
        if place % every:
            continue
        x = frame.x(place)
        n = " / ".join(f"{n:,}" for n in dict.fromkeys(band.means[place][0] for band in bands))
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(name)}</text>')
        if len(places) <= 10:
            parts.append(f'<text class="n" x="{x:.1f}" y="{bottom + 28}" text-anchor="middle">n {n}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT + 9}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _band(frame: _Frame, places: Sequence[str], band: Band, index: int, bands: int) -> list[str]:
    parts = []
    aside = (index - (bands - 1) / 2) * min(_APART, (WIDTH - LEFT - RIGHT) / frame.places / 2)
    placed = []
    for place, (n, mean) in enumerate(band.means):
        if mean.value is None:
            continue
        x, y = frame.x(place) + aside, frame.y(mean.value)
        placed.append(f"{x:.1f},{y:.1f}")
        told = f"{band.label}, {places[place]}: {number(mean.value)}"
        told += f" ({spread(mean)})" if mean.low is not None else f" ({mean.why})"
        line = (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(mean.low):.1f}" y2="{frame.y(mean.high):.1f}"/>'
            if mean.low is not None and mean.high is not None
            else ""
        )
        parts.append(
            f'<g class="s{index}">{line}{_mark(index, x, y)}<title>{escape(told)}, {n:,} answers</title></g>'
        )
    if len(placed) > 1:
        parts.insert(0, f'<polyline class="s{index}" points="{" ".join(placed)}"/>')
    return parts


def _mark(index: int, x: float, y: float) -> str:
    """A circle or a square: the two series differ without their colours, too."""
    if index == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'


def _described(places: Sequence[str], band: Band) -> str:
    means = [
        f"{place} {number(mean.value)}"
        for place, (_, mean) in zip(places, band.means, strict=True)
        if mean.value is not None
    ]
    return ", ".join([*means, band.told] if band.told else means)


def _legend(bands: Sequence[Band]) -> str:
    entries = "".join(
        f'<span class="pb-key"><svg viewBox="0 0 12 12" aria-hidden="true"><g class="s{index}">'
        f"{_mark(index, 6, 6)}</g></svg><span>{escape(band.label)} "
        f'<span class="pb-sub">{escape(band.told)}</span></span></span>'
        for index, band in enumerate(bands)
    )
    return f'<div class="pb-legend">{entries}</div>'
