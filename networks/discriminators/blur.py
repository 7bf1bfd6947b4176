"""Blur of what the discriminators see, which early in training hides detail that nobody can make yet."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def blur_images(images: Tensor, sigma: float) -> Tensor:
    """Separable blur with taps 2^-((k / sigma)^2), k = -n..n, n = floor(3 sigma), normalised; zero outside the image.

    Args:
        images: [B, C, H, W], any range.
        sigma: distance in pixels at which a tap has half the weight of the middle one; below 1/3 nothing is blurred.
    """
    reach = math.floor(3 * sigma)
    if reach == 0:
        return images
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    taps = torch.exp2(-((offsets / sigma) ** 2))
    taps = (taps / taps.sum()).to(images.dtype)
    channels = images.shape[1]
    for shape, padding in (((1, 1, -1, 1), (reach, 0)), ((1, 1, 1, -1), (0, reach))):
        kernel = taps.view(shape).expand(channels, -1, -1, -1)
        images = F.conv2d(images, kernel, padding=padding, groups=channels)
    return images
