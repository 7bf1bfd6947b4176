"""Latents of KL autoencoders in the layout of the diffusers library, such as SD-VAE.

diffusers is no requirement of the project; it is imported here, when such a model is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError, first_line
from common.random import torch_generator
from common.value_range import unit_to_signed
from evaluation.alignment.config import AutoencoderSection
from evaluation.alignment.models.base import LatentModel, ReadShape, fill_up_sides
from evaluation.posterior import LatentChoice
from networks.fingerprint import weights_fingerprint
from networks.latent import DiagonalGaussian


class AutoencoderFeatures(LatentModel):
    """The latent of an `AutoencoderKL`, averaged over its positions.

    Args:
        autoencoder: a diffusers model in eval mode.
        latent: "mode" takes the mean of the posterior; "sample" draws from it, keyed by (seed, name).
        apply_scaling: multiply by the model's `scaling_factor`.
    """

    def __init__(self, autoencoder: Any, latent: LatentChoice, seed: int, apply_scaling: bool):
        self.autoencoder, self.latent, self.seed = autoencoder, latent, seed
        self.scale = autoencoder.config.scaling_factor if apply_scaling else 1.0
        self.stride = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self.weights_sha256 = weights_fingerprint(autoencoder.state_dict())

    def latents(self, images: Tensor, names: Sequence[str]) -> Tensor:
        pixels = unit_to_signed(fill_up_sides(images, self.stride))
        posterior = DiagonalGaussian(self.autoencoder.encode(pixels).latent_dist.parameters.float())
        if self.latent == "mode":
            return posterior.mode() * self.scale
        shape = posterior.mean.shape[1:]
        noise = [torch.randn(shape, generator=torch_generator(self.seed, "posterior", name)) for name in names]
        return posterior.sample(noise=torch.stack(noise)) * self.scale

    def stated_statistics(self) -> tuple[Tensor, Tensor]:
        channels = self.autoencoder.config.latent_channels
        return torch.zeros(channels), torch.full((channels,), self.scale / self.autoencoder.config.scaling_factor)


def load(section: AutoencoderSection, device: torch.device, read_shape: ReadShape) -> AutoencoderFeatures:
    """Load a model folder. Raises: UserError if diffusers is not installed, or the folder holds no such model."""
    if not (Path(section.path) / "config.json").is_file():
        raise UserError(
            f"{section.path}: has no config.json; expected the folder of an AutoencoderKL of diffusers, such as a "
            "download of stabilityai/sd-vae-ft-mse."
        )
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError(
            f"{section.path}: reading it takes the diffusers library, which is not installed ({error}); "
            "pip install diffusers."
        ) from error
    try:
        model = AutoencoderKL.from_pretrained(section.path, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{section.path}: is no AutoencoderKL, or not whole ({first_line(error)}).") from error
    return AutoencoderFeatures(
        model.to(device).eval().requires_grad_(False), section.latent, section.seed, section.apply_scaling
    )
