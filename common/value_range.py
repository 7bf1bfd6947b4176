"""The only place that converts between the value ranges of images.

uint8 [0, 255]  <->  unit [0, 1]  <->  signed [-1, 1].  Encoders take unit images; decoders, losses and
discriminators work on signed ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["truncate", "nearest"]


def uint8_to_unit(images: Tensor) -> Tensor:
    """uint8 [0, 255] -> float32 [0, 1]."""
    return images.float() / 255


def unit_to_signed(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]; values outside are kept."""
    return images * 2 - 1


def signed_to_unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]; values outside are kept."""
    return (images + 1) / 2


def unit_to_uint8(images: Tensor, rounding: Rounding = "truncate") -> Tensor:
    """[0, 1] -> uint8: clamp, times 255, then truncate (as published PNG files of VFM-VAE) or round (of VFMTok)."""
    levels = images.float().clamp(0, 1) * 255
    return (levels.round() if rounding == "nearest" else levels).to(torch.uint8)
