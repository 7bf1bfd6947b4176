"""The images of an alignment analysis: one clean set, and what the conditions make of it.

<root>/clean/*.png                       the images; their names pair features of different models
<root>/equivariance_transforms.json      {name: {"rotation": degrees, "scale": factor}}
<root>/noise_0.050/*.png ...             the same names with noise
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.errors import DataError
from evaluation.alignment.conditions import CLEAN, EQUIVARIANCE, ROTATIONS, Condition
from evaluation.alignment.transforms import ImageTransform
from evaluation.images import ImageFile, UnreadableImage, list_images, read_input

TRANSFORMS_FILE = f"{EQUIVARIANCE}_transforms.json"
PREPROCESS = "python tools/evaluate_alignment/preprocess.py --output-dir"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConditionedImage:
    """One image under one condition.

    Args:
        file: the file, which holds the noise already.
        transform: what is still to be done to it.
        record: what feature files say of it, plain values.
    """

    file: ImageFile
    transform: ImageTransform
    record: dict[str, Any]


class AnalysisImages:
    """The images below a root folder.

    Raises: DataError if there is no clean set.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.clean = list_clean(self.root / CLEAN)

    def under(self, condition: Condition) -> list[ConditionedImage]:
        """Every image under a condition, sorted by name.

        Raises: DataError if the condition was not prepared, or was prepared for other images.
        """
        if condition.mode == "noise":
            record = {"mode": "noise", "noise_level": condition.value}
            return [ConditionedImage(image, ImageTransform(), record) for image in self._noisy(condition)]
        if condition.mode == "equivariance":
            drawn = self._transforms()
            return [
                ConditionedImage(image, drawn[image.key], asdict(drawn[image.key]) | {"mode": "equivariance"})
                for image in self.clean
            ]
        transform = {
            "clean": ImageTransform(),
            "scale": ImageTransform(scale=condition.value),
            "rotation": ImageTransform(rotation=int(condition.value)),
        }[condition.mode]
        record = {"mode": condition.mode, **({} if condition.mode == "clean" else asdict(transform))}
        return [ConditionedImage(image, transform, record) for image in self.clean]

    @cache  # noqa: B019 (one object for the time of a command)
    def sha256(self, condition: Condition) -> str:
        """Hex SHA-256 over names, files and transformations of a condition."""
        digest = hashlib.sha256()
        for image in self.under(condition):
            digest.update(json.dumps([image.file.key, image.record]).encode())
            digest.update(image.file.content())
        return digest.hexdigest()

    def _noisy(self, condition: Condition) -> list[ImageFile]:
        folder = self.root / condition.name
        if not folder.is_dir():
            raise DataError(f"{folder}: does not exist; make it with `{PREPROCESS} {self.root}`.")
        images = list_clean(folder)
        require_same_names(folder, {image.key for image in images}, {image.key for image in self.clean})
        return images

    def _transforms(self) -> dict[str, ImageTransform]:
        path = self.root / TRANSFORMS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            drawn = {name: _transform_of(record) for name, record in content.items()}
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}); make it with `{PREPROCESS} {self.root}`.") from error
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}: expected {{name: {{"rotation": 90, "scale": 0.5}}}}, quarter turns and scales up to 1 '
                f"({error!r})."
            ) from error
        require_same_names(path, drawn.keys(), {image.key for image in self.clean})
        return drawn


def _transform_of(record: dict[str, Any]) -> ImageTransform:
    rotation, scale = int(record["rotation"]), float(record["scale"])
    if rotation not in ROTATIONS or not 0 < scale <= 1:
        raise ValueError(f"found rotation {rotation} and scale {scale:g}")
    return ImageTransform(rotation, scale)


def list_clean(folder: Path) -> list[ImageFile]:
    """The PNG files of a folder, sorted by stem, on which the seeds of published draws depend.

    Raises: DataError if there is none.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: does not exist; expected a folder of PNG images. `{PREPROCESS} {folder.parent} "
            "--draw-from DATA` draws one from a data set."
        )
    images = list_images(folder)
    pngs = [image for image in images if image.path.suffix.lower() == ".png"]
    if not pngs:
        raise DataError(f"{folder}: found {len(images)} images, but no PNG, the only format of an analysis.")
    if len(pngs) < len(images):
        log.warning("%s: %d images that are not PNG are left out.", folder, len(images) - len(pngs))
    return sorted(pngs, key=lambda image: image.key)


def require_same_names(place: Path, found: Iterable[str], clean: Iterable[str]) -> None:
    """Raise DataError if the names at a place are not those of the clean set."""
    if different := sorted(set(found) ^ set(clean)):
        raise DataError(
            f"{place}: {len(different)} names are not those of the clean set, such as {different[0]!r}; remove it and "
            "run preprocess.py again."
        )


def read_square(image_file: ImageFile, resolution: int) -> np.ndarray:
    """An image as uint8 [R, R, 3], resized by Lanczos where it has another size. Raises: DataError."""
    try:
        image = read_input(image_file)
    except UnreadableImage as error:
        raise DataError(f"{image_file}: not readable ({error}); an analysis needs every image of its set.") from error
    if image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(image)


def flat_name(key: str) -> str:
    """Name of a sample in one flat folder, from its key or path without suffix.

    `n01440764/ILSVRC2012_val_00000293` -> `n01440764_ILSVRC2012-val-00000293`: what stands before the last underscore
    is the class, as `class_of_name` reads it.
    """
    path, _, stem = key.rpartition("/")
    folder = path.rpartition("/")[2]
    return stem if not folder or stem.startswith(f"{folder}_") else f"{folder}_{stem.replace('_', '-')}"


def class_of_name(name: str) -> str:
    """The class in a name: what stands before the last underscore."""
    return name.rpartition("_")[0]
