"""A plot of curves and dots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from sovit.plot.scales import linear_scale, log_scale
from sovit.plot.svg import Box, px, svg, x_axis, y_axis

_WIDTH: Final = 760.0
_HEIGHT: Final = 360.0
_COLOURS: Final = 6
_LINE: Final = 16.0  # the height a line of text needs


@dataclass(frozen=True)
class Curve:
    """A line through points, with its name at its right end."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Dot:
    """A measured point; its title is shown by a browser that is asked."""

    x: float
    y: float
    title: str


def chart(
    *, name: str, title: str, x_label: str, y_label: str, curves: Sequence[Curve], dots: Sequence[Dot],
    log_y: bool = True,
) -> str:  # fmt: skip
    """One SVG over a logarithmic x."""
    box = Box(74, 12, _WIDTH - 150, _HEIGHT - 52)
    every_x = [*(dot.x for dot in dots), *(x for curve in curves for x in curve.x)]
    every_y = [*(dot.y for dot in dots), *(y for curve in curves for y in curve.y)]
    x, x_ticks = log_scale(every_x, box.left + 8, box.right - 8)
    y, y_ticks = (log_scale if log_y else linear_scale)(every_y, box.bottom - 8, box.top + 8)
    parts = [*x_axis(box, x, x_ticks, x_label), *y_axis(box, y, y_ticks, y_label)]
    last_height = box.top - _LINE
    for index, curve in sorted(enumerate(curves), key=lambda pair: y(pair[1].y[-1])):
        path = "L".join(f"{px(x(at))} {px(y(value))}" for at, value in zip(curve.x, curve.y, strict=True))
        last_height = max(y(curve.y[-1]), last_height + _LINE)
        parts.append(
            f'<g class="s{index % _COLOURS}"><path class="whisker" fill="none" d="M{path}"/>'
            f'<text class="name" x="{px(box.right + 6)}" y="{px(last_height + 4.5)}">{escape(curve.name)}</text></g>'
        )
    for dot in dots:
        parts.append(
            f'<g class="s5"><title>{escape(dot.title)}</title>'
            f'<circle class="mark" cx="{px(x(dot.x))}" cy="{px(y(dot.y))}" r="3"/></g>'
        )
    described = f"{len(curves)} curves and {len(dots)} points: {y_label} against {x_label}."
    return svg(name, title, described, _WIDTH, _HEIGHT, parts)
