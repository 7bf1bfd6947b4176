"""Samples of diffusion models as the decode tools take them: without the normalisation that they were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from common.errors import DataError
from data.latents import LatentNormalisation
from evaluation.diffusion.samplers import Sampler
from networks.fingerprint import weights_fingerprint


class LatentSamples:
    """A `SampleMaker` of latents.

    Args:
        sampler: makes normalised ones.
        normalisation: of the latents that the network was trained on; the decoder takes them without.
    """

    def __init__(self, sampler: Sampler, normalisation: LatentNormalisation):
        self.sampler, self.normalisation = sampler, normalisation
        self.num_classes = sampler.num_classes

    def identity(self) -> dict[str, Any]:
        statistics = {"mean": self.normalisation.mean, "std": self.normalisation.std}
        return {
            **self.sampler.identity(),
            "statistics_sha256": weights_fingerprint(statistics),
            "latent_multiplier": self.normalisation.multiplier,
        }

    def columns(self, indices: Sequence[int], labels: Tensor, seed: int) -> dict[str, Tensor]:
        """`latents`, float32 [B, C, h, w]. Raises: DataError if one is not finite."""
        z = self.normalisation.denormalise(self.sampler.sample(indices, labels, seed)).float().cpu()
        for index, latent in zip(indices, z):
            if not latent.isfinite().all():
                raise DataError(
                    f"sample {index}: its latent is not finite; check the weights and the statistics of the latents."
                )
        return {"latents": z}
