"""The 1,797 scans of handwritten digits that come with scikit-learn, as a small labelled data set of real images.

installed package -> scans of 8 x 8 pixels -> 32 x 32 pixels -> WebDataset shards (training | held out)

The scans are the test part of the UCI set "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998).
Nothing is downloaded. The split is by scan; it cannot be by writer, whom the set does not name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import DataError
from common.random import python_generator
from data.shards import SIZES_FILE, list_shards
from data.write_shards import NewSample, encode_image, write_shards

SIDE = 32
CLASSES = 10
HELD_OUT = 500
TRAINING_FOLDER, HELD_OUT_FOLDER = "training", "heldout"
PREFIX = "digits"


@dataclass(frozen=True)
class DigitScans:
    """Scans of one part of the set.

    Attributes:
        keys: `digit<class>_<number in the whole set>`.
        images: uint8 [N, 32, 32, 3], white strokes on black; three equal channels.
        labels: the digits, int64 [N].
    """

    keys: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def samples(self) -> Iterator[NewSample]:
        """As shards hold them, losslessly."""
        for key, pixels, label in zip(self.keys, self.images, self.labels):
            yield NewSample(key, *encode_image(pixels, "png"), label=int(label))


@dataclass(frozen=True)
class DigitSplit:
    """All scans, each in one part."""

    training: DigitScans
    held_out: DigitScans


@cache
def load_digit_scans() -> DigitSplit:
    """The scans in two parts, always the same ones: 500 are held out."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = list(range(len(scans.target)))
    python_generator(0, "split of the digit scans").shuffle(order)

    def part(numbers: list[int]) -> DigitScans:
        labels = scans.target[numbers]
        keys = tuple(f"digit{label}_{number:04d}" for label, number in zip(labels, numbers))
        return DigitScans(keys, np.stack([enlarge(scans.images[number]) for number in numbers]), labels)

    return DigitSplit(part(sorted(order[HELD_OUT:])), part(sorted(order[:HELD_OUT])))


def label_of_key(key: str) -> int:
    """The digit that a key of this set names. Raises DataError if it is no such key."""
    match = re.fullmatch(r"digit(\d)_\d{4}", key)
    if match is None:
        raise DataError(f"{key!r} is no key of a digit scan, expected one such as 'digit3_0123'.")
    return int(match[1])


def enlarge(scan: np.ndarray) -> np.ndarray:
    """A scan [8, 8] of 17 grey levels -> uint8 [32, 32, 3], bicubically."""
    grey = Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8))
    return np.repeat(np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None], 3, axis=2)


def write_digit_shards(output_dir: str | Path) -> DigitSplit:
    """Write the shards of both parts, `training/` and `heldout/`, unless an earlier call has finished them.

    Raises: DataError if a folder holds shards of somebody else.
    """
    split = load_digit_scans()
    for name, scans in ((TRAINING_FOLDER, split.training), (HELD_OUT_FOLDER, split.held_out)):
        _write_part(Path(output_dir) / name, scans)
    return split


def _write_part(folder: Path, scans: DigitScans) -> None:
    if (folder / SIZES_FILE).is_file():  # is written last
        return
    for name in list_shards(folder) if folder.is_dir() else []:
        if not name.startswith(f"{PREFIX}-"):
            raise DataError(f"{folder / name}: is no shard of the digit scans; choose another --output-dir.")
        (folder / name).unlink()
    write_shards(scans.samples(), folder, prefix=PREFIX)
