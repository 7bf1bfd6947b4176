"""Charts of several runs: what they draw, that they stand alone, and what is refused."""

from __future__ import annotations

import json
import math
import runpy
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from common.errors import DataError
from evaluation.line_chart import COLOURS, chart_file

TOOL = Path(__file__).parents[2] / "tools" / "plot_runs.py"
SVG = "{http://www.w3.org/2000/svg}"


def write_run(folder, values):
    folder.mkdir()
    lines = [
        {"progress/kimg": k, "timing/train_seconds": k, "loss/l1_pixel": value, **more}
        for k, (value, more) in enumerate(values, start=1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "a", [(0.4, {}), (0.2, {})])
    write_run(tmp_path / "b", [(0.4, {"loss/gan": -1.0}), (None, {"loss/gan": math.nan}), (0.1, {"loss/gan": 1.0})])
    return tmp_path


def plot(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["plot_runs.py", *map(str, arguments)])
    runpy.run_path(str(TOOL))["main"]()


def curves_of(path):
    """Class -> points of the curves of a file."""
    lines = ET.fromstring(path.read_text()).iter(f"{SVG}polyline")
    return {
        line.get("class"): [tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in lines
    }


def texts_of(path):
    return [text.text for text in ET.fromstring(path.read_text()).iter(f"{SVG}text")]


def test_each_value_gets_a_file_with_one_named_curve_per_run(runs, monkeypatch, capsys):
    out = runs / "out"
    plot(monkeypatch, "--run", f"plain={runs / 'a'}", "--run", f"a < b={runs / 'b'}", "--value", "loss/l1_pixel",
         "--value", "loss/gan", "--output-dir", out, "--prefix", "gan_")  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [f"{out}/gan_loss_l1_pixel.svg", f"{out}/gan_loss_gan.svg"]
    assert texts_of(out / "gan_loss_l1_pixel.svg")[:3] == ["loss/l1_pixel", "plain", "a < b"]
    curves = curves_of(out / "gan_loss_l1_pixel.svg")
    assert list(curves) == ["curve c0", "curve c1"]
    (a1, a2), (b1, b3) = curves["curve c0"], curves["curve c1"]
    assert a1 == b1 and b3[0] > a2[0] and b3[1] > a2[1] > a1[1]  # one pair of axes for both


def test_a_curve_keeps_its_colour_where_another_run_has_no_values(runs, monkeypatch):
    plot(monkeypatch, "--run", f"plain={runs / 'a'}", "--run", f"gan={runs / 'b'}", "--value", "loss/gan",
         "--output-dir", runs)  # fmt: skip
    assert texts_of(runs / "loss_gan.svg")[1:3] == ["plain (no values)", "gan"]
    curves = curves_of(runs / "loss_gan.svg")
    assert list(curves) == ["curve c1"] and len(curves["curve c1"]) == 2


def test_a_file_has_its_own_colours_and_room_for_all_it_draws():
    curves = {f"run {k}": [(0, k), (2, 3 * k)] for k in range(len(COLOURS))}
    text = chart_file(curves, "value", "kimg")
    root = ET.fromstring(text)
    width, height = (float(root.get(side)) for side in ("width", "height"))
    assert root.get("viewBox") == f"0 0 {width:g} {height:g}"
    for line in root.iter(f"{SVG}polyline"):
        for pair in line.get("points").split():
            x, y = map(float, pair.split(","))
            assert 0 < x < width and 14 + 24 + 17 * (len(COLOURS) - 1) < y < height
    light, dark = text.split("prefers-color-scheme: dark")
    for k, (on_light, on_dark) in enumerate(COLOURS):
        assert f".c{k} {{ stroke: {on_light}; }}" in light and f".c{k} {{ stroke: {on_dark}; }}" in dark
    assert "href" not in text and "url(" not in text and "script" not in text


@pytest.mark.parametrize("background, shade", [("#fbfbfa", 0), ("#161b22", 1)])
def test_colours_of_curves_stand_out_from_their_page(background, shade):
    def luminance(colour):
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for colours in COLOURS:
        bright, dim = sorted((luminance(background), luminance(colours[shade])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5


def test_what_cannot_be_drawn_is_refused_before_a_file_is_written(runs, monkeypatch, capsys):
    out = runs / "out"

    def refused(*arguments):
        with pytest.raises(DataError) as error:
            plot(monkeypatch, *arguments, "--output-dir", out)
        assert not out.exists()
        return str(error.value)

    a = f"a={runs / 'a'}"
    message = refused("--run", a, "--value", "loss/l1_pixel", "--value", "loss/l1_pixels")
    assert message == "loss/l1_pixels: found no finite value in the logs of a. Closest: loss/l1_pixel."
    assert "none/log.jsonl: holds no tick" in refused("--run", f"x={runs / 'none'}", "--value", "loss/l1_pixel")
    many = [part for k in range(7) for part in ("--run", f"{k}={runs / 'a'}")]
    assert refused(*many, "--value", "loss/l1_pixel") == "--run: found 7 runs, expected at most 6 in one chart."
    for wrong, complaint in (([a, a], "a name is given twice"), ([str(runs / "a")], "expected NAME=RUN_DIR")):
        with pytest.raises(SystemExit, match="2"):
            plot(monkeypatch, *(f"--run={run}" for run in wrong), "--value", "loss/total", "--output-dir", out)
        assert complaint in capsys.readouterr().err
