"""Semantic-preserving transformations: drawn for each image, exactly as for published feature files.

Draws come from NumPy's legacy generator, seeded by seed + the image's position in the sorted list, because the
published lists were drawn so. Every image has a generator of its own, so any number of threads draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.resize import resize_images
from evaluation.alignment.conditions import ROTATIONS, SCALES

DEFAULT_SEED = 42


@dataclass(frozen=True)
class ImageTransform:
    """A quarter turn, then a scale.

    Args:
        rotation: degrees counter-clockwise, one of `ROTATIONS`.
        scale: factor of both sides, up to 1.
    """

    rotation: int = 0
    scale: float = 1.0


def draw_transform(position: int, seed: int = DEFAULT_SEED) -> ImageTransform:
    """The transformation of the image at a position (from 0) of the list sorted by name."""
    state = np.random.RandomState(seed + position)
    rotation = int(state.choice(ROTATIONS))
    return ImageTransform(rotation, float(state.choice(SCALES)))


def apply_transform(images: Tensor, transform: ImageTransform) -> Tensor:
    """Turn, then scale with antialiasing: [B, C, H, W] -> [B, C, floor(H' s), floor(W' s)], any value range."""
    turned = torch.rot90(images, transform.rotation // 90, (2, 3))
    if transform.scale == 1:
        return turned
    return resize_images(turned, "bilinear", scale_factor=transform.scale)


def add_noise(pixels: np.ndarray, level: float, position: int, seed: int = DEFAULT_SEED) -> np.ndarray:
    """Gaussian noise, clipped and truncated to whole levels; an image's pattern is the same at every level.

    Args:
        pixels: uint8 [H, W, C].
        level: standard deviation as a share of 255.
        position: of the image in the list sorted by name, from 0.
    Returns: uint8 [H, W, C].
    """
    noise = np.random.RandomState(seed + position).normal(0, level, pixels.shape).astype(np.float32)
    return np.clip(pixels.astype(np.float32) + noise * 255, 0, 255).astype(np.uint8)
