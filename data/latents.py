"""Latents that were computed beforehand, as LightningDiT reads them (docs/latents.md).

    folder/*.safetensors        latents, latents_flip (of the mirrored images) [n, C, h, w], labels [n]
    folder/latents_stats.pt     mean, std [1, C, 1, 1]

files in order of name -> rows -> the latent or that of the mirrored image -> (z - mean) / std * multiplier
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.errors import CheckpointError, DataError
from common.files import write_atomically
from common.random import python_generator
from common.torch_file import read_torch_file
from data.prefetch_index import list_shards
from data.row_files import FLOATS, Column, RowFiles

STATISTICS_FILE = "latents_stats.pt"

COLUMNS = {"latents": Column(FLOATS, 4), "latents_flip": Column(FLOATS, 4), "labels": Column(("I64",), 1)}


@dataclass(frozen=True)
class LatentNormalisation:
    """Between latents of a tokenizer and what a diffusion model works on.

    Args:
        mean, std: of each channel, float32 [C, 1, 1].
        multiplier: applied after them.
    """

    mean: Tensor
    std: Tensor
    multiplier: float = 1.0

    def normalise(self, z: Tensor) -> Tensor:
        """(z - mean) / std * multiplier, for [C, h, w] or [B, C, h, w]."""
        return (z - self.mean.to(z)) / self.std.to(z) * self.multiplier

    def denormalise(self, x: Tensor) -> Tensor:
        """x * std / multiplier + mean: the inverse, for what a diffusion model has sampled."""
        return x * self.std.to(x) / self.multiplier + self.mean.to(x)


def read_normalisation(folder: str | Path, channels: int, multiplier: float = 1.0) -> LatentNormalisation:
    """The statistics in a folder of latents.

    Raises: DataError if they are missing, of another number of channels, or cannot normalise anything.
    """
    path = Path(folder) / STATISTICS_FILE
    if not path.is_file():
        raise DataError(
            f"{path}: missing; latents cannot be normalised without it. Copy the one that was written with them, or "
            "start the prefetch again, which keeps what is there."
        )
    try:
        content = read_torch_file(path)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), Tensor) for key in ("mean", "std")):
        raise DataError(f"{path}: expected a dict with the tensors mean and std.")
    mean, std = content["mean"].float(), content["std"].float()
    for name, value in (("mean", mean), ("std", std)):
        if value.numel() != channels:
            raise DataError(
                f"{path}: {name}: found the shape {list(value.shape)}, expected [1, {channels}, 1, 1] for latents with "
                f"{channels} channels; it is of another tokenizer."
            )
        if not value.isfinite().all():
            raise DataError(f"{path}: {name}: holds values that are not finite.")
    if not (std > 0).all():
        raise DataError(f"{path}: std: found {std.min().item():g}, expected values above 0.")
    return LatentNormalisation(mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1), multiplier)


def write_statistics(folder: str | Path, mean: Tensor, std: Tensor) -> None:
    """Write `latents_stats.pt`: mean and std of each channel [C] as float32 [1, C, 1, 1]."""
    content = {name: value.float().reshape(1, -1, 1, 1) for name, value in (("mean", mean), ("std", std))}
    buffer = io.BytesIO()  # a file's own name would go into it
    torch.save(content, buffer)
    write_atomically(Path(folder) / STATISTICS_FILE, lambda partial: partial.write_bytes(buffer.getvalue()))


@dataclass(frozen=True)
class LatentItem:
    """One item of a data set of latents.

    Args:
        z: float32 [C, h, w], normalised if the data set normalises.
        label: class index.
    """

    z: Tensor
    label: int


class LatentDataset:
    """The latents of a folder, file after file in order of name, row by row.

    Args:
        folder: as above.
        latent_norm: normalise by the folder's statistics.
        latent_multiplier: applied to every latent, normalised or not.

    Raises: DataError that names the file if the folder holds none, one is damaged or inconsistent with the others, or
        the statistics are missing or of other latents.
    """

    def __init__(self, folder: str | Path, *, latent_norm: bool = True, latent_multiplier: float = 1.0):
        self.rows = RowFiles(list_shards(folder), COLUMNS)
        if self.rows.shape("latents") != self.rows.shape("latents_flip"):
            raise DataError(
                f"{self.rows.paths[0]}: latents have the shape {list(self.rows.shape('latents'))}, latents_flip "
                f"{list(self.rows.shape('latents_flip'))}; expected equal ones."
            )
        self.latent_shape = self.rows.shape("latents")
        channels = self.latent_shape[0]
        if latent_norm:
            self.normalisation = read_normalisation(folder, channels, latent_multiplier)
        else:
            self.normalisation = LatentNormalisation(
                torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1), latent_multiplier
            )

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int, coin: float) -> LatentItem:
        """One item.

        Args:
            coin: uniform in [0, 1); above 1/2 gives the image's latent, else that of its mirror image. `flip_coin`
                draws it for a position in a training.
        """
        column = "latents" if coin > 0.5 else "latents_flip"
        z = self.normalisation.normalise(self.rows.row(column, index).float())
        return LatentItem(z, int(self.rows.row("labels", index)))


def flip_coin(seed: int, position: int) -> float:
    """The draw for the item at a position of a training's endless sequence: a resumed run draws the same."""
    return python_generator(seed, "latent_flip", position).random()
