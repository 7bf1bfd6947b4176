"""What a reconstruction has to beat: predictions that any reader can make without a network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from common.errors import ShapeError
from common.value_range import uint8_to_unit, unit_to_uint8


def mean_colour(images: Tensor) -> Tensor:
    """Each image replaced by its mean colour (3 numbers), rounded to 8 bit.

    Args:
        images: uint8 [B, 3, H, W].
    Returns: uint8 [B, 3, H, W].
    """
    means = uint8_to_unit(images).mean(dim=(2, 3), keepdim=True)
    return unit_to_uint8(means, rounding="nearest").expand_as(images).clone()


def down8(images: Tensor) -> Tensor:
    """Each image reduced 8 times by area and enlarged again by bicubic interpolation, clamped, rounded to 8 bit.

    At 64 pixels it keeps 8 * 8 * 3 = 192 numbers. The interpolation is PyTorch's bicubic (a = -0.75).

    Args:
        images: uint8 [B, 3, H, W] with sides divisible by 8.
    Returns: uint8 [B, 3, H, W].
    Raises: ShapeError if a side is not divisible by 8.
    """
    height, width = images.shape[-2:]
    if height % 8 or width % 8:
        raise ShapeError(f"found images of {height} x {width} pixels, expected sides divisible by 8.")
    small = F.avg_pool2d(uint8_to_unit(images), 8)
    large = F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
    return unit_to_uint8(large, rounding="nearest")


BASELINES = {"mean_colour": mean_colour, "down8": down8}
