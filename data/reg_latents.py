"""Moments of latents with their images, as REG reads them (docs/latents.md). Two forms with the same items:

    folder/images/<sub>/<key>.png               uint8 RGB
    folder/vae_latents/<sub>/<key>.npy          float32 [2C, h, w]: mean, then standard deviation
    folder/vae_latents/dataset.json             {"labels": [["<sub>/<key>.npy", class index], ...]}
    folder/vae_latents/latents_stats.pt

    folder/*.safetensors                        moments [n, 2C, h, w], labels [n], names [n, longest],
                                                images uint8 [n, 3, R, R]
    folder/latents_stats.pt

Items come in order of their names `<sub>/<key>`. A latent is drawn anew each time that an item is used:
z = mean + std * eps, then (z - mean of all) / std of all.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError
from data.decode import decode_image
from data.latents import LatentNormalisation, read_normalisation
from data.listing import list_files
from data.name_tensors import unpack_names
from data.prefetch_index import list_shards, require_finished
from data.row_files import FLOATS, Column, RowFiles
from data.skips import BadSample
from data.sources import LABEL_FILE, PackedStrings, parse_labels

IMAGES_FOLDER = "images"
LATENTS_FOLDER = "vae_latents"

COLUMNS = {
    "moments": Column(FLOATS, 4),
    "labels": Column(("I64",), 1),
    "names": Column(("U8",), 2, same_shape=False),
    "images": Column(("U8",), 4),
}


@dataclass(frozen=True)
class RegItem:
    """One item for REG.

    Args:
        image: uint8 [3, R, R], the crop that the latent is of.
        moments: float32 [2C, h, w]: mean and standard deviation of the posterior.
        label: class index.
    """

    image: Tensor
    moments: Tensor
    label: int


def reg_name(key: str) -> str:
    """The name `<sub>/<key>` of a sample; `<sub>` is the part of its key before the first underscore.

    Folders in a key stay in front of it.
    Raises: DataError if the name would lead out of the folder.
    """
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"sample {key!r}: this key would name a file outside the output folder; rename the sample.")
    return str(path.parent / path.name.split("_")[0] / path.name)


def sample_moments(moments: Tensor, noise: Tensor) -> Tensor:
    """z = mean + std * eps.

    Args:
        moments: [..., 2C, h, w], mean and standard deviation.
        noise: eps, [..., C, h, w].
    """
    mean, std = moments.chunk(2, dim=-3)
    return mean + std * noise


class RegSource(ABC):
    """Items for REG, in order of name.

    Attributes:
        moments_shape: (2C, h, w).
        statistics_folder: where `latents_stats.pt` is.
    """

    moments_shape: tuple[int, int, int]
    statistics_folder: Path

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """`<sub>/<key>`."""

    @abstractmethod
    def moments(self, index: int) -> Tensor:
        """Float32 [2C, h, w]: mean and standard deviation."""

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """uint8 [3, R, R]."""

    @abstractmethod
    def label(self, index: int) -> int:
        """Class index."""

    @abstractmethod
    def labels(self) -> Tensor:
        """All class indices, int64 [N]."""

    def item(self, index: int) -> RegItem:
        """One item."""
        return RegItem(self.image(index), self.moments(index), self.label(index))

    def normalisation(self) -> LatentNormalisation:
        """The statistics of the latents. Raises: DataError if they are missing or of other latents."""
        return read_normalisation(self.statistics_folder, self.moments_shape[0] // 2)


def open_reg(folder: str | Path, image_folder: str = IMAGES_FOLDER, vae_folder: str = LATENTS_FOLDER) -> RegSource:
    """The items of a folder in either form.

    Args:
        image_folder, vae_folder: names of the two sub-folders; of no meaning for safetensors files.
    Raises: DataError that names the file if something is missing, damaged or does not fit together.
    """
    folder = Path(folder)
    require_finished(folder)
    if (folder / vae_folder).is_dir():
        return RegFolder(folder / image_folder, folder / vae_folder)
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder}: found neither the folder {vae_folder} nor *.safetensors files; prefetch them first."
        )
    return RegShards(folder)


class RegFolder(RegSource):
    """PNG and .npy files. Images and latents are paired by name, never by position.

    Args:
        images, latents: the two folders.
    """

    def __init__(self, images: Path, latents: Path):
        self._images, self._latents = images, latents
        self.statistics_folder = latents
        names = [name.removesuffix(".npy") for name in list_files(latents, [".npy"])]
        if not names:
            raise DataError(f"{latents}: no .npy files; prefetch latents first (docs/latents.md).")
        pictures = {str(PurePosixPath(name).with_suffix("")): name for name in list_files(images, [".png"])}
        _require_pairs(latents, images, names, pictures)
        labels = _read_labels(latents / LABEL_FILE)
        unlabelled = [name for name in names if f"{name}.npy" not in labels]
        if unlabelled:
            raise DataError(
                f"{latents / LABEL_FILE}: has no label for {unlabelled[0]}.npy ({len(unlabelled)} such files)."
            )
        self._names = PackedStrings(names)
        self._labels = np.array([labels[f"{name}.npy"] for name in names], dtype=np.int64)
        self.moments_shape = read_moments(latents / f"{names[0]}.npy").shape

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def labels(self) -> Tensor:
        return torch.from_numpy(self._labels)

    def moments(self, index: int) -> Tensor:
        path = self._latents / f"{self.name(index)}.npy"
        moments = read_moments(path)
        if moments.shape != self.moments_shape:
            raise DataError(
                f"{path}: found the shape {list(moments.shape)}, but the first latent has {list(self.moments_shape)}; "
                "the files are of different models."
            )
        return torch.from_numpy(moments)

    def image(self, index: int) -> Tensor:
        path = self._images / f"{self.name(index)}.png"
        try:
            pixels = decode_image(path.read_bytes()).pixels
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}).") from error
        except BadSample as bad:
            raise DataError(f"{path}: cannot be read ({bad.kind}: {bad.detail}).") from bad
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


class RegShards(RegSource):
    """Safetensors files.

    Args:
        folder: holds them.
    """

    def __init__(self, folder: Path):
        self.statistics_folder = folder
        self._rows = RowFiles(list_shards(folder), COLUMNS)
        self.moments_shape = self._rows.shape("moments")
        keys = (key for block in self._rows.blocks("names", 65536) for key in unpack_names(block))
        names = [reg_name(key) for key in keys]
        self._order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        self._names = PackedStrings(names)

    def __len__(self) -> int:
        return len(self._order)

    def name(self, index: int) -> str:
        return self._names[self._order[index]]

    def label(self, index: int) -> int:
        return int(self._row("labels", index))

    def labels(self) -> Tensor:
        return torch.cat(list(self._rows.blocks("labels", 65536)))[torch.from_numpy(self._order)]

    def moments(self, index: int) -> Tensor:
        return self._row("moments", index).float()

    def image(self, index: int) -> Tensor:
        return self._row("images", index)

    def _row(self, column: str, index: int) -> Tensor:
        return self._rows.row(column, int(self._order[index]))


def _require_pairs(latents: Path, images: Path, names: Sequence[str], pictures: dict[str, str]) -> None:
    without = [name for name in names if name not in pictures]
    if without:
        raise DataError(
            f"{latents / f'{without[0]}.npy'}: has no image {images / f'{without[0]}.png'} ({len(without)} of "
            f"{len(names)} latents have none); expected one image for every latent."
        )
    lonely = sorted(pictures.keys() - set(names))
    if lonely:
        raise DataError(
            f"{images / pictures[lonely[0]]}: has no latent {latents / f'{lonely[0]}.npy'} ({len(lonely)} of "
            f"{len(pictures)} images have none); expected one latent for every image."
        )


def _read_labels(path: Path) -> dict[str, int | str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the labels cannot be read ({error}).") from error
    return parse_labels(str(path), content)


def read_moments(path: Path) -> np.ndarray:
    """A .npy file with the moments of one latent, float32 [2C, h, w]. Raises: DataError if it is something else."""
    try:
        moments = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if moments.dtype != np.float32 or moments.ndim != 3 or moments.shape[0] % 2:
        raise DataError(f"{path}: found {moments.dtype} of shape {list(moments.shape)}, expected float32 [2C, h, w].")
    return moments
