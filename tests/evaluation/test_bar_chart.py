"""Bars as they are drawn."""

from __future__ import annotations

import re

from evaluation.bar_chart import Bar, bar_chart_file


def test_bars_are_as_long_as_their_values():
    plot = bar_chart_file(
        [Bar("a", 4.0, 1.0, "four"), Bar("b & c", 2.0, 3.0, "two")], title="t", notes=["n"], x_label="seconds"
    )
    widths = {
        kind: [float(w) for w in re.findall(rf'class="{kind}"[^>]* width="([\d.]+)"', plot)]
        for kind in ("whole", "part")
    }
    assert widths["whole"] == [300.0, 150.0]
    assert widths["part"] == [75.0, 150.0]  # no more than the bar
    assert "b &amp; c" in plot
