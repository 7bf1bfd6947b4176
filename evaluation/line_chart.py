"""A small line chart as SVG text: no library, no script, colours from the page it is put into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 34
LOG_FROM_RATIO = 30  # positive values that span more than this are drawn on a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """Maps values to 0..1, linearly or by logarithm, and knows where its tick marks are."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where `value` lies between the ends, 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the axis, about five of them."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            stride = max(1, math.ceil((last - first) / 4))
            return [10.0**power for power in range(first, last + 1, stride)]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step * 0.999)


def value_axis(values: Sequence[float]) -> Axis:
    """The vertical axis for a curve: from 0 if that costs little, logarithmic if the values span a lot."""
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_FROM_RATIO:
        return Axis(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)), logarithmic=True)
    if low > 0 and high > 2 * low:
        low = 0.0
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low if low == 0 else low - margin, high + margin)


def line_chart(points: Sequence[tuple[float, float]], label: str, x_label: str) -> str:
    """One curve with axes as an `<svg>` element that fills the width it is given.

    Args:
        points: (x, y) in order of x; points that are not finite are left out.
        label: what is drawn, for readers who cannot see it.
        x_label: name and unit of the horizontal axis.
    """
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return '<p class="quiet">no values</p>'
    x_axis = Axis(0.0, max(x for x, _ in points) or 1.0)
    y_axis = value_axis([y for _, y in points])

    def left(x: float) -> float:
        return LEFT + x_axis.place(x) * (WIDTH - LEFT - RIGHT)

    def top(y: float) -> float:
        return HEIGHT - BOTTOM - y_axis.place(y) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for y in y_axis.ticks():
        parts.append(f'<path class="rule" d="M{LEFT} {top(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{top(y) + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in x_axis.ticks():
        parts.append(f'<text x="{left(x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{number(x)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    path = " ".join(f"{left(x):.1f},{top(y):.1f}" for x, y in points)
    if len(points) == 1:
        parts.append(f'<circle class="curve" cx="{left(points[0][0]):.1f}" cy="{top(points[0][1]):.1f}" r="2"/>')
    parts.append(f'<polyline class="curve" points="{path}"/></svg>')
    return "".join(parts)


def number(value: float) -> str:
    """A short decimal, in powers of ten only where it would be long."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
