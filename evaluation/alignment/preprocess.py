"""Preparation of an alignment analysis: the clean set, the drawn transformations, the noisy copies."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import DataError
from common.files import write_json_atomically
from common.random import numpy_generator
from evaluation.alignment.conditions import CLEAN, noise_name
from evaluation.alignment.images import TRANSFORMS_FILE, flat_name, list_clean, read_square, require_same_names
from evaluation.alignment.transforms import ImageTransform, add_noise, draw_transform
from evaluation.batches import read_ahead
from evaluation.images import (
    CROPS,
    ImageFile,
    UnreadableImage,
    open_images,
    png_name,
    read_input,
    to_tensor,
    write_png,
)

log = logging.getLogger(__name__)


def write_transforms(root: Path, seed: int) -> dict[str, ImageTransform]:
    """Draw a transformation for every clean image and write them."""
    drawn = {image.key: draw_transform(place, seed) for place, image in enumerate(list_clean(root / CLEAN))}
    write_json_atomically(root / TRANSFORMS_FILE, {name: asdict(transform) for name, transform in drawn.items()})
    return drawn


def write_noise(root: Path, level: float, resolution: int, seed: int, workers: int, show_progress: bool) -> int:
    """Write the clean images with noise; returns their number. Any number of threads writes the same files."""
    images = list_clean(root / CLEAN)

    def write(numbered: tuple[int, ImageFile]) -> None:
        place, image = numbered
        noisy = add_noise(read_square(image, resolution), level, place, seed)
        write_png(root / noise_name(level) / png_name(image), to_tensor(noisy))

    with ThreadPoolExecutor(workers) as pool:
        written = read_ahead(pool, write, enumerate(images), ahead=4 * workers)
        for _ in tqdm(written, noise_name(level), len(images), unit="image", disable=not show_progress):
            pass
    return len(images)


@dataclass(frozen=True)
class CleanDraw:
    """How the clean set is drawn from a data set: the first `count` readable ones of a random order.

    Args:
        data: image folder or folder of shards, searched recursively.
        count: images to draw.
        resolution: side of the square crops.
        crop: how they are cropped, a name of `evaluation.images.CROPS`.
        seed: of the random order.
    """

    data: str
    count: int
    resolution: int
    crop: str
    seed: int


def draw_clean_set(root: Path, how: CleanDraw, workers: int, show_progress: bool) -> list[str]:
    """Write `clean/`; returns the images that could not be read, whose places the next ones took.

    Raises: DataError if there is a clean set already, the data set is too small, or two images would get one name.
    """
    folder = root / CLEAN
    if folder.exists():
        raise DataError(f"{folder}: is there already; remove it, or leave out --draw-from to use it as it is.")
    images = open_images(how.data, recursive=True).images
    if len(images) < how.count:
        raise DataError(f"{how.data}: holds {len(images)} images, expected at least --num-images = {how.count}.")
    partial = _new_folder(folder)
    order = numpy_generator(how.seed, "alignment clean set").permutation(len(images))
    unreadable: list[str] = []
    names: set[str] = set()

    def crop(place: int) -> tuple[str, np.ndarray] | str:
        try:
            return flat_name(images[place].key), CROPS[how.crop](read_input(images[place]), how.resolution)
        except UnreadableImage as error:
            return f"{images[place]} ({error})"

    with ThreadPoolExecutor(workers) as pool, tqdm(total=how.count, unit="image", disable=not show_progress) as bar:
        for result in read_ahead(pool, crop, order, ahead=4 * workers):
            if isinstance(result, str):
                log.warning("left out of the clean set: %s", result)
                unreadable.append(result)
                continue
            name, pixels = result
            if name in names:
                raise DataError(f"{how.data}: two images would be written as {name}.png; rename one of them.")
            names.add(name)
            write_png(partial / f"{name}.png", to_tensor(pixels))
            bar.update()
            if len(names) == how.count:
                partial.rename(folder)
                return unreadable
    raise DataError(f"{how.data}: only {len(names)} of its images are readable, expected {how.count}.")


def use_clean_set(root: Path, folder: Path) -> None:
    """Copy the PNG images of a folder to `clean/`, unless it is that folder.

    Raises: DataError if there is none, or other images are there already.
    """
    images, clean = list_clean(folder), root / CLEAN
    if folder.resolve() == clean.resolve():
        return
    if clean.is_dir():
        require_same_names(clean, (path.stem for path in clean.glob("*.png")), (image.key for image in images))
        return
    partial = _new_folder(clean)
    for image in images:
        shutil.copyfile(image.path, partial / png_name(image))
    partial.rename(clean)


def _new_folder(final: Path) -> Path:
    """An empty folder beside `final`, to be renamed to it when it is complete."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial
