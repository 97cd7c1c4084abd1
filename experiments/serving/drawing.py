"""Small charts as inline SVG: lines by env steps or by trial, a band, marks that lead to their rows.

Only classes and numbers are in it, so the style sheet decides the colours, in the dark as in the light, and the page's policy
needs no inline styles. Figures for papers and reports are drawn by `experiments/reading/plots.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from core.words.text import harmless
from experiments.numbers import format_count

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 38
MOST_POINTS = 400  # of a line; a picture has no more columns
COLOURS = 8  # in the style sheet

Point = tuple[float, float]


class Line(NamedTuple):
    """A line of a chart with its name in the legend."""

    label: str
    points: Sequence[Point]
    colour: int
    """From 0; the style sheet has `COLOURS` of them."""


class Mark(NamedTuple):
    """A point that leads to a row."""

    point: Point
    colour: int
    row: str
    """Such as r-0042."""
    words: str
    """Shown where a pointer rests on it."""


def chart(
    lines: Sequence[Line], *, x: str, y: str, marks: Sequence[Mark] = (), band: tuple[float, float, str] | None = None
) -> Markup:
    """A chart with its legend; nothing without a finite point. x, y: names of the axes. band: (low, high, what it is)."""
    lines = [line._replace(points=_thinned([p for p in line.points if all(map(math.isfinite, p))])) for line in lines]
    points = [*(p for line in lines for p in line.points), *(mark.point for mark in marks)]
    if not points:
        return Markup("")
    heights = [py for _, py in points] + (list(band[:2]) if band else [])
    widths = [px for px, _ in points]
    low, high = min(widths), max(widths)
    across, up = [value for value in _axis(widths) if low <= value <= high], _axis(heights)
    right, above = _scale(low, high, LEFT + 4, WIDTH - RIGHT), _scale(up[0], up[-1], HEIGHT - BOTTOM, TOP)
    parts = [_format('<svg viewBox="0 0 {} {}" role="img" aria-label="{} by {}">', WIDTH, HEIGHT, y, x)]
    for value in up:
        parts.append(_format('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, WIDTH - RIGHT, *[above(value)] * 2))  # fmt: skip
        parts.append(_format('<text class="end" x="{}" y="{}">{}</text>', LEFT - 6, above(value) + 4, f"{value:,.6g}"))
    for value in across:
        parts.append(_format('<text class="middle" x="{}" y="{}">{}</text>', right(value), HEIGHT - BOTTOM + 16, _count(value)))  # fmt: skip
    parts.append(_format('<text class="middle axis" x="{}" y="{}">{}</text>', (LEFT + WIDTH) / 2, HEIGHT - 3, x))
    legend = []
    if band is not None:
        bottom, top = above(band[0]), above(band[1])
        parts.append(_format('<rect class="band" x="{}" y="{}" width="{}" height="{}"/>', LEFT, top, WIDTH - RIGHT - LEFT, max(bottom - top, 1)))  # fmt: skip
        legend.append(_format('<li><i class="swatch band"></i>{}</li>', band[2]))
    for line in lines:
        drawn = " ".join(f"{right(px):.1f},{above(py):.1f}" for px, py in line.points)
        parts.append(_format('<polyline class="c{}" points="{}"/>', line.colour % COLOURS, drawn))
        legend.append(_format('<li><i class="swatch c{}"></i>{}</li>', line.colour % COLOURS, line.label))
    for mark in marks:
        where = right(mark.point[0]), above(mark.point[1])
        parts.append(_format('<a href="/{}"><circle class="c{}" cx="{}" cy="{}" r="3.2"><title>{}</title></circle></a>', mark.row, mark.colour % COLOURS, *where, mark.words))  # fmt: skip
    return Markup("").join([*parts, Markup("</svg>"), Markup('<ul class="legend">'), *legend, Markup("</ul>")])


def best_line(points: Iterable[Point]) -> list[Point]:
    """The best so far of scores in order, as the corners of its steps."""
    corners: list[Point] = []
    for place, score in points:
        best = corners[-1][1] if corners else score
        corners.append((place, best))
        if score > best:
            corners.append((place, score))
    return corners


def _format(template: str, *values: object) -> Markup:
    """The template with its values escaped; numbers to a tenth of a unit."""
    shown = [f"{v:.1f}" if isinstance(v, float) else escape(harmless(str(v))) for v in values]
    return Markup(template).format(*shown)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `MOST_POINTS`, the last among them."""
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    return [*points[:-1:every], *points[-1:]]


def _axis(values: Sequence[float]) -> list[float]:
    """Round numbers, four to seven of them, that hold all values."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 10) for place in range(first, max(last, first + 1) + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * (value - low) / (high - low or 1.0)


def _count(value: float) -> str:
    return format_count(round(value)) if value >= 1000 else f"{value:g}"
