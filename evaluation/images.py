"""Sets of images as the tools read and write them: sorted folders or shards, square crops, 8-bit PNG files."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import distributed
from common.errors import DataError
from common.files import write_atomically
from common.registry import Registry
from data.augment import adm_crop
from data.config import DataConfig
from data.decode import IMAGE_EXTENSIONS, decode_image
from data.listing import list_files
from data.skips import BadSample, Skip
from data.sources import SampleSource, build_source
from data.write_shards import encode_image

IMAGE_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


class UnreadableImage(Exception):
    """A file is not a whole image; the message says why."""


class InputImage(Protocol):
    """One image of a set, wherever it is stored."""

    @property
    def key(self) -> str:
        """What its random draws are keyed by, and what its files are named after."""
        ...

    def content(self) -> bytes:
        """The bytes of its file. Raises: OSError or BadSample."""
        ...

    def __str__(self) -> str:
        """Where it is, for messages."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """One image of a folder.

    Args:
        path: the file.
        key: its path below the folder without suffix.
    """

    path: Path
    key: str

    def content(self) -> bytes:
        return self.path.read_bytes()

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ShardImage:
    """One image of a set of shards; its key is the sample's.

    Args:
        source: the shards.
        index: its number there.
        reading: held while the source, which is made for one reader, is read.
    """

    source: SampleSource
    index: int
    reading: threading.Lock

    @property
    def key(self) -> str:
        return self.source.key(self.index)

    def content(self) -> bytes:
        with self.reading:
            return self.source.read_image(self.index)

    def __str__(self) -> str:
        return f"{self.source.shard(self.index)}: {self.key}"


@dataclass(frozen=True)
class ImageSet:
    """The images of a folder or of shards, and what was found wrong with the shards when they were opened."""

    images: Sequence[InputImage]
    problems: tuple[Skip, ...] = ()


def png_name(image: InputImage) -> str:
    """The name of an image in every output folder."""
    return f"{image.key}.png"


def open_images(path: str | Path, recursive: bool = False) -> ImageSet:
    """The images of a folder, or of the *.tar shards in it, or of one shard. Every rank must call it.

    Args:
        recursive: also search the sub-folders for images; for shards they are always searched.
    Raises: DataError if there are none, if the folder holds both kinds, or if two images would be written to one name.
    """
    path = Path(path)
    if distributed.on_rank_0(lambda: _holds_shards(path, recursive)):
        return _open_shards(path)
    return ImageSet(distributed.on_rank_0(lambda: list_images(path, recursive)))


def _holds_shards(path: Path, recursive: bool) -> bool:
    if not path.is_dir():
        return path.suffix.lower() == ".tar" and path.is_file()
    shards, images = list_files(path, [".tar"]), list_files(path, IMAGE_SUFFIXES)
    if not recursive:
        images = [name for name in images if "/" not in name]
    if images and any("/" not in name for name in shards):
        raise DataError(f"{path}: holds images and *.tar shards; expected one kind, so move the other elsewhere.")
    return bool(shards) and not images


def open_shards(path: Path, label_type: Literal["none", "cls2id"] = "none") -> SampleSource:
    """The samples of shards that a command line names. Every rank must call it.

    Raises: DataError if there are none.
    """
    try:
        return build_source(DataConfig(path=str(path), label_type=label_type), seed=0)
    except DataError as error:  # its keys are those of a configuration
        raise DataError(re.sub(r"^data\.path: | \(data\.source is webdataset\)", "", str(error))) from error


def _open_shards(path: Path) -> ImageSet:
    source = open_shards(path)
    reading = threading.Lock()
    images = [ShardImage(source, index, reading) for index in range(len(source))]
    for image in images:
        name = PurePosixPath(image.key)
        if name.is_absolute() or ".." in name.parts:
            raise DataError(f"{image}: this key would name a file outside the output folder; rename the sample.")
    return ImageSet(images, tuple(source.report.problems))


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
        by_name[png_name(image)].append(image.path.name)
    collisions = {name: files for name, files in by_name.items() if len(files) > 1}
    if collisions:
        name, files = next(iter(collisions.items()))
        raise DataError(
            f"{folder}: {' and '.join(files)} would both be written as {name} ({len(collisions)} such names); "
            "rename or move one of them."
        )


def read_rgb(path: Path) -> Image.Image:
    """A whole image file as RGB, converted as training images are. Raises UnreadableImage if it is not one."""
    return _as_rgb(path.read_bytes)


def read_input(image: InputImage) -> Image.Image:
    """`read_rgb` for an image of a set."""
    return _as_rgb(image.content)


def resized(image: Image.Image, side: int | None) -> Image.Image:
    """An image brought to side x side by PIL's bicubic filter, which antialiases; as it is where `side` is None."""
    if side is None or image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _as_rgb(read: Callable[[], bytes]) -> Image.Image:
    try:
        return Image.fromarray(decode_image(read()).pixels)
    except BadSample as error:
        raise UnreadableImage(f"{error.kind}: {error.detail}" if error.detail else error.kind) from error
    except OSError as error:
        raise UnreadableImage(str(error)) from error


def torchvision_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """Short side to `resolution` (bilinear, antialiased), then the centre square: uint8 [R, R, 3]."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    resized = tv.resize(image, resolution, InterpolationMode.BILINEAR)
    return np.asarray(tv.center_crop(resized, resolution))


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
