"""Matrices of scores as pictures: SVG text without library or script, legible on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from torch import Tensor

from evaluation.line_chart import DARK_STYLE, LIGHT_STYLE, number

CELL_WIDTH, CELL_HEIGHT = 58, 26
NARROW_CELL = 22  # where there are more columns than `NUMBERED_COLUMNS`, and no numbers in the cells
NUMBERED_COLUMNS = 14
LETTER = 6.4  # width of a character of the labels
TOP, MARGIN, BAR = 34, 14, 10
FAINTEST = 0.05
STRONG_FROM = 0.6  # share of the range from which a cell is so dark that its number takes the page's colour


@dataclass(frozen=True)
class HeatMap:
    """A matrix with its labels.

    Args:
        title: what is drawn.
        rows, columns: labels.
        values: [rows, columns]; NaN where a score is not defined.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Tensor

    def limits(self) -> tuple[float, float]:
        """Values of the faintest and of the strongest colour: from 0, unless scores are negative."""
        finite = self.values[self.values.isfinite()]
        if not len(finite):
            return 0.0, 1.0
        return min(0.0, finite.min().item()), max(finite.max().item(), 1e-9)

    def share(self, value: float) -> float:
        """Where a value lies between the limits, 0 to 1."""
        low, high = self.limits()
        return (value - low) / (high - low)


_STYLE = f"""
{LIGHT_STYLE}
.cell {{ fill: #0f6e84; }} .best {{ fill: none; stroke: #b8480a; stroke-width: 2; }} text.strong {{ fill: #ffffff; }}
text.label {{ fill: #1f2328; }}
@media (prefers-color-scheme: dark) {{
{DARK_STYLE}
.cell {{ fill: #5fc0d6; }} .best {{ stroke: #f0a16a; }} text.strong {{ fill: #101418; }} text.label {{ fill: #e6edf3; }}
}}
"""


def heat_map_svg(picture: HeatMap) -> str:
    """A heat map as an `<svg>` element with its own style; the best cell of every column has a frame."""
    numbered = len(picture.columns) <= NUMBERED_COLUMNS
    width = CELL_WIDTH if numbered else NARROW_CELL
    left = MARGIN + LETTER * max(map(len, picture.rows)) + 10
    heads = _column_heads(picture.columns, width)
    top = TOP + heads.height
    right = left + width * len(picture.columns)
    bottom = top + CELL_HEIGHT * len(picture.rows)
    total = max(right + heads.overhang, left + 270, MARGIN + LETTER * 1.2 * len(picture.title)) + MARGIN, bottom + 48
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]:.0f} {total[1]:.0f}" width="{total[0]:.0f}"',
        f' height="{total[1]:.0f}" role="img" aria-label="{escape(picture.title)}" font-size="11"',
        " font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{total[0]:.0f}" height="{total[1]:.0f}" rx="6"/>',
        f'<text class="title" x="{MARGIN}" y="23" font-size="13" font-weight="600">{escape(picture.title)}</text>',
        *heads.draw(left, top),
    ]
    for i, (name, values) in enumerate(zip(picture.rows, picture.values.tolist(), strict=True)):
        y = top + CELL_HEIGHT * i
        parts.append(f'<text class="label" x="{left - 8:.1f}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        parts += [_cell(picture, value, left + width * j, y, width, numbered) for j, value in enumerate(values)]
    parts += _frames(picture, left, top, width)
    parts.append(_scale(picture, left, bottom + 16))
    return "".join([*parts, "</svg>"])


def heat_map_file(picture: HeatMap) -> str:
    """A heat map as a whole SVG file."""
    return heat_map_svg(picture) + "\n"


@dataclass(frozen=True)
class _Heads:
    """Labels of the columns: level where they fit, else slanted."""

    names: Sequence[str]
    width: float
    slanted: bool

    @property
    def height(self) -> float:
        longest = LETTER * max(map(len, self.names))
        return longest * 0.71 + 12 if self.slanted else 16

    @property
    def overhang(self) -> float:
        """By how much the last one sticks out on the right."""
        return max(0.0, self.height - self.width / 2) if self.slanted else 0.0

    def draw(self, left: float, top: float) -> list[str]:
        parts = []
        for j, name in enumerate(self.names):
            x, y = left + self.width * (j + 0.5), top - 7
            place = (
                f'transform="translate({x:.1f} {y:.1f}) rotate(-45)"' if self.slanted else f'x="{x:.1f}" y="{y:.1f}"'
            )
            anchor = "start" if self.slanted else "middle"
            parts.append(f'<text class="label" {place} text-anchor="{anchor}">{escape(name)}</text>')
        return parts


def _column_heads(names: Sequence[str], width: float) -> _Heads:
    return _Heads(names, width, slanted=LETTER * max(map(len, names)) > width - 6)


def _cell(picture: HeatMap, value: float, x: float, y: float, width: float, numbered: bool) -> str:
    if not math.isfinite(value):
        return f'<text x="{x + width / 2:.1f}" y="{y + 17}" text-anchor="middle">–</text>'
    share = picture.share(value)
    opacity = FAINTEST + (1 - FAINTEST) * share
    box = f'x="{x + 1:.1f}" y="{y + 1}" width="{width - 2}" height="{CELL_HEIGHT - 2}" rx="3"'
    cell = f'<rect class="cell" {box} fill-opacity="{opacity:.3f}"><title>{value:.4f}</title></rect>'
    if numbered:
        kind = ' class="strong"' if share >= STRONG_FROM else ' class="label"'
        cell += f'<text{kind} x="{x + width / 2:.1f}" y="{y + 17}" text-anchor="middle">{value:.3f}</text>'
    return cell


def _frames(picture: HeatMap, left: float, top: float, width: float) -> list[str]:
    """A frame around the best row of every column, where there are rows to choose from."""
    frames = []
    for j, column in enumerate(picture.values.T.tolist()):
        finite = [(value, -i) for i, value in enumerate(column) if math.isfinite(value)]
        if len(finite) > 1:
            y = top - CELL_HEIGHT * max(finite)[1]
            box = f'x="{left + width * j + 1:.1f}" y="{y + 1}" width="{width - 2}" height="{CELL_HEIGHT - 2}" rx="3"'
            frames.append(f'<rect class="best" {box}/>')
    return frames


def _scale(picture: HeatMap, left: float, y: float) -> str:
    """The colours with the values of their ends."""
    steps, width = 40, 120 / 40
    parts = [
        f'<rect class="cell" x="{left + width * k:.1f}" y="{y:.1f}" width="{width + 0.2:.1f}" height="{BAR}" '
        f'fill-opacity="{FAINTEST + (1 - FAINTEST) * k / (steps - 1):.3f}"/>'
        for k in range(steps)
    ]
    low, high = picture.limits()
    for x, value, anchor in ((left, low, "start"), (left + 120, high, "end")):
        parts.append(f'<text x="{x:.1f}" y="{y + BAR + 13:.1f}" text-anchor="{anchor}">{number(value)}</text>')
    if len(picture.rows) > 1:
        parts.append(f'<rect class="best" x="{left + 142:.1f}" y="{y - 1:.1f}" width="16" height="{BAR + 2}" rx="3"/>')
        parts.append(f'<text x="{left + 164:.1f}" y="{y + BAR - 1:.1f}">best of its column</text>')
    return "".join(parts)
