"""The resize that brings pictures of any size to the model's, as published: blur, then bicubic interpolation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_to_model(images: Tensor, side: int) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] -> [B, 3, side, side] in [-1, 1].

    If any side shrinks, both axes are blurred first, by a Gaussian of deviation (f - 1) / 2 where f is the factor of
    that axis. The corners of both images coincide (align_corners), and what overshoots is clamped.
    """
    height, width = images.shape[-2:]
    factors = (height / side, width / side)
    if max(factors) > 1:
        images = _blur(images, factors)
    if (height, width) != (side, side):
        images = F.interpolate(images, size=(side, side), mode="bicubic", align_corners=True)
    return images.clamp(-1, 1)


def _blur(images: Tensor, factors: tuple[float, float]) -> Tensor:
    """Separable Gaussian blur with reflected borders."""
    for axis, factor in zip((2, 3), factors):
        kernel = _gaussian(max((factor - 1) / 2, 0.001)).to(images)
        reach = len(kernel) // 2
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        weight = kernel.view(shape).expand(images.shape[1], -1, -1, -1)
        images = F.conv2d(F.pad(images, padding, mode="reflect"), weight, groups=images.shape[1])
    return images


def _gaussian(sigma: float) -> Tensor:
    """Taps of an odd number of integer offsets, at least 3 and about 4 sigma of them, of sum 1."""
    size = int(max(4 * sigma, 3)) | 1
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    taps = torch.exp(-offsets.square() / (2 * sigma**2))
    return taps / taps.sum()
