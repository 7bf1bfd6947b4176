"""Folders of images as the tools read and write them: sorted lists, square crops, 8-bit PNG files."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from common.errors import DataError
from common.files import write_atomically
from common.registry import Registry
from data.decode import IMAGE_EXTENSIONS, decode_image
from data.skips import BadSample
from data.write_shards import encode_image

IMAGE_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


class UnreadableImage(Exception):
    """A file is not a whole image; the message says why."""


@dataclass(frozen=True)
class ImageFile:
    """One image of a folder.

    Args:
        path: the file.
        key: its path below the folder without suffix; what its random draws are keyed by.
    """

    path: Path
    key: str

    @property
    def png_name(self) -> str:
        """Its name in every output folder."""
        return f"{self.key}.png"


def list_images(folder: str | Path, recursive: bool = False) -> list[ImageFile]:
    """All images of a folder, sorted by name; hidden files are left out.

    Raises: DataError if the folder is missing or holds no image, or if two images would be written to one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected one that holds images.")
    paths = [
        path
        for path in (folder.rglob("*") if recursive else folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not paths:
        raise DataError(f"{folder}: no image found, expected files with {', '.join(IMAGE_SUFFIXES)} in any case.")
    images = [ImageFile(path, path.relative_to(folder).with_suffix("").as_posix()) for path in paths]
    images.sort(key=lambda image: image.path.relative_to(folder).as_posix())
    _refuse_collisions(folder, images)
    return images


def _refuse_collisions(folder: Path, images: list[ImageFile]) -> None:
    by_name = defaultdict(list)
    for image in images:
        by_name[image.png_name].append(image.path.name)
    collisions = {name: files for name, files in by_name.items() if len(files) > 1}
    if collisions:
        name, files = next(iter(collisions.items()))
        raise DataError(
            f"{folder}: {' and '.join(files)} would both be written as {name} ({len(collisions)} such names); "
            "rename or move one of them."
        )


def read_rgb(path: Path) -> Image.Image:
    """A whole image file as RGB, converted as training images are. Raises UnreadableImage if it is not one."""
    try:
        return Image.fromarray(decode_image(path.read_bytes()).pixels)
    except BadSample as error:
        raise UnreadableImage(f"{error.kind}: {error.detail}" if error.detail else error.kind) from error
    except OSError as error:
        raise UnreadableImage(str(error)) from error


def torchvision_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """Short side to `resolution` (bilinear, antialiased), then the centre square: uint8 [R, R, 3]."""
    resized = tv.resize(image, resolution, InterpolationMode.BILINEAR)
    return np.asarray(tv.center_crop(resized, resolution))


def adm_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """The centre crop of ADM: halve (box) while twice too large, then bicubic, then the centre: uint8 [R, R, 3]."""
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return np.asarray(image)[top : top + resolution, left : left + resolution]


CROPS: Registry = Registry("crop", {"torchvision": torchvision_crop, "adm": adm_crop})


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def png_bytes(image: Tensor) -> bytes:
    """A uint8 image [3, H, W] as a PNG file."""
    return encode_image(image.permute(1, 2, 0).contiguous().cpu().numpy(), "png")[0]


def write_png(path: Path, image: Tensor) -> None:
    """Write a uint8 image [3, H, W]; the file is whole or absent."""
    content = png_bytes(image)
    write_atomically(path, lambda partial: partial.write_bytes(content))
