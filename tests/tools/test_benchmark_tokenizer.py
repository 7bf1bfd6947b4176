"""One command from images and a checkpoint to metrics, their protocol and a page; broken input is told, not met."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import runpy
import shutil
import socket
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import DataError
from data.write_shards import NewSample, write_shards
from evaluation.quality import PairScore
from evaluation.reconstruction_report import _groups, amplified_error
from tests.forkserver import CONTEXT

TOOLS = Path(__file__).parents[2] / "tools" / "reconstruct"
FRECHET = "efficientnet_lite0_frechet_distance"
COUNT = 5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = np.kron(rng.integers(0, 256, (8, 9 + number, 3)), np.ones((9, 9, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"picture <{number}>.png")
    return folder


def main_of(tool: str):
    """`main` of a script that imports its neighbours, as Python starts it."""
    sys.path.insert(0, str(TOOLS))
    try:
        return runpy.run_path(str(TOOLS / tool))["main"]
    finally:
        sys.path.remove(str(TOOLS))


def run(monkeypatch, tool: str, *arguments) -> int | None:
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments), "--device", "cpu"])
    return main_of(tool)()


def arguments_of(pictures, tiny_tokenizer, output_dir) -> list[str]:
    files = ["--input-dir", pictures, "--vae-pth", tiny_tokenizer, "--output-dir", output_dir]
    return [*map(str, files), "--batch-size-per-gpu", "2", "--extractor", "efficientnet_lite0"]


@pytest.fixture(scope="module")
def benchmark(pictures, tiny_tokenizer, tmp_path_factory) -> Path:
    """The output folder of one run, in this process."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "benchmark_tokenizer.py", *arguments_of(pictures, tiny_tokenizer, out)) == 0
    return out


@pytest.fixture(scope="module")
def results(benchmark) -> dict:
    return json.loads((benchmark / "results.json").read_text())


def test_results_hold_every_metric_and_what_decides_it(results, pictures, tiny_tokenizer) -> None:
    assert results["num_images"] == COUNT
    names = ["psnr", "ssim", "ssim_01", "lpips", FRECHET]
    names += [f"efficientnet_lite0_{name}" for name in ("score_mean", "score_std", "kernel_distance_mean")]
    assert list(results["metrics"]) == names
    assert results["metrics"]["lpips"] is None and "left out" in results["metric_protocol"]["lpips"]
    assert "[-1, 1]" in results["metric_protocol"]["ssim"] and "[0, 1]" in results["metric_protocol"]["ssim_01"]
    sets = results["metric_protocol"]["sets"]
    assert (sets["extractor"], sets["images"]) == ("efficientnet_lite0", COUNT)
    assert re.fullmatch("[0-9a-f]{64}", sets["weights_sha256"])
    assert "5 images do not determine a covariance of 1280 features" in results["caution"]
    made = results["reconstruction"]
    assert made["protocol"] == {"resolution": 64, "crop": "torchvision", "latent": "sample", "seed": 0}
    assert made["counts"] == {"found": COUNT, "reconstructed": COUNT, "kept": 0, "unreadable": 0}
    assert (made["checkpoint"], made["input_dir"]) == (str(tiny_tokenizer), str(pictures))
    assert all(re.fullmatch("[0-9a-f]{64}", made[key]) for key in ("weights_sha256", "config_sha256"))
    assert made["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_hashes_can_be_computed_again_with_sha256sum(results, benchmark) -> None:
    for key, folder in (("inputs_sha256", "inputs"), ("outputs_sha256", "outputs")):
        files = sorted((benchmark / folder).iterdir())
        lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
        assert results[key] == hashlib.sha256(lines.encode()).hexdigest()


def test_means_are_those_of_the_table_and_of_the_evaluation_alone(
    results, benchmark, tmp_path, monkeypatch, capsys
) -> None:
    rows = list(csv.DictReader((benchmark / "per_image.csv").open()))
    assert len(rows) == COUNT
    assert results["metrics"]["psnr"] == pytest.approx(sum(float(row["psnr"]) for row in rows) / COUNT, abs=1e-6)
    folders = ("--ref-dir", benchmark / "inputs", "--pred-dir", benchmark / "outputs")
    options = ("--extractor", "efficientnet_lite0", "--batch-size", 2, "--output-json", tmp_path / "scores.json")
    run(monkeypatch, "evaluate.py", *folders, *options)
    alone = json.loads((tmp_path / "scores.json").read_text())
    assert {name: alone[name] for name in results["metrics"]} == results["metrics"]
    assert f"{FRECHET}: {results['metrics'][FRECHET]:.4f}" in capsys.readouterr().out


class Page(HTMLParser):
    """Pictures, and what a page would load from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.pictures: list[dict] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        found = dict(attributes)
        if tag == "img":
            self.pictures.append(found)
        links = [found.get("src"), found.get("href")]
        self.loaded += [link for link in links if link and not link.startswith("data:")]


def test_the_page_shows_best_median_and_worst_and_loads_nothing(benchmark, results) -> None:
    text = (benchmark / "report.html").read_text()
    page = Page(text)
    assert page.loaded == [] and "url(" not in text and "@import" not in text
    assert len(page.pictures) == 3 * COUNT  # input, reconstruction, error; no image twice
    assert page.pictures[0]["alt"].startswith("picture <")  # escaped in the source
    assert [title for title in ("Best", "Median", "Worst") if f"<h3>{title}</h3>" in text] == [
        "Best",
        "Median",
        "Worst",
    ]
    assert f"{results['metrics']['psnr']:.2f}" in text
    assert text.count("<svg") == 3 and "$" not in text


def test_the_picture_of_the_error_is_five_times_the_difference_in_each_colour() -> None:
    a = torch.tensor([[[10, 200]], [[10, 0]], [[10, 50]]], dtype=torch.uint8)
    b = torch.tensor([[[13, 100]], [[10, 0]], [[0, 60]]], dtype=torch.uint8)
    assert amplified_error(a, b).tolist() == [[[15, 255]], [[0, 0]], [[50, 50]]]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (5, [2, 2, 1]), (100, [4, 4, 4])])
def test_groups_of_pictures_share_none(count, sizes) -> None:
    groups = _groups([PairScore(str(number), number, 0, 0) for number in range(count)])
    assert [len(group) for group in groups.values()] == sizes
    names = [score.name for group in groups.values() for score in group]
    assert len(set(names)) == len(names)
    assert names[0] == str(count - 1)
    if count == 100:
        assert names[4:8] == ["51", "50", "49", "48"] and names[-1] == "0"


def start_rank(arguments: list[str], environment: dict[str, str]) -> None:
    """What a process of the test below does."""
    os.environ.update(environment)
    sys.argv = arguments
    sys.path.insert(0, str(TOOLS))
    runpy.run_path(arguments[0], run_name="__main__")


def test_two_processes_write_the_same_files_and_numbers_as_one(
    benchmark, results, pictures, tiny_tokenizer, tmp_path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    arguments = [str(TOOLS / "benchmark_tokenizer.py"), *arguments_of(pictures, tiny_tokenizer, tmp_path)]
    arguments += ["--device", "cpu", "--extractor", "none"]
    processes = [
        CONTEXT.Process(target=start_rank, args=(arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]
    other = json.loads((tmp_path / "results.json").read_text())
    assert other["reconstruction"]["ranks"] == 2
    assert other["inputs_sha256"] == results["inputs_sha256"]
    assert other["outputs_sha256"] == results["outputs_sha256"]
    assert other["metrics"].items() <= results["metrics"].items()
    assert (tmp_path / "per_image.csv").read_text() == (benchmark / "per_image.csv").read_text()


class Brightness(torch.nn.Module):
    """In the place of LPIPS: how bright the original is."""

    def __init__(self, where: Path):
        super().__init__()
        self.where = str(where)

    def forward(self, real, generated):
        return real.mean(dim=(1, 2, 3))


def test_lpips_names_its_trunk_and_ranks_the_pictures(pictures, tiny_tokenizer, tmp_path, monkeypatch) -> None:
    (tmp_path / "vgg.pth").write_bytes(b"weights")
    lpips = Brightness(tmp_path / "vgg.pth")
    monkeypatch.setattr("evaluation.reconstruction_scores.choose_lpips", lambda path: lpips)
    arguments = [*arguments_of(pictures, tiny_tokenizer, tmp_path / "out"), "--extractor", "none"]
    assert run(monkeypatch, "benchmark_tokenizer.py", *arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    digest = hashlib.sha256(b"weights").hexdigest()
    assert results["metric_protocol"]["lpips"].startswith(f"VGG16 trunk (vgg.pth, SHA-256 {digest})")
    rows = {row["name"]: float(row["lpips"]) for row in csv.DictReader((tmp_path / "out" / "per_image.csv").open())}
    assert results["metrics"]["lpips"] == pytest.approx(sum(rows.values()) / COUNT, abs=1e-6)
    text = (tmp_path / "out" / "report.html").read_text()
    shown = [picture["alt"].partition(",")[0] for picture in Page(text).pictures[::3]]
    assert shown == [name.removesuffix(".png") for name in sorted(rows, key=rows.get)]
    assert "Chosen by LPIPS" in text and text.count("<svg") == 4


# --- broken input ----------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """The command without metrics of sets."""

    def call(input_dir, tokenizer, out, *more):
        arguments = ["--input-dir", input_dir, "--vae-pth", tokenizer, "--output-dir", out, "--extractor", "none"]
        return run(monkeypatch, "benchmark_tokenizer.py", *arguments, *more)

    return call


def test_an_empty_folder_is_an_error(offline, tiny_tokenizer, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no image found, expected files with \.jpg"):
        offline(tmp_path / "empty", tiny_tokenizer, tmp_path / "out")


def test_a_corrupt_image_is_counted_and_the_rest_is_evaluated(
    offline, pictures, tiny_tokenizer, tmp_path, capsys
) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    broken = tmp_path / "in" / "picture <2>.png"
    broken.write_bytes(broken.read_bytes()[:80])
    assert offline(tmp_path / "in", tiny_tokenizer, tmp_path / "out") == 1
    assert "error: 1 of 5 images not readable" in capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_images"] == COUNT - 1
    assert results["reconstruction"]["counts"]["unreadable"] == 1
    assert "1 more could not be read" in (tmp_path / "out" / "report.html").read_text()


def test_a_set_of_broken_images_is_an_error_and_leaves_no_results(offline, tiny_tokenizer, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("of an earlier call")
    with pytest.raises(DataError, match=r"none of 1 images can be read; the first: .*a\.png \(not an image: empty"):
        offline(tmp_path / "in", tiny_tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


def test_images_of_all_sizes_and_shards_are_reference_enough(offline, pictures, tiny_tokenizer, benchmark, tmp_path):
    samples = (NewSample(file.stem, file.read_bytes(), "png") for file in sorted(pictures.iterdir()))
    write_shards(samples, tmp_path / "shards", shard_size=2)
    assert offline(tmp_path / "shards", tiny_tokenizer, tmp_path / "out", "--batch-size-per-gpu", 2) == 0
    results = [json.loads((folder / "results.json").read_text()) for folder in (benchmark, tmp_path / "out")]
    assert results[0]["outputs_sha256"] == results[1]["outputs_sha256"]
    assert results[0]["metrics"]["psnr"] == results[1]["metrics"]["psnr"]


def test_evaluation_of_sets_refuses_mixed_sizes_and_a_missing_partner(tmp_path, monkeypatch, capsys) -> None:
    for folder in ("ref", "pred"):
        (tmp_path / folder).mkdir()
        for number, size in enumerate([(64, 64), (64, 64), (72, 64)]):
            Image.new("RGB", size, (9, 9, number)).save(tmp_path / folder / f"{number}.png")
    paths = ("--ref-dir", tmp_path / "ref", "--pred-dir", tmp_path / "pred")
    with pytest.raises(DataError, match=r"2\.png: found 72 x 64 pixels, expected 64 x 64"):
        run(monkeypatch, "evaluate.py", *paths, "--extractor", "efficientnet_lite0")
    (tmp_path / "pred" / "2.png").unlink()
    with pytest.raises(
        DataError, match=r"1 images have no partner; .*--allow-unmatched(?s:.*)2\.png \(only in .*ref\)"
    ):
        run(monkeypatch, "evaluate.py", *paths)
    run(monkeypatch, "evaluate.py", *paths, "--allow-unmatched")
    assert "Total:   2 pairs (1 unmatched)" in capsys.readouterr().out


def test_missing_weights_are_told_before_any_work(pictures, tiny_tokenizer, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    arguments = ["--input-dir", pictures, "--vae-pth", tiny_tokenizer, "--output-dir", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments), "--extractor", "inception", "--device", "cpu"])
    monkeypatch.syspath_prepend(str(TOOLS))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOLS / "benchmark_tokenizer.py"), run_name="__main__")
    assert stop.value.code == 2
    assert "error: Inception weights: " in (error := capsys.readouterr().err)
    assert "weights-inception-2015-12-05-6726825d.pth" in error and not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        run(monkeypatch, "evaluate.py", "--ref-dir", "a", "--pred-dir", "b", "--inception-weights", "w.pth")
    assert "--extractor none does not use it; add --all" in capsys.readouterr().err
