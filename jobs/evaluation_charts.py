"""Pictures of evaluations as inline SVG: bars of categories, curves over a training setting (pure).

Colours are CSS variables with a fallback, so that one picture serves the page, light and dark, and a report that
stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from jobs.benchmarks.measures import Figure
from jobs.evaluation_table import number, spread

COLOURS = ("#0f766e", "#7c3aed", "#c2620a", "#2563a8")
MOST_SERIES = len(COLOURS)
MOST_CATEGORIES = 24

_INK, _DIM, _LINE = (
    f"var(--pb-{name}, {plain})" for name, plain in (("ink", "#17202b"), ("dim", "#5b6777"), ("line", "#dfe4ea"))
)
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 10, 40
_WIDTH, _HEIGHT = 420, 236
_NAMES = 150  # the column of names beside bars
_BAR, _GAP = 11, 9

Scale = Callable[[float], float]  # where a value lies on the paper


@dataclass(frozen=True)
class Bars:
    """A model's figures by category."""

    label: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Curve:
    """Points (x, figure) sorted by x; several at one x are runs with other seeds, and the line is their mean."""

    label: str
    points: Sequence[tuple[float, Figure]]


def colour(place: int) -> str:
    """A CSS colour."""
    return f"var(--ev-{place}, {COLOURS[place]})"


def bars(title: str, series: Sequence[Bars], most: float | None, digits: int) -> str:
    """Horizontal bars with 95 % intervals, up to four models a category; "" where there is nothing.

    Args:
        most: the best score that there is, the end of the axis; None: as far as the bars reach.
    """
    series = [one for one in series if one.figures][:MOST_SERIES]
    names = list(dict.fromkeys(name for one in series for name in one.figures))[:MOST_CATEGORIES]
    reach = [
        value
        for one in series
        for figure in one.figures.values()
        for value in (figure.value, figure.high)
        if value is not None
    ]
    if not names or not reach:
        return ""
    marks = _ticks(0.0, most or max(reach), 5)
    end = marks[-1]
    each = _BAR * len(series) + _GAP
    height = 6 + each * len(names) + 24
    width = 620

    def x(value: float) -> float:
        return _NAMES + max(0.0, min(1.0, value / end)) * (width - _NAMES - 52)

    body = []
    for mark in marks:
        body.append(_line(x(mark), 4, x(mark), height - 20, _LINE))
        body.append(_text(x(mark), height - 6, f"{mark:g}", "middle"))
    for place, name in enumerate(names):
        top = 6 + place * each
        shown = name if len(name) <= 24 else f"{name[:23]}…"
        body.append(
            f"<g>{_text(_NAMES - 8, top + _BAR * len(series) / 2 + 4, shown, 'end', _INK)}"
            f"<title>{escape(name)}</title></g>"
        )
        for index, one in enumerate(series):
            if (figure := one.figures.get(name)) is None or figure.value is None:
                continue
            body.append(_bar(one.label, name, figure, index, top + index * _BAR, x, digits))
    told = "; ".join(
        f"{one.label}: "
        + ", ".join(f"{name} {number(one.figures[name].value, digits)}" for name in names if name in one.figures)
        for one in series
    )
    return _figure(title, f"{title}. {told}", width, height, body, [one.label for one in series])


def _bar(label: str, name: str, figure: Figure, index: int, top: float, x: Scale, digits: int) -> str:
    assert figure.value is not None
    middle = top + (_BAR - 2) / 2
    end = x(figure.value)
    parts = [
        f'<rect x="{_NAMES}" y="{top:.1f}" width="{max(0.5, end - _NAMES):.1f}" height="{_BAR - 2}" rx="1.5"'
        f' style="fill:{colour(index)}" fill-opacity="0.78"/>'
    ]
    last = end
    if figure.low is not None and figure.high is not None:
        low, last = x(figure.low), max(end, x(figure.high))
        parts.append(_line(low, middle, x(figure.high), middle, _INK, 1.2))
        parts += [_line(at, middle - 2.5, at, middle + 2.5, _INK, 1.2) for at in (low, x(figure.high))]
    parts.append(_text(last + 5, middle + 3.5, number(figure.value, digits), "start", size=10))
    told = f"{label}, {name}: {number(figure.value, digits)}"
    told += f" ({spread(figure, digits)})" if figure.low is not None else ""
    return f"<g>{''.join(parts)}<title>{escape(f'{told}, {figure.items:,} items')}</title></g>"


def curves(
    title: str, found: Sequence[Curve], x_label: str, digits: int, reference: tuple[str, float] | None = None
) -> str:
    """Scores over a setting in per cent, with intervals; "" where no curve has two places.

    Args:
        reference: (name, score) drawn as a dashed line across: the base.
    """
    found = [one for one in found if len({x for x, _ in one.points}) > 1][:MOST_SERIES]
    ys = [
        value
        for one in found
        for _, figure in one.points
        for value in (figure.value, figure.low, figure.high)
        if value is not None
    ]
    if not ys:
        return ""
    ys += [reference[1]] if reference else []
    marks = _ticks(min(ys), max(ys), 5)
    xs = sorted({x for one in found for x, _ in one.points})
    x_low, x_high = xs[0] - (xs[-1] - xs[0]) * 0.05, xs[-1] + (xs[-1] - xs[0]) * 0.05

    def x(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - marks[0]) / (marks[-1] - marks[0]) * (_HEIGHT - _TOP - _BOTTOM)

    body = []
    for mark in marks:
        body.append(_line(_LEFT, y(mark), _WIDTH - _RIGHT, y(mark), _LINE))
        body.append(_text(_LEFT - 7, y(mark) + 3.5, f"{mark:g}", "end"))
    body += [_text(x(value), _HEIGHT - _BOTTOM + 16, f"{value:g} %", "middle") for value in xs]
    body.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, x_label, "middle"))
    if reference:
        at = y(reference[1])
        body.append(
            f"<g>{_line(_LEFT, at, _WIDTH - _RIGHT, at, _DIM, 1.2, dashed=True)}"
            f"<title>{escape(f'{reference[0]}: {number(reference[1], digits)}')}</title></g>"
        )
    for index, one in enumerate(found):
        body += _curve(one, index, len(found), x, y, digits)
    told = "; ".join(
        f"{one.label}: " + ", ".join(f"{at:g} % {number(figure.value, digits)}" for at, figure in one.points)
        for one in found
    )
    dashed = f"{reference[0]} {number(reference[1], digits)}" if reference else ""
    return _figure(
        title, f"{title}. {told}", _WIDTH, _HEIGHT, body, [one.label for one in found], dashed, "ev-curve"
    )


def _curve(one: Curve, index: int, of: int, x: Scale, y: Scale, digits: int) -> list[str]:
    aside = (index - (of - 1) / 2) * 5  # intervals of several curves at one place stay apart
    by_place: dict[float, list[float]] = {}
    for at, figure in one.points:
        if figure.value is not None:
            by_place.setdefault(at, []).append(figure.value)
    means = " ".join(f"{x(at) + aside:.1f},{y(sum(v) / len(v)):.1f}" for at, v in sorted(by_place.items()))
    parts = [
        f'<polyline points="{means}" style="fill:none;stroke:{colour(index)}" stroke-width="1.8" '
        'stroke-linejoin="round"/>'
    ]
    for at, figure in one.points:
        if figure.value is None:
            continue
        px = x(at) + aside
        told = f"{one.label}, {at:g} %: {number(figure.value, digits)}"
        drawn = ""
        if figure.low is not None and figure.high is not None:
            drawn = _line(px, y(figure.low), px, y(figure.high), colour(index), 1.4)
            told += f" ({spread(figure, digits)})"
        drawn += f'<circle cx="{px:.1f}" cy="{y(figure.value):.1f}" r="3.4" style="fill:{colour(index)}"/>'
        parts.append(f"<g>{drawn}<title>{escape(f'{told}, {figure.items:,} items')}</title></g>")
    return parts


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low and high; at least two."""
    if high - low < 1e-9:
        low, high = low - 1.0, high + 1.0
    raw = (high - low) / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 10) for place in range(first, max(last, first + 1) + 1)]


def _line(
    x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1.0, dashed: bool = False
) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{stroke}" '
        f'stroke-width="{width:g}"{dashes}/>'
    )


def _text(x: float, y: float, text: str, anchor: str, fill: str = _DIM, size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{fill};font-size:{size}px;'
        f'font-variant-numeric:tabular-nums">{escape(text)}</text>'
    )


def _figure(
    title: str,
    told: str,
    width: int,
    height: float,
    body: Sequence[str],
    labels: Sequence[str],
    dashed: str = "",
    classes: str = "",
) -> str:
    keys = "".join(
        f'<span class="ev-key"><svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">'
        f'<rect x="1" y="2" width="10" height="8" rx="1.5" style="fill:{colour(place)}"/></svg>'
        f"{escape(label)}</span>"
        for place, label in enumerate(labels)
    )
    if dashed:
        line = _line(0, 6, 22, 6, _DIM, 1.4, dashed=True)
        keys += (
            f'<span class="ev-key"><svg viewBox="0 0 22 12" width="22" height="12" aria-hidden="true">{line}</svg>'
            f"{escape(dashed)}</span>"
        )
    return (
        f'<figure class="ev-chart {classes}"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(told, quote=True)}">'
        f'{"".join(body)}</svg><div class="ev-legend">{keys}</div></figure>'
    )
