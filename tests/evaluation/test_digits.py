"""The judge of digits: how good it is, and what it says of sets of which the truth is known."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from data.digits import load_digit_scans
from evaluation.digits import Judge, first_of_each_class, pooled, read_samples, wilson_share, with_mirror_images

ROOT = Path(__file__).parents[2]
SPLIT = load_digit_scans()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(SPLIT.training)


@pytest.mark.parametrize(
    "count, total, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_of_newcombe_1998(count, total, low, high) -> None:
    share = wilson_share(count, total)
    assert share.share == count / total
    assert (share.low, share.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_judge_knows_at_least_95_percent_of_held_out_scans_and_of_their_mirror_images(judge) -> None:
    labels = SPLIT.held_out.labels
    both = judge.classify(with_mirror_images(SPLIT.held_out.images)).reshape(2, -1) == labels
    assert both.mean(axis=1).min() >= 0.95


def test_real_scans_agree_with_their_labels_and_with_no_others(judge) -> None:
    images, labels = SPLIT.held_out.images, SPLIT.held_out.labels
    assert judge.score(images, labels).agreement.share >= 0.95
    assert judge.score(images, (labels + 1) % 10).agreement.share <= 0.05


def test_nearest_scan_of_a_mirrored_training_scan_is_itself(judge) -> None:
    mirrored = with_mirror_images(SPLIT.training.images[:20])[20:]
    nearest = judge.nearest(mirrored)
    assert nearest.distances.max() < 1e-6
    np.testing.assert_array_equal(nearest.images, mirrored)


def test_distances_are_root_mean_squares_of_pooled_grey_values(judge) -> None:
    image = SPLIT.held_out.images[:1]
    every = pooled(with_mirror_images(SPLIT.training.images))
    expected = np.sqrt(((pooled(image) - every) ** 2).mean(axis=1)).min()
    assert judge.nearest(image).distances[0] == pytest.approx(expected, abs=1e-12)


# --- the command ------------------------------------------------------------------------------------------------------


def write_samples(folder: Path, labels: np.ndarray) -> Path:
    """Held-out scans as if they had been decoded, each with a label that somebody wanted."""
    folder.mkdir()
    wanted = {}
    for number, (image, label) in enumerate(zip(SPLIT.held_out.images, labels)):
        Image.fromarray(image).save(folder / f"rank00_{number:06d}.png")
        wanted[f"rank00_{number:06d}.png"] = {"label_id": int(label)}
    (folder / "labels.json").write_text(json.dumps(wanted))
    return folder


def test_command_scores_every_set_and_shows_samples_above_their_nearest_scans(tmp_path, monkeypatch, capsys) -> None:
    labels = SPLIT.held_out.labels
    good, bad = write_samples(tmp_path / "good", labels), write_samples(tmp_path / "bad", (labels + 1) % 10)
    reconstructions = tmp_path / "reconstructions"
    reconstructions.mkdir()
    for key, image in zip(SPLIT.held_out.keys[:20], SPLIT.held_out.images):
        Image.fromarray(image).save(reconstructions / f"{key}.png")
    sets = [f"--samples=good={good}", f"--samples=bad={bad}"]
    monkeypatch.setattr(
        sys, "argv", ["score.py", "--reconstructions", str(reconstructions), *sets, "--output-dir", str(tmp_path)]
    )
    runpy.run_path(str(ROOT / "tools/digits/score.py"))["main"]()
    results = json.loads((tmp_path / "results.json").read_text())
    agreement = {name: results["samples"][name]["agreement"] for name in ("good", "bad")}
    assert agreement["good"] == results["held_out_scans"]["agreement"]
    assert agreement["good"]["total"] == 500 and agreement["bad"]["share"] <= 0.05
    assert results["held_out_reconstructions"]["agreement"]["total"] == 20
    with Image.open(tmp_path / "good.png") as picture:
        assert picture.size == (10 * 34 + 2, 8 * 36)
        first = np.asarray(picture)[2:34, 2:34]
    np.testing.assert_array_equal(first, SPLIT.held_out.images[labels == 0][0])
    assert f"good{agreement['good']['share']:>38.1%}" in capsys.readouterr().out


def test_samples_without_wanted_digits_are_refused(tmp_path) -> None:
    folder = write_samples(tmp_path / "samples", SPLIT.held_out.labels + 10)
    with pytest.raises(DataError, match=r"labels\.json: rank00_000000\.png: found label 1\d, expected a digit"):
        read_samples(folder)
    (folder / "labels.json").unlink()
    with pytest.raises(DataError, match="decode labelled samples first"):
        read_samples(folder)


def test_pictures_need_samples_of_every_digit(tmp_path) -> None:
    samples = read_samples(write_samples(tmp_path / "samples", np.minimum(SPLIT.held_out.labels, 8)))
    with pytest.raises(DataError, match="0 samples of the digit 9, expected 4"):
        first_of_each_class(samples, 4)
