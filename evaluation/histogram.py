"""Histograms as SVG text, in the manner of the line charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from evaluation.line_chart import HEIGHT, WIDTH, Axis, Frame

MOST_BINS = 30


def histogram(values: Sequence[float], label: str, x_label: str) -> str:
    """Bars of how many values lie where, and a dashed line at their mean, as an `<svg>` in the colours of its page.

    Args:
        values: those that are not finite are left out.
        label: what is drawn, for readers who cannot see it.
        x_label: name and unit of the horizontal axis.
    """
    finite = np.array([value for value in values if math.isfinite(value)])
    if len(finite) == 0:
        return '<p class="quiet">no values</p>'
    counts, edges = np.histogram(finite, bins=min(MOST_BINS, max(5, math.ceil(2 * math.sqrt(len(finite))))))
    frame = Frame(Axis(edges[0], edges[-1]), Axis(0, max(1.06 * counts.max(), 5)))  # no fractions of images
    bars = "".join(
        f'<rect class="bar" x="{frame.left(low) + 0.5:.1f}" y="{frame.top(count):.1f}" '
        f'width="{max(frame.left(high) - frame.left(low) - 1, 0.5):.1f}" '
        f'height="{frame.bottom_edge - frame.top(count):.1f}"/>'
        for count, low, high in zip(counts, edges, edges[1:])
    )
    mean = f'<path class="mean" d="M{frame.left(finite.mean()):.1f} {frame.top_edge}V{frame.bottom_edge}"/>'
    picture = frame.draw_axes(x_label) + bars + mean
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{picture}</svg>'
