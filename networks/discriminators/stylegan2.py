"""Residual discriminator in the manner of StyleGAN2 (arXiv 1912.04958): one logit per image."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError
from networks.discriminators.layers import LEAKY_SLOPE

LAST_SIDE = 4
WIDEST = 512


def channels_at(side: int) -> int:
    """512 up to 32 pixels, half as many at 64, and so on; other sides count as the nearest power of two."""
    return min(WIDEST, max(1, 2**14 // 2 ** round(math.log2(side))))


class ResidualBlock(nn.Module):
    """Halves the sides, rounding up: (skip(x) + down(blur(convs(x)))) / sqrt 2.

    The convolutions are 3x3, each with a leaky ReLU; the skip is 1x1 of stride 2, without a bias.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.skip = nn.Conv2d(n_in, n_out, 1, stride=2, bias=False)
        self.first = nn.Conv2d(n_in, n_in, 3, padding=1)
        self.second = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.down = nn.Conv2d(n_out, n_out, 3, stride=2, padding=1)
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur_kernel", (taps[:, None] * taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.first(x), LEAKY_SLOPE)
        y = F.leaky_relu(self.second(y), LEAKY_SLOPE)
        y = F.conv2d(y, self.blur_kernel.expand(y.shape[1], -1, -1, -1), padding=1, groups=y.shape[1])
        return (self.skip(x) + self.down(y)) / 2**0.5


class StyleGAN2Discriminator(nn.Module):
    """Convolution -> residual blocks down to 4x4 -> convolution -> two linear layers -> one logit.

    The sides are halved, rounding up, until they are below 8. Images whose side is a power of two arrive at 4x4; what
    is left of others, 5 to 7 pixels, is brought there by adaptive mean pooling: 336 -> 168 -> ... -> 11 -> 6 -> 4.
    Nothing is resized beforehand, so no detail is lost.

    Args:
        resolution: side of the images in pixels, at least 4.
    """

    def __init__(self, resolution: int):
        super().__init__()
        assert resolution >= LAST_SIDE, f"the StyleGAN2-like discriminator cannot judge {resolution} pixels"
        self.resolution = resolution
        sides = [resolution]
        while sides[-1] >= 2 * LAST_SIDE:
            sides.append(-(-sides[-1] // 2))
        widths = [channels_at(side) for side in sides]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.hidden = nn.Linear(widths[-1] * LAST_SIDE**2, WIDEST)
        self.logit = nn.Linear(WIDEST, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, resolution, resolution] in [-1, 1] -> logits [B, 1], fp32.

        Raises: ShapeError if the images have another size.
        """
        if images.shape[-2:] != (self.resolution, self.resolution):
            raise ShapeError(
                f"StyleGAN2-like discriminator: found images {list(images.shape)}, expected a side of "
                f"{self.resolution} pixels, which it is built for."
            )
        x = F.leaky_relu(self.stem(images), LEAKY_SLOPE)
        for block in self.blocks:
            x = block(x)
        x = F.leaky_relu(self.last(F.adaptive_avg_pool2d(x, LAST_SIDE)), LEAKY_SLOPE)
        x = F.leaky_relu(self.hidden(x.flatten(1)), LEAKY_SLOPE)
        return self.logit(x).float()
