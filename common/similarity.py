"""How near two images are: PSNR and SSIM of each pair.

PSNR does not depend on whether images are in [0, 1] or [-1, 1]; SSIM does, because its luminance term works on means.
Published tokenizer tables use SSIM on [-1, 1] (`data_range=2`), which reads lower than the usual one on [0, 1].
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import ShapeError

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # int(3.5 sigma + 0.5): an 11 x 11 window


def psnr(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio of each image, 10 log10(L^2 / mean (a - b)^2).

    Args:
        a, b: images [B, C, H, W], any float dtype; the mean runs over channels and pixels.
        data_range: L, 2 for images in [-1, 1], 1 for images in [0, 1].
    Returns: [B] in dB, infinite where an image equals its reference.
    Raises: ShapeError if the shapes differ.
    """
    _check_pair(a, b)
    mse = (a - b).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / mse)


def ssim(a: Tensor, b: Tensor, data_range: float, border: Literal["full", "valid"] = "full") -> Tensor:
    """Structural similarity of each image (Wang et al. 2004) with a Gaussian window of sigma 1.5.

    Population variances, C1 = (0.01 L)^2, C2 = (0.03 L)^2, each channel by itself, mean over channels and positions.

    Args:
        a, b: images [B, C, H, W], any float dtype.
        data_range: L, 2 for images in [-1, 1], 1 for images in [0, 1].
        border: "full" averages the whole map of the reflect-padded images (torchmetrics 1.5 and later); "valid"
            drops the 5 pixels along the edge, whose window leaves the image (torchmetrics up to 1.4, scikit-image).
    Returns: [B].
    Raises: ShapeError if the shapes differ, or if a side is too small for the window.
    """
    _check_pair(a, b)
    smallest = SSIM_RADIUS + 1 if border == "full" else 2 * SSIM_RADIUS + 1
    if min(a.shape[-2:]) < smallest:
        raise ShapeError(
            f"SSIM of {tuple(a.shape[-2:])} images: a side is below {smallest} pixels (border={border!r})."
        )
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b, square_a, square_b, product = _window_means(a, b, a * a, b * b, a * b)
    variance_a = (square_a - mean_a**2).clamp(min=0)
    variance_b = (square_b - mean_b**2).clamp(min=0)
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    similarity = luminance * structure  # [B, C, H, W]
    if border == "valid":
        inner = slice(SSIM_RADIUS, -SSIM_RADIUS)
        similarity = similarity[..., inner, inner]
    return similarity.flatten(1).mean(1)


def _window_means(*images: Tensor) -> tuple[Tensor, ...]:
    """Gaussian-weighted means around every pixel, one [B, C, H, W] per argument; edges are reflected."""
    stacked = torch.cat(images, dim=1)  # [B, 5C, H, W]
    channels = stacked.shape[1]
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=stacked.dtype, device=stacked.device)
    weights = torch.exp(-((offsets / SSIM_SIGMA) ** 2) / 2)
    weights = (weights / weights.sum()).expand(channels, 1, 1, -1)
    padded = F.pad(stacked, [SSIM_RADIUS] * 4, mode="reflect")
    along_rows = F.conv2d(padded, weights, groups=channels)
    return F.conv2d(along_rows, weights.transpose(2, 3), groups=channels).chunk(len(images), dim=1)


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise ShapeError(f"found images {tuple(a.shape)} and {tuple(b.shape)}, expected two equal [B, C, H, W].")
