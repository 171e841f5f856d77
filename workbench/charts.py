"""Line charts as inline SVG: crisp, light, dark or light with the page, nothing to import in the web process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40
MAX_POINTS = 240


@dataclass(frozen=True)
class Series:
    """One curve. `colour` is a number of the palette in jobs.css: curves of one colour belong together."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False


def line_chart(
    title: str, series: Sequence[Series], x_label: str = "step", limits: tuple[float, float] | None = None
) -> str:
    """A chart with its title, axes and legend as an HTML figure; "" where no curve has a point.

    Args:
        series: curves of (x, y) with finite numbers, sorted by x.
        x_label: under the horizontal axis.
        limits: of the vertical axis where they are known (an accuracy lies in 0 to 1).
    """
    curves = [curve for curve in series if curve.points]
    if not curves:
        return ""
    frame = _Frame.around(curves, limits)
    body = [*_axes(frame, x_label), *(part for curve in curves for part in _curve(curve, frame))]
    described = ", ".join(f"{curve.label} {_text(curve.points[-1][1])}" for curve in curves)
    return (
        f'<figure class="plumb-chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(described)}">'
        f"{''.join(body)}</svg>{_legend(curves)}</figure>"
    )


@dataclass(frozen=True)
class _Frame:
    """Where data lies on the paper."""

    x_low: float
    x_high: float
    y_ticks: tuple[float, ...]
    x_ticks: tuple[float, ...]

    @classmethod
    def around(cls, curves: Sequence[Series], limits: tuple[float, float] | None) -> _Frame:
        xs = [x for curve in curves for x, _ in curve.points]
        ys = [y for curve in curves for _, y in curve.points]
        low, high = limits or (min(ys), max(ys))
        x_low, x_high = min(xs), max(xs)
        if x_low == x_high:  # one point: put it in the middle
            x_low, x_high = x_low - 1, x_high + 1
        x_ticks = tuple(tick for tick in ticks(x_low, x_high, 6, whole=True) if x_low <= tick <= x_high)
        return cls(x_low, x_high, ticks(low, high, 5), x_ticks)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, wanted: int, whole: bool = False) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low and high; at least two."""
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(1, wanted - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(index * step, 12) for index in range(first, max(last, first + 1) + 1))


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most about `most` points: of each stretch its lowest and highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most / 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _axes(frame: _Frame, x_label: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in frame.y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="plumb-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="plumb-tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{_text(tick)}</text>'
        )
    for tick in frame.x_ticks:
        x = frame.x(tick)
        parts.append(f'<line class="plumb-axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text class="plumb-tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_text(tick)}</text>'
        )
    parts.append(f'<line class="plumb-axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="plumb-tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return parts


def _curve(curve: Series, frame: _Frame) -> list[str]:
    points = thin(curve.points)
    placed = [(frame.x(x), frame.y(y)) for x, y in points]
    style = f"plumb-line plumb-colour-{curve.colour}" + (" plumb-dashed" if curve.dashed else "")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts = [f'<polyline class="{style}" points="{path}"/>'] if len(placed) > 1 else []
    few = len(placed) <= 12
    for (x, y), (step, value) in zip(placed, points, strict=True):
        if few:
            parts.append(
                f'<circle class="plumb-dot plumb-colour-{curve.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
            )
        parts.append(
            f'<circle class="plumb-hover" cx="{x:.1f}" cy="{y:.1f}" r="6">'
            f"<title>{escape(curve.label)}, step {_text(step)}: {_text(value)}</title></circle>"
        )
    return parts


def _legend(curves: Sequence[Series]) -> str:
    entries = "".join(
        f'<span class="plumb-key"><svg viewBox="0 0 22 8" aria-hidden="true"><line x1="0" x2="22" y1="4" y2="4" '
        f'class="plumb-line plumb-colour-{curve.colour}{" plumb-dashed" if curve.dashed else ""}"/></svg>'
        f"{escape(curve.label)} <b>{_text(curve.points[-1][1])}</b></span>"
        for curve in curves
    )
    return f'<div class="plumb-legend">{entries}</div>'


def _text(value: float) -> str:
    """A number as short as it can be read: 4 digits, a real minus sign."""
    if value == 0:
        return "0"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
