"""Horizontal bars as an SVG file, in the manner of the line charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from evaluation.line_chart import COLOURS, DARK_STYLE, LIGHT_STYLE, RIGHT, TOP, Axis, number, open_chart

WIDTH = 560
LEFT, VALUES = 150, 110  # room for names on the left, for values behind the bars
ROW, BAR = 24, 14
NOTE_ROW = 16

_LIGHT, _DARK = COLOURS[0]
_STYLE = f"""
{LIGHT_STYLE}
.whole {{ fill: {_LIGHT}; opacity: 0.35; }} .part {{ fill: {_LIGHT}; }}
@media (prefers-color-scheme: dark) {{
{DARK_STYLE}
.whole, .part {{ fill: {_DARK}; }}
}}
"""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        name: what it is of.
        value: its length, at least 0.
        part: how much of it is drawn dark; more than all of it is all of it.
        text: what is written behind it.
    """

    name: str
    value: float
    part: float
    text: str


def bar_chart_file(bars: Sequence[Bar], title: str, notes: Sequence[str], x_label: str) -> str:
    """Named bars from 0 with title, notes and an axis as a whole SVG file, legible on light and dark pages.

    Args:
        bars: from top to bottom; one of them at least is longer than 0.
        title: what is drawn.
        notes: lines below the title.
        x_label: unit of the horizontal axis.
    """
    axis = Axis(0.0, max(bar.value for bar in bars))
    width = WIDTH - LEFT - VALUES
    top = TOP + 16 + NOTE_ROW * len(notes) + 10
    bottom = top + ROW * len(bars)
    height = bottom + 42
    parts = open_chart(title, WIDTH, height, _STYLE)
    for k, note in enumerate(notes):
        parts.append(f'<text x="{RIGHT}" y="{TOP + 16 + NOTE_ROW * (k + 1) - 4}">{escape(note)}</text>')
    for tick in axis.ticks():
        x = LEFT + axis.place(tick) * width
        parts.append(f'<path class="rule" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text x="{LEFT + width}" y="{bottom + 31}" text-anchor="end">{escape(x_label)}</text>')
    for k, bar in enumerate(bars):
        y, length = top + ROW * k + (ROW - BAR) / 2, axis.place(bar.value) * width
        dark = axis.place(min(bar.part, bar.value)) * width
        parts.append(f'<text class="title" x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(bar.name)}</text>')
        parts.append(f'<rect class="whole" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}"/>')
        parts.append(f'<rect class="part" x="{LEFT}" y="{y}" width="{dark:.1f}" height="{BAR}"/>')
        parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 11}">{escape(bar.text)}</text>')
    return "".join([*parts, "</svg>\n"])
