"""How well a generator of digits does what it is told: a classifier that knows the real scans judges its samples.

The classifier is a support vector machine on the 8 x 8 area means of an image, trained on the training scans and their
mirror images, since LightningDiT is trained on both: so it judges an image and its mirror image alike. It sees neither
samples nor held-out scans before it judges them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from data.digits import CLASSES, SIDE, DigitScans, DigitSplit, label_of_key
from evaluation.decoding import LABELS_NAME
from evaluation.images import ImageFile, UnreadableImage, list_images, read_rgb

POOLED_SIDE = 8
NORMAL_QUANTILE = 1.959964  # of 97.5 %, for intervals of 95 %


@dataclass(frozen=True)
class LabelledImages:
    """Images with the digits that they should show: uint8 [N, 32, 32, 3] and int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Share:
    """How many of some, with the 95 % interval of Wilson."""

    count: int
    total: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Nearest:
    """The most similar training scan, or mirror image of one, of each image.

    Attributes:
        images: uint8 [N, 32, 32, 3].
        distances: root mean square difference of the pooled grey values, in [0, 1], [N].
    """

    images: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Score:
    """What was found of a set of images.

    Attributes:
        agreement: those that the judge takes for the wanted digit.
        by_class: how many of each digit.
        nearest_distance: median distance to the nearest training scan.
    """

    agreement: Share
    by_class: tuple[int, ...]
    nearest_distance: float


def wilson_share(count: int, total: int) -> Share:
    """A share and its 95 % interval (Wilson, JASA 22, 1927): (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
    assert 0 <= count <= total and total > 0
    p, z2 = count / total, NORMAL_QUANTILE**2
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = NORMAL_QUANTILE * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return Share(count, total, p, max(middle - half, 0.0), min(middle + half, 1.0))


def pooled(images: np.ndarray) -> np.ndarray:
    """Grey area means in [0, 1] of uint8 images [N, 32, 32, 3]: float64 [N, 64]."""
    cell = SIDE // POOLED_SIDE
    cells = images.reshape(len(images), POOLED_SIDE, cell, POOLED_SIDE, cell, 3)
    return cells.mean(axis=(2, 4, 5)).reshape(len(images), -1) / 255


def with_mirror_images(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 3], then their mirror images."""
    return np.concatenate([images, images[:, :, ::-1]])


class Judge:
    """Knows the training scans: which digit an image shows, and which scan it resembles most.

    Args:
        training: the scans to learn from.
    """

    def __init__(self, training: DigitScans):
        from sklearn.svm import SVC

        self._scans = with_mirror_images(training.images)
        self._pooled = pooled(self._scans)
        self._machine = SVC(C=10, gamma="scale").fit(self._pooled, np.tile(training.labels, 2))

    def classify(self, images: np.ndarray) -> np.ndarray:
        """The digits that images [N, 32, 32, 3] show, [N]."""
        return self._machine.predict(pooled(images))

    def nearest(self, images: np.ndarray) -> Nearest:
        """The training scans that images [N, 32, 32, 3] resemble most."""
        points = pooled(images)
        squared = (points**2).sum(1)[:, None] + (self._pooled**2).sum(1) - 2 * points @ self._pooled.T
        best = squared.argmin(axis=1)
        rms = np.sqrt(np.maximum(squared[np.arange(len(best)), best], 0) / points.shape[1])
        return Nearest(self._scans[best], rms)

    def score(self, images: np.ndarray, labels: np.ndarray) -> Score:
        """Agreement of images [N, 32, 32, 3] with the digits [N] that they should show."""
        agrees = self.classify(images) == labels
        by_class = np.bincount(labels[agrees], minlength=CLASSES)
        distance = float(np.median(self.nearest(images).distances))
        return Score(wilson_share(int(agrees.sum()), len(labels)), tuple(by_class.tolist()), distance)


# --- sets of images ---------------------------------------------------------------------------------------------------


def read_samples(folder: Path) -> LabelledImages:
    """Decoded samples, with the labels that `labels.json` beside them wanted.

    Raises: DataError if the folder does not hold images of 32 pixels, all with a digit as their label.
    """
    try:
        wanted = json.loads((folder / LABELS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / LABELS_NAME}: cannot be read ({error}); decode labelled samples first.") from error
    files = list_images(folder)
    labels = []
    for file in files:
        label = wanted.get(file.path.name, {}).get("label_id")
        if label not in range(CLASSES):
            raise DataError(f"{folder / LABELS_NAME}: {file.path.name}: found label {label}, expected a digit.")
        labels.append(label)
    return LabelledImages(np.stack([_read_pixels(file) for file in files]), np.array(labels))


def read_reconstructions(folder: Path) -> LabelledImages:
    """Reconstructed scans, whose names say which digit they show. Raises DataError for other images."""
    files = list_images(folder)
    return LabelledImages(
        np.stack([_read_pixels(file) for file in files]), np.array([label_of_key(file.key) for file in files])
    )


def _read_pixels(file: ImageFile) -> np.ndarray:
    try:
        pixels = np.asarray(read_rgb(file.path))
    except UnreadableImage as error:
        raise DataError(f"{file.path}: not readable as an image ({error}).") from error
    if pixels.shape != (SIDE, SIDE, 3):
        raise DataError(f"{file.path}: found {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {SIDE} x {SIDE}.")
    return pixels


def first_of_each_class(samples: LabelledImages, count: int) -> np.ndarray:
    """Images in rows of the ten digits, the first `count` of each digit: uint8 [count * 10, 32, 32, 3].

    Raises: DataError if a digit has fewer.
    """
    places = [np.flatnonzero(samples.labels == digit)[:count] for digit in range(CLASSES)]
    for digit, found in enumerate(places):
        if len(found) < count:
            raise DataError(f"{len(found)} samples of the digit {digit}, expected {count}; sample --labels balanced.")
    return samples.images[np.stack(places, axis=1).ravel()]


# --- results ----------------------------------------------------------------------------------------------------------


def score_digits(
    judge: Judge, split: DigitSplit, reconstructions: LabelledImages, samples: Mapping[str, LabelledImages]
) -> dict[str, Any]:
    """Scores of real scans, of their reconstructions, and of sets of samples, as JSON holds them."""
    held_out = split.held_out
    return {
        "chance": 1 / CLASSES,
        "training_scans": len(split.training),
        "held_out_scans": asdict(judge.score(held_out.images, held_out.labels)),
        "held_out_reconstructions": asdict(judge.score(reconstructions.images, reconstructions.labels)),
        "samples": {name: asdict(judge.score(each.images, each.labels)) for name, each in samples.items()},
    }
