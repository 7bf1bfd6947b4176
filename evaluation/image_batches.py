"""Batches of images of one size, as generation metrics compare them: an .npz file, a folder or shards."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from common.errors import DataError
from common.random import numpy_generator
from evaluation.batches import read_ahead
from evaluation.images import InputImage, UnreadableImage, list_images, open_images, read_input, resized, to_tensor
from evaluation.npz import array_names, read_header, read_rows, write_npz

IMAGES_KEY = "arr_0"


class ImageBatch(ABC):
    """Images of one size.

    Args:
        count: how many.
        size: their (height, width).
    """

    def __init__(self, count: int, size: tuple[int, int]):
        self.count, self.size = count, size

    @abstractmethod
    def read(self, indices: Sequence[int], workers: int = 4) -> Iterator[Tensor]:
        """The images of these numbers, uint8 [3, H, W]. Raises DataError for one that cannot be read.

        Args:
            indices: ascending, unless the images are files of their own.
        """


class NpzImages(ImageBatch):
    """Images of an .npz file in the form of ADM: `arr_0`, uint8 [N, H, W, 3]; one is in memory at a time."""

    def __init__(self, path: Path):
        self.path = path
        header = read_header(path, IMAGES_KEY)
        if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[-1] != 3 or not header.shape[0]:
            raise DataError(
                f"{path}: {IMAGES_KEY}: found {header.dtype} {list(header.shape)}, expected uint8 [N, H, W, 3]."
            )
        super().__init__(header.shape[0], header.shape[1:3])

    def read(self, indices: Sequence[int], workers: int = 4) -> Iterator[Tensor]:
        wanted = iter(indices)
        following = next(wanted, None)
        # Closing the rows at once closes the file, also where fewer than all are wanted.
        with contextlib.closing(read_rows(self.path, IMAGES_KEY)) as rows:
            for number, row in enumerate(rows):
                if following is None:
                    return
                if number == following:
                    yield to_tensor(row)
                    following = next(wanted, None)


class FileImages(ImageBatch):
    """Images of a folder or of shards.

    Args:
        images: at least one.
        resize: side to which all are brought first, see `evaluation.images.resized`.
    """

    def __init__(self, images: Sequence[InputImage], resize: int | None = None):
        self._images, self._resize = images, resize
        super().__init__(len(images), self._size(images[0]))

    def _size(self, image: InputImage) -> tuple[int, int]:
        width, height = resized(_readable(image), self._resize).size
        return height, width

    def read(self, indices: Sequence[int], workers: int = 4) -> Iterator[Tensor]:
        with ThreadPoolExecutor(workers) as pool:
            yield from read_ahead(pool, self._read_one, indices, ahead=4 * workers)

    def _read_one(self, index: int) -> Tensor:
        pixels = np.asarray(resized(_readable(self._images[index]), self._resize))
        if pixels.shape[:2] != self.size:
            sizes = [f"{width} x {height}" for height, width in (pixels.shape[:2], self.size)]
            raise DataError(
                f"{self._images[index]}: found {sizes[0]} pixels, expected {sizes[1]} as in {self._images[0]}; all "
                "images must have one size."
            )
        return to_tensor(pixels)


def _readable(image: InputImage):
    try:
        return read_input(image)
    except UnreadableImage as error:
        raise DataError(f"{image}: not readable as an image ({error}).") from error


def open_image_batch(path: str | Path) -> ImageBatch | None:
    """The images of an .npz file, a folder or shards; None for an .npz file without any. Every rank must call it.

    Raises: DataError if there is no such file, or it holds something else.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return NpzImages(path) if IMAGES_KEY in array_names(path) else None
    if not path.exists() or (path.is_file() and path.suffix.lower() != ".tar"):
        found = "no such kind of file" if path.exists() else "does not exist"
        raise DataError(f"{path}: {found}; expected an .npz file, a folder of images, or shards.")
    opened = open_images(path)
    if opened.problems:
        raise DataError(f"{opened.problems[0]}; expected shards without faults.")
    return FileImages(opened.images)


def save_as_npz(
    folder: str | Path, target: str | Path, num: int, seed: int | None = None, show_progress: bool = False
) -> None:
    """Write the first `num` images of a folder, in order of name, as an .npz file in the form of ADM.

    One image is in memory at a time.

    Args:
        seed: take them in a random order that it decides, instead of in order of name.
        show_progress: draw a progress bar.
    Raises: DataError if there are fewer images, or one cannot be read or has another size.
    """
    images = FileImages(list_images(folder))
    if images.count < num:
        raise DataError(f"{folder}: found {images.count} images, expected at least {num} (--num).")
    indices = range(num)
    if seed is not None:
        indices = numpy_generator(seed, "order of images").permutation(images.count)[:num].tolist()
    rows = (image.permute(1, 2, 0).numpy() for image in images.read(indices))
    shown = tqdm(rows, total=num, unit="image", disable=not show_progress)
    write_npz(target, IMAGES_KEY, (num, *images.size, 3), shown)
