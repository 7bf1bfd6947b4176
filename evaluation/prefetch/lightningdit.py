"""Latents of images and of their mirror images, as LightningDiT reads them: `data.latents`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.latents import COLUMNS
from data.row_files import RowFiles
from evaluation.posterior import LatentChoice, encode_images
from evaluation.prefetch.format import Encoded, Record
from evaluation.prefetch.shard_files import ShardFormat
from evaluation.prefetch.statistics import StatisticsRule, write_measured

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# A second index of the keyed draw (`common.random` joins them by this character), so that an image and its mirror image
# have noise of their own.
_MIRRORED = "\x1fmirrored"


class LightningDiTFormat(ShardFormat):
    """Columns `latents` and `latents_flip`, [n, C, h, w].

    Args:
        latent: "sample" stores a draw from the posterior, "mode" its mean; a discrete latent is the same in both.
        seed: key of the posterior noise.
        dtype: how latents are stored, a name of `DTYPES`.
        stats: what the statistics are taken of.
    """

    name = "lightningdit"
    file_stem = "latents"

    def __init__(
        self, latent: LatentChoice = "sample", seed: int = 0, dtype: str = "fp32", stats: StatisticsRule = "all"
    ):
        self._latent, self._seed, self._dtype, self._stats = latent, seed, dtype, stats

    def identity(self) -> dict[str, Any]:
        return {"latent": self._latent, "seed": self._seed, "dtype": self._dtype}

    def encode(self, model: nn.Module, images: Tensor, keys: Sequence[str]) -> Encoded:
        z = self._encode(model, images, keys)
        z_flip = self._encode(model, images.flip(-1), [key + _MIRRORED for key in keys])
        return Encoded({"latents": z, "latents_flip": z_flip}, (z, z_flip))

    def _encode(self, model: nn.Module, images: Tensor, keys: Sequence[str]) -> Tensor:
        return encode_images(model, images, keys, self._latent, self._seed).z.cpu().to(DTYPES[self._dtype])

    def finish(self, folder: Path, records: Sequence[Record]) -> dict[str, Any]:
        rows = RowFiles(self.shards(folder, records), COLUMNS)
        statistics = write_measured(
            folder, self._stats, records, len(rows), lambda row: rows.row("latents", row).float(), self._seed
        )
        return super().finish(folder, records) | {"statistics": statistics}
