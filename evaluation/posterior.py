"""Latents of images as the tools take them: posterior noise keyed by image, so that it depends on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from common.random import torch_generator
from common.value_range import uint8_to_unit
from networks.interfaces import Latent

LatentChoice = Literal["sample", "mode"]


def posterior_noise(model: nn.Module, keys: Sequence[str], height: int, width: int, seed: int) -> Tensor:
    """Standard normal noise [B, C, h, w] for images of `height` x `width` pixels; each keyed by (seed, key)."""
    shape = model.latent_shape(height, width)
    return torch.stack([torch.randn(shape, generator=torch_generator(seed, "posterior", key)) for key in keys])


def encode_images(model: nn.Module, images: Tensor, keys: Sequence[str], latent: LatentChoice, seed: int) -> Latent:
    """`encode_unit_images` of 8-bit images [B, 3, H, W]."""
    return encode_unit_images(model, uint8_to_unit(images), keys, latent, seed)


def encode_unit_images(
    model: nn.Module, images: Tensor, keys: Sequence[str], latent: LatentChoice, seed: int
) -> Latent:
    """Encode images; the same image gives the same latent whatever its batch, rank or run.

    Args:
        model: a tokenizer in eval mode.
        images: [B, 3, H, W] in [0, 1], on the model's device.
        keys: one per image.
        latent: "sample" draws z from the posterior, "mode" takes its mean. A discrete latent is the same in both.
        seed: with the key it decides the posterior noise.
    """
    noise = torch.zeros(())
    if latent == "sample":
        noise = posterior_noise(model, keys, *images.shape[-2:], seed)
    return model.encode(images, noise=noise)
