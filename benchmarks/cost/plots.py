"""Plots of measured values with their intervals.

A series has a colour and a shape of its own: either is enough to tell it. Every mark has a title.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from benchmarks.intervals import Estimate
from sovit.plot.scales import FEW, MANY, linear_scale, log_scale
from sovit.plot.svg import Box, px, svg, x_axis, y_axis

_COLOURS: Final = 6
_RADIUS: Final = 5.0
_RING: Final = 9.0
_LINE: Final = 16.0  # the height a line of text needs
_CHARACTER: Final = 7.4  # the width a character needs at most, on average


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A measured value with its interval along x, at a height y. `hollow` marks stand for something less sure."""

    x: Estimate
    y: float
    series: str
    title: str
    hollow: bool = False
    on_front: bool = False


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
    box = Box(64, 12, width - 14 - _CHARACTER * max(len(text) for text, _ in labels), height - 52)
    x, x_ticks = log_scale(
        [end for mark in marks for end in (mark.x.low, mark.x.high)], box.left + 12, box.right - 12, FEW
    )
    y, y_ticks = linear_scale([mark.y for mark in marks], box.bottom - 12, box.top + 12)
    parts = [*x_axis(box, x, x_ticks, x_label), *y_axis(box, y, y_ticks, y_label)]
    heights = _apart([y(value) for _, value in labels], _LINE)
    for (text, value), at in zip(labels, heights, strict=True):
        last = max(x(mark.x.high) for mark in marks if mark.y == value)
        parts += [
            f'<path class="guide" fill="none" d="M{px(last + 8)} {px(y(value))}'
            f'H{px(box.right)}L{px(box.right + 7)} {px(at)}"/>',
            f'<text class="name" x="{px(box.right + 10)}" y="{px(at + 4.5)}">{escape(text)}</text>',
        ]
    parts.append(_stair([(x(mark.x.value), y(mark.y)) for mark in marks if mark.on_front], box))
    # What is on the front is drawn last, above what is not.
    for mark in sorted(marks, key=lambda mark: mark.on_front):
        parts.append(_mark(mark, x, y(mark.y), series.index(mark.series), faint=not mark.on_front))
    return svg(name, title, description, width, height, parts)


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
    box = Box(left, 8, width - 12, 8 + step * len(rows))
    x, ticks = log_scale(
        [end for mark in marks for end in (mark.x.low, mark.x.high)], box.left + 14, box.right - 14, MANY
    )
    parts = [*x_axis(box, x, ticks, x_label)]
    for index, row in enumerate(rows):
        middle = box.top + step * (index + 0.5)
        parts += [
            f'<line class="grid" x1="{px(box.left)}" x2="{px(box.right)}" y1="{px(middle)}" y2="{px(middle)}"/>',
            f'<text class="name" x="{px(box.left - 12)}" y="{px(middle + 4.5)}" text-anchor="end">{escape(row)}</text>',
        ]
    for mark in marks:
        parts.append(_mark(mark, x, box.top + step * (mark.y + 0.5), series.index(mark.series)))
    return svg(name, title, description, width, box.bottom + 48, parts)


def _mark(mark: Mark, x: Callable[[float], float], at: float, series: int, *, faint: bool = False) -> str:
    """A mark with its whisker, and a ring where it is on the front."""
    middle = x(mark.x.value)
    kinds = f"s{series % _COLOURS}" + " hollow" * mark.hollow + " faint" * faint
    ring = f'<circle class="ring" cx="{px(middle)}" cy="{px(at)}" r="{px(_RING)}"/>' if mark.on_front else ""
    return (
        f'<g class="{kinds}"><title>{escape(mark.title)}</title>'
        f'<line class="whisker" x1="{px(x(mark.x.low))}" x2="{px(x(mark.x.high))}" y1="{px(at)}" y2="{px(at)}"/>'
        f"{_shape(series, middle, at)}{ring}</g>"
    )


def _shape(series: int, x: float, y: float) -> str:
    """Circle, square, triangle, diamond, triangle on its tip, pentagon; the next six series get other colours."""
    r = _RADIUS
    corners: list[tuple[float, float]]
    match (series + series // _COLOURS) % _COLOURS:
        case 0:
            return f'<circle class="mark" cx="{px(x)}" cy="{px(y)}" r="{px(r - 0.5)}"/>'
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
    points = " ".join(f"{px(x + dx)},{px(y + dy)}" for dx, dy in corners)
    return f'<polygon class="mark" points="{points}"/>'


def _stair(points: Sequence[tuple[float, float]], box: Box) -> str:
    """What nobody beats: along x at the height of the best so far, and up to the next that is better."""
    if not points:
        return ""
    path, best = "", math.inf  # heights count downwards in SVG
    for x, y in sorted(points):
        if y >= best:
            continue
        path += f"H{px(x)}V{px(y)}" if path else f"M{px(x)} {px(box.bottom)}V{px(y)}"
        best = y
    return f'<path class="front" d="{path}H{px(box.right)}"/>'


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
