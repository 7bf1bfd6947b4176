"""Equivariance regularisation: a random scale and rotation, drawn once and applied to latent or input, and target.

Two branches. In the latent branch the encoder sees the full image, and the latent is resized and turned. In the
input branch the encoder sees a smaller image. In both the decoder makes an image of scale * S pixels, which is compared
with the target under the same transform.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from common.resize import resize_images
from networks.config import EQUIVARIANCE_SCALES


@dataclass(frozen=True)
class EquivarianceTransform:
    """One drawn transform.

    Attributes:
        scale: factor of both sides.
        quarter_turns: clockwise turns by 90 degrees (latent branch only).
        on_input: True for the input branch.
    """

    scale: float = 1.0
    quarter_turns: int = 0
    on_input: bool = False

    @property
    def input_scale(self) -> float:
        """Factor by which the image is resized before the encoder."""
        return self.scale if self.on_input else 1.0

    def apply_to_latent(self, z: Tensor) -> Tensor:
        """Resize [B, C, h, w] bilinearly without antialiasing, then turn it; identity in the input branch."""
        if self.on_input:
            return z
        if self.scale != 1:
            z = F.interpolate(z, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self._turn(z)

    def apply_to_target(self, images: Tensor, interpolation: str) -> Tensor:
        """Resize real images in [0, 1] by the scale (antialiased), then turn them."""
        if self.scale != 1:
            images = resize_images(images, interpolation, scale_factor=self.scale)
        return self._turn(images)

    def _turn(self, x: Tensor) -> Tensor:
        return torch.rot90(x, self.quarter_turns, dims=(-1, -2)) if self.quarter_turns % 4 else x


IDENTITY = EquivarianceTransform()


def draw_transform(rng: random.Random, p_latent: float = 0.5, p_input_scale: float = 0.25) -> EquivarianceTransform:
    """Draw one transform for a micro-batch.

    Args:
        rng: source of the draws; the order of its calls is fixed, so a seed gives the published sequence.
        p_latent: probability of the latent branch (`equivariance_regularization_p_prior`).
        p_input_scale: probability of a smaller image in the input branch (`..._p_prior_scale`).
    """
    if rng.random() < p_latent:
        return EquivarianceTransform(rng.choice([*EQUIVARIANCE_SCALES, 1.0]), rng.choice([0, 1, 2, 3]))
    scale = rng.choice(EQUIVARIANCE_SCALES) if rng.random() < p_input_scale else 1.0
    return EquivarianceTransform(scale, on_input=True)
