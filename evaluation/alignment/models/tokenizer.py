"""Latents of this project's tokenizers as features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.alignment.config import TokenizerSection
from evaluation.alignment.models.base import LatentModel, ReadShape, fill_up_sides
from evaluation.posterior import LatentChoice, encode_unit_images
from networks.checkpoint import load_tokenizer
from networks.fingerprint import weights_fingerprint
from networks.vfm_vae import VFMVAETokenizer


class TokenizerFeatures(LatentModel):
    """The latent, averaged over its positions.

    Args:
        latent: "mode" takes the mean of the posterior; "sample" draws from it, keyed by (seed, name).
    """

    def __init__(self, tokenizer: VFMVAETokenizer, latent: LatentChoice, seed: int):
        self.tokenizer, self.latent, self.seed = tokenizer, latent, seed
        self.weights_sha256 = weights_fingerprint(tokenizer.state_dict())

    def latents(self, images: Tensor, names: Sequence[str]) -> Tensor:
        images = fill_up_sides(images, self.tokenizer.image_multiple)
        return encode_unit_images(self.tokenizer, images, names, self.latent, self.seed).z.float()


def load(section: TokenizerSection, device: torch.device, read_shape: ReadShape) -> TokenizerFeatures:
    """Load a checkpoint. Raises: UserError if it cannot be loaded."""
    shape = read_shape(section.use_config) if section.use_config else None
    tokenizer = load_tokenizer(section.vae_pth, shape, device=device, weights=section.weights)
    return TokenizerFeatures(tokenizer, section.latent, section.seed)
