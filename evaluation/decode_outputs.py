"""Where decoded images go: PNG files, or one .npz file in the form of ADM."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from common.files import write_atomically
from evaluation.image_batches import IMAGES_KEY
from evaluation.images import write_png
from evaluation.npz import write_npz

Task = Callable[[], None]


class Output(ABC):
    """A place that images go to, by their number in the order of names."""

    @abstractmethod
    def is_done(self, number: int) -> bool:
        """Whether an image is already there."""

    @abstractmethod
    def add(self, number: int, image: Tensor) -> Task | None:
        """Take in an image that is missing, uint8 [3, H, W]; returns what is to be written now, in a thread."""

    def finish(self) -> None:  # noqa: B027 (most have nothing to do)
        """What is left to do once all images are there; for one process."""


class PngFolder(Output):
    """One PNG file per image."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = folder, names

    def is_done(self, number: int) -> bool:
        return (self.folder / self.names[number]).is_file()

    def add(self, number: int, image: Tensor) -> Task:
        return lambda: write_png(self.folder / self.names[number], image)


class NpzParts(Output):
    """Images that become one .npz file in the end; until then they lie in files of some images each.

    A part is whole or absent, so that an interrupted run can go on. Images of one part must come in order, from one
    process.

    Args:
        target: the .npz file.
        folder: of the parts.
        count: images in all.
        is_finished: the .npz file is there.
    """

    def __init__(self, target: Path, folder: Path, count: int, images_per_part: int, is_finished: bool):
        self.target, self.folder, self.count, self.size = target, folder, count, images_per_part
        self.is_finished = is_finished
        self._rows: list[np.ndarray] = []

    def part(self, number: int) -> Path:
        """The file that an image is in."""
        first = number // self.size * self.size
        return self.folder / f"{first:06d}-{min(first + self.size, self.count) - 1:06d}.npy"

    def is_done(self, number: int) -> bool:
        return self.is_finished or self.part(number).is_file()

    def add(self, number: int, image: Tensor) -> Task | None:
        self._rows.append(image.permute(1, 2, 0).numpy())
        if (number + 1) % self.size and number + 1 < self.count:
            return None
        rows, path, self._rows = np.stack(self._rows), self.part(number), []
        return lambda: write_atomically(path, lambda partial: _save_array(partial, rows))

    def finish(self) -> None:
        """Write the .npz file and remove the parts."""
        if not self.is_finished:
            size = np.load(self.part(0), mmap_mode="r").shape[1:]
            write_npz(self.target, IMAGES_KEY, (self.count, *size), self._all_rows())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all_rows(self) -> Iterator[np.ndarray]:
        for first in range(0, self.count, self.size):
            yield from np.load(self.part(first))


def _save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)
