"""Small line charts as SVG text, without library or script: one curve for a page, or several as a file of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 34
LEGEND_ROW = 17
LOG_FROM_RATIO = 30  # positive values that span more than this are drawn on a logarithmic axis

Points = Sequence[tuple[float, float]]

# One colour per curve, on a light page and on a dark one. Every second curve is dashed, so that curves show that lie on
# one another, and are told apart without colours. Rules name two classes, to win over those of a page.
COLOURS = (
    ("#0f6e84", "#5fc0d6"),
    ("#b8480a", "#f0a16a"),
    ("#7446a6", "#bd9cec"),
    ("#2b7a43", "#77c88f"),
    ("#b02a57", "#f08bab"),
    ("#6b6100", "#d0c150"),
)
_LIGHT, _DARK = (
    " ".join(f".curve.c{k} {{ stroke: {colour}; }}" for k, colour in enumerate(colours))
    for colours in zip(*COLOURS, strict=True)
)
LIGHT_STYLE = ".page { fill: #fbfbfa; } text { fill: #59636e; } .title { fill: #1f2328; } .rule { stroke: #d5dae0; }"
DARK_STYLE = ".page { fill: #161b22; } text { fill: #9da7b1; } .title { fill: #e6edf3; } .rule { stroke: #343b44; }"
_STYLE = f"""
{LIGHT_STYLE}
.curve {{ stroke-width: 1.8; fill: none; stroke-linejoin: round; }} .c1, .c3, .c5 {{ stroke-dasharray: 6 3; }}
{_LIGHT}
@media (prefers-color-scheme: dark) {{
{DARK_STYLE}
{_DARK}
}}
"""


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


@dataclass(frozen=True)
class Frame:
    """The area of a plot between its axes, in units of the SVG; `top_edge` is where it begins."""

    x_axis: Axis
    y_axis: Axis
    top_edge: float = TOP

    @classmethod
    def around(cls, curves: Sequence[Points], top_edge: float = TOP) -> Frame:
        """Axes on which all points of the curves have room; there must be one at least."""
        points = [point for curve in curves for point in curve]
        return cls(Axis(0.0, max(x for x, _ in points) or 1.0), value_axis([y for _, y in points]), top_edge)

    @property
    def bottom_edge(self) -> float:
        return self.top_edge + HEIGHT - TOP - BOTTOM

    def left(self, x: float) -> float:
        return LEFT + self.x_axis.place(x) * (WIDTH - LEFT - RIGHT)

    def top(self, y: float) -> float:
        return self.bottom_edge - self.y_axis.place(y) * (self.bottom_edge - self.top_edge)

    def draw_axes(self, x_label: str) -> str:
        """A rule and a number at each value, numbers and the label below."""
        parts = []
        for y in self.y_axis.ticks():
            parts.append(f'<path class="rule" d="M{LEFT} {self.top(y):.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{self.top(y) + 4:.1f}" text-anchor="end">{number(y)}</text>')
        for x in self.x_axis.ticks():
            place = f'x="{self.left(x):.1f}" y="{self.bottom_edge + 15}"'
            parts.append(f'<text {place} text-anchor="middle">{number(x)}</text>')
        place = f'x="{WIDTH - RIGHT}" y="{self.bottom_edge + BOTTOM - 3}"'
        parts.append(f'<text {place} text-anchor="end">{escape(x_label)}</text>')
        return "".join(parts)

    def draw_curve(self, points: Points, style: str) -> str:
        """A line through the points, and a dot if there is only one; `style` names the CSS classes."""
        dot = ""
        if len(points) == 1:
            ((x, y),) = points
            dot = f'<circle class="{style}" cx="{self.left(x):.1f}" cy="{self.top(y):.1f}" r="2"/>'
        path = " ".join(f"{self.left(x):.1f},{self.top(y):.1f}" for x, y in points)
        return f'{dot}<polyline class="{style}" points="{path}"/>'


def finite(points: Points) -> list[tuple[float, float]]:
    """Without the points that cannot be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def line_chart(points: Points, label: str, x_label: str) -> str:
    """One curve with axes as an `<svg>` element that fills the width it is given, in the colours of its page.

    Args:
        points: (x, y) in order of x; points that are not finite are left out.
        label: what is drawn, for readers who cannot see it.
        x_label: name and unit of the horizontal axis.
    """
    points = finite(points)
    if not points:
        return '<p class="quiet">no values</p>'
    frame = Frame.around([points])
    picture = frame.draw_axes(x_label) + frame.draw_curve(points, "curve")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{picture}</svg>'


def chart_file(curves: Mapping[str, Points], title: str, x_label: str) -> str:
    """Named curves with title, legend and axes as a whole SVG file, legible on light and dark pages.

    Args:
        curves: name -> (x, y) in order of x, at most `len(COLOURS)` of them, with a finite point at least in one.
            Points that are not finite are left out; a curve without any keeps its colour, and the legend says so.
        title: what is drawn.
        x_label: name and unit of the horizontal axis.
    """
    drawn = {name: finite(points) for name, points in curves.items()}
    assert len(drawn) <= len(COLOURS) and any(drawn.values())
    legend_top = TOP + 24
    frame = Frame.around(list(drawn.values()), top_edge=legend_top + LEGEND_ROW * len(drawn))
    height = frame.bottom_edge + BOTTOM
    parts = open_chart(title, WIDTH, height, _STYLE)
    for k, (name, points) in enumerate(drawn.items()):
        y = legend_top + LEGEND_ROW * k
        name = name if points else f"{name} (no values)"
        parts.append(f'<path class="curve c{k}" d="M{LEFT} {y}h20"/>')
        parts.append(f'<text x="{LEFT + 27}" y="{y + 4}">{escape(name)}</text>')
    parts.append(frame.draw_axes(x_label))
    parts += [frame.draw_curve(points, f"curve c{k}") for k, points in enumerate(drawn.values()) if points]
    return "".join([*parts, "</svg>\n"])


def open_chart(title: str, width: int, height: int, style: str) -> list[str]:
    """What an SVG file of a chart begins with: its size, style, page and title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        f' role="img" aria-label="{escape(title)}" font-size="11"',
        " font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">",
        f"<style>{style}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
        f'<text class="title" x="{RIGHT}" y="{TOP + 9}" font-size="13" font-weight="600">{escape(title)}</text>',
    ]


def number(value: float) -> str:
    """A short decimal, in powers of ten only where it would be long."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
