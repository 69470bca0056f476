"""Plots as SVG, written by hand: they need no library, no script and no network, and stand inside an HTML page.

Colours are the page's (`STYLE`), so that a plot follows it into the dark and onto paper. A series has a colour and a
shape of its own: either is enough to tell it. Every mark has a title, every plot a title and a description.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from benchmarks.intervals import Estimate

STYLE: Final = """
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
.legend {
  display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 0 0 .75rem; padding: 0; max-width: none; list-style: none;
}
.legend li { display: flex; align-items: center; gap: .35rem; margin: 0; font-size: .8125rem; }
figure .legend svg { flex: none; width: 14px; height: 14px; }
figure svg text { font: 13px/1 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--text); }
figure svg .tick { fill: var(--muted); font-variant-numeric: tabular-nums; }
figure svg .name { font-weight: 550; }
figure svg .grid { stroke: var(--line); stroke-width: 1; }
figure svg .axis { stroke: var(--line-strong); stroke-width: 1; }
figure svg .guide { stroke: var(--line-strong); stroke-width: 1; stroke-dasharray: 1 4; }
figure svg .front { fill: none; stroke: var(--text); stroke-width: 1.25; stroke-dasharray: 5 4; opacity: .75; }
figure svg .ring { fill: none; stroke: var(--text); stroke-width: 1.25; }
figure svg .mark { stroke: var(--series); stroke-width: 1.75; fill: var(--series); stroke-linejoin: round; }
figure svg .hollow .mark { fill: var(--surface); }
figure svg .whisker { stroke: var(--series); stroke-width: 1.75; stroke-linecap: round; }
figure svg .faint { opacity: .6; }
.s0 { --series: var(--series-0); } .s1 { --series: var(--series-1); } .s2 { --series: var(--series-2); }
.s3 { --series: var(--series-3); } .s4 { --series: var(--series-4); } .s5 { --series: var(--series-5); }
"""

_COLOURS: Final = 6
_RADIUS: Final = 5.0
_RING: Final = 9.0
_LINE: Final = 16.0  # the height a line of text needs
_CHARACTER: Final = 7.4  # the width a character needs at most, on average
_FEW: Final = 7  # ticks, where the labels of more would touch
_MANY: Final = 9
_LEAST_TICKS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A measured value with its interval along x, at a height y. `hollow` marks stand for something less sure."""

    x: Estimate
    y: float
    series: str
    title: str
    hollow: bool = False
    on_front: bool = False


@dataclass(frozen=True)
class _Box:
    """Where a plot's area lies, in the units of the SVG."""

    left: float
    top: float
    right: float
    bottom: float


def scatter(
    *,
    name: str,
    title: str,
    description: str,
    series: Sequence[str],
    marks: Sequence[Mark],
    labels: Sequence[tuple[str, float]],
    x_label: str,
    y_label: str,
) -> str:
    """Marks over a logarithmic x, and a stair through those `on_front`; `labels` name heights, at the right.

    `name` is the plot's own in the page: its ids begin with it. `series` are all of the page's, in their order, so that
    each looks the same in every plot.
    """
    width, height = 520.0, 320.0
    box = _Box(64, 12, width - 14 - _CHARACTER * max(len(text) for text, _ in labels), height - 52)
    x, x_ticks = _log_scale([mark.x for mark in marks], box.left + 12, box.right - 12, _FEW)
    y, y_ticks = _linear_scale([mark.y for mark in marks], box.bottom - 12, box.top + 12)
    parts = [*_x_axis(box, x, x_ticks, x_label), *_y_axis(box, y, y_ticks, y_label)]
    heights = _apart([y(value) for _, value in labels], _LINE)
    for (text, value), at in zip(labels, heights, strict=True):
        last = max(x(mark.x.high) for mark in marks if mark.y == value)
        parts += [
            f'<path class="guide" fill="none" d="M{_n(last + 8)} {_n(y(value))}'
            f'H{_n(box.right)}L{_n(box.right + 7)} {_n(at)}"/>',
            f'<text class="name" x="{_n(box.right + 10)}" y="{_n(at + 4.5)}">{escape(text)}</text>',
        ]
    parts.append(_stair([(x(mark.x.value), y(mark.y)) for mark in marks if mark.on_front], box))
    # What is on the front is drawn last, above what is not.
    for mark in sorted(marks, key=lambda mark: mark.on_front):
        parts.append(_mark(mark, x, y(mark.y), series.index(mark.series), faint=not mark.on_front))
    return _svg(name, title, description, width, height, parts)


def strips(
    *,
    name: str,
    title: str,
    description: str,
    series: Sequence[str],
    rows: Sequence[str],
    marks: Sequence[Mark],
    x_label: str,
) -> str:
    """One strip a row, named at the left, with marks over a logarithmic x; a mark's y is the index of its row."""
    width = 1060.0
    left = 24 + _CHARACTER * max(len(row) for row in rows)
    step = 28.0
    box = _Box(left, 8, width - 12, 8 + step * len(rows))
    x, ticks = _log_scale([mark.x for mark in marks], box.left + 14, box.right - 14, _MANY)
    parts = [*_x_axis(box, x, ticks, x_label)]
    for index, row in enumerate(rows):
        middle = box.top + step * (index + 0.5)
        parts += [
            f'<line class="grid" x1="{_n(box.left)}" x2="{_n(box.right)}" y1="{_n(middle)}" y2="{_n(middle)}"/>',
            f'<text class="name" x="{_n(box.left - 12)}" y="{_n(middle + 4.5)}" text-anchor="end">{escape(row)}</text>',
        ]
    for mark in marks:
        parts.append(_mark(mark, x, box.top + step * (mark.y + 0.5), series.index(mark.series)))
    return _svg(name, title, description, width, box.bottom + 48, parts)


def _svg(name: str, title: str, description: str, width: float, height: float, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-labelledby="{name}-title {name}-desc">',
            f'<title id="{name}-title">{escape(title)}</title>',
            f'<desc id="{name}-desc">{escape(description)}</desc>',
            *(part for part in parts if part),
            "</svg>",
        ]
    )


def _mark(mark: Mark, x: Callable[[float], float], at: float, series: int, *, faint: bool = False) -> str:
    """A mark with its whisker, and a ring where it is on the front."""
    middle = x(mark.x.value)
    kinds = f"s{series % _COLOURS}" + " hollow" * mark.hollow + " faint" * faint
    ring = f'<circle class="ring" cx="{_n(middle)}" cy="{_n(at)}" r="{_n(_RING)}"/>' if mark.on_front else ""
    return (
        f'<g class="{kinds}"><title>{escape(mark.title)}</title>'
        f'<line class="whisker" x1="{_n(x(mark.x.low))}" x2="{_n(x(mark.x.high))}" y1="{_n(at)}" y2="{_n(at)}"/>'
        f"{_shape(series, middle, at)}{ring}</g>"
    )


def _shape(series: int, x: float, y: float) -> str:
    """Circle, square, triangle, diamond, triangle on its tip, pentagon; the next six series get other colours."""
    r = _RADIUS
    corners: list[tuple[float, float]]
    match (series + series // _COLOURS) % _COLOURS:
        case 0:
            return f'<circle class="mark" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r - 0.5)}"/>'
        case 1:
            corners = [(-r + 1, -r + 1), (r - 1, -r + 1), (r - 1, r - 1), (-r + 1, r - 1)]
        case 2:
            corners = [(0, -r), (r, r - 1), (-r, r - 1)]
        case 3:
            corners = [(0, -r - 0.5), (r + 0.5, 0), (0, r + 0.5), (-r - 0.5, 0)]
        case 4:
            corners = [(0, r), (r, -r + 1), (-r, -r + 1)]
        case _:
            turns = [2 * math.pi * corner / 5 for corner in range(5)]
            corners = [(r * math.sin(turn), -r * math.cos(turn)) for turn in turns]
    points = " ".join(f"{_n(x + dx)},{_n(y + dy)}" for dx, dy in corners)
    return f'<polygon class="mark" points="{points}"/>'


def _stair(points: Sequence[tuple[float, float]], box: _Box) -> str:
    """What nobody beats: along x at the height of the best so far, and up to the next that is better."""
    if not points:
        return ""
    path, best = "", math.inf  # heights count downwards in SVG
    for x, y in sorted(points):
        if y >= best:
            continue
        path += f"H{_n(x)}V{_n(y)}" if path else f"M{_n(x)} {_n(box.bottom)}V{_n(y)}"
        best = y
    return f'<path class="front" d="{path}H{_n(box.right)}"/>'


def legend(series: Sequence[str], marks: Sequence[Mark]) -> str:
    """The series that have marks, as an HTML list: it wraps as its place needs, and serves several plots."""
    shown = {mark.series for mark in marks}
    items = "".join(
        f'<li class="s{index % _COLOURS}"><svg viewBox="0 0 14 14" aria-hidden="true">{_shape(index, 7, 7)}</svg>'
        f"{escape(text)}</li>"
        for index, text in enumerate(series)
        if text in shown
    )
    return f'<ul class="legend">{items}</ul>'


def _x_axis(box: _Box, scale: Callable[[float], float], ticks: Sequence[float], label: str) -> list[str]:
    parts = []
    for tick in ticks:
        at = _n(scale(tick))
        parts += [
            f'<line class="grid" x1="{at}" x2="{at}" y1="{_n(box.top)}" y2="{_n(box.bottom)}"/>',
            f'<text class="tick" x="{at}" y="{_n(box.bottom + 17)}" text-anchor="middle">{_tick(tick)}</text>',
        ]
    middle = _n((box.left + box.right) / 2)
    return [
        *parts,
        f'<line class="axis" x1="{_n(box.left)}" x2="{_n(box.right)}" y1="{_n(box.bottom)}" y2="{_n(box.bottom)}"/>',
        f'<text x="{middle}" y="{_n(box.bottom + 40)}" text-anchor="middle">{escape(label)}</text>',
    ]


def _y_axis(box: _Box, scale: Callable[[float], float], ticks: Sequence[float], label: str) -> list[str]:
    parts, left = [], _n(box.left - 7)
    decimals = max(len(_tick(tick).partition(".")[2]) for tick in ticks)
    for tick in ticks:
        at = scale(tick)
        parts += [
            f'<line class="grid" x1="{_n(box.left)}" x2="{_n(box.right)}" y1="{_n(at)}" y2="{_n(at)}"/>',
            f'<text class="tick" x="{left}" y="{_n(at + 4.5)}" text-anchor="end">{tick:.{decimals}f}</text>',
        ]
    middle = _n((box.top + box.bottom) / 2)
    return [
        *parts,
        f'<line class="axis" x1="{_n(box.left)}" x2="{_n(box.left)}" y1="{_n(box.top)}" y2="{_n(box.bottom)}"/>',
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(label)}</text>',
    ]


def _log_scale(
    values: Sequence[Estimate], first: float, last: float, most: int
) -> tuple[Callable[[float], float], list[float]]:
    """Where a value lies between `first` and `last`, and round numbers to write at the axis."""
    low, high = min(value.low for value in values), max(value.high for value in values)
    if high / low < 1.1:  # nearly one value: room around it
        low, high = low / 1.5, high * 1.5
    slope = (last - first) / math.log(high / low)

    def scale(value: float) -> float:
        return first + slope * math.log(value / low)

    return scale, log_ticks(low, high, most)


def log_ticks(low: float, high: float, most: int = _FEW) -> list[float]:
    """Round numbers from `low` to `high`, about as far from each other on a logarithmic axis, and not too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 2, 3, 5, 7)):
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            found = ticks
    if len(found) < _LEAST_TICKS - 1 and high / low < 10:
        return linear_ticks(low, high)
    return found or ticks[:: math.ceil(len(ticks) / most)]


def _linear_scale(values: Sequence[float], first: float, last: float) -> tuple[Callable[[float], float], list[float]]:
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 1, high + 1
    slope = (last - first) / (high - low)

    def scale(value: float) -> float:
        return first + slope * (value - low)

    return scale, linear_ticks(low, high)


def linear_ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers from `low` to `high`; three where there are no better."""
    decade = 10.0 ** math.floor(math.log10(high - low))
    found: list[float] = []
    for step in (decade, decade / 2, decade / 4, decade / 5, decade / 10):
        if len(found) < _LEAST_TICKS:
            found = [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [float(f"{tick:.6g}") for tick in found]


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Heights near the given ones, in their order, but at least so far from each other."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    found = [0.0] * len(heights)
    groups: list[list[int]] = []

    def spread(group: Sequence[int]) -> list[float]:
        middle = sum(heights[index] for index in group) / len(group)
        return [middle + (place - (len(group) - 1) / 2) * least for place in range(len(group))]

    for index in order:
        groups.append([index])
        while len(groups) > 1 and spread(groups[-2])[-1] + least > spread(groups[-1])[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    for group in groups:
        for index, height in zip(group, spread(group), strict=True):
            found[index] = height
    return found


def _tick(value: float) -> str:
    return f"{value:,.10f}".rstrip("0").rstrip(".")


def _n(value: float) -> str:
    """A coordinate, short and the same on every machine."""
    return f"{value:.1f}".removesuffix(".0")
