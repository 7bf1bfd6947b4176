import csv
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import DataError
from evaluation.quality import pair_folders, score_pairs, summarise

CPU = torch.device("cpu")
TOOL = Path(__file__).parents[2] / "tools" / "reconstruct" / "evaluate.py"


def write(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def folders(tmp_path):
    ref, pred = tmp_path / "ref", tmp_path / "pred"
    generator = np.random.default_rng(0)
    for index, size in enumerate([(24, 24), (24, 24), (24, 30), (24, 24), (18, 18)]):
        pixels = generator.integers(20, 230, (*size, 3), dtype=np.uint8)
        noise = generator.integers(-9 - index, 10 + index, pixels.shape)
        write(ref, f"{index}.png", pixels)
        write(pred, f"{index}.png", (pixels + noise).astype(np.uint8))
    return ref, pred


def scores_of(folders, batch_size=2, workers=2):
    return score_pairs(pair_folders(*folders), batch_size=batch_size, workers=workers, device=CPU)


def evaluate(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments), "--device", "cpu"])
    return runpy.run_path(str(TOOL))["main"]()


def test_scores_do_not_depend_on_batch_size_or_workers(folders):
    one = scores_of(folders, 1, 0)
    for batch_size, workers in ((2, 1), (5, 3)):
        for a, b in zip(one, scores_of(folders, batch_size, workers), strict=True):
            assert a.name == b.name
            assert abs(a.psnr - b.psnr) < 1e-9 and abs(a.ssim - b.ssim) < 1e-9 and abs(a.ssim_01 - b.ssim_01) < 1e-9


def test_psnr_is_that_of_the_8_bit_files(folders):
    ref, pred = (np.asarray(Image.open(folder / "2.png")).astype(float) for folder in folders)
    expected = 10 * math.log10(255**2 / ((ref - pred) ** 2).mean())
    assert abs(scores_of(folders)[2].psnr - expected) < 1e-4


def test_the_mean_is_over_images_and_an_infinite_psnr_counts_as_the_cap(folders):
    ref, pred = folders
    (pred / "0.png").write_bytes((ref / "0.png").read_bytes())
    scores = scores_of(folders)
    assert scores[0].psnr == math.inf
    summary = summarise(scores, psnr_cap=60)
    assert summary.capped == 1 and summary.psnr_cap == 60
    assert abs(summary.psnr - (60 + sum(score.psnr for score in scores[1:])) / 5) < 1e-9


def test_grey_and_transparent_files_are_compared_as_rgb(tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    write(tmp_path / "ref", "a.png", grey)
    write(tmp_path / "pred", "a.png", np.dstack([grey, grey, grey, np.full_like(grey, 9)]))
    assert scores_of((tmp_path / "ref", tmp_path / "pred"))[0].psnr == math.inf


def test_unmatched_images_are_listed_unless_allowed(folders):
    ref, pred = folders
    (pred / "0.png").rename(pred / "other.png")
    (ref / "notes.txt").write_text("not an image")
    with pytest.raises(
        DataError, match=r"(?s)2 images have no partner.*0.png \(only in .*ref\)\n  other.png \(only in"
    ):
        pair_folders(ref, pred)
    pairs = pair_folders(ref, pred, allow_unmatched=True)
    assert len(pairs.names) == 4 and pairs.unmatched == ("0.png", "other.png")


def test_what_cannot_be_compared_is_named(folders, tmp_path):
    ref, pred = folders
    with pytest.raises(DataError, match="nothing: not a folder"):
        pair_folders(ref, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"\(5 images\) and .*empty \(0 images\) have no file name in common"):
        pair_folders(ref, tmp_path / "empty", allow_unmatched=True)
    write(pred, "1.png", np.zeros((30, 24, 3), np.uint8))
    with pytest.raises(DataError, match=r"1.png: found 24 x 24 pixels in .*ref and 24 x 30 in .*pred"):
        scores_of(folders)
    (pred / "1.png").write_bytes((ref / "1.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"pred/1.png: not readable as an image \(truncated image"):
        scores_of(folders)


def test_lpips_is_computed_in_batches_on_signed_images_when_given(folders):
    def brightness_gap(real, generated):
        assert real.dtype == torch.float32 and real.min() < 0
        return (real - generated).abs().mean(dim=(1, 2, 3))

    scores = score_pairs(pair_folders(*folders), batch_size=3, workers=1, device=CPU, lpips=brightness_gap)
    ref, pred = (np.asarray(Image.open(folder / "4.png")).astype(float) for folder in folders)
    assert scores[4].lpips == pytest.approx(np.abs(ref - pred).mean() / 127.5, rel=1e-5)
    assert summarise(scores).lpips == pytest.approx(sum(score.lpips for score in scores) / 5)


def test_the_command_prints_and_writes_all_numbers(folders, tmp_path, monkeypatch, capsys):
    report, table = tmp_path / "out" / "scores.json", tmp_path / "out" / "scores.csv"
    paths = ("--ref-dir", folders[0], "--pred-dir", folders[1])
    evaluate(monkeypatch, *paths, "--output-json", report, "--per-image-csv", table)
    summary = summarise(scores_of(folders))
    printed = capsys.readouterr().out
    assert "Total:   5 pairs\n" in printed and "LPIPS:   left out: no VGG16 trunk found" in printed
    assert f"PSNR:    {summary.psnr:.4f} dB\n" in printed
    assert f"SSIM:    {summary.ssim:.4f}  (images in [-1, 1]" in printed
    assert f"ssim_01: {summary.ssim_01:.4f}  (images in [0, 1])" in printed
    content = json.loads(report.read_text())
    assert content["psnr"] == round(summary.psnr, 6) and content["lpips"] is None and content["total"] == 5
    rows = list(csv.DictReader(table.open()))
    assert [row["name"] for row in rows] == [f"{index}.png" for index in range(5)]
    assert float(rows[3]["psnr"]) == round(scores_of(folders)[3].psnr, 6)
