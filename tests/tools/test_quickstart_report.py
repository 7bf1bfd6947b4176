import json
import math
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from common.config import load_source
from common.errors import DataError
from configs.schema import check, dump
from data.photographs import CropRecipe, build_photographs
from evaluation.line_chart import line_chart, number, value_axis
from evaluation.quickstart_report import ERROR_FULL, error_map, read_photographs, score_crops
from evaluation.training_log import summarise_log

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "quickstart" / "report.py"
PUBLISHED = ROOT / "configs" / "vfm_vae_f16d32_siglip2_stage_0_strong_alignment.yaml"
SCORES = ("psnr", "ssim", "baseline_mean_colour_psnr", "baseline_down8_psnr", "train_seconds", "seed")


def write_run(folder):
    """A finished run in miniature: the reconstructions are the inputs, 12 levels brighter."""
    build_photographs(folder / "photographs", CropRecipe(train_count=4, held_out_count=6, stored_size=32))
    source = load_source(PUBLISHED)
    source.values["run"] |= {"run_dir": str(folder), "random_seed": 5}
    (folder / "config.yaml").write_text(yaml.safe_dump(dump(check(source).config)))
    lines = [
        {
            "progress/kimg": k / 4,
            "timing/train_seconds": 5.0 * k,
            "loss/total": 1 / k,
            "loss/a<b": None if k == 2 else k,
        }
        for k in range(1, 9)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("inputs", "outputs"):
        (folder / "images" / name).mkdir(parents=True)
    for path in (folder / "photographs" / "heldout").iterdir():
        pixels = np.asarray(Image.open(path)).clip(0, 243)
        Image.fromarray(pixels).save(folder / "images" / "inputs" / path.name)
        Image.fromarray((pixels + 12).astype(np.uint8)).save(folder / "images" / "outputs" / path.name)
    counts = {"found": 6, "reconstructed": 6, "kept": 0, "unreadable": 0}
    protocol = {"resolution": 64, "crop": "torchvision", "latent": "sample", "seed": 0}
    manifest = {"protocol": protocol, "counts": counts, "weights_sha256": "ab" * 32, "versions": {"torch": "<1>"}}
    (folder / "images" / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    command = (
        f"report.py --run-dir {folder} --images-dir {folder}/images --photographs {folder}/photographs/photographs.json"
    )
    before, sys.argv = sys.argv, command.split()
    try:
        runpy.run_path(str(TOOL))["main"]()
    finally:
        sys.argv = before
    return folder


class Page(HTMLParser):
    VOID = ("meta", "wbr", "img", "path", "polyline", "circle", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_results_hold_the_scores_and_where_they_come_from(run):
    results = json.loads((run / "results.json").read_text())
    assert all(isinstance(results[key], int | float) for key in SCORES)
    assert results["psnr"] == pytest.approx(20 * math.log10(255 / 12), abs=1e-3)
    assert results["train_seconds"] == 40.0 and results["train_kimg"] == 2.0 and results["seed"] == 5
    assert results["count"] == 6 and results["held_out"] == ["chelsea", "flower"]
    assert results["parameters"] == 139_770_642 and results["latent_shape"] == [32, 16, 16]
    assert results["above_mean_colour_by_gate"] is (results["psnr"] - results["baseline_mean_colour_psnr"] >= 5)


def test_the_page_states_the_numbers_and_every_credit(run):
    results = json.loads((run / "results.json").read_text())
    page = Page((run / "report.html").read_text())
    for key in ("psnr", "baseline_mean_colour_psnr", "baseline_down8_psnr"):
        assert f"{results[key]:.2f}" in page.text
    assert f"{results['ssim']:.3f}" in page.text and "139.77 million" in page.text
    assert "2,000 images in batches of 512, 40 seconds" in page.text
    for entry in json.loads((run / "photographs" / "photographs.json").read_text())["photographs"]:
        assert entry["credit"] in page.text and entry["licence"] in page.text
    assert "All 6 crops." in page.text and f"{ERROR_FULL} of 255 levels" in page.text


def test_the_page_loads_nothing_and_needs_no_script(run):
    text = (run / "report.html").read_text()
    page = Page(text)
    assert len(page.links) == 24 and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text and "@import" not in text and not re.search(r"\$\w", text)


def test_text_from_files_is_escaped(run):
    text = (run / "report.html").read_text()
    assert "a&lt;b" in text and "a<b" not in text and "torch &lt;1&gt;" in text


def test_the_error_map_runs_from_black_to_its_full_scale():
    image = torch.zeros(3, 1, 3, dtype=torch.uint8)
    other = image.clone()
    other[:, 0, 1], other[:, 0, 2] = ERROR_FULL, 255
    colours = error_map(image, other)[:, 0].T.tolist()
    assert colours == [[0, 0, 0], [255, 236, 170], [255, 236, 170]]


def test_the_log_gives_curves_and_the_time_of_all_images():
    lines = [
        {"progress/kimg": 1, "timing/train_seconds": 10, "loss/kl": 3},
        {"progress/kimg": 3, "timing/train_seconds": 50, "loss/kl": 2, "weight/vf": 1},
    ]
    log = summarise_log(lines, "log.jsonl")
    assert log.losses == {"kl": [(1, 3), (3, 2)]} and log.kimg == 3 and log.seconds == 50
    with pytest.raises(DataError, match=r"log.jsonl: holds no tick"):
        summarise_log([], "log.jsonl")


def test_a_chart_draws_its_points_inside_and_leaves_out_what_is_not_finite():
    svg = line_chart([(0, 1.0), (1, math.nan), (2, 0.5), (4, 0.25)], "a & b", "kimg")
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', svg)[1].split()]
    assert len(points) == 3 and all(52 <= x <= 346 and 14 <= y <= 176 for x, y in points)
    assert points[0][1] < points[1][1] < points[2][1] and "a &amp; b" in svg
    assert "no values" in line_chart([(0, math.inf)], "a", "b")


def test_axes_start_at_zero_or_turn_logarithmic_where_that_helps():
    assert value_axis([1, 3]).low == 0 and not value_axis([1, 3]).logarithmic
    assert value_axis([10, 11]).low > 9
    assert value_axis([0.02, 5]).logarithmic and value_axis([0.02, 5]).ticks() == pytest.approx([0.01, 0.1, 1, 10])
    assert len(value_axis([2, 2]).ticks()) >= 2
    assert [number(value) for value in (0, 0.05, 1200, 1e-6, 5e6)] == ["0", "0.05", "1200", "1e-6", "5e6"]


def test_missing_files_are_named_with_what_to_do(run, tmp_path):
    with pytest.raises(DataError, match=r"photographs.json: cannot be read .* run tools/quickstart/photographs.py"):
        read_photographs(tmp_path / "photographs.json")
    with pytest.raises(DataError, match="expected the index of"):
        read_photographs(run / "results.json")
    with pytest.raises(DataError, match="inputs: not a folder"):
        score_crops(tmp_path)
