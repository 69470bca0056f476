"""The frame of a plot: its box, its axes, and the element around it all.

Colours are the page's, so that a plot follows it into the dark and onto paper. A plot has a title and a description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from sovit.plot.scales import Scale, tick_text

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


@dataclass(frozen=True)
class Box:
    """Where a plot's area lies, in the units of the SVG."""

    left: float
    top: float
    right: float
    bottom: float


def svg(name: str, title: str, description: str, width: float, height: float, parts: Sequence[str]) -> str:
    """The whole element. `name` is the plot's own in the page: its ids begin with it."""
    return "\n".join(
        [
            f'<svg viewBox="0 0 {px(width)} {px(height)}" role="img" aria-labelledby="{name}-title {name}-desc">',
            f'<title id="{name}-title">{escape(title)}</title>',
            f'<desc id="{name}-desc">{escape(description)}</desc>',
            *(part for part in parts if part),
            "</svg>",
        ]
    )


def x_axis(box: Box, scale: Scale, ticks: Sequence[float], label: str) -> list[str]:
    """Below the box, with lines through it."""
    parts = []
    for tick in ticks:
        at = px(scale(tick))
        parts += [
            f'<line class="grid" x1="{at}" x2="{at}" y1="{px(box.top)}" y2="{px(box.bottom)}"/>',
            f'<text class="tick" x="{at}" y="{px(box.bottom + 17)}" text-anchor="middle">{tick_text(tick)}</text>',
        ]
    middle = px((box.left + box.right) / 2)
    return [
        *parts,
        f'<line class="axis" x1="{px(box.left)}" x2="{px(box.right)}" y1="{px(box.bottom)}" y2="{px(box.bottom)}"/>',
        f'<text x="{middle}" y="{px(box.bottom + 40)}" text-anchor="middle">{escape(label)}</text>',
    ]


def y_axis(box: Box, scale: Scale, ticks: Sequence[float], label: str) -> list[str]:
    """Left of the box, with lines through it."""
    parts, left = [], px(box.left - 7)
    decimals = max(len(tick_text(tick).partition(".")[2]) for tick in ticks)
    for tick in ticks:
        at = scale(tick)
        parts += [
            f'<line class="grid" x1="{px(box.left)}" x2="{px(box.right)}" y1="{px(at)}" y2="{px(at)}"/>',
            f'<text class="tick" x="{left}" y="{px(at + 4.5)}" text-anchor="end">{tick:.{decimals}f}</text>',
        ]
    middle = px((box.top + box.bottom) / 2)
    return [
        *parts,
        f'<line class="axis" x1="{px(box.left)}" x2="{px(box.left)}" y1="{px(box.top)}" y2="{px(box.bottom)}"/>',
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(label)}</text>',
    ]


def px(value: float) -> str:
    """A coordinate, short and the same on every machine."""
    return f"{value:.1f}".removesuffix(".0")
